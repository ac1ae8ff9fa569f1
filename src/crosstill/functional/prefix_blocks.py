"""What prefix KL knows of two vocabularies, and which rows of a batch it reads together.

Axes: S student rows of a block, R teacher rows, V ids, C classes.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from crosstill.functional.class_mass import Classes
from crosstill.functional.prefixes import PrefixTree


@dataclass(frozen=True)
class PrefixTables:
    """What prefix KL knows of two vocabularies; made once from a `VocabularyPair`.

    Attributes:
        starts: the teacher's tokens by their spelling in student tokens.
        longer: the student's tokens that span several teacher tokens, by their spelling in teacher
            tokens.
        classes: of the student's tokens where both models begin a token: one for each token that
            may come first there, in the order of their nodes below the root of `starts`, and as the
            last those that no teacher token tells anything about. A token that spans several
            teacher tokens is with the token that begins the first of them.
        teacher_class: for each teacher token, the class of the first student token of its spelling;
            the last class where it has none.
        above: [Vs, D], for tokens of `longer` the node of `longer` after each of its teacher
            tokens, -1 past the end and for all other tokens.
        student_bytes: bytes of each student token.
        teacher_bytes: bytes of each teacher token.
    """

    starts: PrefixTree
    longer: PrefixTree
    classes: Classes
    teacher_class: Int64[Tensor, " Vt"]
    above: Int64[Tensor, "Vs D"]
    student_bytes: Int64[Tensor, " Vs"]
    teacher_bytes: Int64[Tensor, " Vt"]

    def to(self, device: torch.device) -> "PrefixTables":
        """Move everything to a device."""
        if self.teacher_class.device == device:
            return self
        return PrefixTables(**{name: value.to(device) for name, value in vars(self).items()})


@dataclass(frozen=True)
class PrefixBlock:
    """Some chunks: which rows they read, and where in the trees their tokens stand; all int64.

    Student rows are numbered: first the n rows that begin a chunk, then those inside one. Teacher
    rows are numbered from 0 to R.

    Attributes:
        student: (sequence, position) of each student row.
        teacher: (sequence, position) of each teacher row.
        start_teacher: [n], the teacher row of each chunk.
        inner_teacher: [I], the teacher row of the chunk that each inner row is in.
        inner_node: [I], the node of `starts` that the text has reached there.
        exit_start: chunks that begin where a spelling may also go on,
        exit_teacher: the teacher row of the chunk before, and
        exit_node: the node of `starts` that that chunk has reached.
        split_start: chunks whose class holds tokens that span several teacher tokens,
        split_first: the first teacher token of the chunk,
        split_teacher: the teacher row after the teacher tokens read so far,
        split_node: the node of `longer` they have reached, and
        split_depth: how many they are.
    """

    student: tuple[Int64[Tensor, " S"], Int64[Tensor, " S"]]
    teacher: tuple[Int64[Tensor, " R"], Int64[Tensor, " R"]]
    start_teacher: Int64[Tensor, " n"]
    inner_teacher: Int64[Tensor, " I"]
    inner_node: Int64[Tensor, " I"]
    exit_start: Int64[Tensor, " X"]
    exit_teacher: Int64[Tensor, " X"]
    exit_node: Int64[Tensor, " X"]
    split_start: Int64[Tensor, " P"]
    split_first: Int64[Tensor, " P"]
    split_teacher: Int64[Tensor, " P"]
    split_node: Int64[Tensor, " P"]
    split_depth: Int64[Tensor, " P"]
