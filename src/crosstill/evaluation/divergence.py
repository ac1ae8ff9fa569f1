"""The teacher divergence: how far a student is from its teacher, on the teacher's own texts.

Bits per byte on real text does not tell whether a student became like its teacher: a student
trained on text of one kind soon beats the teacher there and forgets the rest. So the teacher
writes texts, from held-out prompts of several kinds, and both models are asked for the
probability of what it wrote. On texts `y` of the teacher `P` given prompts `x`, with `b(y)` bytes,

    divergence = sum_y [log P(y | x) - log Q(y | x)] / (log 2 * sum_y b(y))   bits per byte,

an estimate of KL(teacher || student) per byte. It needs no shared tokenizer, it is zero for equal
models, and it splits by kind of text.

Each model scores its own canonical tokenization of the text (`score`), so both numbers are upper
bounds of the bits of the bytes, and the difference can be slightly negative where the student's
bound is the tighter one. The end of a response is not scored. A response that begins or ends in
bytes that are no text is cut at the last whole character before them.
"""

from collections.abc import Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from crosstill.errors import ConfigError
from crosstill.evaluation.bits_per_byte import bits, score
from crosstill.evaluation.prompts import Prompt, read
from crosstill.evaluation.samples import (
    Sample,
    Samples,
    fingerprint_texts,
    read_samples,
    write_samples,
)
from crosstill.evaluation.sampling import sample
from crosstill.text.encode import TextEncoder, text_encoder
from crosstill.training.fingerprint import model_fingerprint, tokenizer_fingerprint

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from crosstill.evaluation.bits_per_byte import Tokenizer


@dataclass(frozen=True)
class Gap:
    """The divergence on some texts.

    Attributes:
        divergence: bits per byte of the student minus those of the teacher.
        standard_error: of the divergence, from the spread between prompts; nan for one prompt.
        student_bits_per_byte: of the student on the responses.
        teacher_bits_per_byte: of the teacher on the responses.
        bytes: bytes that were scored.
        samples: responses that were scored; empty ones are not.
    """

    divergence: float
    standard_error: float
    student_bits_per_byte: float
    teacher_bits_per_byte: float
    bytes: int
    samples: int


@dataclass(frozen=True)
class Divergence:
    """The teacher divergence, over all texts and for each kind of them."""

    overall: Gap
    kinds: dict[str, Gap]


def sample_teacher(
    teacher: "PreTrainedModel",
    teacher_tokenizer: "Tokenizer",
    prompts: Mapping[str, Rows[Prompt]],
    *,
    max_new_tokens: int,
    samples_per_prompt: int = 1,
    seed: int,
    path: "str | Path",
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Samples:
    """Let the teacher write, score its texts, and keep both in a file that is written once.

    The texts are drawn at temperature 1 without top-k or top-p. A special token ends a text and is
    no part of it. If the file exists and comes from the same teacher, prompts and settings, it is
    read and nothing runs.

    Args:
        teacher: the model that writes.
        teacher_tokenizer: its own fast tokenizer.
        prompts: by kind ("chat", "code", "prose" ...); plain texts or lists of chat messages.
            Plain texts should end where a word ends, without a space.
        max_new_tokens: longest response, in teacher tokens.
        samples_per_prompt: responses for each prompt.
        seed: of the draws.
        path: a JSON Lines file.
        chat_template_kwargs: arguments of the teacher's chat template.

    Raises:
        ConfigError: no prompt, or the file is of another teacher, other prompts or settings.
        DataError: the file is damaged.
    """
    encoder = text_encoder(teacher_tokenizer)
    flat = [(kind, prompt) for kind, group in prompts.items() for prompt in group]
    if not flat:
        raise ConfigError("no prompt for the teacher: give at least one kind with one prompt")
    origin = {
        "teacher": model_fingerprint(teacher),
        "tokenizer": tokenizer_fingerprint(encoder.tokenizer),
        "prompts": fingerprint_texts(flat),
        "max_new_tokens": max_new_tokens,
        "samples_per_prompt": samples_per_prompt,
        "seed": seed,
        "chat_template_kwargs": dict(chat_template_kwargs or {}),
    }
    found = read_samples(path, expected=origin)
    if found is not None:
        return found
    asked = [(k, i, p) for i, (k, p) in enumerate(flat) for _ in range(samples_per_prompt)]
    responses = _respond(
        teacher, encoder, [p for _, _, p in asked], max_new_tokens, seed, chat_template_kwargs
    )
    pairs = [(p, response) for (_, _, p), response in zip(asked, responses, strict=True)]
    nats = score(teacher, encoder, pairs, chat_template_kwargs=chat_template_kwargs).nats
    items = [
        Sample(kind, index, prompt, response, float(value))
        for (kind, index, prompt), response, value in zip(asked, responses, nats, strict=True)
    ]
    return write_samples(path, Samples(origin, tuple(items)))


def teacher_divergence(
    student: "PreTrainedModel",
    student_tokenizer: "Tokenizer",
    teacher: "PreTrainedModel | None",
    teacher_tokenizer: "Tokenizer | None",
    samples: Samples,
    *,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Divergence:
    """Compute how many bits per byte the student needs beyond its teacher, on the teacher's texts.

    The teacher's own scores come from the samples, where they are kept since it wrote them.

    Args:
        student: the model that is compared.
        student_tokenizer: its own fast tokenizer.
        teacher: where given, must be the model that wrote the samples.
        teacher_tokenizer: of the teacher, or None.
        samples: from `sample_teacher`.
        chat_template_kwargs: arguments of the student's chat template.

    Returns:
        Bits per byte with standard errors, overall and by kind.

    Raises:
        ConfigError: the samples are of another teacher, or there is no response to score.
    """
    _check_author(teacher, teacher_tokenizer, samples)
    items = [item for item in samples.items if item.response]
    if not items:
        raise ConfigError("the teacher wrote nothing but empty responses; give other prompts")
    pairs = [(s.prompt, s.response) for s in items]
    scores = score(student, student_tokenizer, pairs, chat_template_kwargs=chat_template_kwargs)
    teacher_nats = np.array([s.teacher_nats for s in items])
    prompt = np.array([s.prompt_index for s in items])
    kind = np.array([s.kind for s in items])

    def over(rows: np.ndarray) -> Gap:
        return _gap(scores.nats[rows], teacher_nats[rows], scores.bytes[rows], prompt[rows])

    names = dict.fromkeys(s.kind for s in items)
    return Divergence(over(np.full(len(items), True)), {name: over(kind == name) for name in names})


def _gap(
    student_nats: np.ndarray, teacher_nats: np.ndarray, num_bytes: np.ndarray, prompt: np.ndarray
) -> Gap:
    """Divide sums by sums; the error is that of a ratio estimator over independent prompts."""
    excess, total = student_nats - teacher_nats, num_bytes.sum()
    ratio = excess.sum() / total
    # responses to one prompt are alike: the prompt is the unit that was drawn independently
    _, group = np.unique(prompt, return_inverse=True)
    residual = np.bincount(group, excess - ratio * num_bytes)
    n = len(residual)
    error = np.sqrt(n / (n - 1) * (residual**2).sum()) / total if n > 1 else float("nan")
    return Gap(
        divergence=bits(ratio, 1),
        standard_error=bits(error, 1),
        student_bits_per_byte=bits(student_nats.sum(), total),
        teacher_bits_per_byte=bits(teacher_nats.sum(), total),
        bytes=int(total),
        samples=len(num_bytes),
    )


def _respond(
    teacher: "PreTrainedModel",
    encoder: TextEncoder,
    prompts: list[Prompt],
    max_new_tokens: int,
    seed: int,
    chat_template_kwargs: Mapping[str, Any] | None,
) -> list[str]:
    """Draw one response to each prompt, as text."""
    openings = [read(prompt, "", encoder, chat_template_kwargs).ids for prompt in prompts]
    if not all(openings):
        raise ConfigError(
            "a prompt has no token for this teacher (its tokenizer has no beginning-of-text and "
            "no end-of-text token): give prompts that are not empty"
        )
    stop = encoder.bytes.special
    drawn = sample(teacher, openings, stop=stop, max_new_tokens=max_new_tokens, seed=seed)
    return [whole_text(encoder.bytes.spell(ids)) for ids in drawn]


def whole_text(raw: bytes) -> str:
    """Decode bytes up to the last whole character before anything that is not UTF-8.

    Example:
        >>> whole_text("né".encode()[:-1])
        'n'
    """
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        return raw[: error.start].decode()


def _check_author(
    teacher: "PreTrainedModel | None", tokenizer: "Tokenizer | None", samples: Samples
) -> None:
    """Raise unless the teacher, where one is given, is the author of the samples."""
    found = {}
    if teacher is not None:
        found["teacher"] = model_fingerprint(teacher)
    if tokenizer is not None:
        found["tokenizer"] = tokenizer_fingerprint(text_encoder(tokenizer).tokenizer)
    for name, value in found.items():
        if samples.origin.get(name) != value:
            raise ConfigError(
                f"the samples are of another {name} (theirs {samples.origin.get(name)}, given "
                f"{value}); draw them again with sample_teacher"
            )
