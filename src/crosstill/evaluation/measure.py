"""Everything `crosstill evaluate` measures of one model, from names and files."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crosstill.errors import ConfigError
from crosstill.evaluation.bits_per_byte import bits_per_byte
from crosstill.evaluation.divergence import Divergence, sample_teacher, teacher_divergence
from crosstill.evaluation.prompts import Prompt
from crosstill.hub import load_model, load_tokenizer


@dataclass(frozen=True)
class Source:
    """Where a model comes from and how it is loaded; see `crosstill.hub.load_model`."""

    name: str
    dtype: str = "auto"
    revision: str | None = None
    trust_remote_code: bool = False

    def load(self) -> tuple[Any, Any]:
        """The model and its tokenizer, on the GPU where there is one."""
        import torch

        trust = {"revision": self.revision, "trust_remote_code": self.trust_remote_code}
        tokenizer = load_tokenizer(self.name, **trust)
        model: Any = load_model(self.name, dtype=self.dtype, **trust)
        return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


@dataclass(frozen=True)
class Measures:
    """What was measured; None where it was not asked for.

    Attributes:
        bits_per_byte: of the model on real text.
        teacher_bits_per_byte: of the teacher on the same text.
        divergence: from the teacher, on texts of the teacher.
    """

    bits_per_byte: float | None = None
    teacher_bits_per_byte: float | None = None
    divergence: Divergence | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def measure(
    model: Source,
    teacher: Source | None = None,
    *,
    texts: Sequence[str] = (),
    prompts: Mapping[str, Sequence[Prompt]] | None = None,
    samples: str | Path = "teacher_samples.jsonl",
    max_new_tokens: int = 128,
    seed: int = 1,
) -> Measures:
    """Measure a model: bits per byte on texts, divergence from a teacher on the teacher's texts.

    The teacher is loaded, used and let go before the model is loaded, so that both need not fit
    into memory at once.

    Args:
        model: what is measured.
        teacher: what it should be like.
        texts: real texts that neither was trained on.
        prompts: by kind of text; from them the teacher writes. Needs a teacher.
        samples: file that keeps what the teacher wrote; read again where it exists.
        max_new_tokens: longest text of the teacher, in its tokens.
        seed: of the teacher's draws.

    Raises:
        ConfigError: nothing to measure, prompts without a teacher or a teacher without anything.
    """
    if not texts and not prompts:
        raise ConfigError("nothing to measure: give texts, or a teacher and prompts")
    if prompts and teacher is None:
        raise ConfigError("prompts are for a teacher to write from: give the teacher too")
    written, teacher_bits = None, None
    if teacher is not None:
        loaded, tokenizer = teacher.load()
        if prompts:
            written = sample_teacher(
                loaded,
                tokenizer,
                prompts,
                max_new_tokens=max_new_tokens,
                seed=seed,
                path=samples,
            )
        teacher_bits = bits_per_byte(loaded, tokenizer, texts) if texts else None
        del loaded
    student, tokenizer = model.load()
    return Measures(
        bits_per_byte=bits_per_byte(student, tokenizer, texts) if texts else None,
        teacher_bits_per_byte=teacher_bits,
        divergence=None
        if written is None
        else teacher_divergence(student, tokenizer, None, None, written),
    )
