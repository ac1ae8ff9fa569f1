"""The runs of the benchmark: one line a question."""

from dataclasses import dataclass, field, replace
from typing import Any

FIT: dict[str, Any] = {"fit": {}}
PREFIX_KL: dict[str, Any] = {"prefix_kl": {}}
HIDDEN: dict[str, Any] = {
    "layers": ",".join(f"{layer}:{layer}" for layer in range(4, 32, 4)),
    "weight": 2.0,
}
"""Beside another objective: after every fourth block."""


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        target: the tokenizer: bpe8k, qwen3, llama3, gemma3 or bytes.
        initial: how the embeddings begin.
        objectives: what is trained; empty: the start is measured, no more.
        text: `own`, which the teacher wrote, `wide` with more kinds of it, or `real`.
        tokens: of the student, trained on.
        rate: of the body.
        embedding_rate: of the embeddings.
        rows_per_step: texts a step.
        max_length: tokens of a text.
        weighting: of several objectives.
        points: of its curve, beside the beginning.
    """

    target: str = "bpe8k"
    initial: Any = field(default_factory=lambda: dict(FIT))
    objectives: dict[str, Any] = field(default_factory=lambda: dict(PREFIX_KL))
    text: str = "own"
    tokens: int = 100_000
    rate: float = 3e-4
    embedding_rate: float = 1.2e-3
    rows_per_step: int = 4
    max_length: int = 256
    weighting: str = "fixed"
    points: int = 4


DEFAULT = Run()


def _alm(**options: Any) -> dict[str, Any]:
    return {"alm": options}


RUNS: dict[str, Run] = {
    "default": DEFAULT,
    "default-300k": replace(DEFAULT, tokens=300_000),
    "default-wide": replace(DEFAULT, text="wide"),
    "default-wide-300k": replace(DEFAULT, text="wide", tokens=300_000),
    # methods, from one start each
    **{
        f"{name}{'' if start == 'fit' else '-' + start}": replace(
            DEFAULT,
            objectives=objectives,
            initial=FIT if start == "fit" else start,
            weighting="gradmag" if len(objectives) > 1 else "fixed",
        )
        for start in ("fit", "fvt")
        for name, objectives in {
            "sft": {"sft": {}},
            "mined": {"mined": {}},
            "uld": {"uld": {}},
            "alm": _alm(),
            "alm+sft": {"alm": {}, "sft": {}},
            "prefix_kl+alm": {"prefix_kl": {}, "alm": {}},
            "prefix_kl+hidden": {"prefix_kl": {}, "hidden": {}},
        }.items()
    },
    "prefix_kl-fvt": replace(DEFAULT, initial="fvt"),
    # the start
    **{f"prefix_kl-{name}": replace(DEFAULT, initial=name) for name in ("mean", "omp")},
    # ALM's options
    **{
        f"alm-temperature-{value}": replace(DEFAULT, objectives=_alm(temperature=float(value)))
        for value in (1, 5, 100)
    },
    "alm-unmerged": replace(DEFAULT, objectives=_alm(merge_threshold=0.0)),
    "alm-biased": replace(DEFAULT, objectives=_alm(debias=False)),
    # the text
    "default-real": replace(DEFAULT, text="real"),
    "sft-real": replace(DEFAULT, text="real", objectives={"sft": {}}),
    "alm-real": replace(DEFAULT, text="real", objectives=_alm()),
    # the recipe itself, on half the tokens
    **{
        f"tried-{name}": replace(DEFAULT, tokens=50_000, points=1, **changes)
        for name, changes in {
            "default": {},
            "embeddings-6e-4": {"embedding_rate": 6e-4},
            "embeddings-2.4e-3": {"embedding_rate": 2.4e-3},
            "body-2e-4": {"rate": 2e-4},
            "body-4e-4": {"rate": 4e-4},
            "rows-2": {"rows_per_step": 2},
            "length-96": {"max_length": 96, "rows_per_step": 8},
            "hidden-2": {"objectives": {"prefix_kl": {}, "hidden": HIDDEN}},
            "fit-1-epoch": {"initial": {"fit": {"epochs": 1}}},
            "spell": {"initial": {"spell": {}}},
        }.items()
    },
    # other tokenizers
    **{
        f"{name}-{target}": replace(
            DEFAULT,
            target=target,
            objectives=objectives,
            tokens=100_000 if target == "bytes" else 50_000,
            max_length=1024 if target == "bytes" else 256,
            points=2,
        )
        for target in ("qwen3", "llama3", "gemma3", "bytes")
        for name, objectives in {"default": PREFIX_KL, "sft": {"sft": {}}}.items()
    },
    # starts alone
    **{
        f"start-{target}-{name}": Run(target=target, initial=initial, objectives={}, tokens=0)
        for target in ("bpe8k", "qwen3", "llama3", "gemma3", "bytes")
        for name, initial in {
            "fvt": "fvt",
            "fit": FIT,
            "mean": "mean",
            "omp": "omp",
            "random": "random",
            "suffix": "suffix",
            "spell": {"spell": {}},
        }.items()
    },
}
