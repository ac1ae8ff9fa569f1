"""Initialisers: ways to make the embeddings of a new vocabulary, by name, one a file."""

from crosstill.transfer.initial.base import (
    DEFAULT,
    Initialiser,
    Source,
    TransplantReport,
    initialisers,
    parse_initialiser,
    register,
)
from crosstill.transfer.initial.fit import Fit
from crosstill.transfer.initial.fvt import Fvt

__all__ = [
    "DEFAULT",
    "Initialiser",
    "Source",
    "TransplantReport",
    "initialisers",
    "parse_initialiser",
    "register",
]

register(Fvt)
register(Fit)
