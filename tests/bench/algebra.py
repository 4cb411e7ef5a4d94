"""Products whose batch axis is last, counts by one-hot sums, and linear algebra of small matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from minigrad import Tensor, jit, linalg
from tests.bench.measure import Row
from tests.bench.peers import jax_work, numpy_work, torch_work

# equation: shapes of the operands, multiply-adds
EINSUMS = {
    "tdh,sdh->tsh": ((256, 64, 8), (256, 64, 8)), "tsh,sdh->tdh": ((256, 256, 8), (256, 64, 8)),
    "btdh,bsdh->btsh": ((4, 128, 32, 32), (4, 128, 32, 32)),
    "tdh,sdh->hts": ((256, 64, 8), (256, 64, 8)),
}  # fmt: skip
SIZE = 128  # of matrices


def rows(threads: int) -> Iterator[Row]:
    """All rows of the family."""
    for equation, shapes in EINSUMS.items():
        yield einsum(equation, shapes, threads)
    for count, bins in ((100_000, 1000), (1_000_000, 64), (8192, 50257)):
        yield counts(count, bins, threads)
    yield from linear_algebra(threads)


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def einsum(equation: str, shapes: tuple[tuple[int, ...], ...], threads: int) -> Row:
    """A product of two operands in float32."""
    arrays = [_normal(*shape) for shape in shapes]
    ours = jit(lambda x, y: Tensor.einsum(equation, x, y).realize())
    tensors = [Tensor(array).realize() for array in arrays]

    def torch_einsum(*operands: Any) -> Any:
        import torch

        return torch.einsum(equation, *operands)

    def jax_einsum(*operands: Any) -> Any:
        import jax

        return jax.numpy.einsum(equation, *operands)

    left, right = equation.split("->")[0].split(",")
    extents = dict(zip(left + right, shapes[0] + shapes[1], strict=True))
    return Row(
        f"einsum {equation} of {' and '.join(str(shape) for shape in shapes)}",
        lambda: ours(*tensors),
        {**torch_work(torch_einsum, *arrays, threads=threads), **jax_work(jax_einsum, *arrays)},
        flops=2.0 * np.prod([float(n) for n in extents.values()]), goal=1.0,
    )  # fmt: skip


def counts(count: int, bins: int, threads: int) -> Row:
    """How often each number occurs, as the sum of one-hot vectors; peers call bincount."""
    numbers = np.random.default_rng(0).integers(0, bins, count)
    x = Tensor(numbers).realize()
    ours = jit(lambda x: x.one_hot(bins).sum(0).realize())
    return Row(
        f"{bins} counts of {count}", lambda: ours(x),
        {**torch_work(lambda a: a.bincount(minlength=bins), numbers, threads=threads),
         **numpy_work(lambda a: np.bincount(a, minlength=bins), numbers)},
        bytes=8.0 * count, goal=0.67,
    )  # fmt: skip


def linear_algebra(threads: int) -> Iterator[Row]:
    """Factors, systems, eigenvalues of one matrix; numpy and PyTorch call LAPACK."""
    a, b = _normal(SIZE, SIZE), _normal(SIZE, 8)
    definite = a @ a.T + SIZE * np.eye(SIZE, dtype=np.float32)
    works: dict[str, tuple[np.ndarray, Callable[[Tensor], Any], Callable[..., Any]]] = {
        "cholesky": (definite, linalg.cholesky, np.linalg.cholesky),
        "solve": (a, lambda x: linalg.solve(x, right), lambda x: np.linalg.solve(x, b)),
        "inv": (a, linalg.inv, np.linalg.inv), "det": (a, linalg.det, np.linalg.det),
        "qr": (a, linalg.qr, np.linalg.qr), "eigh": (definite, linalg.eigh, np.linalg.eigh),
        "svd": (a, linalg.svd, np.linalg.svd),
    }  # fmt: skip
    right = Tensor(b).realize()
    for name, (array, ours, numpys) in works.items():
        x = Tensor(array).realize()

        def work(x: Tensor = x, ours: Callable[[Tensor], Any] = ours) -> None:
            found = ours(x)
            Tensor.realize(*(found if isinstance(found, tuple) else (found,)))

        def torch_call(array: Any, name: str = name) -> Any:
            import torch

            others = (torch.from_numpy(b),) if name == "solve" else ()
            return getattr(torch.linalg, name)(array, *others)

        yield Row(
            f"{name} of {SIZE}²", work,
            {**numpy_work(numpys, array), **torch_work(torch_call, array, threads=threads)},
            goal=0.2,
        )  # fmt: skip
