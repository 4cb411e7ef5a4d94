"""Ambiguous arguments: each has its documented meaning, or raises."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from minigrad import Tensor, dtypes, nn
from minigrad.errors import DTypeError, RangeError, ShapeError

BIG = 2**40
A, B = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((2, 3), np.float32)

JOINS: dict[str, tuple[Callable[[Any, Any], Any], Any]] = {
    "cat((a, b), 1)": (lambda a, b: Tensor.cat((a, b), 1), np.concatenate([A, B], 1)),
    "cat([a, b], dim=1)": (lambda a, b: Tensor.cat([a, b], dim=1), np.concatenate([A, B], 1)),
    "cat([a, b], axis=-1)": (lambda a, b: Tensor.cat([a, b], axis=-1), np.concatenate([A, B], 1)),
    "cat([a, b])": (lambda a, b: Tensor.cat([a, b]), np.concatenate([A, B])),
    "a.cat(b, 1)": (lambda a, b: a.cat(b, 1), np.concatenate([A, B], 1)),
    "a.cat([b], 1)": (lambda a, b: a.cat([b], 1), np.concatenate([A, B], 1)),
    "cat((a, b, a), 1)": (lambda a, b: Tensor.cat((a, b, a), 1), np.concatenate([A, B, A], 1)),
    "stack((a, b), 1)": (lambda a, b: Tensor.stack((a, b), 1), np.stack([A, B], 1)),
    "stack([a, b], axis=2)": (lambda a, b: Tensor.stack([a, b], axis=2), np.stack([A, B], 2)),
    "stack([a, b], dim=-1)": (lambda a, b: Tensor.stack([a, b], dim=-1), np.stack([A, B], -1)),
    "a.stack(b, 1)": (lambda a, b: a.stack(b, 1), np.stack([A, B], 1)),
    "a.stack(b, b)": (lambda a, b: a.stack(b, b), np.stack([A, B, B])),
}


@pytest.mark.parametrize("name", JOINS)
def test_joins_take_the_dimension(name: str, device: str) -> None:
    """By position as in PyTorch and numpy, or as dim= or axis=."""
    join, wanted = JOINS[name]
    got = join(Tensor(A, device=device), Tensor(B, device=device)).numpy()
    assert np.array_equal(got, wanted), (got, wanted)


def _tensor(values: Any, dtype: str = "int32") -> Tensor:
    return Tensor(values, dtype=dtype)


WIDE: dict[str, tuple[Callable[[], Tensor], str, Any]] = {
    "full": (lambda: Tensor.full((2,), BIG), "int64", [BIG, BIG]),
    "full of uint64": (lambda: Tensor.full((1,), 2**64 - 1), "uint64", [2**64 - 1]),
    "arange": (lambda: Tensor.arange(BIG, BIG + 3), "int64", [BIG, BIG + 1, BIG + 2]),
    "arange down": (lambda: Tensor.arange(0, -2 * BIG, -BIG), "int64", [0, -BIG]),
    "arange to the edge": (lambda: Tensor.arange(2**31 - 2, 2**31), "int32",
                           [2**31 - 2, 2**31 - 1]),
    "where": (lambda: _tensor([True, False], "bool").where(BIG, 0), "int64", [BIG, 0]),
    "where with bool": (lambda: _tensor([True, False], "bool").where(
        BIG, _tensor([True, True], "bool")), "int64", [BIG, 1]),
    "randint": (lambda: Tensor.randint(2, low=BIG, high=BIG + 1), "int64", [BIG, BIG]),
    "bool + int": (lambda: _tensor([True], "bool") + BIG, "int64", [BIG + 1]),
    "arange by halves": (lambda: Tensor.arange(0.5, 3, 0.75, dtype="int32"), "int32", [0, 1, 2, 2]),
    "uint8 arange down": (lambda: Tensor.arange(2, -1, -1, dtype="uint8"), "uint8", [2, 1, 0]),
    "/": (lambda: _tensor([BIG], "int64") / BIG, "float32", [1.0]),
    "/ of int32": (lambda: BIG / _tensor([2]), "float32", [BIG / 2]),
    "clip beyond": (lambda: _tensor([7], "uint8").clip(-1, 300), "uint8", [7]),
    "linspace of ints": (lambda: Tensor.linspace(0, 2**31 - 1, 2, dtype="int32"), "int32",
                         [0, 2**31 - 1]),
}  # fmt: skip


@pytest.mark.parametrize("name", WIDE)
def test_ints_beyond_int32(name: str, on_device: str) -> None:
    """Without a given dtype, Python ints get one that holds them."""
    make, dtype, wanted = WIDE[name]
    made = make()
    assert (made.dtype.name, made.tolist()) == (dtype, wanted)


X, U8, FLAG = Tensor([1, 2]), Tensor([1, 2], dtype="uint8"), Tensor([True, False])
BEYOND: dict[str, tuple[Callable[[], Any], str]] = {
    "full": (lambda: Tensor.full((2,), BIG, dtype="int32"), "full"),
    "full_like": (lambda: X.full_like(BIG), "int32"),
    "full_like of uint8": (lambda: U8.full_like(-1), "uint8"),
    "arange": (lambda: Tensor.arange(300, dtype="uint8"), "arange"),
    "arange below": (lambda: Tensor.arange(-1, 2, dtype="uint8"), "arange"),
    "linspace": (lambda: Tensor.linspace(0, 300, 3, dtype="uint8"), "linspace"),
    "randint": (lambda: Tensor.randint(2, low=0, high=300, dtype="uint8"), "randint"),
    "where": (lambda: FLAG.where(BIG, X), "where"),
    "masked_fill": (lambda: X.masked_fill(FLAG, BIG), "masked_fill"),
    "pad": (lambda: X.pad((1, 1), value=BIG), "pad"),
    "Tensor": (lambda: Tensor([1, BIG], dtype="int32"), r"Tensor.*1099511627776.*int32"),
    "Tensor of a number": (lambda: Tensor(-1, dtype="uint8"), "uint8"),
    "set_data": (lambda: Tensor([1]).set_data([BIG]), "int32"),
    "assign": (lambda: Tensor([1, 2]).assign(BIG), "assign"),
    "assign of one": (lambda: Tensor([1]).assign(BIG), "assign"),
    "assign of a list": (lambda: Tensor([1, 2]).assign([1, BIG]), "int32"),
    "x[0] = number": (lambda: Tensor([1, 2]).__setitem__(0, BIG), "int32"),
    "x[:] = list": (lambda: Tensor([1, 2]).__setitem__(slice(None), [BIG, 1]), "int32"),
    "x[[0, 1]] = number": (lambda: Tensor([1, 2]).__setitem__([0, 1], BIG), "int32"),
    "x[[0, 1]] = list": (lambda: Tensor([1, 2]).__setitem__([0, 1], [BIG, 1]), "int32"),
    "x[mask] = number": (lambda: Tensor([1, 2]).__setitem__(FLAG, BIG), "int32"),
    "scatter": (lambda: X.scatter(0, X - 1, BIG), "int32"),
    "+=": (lambda: Tensor([1, 2]).__iadd__(BIG), "int32"),
    "+": (lambda: X + BIG, "add"),
    "reflected -": (lambda: BIG - X, "sub"),
    "uint8 + negative": (lambda: U8 + -1, "uint8"),
    "maximum": (lambda: X.maximum(BIG), "maximum"),
    "clip": (lambda: X.clip(min=BIG), "clip"),
    "clip below": (lambda: U8.clip(max=-1), "clip"),
    "**": (lambda: X**BIG, "pow"),
    "bool beyond 64 bits": (lambda: FLAG + 2**70, "64 bits"),
}


@pytest.mark.parametrize("name", BEYOND)
def test_ints_that_do_not_fit_raise(name: str) -> None:
    """The given dtype, or that of the tensor, does not hold the number."""
    call, words = BEYOND[name]
    with pytest.raises(RangeError, match=words) as caught:
        call()
    assert isinstance(caught.value, OverflowError)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32", "int64", "uint64", "bool"])
@pytest.mark.parametrize("value", [-(2**70), -(2**63) - 1, -1, 2, 300, BIG, 2**63, 2**64, 2**70])
def test_comparisons_are_of_numbers(dtype: str, value: int, on_device: str) -> None:
    """With a Python int of any size, the comparison is exact whether the dtype holds it or not."""
    info = np.iinfo(dtype) if dtype != "bool" else None
    values = [0, 1] if info is None else [info.min, 0, 1, info.max]
    x = Tensor(np.array(values, dtype))
    pairs = {
        "eq": (x == value, [v == value for v in values]),
        "ne": (x != value, [v != value for v in values]),
        "lt": (x < value, [v < value for v in values]),
        "le": (x <= value, [v <= value for v in values]),
        "gt": (x > value, [v > value for v in values]),
        "ge": (x >= value, [v >= value for v in values]),
        "reflected lt": (value < x, [value < v for v in values]),
    }
    for name, (got, wanted) in pairs.items():
        assert got.tolist() == wanted, name


def test_a_mask_is_bool() -> None:
    """x.where(mask, y) is PyTorch's order: a condition must be bool."""
    x = Tensor([0.5, 0.0])
    for call in (
        lambda: x.where(1, 0), lambda: X.where(1, 0), lambda: x.masked_fill(x, 1),
        lambda: x.masked_select(x),
    ):  # fmt: skip
        with pytest.raises(DTypeError, match="bool"):
            call()


def test_flags_are_no_axes() -> None:
    """PyTorch's x.std(True) and numpy's x.sum(0, float) must not be read as axis or keepdim."""
    x = Tensor.zeros(3, 4)
    for call in (
        lambda: x.std(True), lambda: x.var(False), lambda: x.sum(True), lambda: x.softmax(True),
        lambda: x.std(0, True), lambda: x.var(0, False), lambda: x.squeeze(True),
        lambda: x.sum(0, 1), lambda: x.max(0, 1), lambda: x.mean(0, dtypes.float32),
        lambda: x.logsumexp(0, 1), lambda: x.argmax(0, 1), lambda: x.any(0, 1),
        lambda: x.var(0, correction=True), lambda: x.flip(), lambda: x.sort(0, 1),
    ):  # fmt: skip
        with pytest.raises(TypeError):
            call()


@pytest.mark.parametrize("kind", ["bool", "int8", "int16", "int32", "int64"])
def test_sums_of_signed_are_int64(kind: str, on_device: str) -> None:
    """As in PyTorch and numpy: nothing wraps below 2⁶³."""
    x = Tensor([1, 1], dtype=kind)
    for result in (x.sum(), x.prod(), x.cumsum(0), x.cumprod(0), x.sum(0, keepdim=True)):
        assert result.dtype is dtypes.int64
    assert Tensor([2_000_000_000] * 2).sum().item() == 4_000_000_000
    assert Tensor([2_000_000_000] * 2).cumsum().tolist() == [2_000_000_000, 4_000_000_000]
    assert Tensor([2_000_000_000] * 2).prod().item() == 4 * 10**18
    assert x.mean().dtype is dtypes.float32


@pytest.mark.parametrize("kind", ["uint8", "uint16", "uint32", "uint64"])
def test_sums_of_unsigned_are_uint64(kind: str, on_device: str) -> None:
    """As in numpy."""
    x = Tensor([1, 1], dtype=kind)
    for result in (x.sum(), x.prod(), x.cumsum(0), x.cumprod(0)):
        assert result.dtype is dtypes.uint64
    assert Tensor([2**32 - 1] * 2, dtype="uint32").sum().item() == 2**33 - 2


def test_dtypes_of_sums() -> None:
    """By name or as an object; unknown names raise."""
    x = Tensor([1, 2])
    assert x.sum(dtype="int8").dtype is dtypes.int8
    assert Tensor([100, 100]).sum(dtype="int8").item() == 200 - 256  # a float would saturate
    assert x.cumsum(dtype="float32").dtype is dtypes.float32
    assert x.softmax(dtype="float64").dtype is dtypes.float64
    for call in (lambda: x.sum(dtype=""), lambda: x.prod(dtype=""), lambda: x.cumsum(dtype=""),
                 lambda: x.softmax(dtype=""), lambda: x.log_softmax(dtype=""),
                 lambda: Tensor.zeros(2, dtype="")):  # fmt: skip
        with pytest.raises(KeyError, match="unknown dtype ''"):
            call()


def test_the_axis_of_classes() -> None:
    """Where logits fit both (batch, classes, …) and (…, classes), the user must choose."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    generator = np.random.default_rng(4)
    logits = generator.normal(size=(2, 3, 3, 3)).astype(np.float32)
    labels = generator.integers(0, 3, (2, 3, 3))
    shares = generator.dirichlet(np.ones(3), (2, 3, 3)).astype(np.float32)
    x, t, p = Tensor(logits), Tensor(labels), Tensor(shares)
    judge = torch.nn.functional
    ours = x.cross_entropy(t, axis=1), x.cross_entropy(t, axis=-1)
    theirs = judge.cross_entropy(torch.tensor(logits), torch.tensor(labels)), judge.cross_entropy(
        torch.tensor(logits).movedim(-1, 1), torch.tensor(labels)
    )
    np.testing.assert_allclose([o.item() for o in ours], [t.item() for t in theirs], rtol=1e-5)
    soft = judge.cross_entropy(torch.tensor(logits), torch.tensor(shares).movedim(-1, 1),
                               label_smoothing=0.1)  # fmt: skip
    got = x.cross_entropy(p.permute(0, 3, 1, 2), axis=1, label_smoothing=0.1)
    np.testing.assert_allclose(got.item(), soft.item(), rtol=1e-5)
    known = x.log_softmax(1).nll_loss(t, axis=1)
    np.testing.assert_allclose(known.item(), theirs[0].item(), rtol=1e-5)
    for call in (lambda: x.cross_entropy(t), lambda: x.cross_entropy(p), lambda: x.nll_loss(t)):
        with pytest.raises(ShapeError, match=r"axis=1.*axis=-1"):
            call()
    assert Tensor(logits[:, :, 0]).cross_entropy(Tensor(labels[0, :2]), axis=1).shape == ()


def test_losses_do_not_broadcast() -> None:
    """(4, 1) and (4,) would give a mean of 16 differences."""
    x, y = Tensor.full((4, 1), 0.5), Tensor.full((4,), 0.5)
    for call in (lambda: x.mse_loss(y), lambda: x.binary_crossentropy(y),
                 lambda: x.binary_crossentropy_logits(y), lambda: y.mse_loss(x)):  # fmt: skip
        with pytest.raises(ShapeError, match=r"\(4, 1\).*\(4,\)|\(4,\).*\(4, 1\)"):
            call()
    assert x.binary_crossentropy_logits(x, pos_weight=Tensor([2.0])).shape == ()


P = Tensor([1.0], requires_grad=True)
OPT = nn.optim
WRONG: dict[str, Callable[[], Any]] = {
    "SGD lr": lambda: OPT.SGD([P], lr=-0.1),
    "SGD lr NaN": lambda: OPT.SGD([P], lr=float("nan")),
    "SGD momentum": lambda: OPT.SGD([P], momentum=-0.1),
    "SGD dampening": lambda: OPT.SGD([P], 0.1, 0.9, 0.5),
    "Adam betas at b1's place": lambda: OPT.Adam([P], 0.1, (0.9, 0.99)),
    "SGD weight_decay": lambda: OPT.SGD([P], weight_decay=-1),
    "Adam lr": lambda: OPT.Adam([P], lr=-1e-3),
    "Adam betas": lambda: OPT.Adam([P], betas=(0.9, 1.0)),
    "Adam b1": lambda: OPT.Adam([P], b1=-0.1),
    "Adam eps": lambda: OPT.Adam([P], eps=-1e-8),
    "AdamW weight_decay": lambda: OPT.AdamW([P], weight_decay=-0.1),
    "LAMB lr": lambda: OPT.LAMB([P], lr=-1),
    "LAMB eps": lambda: OPT.LAMB([P], eps=-1),
    "RMSprop alpha": lambda: OPT.RMSprop([Tensor.ones(2)], alpha=1.0),
    "RMSprop momentum": lambda: OPT.RMSprop([Tensor.ones(2)], momentum=-1),
    "Muon lr": lambda: OPT.Muon([Tensor.ones(2, 2)], lr=-1),
    "Muon momentum": lambda: OPT.Muon([Tensor.ones(2, 2)], momentum=1.5),
    "Muon weight_decay": lambda: OPT.Muon([Tensor.ones(2, 2)], weight_decay=-1),
    "set_lr": lambda: OPT.SGD([P]).set_lr(-1),
    "clip_grad_norm": lambda: OPT.clip_grad_norm([P], -1.0),
    "uniform": lambda: Tensor.uniform(3, low=2, high=1),
    "uniform NaN": lambda: Tensor.uniform(3, low=float("nan"), high=1),
    "normal": lambda: Tensor.normal(3, std=-1),
    "dropout": lambda: P.dropout(1.5),
    "dropout layer": lambda: nn.Dropout(-0.1),
    "attention dropout": lambda: Tensor.zeros(2, 3).scaled_dot_product_attention(
        Tensor.zeros(2, 3), Tensor.zeros(2, 3), dropout_p=2),
    "Conv2d padding": lambda: nn.Conv2d(1, 1, 3, padding="sam"),
    "Conv1d padding": lambda: nn.Conv1d(1, 1, 3, padding="full"),
    "Conv2d same with stride": lambda: nn.Conv2d(1, 1, 3, padding="same", stride=2),
    "Conv2d padding < 0": lambda: nn.Conv2d(1, 1, 3, padding=-1),
    "Conv2d padding mode": lambda: nn.Conv2d(1, 1, 3, padding_mode="constant"),
    "ConvTranspose2d padding": lambda: nn.ConvTranspose2d(1, 1, 3, padding=-1),
    "Conv2d stride": lambda: nn.Conv2d(1, 1, 3, stride=0),
    "label_smoothing": lambda: Tensor.zeros(2, 3).cross_entropy(
        Tensor.zeros(2, 3), label_smoothing=2),
    "Conv2d dilation": lambda: nn.Conv2d(1, 1, 3, dilation=0),
    "ConvTranspose2d output_padding": lambda: nn.ConvTranspose2d(1, 1, 3, output_padding=2),
    "negative power": lambda: X**-1,
    "power modulo": lambda: pow(X, 2, 5),
    "negative power of bool": lambda: FLAG**-1,
    "extent": lambda: Tensor.zeros(True),
    "unflatten": lambda: Tensor.zeros(6).unflatten(0, (-1, -1)),
    "linspace": lambda: Tensor.linspace(0, 1, 3, dtype="bool"),
    "arange": lambda: Tensor.arange(2, dtype="bool"),
    "circular beyond": lambda: Tensor.zeros(1, 6).pad((-4, 3), mode="circular"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_numbers_raise_at_once(name: str) -> None:
    """When the object is created, not in a later training step."""
    with pytest.raises((ValueError, TypeError)) as caught:
        WRONG[name]()
    assert re.search("expected|positional arguments", str(caught.value))


def test_dtypes_of_other_libraries() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    for given in (np.float64, np.dtype("float64"), torch.float64, torch.double):
        x = Tensor([1.5], dtype=given)
        assert x.dtype is Tensor([1.0]).to(given).dtype is dtypes.float64
    with pytest.raises(DTypeError, match=r"expected a dtype, as minigrad\.dtypes"):
        Tensor([1.0]).to(float)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="device: expected a name such as"):
        Tensor([1.0]).to(3)  # type: ignore[arg-type]
