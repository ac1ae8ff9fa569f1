"""Two vocabularies side by side: shared tokens, nearest tokens, spellings. Arrays only."""

import hashlib
from functools import cached_property

import numpy as np

from crosstill.align.nearest import nearest
from crosstill.align.spellings import (
    Ragged,
    fallback_ids,
    lowest_ids,
    pieces,
    spell_before_word,
    spell_tokens,
    unwritten_ids,
)
from crosstill.cache import cached_ids
from crosstill.text.bytes import TokenBytes
from crosstill.text.encode import TextEncoder

_MAP_VERSION = b"1"
"""Part of a cached map's name: another number makes all maps anew."""


class VocabularyPair:
    """A student's and a teacher's vocabulary, and the maps between them.

    Every map is made when it is first asked for and kept; the arrays are read-only.

    Attributes:
        student_bytes: What each id of the student spells.
        teacher_bytes: What each id of the teacher spells.
    """

    def __init__(self, student_encoder: TextEncoder, teacher_encoder: TextEncoder):
        """Takes the encoders as `crosstill.text.encode.text_encoder` gives them."""
        self.student_bytes: TokenBytes = student_encoder.bytes
        self.teacher_bytes: TokenBytes = teacher_encoder.bytes
        self._student = student_encoder
        self._teacher = teacher_encoder

    @property
    def identical(self) -> bool:
        """Whether the two are one vocabulary: equal bytes at equal ids, equal roles."""
        return self._identical

    @cached_property
    def _identical(self) -> bool:
        one, other = self.student_bytes, self.teacher_bytes
        return (
            np.array_equal(one.lengths, other.lengths)
            and np.array_equal(one.special, other.special)
            and self._student.roles == self._teacher.roles
            and pieces(one) == pieces(other)
        )

    def shared(self) -> np.ndarray:
        """Tokens that both have, int64 [S, 2]: rows of student id and teacher id, by student id.

        Tokens are the same where their bytes are, special tokens where their role is. One-to-one;
        of several tokens with the same bytes the one that `spellings.lowest_ids` names.
        """
        return self._shared

    def mined(self) -> np.ndarray:
        """The student token nearest to each teacher token, int64 [Vt]; -1 where there is none.

        The one with the same bytes; else the one with the least edit distance over bytes, the
        lowest id on ties. A special token goes to the student's of its role, and has none
        otherwise. Kept on disk in `crosstill.cache`, by the content of both vocabularies.
        """
        return self._mined

    def teacher_spelled(self) -> Ragged:
        """Every teacher token in student tokens: offsets int64 [Vt+1] and student ids int64.

        See `spellings.spell_tokens`; a special token is spelled by the student's of its role.
        """
        return self._teacher_spelled

    def student_spelled(self) -> Ragged:
        """Every student token in teacher tokens: offsets int64 [Vs+1] and teacher ids int64."""
        return self._student_spelled

    def student_before_word(self) -> Ragged:
        """The student's tokens in teacher tokens where a word follows, if that is another spelling.

        See `spellings.spell_before_word`: offsets int64 [Vs+1] and teacher ids int64.
        """
        return self._student_before_word

    def student_unwritten(self) -> np.ndarray:
        """The student's tokens that its tokenizer never writes: ids int64, ascending.

        Byte-fallback tokens (`<0x41>`) beside which another token spells the same.
        """
        return self._student_unwritten

    @cached_property
    def _shared(self) -> np.ndarray:
        teacher = lowest_ids(self._teacher)
        pairs = [
            (id, teacher[data]) for data, id in lowest_ids(self._student).items() if data in teacher
        ]
        there = special_targets(self._student, self._teacher)
        back = special_targets(self._teacher, self._student)
        pairs += [(id, other) for id, other in there.items() if back.get(other) == id]
        return _frozen(np.array(sorted(pairs), np.int64).reshape(-1, 2))

    @cached_property
    def _mined(self) -> np.ndarray:
        digest = hashlib.sha256(_MAP_VERSION)
        for encoder in (self._student, self._teacher):
            digest.update(_content(encoder))
        digest.update(repr(sorted(special_targets(self._teacher, self._student).items())).encode())
        name = f"mined-{digest.hexdigest()[:32]}"
        return _frozen(cached_ids(name, len(self.teacher_bytes), self._make_mined))

    def _make_mined(self) -> np.ndarray:
        ids, teacher = lowest_ids(self._student), pieces(self.teacher_bytes)
        found = np.array([ids.get(data, -1) for data in teacher], np.int64)
        open_ = [v for v, data in enumerate(teacher) if data and found[v] < 0]
        found[open_] = nearest([teacher[v] for v in open_], ids)
        for v, u in special_targets(self._teacher, self._student).items():
            found[v] = u
        return found

    @cached_property
    def _teacher_spelled(self) -> Ragged:
        specials = special_targets(self._teacher, self._student)
        offsets, ids = spell_tokens(self._teacher, self._student, specials)
        return _frozen(offsets), _frozen(ids)

    @cached_property
    def _student_before_word(self) -> Ragged:
        offsets, ids = spell_before_word(self._student, self._teacher, self._student_spelled)
        return _frozen(offsets), _frozen(ids)

    @cached_property
    def _student_unwritten(self) -> np.ndarray:
        return _frozen(np.array(unwritten_ids(self._student), np.int64))

    @cached_property
    def _student_spelled(self) -> Ragged:
        specials = special_targets(self._student, self._teacher)
        offsets, ids = spell_tokens(self._student, self._teacher, specials)
        return _frozen(offsets), _frozen(ids)


def special_targets(source: TextEncoder, target: TextEncoder) -> dict[int, int]:
    """For special tokens of one tokenizer the other's token that does the same.

    The token of the same name if it shares a role (or has none here), else the chief token of the
    first role that both tokenizers have. Several may have one target. Padding is no role: no model
    predicts it, and many tokenizers name their end of text so.
    """
    theirs, named = _ids_by_role(target), _names(target)
    own = _ids_by_role(source)
    found = {}
    for name, id in _names(source).items():
        roles = [role for role, ids in own.items() if id in ids]
        same = named.get(name)
        if same is None or (roles and not any(same in theirs[role] for role in roles)):
            same = next((theirs[role][0] for role in roles if theirs[role]), same)
        if same is not None:
            found[id] = same
    return found


def _names(encoder: TextEncoder) -> dict[str, int]:
    """The special tokens of a tokenizer by name, in the order of their ids."""
    ids = np.flatnonzero(encoder.bytes.special).tolist()
    return dict(zip(encoder.tokenizer.convert_ids_to_tokens(ids), ids, strict=True))


def _ids_by_role(encoder: TextEncoder) -> dict[str, tuple[int, ...]]:
    """The special tokens of each role, the chief one first."""
    roles = encoder.roles
    return {
        "eos": roles.eos_ids,
        "eot": roles.eot_ids,
        "start_header": roles.start_header_ids,
        "end_header": roles.end_header_ids,
        "bos": () if roles.bos is None else (roles.bos,),
        "unk": () if roles.unk is None else (roles.unk,),
    }


def _content(encoder: TextEncoder) -> bytes:
    """A hash of what every id spells, and of the ids that stand behind others."""
    table = encoder.bytes
    digest = hashlib.sha256(table.lengths.astype("<i8").tobytes())
    digest.update(table.spell(np.arange(len(table))))
    digest.update(np.packbits(table.special).tobytes())
    digest.update(np.array(fallback_ids(encoder), "<i8").tobytes())
    return digest.digest()


def _frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array
