"""What an objective may know of the two models before training: sizes, matrices, vocabularies.

Arrays and tensors only: an objective never sees a tokenizer or a model.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float
from torch import Tensor

from crosstill.functional.head import HeadMatrix


class Spelled(Protocol):
    """The bytes that each id of a vocabulary spells."""

    @property
    def lengths(self) -> np.ndarray:
        """int32 [V], bytes; 0 for special tokens."""
        ...

    @property
    def special(self) -> np.ndarray:
        """Bool [V]."""
        ...

    def token(self, id: int) -> bytes:
        """The bytes of one id."""
        ...


class VocabularyPair(Protocol):
    """How two vocabularies meet; made by `crosstill.align.vocab.VocabularyPair`."""

    @property
    def student_bytes(self) -> Spelled:
        """What the student's ids spell."""
        ...

    @property
    def teacher_bytes(self) -> Spelled:
        """What the teacher's ids spell."""
        ...

    @property
    def identical(self) -> bool:
        """Whether the vocabularies are one: the same bytes and roles at the same ids."""
        ...

    def shared(self) -> np.ndarray:
        """int64 [S, 2]: (student id, teacher id) of tokens with the same bytes, one-to-one."""
        ...

    def mined(self) -> np.ndarray:
        """int64 [Vt]: the student's nearest token for every token of the teacher."""
        ...

    def teacher_spelled(self) -> tuple[np.ndarray, np.ndarray]:
        """Every teacher token in student tokens: offsets int64 [Vt + 1] and ids int64."""
        ...

    def student_spelled(self) -> tuple[np.ndarray, np.ndarray]:
        """Every student token in teacher tokens: offsets int64 [Vs + 1] and ids int64."""
        ...

    def student_before_word(self) -> tuple[np.ndarray, np.ndarray]:
        """Student tokens in teacher tokens where a word follows, if otherwise: offsets and ids."""
        ...

    def student_unwritten(self) -> np.ndarray:
        """The student's tokens that its tokenizer never writes: ids int64, ascending."""
        ...


@dataclass(frozen=True)
class ModelFacts:
    """One model's sizes and the matrices at its two ends, as they stand now.

    Attributes:
        vocab_size: ids that the tokenizer and the model share; rows beyond are surplus.
        hidden_size: D.
        num_layers: transformer blocks; hidden states 0 to `num_layers` exist.
        input_embedding: [V, D], the live weight, V with surplus rows.
        head: the output matrix [V, D] and what is done to the logits after it; None where it
            cannot be told apart from the body.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    input_embedding: Float[Tensor, "V D"]
    head: HeadMatrix | None


@dataclass(frozen=True)
class Pair:
    """A student and a teacher, as objectives see them when they prepare.

    Attributes:
        vocabulary: how their vocabularies meet.
        student: the student's sizes and matrices.
        teacher: the teacher's.
    """

    vocabulary: VocabularyPair
    student: ModelFacts
    teacher: ModelFacts
