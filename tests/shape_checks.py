"""The type checker that jaxtyping runs on `crosstill.functional` during tests."""

from beartype import BeartypeConf, beartype

# An int may stand for a float, as in Python itself.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
