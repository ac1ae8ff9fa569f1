"""Batches, teacher signals and a toy pair for tests of objectives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from crosstill.functional import HeadMatrix
from crosstill.objectives import Mix, ModelFacts, Pair, StudentStates, create
from functional.cases import Case, random_case


@dataclass(frozen=True)
class FakeSignal:
    """What a teacher gave: anything an objective may ask for."""

    logprob: Tensor
    boundary: Tensor
    hidden: Tensor
    weight: Tensor
    layers: dict[int, Tensor] = field(default_factory=dict)

    @property
    def vocab_size(self):
        return self.weight.shape[0]

    def rows(self, row, position):
        return self.hidden[row, position] @ self.weight.t()

    def tensors(self):
        return [self.logprob, self.boundary, self.hidden, *self.layers.values()]

    def changed(self, change):
        """The same with `change` applied to everything that has rows and positions."""
        return FakeSignal(
            change(self.logprob),
            change(self.boundary),
            change(self.hidden),
            self.weight,
            {index: change(state) for index, state in self.layers.items()},
        )


@dataclass(frozen=True)
class ToySpelling:
    """Token bytes from a list; the first id is special."""

    tokens: list[bytes]

    @property
    def lengths(self):
        return np.array([len(token) for token in self.tokens], np.int32)

    @property
    def special(self):
        return np.array([not token for token in self.tokens])

    def token(self, id):
        return self.tokens[id]


@dataclass(frozen=True)
class ToyVocabularies:
    """Two vocabularies over a few letters; special tokens (id 0 on both sides) are shared."""

    student: list[bytes]
    teacher: list[bytes]
    unwritten: tuple[int, ...] = ()
    before_word: Mapping[int, Sequence[int]] = field(default_factory=dict)

    @property
    def student_bytes(self):
        return ToySpelling(self.student)

    @property
    def teacher_bytes(self):
        return ToySpelling(self.teacher)

    @property
    def identical(self):
        return self.student == self.teacher

    def shared(self):
        pairs = [
            (s, self.teacher.index(token))
            for s, token in enumerate(self.student)
            if token in self.teacher
        ]
        return np.array(pairs, np.int64).reshape(-1, 2)

    def mined(self):
        def distance(a, b):
            return sum(x != y for x, y in zip(a, b, strict=False)) + abs(len(a) - len(b))

        return np.array(
            [
                min(range(len(self.student)), key=lambda s: (distance(self.student[s], token), s))
                for token in self.teacher
            ],
            np.int64,
        )

    def teacher_spelled(self):
        return _ragged([_spell(token, self.student) for token in self.teacher])

    def student_spelled(self):
        return _ragged([_spell(token, self.teacher) for token in self.student])

    def student_before_word(self):
        return _ragged([self.before_word.get(id, ()) for id in range(len(self.student))])

    def student_unwritten(self):
        return np.array(self.unwritten, np.int64)


def _spell(token, vocabulary):
    """Greedy longest match; special tokens by special tokens."""
    if not token:
        return [0]
    ids = []
    while token:
        best = max(
            (v for v in vocabulary if v and token.startswith(v)), key=len, default=None
        )  # every letter is a token
        ids.append(vocabulary.index(best))
        token = token[len(best) :]
    return ids


def _ragged(rows):
    offsets = np.cumsum([0, *(len(row) for row in rows)])
    return offsets.astype(np.int64), np.array([i for row in rows for i in row], np.int64)


LETTERS = [b"a", b"b", b"c", b" "]
STUDENT_TOKENS = [b"", *LETTERS, b"ab", b"abc", b" a", b" b", b" ab", b"bc", b"ca", b"cc", b"aa",
                  b" c", b"ba", b" ca", b"cb", b"bb"]  # fmt: skip
TEACHER_TOKENS = [b"", b" ", b"c", b"b", b"a", b" abc", b"bca", b" a", b"ab", b" ba", b"cab",
                  b"ac", b"aab", b" bc", b"abca", b"cc", b" cab"]  # fmt: skip


def toy_pair(case: Case, *, same=False):
    """A pair that fits a case; `same` gives both models the student's vocabulary."""
    teacher_tokens = STUDENT_TOKENS if same else TEACHER_TOKENS
    generator = torch.Generator().manual_seed(3)
    weights = []
    for size, like in ((len(STUDENT_TOKENS), case.weight), (len(teacher_tokens), case.weight)):
        made = torch.randn(size, like.shape[1], generator=generator, dtype=torch.float64)
        weights.append(made.to(like.dtype))
    student, teacher = (
        ModelFacts(len(weight), weight.shape[1], 2, weight, HeadMatrix(weight))
        for weight in weights
    )
    return Pair(ToyVocabularies(STUDENT_TOKENS, teacher_tokens), student, teacher)


def batch_of(case: Case, *, same=False):
    """(batch, signal) as the collator and a teacher would give them.

    With `same` the teacher reads the very tokens of the student: one vocabulary.
    """
    generator = torch.Generator().manual_seed(5)
    teacher_chunk = case.student_chunk if same else case.teacher_chunk
    shape, vocab = teacher_chunk.shape, len(STUDENT_TOKENS if same else TEACHER_TOKENS)
    teacher_ids = torch.randint(1, vocab, shape, generator=generator)
    if same:
        teacher_ids = case.student_ids
    size, dtype = case.hidden.shape[-1], case.hidden.dtype
    states = [
        torch.randn(*shape, size, generator=generator, dtype=torch.float64).to(dtype)
        for _ in range(3)
    ]
    weight = torch.randn(vocab, size, generator=generator, dtype=torch.float64).to(dtype)
    numbers = case.teacher_logprob, case.teacher_boundary
    if same:
        numbers = tuple(-states[k].abs().mean(-1) for k in range(2))
    batch = {
        "student_input_ids": case.student_ids,
        "student_attention_mask": torch.ones_like(case.student_ids),
        "student_labels": case.labels,
        "student_chunk": case.student_chunk,
        "teacher_input_ids": teacher_ids,
        "teacher_attention_mask": torch.ones_like(teacher_chunk),
        "teacher_labels": case.labels if same else teacher_ids.masked_fill(teacher_chunk < 0, -100),
        "teacher_chunk": teacher_chunk,
    }
    return batch, FakeSignal(*numbers, states[0], weight, {1: states[1], 2: states[2]})


def whole(seed=0, dtype=torch.float32, same=False, **shape):
    """(case, batch, signal), with logits in reach of the case."""
    case = random_case(seed, dtype=dtype, **shape)
    return case, *batch_of(case, same=same)


@dataclass(frozen=True)
class FakeStudent:
    """What the student made of a batch: logits, and hidden states by index (None: the last)."""

    logits: Tensor
    states: dict[int | None, Tensor]

    def changed(self, change):
        """The same with `change` applied to everything."""
        return FakeStudent(
            change(self.logits), {index: change(state) for index, state in self.states.items()}
        )

    def tensors(self):
        return [self.logits, *self.states.values()]

    def kept(self):
        layers = {index: state for index, state in self.states.items() if index is not None}
        return StudentStates(self.states[None], layers)


def student_of(case: Case):
    """The student's logits, and hidden states beside them that have nothing to do with them."""
    generator = torch.Generator().manual_seed(9)
    states = {
        index: torch.randn(case.hidden.shape, generator=generator, dtype=torch.float64)
        for index in (None, 1, 2)
    }
    return FakeStudent(
        case.logits, {index: state.to(case.hidden.dtype) for index, state in states.items()}
    )


def rows_of(batch, signal, rows):
    """The batch and the signal of some rows."""
    return {key: value[rows] for key, value in batch.items()}, signal.changed(lambda x: x[rows])


def wider(extra):
    """A function that adds columns of minus infinity after the positions of a row."""

    def widen(values):
        widths = (0, 0) * (values.dim() - 2) + (0, extra)
        return torch.nn.functional.pad(values, widths, value=float("-inf"))

    return widen


def padded(batch, signal, extra):
    """The same batch with `extra` more columns of padding on both sides."""
    fill = {"student_labels": -100, "teacher_labels": -100, "student_chunk": -1,
            "teacher_chunk": -1}  # fmt: skip
    part = {
        key: torch.nn.functional.pad(value, (0, extra), value=fill.get(key, 0))
        for key, value in batch.items()
    }
    return part, signal.changed(wider(extra))


def alone(name, case, **options):
    """A mix of one objective with weight 1, prepared for the toy pair."""
    objective = create(name, **options)
    mix = Mix({name: (objective, 1.0)}, boundary_mask=case.mask)
    mix.prepare(toy_pair(case, same=objective.one_vocabulary))
    return mix
