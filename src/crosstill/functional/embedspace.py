"""Two models' input embeddings in one space, found through the tokens that both have.

Axes: V vocabulary, D width of a model, S shared tokens, R width of the common space.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from crosstill.errors import ConfigError


def shared_space(
    student: Float[Tensor, "Vs Ds"],
    teacher: Float[Tensor, "Vt Dt"],
    shared: Int64[Tensor, "S 2"],
) -> tuple[Float[Tensor, "Vs R"], Float[Tensor, "Vt R"]]:
    r"""Turn both embeddings so that shared tokens lie as near to each other as they can.

    With the rows of shared tokens, centred and scaled to length one, as X and Y, and
    :math:`X^\top Y = U \Sigma V^\top`, the student's rows are multiplied by U and the teacher's by
    V: the orthogonal Procrustes solution, for matrices of different widths too. R is the smaller
    width.

    Args:
        student: the student's input embedding.
        teacher: the teacher's.
        shared: (student id, teacher id) of the same tokens.

    Returns:
        Rows of length one (zero where an embedding is the mean itself), float32 at least: the
        product of two rows is the cosine between a student's and a teacher's token.

    Raises:
        ConfigError: fewer than two tokens are shared.

    Source: Schönemann, "A generalized solution of the orthogonal Procrustes problem", 1966.
    Oracle: tests/oracle/cdm.py.

    Example:
        >>> one = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
        >>> turned = one @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
        >>> ids = torch.arange(4)
        >>> student, teacher = shared_space(one, turned, torch.stack([ids, ids], 1))
        >>> (student * teacher).sum(1).round(decimals=4)
        tensor([1., 1., 1., 1.])
    """
    if shared.shape[0] < 2:
        raise ConfigError(
            f"expected at least 2 tokens that both vocabularies have, got {shared.shape[0]}: the "
            "embeddings cannot be brought into one space. Use mapping_distance edit or bytes"
        )
    sides = []
    for matrix, ids in ((student, shared[:, 0]), (teacher, shared[:, 1])):
        matrix = matrix.detach().to(torch.promote_types(matrix.dtype, torch.float32))
        sides.append(_unit(matrix - matrix[ids].mean(0)))
    one, two = sides
    dtype = torch.promote_types(one.dtype, two.dtype)
    one, two = one.to(dtype), two.to(dtype)
    u, _, vh = torch.linalg.svd(one[shared[:, 0]].T @ two[shared[:, 1]], full_matrices=False)
    return _unit(one @ u), _unit(two @ vh.T)


def cosine_distance(
    student: Float[Tensor, "N Ks R"], teacher: Float[Tensor, "N Kt R"]
) -> Float[Tensor, "N Ks Kt"]:
    """Compute (1 - cosine) / 2 between all rows of length one: 0 same, 1 opposite direction.

    Example:
        >>> cosine_distance(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]]))
        tensor([[[0.5000]]])
    """
    return (1.0 - student @ teacher.transpose(1, 2)) / 2.0


def _unit(rows: Float[Tensor, "V D"]) -> Float[Tensor, "V D"]:
    return torch.nn.functional.normalize(rows, dim=1)
