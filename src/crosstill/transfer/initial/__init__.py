"""Initialisers: ways to make the embeddings of a new vocabulary, by name, one a file."""

from crosstill.transfer.initial.base import (
    DEFAULT,
    Initialiser,
    Source,
    Start,
    TransplantReport,
    initialisers,
    parse_initialiser,
    register,
)
from crosstill.transfer.initial.fit import Fit
from crosstill.transfer.initial.fvt import Fvt
from crosstill.transfer.initial.mean import Mean
from crosstill.transfer.initial.omp import Omp
from crosstill.transfer.initial.random import Random
from crosstill.transfer.initial.spell import Spell
from crosstill.transfer.initial.suffix import Suffix

__all__ = [
    "DEFAULT",
    "Initialiser",
    "Source",
    "Start",
    "TransplantReport",
    "initialisers",
    "parse_initialiser",
    "register",
]

register(Fvt)
register(Mean)
register(Omp)
register(Random)
register(Suffix)
register(Fit)
register(Spell)
