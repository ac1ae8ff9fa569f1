"""Several models that vote on every token."""

from crosstill.ensemble.model import Ensemble

__all__ = ["Ensemble"]
