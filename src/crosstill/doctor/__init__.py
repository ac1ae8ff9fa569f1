"""Everything that can be wrong with a run, checked before a weight is loaded or a step is taken."""

from crosstill.doctor.distillation import examine_distillation
from crosstill.doctor.finding import Finding, Findings
from crosstill.doctor.transfer import examine_transfer
from crosstill.training.recipe import Recipe
from crosstill.transfer.recipe import TransferRecipe

__all__ = ["Finding", "Findings", "examine"]


def examine(recipe: Recipe | TransferRecipe, *, trust_remote_code: bool = False) -> Findings:
    """Check the recipe of a distillation or of a transfer.

    Every check is made, whatever the ones before it found, so that all problems show at once.
    Nothing is written, and no weight is read.

    Example:
        >>> from crosstill.training.recipe import load_recipe
        >>> examine(load_recipe("recipe.yaml")).exit_code  # doctest: +SKIP
        0
    """
    if isinstance(recipe, TransferRecipe):
        return examine_transfer(recipe, trust_remote_code=trust_remote_code)
    return examine_distillation(recipe, trust_remote_code=trust_remote_code)
