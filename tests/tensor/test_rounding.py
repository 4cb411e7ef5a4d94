"""A product minus its own rounded value is 0: x·y − max(x·y) is never above 0.

If the subtraction were fused with the product (one rounding instead of two), it would give the
product's rounding error: 2e-5 for scores of 300, in softmax and in its gradient.
"""

from __future__ import annotations

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
