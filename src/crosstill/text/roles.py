"""Special tokens by role, for any fast Hugging Face tokenizer.

Two models rarely agree on the names or the number of their special tokens. They agree on what the
tokens are for: a text begins and ends, a turn has a header and an end. Roles come from the
tokenizer's named tokens, from what its chat template really writes around an assistant's turn,
and, where both are silent, from a small table of the literals in use.

The end of the text and the end of a turn stay apart: instruction-tuned models often name their end
of turn `eos_token`. A model with one token for both has both roles on it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from crosstill.errors import ConfigError
from crosstill.text.rows import Conversation, Message, RowFault
from crosstill.text.spec import is_control
from crosstill.text.templates import THINKING, locate

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerBase

BOS_LITERALS = (
    "<|begin_of_text|>",
    "<|startoftext|>",
    "<bos>",
    "<s>",
    "<｜begin▁of▁sentence｜>",
    "<BOS_TOKEN>",
)
EOS_LITERALS = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "<eos>",
    "</s>",
    "<｜end▁of▁sentence｜>",
    "<EOS_TOKEN>",
)
EOT_LITERALS = (
    "<|eot_id|>",
    "<|im_end|>",
    "<end_of_turn>",
    "<turn|>",
    "<|return|>",
    "<|end|>",
    "<|eot|>",
    "<|eom_id|>",
    "<|end_of_turn|>",
    "<|END_OF_TURN_TOKEN|>",
)
START_HEADER_LITERALS = (
    "<|start_header_id|>",
    "<|im_start|>",
    "<start_of_turn>",
    "<|turn>",
    "<|start|>",
    "<|start_of_role|>",
    "<|header_start|>",
    "<|START_OF_TURN_TOKEN|>",
    "<｜Assistant｜>",
    "<｜User｜>",
    "<|assistant|>",
    "<|user|>",
    "<|system|>",
)
END_HEADER_LITERALS = (
    "<|end_header_id|>",
    "<|message|>",
    "<|end_of_role|>",
    "<|header_end|>",
)


@dataclass(frozen=True)
class SpecialRoles:
    """Which special token of one tokenizer does what; `None` or empty where it has none.

    `eos` is the end of a text, `eot` the end of a turn; `eos_ids` and `eot_ids` hold every token
    that ends one, the chief one first. `pad` may be the same token as `eos`: padding is told by
    the attention mask, never by the id.
    """

    bos: int | None
    eos: int | None
    eot: int | None
    pad: int | None
    unk: int | None
    eos_ids: tuple[int, ...]
    eot_ids: tuple[int, ...]
    start_header_ids: tuple[int, ...]
    end_header_ids: tuple[int, ...]
    special_ids: frozenset[int] = field(repr=False)

    def role_of(self, id: int) -> str | None:
        """The role of a token: `eos`, `eot`, `start_header`, `end_header`, `bos`, `pad`, `unk`.

        A token with several roles gets the first of them in this order, so that `pad` never hides
        an end of text. `other` for any other special token, `None` for an ordinary one.
        """
        named = (
            ("eos", self.eos_ids),
            ("eot", self.eot_ids),
            ("start_header", self.start_header_ids),
            ("end_header", self.end_header_ids),
            ("bos", (self.bos,)),
            ("pad", (self.pad,)),
            ("unk", (self.unk,)),
        )
        for role, ids in named:
            if id in ids:
                return role
        return "other" if id in self.special_ids else None


@dataclass(frozen=True)
class _Turn:
    """Special tokens a chat template writes round an assistant's turn."""

    end: tuple[int, ...] = ()
    start_header: tuple[int, ...] = ()
    end_header: tuple[int, ...] = ()


def special_roles(tokenizer: "PreTrainedTokenizerBase") -> SpecialRoles:
    """The roles of a tokenizer's special tokens.

    A chat template that refuses two short conversations is passed over; the table then decides.
    """
    decoder = cast("dict[int, AddedToken]", tokenizer.added_tokens_decoder)  # mistyped upstream
    added = {id: str(token) for id, token in decoder.items()}
    special = {id for id, token in decoder.items() if is_control(token)}
    special |= set(tokenizer.all_special_ids)
    ids = {literal: id for id, literal in added.items() if id in special}
    known_ends = _present(ids, EOT_LITERALS)
    thinking = _present(ids, THINKING)
    turn = _turn_of_template(tokenizer, frozenset(special.difference(thinking)), known_ends)
    eot_ids = _unique((*turn.end, *known_ends))
    table_eos = _present(ids, EOS_LITERALS)
    eos = _end_of_text(_named(tokenizer, "eos"), eot_ids, table_eos)
    if eos is not None and not eot_ids:
        eot_ids = (eos,)
    start = _unique((*turn.start_header, *_present(ids, START_HEADER_LITERALS)))
    bos = _named(tokenizer, "bos")
    if bos is None:
        bos = next(iter(_present(ids, BOS_LITERALS)), None)
    if bos in start:  # SmolLM2 names its turn opener so; it begins turns, not texts
        bos = None
    return SpecialRoles(
        bos=bos,
        eos=eos,
        eot=eot_ids[0] if eot_ids else None,
        pad=_named(tokenizer, "pad"),
        unk=_named(tokenizer, "unk"),
        eos_ids=_unique(() if eos is None else (eos, *table_eos)),
        eot_ids=eot_ids,
        start_header_ids=start,
        end_header_ids=_unique((*turn.end_header, *_present(ids, END_HEADER_LITERALS))),
        special_ids=frozenset(special),
    )


def _named(tokenizer: "PreTrainedTokenizerBase", role: str) -> int | None:
    """The id of the token that the tokenizer itself names so."""
    token = tokenizer.special_tokens_map.get(f"{role}_token")
    id = None if token is None else tokenizer.convert_tokens_to_ids(str(token))
    return id if isinstance(id, int) else None


def _end_of_text(named: int | None, eot: Sequence[int], table: Sequence[int]) -> int | None:
    """The named token, unless it only ends turns and the table knows another for texts."""
    if named is not None and (named in table or named not in eot):
        return named
    return table[0] if table else named


def _present(ids: dict[str, int], literals: Sequence[str]) -> tuple[int, ...]:
    return tuple(ids[literal] for literal in literals if literal in ids)


def _unique(ids: Sequence[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(ids))


_PROBES = (("user", "assistant"), ("user", "assistant", "user", "assistant"))


def _turn_of_template(
    tokenizer: "PreTrainedTokenizerBase", special: frozenset[int], known_ends: Sequence[int]
) -> _Turn:
    """What the template writes before and after an assistant's turn, last or not.

    A last turn may end otherwise than an earlier one (gpt-oss); its end comes first.
    """
    probed = [(roles, _specials_between(tokenizer, roles, special)) for roles in _PROBES]
    ends = [
        gap[0]
        for roles, gaps in probed
        for role, gap in reversed(list(zip(roles, gaps[1:], strict=False)))
        if role == "assistant" and gap
    ]
    start, end_header = [], []
    for roles, gaps in probed:
        for role, gap in list(zip(roles, gaps, strict=False))[1:]:
            header = gap[_last_of(gap, {*ends, *known_ends}) :]
            if role != "assistant":  # Llama-2 begins a text anew before each user's turn
                header = [id for id in header if id != tokenizer.bos_token_id]
            start += header[:1]
            end_header += header[1:][-1:]
    return _Turn(_unique(ends), _unique(start), _unique(end_header))


def _specials_between(
    tokenizer: "PreTrainedTokenizerBase", roles: Sequence[str], special: frozenset[int]
) -> list[list[int]]:
    """Special ids before the first of some short turns, between each two, after the last."""
    messages = tuple(Message(role, f"word{i}") for i, role in enumerate(roles))
    try:
        text, places = locate(tokenizer, Conversation(messages, False))
    except (RowFault, ConfigError):
        return []
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    gaps: list[list[int]] = [[] for _ in range(len(places) + 1)]
    for id, (start, _) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        if id in special:
            gaps[sum(place.end <= start for place in places)].append(id)
    return gaps


def _last_of(header: Sequence[int], ends: set[int]) -> int:
    """How many tokens at the head of `header` run up to the last end of turn."""
    return max((i + 1 for i, id in enumerate(header) if id in ends), default=0)
