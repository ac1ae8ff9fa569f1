"""The card of a transferred model: what it is, what was measured, how it is loaded, its limits."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def model_card(summary: Mapping[str, Any]) -> str:
    """Writes README.md for a model, from the summary of its transfer.

    The front matter is what model hubs read. A base model is named there only where its name is
    one of a hub; folders of a machine stay on it.
    """
    parts = [
        f"# {summary['student']}",
        _what(summary),
        _measures(summary),
        _how(summary),
        LOADING_ENRICHED if summary["target"]["enriched"] else LOADING,
        LIMITS,
    ]
    return f"---\n{_front_matter(summary)}---\n\n" + "\n\n".join(parts) + "\n"


LOADING = """## How to load

```python
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = PreTrainedTokenizerFast.from_pretrained("path/to/this/folder")
```

No code beyond transformers is needed. (`AutoTokenizer` loads the same tokenizer for most models;
for some families, Qwen 2 among them, it builds one by their own rules and reads other ids.)"""

LOADING_ENRICHED = """## How to load

```python
from crosstill.hub import load_tokenizer
from crosstill.transfer.enriched import load_enriched

model = load_enriched("path/to/this/folder")
tokenizer = load_tokenizer("path/to/this/folder")
```

This is an enriched byte model: to the embedding of each byte it adds the base model's embedding
of the longest subword that ends there. Its class is crosstill's; the folder holds safetensors and
JSON, and no code. `model.model`, without the subwords, is not what was measured."""

LIMITS = """## Limits

- What the base model does wrong this one does too, and its licence and terms of use hold here.
- The numbers above are from the texts named above. On other kinds of text, in other languages and
  on long inputs the distance from the base model can be larger: measure before you rely on it.
- The divergence compares the models' own spellings of a text. It says nothing of tasks.
- A length in tokens means another length in bytes than for the base model."""


def _front_matter(summary: Mapping[str, Any]) -> str:
    values: dict[str, Any] = {
        "library_name": "crosstill" if summary["target"]["enriched"] else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["crosstill", "tokenizer-transfer"],
    }
    base = str(summary["teacher"])
    if _on_a_hub(base):
        values = {"base_model": base, "base_model_relation": "finetune", **values}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _on_a_hub(name: str) -> bool:
    return bool(_HUB_NAME.fullmatch(name)) and not Path(name).exists()


def _shown(name: str) -> str:
    return name if _on_a_hub(name) else Path(name).name


def _what(summary: Mapping[str, Any]) -> str:
    target = summary["target"]
    whose = "its own" if target["special_tokens"] == "keep" else "the target's"
    tokens = (
        "raw bytes"
        if target["to"] == "bytes"
        else f"the tokens of {_shown(_folder(str(target['to'])))}"
    )
    return (
        f"{_shown(str(summary['teacher']))}, moved to {tokens} ({target['vocabulary']:,} in all) "
        f"with {whose} special tokens and chat template, by crosstill "
        f"{summary['versions']['crosstill']}."
    )


def _folder(name: str) -> str:
    return name.removesuffix("/tokenizer.json")


def _measures(summary: Mapping[str, Any]) -> str:
    rows = []
    before = summary["teacher_divergence_before_by_kind"]
    for kind, after in summary["teacher_divergence_after_by_kind"].items():
        rows.append((f"divergence from the base model, {kind}", before.get(kind), after))
    for label, key in (
        ("divergence from the base model, all", "teacher_divergence"),
        ("held-out text", "student_bits_per_byte"),
    ):
        if summary[f"{key}_after"] is not None:
            rows.append((label, summary[f"{key}_before"], summary[f"{key}_after"]))
    if summary["teacher_bits_per_byte"] is not None:
        rows.append(("held-out text, the base model", None, summary["teacher_bits_per_byte"]))
    if not rows:
        return "## Measured\n\nNothing was measured."
    lines = [f"| {label} | {_number(was)} | {_number(now)} |" for label, was, now in rows]
    error = summary["teacher_divergence_standard_error"]
    note = f" Its standard error over all is {error:.3f}." if error is not None else ""
    return "\n".join(
        [
            "## Measured",
            "",
            "| bits per byte | new embeddings, untrained | this model |",
            "|---|---|---|",
            *lines,
            "",
            f"The divergence is zero for equal models: on texts that the base model wrote, the "
            f"bits per byte that this model needs beyond the base model's.{note}",
        ]
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _how(summary: Mapping[str, Any]) -> str:
    initialiser = summary["initialiser"]
    report = initialiser["report"].items()
    counts = [f"{count:,} {kind.replace('_', ' ')}" for kind, count in report if count]
    lines = [
        "## How it was made",
        "",
        f"- First rows of the embeddings: `{initialiser['name']}` ({', '.join(counts)}).",
    ]
    if not summary["stages"]:
        lines.append("- Nothing was trained.")
    lines += [
        f"- Trained: {stage['train']}, {stage['steps']:,} steps, {stage['student_tokens']:,} "
        f"tokens, by `{stage['objective']}`, with the base model as the teacher."
        for stage in summary["stages"]
    ]
    recipe = summary["recipe"]
    if summary["stages"]:
        lines.append(f"- Texts: {_files(recipe['train'])}.")
    lines.append(f"- Held-out texts: {_files(recipe['eval_texts'])}.")
    lines.append(f"- Seed {summary['seed']}.")
    return "\n".join(lines)


def _files(value: str | list[str]) -> str:
    """Names of files; texts that stand in a recipe itself are counted."""
    if isinstance(value, str):
        return _shown(value)
    if not value:
        return "none"
    if all(len(item) < 256 and Path(item).exists() for item in value):
        return ", ".join(_shown(item) for item in value)
    return f"{len(value)} from the recipe"
