"""einops' functions on tensors, against the same functions on numpy arrays."""

from __future__ import annotations

import numpy as np
import pytest

from minigrad import Tensor

einops = pytest.importorskip("einops")
import minigrad.einops  # noqa: E402, F401

ARRAY = np.random.default_rng(1).standard_normal((4, 6, 10)).astype(np.float32)


def same(made: Tensor, expected) -> None:
    assert isinstance(made, Tensor) and made.shape == expected.shape
    np.testing.assert_allclose(made.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "pattern, sizes",
    [("a b c -> c b a", {}), ("a (b1 b2) c -> a b1 (b2 c)", {"b1": 2}), ("a b c -> (a b c)", {}),
     ("a ... -> ... a", {}), ("a b c -> a 1 b c 1", {}), ("(a1 a2) b c -> a2 (b a1) c", {"a1": 2})],
)  # fmt: skip
def test_rearrange(pattern, sizes):
    same(
        einops.rearrange(Tensor(ARRAY), pattern, **sizes), einops.rearrange(ARRAY, pattern, **sizes)
    )


@pytest.mark.parametrize("how", ["sum", "mean", "max", "min", "prod"])
def test_reduce(how):
    for pattern in ("a b c -> a c", "a (b 2) c -> b", "a b c ->", "... c -> c"):
        same(einops.reduce(Tensor(ARRAY), pattern, how), einops.reduce(ARRAY, pattern, how))
    for flags in (ARRAY > 0, ARRAY > -1):
        for name in ("any", "all"):
            pattern = "a b c -> b"
            same(einops.reduce(Tensor(flags), pattern, name), einops.reduce(flags, pattern, name))


def test_repeat_pack_unpack_and_einsum():
    x = Tensor(ARRAY)
    same(
        einops.repeat(x, "a b c -> a (b r) c", r=3), einops.repeat(ARRAY, "a b c -> a (b r) c", r=3)
    )
    same(einops.repeat(x, "a b c -> r a b c", r=2), einops.repeat(ARRAY, "a b c -> r a b c", r=2))
    packed, shapes = einops.pack([x, x[:, :, 0]], "a *")
    expected, known = einops.pack([ARRAY, ARRAY[:, :, 0]], "a *")
    same(packed, expected)
    assert [tuple(s) for s in shapes] == [tuple(s) for s in known]
    for one, other in zip(
        einops.unpack(packed, shapes, "a *"), (ARRAY, ARRAY[:, :, 0]), strict=True
    ):
        same(one, other)
    pattern = "a b c, a d c -> a b d"
    same(einops.einsum(x, x, pattern), einops.einsum(ARRAY, ARRAY, pattern))
    same(einops.rearrange([x, x + 1], "r a b c -> a r b c"), np.stack([ARRAY, ARRAY + 1], 1))
    assert einops.parse_shape(x, "a _ c") == {"a": 4, "c": 10}
    np.testing.assert_array_equal(einops.asnumpy(x), ARRAY)


def test_gradients_flow_through():
    x = Tensor(ARRAY, requires_grad=True)
    (einops.rearrange(x, "a b c -> (c a) b") ** 2).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 2 * ARRAY, rtol=1e-6)
