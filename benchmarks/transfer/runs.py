"""The runs of the benchmark: one line a question."""

from dataclasses import dataclass, field, replace
from typing import Any

FIT: dict[str, Any] = {"fit": {}}
SPELL: dict[str, Any] = {"spell": {}}
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
        text: `own`, which the teacher wrote, `wide` and `broad` with more kinds of it, or `real`.
        tokens: of the student, trained on.
        rate: of the body.
        embedding_rate: of the embeddings.
        rows_per_step: texts a step.
        max_length: tokens of a text.
        weighting: of several objectives.
        reword: share of the words that the teacher replaces by such as the student must spell.
        points: of its curve, beside the beginning.
        beta2: of AdamW.
        enriched: whether bytes are given the subwords that end there.
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
    reword: float = 0.0
    points: int = 4
    beta2: float = 0.95
    enriched: bool = False


PLAIN = Run()
"""What the methods are compared on, and what changes are tried on."""

DEFAULT = replace(PLAIN, initial=SPELL, rate=2e-4, embedding_rate=6e-4, reword=0.2)
"""The default recipe, of what was tried."""


def _alm(**options: Any) -> dict[str, Any]:
    return {"alm": options}


RUNS: dict[str, Run] = {
    "default": DEFAULT,
    # 277,000 are 300,000 with templates
    "default-wide-300k": replace(DEFAULT, text="wide", tokens=277_000),
    "default-broad-300k": replace(DEFAULT, text="broad", tokens=277_000),
    "default-broad-300k-faster": replace(
        DEFAULT, rate=3e-4, embedding_rate=9e-4, text="broad", tokens=277_000
    ),
    "default-fit": replace(DEFAULT, initial=FIT),
    "default-fit-broad-300k": replace(DEFAULT, initial=FIT, text="broad", tokens=277_000),
    # methods, from one start each
    **{
        f"{name}{'' if start == 'fit' else '-' + start}": replace(
            PLAIN,
            objectives=objectives,
            initial=FIT if start == "fit" else start,
            weighting="gradmag" if len(objectives) > 1 else "fixed",
        )
        for start in ("fit", "fvt")
        for name, objectives in {
            "prefix_kl": PREFIX_KL,
            "sft": {"sft": {}},
            "mined": {"mined": {}},
            "uld": {"uld": {}},
            "alm": _alm(),
            "alm+sft": {"alm": {}, "sft": {}},
            "prefix_kl+alm": {"prefix_kl": {}, "alm": {}},
            "prefix_kl+hidden": {"prefix_kl": {}, "hidden": {}},
        }.items()
    },
    **{
        f"{name}-slower": replace(
            PLAIN,
            objectives={name: {}},
            rate=DEFAULT.rate,
            embedding_rate=DEFAULT.embedding_rate,
        )
        for name in ("sft", "alm")
    },
    "prefix_kl-reword": replace(PLAIN, reword=DEFAULT.reword),
    # the start
    **{f"prefix_kl-{name}": replace(PLAIN, initial=name, points=1) for name in ("mean", "omp")},
    # ALM's options
    **{
        f"alm-{name}": replace(PLAIN, objectives=_alm(**options), points=1)
        for name, options in {
            "temperature-1": {"temperature": 1.0},  # 100 is `alm`
            "temperature-5": {"temperature": 5.0},
            "unmerged": {"merge_threshold": 0.0},
            "biased": {"debias": False},
        }.items()
    },
    # the text
    "prefix_kl-300k": replace(PLAIN, tokens=300_000),
    "prefix_kl-wide-300k": replace(PLAIN, text="wide", tokens=300_000),
    "default-real": replace(DEFAULT, text="real", points=1),
    "sft-real": replace(PLAIN, text="real", objectives={"sft": {}}),
    "alm-real": replace(PLAIN, text="real", objectives=_alm(), points=1),
    # the recipe itself, on half the tokens
    **{
        f"tried-{name}": replace(PLAIN, tokens=50_000, points=1, **changes)
        for name, changes in {
            "prefix_kl": {},
            "embeddings-6e-4": {"embedding_rate": 6e-4},
            "embeddings-3e-4": {"embedding_rate": 3e-4},
            "embeddings-2.4e-3": {"embedding_rate": 2.4e-3},
            "body-2e-4": {"rate": 2e-4},
            "both-2e-4-6e-4": {"rate": 2e-4, "embedding_rate": 6e-4},
            "both-1.2e-4-4e-4": {"rate": 1.2e-4, "embedding_rate": 4e-4},
            "body-4e-4": {"rate": 4e-4},
            "rows-2": {"rows_per_step": 2},
            "length-96": {"max_length": 96, "rows_per_step": 8},
            "hidden-2": {"objectives": {"prefix_kl": {}, "hidden": HIDDEN}},
            "fit-1-epoch": {"initial": {"fit": {"epochs": 1}}},
            "spell": {"initial": SPELL},
            **{f"reword-{share}": {"reword": share} for share in (0.1, 0.2, 0.4)},
        }.items()
    },
    **{
        f"tried-default{name}": replace(DEFAULT, initial=FIT, tokens=50_000, points=1, **changes)
        for name, changes in {
            "": {},
            "-wide": {"text": "wide"},
            "-broad": {"text": "broad"},
            "-beta2-0.99": {"beta2": 0.99},
        }.items()
    },
    # other tokenizers
    **{
        f"{name}-{target}": replace(
            DEFAULT,
            target=target,
            initial=FIT if target == "bytes" else SPELL,
            objectives=objectives,
            reword=DEFAULT.reword if name != "sft" and target != "bytes" else 0.0,
            tokens=100_000 if target == "bytes" else 50_000,
            max_length=1024 if target == "bytes" else 256,
            points=2,
        )
        for target in ("qwen3", "llama3", "gemma3", "bytes")
        for name, objectives in {
            "default": PREFIX_KL,
            "sft": {"sft": {}},
            "default+sft": {**PREFIX_KL, "sft": {"weight": 0.5}},
        }.items()
    },
    "default-bytes-enriched": replace(
        DEFAULT,
        target="bytes",
        initial=FIT,
        reword=0.0,
        max_length=1024,
        points=2,
        enriched=True,
    ),
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
            "spell": SPELL,
        }.items()
    },
}
