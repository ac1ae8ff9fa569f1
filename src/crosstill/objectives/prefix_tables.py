"""The tables of prefix KL, sorted from how two vocabularies spell each other."""

import numpy as np
import torch

from crosstill.align.prefixes import (
    PrefixTable,
    Ragged,
    first_tokens,
    prefix_table,
    start_classes,
)
from crosstill.functional.class_mass import Classes
from crosstill.functional.prefix_blocks import PrefixTables
from crosstill.functional.prefixes import PrefixTree
from crosstill.objectives.pair import VocabularyPair


def pair_tables(vocabulary: VocabularyPair) -> PrefixTables:
    """Make the tables of a pair of vocabularies; a second or two for 128,000 tokens."""
    lengths = vocabulary.teacher_bytes.lengths, vocabulary.student_bytes.lengths
    if vocabulary.identical:  # every token as itself, also those that no text is cut into
        every = np.arange(len(lengths[0]) + 1)
        return prefix_tables((every, every[:-1]), (every, every[:-1]), *lengths)
    return prefix_tables(vocabulary.teacher_spelled(), vocabulary.student_spelled(), *lengths)


def prefix_tables(
    teacher_spelled: Ragged,
    student_spelled: Ragged,
    teacher_bytes: np.ndarray,
    student_bytes: np.ndarray,
) -> PrefixTables:
    """Sort two vocabularies by their spellings in each other's tokens.

    Args:
        teacher_spelled: every teacher token in student tokens: offsets [Vt + 1] and ids; an empty
            row where it cannot be spelled.
        student_spelled: every student token in teacher tokens.
        teacher_bytes: [Vt], bytes of each teacher token.
        student_bytes: [Vs], bytes of each student token.

    Example:
        >>> teacher = np.array([0, 1, 3]), np.array([0, 0, 1])  # "a" and "ab", by "a" and "b"
        >>> student = np.array([0, 1, 1]), np.array([0])  # "a"; the teacher has no "b"
        >>> prefix_tables(teacher, student, [1, 2], [1, 1]).starts.token
        tensor([-1,  0,  1])
    """
    kind = start_classes(student_spelled, teacher_spelled)
    begins = first_tokens(teacher_spelled)
    pooled = (kind >= 0) & (kind != np.arange(len(kind)))
    longer = prefix_table(student_spelled, keep=pooled)
    names = np.unique(begins[begins >= 0])  # as the root's children are sorted
    arrays = {
        "teacher_class": _numbered(begins, names),
        "above": _ancestors(longer, len(kind)),
        "student_bytes": student_bytes,
        "teacher_bytes": teacher_bytes,
    }
    return PrefixTables(
        starts=_tree(prefix_table(teacher_spelled)),
        longer=_tree(longer),
        classes=Classes.make(torch.from_numpy(_numbered(kind, names)), len(names) + 1),
        **{name: torch.from_numpy(np.array(array, np.int64)) for name, array in arrays.items()},
    )


def _numbered(names: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The place of each name among the known ones, sorted; behind them for -1."""
    return np.where(names >= 0, np.searchsorted(known, names), len(known))


def _tree(table: PrefixTable) -> PrefixTree:
    return PrefixTree.of(
        {name: torch.from_numpy(np.array(array)) for name, array in vars(table).items()}
    )


def _ancestors(table: PrefixTable, vocab_size: int) -> np.ndarray:
    """int64 [V, D]: the nodes on the way to each token of the table; -1 past its end."""
    depth = np.zeros(len(table.low), np.int64)
    for node in range(1, len(depth)):
        depth[node] = depth[table.parent[node]] + 1
    found = np.full((vocab_size, max(int(depth.max(initial=0)), 1)), -1, np.int64)
    for node in range(1, len(depth)):
        found[table.order[table.low[node] : table.high[node]], depth[node] - 1] = node
    return found
