"""What several models can say together: the tokens of the first one, and how the others have them.

The first model is the *pivot*: its token ids are the ensemble's. Three ways to bring a member in:

- `identical`: the same bytes at the same ids. Nothing is mapped.
- `shared`: tokens are the same where their bytes are; what some member lacks cannot be written.
- `mined`: every token of a member counts for the pivot's nearest by edit distance over bytes; a
  token of the pivot that none counts for gets what the member gives to its own nearest.

Special tokens are matched by role. In `shared` and `mined` all tokens that end a turn or a text are
one event, `end`, because one model ends with one token where another has two; other special tokens
cannot be written, only read.

Axes: V ids of the pivot, Vm ids of a member.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from crosstill.align.spellings import lowest_ids, pieces
from crosstill.align.vocab import VocabularyPair, special_targets
from crosstill.errors import ConfigError
from crosstill.text.encode import TextEncoder

Vocabulary = Literal["identical", "shared", "mined"]
VOCABULARIES: tuple[Vocabulary, ...] = get_args(Vocabulary)

NONE = -1
_SHOWN = 3  # differing tokens that an error names


@dataclass(frozen=True, eq=False)
class MemberTokens:
    """One member's tokens, in terms of the pivot's.

    Attributes:
        reading: int64 [V], the member's id for each id of the pivot; -1 where it has none.
        ends: the member's tokens that end a turn or a text.
        mined: int64 [Vm], the pivot's id that each row of the member counts for, -1 for none; None
            where the member reads the pivot's tokens.
        nearest: int64 [V], the member's token nearest to each of the pivot's; goes with `mined`.
    """

    reading: np.ndarray
    ends: tuple[int, ...]
    mined: np.ndarray | None = None
    nearest: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class CommonVocabulary:
    """What can be written.

    Attributes:
        kind: how members' tokens are matched.
        writable: bool [V].
        ends: the pivot's tokens that end a turn or a text; generation stops there.
        pooled_end: the one id that stands for all ends; None where ends are tokens like others.
        members: one entry a model, the pivot first.
    """

    kind: Vocabulary
    writable: np.ndarray
    ends: tuple[int, ...]
    pooled_end: int | None
    members: tuple[MemberTokens, ...]

    @property
    def size(self) -> int:
        """V: ids of the pivot, those included that cannot be written."""
        return len(self.writable)


def common_vocabulary(
    encoders: Sequence[TextEncoder],
    sizes: Sequence[int],
    kind: Vocabulary,
    names: Sequence[str],
) -> CommonVocabulary:
    """Match the members' tokens with those of the first.

    Args:
        encoders: one a model, the pivot first.
        sizes: ids that each model has a row for.
        kind: how.
        names: of the models, for messages.

    Raises:
        ConfigError: `identical`, but a vocabulary differs; or nothing is shared.
    """
    if kind == "identical":
        for encoder, name in zip(encoders[1:], names[1:], strict=True):
            _check_identical(encoders[0], encoder, names[0], name)
        return _identical(encoders, sizes)
    pivot, size = encoders[0], sizes[0]
    writable = _ordinary(pivot, size)
    members = []
    for encoder, rows, name in zip(encoders, sizes, names, strict=True):
        member = _member(pivot, encoder, size, rows, kind)
        if kind == "shared":
            writable &= member.reading >= 0
        if not writable.any():
            raise ConfigError(
                f"{names[0]} and {name} share no token: bring one to the other's tokens with "
                f"`crosstill transfer`, or use the vocabulary 'mined'"
            )
        members.append(member)
    ends = _ends(pivot, size)
    if ends:
        writable[ends[0]] = True
    return CommonVocabulary(kind, writable, ends, ends[0] if ends else None, tuple(members))


def checked_vocabulary(kind: str, *, also: Sequence[str] = ()) -> Vocabulary:
    """The vocabulary of this name.

    Args:
        kind: its name.
        also: names that the caller knows beside these, for the error.

    Raises:
        ConfigError: there is none.
    """
    for known in VOCABULARIES:
        if kind == known:
            return known
    raise ConfigError(
        f"expected a vocabulary out of {', '.join([*VOCABULARIES, *also])}, got {kind!r}"
    )


def same_tokens(one: TextEncoder, other: TextEncoder) -> bool:
    """Whether two tokenizers have the same tokens at the same ids, special ones by name."""
    return not len(_differing(one, other))


def _identical(encoders: Sequence[TextEncoder], sizes: Sequence[int]) -> CommonVocabulary:
    size = min(sizes)
    everything = np.arange(size)
    members = tuple(MemberTokens(everything, _ends(encoder, size)) for encoder in encoders)
    return CommonVocabulary("identical", np.ones(size, bool), members[0].ends, None, members)


def _member(
    pivot: TextEncoder, encoder: TextEncoder, size: int, rows: int, kind: Vocabulary
) -> MemberTokens:
    ends = _ends(encoder, rows)
    if same_tokens(pivot, encoder):
        reading = np.arange(size)
        return MemberTokens(np.where(reading < rows, reading, NONE), ends)
    ids = lowest_ids(encoder)
    reading = np.array([ids.get(data, NONE) for data in pieces(pivot.bytes)[:size]], np.int64)
    for id, other in special_targets(pivot, encoder).items():
        if id < size:
            reading[id] = other
    for id in _ends(pivot, size):
        reading[id] = ends[0] if ends else NONE
    reading[reading >= rows] = NONE
    if kind == "shared":
        return MemberTokens(reading, ends)
    mined = VocabularyPair(pivot, encoder).mined()[:rows]
    return MemberTokens(reading, ends, mined, VocabularyPair(encoder, pivot).mined()[:size])


def _ordinary(encoder: TextEncoder, size: int) -> np.ndarray:
    """One id for each string of bytes, bool [size]: what `VocabularyPair.shared` pairs."""
    writable = np.zeros(len(encoder.bytes), bool)
    writable[list(lowest_ids(encoder).values())] = True
    return writable[:size]


def _ends(encoder: TextEncoder, size: int) -> tuple[int, ...]:
    """Tokens that end a turn or a text, the chief end of a turn first."""
    found = dict.fromkeys((*encoder.roles.eot_ids, *encoder.roles.eos_ids))
    return tuple(id for id in found if id < size)


def _check_identical(pivot: TextEncoder, other: TextEncoder, name: str, other_name: str) -> None:
    differing = _differing(pivot, other)
    if not len(differing):
        return
    shared = len(VocabularyPair(pivot, other).shared())
    examples = ", ".join(
        f"{id} is {_shown(pivot, id)} and {_shown(other, id)}" for id in differing[:_SHOWN].tolist()
    )
    raise ConfigError(
        f"{other_name} has other tokens than {name}: {len(differing):,} ids differ ({examples}"
        f"{', ...' if len(differing) > _SHOWN else ''}), {shared:,} tokens spell the same bytes. "
        f"Bring it to the tokens of the first with `crosstill transfer {other_name} --to {name}`; "
        f"or use the vocabulary 'shared' (what all of them have) or 'mined' (nearest tokens)"
    )


def _differing(one: TextEncoder, other: TextEncoder) -> np.ndarray:
    """Ids at which two tokenizers have other tokens, int64."""
    length = max(len(one.bytes), len(other.bytes))
    rows = [_tokens(encoder) + [None] * (length - len(encoder.bytes)) for encoder in (one, other)]
    return np.flatnonzero([a != b for a, b in zip(*rows, strict=True)])


def _tokens(encoder: TextEncoder) -> list[bytes | str | None]:
    """The bytes of every id; the name of a special token."""
    found: list[bytes | str | None] = [*pieces(encoder.bytes)]
    special = np.flatnonzero(encoder.bytes.special).tolist()
    for id, name in zip(special, encoder.tokenizer.convert_ids_to_tokens(special), strict=True):
        found[id] = name
    return found


def _shown(encoder: TextEncoder, id: int) -> str:
    if id >= len(encoder.bytes):
        return "nothing"
    return repr(str(encoder.tokenizer.convert_ids_to_tokens(id)))
