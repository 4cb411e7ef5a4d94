"""Depthwise convolutions with small kernels: equal with and without a copy in another layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minigrad import Tensor
from minigrad.tensor import convolution, templates

WIDE: list[dict[str, Any]] = [
    {"shape": (2, 5, 9, 37), "kernel": (3, 3), "padding": 1},
    {"shape": (2, 5, 9, 37), "kernel": (3, 3), "stride": 2, "padding": 1},
    {"shape": (2, 3, 8, 40), "kernel": (2, 3), "stride": (1, 2), "dilation": (2, 1)},
    {"shape": (2, 5, 17, 23), "kernel": (7, 7), "padding": 3},
    {"shape": (2, 3, 20, 33), "kernel": (7, 5), "stride": 2, "padding": 2},
    {"shape": (2, 3, 14, 20), "kernel": (10, 2), "padding": (4, 1)},
    {"shape": (3, 7, 65), "kernel": (4,), "padding": 3},
    {"shape": (2, 3, 90), "kernel": (31,), "padding": 15},
    {"shape": (1, 4, 5, 6, 19), "kernel": (2, 2, 2), "padding": ((1, 0), (0, 1), (2, 1))},
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("number", range(len(WIDE)))
def test_as_they_lie_or_arranged(
    on_device: str, number: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = dict(WIDE[number])
    shape, kernel = options.pop("shape"), options.pop("kernel")
    draw = np.random.default_rng(number).standard_normal
    given = [draw(s).astype(np.float32) for s in (shape, (shape[1], 1, *kernel), (shape[1],))]
    assert shape[-1] >= convolution.LEAST_WIDTH and np.prod(kernel) <= convolution.MOST_PLACES

    def found() -> list[np.ndarray]:
        x, weight, bias = (Tensor(one).cast(dtype) for one in given)
        y = x.conv2d(weight, bias, groups=shape[1], **options)
        grads = y.float().square().sum().gradient(x, weight, bias)
        return [one.float().numpy() for one in (y, *grads)]

    calls: list[Any] = []
    way = convolution.Convolution._channels_last

    def counted(self: Any, groups: int, apart: bool) -> Any:
        calls.append(apart)
        return way(self, groups, apart)

    monkeypatch.setattr(convolution.Convolution, "_channels_last", counted)
    monkeypatch.setattr(templates.thread, "key", object())  # matches no template
    here = found()
    assert calls[0]
    calls.clear()
    monkeypatch.setattr(convolution, "MOST_PLACES", 0)
    monkeypatch.setattr(templates.thread, "key", object())
    for one, other in zip(here, found(), strict=True):
        rounded = 1e-5 if dtype == "float32" else 2e-2
        np.testing.assert_allclose(one, other, rounded, rounded * np.abs(other).max())
    assert not calls[0]


def test_expanded_halves_are_multiplied_in_float32(compiled, reference):
    """The batch axis is last, and the operands are expanded before they are cast."""
    x, y = np.random.default_rng(2).standard_normal((2, 16, 9, 8)).astype(np.float32)
    results = []
    for device in (compiled, reference):
        a, b = (Tensor(given, device=device).bfloat16() for given in (x, y))
        left = a.reshape(16, 1, 9, 8).expand(16, 16, 9, 8).float()
        right = b.reshape(1, 16, 9, 8).expand(16, 16, 9, 8).float()
        results.append((left * right).sum(2).numpy())
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-5)
