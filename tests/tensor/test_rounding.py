"""Where values are rounded, and where they are not.

A product minus its own rounded value is 0: x·y − max(x·y) is never above 0. If the subtraction were
fused with the product (one rounding instead of two), it would give the product's rounding error:
2e-5 for scores of 300, in softmax and in its gradient. Sums of halves are float32.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from minigrad import Tensor


def test_a_score_less_the_largest_is_not_above_zero(device: str) -> None:
    x = np.random.default_rng(5).normal(size=(40, 37)).astype(np.float32) * 900
    scores = Tensor(x, device=device) * 0.174077659845
    rest = (scores - scores.max(-1, keepdim=True).realize()).numpy()
    assert (rest.max(-1) == 0).all()
    assert ((scores - scores.realize()).numpy() == 0).all()


@pytest.mark.parametrize("length", [5, 40, 300])
def test_the_gradient_of_attention_with_large_scores(device: str, length: int) -> None:
    """Each row attends to itself only: its scores with other rows are hundreds smaller."""
    h = np.random.default_rng(3).normal(size=(3, length, 33)).astype(np.float32) * 16
    x = Tensor(h, device=device)
    loss = x.scaled_dot_product_attention(x, x, is_causal=True).square().mean()
    got = loss.gradient(x)[0].numpy()
    np.testing.assert_allclose(got, 2 * h / h.size, rtol=2e-6, atol=1e-7)


SUMMED: dict[str, Callable[[Tensor], Tensor]] = {
    "expand": lambda x: x.expand(3000, 4),
    "index": lambda x: x[[0] * 3000],
    "gather": lambda x: x.gather(0, Tensor.zeros(3000, 4, dtype="int32", device=x.device)),
    "embedding": lambda x: Tensor.zeros(3000, dtype="int32", device=x.device).embedding(x),
    "cummax": lambda x: x.cat(x.zeros_like().expand(2999, 4)).cummax(0)[0],
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", SUMMED)
def test_gradients_of_many_halves_are_summed_in_float32(device: str, name: str, dtype: str) -> None:
    """One after the other, ones would stop at 256 in bfloat16, and at 2,048 in float16."""
    x = Tensor.ones(1, 4, dtype=dtype, device=device).realize()
    (found,) = SUMMED[name](x).gradient(x, gradient=Tensor.ones(3000, 4, device=device))
    assert found.dtype is x.dtype
    assert found.tolist() == [[3000 if dtype == "float16" else 3008] * 4]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_random_gradients_of_halves_are_rounded_once(device: str, dtype: str) -> None:
    """Along columns, that one thread of a CPU adds row by row."""
    given = Tensor(np.random.default_rng(1).random((64, 300)), device=device).cast(dtype)
    x = Tensor.ones(1, 300, dtype=dtype, device=device).realize()
    (found,) = x.expand(64, 300).gradient(x, gradient=given)
    assert found.tolist() == given.float().sum(0, keepdim=True).cast(dtype).tolist()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("step", [1, 2])
def test_gradients_of_windows_of_halves_are_rounded_once(
    device: str, step: int, dtype: str
) -> None:
    """Sums of multiples of 1/1024 are exact in float32, in any order."""
    x = Tensor.ones(400, dtype=dtype, device=device).realize()
    count = (400 - 300) // step + 1
    parts = np.random.default_rng(2).integers(1, 1025, (count, 300)) / 1024
    given = Tensor(parts, device=device).cast(dtype).realize()
    (found,) = x.unfold(0, 300, step).gradient(x, gradient=given)
    sums = np.zeros(400)
    for row, window in enumerate(given.float().numpy()):
        sums[row * step : row * step + 300] += window
    assert found.tolist() == Tensor(sums, device=device).cast(dtype).tolist()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_gradients_of_all_steps_of_halves_are_rounded_once(device: str, dtype: str) -> None:
    """The gradient of what each step of a scan reads is a sum over the steps."""
    parts = np.random.default_rng(3).integers(1, 1025, (1200, 250)) / 1024
    given = Tensor(parts, device=device).cast(dtype).realize()
    zeros, x = (Tensor.full((250,), one, dtype=dtype, device=device).realize() for one in (0, 1))
    _, states = Tensor.scan(lambda state, _: (x + state * 0, state), zeros, given)
    (found,) = states.gradient(x, gradient=given)
    assert found.tolist() == given[1:].float().sum(0).cast(dtype).tolist()


LARGEST: dict[str, Callable[[Tensor], Tensor]] = {
    "of a column": lambda x: x.amax(1),
    "of windows": lambda x: x.unfold(1, 4, 2).amax(-1),
    "of pools": lambda x: x.max_pool2d((4, 1), (2, 1)),
}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", LARGEST)
def test_the_largest_of_computed_values_gets_the_gradient(
    device: str, name: str, dtype: str
) -> None:
    """Rounded in two ways, as it was computed twice, no value would be the largest."""
    random = np.random.default_rng(0)
    values, row = (random.normal(size=(4, n, 33)).astype(np.float32) for n in (127, 1))
    x, y = (Tensor(a, device=device).cast(dtype) for a in (values, row))
    found = LARGEST[name](x + y * 0.1)
    (gradient,) = found.float().sum().gradient(x)
    assert gradient.float().numpy().sum() == found.numel()
