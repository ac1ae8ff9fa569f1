"""Everything `crosstill ensemble` does, from names and texts."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from crosstill.ensemble.bytes import ByteEnsemble
from crosstill.ensemble.mixing import checked_mix, checked_weights
from crosstill.ensemble.model import Ensemble
from crosstill.ensemble.vocabulary import checked_vocabulary
from crosstill.errors import ConfigError
from crosstill.evaluation.bits_per_byte import bits_per_byte
from crosstill.evaluation.measure import Source
from crosstill.evaluation.prompts import Prompt

BYTES = "bytes"
"""The name of the vocabulary of a `ByteEnsemble`."""


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
        members: of each model alone: in its own tokens, or summed over tokenizations where the
            vote is on bytes.
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
) -> Ensemble | ByteEnsemble:
    """Load models and let them vote; see `Ensemble` and `crosstill.hub.load_model`.

    Args:
        names: folders, `.gguf` files or hub names.
        weights: share of each model's vote.
        mix: what is averaged.
        vocabulary: one that `Ensemble` knows, or `bytes` for a `ByteEnsemble`.
        dtype: of the weights.
        trust_remote_code: whether a repository's own code may run.

    Raises:
        ConfigError: as for `Ensemble`, or a model does not exist.
    """
    # Said before gigabytes are read.
    checked_weights(weights, len(names))
    checked_mix(mix)
    if vocabulary != BYTES:
        checked_vocabulary(vocabulary, also=(BYTES,))
    loaded = [Source(name, dtype, None, trust_remote_code).load() for name in names]
    models, tokenizers = [model for model, _ in loaded], [tokenizer for _, tokenizer in loaded]
    if vocabulary == BYTES:
        return ByteEnsemble(models, tokenizers, weights=weights, mix=mix)
    return Ensemble(models, tokenizers, weights=weights, mix=mix, vocabulary=vocabulary)


def together(
    ensemble: Ensemble | ByteEnsemble,
    prompts: Sequence[Prompt],
    texts: Sequence[str],
    *,
    on_text: Callable[[str], None] | None = None,
    **options: Any,
) -> Together:
    """Write behind each prompt, and score the texts with all models and with each alone.

    Args:
        ensemble: the models.
        prompts: texts or messages to continue.
        texts: texts to score.
        on_text: called with each piece of text as it comes, one prompt after another.
        options: of `crosstill.ensemble.writing.write`. Where bytes are voted on these are
            `temperature`, `seed` and `max_new_tokens`, which then counts bytes.

    Raises:
        ConfigError: an option that a vote on bytes does not know.
    """
    if isinstance(ensemble, ByteEnsemble):
        written, score, members = _by_bytes(ensemble, prompts, texts, on_text, options)
    else:
        written, score, members = _by_tokens(ensemble, prompts, texts, on_text, options)
    return Together(
        tuple(Written(*one) for one in zip(prompts, written, strict=True)),
        score,
        tuple(members),
        ensemble.weights,
    )


_Parts = tuple[list[str], float | None, list[float]]
_OnText = Callable[[str], None] | None


def _by_tokens(
    ensemble: Ensemble,
    prompts: Sequence[Prompt],
    texts: Sequence[str],
    on_text: _OnText,
    options: dict[str, Any],
) -> _Parts:
    if on_text is not None:
        options = {"batch_size": 1, "on_text": lambda _row, text: on_text(text), **options}
    written = ensemble.write(prompts, **options) if prompts else []
    if not texts:
        return written, None, []
    members = [
        bits_per_byte(member.model, encoder, texts)
        for member, encoder in zip(ensemble.members, ensemble.encoders, strict=True)
    ]
    return written, ensemble.score(texts).bits_per_byte, members


def _by_bytes(
    ensemble: ByteEnsemble,
    prompts: Sequence[Prompt],
    texts: Sequence[str],
    on_text: _OnText,
    options: dict[str, Any],
) -> _Parts:
    unset = {"top_p": 1.0, "top_k": 0, "stop": ()}
    asked = [name for name, value in unset.items() if options.pop(name, value) != value]
    if asked:
        raise ConfigError(
            f"a vote on bytes knows no {', '.join(asked)}: leave it out, or vote on tokens"
        )
    if "max_new_tokens" in options:
        options["max_new_bytes"] = options.pop("max_new_tokens")
    written = [ensemble.write(prompt, on_text=on_text, **options) for prompt in prompts]
    if not texts:
        return written, None, []
    score, members = ensemble.score_each(texts)
    return written, score.bits_per_byte, [one.bits_per_byte for one in members]
