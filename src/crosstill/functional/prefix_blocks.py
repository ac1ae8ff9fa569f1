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
        spelled: where each teacher token's spelling in student tokens begins in `spelling`; Vt + 1.
        spelling: those spellings, one after the other.
        place: for each teacher token its place in the order of `starts`; -1 where it has none.
        branch: for each node of `longer` the node of `starts` that its last token's spelling leads
            to; -1 where there is none.
        within: for each node of `longer` the one beside it, of the same parent, whose branch is the
            nearest above its own; -1 where there is none.
        above: [Vs, D], for tokens of `longer` the node of `longer` after each of its teacher
            tokens, -1 past the end and for all other tokens.
        joined: [2, Q], classes that have no member, and the class that each has been joined with.
        student_bytes: bytes of each student token.
        teacher_bytes: bytes of each teacher token.
    """

    starts: PrefixTree
    longer: PrefixTree
    classes: Classes
    teacher_class: Int64[Tensor, " Vt"]
    spelled: Int64[Tensor, " Vt1"]
    spelling: Int64[Tensor, " E"]
    place: Int64[Tensor, " Vt"]
    branch: Int64[Tensor, " M"]
    within: Int64[Tensor, " M"]
    above: Int64[Tensor, "Vs D"]
    joined: Int64[Tensor, "2 Q"]
    student_bytes: Int64[Tensor, " Vs"]
    teacher_bytes: Int64[Tensor, " Vt"]

    def to(self, device: torch.device) -> "PrefixTables":
        """Move everything to a device."""
        if self.teacher_class.device == device:
            return self
        moved = {name: value.to(device) for name, value in vars(self).items()}
        return PrefixTables(**moved)


@dataclass(frozen=True)
class PrefixBlock:
    """Some chunks: which rows they read, and where in the trees their tokens stand; all int64.

    Student rows are numbered: first the n rows that begin a chunk, then those inside one, then
    those that the text teaches. Teacher rows are numbered from 0 to R.

    Attributes:
        student: (sequence, position) of each student row.
        teacher: (sequence, position) of each teacher row.
        start_teacher: [n], the teacher row of each chunk.
        start_first: [n], the teacher token that comes first in it.
        start_token: [n], the student token that comes first in it.
        inner_teacher: [I], the teacher row of the chunk that each inner row is in.
        inner_node: [I], the node of `starts` that the text has reached there.
        inner_first: [I], the first teacher token of the chunk.
        inner_token: [I], the student token that comes there.
        inner_own: [I], the one that would by the spelling of that teacher token; -1 where the text
            has left it before.
        exit_start: chunks that begin where a spelling may also go on,
        exit_teacher: the teacher row of the chunk before,
        exit_node: the node of `starts` that that chunk has reached, and
        exit_first: its teacher token where the spelling leads elsewhere; -1: it leads to the node.
        split_start: chunks whose class holds tokens that span several teacher tokens,
        split_teacher: the teacher row after the teacher tokens read so far,
        split_node: the node of `longer` they have reached, and
        split_depth: how many they are, and
        split_next: the teacher token that comes behind them; -1 at the end of the text.
        text_token: the student's token at rows that the text teaches.
    """

    student: tuple[Int64[Tensor, " S"], Int64[Tensor, " S"]]
    teacher: tuple[Int64[Tensor, " R"], Int64[Tensor, " R"]]
    start_teacher: Int64[Tensor, " n"]
    start_first: Int64[Tensor, " n"]
    start_token: Int64[Tensor, " n"]
    inner_teacher: Int64[Tensor, " I"]
    inner_node: Int64[Tensor, " I"]
    inner_first: Int64[Tensor, " I"]
    inner_token: Int64[Tensor, " I"]
    inner_own: Int64[Tensor, " I"]
    exit_start: Int64[Tensor, " X"]
    exit_teacher: Int64[Tensor, " X"]
    exit_node: Int64[Tensor, " X"]
    exit_first: Int64[Tensor, " X"]
    split_start: Int64[Tensor, " P"]
    split_teacher: Int64[Tensor, " P"]
    split_node: Int64[Tensor, " P"]
    split_depth: Int64[Tensor, " P"]
    split_next: Int64[Tensor, " P"]
    text_token: Int64[Tensor, " W"]
