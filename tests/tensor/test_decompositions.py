"""QR, SVD and eigenvalues beyond the operation table: accuracy, lost rank, errors."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from minigrad import GlobalCounters, Tensor, dtypes, jit, linalg
from minigrad.errors import DTypeError, GradientError, ShapeError


def _distance_from_identity(q: np.ndarray) -> float:
    return float(abs(np.swapaxes(q, -1, -2) @ q - np.eye(q.shape[-1])).max())


def _matrix(kind: str) -> np.ndarray:
    """The matrix of that kind; only two shapes, since each one compiles a program."""
    generator = np.random.default_rng(5)
    if kind == "zero":
        return np.zeros((5, 3))
    if kind == "rank 1":
        return np.outer(np.arange(1.0, 6), [1.0, -2.0, 0.5])
    if kind == "graded":
        return generator.normal(size=(8, 8)) * 10.0 ** -np.arange(0, 16, 2)
    if kind == "huge":
        return generator.normal(size=(8, 8)) * 1e200
    if kind == "equal singular values":
        return np.linalg.qr(generator.normal(size=(8, 8)))[0]
    return np.vander(np.linspace(0, 1, 8))


KINDS = ["zero", "rank 1", "graded", "huge", "equal singular values", "vandermonde"]


@pytest.mark.parametrize("kind", KINDS)
def test_factors_of_awkward_matrices(kind: str, device: str) -> None:
    """Factors are orthogonal up to rounding at any rank; products and singular values are right."""
    x = _matrix(kind)
    size = max(float(abs(x).max()), 1e-300)
    q, r = (t.numpy() for t in Tensor(x, device=device).qr())
    assert _distance_from_identity(q) < 1e-14
    assert abs(q @ (r / size) - x / size).max() < 1e-14
    assert (np.tril(r, -1) == 0).all()
    u, s, v = (t.numpy() for t in Tensor(x, device=device).svd())
    assert _distance_from_identity(u) < 3e-14 and _distance_from_identity(v.T) < 3e-14
    product = (u[:, : len(s)] * (s / size)) @ v[: len(s)]
    assert abs(product - x / size).max() < 3e-14
    assert abs(s / size - np.linalg.svd(x / size)[1]).max() < 1e-14
    assert (np.diff(s) <= 0).all()


def _symmetric(kind: str) -> np.ndarray:
    generator = np.random.default_rng(8)
    q = np.linalg.qr(generator.normal(size=(21, 21)))[0]
    places = np.arange(21)
    if kind == "tridiagonal, nearly equal pairs":  # Wilkinson's matrix
        return np.diag(abs(places - 10.0)) + np.eye(21, k=1) + np.eye(21, k=-1)
    if kind == "two values":
        return (q * np.where(places < 9, 1.0, -2.0)) @ q.T
    if kind == "graded":
        return (q * 10.0 ** -places) @ q.T * 1e38
    if kind == "random":
        return (q + q.T) * generator.normal()
    return np.ones((21, 21)) if kind == "rank 1" else np.eye(21) * (kind == "identity")


SYMMETRIC = ("tridiagonal, nearly equal pairs", "two values", "graded", "random", "rank 1",
             "identity", "zero")  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_eigenvectors_of_awkward_matrices(dtype: type, device: str) -> None:
    """Eigenvectors are orthogonal even for close eigenvalues, which equal numpy's, ascending."""
    every, rounding = np.stack([_symmetric(kind) for kind in SYMMETRIC]), float(np.finfo(dtype).eps)
    every = ((every + every.swapaxes(1, 2)) / 2).astype(dtype)
    found = (t.numpy().astype(float) for t in linalg.eigh(Tensor(every, device=device)))
    for kind, x, values, vectors in zip(SYMMETRIC, every, *found, strict=True):
        size = max(float(abs(x).max()), 1e-30) * 21
        assert _distance_from_identity(vectors) < 40 * rounding, kind
        assert abs(x / size @ vectors - vectors * (values / size)).max() < 20 * rounding, kind
        wanted = np.linalg.eigvalsh(x.astype(float) / size)
        assert abs(values / size - wanted).max() < 20 * rounding, kind
        assert (np.diff(values) >= 0).all(), kind


def test_factors_of_nan_are_nan(device: str) -> None:
    """Other matrices of the batch are not affected."""
    x = np.random.default_rng(9).normal(size=(2, 4, 4)) + np.zeros((2, 4, 4))
    x[1, 2, 1] = np.nan
    values, vectors = (t.numpy() for t in linalg.eigh(Tensor(x, device=device)))
    s = Tensor(x, device=device).svd()[1].numpy()
    assert np.isnan(values[1]).all() and np.isnan(vectors[1]).all() and np.isnan(s[1]).all()
    assert all(np.isfinite(found[0]).all() for found in (values, vectors, s))


def test_every_panel_is_the_same_program(compiled: str) -> None:
    """Fewer programs than columns; once the steps are captured, other values compile nothing."""
    start = GlobalCounters.programs_compiled
    for _ in range(2):
        Tensor.realize(*Tensor(np.eye(24), device=compiled).qr())
    assert GlobalCounters.programs_compiled - start < 16
    before = GlobalCounters.programs_compiled
    x = np.random.default_rng(1).normal(size=(24, 24))
    q, r = Tensor(x, device=compiled).qr()
    Tensor.realize(q, r)
    assert GlobalCounters.programs_compiled == before
    assert abs(q.numpy() @ r.numpy() - x).max() < 1e-13


def test_no_gradient_beyond_the_rank(device: str) -> None:
    """Asking for it raises: the complete Q of a tall matrix is a constant."""
    x = Tensor(np.random.default_rng(2).normal(size=(4, 2)), device=device)
    with pytest.raises(GradientError):
        x.qr("complete")[0].sum().gradient(x)


def test_what_is_refused() -> None:
    """Integers, vectors, unknown modes."""
    with pytest.raises(DTypeError, match=r"int32.*float"):
        Tensor([[1, 2]]).qr()
    with pytest.raises(ShapeError, match=r"\(2,\)"):
        Tensor([1.0, 2.0]).svd()
    with pytest.raises(ValueError, match="full"):
        Tensor([[1.0, 2.0]]).qr("full")


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 7, 4), (4, 1), (90, 40)])
def test_tall_wide_and_batched(shape: tuple[int, ...], device: str) -> None:
    """Twice: in the second run all steps are replays, and the matrices lose rank."""
    x = np.random.default_rng(6).normal(size=shape)
    for _ in range(2):
        tensor = Tensor(x, device=device)
        q, r, u, s, v = (t.numpy() for t in (*tensor.qr(), *tensor.svd(full_matrices=False)))
        for orthogonal in (q, u, np.swapaxes(v, -1, -2)):
            assert _distance_from_identity(orthogonal) < 1e-13
        assert abs(q @ r - x).max() < 1e-13 and (np.tril(r, -1) == 0).all()
        assert abs((u * s[..., None, :]) @ v - x).max() < 1e-13
        assert abs(s - np.linalg.svd(x, compute_uv=False)).max() < 1e-13
        x = x * 0.5 + 1 / 64
        x[..., -1] = x[..., 0]


def test_inside_a_captured_step(device: str) -> None:
    @jit
    def step(x: Tensor) -> tuple[Tensor, ...]:
        return (*x.qr(), x.svd()[1].realize())

    for seed in range(4):
        x = np.random.default_rng(seed).normal(size=(4, 3))
        q, r, s = (t.numpy() for t in step(Tensor(x, device=device)))
        assert abs(q @ r - x).max() < 1e-14
        assert abs(s - np.linalg.svd(x, compute_uv=False)).max() < 1e-14


def test_systems_in_a_captured_step(on_device):
    """Replayed inverses and gradients of determinants; and second derivatives."""

    @jit
    def step(a):
        inverse = linalg.inv(a)
        (by_a,) = linalg.det(a).gradient(a)
        return inverse, by_a

    for seed in range(4):
        a = np.random.default_rng(seed).normal(size=(3, 3)) + 2 * np.eye(3)
        inverse, by_a = step(Tensor(a).realize())
        np.testing.assert_allclose(inverse.numpy(), np.linalg.inv(a), rtol=1e-9, atol=1e-12)
        wanted = np.linalg.det(a) * np.linalg.inv(a).T
        np.testing.assert_allclose(by_a.numpy(), wanted, rtol=1e-9, atol=1e-12)
    x = Tensor(np.array([[2.0]]))
    (first,) = linalg.inv(x).sum().gradient(x)
    (second,) = first.sum().gradient(x)
    assert abs(first.item() + 1 / 4) < 1e-12 and abs(second.item() - 2 / 8) < 1e-12


def test_gradients_of_systems(device: str) -> None:
    generator = np.random.default_rng(5)
    a, b, weights = (generator.normal(size=(2, 4, n)) for n in (4, 3, 3))
    x, y, w = (Tensor(array, device=device) for array in (a, b, weights))
    by_x, by_y = (linalg.solve(x, y) * w).sum().gradient(x, y)
    wanted = np.linalg.solve(np.swapaxes(a, 1, 2), weights)
    np.testing.assert_allclose(by_y.numpy(), wanted, rtol=1e-9)
    by_a = -wanted @ np.swapaxes(np.linalg.solve(a, b), 1, 2)
    np.testing.assert_allclose(by_x.numpy(), by_a, rtol=1e-9)
    definite, other = (m @ np.swapaxes(m, 1, 2) for m in generator.normal(size=(2, 2, 4, 4)))
    z, v = Tensor(definite, device=device), Tensor(a, device=device)
    (by_z,) = (linalg.cholesky(z) * v).sum().gradient(z)
    step = 1e-6 * other
    up, down = (np.linalg.cholesky(definite + sign * step) * a for sign in (1, -1))
    np.testing.assert_allclose((by_z.numpy() * step).sum(), (up - down).sum() / 2, rtol=1e-6)


_DIFFERENTIABLE = {
    "inv": linalg.inv, "det": lambda x: x * linalg.det(x).tanh(), "qr": lambda x: linalg.qr(x).Q,
    "slogdet": lambda x: x * linalg.slogdet(x).logabsdet, "solve": lambda x: linalg.solve(x, x.mT),
    "cholesky": lambda x: linalg.cholesky(x @ x.mT), "svd": lambda x: linalg.svd(x).U,
    "eigh": lambda x: linalg.eigh(x + x.mT).eigenvectors, "pinv": lambda x: linalg.pinv(x),
}  # fmt: skip


@pytest.mark.parametrize("name", _DIFFERENTIABLE)
def test_a_chain_is_differentiated_without_computing_it_again(compiled: str, name: str) -> None:
    """Two programs per step at any length; values computed by a step's rule are freed with it."""
    a = np.random.default_rng(6).normal(size=(3, 3)).astype(np.float32)

    def differentiate(steps: int) -> tuple[int, int]:
        base = x = Tensor(a + 3 * np.diag([1, 2, 3]).astype(np.float32), device=compiled)
        for _ in range(steps):
            x = base + _DIFFERENTIABLE[name](x) * 0.1
        before = GlobalCounters.programs_compiled, GlobalCounters.program_calls
        (by_base,) = x.sum().gradient(base)
        found = GlobalCounters.programs_compiled - before[0]
        calls = GlobalCounters.program_calls - before[1]
        assert np.isfinite(by_base.numpy()).all()
        return found, calls

    differentiate(3)
    used = GlobalCounters.mem_used
    (_, few), (compilations, many) = differentiate(2), differentiate(5)
    gc.collect()
    assert compilations == 0 and many - few <= 2 * 3  # two programs for each step
    assert GlobalCounters.mem_used <= used


def test_systems_of_several_panels(device: str) -> None:
    """More columns than a panel has, and no multiple of its width; rows must be exchanged."""
    generator = np.random.default_rng(7)
    a, b = generator.normal(size=(2, 37, 37)), generator.normal(size=(2, 37, 3))
    definite = a @ np.swapaxes(a, 1, 2) + np.eye(37)
    x, y, z = (Tensor(array, device=device) for array in (a, b, definite))
    pairs = [
        (linalg.solve(x, y), np.linalg.solve(a, b)), (linalg.inv(x), np.linalg.inv(a)),
        (linalg.det(x), np.linalg.det(a)), (linalg.cholesky(z), np.linalg.cholesky(definite)),
        (linalg.eigh(z)[0], np.linalg.eigh(definite)[0]),
    ]  # fmt: skip
    for found, wanted in pairs:
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-9, atol=1e-10)
    values, vectors = (t.numpy() for t in linalg.eigh(z))
    assert _distance_from_identity(vectors) < 1e-12
    assert abs(vectors * values[:, None] @ np.swapaxes(vectors, 1, 2) - definite).max() < 1e-10
    a[0, 5] = a[0, 20]  # now singular
    assert abs(linalg.det(Tensor(a, device=device)).numpy()[0]) < 1e-9 * abs(np.linalg.det(a[1]))


def test_results_have_names(on_device: str) -> None:
    """The names are PyTorch's, in results of captured steps, too."""
    x = Tensor([[4.0, 1.0], [1.0, 3.0]])
    q, s, e, d = x.qr(), x.svd(), linalg.eigh(x), linalg.slogdet(x)
    close = np.testing.assert_allclose
    close((q.Q @ q.R).numpy(), x.numpy(), rtol=1e-5)
    close(((s.U * s.S) @ s.Vh).numpy(), x.numpy(), rtol=1e-5)
    close((x @ e.eigenvectors).numpy(), (e.eigenvectors * e.eigenvalues).numpy(), rtol=1e-4)
    close((d.sign * d.logabsdet.exp()).numpy(), 11, rtol=1e-5)
    found = jit(lambda x: linalg.qr(x * 1))
    assert all((found(x).Q.abs() - q.Q.abs()).abs().max().item() < 1e-6 for _ in range(3))


def test_what_singular_values_say_of_matrices_without_elements(on_device):
    for shape in ((0, 3), (3, 0), (2, 3, 0)):
        x = np.ones(shape, np.float32)
        found = linalg.pinv(Tensor(x)), linalg.matrix_rank(Tensor(x))
        for one, wanted in zip(found, (np.linalg.pinv(x), np.linalg.matrix_rank(x)), strict=True):
            np.testing.assert_array_equal(one.numpy(), wanted)


@pytest.mark.parametrize("shape", [(0, 0), (0, 3, 3), (2, 0, 0)])
def test_systems_without_elements(on_device, shape):
    """Their gradients have no elements, either."""
    a, b = np.ones(shape, np.float32), np.ones((*shape[:-1], 2), np.float32)
    x = Tensor(a).requires_grad_(True)
    found = (linalg.det(x), *linalg.slogdet(x), linalg.inv(x), linalg.solve(x, Tensor(b)))
    sign, logarithm = np.linalg.slogdet(a)
    expected = np.linalg.det(a), sign, logarithm, a, b
    for one, wanted in zip((*found, linalg.cholesky(x)), (*expected, a), strict=True):
        np.testing.assert_array_equal(one.numpy(), wanted)
        if one is not found[1]:  # a sign has no gradient
            one.sum().backward()
            assert x.grad.shape == shape


def test_singular_values_count_above_a_share_of_the_largest(on_device):
    x = Tensor([[1.0, 0.0, 0.0], [0.0, 0.6, 0.0], [0.0, 0.0, 0.4]])
    assert linalg.matrix_rank(x.expand(2, 3, 3), rtol=Tensor([0.5, 0.7])).tolist() == [2, 1]
    inverse = [[1.0, 0.0, 0.0], [0.0, 1 / 0.6, 0.0], [0.0, 0.0, 0.0]]
    np.testing.assert_allclose(linalg.pinv(x, rtol=0.5).numpy(), inverse, rtol=1e-5, atol=1e-6)


def test_narrow_floats_are_computed_in_float32(on_device):
    """The only loss is that of rounding the result to its own dtype."""
    a = (np.random.default_rng(0).normal(size=(24, 24)) + 3 * np.eye(24)).astype(np.float16)
    x, wide = Tensor(a), a.astype(np.float64)
    b = x @ x.mT
    for found, wanted in (
        (linalg.inv(x), np.linalg.inv(wide)), (linalg.solve(x, x), np.eye(24)),
        (linalg.cholesky(b), np.linalg.cholesky(b.numpy().astype(np.float64))),
        (linalg.det(x[:4, :4]), np.linalg.det(wide[:4, :4])),
    ):  # fmt: skip
        assert found.dtype is dtypes.float16
        error = np.abs(found.numpy().astype(np.float64) - wanted).max()
        assert error <= 2.0**-10 * np.abs(wanted).max()
