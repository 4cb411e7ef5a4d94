"""Linear algebra of the matrices in the last two dimensions, under torch.linalg's names.

Factorizations, inverses and systems take floats (else DTypeError; `.float()`), and those of square
matrices raise ShapeError for others.
"""

# ruff: noqa: F403, F405

from minigrad.hints import hint_names
from minigrad.linalg.decompositions import qr, svd
from minigrad.linalg.systems import *
from minigrad.tensor import Tensor

cross, matmul = Tensor.cross, Tensor.matmul

__all__ = [
    "cholesky", "cond", "cross", "det", "diagonal", "eigh", "eigvalsh", "inv", "lstsq", "matmul",
    "matrix_norm", "matrix_power", "matrix_rank", "norm", "pinv", "qr", "slogdet",
    "solve", "svd", "svdvals", "vecdot", "vector_norm",
]  # fmt: skip

hint_names(globals(), __all__)
