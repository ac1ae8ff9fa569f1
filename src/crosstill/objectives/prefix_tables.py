"""The tables of prefix KL, sorted from how two vocabularies spell each other."""

import numpy as np
import torch

from crosstill.align.prefixes import (
    NOWHERE,
    PrefixTable,
    Ragged,
    first_tokens,
    prefix_table,
    replaced,
    start_classes,
)
from crosstill.functional.class_mass import Classes
from crosstill.functional.prefix_blocks import PrefixTables
from crosstill.functional.prefixes import PrefixTree
from crosstill.objectives.pair import VocabularyPair


def pair_tables(vocabulary: VocabularyPair) -> PrefixTables:
    """Make the tables of a pair of vocabularies; some seconds for 150,000 tokens."""
    lengths = vocabulary.teacher_bytes.lengths, vocabulary.student_bytes.lengths
    if vocabulary.identical:  # every token as itself, also those that no text is cut into
        every = np.arange(len(lengths[0]) + 1)
        return prefix_tables((every, every[:-1]), (every, every[:-1]), *lengths)
    spelled = vocabulary.teacher_spelled(), vocabulary.student_spelled()
    return prefix_tables(
        *spelled,
        *lengths,
        before_word=vocabulary.student_before_word(),
        unwritten=vocabulary.student_unwritten(),
    )


def prefix_tables(
    teacher_spelled: Ragged,
    student_spelled: Ragged,
    teacher_bytes: np.ndarray,
    student_bytes: np.ndarray,
    before_word: Ragged | None = None,
    unwritten: np.ndarray | None = None,
) -> PrefixTables:
    """Sort two vocabularies by their spellings in each other's tokens.

    Args:
        teacher_spelled: every teacher token in student tokens: offsets [Vt + 1] and ids; an empty
            row where it cannot be spelled.
        student_spelled: every student token in teacher tokens.
        teacher_bytes: [Vt], bytes of each teacher token.
        student_bytes: [Vs], bytes of each student token.
        before_word: student tokens in teacher tokens where a word follows, if otherwise.
        unwritten: student tokens that no text is cut into; they get no part of any class.

    Example:
        >>> teacher = np.array([0, 1, 3]), np.array([0, 0, 1])  # "a" and "ab", by "a" and "b"
        >>> student = np.array([0, 1, 1]), np.array([0])  # "a"; the teacher has no "b"
        >>> prefix_tables(teacher, student, [1, 2], [1, 1]).starts.token
        tensor([-1,  0,  1])
    """
    kind = start_classes(student_spelled, teacher_spelled, before_word)
    if before_word is not None:
        student_spelled = replaced(student_spelled, before_word)
    kind[[] if unwritten is None else unwritten] = NOWHERE
    begins = first_tokens(teacher_spelled)
    pooled = (kind >= 0) & (kind != np.arange(len(kind)))
    starts, longer = prefix_table(teacher_spelled), prefix_table(student_spelled, keep=pooled)
    branch = _branches(longer, starts, teacher_spelled)
    names = np.unique(begins[begins >= 0])  # as the root's children are sorted
    joined = names[kind[names] != names]
    arrays = {
        "teacher_class": _numbered(np.where(begins >= 0, kind[begins], NOWHERE), names),
        "joined": np.stack([_numbered(joined, names), _numbered(kind[joined], names)]),
        "above": _ancestors(longer, len(kind)),
        "spelled": teacher_spelled[0],
        "spelling": teacher_spelled[1],
        "place": _places(starts.order, len(teacher_spelled[0]) - 1),
        "branch": branch,
        "within": _within(longer, starts, branch),
        "student_bytes": student_bytes,
        "teacher_bytes": teacher_bytes,
    }
    return PrefixTables(
        starts=_tree(starts),
        longer=_tree(longer),
        classes=Classes.make(torch.from_numpy(_numbered(kind, names)), len(names) + 1),
        **{name: torch.from_numpy(np.array(array, np.int64)) for name, array in arrays.items()},
    )


def _numbered(names: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The place of each name among the known ones, sorted; behind them for -1."""
    return np.where(names >= 0, np.searchsorted(known, names), len(known))


def _places(order: np.ndarray, size: int) -> np.ndarray:
    """The place of each id in an order; -1 where it has none."""
    found = np.full(size, NOWHERE, np.int64)
    found[order] = np.arange(len(order))
    return found


def _tree(table: PrefixTable) -> PrefixTree:
    return PrefixTree.of(
        {name: torch.from_numpy(np.array(array)) for name, array in vars(table).items()}
    )


def _branches(longer: PrefixTable, starts: PrefixTable, spelled: Ragged) -> np.ndarray:
    """int64 [M], for each node of `longer` the node of `starts` that its last token leads to."""
    offsets, ids = spelled
    child = {
        (parent, token): node
        for node, (parent, token) in enumerate(
            zip(starts.parent.tolist(), starts.token.tolist(), strict=True)
        )
    }
    found = np.full(len(longer.low), -1, np.int64)
    for place, token in enumerate(longer.token.tolist()):
        if token >= 0 and offsets[token + 1] > offsets[token]:
            node = 0
            for own in ids[offsets[token] : offsets[token + 1]].tolist():
                node = child[node, own]
            found[place] = node
    return found


def _within(longer: PrefixTable, starts: PrefixTable, branch: np.ndarray) -> np.ndarray:
    """int64 [M], for each node of `longer` the sibling whose branch is nearest above its own."""
    found = np.full(len(branch), -1, np.int64)
    for low, high in zip(longer.child[:-1].tolist(), longer.child[1:].tolist(), strict=True):
        siblings = {int(branch[place]): place for place in range(low, high)}
        for place in range(low, high):
            node = int(starts.parent[branch[place]]) if branch[place] > 0 else 0
            while node > 0 and node not in siblings:
                node = int(starts.parent[node])
            if node > 0:
                found[place] = siblings[node]
    return found


def _ancestors(table: PrefixTable, vocab_size: int) -> np.ndarray:
    """int64 [V, D]: the nodes on the way to each token of the table; -1 past its end."""
    depth = np.zeros(len(table.low), np.int64)
    for node in range(1, len(depth)):
        depth[node] = depth[table.parent[node]] + 1
    found = np.full((vocab_size, max(int(depth.max(initial=0)), 1)), -1, np.int64)
    for node in range(1, len(depth)):
        found[table.order[table.low[node] : table.high[node]], depth[node] - 1] = node
    return found
