"""Models of any tokenizers, untouched, that vote on every byte.

Each model's distribution of the next byte is the sum over all its tokenizations, see
`crosstill.ensemble.byte_states`; so models of different families can be mixed as they are, at the
cost of about one forward pass a byte and model where tokens take one for several bytes.
"""

import codecs
from collections.abc import Callable, Sequence

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from crosstill.ensemble.byte_states import END, ByteStates, byte_tree
from crosstill.ensemble.mixing import Mix, checked_mix, checked_weights, mixed_logprobs
from crosstill.ensemble.reading import Reader
from crosstill.errors import ConfigError
from crosstill.evaluation.bits_per_byte import Scores
from crosstill.evaluation.prompts import Prompt, read
from crosstill.pair import known_ids
from crosstill.text.encode import TextEncoder, text_encoder

_QUIET_SECONDS = 3  # before signs of progress

THRESHOLD = 1e-3
"""Share of the mass below which a tokenization is dropped, unless told otherwise."""


class ByteEnsemble:
    """Causal language models of any tokenizers that vote on every byte.

    Args:
        models: causal language models of `transformers`, untouched.
        tokenizers: the fast tokenizer of each.
        weights: share of each model's vote, brought to sum one; equal ones by default.
        mix: `probabilities` or `log_probabilities` of the next byte.
        threshold: share of a model's mass below which a tokenization is dropped; 0 keeps all,
            which is exact and, for texts of more than a few dozen bytes, very slow.

    Attributes:
        calls: forward passes of all models in the last call.
        dropped: of the model where it is largest, the mean share dropped a byte in the last call.

    Raises:
        ConfigError: as for `crosstill.ensemble.Ensemble`.

    Example:
        >>> ensemble = ByteEnsemble([model, other], [tokenizer, other_tokenizer])  # doctest: +SKIP
        >>> ensemble.score(["A text."]).bits_per_byte  # doctest: +SKIP
    """

    def __init__(
        self,
        models: Sequence[PreTrainedModel],
        tokenizers: Sequence[PreTrainedTokenizerFast | TextEncoder],
        *,
        weights: Sequence[float] | None = None,
        mix: str = "probabilities",
        threshold: float = THRESHOLD,
    ) -> None:
        """Sorts the vocabularies."""
        if not models or len(models) != len(tokenizers):
            raise ConfigError(
                f"expected at least one model and one tokenizer for each, got {len(models)} "
                f"models and {len(tokenizers)} tokenizers"
            )
        if not 0 <= threshold < 1:
            raise ConfigError(f"threshold: expected at least 0 and below 1, got {threshold}")
        self.weights = checked_weights(weights, len(models))
        self.mix: Mix = checked_mix(mix)
        self.calls, self.dropped = 0, 0.0
        self._threshold = threshold
        self._voices = [
            _Voice(model, text_encoder(tokenizer))
            for model, tokenizer in zip(models, tokenizers, strict=True)
        ]

    def score(self, texts: Sequence[str]) -> Scores:
        """Compute nats and bytes of texts, each conditioned on its models' beginning of a text.

        Unlike `crosstill.bits_per_byte`, which scores one tokenization, this is the probability of
        the bytes themselves; so it is never larger for one model, but for what is dropped.

        Raises:
            DataError: a model cannot write a text.
        """
        return self._scores(texts, [place for place, weight in enumerate(self.weights) if weight])[
            0
        ]

    def score_each(self, texts: Sequence[str]) -> tuple[Scores, tuple[Scores, ...]]:
        """Compute the scores of all together, and in the same pass those of each model alone.

        Models with weight 0 are run as well.

        Raises:
            DataError: a model cannot write a text.
        """
        together, *each = self._scores(texts, range(len(self.weights)))
        return together, tuple(each)

    def _scores(self, texts: Sequence[str], places: Sequence[int]) -> list[Scores]:
        """Of all together, and of the models at `places`, which hold all that have a weight."""
        voices = [self._voices[place] for place in places]
        votes = [row for row, place in enumerate(places) if self.weights[place]]
        sizes = np.array([len(text.encode()) for text in texts], dtype=np.int64)
        nats, steps = np.zeros((1 + len(places), len(texts))), []
        with tqdm(total=int(sizes.sum()), unit="byte", delay=_QUIET_SECONDS, desc="scoring") as bar:
            for column, text in enumerate(texts):
                states = [voice.begin("", text, self._threshold) for voice in voices]
                for byte in text.encode():
                    nats[:, column] -= self._read(states, votes, byte)
                    bar.update()
                steps.append(states)
        self._count(steps, int(sizes.sum()))
        return [Scores(row, sizes) for row in nats]

    def write(
        self,
        prompt: Prompt,
        *,
        max_new_bytes: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
        on_text: Callable[[str], None] | None = None,
    ) -> str:
        """Continue a prompt byte by byte.

        Plain text is healed: its last token is taken back, and written again as bytes.

        Args:
            prompt: text, or chat messages that go through each model's own chat template.
            max_new_bytes: longest continuation.
            temperature: of the mixed next byte; 0 takes the most likely one.
            seed: of the draws.
            on_text: called with each piece of text as it comes, whole characters at a time.

        Raises:
            ConfigError: messages, but a model has no chat template; or nothing to begin with.
        """
        voices = [one for one, weight in zip(self._voices, self.weights, strict=True) if weight]
        states = [voice.begin(prompt, "", self._threshold) for voice in voices]
        said, draws = bytearray(), np.random.default_rng(seed)
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        while len(said) < max_new_bytes:
            rows = [state.logprobs() for state in states]
            symbol = _chosen(self._mixed(rows), temperature, draws)
            if symbol == END:
                break
            said.append(symbol)
            text = decoder.decode(bytes([symbol]))
            if on_text is not None and text:
                on_text(text)
            for state in states:
                state.advance(symbol)
        self._count([states], len(said))
        return said.decode(errors="replace")

    def _read(self, states: Sequence[ByteStates], votes: Sequence[int], byte: int) -> np.ndarray:
        """Append a byte for all models; its log-probability mixed among `votes`, and by each."""
        rows = [state.logprobs() for state in states]
        for row, state in zip(rows, states, strict=True):
            row[byte] = state.advance(byte)
        mixed = self._mixed([rows[vote] for vote in votes])
        return np.array([mixed[byte], *(row[byte] for row in rows)])

    def _mixed(self, logprobs: Sequence[np.ndarray]) -> np.ndarray:
        rows = [torch.from_numpy(row) for row in logprobs]
        return mixed_logprobs(rows, [w for w in self.weights if w], self.mix).numpy()

    def _count(self, steps: Sequence[Sequence[ByteStates]], num_bytes: int) -> None:
        self.calls = sum(state.calls for states in steps for state in states)
        sums = [sum(state.dropped for state in states) for states in zip(*steps, strict=True)]
        self.dropped = max(sums, default=0.0) / max(num_bytes, 1)


class _Voice:
    """One model and its vocabulary, sorted."""

    def __init__(self, model: PreTrainedModel, encoder: TextEncoder) -> None:
        self._model = model
        self._encoder = encoder
        self._rows = known_ids("model", model, encoder)
        self._tree = byte_tree(encoder, self._rows)
        self._hidden = torch.from_numpy(encoder.bytes.special[: self._rows].copy())
        self._hidden[self._tree.ends] = False

    def begin(self, prompt: Prompt, text: str, threshold: float) -> ByteStates:
        """The state behind a prompt, before a text."""
        opening = read(prompt, "", self._encoder).ids
        if not opening:
            raise ConfigError(
                "expected a prompt with at least one token for each model (a tokenizer has no "
                "beginning-of-text and no end-of-text token): give a prompt that is not empty"
            )
        again = self._encoder.normalization.prefix_of(text) if text else b""
        if isinstance(prompt, str) and prompt and len(opening) > 1:
            again = self._encoder.bytes.token(opening.pop())
        reader = Reader(self._model, self._rows)
        state = ByteStates(
            lambda ids: self._probabilities(reader, ids), self._tree, opening, threshold
        )
        for byte in again:
            state.advance(byte)
        return state

    def _probabilities(self, reader: Reader, ids: tuple[int, ...]) -> np.ndarray:
        """Of ordinary tokens and ends; other special tokens are never written."""
        logits = reader.logits(ids).double()
        hidden = self._hidden = self._hidden.to(logits.device)
        return logits.masked_fill(hidden, -torch.inf).softmax(-1).cpu().numpy()


def _chosen(logprobs: np.ndarray, temperature: float, draws: np.random.Generator) -> int:
    if not temperature:
        return int(logprobs.argmax())
    scaled = (logprobs - logprobs.max()) / temperature
    probabilities = np.exp(scaled)
    return int(draws.choice(END + 1, p=probabilities / probabilities.sum()))
