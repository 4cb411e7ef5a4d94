"""Losses and layers at kinks, overflows and NaN: equal to PyTorch's."""

from __future__ import annotations

import numpy as np
import pytest

from minigrad import Tensor, nn

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
F = nn.functional


def close(found, wanted):
    np.testing.assert_allclose(found.numpy(), wanted.detach().numpy(), rtol=2e-4, atol=2e-5)


BENT = {  # at operands whose difference is 0, a margin or a threshold
    "margin_ranking_loss": {"margin": 0.5}, "triplet_margin_loss": {"margin": 0.5, "p": 1},
    "huber_loss": {"delta": 0.5}, "smooth_l1_loss": {"beta": 2.0},
}  # fmt: skip


def margin_ranking_loss(first, second, target, margin, reduction):
    """PyTorch's before 2.15: since then the slope of its clamp is 0 at a bound, here it is 1."""
    short = margin - target * (first - second)
    losses = torch.where(short < 0, 0.0, short)
    theirs = torch.nn.functional.margin_ranking_loss
    assert torch.equal(losses, theirs(first, second, target, margin, reduction="none"))
    return losses.sum() if reduction == "sum" else losses.mean()


@pytest.mark.parametrize("name", BENT)
def test_losses_where_they_bend(name, on_device):
    """First derivatives, and second derivatives of the losses that are smooth there."""
    first, second = [[0.5, 1.0, 0.0, -0.5]], [[0.5, 0.5, 0.5, -1.0]]
    smooth = name in ("huber_loss", "smooth_l1_loss")
    values = [first, second] if smooth else [first, second, first]
    leaf, *others = (torch.tensor(v, requires_grad=True) for v in values)
    theirs = globals().get(name) or getattr(torch.nn.functional, name)
    wanted = theirs(leaf, *others, **BENT[name], reduction="sum")
    (slope,) = torch.autograd.grad(wanted, leaf, create_graph=True)
    mine, *rest = (Tensor(v, requires_grad=True) for v in values)
    (found,) = getattr(F, name)(mine, *rest, **BENT[name], reduction="sum").gradient(mine)
    close(found, slope)
    if smooth:
        (curve,) = torch.autograd.grad(slope.square().sum(), leaf)
        close(found.square().sum().gradient(mine)[0], curve)


def test_slopes_beyond_all_numbers(on_device):
    """An infinite difference or input gives a finite slope, and does not affect other elements."""
    x = [float("inf"), float("-inf"), 0.25, -3.0]
    found = []
    for library, tensor in ((nn, Tensor), (torch.nn, torch.tensor)):
        functions = library.functional
        leaf, layer = tensor(x, requires_grad=True), library.PReLU()
        zeros = tensor([0.0] * 4)
        (functions.huber_loss(leaf, zeros, reduction="sum", delta=0.5)
         + functions.smooth_l1_loss(leaf, zeros, reduction="sum")).backward()  # fmt: skip
        layer(tensor([[x[0], x[2], x[3]]])).sum().backward()
        found += [leaf.grad, layer.weight.grad]
    for ours, theirs in zip(found[:2], found[2:], strict=True):
        close(ours, theirs)


def test_a_target_that_is_nan_or_negative(on_device):
    """kl_div does not count such a target as 0."""
    target = [0.0, 0.5, float("nan"), -1.0]
    found = F.kl_div(Tensor([-1.0] * 4), Tensor(target), reduction="none")
    wanted = torch.nn.functional.kl_div(torch.tensor([-1.0] * 4), torch.tensor(target),
                                        reduction="none")  # fmt: skip
    close(found, wanted)


@pytest.mark.parametrize("weight", [False, True])
def test_means_of_more_than_float16_counts(weight, on_device):
    """Sums of losses and their number may be above 65,504."""
    x = Tensor([[-4.0, -3.0]], dtype="float16").expand(70_000, 2)
    target, factors = Tensor.zeros(70_000, dtype="int32"), Tensor([1.0, 2.0], dtype="float16")
    given = factors if weight else None
    assert F.nll_loss(x, target, given).item() == 4
    even = np.float16(np.log(1 + np.e))
    for wanted in (target, Tensor([[1.0, 0.0]], dtype="float16").expand(70_000, 2)):
        loss = F.cross_entropy(x, wanted, given)
        assert loss.dtype.name == "float16" and abs(loss.item() - even) < 2e-3


def test_rms_norm_of_small_half_floats(on_device):
    """Without an eps, it is float32's, since both libraries compute in float32."""
    x = np.array([[1e-3, 2e-3]], np.float16)
    wanted = torch.nn.functional.rms_norm(torch.tensor(x), (2,))
    close(F.rms_norm(Tensor(x), 2), wanted)
