"""What every initialiser of new embeddings is given, what it owes, and the registry by name.

Axes: Vs rows of the source vocabulary, Vt of the target, N target tokens without a partner, D
hidden.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crosstill.align.spellings import Ragged, lowest_ids, pieces, spell_tokens, unwritten_ids
from crosstill.errors import ConfigError
from crosstill.text.encode import TextEncoder
from crosstill.training.values import as_dict, wrong_type
from crosstill.transfer.initial.rows import chosen, emptied
from crosstill.transfer.tables import Tables, read_tables

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DEFAULT = "fvt"
"""The initialiser that is used where none is named."""


@dataclass(frozen=True)
class TransplantReport:
    """Where the rows of the new embeddings come from; the counts add up to the vocabulary.

    Attributes:
        copied: tokens that spell the same bytes as a token of the source.
        averaged: tokens that took the mean of a few source rows.
        by_role: special tokens that took the row of the source's token of the same role or name.
        mean: tokens with none of these, which took the mean of all source rows.
        combined: tokens that are a weighted sum of a few source rows.
        drawn: tokens whose row was drawn at random.
    """

    copied: int
    averaged: int
    by_role: int
    mean: int
    combined: int = 0
    drawn: int = 0


@dataclass(frozen=True, eq=False)
class Start:
    """What a model begins with under its new tokenizer.

    Attributes:
        tables: The new tables.
        report: Where their rows come from.
        body: Weights of the body that are others now, by their names in the model.
    """

    tables: Tables
    report: TransplantReport
    body: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Source:
    """A model that shall get another tokenizer, and what may be read to that end.

    Attributes:
        model: The model as it is; an initialiser leaves it as it finds it.
        source: The tokenizer it was trained with.
        target: The tokenizer it shall read from now on.
        texts: Texts of the kind it will read, or rows as a trainer reads them (`text`, `messages`,
            or `prompt` and `completion`); may be empty.
        seed: For whatever is drawn at random.
        compile_blocks: Whether blocks that are trained are compiled meanwhile.
    """

    model: "PreTrainedModel"
    source: TextEncoder
    target: TextEncoder
    texts: Sequence[str | Mapping[str, Any]] = ()
    seed: int = 0
    compile_blocks: bool = False

    @cached_property
    def tables(self) -> Tables:
        """The model's rows of ids that its tokenizer knows, without the surplus.

        Raises:
            ConfigError: an ordinary token of the source has no row: tokenizer and model do not
                belong together.
        """
        tables = read_tables(self.model)
        rows, known = len(tables.input), self.source.vocab_size
        # Some tokenizers know special tokens of sibling models (that see images, say).
        if (self.source.bytes.lengths[rows:] > 0).any():
            raise ConfigError(
                f"the model has {rows} embedding rows and its tokenizer {known} tokens: the source "
                f"tokenizer belongs to another model"
            )
        return tables.first(known)

    @cached_property
    def exact(self) -> np.ndarray:
        """The source token that spells the same bytes as each target token, int64 [Vt], or -1."""
        ids = lowest_ids(self.source)
        return np.array([ids.get(data, -1) if data else -1 for data in self.tokens], np.int64)

    @cached_property
    def tokens(self) -> list[bytes]:
        """The bytes of each target token; none for special ones, and for such as are never written.

        A byte-fallback token (`<0x41>`) beside another of the same bytes is never written: with the
        row of the other it would take half of its probability.
        """
        found = pieces(self.target.bytes)
        for id in unwritten_ids(self.target):
            found[id] = b""
        return found

    def spelled(self, ids: np.ndarray) -> Ragged:
        """Some target tokens in tokens of the source, one list each; empty where that cannot be."""
        never = np.array(unwritten_ids(self.target), np.int64)
        return chosen(emptied(spell_tokens(self.target, self.source), never), ids)

    @cached_property
    def by_role(self) -> np.ndarray:
        """The source's token for each special token of the target, int64 [Vt]; -1 for the others.

        The one of the same name, else the chief one of the same role.
        """
        found = np.full(self.target.vocab_size, -1, np.int64)
        rows = len(self.tables.input)
        for id, same in _same_specials(self.source, self.target).items():
            found[id] = same if same < rows else -1
        return found

    @cached_property
    def kept(self) -> np.ndarray:
        """The source token whose row a target token takes as it is, int64 [Vt]; -1 for the rest."""
        return np.where(self.exact >= 0, self.exact, self.by_role)


class Initialiser(ABC):
    """A way to make the embeddings of a new vocabulary from those of the old one.

    A subclass is a frozen dataclass; its fields are its options, each with a default. Add it to
    the registry in `crosstill.transfer.initial`.

    Attributes:
        name: How recipes call it.
        needs_texts: Whether it can do nothing without texts.
        keeps_exact: Whether tokens that both vocabularies have keep their rows bit for bit.
        changes_body: Whether the body gets other weights as well.
    """

    name: ClassVar[str]
    needs_texts: ClassVar[bool] = False
    keeps_exact: ClassVar[bool] = True
    changes_body: ClassVar[bool] = False

    def start(self, source: Source) -> Start:
        """Make all that the model begins with.

        Args:
            source: The model and both tokenizers; nothing in it is changed.
        """
        return Start(*self.tables(source))

    @abstractmethod
    def tables(self, source: Source) -> tuple[Tables, TransplantReport]:
        """Make the new tables, in the type and on the device of the old ones.

        Args:
            source: The model and both tokenizers; nothing in it is changed.
        """


Make = Callable[[str, Float[Tensor, "Vs D"]], Float[Tensor, "N D"]]
"""Takes "input" or "output" and a source table, gives the rows of tokens without a partner."""


def assembled(
    source: Source, make: Make, kept: np.ndarray | None = None, *, untie: bool = False
) -> Tables:
    """Put tables together: the rows that are kept, bit for bit, and made ones for the rest.

    Args:
        source: The model and both tokenizers.
        make: Makes rows for the target tokens that keep none, in their order. A bias is given as
            an output table of width one.
        kept: int64 [Vt], the source token of each target token, or -1; None: `source.kept`.
        untie: Whether tied tables become two.
    """
    kept = source.kept if kept is None else kept
    old = source.tables

    def one(side: str, rows: Tensor) -> Tensor:
        ids = torch.from_numpy(kept).to(rows.device)
        new = rows[ids.clamp(min=0)]
        new[ids < 0] = make(side, rows).to(rows.dtype)
        return new

    output = old.head if old.output is not None or untie else None
    return Tables(
        one("input", old.input),
        None if output is None else one("output", output),
        None if old.bias is None else one("output", old.bias[:, None])[:, 0],
    )


_REGISTRY: dict[str, type[Initialiser]] = {}
_AnyInitialiser = TypeVar("_AnyInitialiser", bound=type[Initialiser])


def register(initialiser: _AnyInitialiser) -> _AnyInitialiser:
    """Add an initialiser's class under its name; usable as a decorator.

    Raises:
        ConfigError: the name is taken, or an option has no default.
    """
    if initialiser.name in _REGISTRY:
        raise ConfigError(
            f"initialiser {initialiser.name!r} is already registered by "
            f"{_REGISTRY[initialiser.name].__qualname__}; choose another name"
        )
    for option in _options(initialiser):
        if option.default is dataclasses.MISSING:
            raise ConfigError(f"option {option.name!r} of {initialiser.name!r} needs a default")
    _REGISTRY[initialiser.name] = initialiser
    return initialiser


def initialisers() -> Mapping[str, type[Initialiser]]:
    """The initialisers that exist, by name.

    Example:
        >>> "fvt" in initialisers()
        True
    """
    return dict(sorted(_REGISTRY.items()))


def parse_initialiser(value: "str | Mapping[str, Any] | Initialiser" = DEFAULT) -> Initialiser:
    """Make an initialiser from its name, or from a mapping of its name to its options.

    Args:
        value: `"omp"`, `{"omp": {"k": 16}}`, or the same as JSON text from a command line.

    Raises:
        ConfigError: no initialiser or option has that name (the nearest one is named), or a value
            is of the wrong type or out of range.

    Example:
        >>> parse_initialiser({"omp": {"k": 16}}).k
        16
    """
    if isinstance(value, Initialiser):
        return value
    if isinstance(value, str) and not value.lstrip().startswith("{"):
        value = {value: {}}
    asked = as_dict("initial", value) if isinstance(value, str) else dict(value)
    if len(asked) != 1:
        raise ConfigError(f"initial names {len(asked)} initialisers, expected one; got {asked!r}")
    name, options = next(iter(asked.items()))
    if name not in _REGISTRY:
        raise ConfigError(_unknown("initialiser", str(name), list(_REGISTRY)))
    options = as_dict(f"initial.{name}", options)
    known = {option.name: option for option in _options(_REGISTRY[name])}
    for key, given in options.items():
        if key not in known:
            raise ConfigError(_unknown(f"option of {name}", str(key), list(known)))
        expected = wrong_type(known[key], given)
        if expected:
            raise ConfigError(f"initial.{name}.{key} is {given!r}, expected {expected}")
    return _REGISTRY[name](**options)


def _options(initialiser: type[Initialiser]) -> tuple[dataclasses.Field, ...]:
    return dataclasses.fields(initialiser) if dataclasses.is_dataclass(initialiser) else ()


def _unknown(kind: str, name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"there is no {kind} called {name!r}; {hint}known: {', '.join(sorted(known)) or 'none'}"


def _same_specials(source: TextEncoder, target: TextEncoder) -> dict[int, int]:
    """The source's special token of the same name, else of the same role, for those of the target.

    A name comes first: one role can have several tokens.
    """
    named, theirs = _named_specials(source), source.roles
    chief = {
        "bos": theirs.bos,
        "eos": theirs.eos,
        "eot": theirs.eot,
        "pad": theirs.pad,
        "unk": theirs.unk,
        "start_header": next(iter(theirs.start_header_ids), None),
        "end_header": next(iter(theirs.end_header_ids), None),
    }
    found = {
        id: named.get(name, chief.get(target.roles.role_of(id) or ""))
        for name, id in _named_specials(target).items()
    }
    return {id: same for id, same in found.items() if same is not None}


def _named_specials(encoder: TextEncoder) -> dict[str, int]:
    """A tokenizer's special tokens by name."""
    ids = np.flatnonzero(encoder.bytes.special).tolist()
    return dict(zip(encoder.tokenizer.convert_ids_to_tokens(ids), ids, strict=True))
