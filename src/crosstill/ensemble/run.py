"""Everything `crosstill ensemble` does, from names and texts."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from crosstill.ensemble.mixing import checked_mix, checked_weights
from crosstill.ensemble.model import Ensemble
from crosstill.ensemble.vocabulary import checked_vocabulary
from crosstill.evaluation.bits_per_byte import bits_per_byte
from crosstill.evaluation.measure import Source
from crosstill.evaluation.prompts import Prompt


@dataclass(frozen=True)
class Written:
    """A prompt and what was written behind it."""

    prompt: Prompt
    text: str


@dataclass(frozen=True)
class Together:
    """What several models wrote and how well they predict.

    Attributes:
        written: one entry a prompt.
        bits_per_byte: of all together on the texts; None where there are none.
        members: of each model alone, in its own tokens.
        weights: share of each model's vote.
    """

    written: tuple[Written, ...]
    bits_per_byte: float | None
    members: tuple[float, ...]
    weights: tuple[float, ...]

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def load_ensemble(
    names: Sequence[str],
    *,
    weights: Sequence[float] | None = None,
    mix: str = "probabilities",
    vocabulary: str = "identical",
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> Ensemble:
    """Load models and let them vote; see `Ensemble` and `crosstill.hub.load_model`.

    Raises:
        ConfigError: as for `Ensemble`, or a model does not exist.
    """
    # Said before gigabytes are read.
    checked_weights(weights, len(names))
    checked_mix(mix)
    checked_vocabulary(vocabulary)
    loaded = [Source(name, dtype, None, trust_remote_code).load() for name in names]
    return Ensemble(
        [model for model, _ in loaded],
        [tokenizer for _, tokenizer in loaded],
        weights=weights,
        mix=mix,
        vocabulary=vocabulary,
    )


def together(
    ensemble: Ensemble, prompts: Sequence[Prompt], texts: Sequence[str], **options: Any
) -> Together:
    """Write behind each prompt, and score the texts with all models and with each alone.

    Args:
        ensemble: the models.
        prompts: texts or messages to continue.
        texts: texts to score.
        options: of `crosstill.ensemble.writing.write`.
    """
    written = ensemble.write(prompts, **options) if prompts else []
    members = [
        bits_per_byte(member.model, encoder, texts)
        for member, encoder in zip(ensemble.members, ensemble.encoders, strict=True)
        if texts
    ]
    return Together(
        tuple(Written(*one) for one in zip(prompts, written, strict=True)),
        ensemble.score(texts).bits_per_byte if texts else None,
        tuple(members),
        ensemble.weights,
    )
