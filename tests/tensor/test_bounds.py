"""Indices out of range raise in every operation, on every device, captured or not.

The error names the operation, the index and the source line; results of a failed program are lost.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from devices import CPU, OPENCL, REFERENCE, opened

from minigrad import Context, Tensor, Variable, jit, nn
from minigrad.array_api import asarray, take, take_along_axis
from minigrad.device import Device
from minigrad.errors import BoundsError, LostValueError
from minigrad.graph import build
from minigrad.graph.bounds import Check, any_outside
from minigrad.graph.node import topological
from minigrad.graph.shapes import numel

ROWS = 5


@pytest.fixture(autouse=True, params=[REFERENCE, CPU, OPENCL])
def on_each(request: pytest.FixtureRequest) -> Iterator[None]:
    with Context(DEVICE=opened(request.param)):
        yield


def _table() -> Tensor:
    return Tensor([[float(row), row + 0.5] for row in range(ROWS)]).realize()


def _put(x: Tensor, i: Tensor) -> Tensor:
    target = (x + 0).contiguous()
    target[i] = 7.0
    return target


def _rows(i: Tensor) -> Tensor:
    return i.unsqueeze(1).expand(i.shape[0], 2)


def _embedding(x: Tensor, i: Tensor) -> Tensor:
    layer = nn.Embedding(ROWS, 2)
    del layer.weight  # a parameter, which only another one replaces
    layer.weight = x
    return layer(i)


# name: (the operation on a table of 5 rows with 3 indices, whether negative indices count from the
# end, the result of an index out of range when nothing checks it)
METHODS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], bool, Any]] = {
    "x[…]": (lambda x, i: x[i], True, [0, 0]),
    "x[…] ": (lambda x, i: x[i, i.maximum(0).minimum(1)], True, 0),
    "x[…] = v": (_put, True, None),
    "take": (lambda x, i: x[:, 0].take(i), True, 0),
    "take ": (lambda x, i: take(asarray(x), asarray(i), axis=0)._tensor, True, [0, 0]),
    "take_along_axis": (
        lambda x, i: take_along_axis(asarray(x), asarray(_rows(i)), axis=0)._tensor, True, [0, 0]
    ),
    "gather": (lambda x, i: x.gather(0, _rows(i)), False, [0, 0]),
    "scatter": (lambda x, i: x.scatter(0, _rows(i), 7.0), False, None),
    "scatter ": (lambda x, i: x.scatter(0, _rows(i), x[:3], reduce="multiply"), False, None),
    "scatter_add": (lambda x, i: x.scatter_add(0, _rows(i), x[:3]), False, None),
    "scatter_reduce": (lambda x, i: x.scatter_reduce(0, _rows(i), x[:3], "amax"), False, None),
    "embedding": (lambda x, i: i.embedding(x), False, [0, 0]),
    "Embedding": (_embedding, False, [0, 0]),
    "one_hot": (lambda x, i: i.one_hot(ROWS) * x.sum(), False, [0] * 5),
    "cross_entropy": (lambda x, i: x.T.cat(x.T[:1]).cross_entropy(i), False, None),
    "nll_loss": (lambda x, i: x.T.cat(x.T[:1]).log_softmax(-1).nll_loss(i), False, None),
}  # fmt: skip
BEYOND = (ROWS, -ROWS - 1, 2**31 - 1, -(2**31))


def _wrong(bad: int) -> Tensor:
    return Tensor([1, bad, 0]).realize()


def _expected(name: str, bad: int) -> str:
    number = f"index {bad} at position (1,) "
    if name in ("gather", "scatter", "scatter ", "scatter_add", "scatter_reduce",
                "take_along_axis"):  # fmt: skip
        number = f"index {bad} at position (1, 0) "
    return re.escape(f"{name.strip()}: {number}is out of range for 5 ") + r".*test_bounds\.py:\d+"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_raises(name: str) -> None:
    """Indices just outside both ends and far outside raise; indices in range do not."""
    method, wraps, _ = METHODS[name]
    for bad in (*BEYOND, *(() if wraps else (-1, -ROWS))):
        with pytest.raises(BoundsError, match=_expected(name, bad)):
            method(_table(), _wrong(bad)).tolist()
    for good in (0, ROWS - 1, *((-1, -ROWS) if wraps else ())):
        method(_table(), _wrong(good)).tolist()


@pytest.mark.parametrize("name", METHODS)
def test_a_replay_raises(name: str) -> None:
    """At the call or when its result is read; the next replay, in range again, does not raise."""
    step = jit(lambda x, i: METHODS[name][0](x, i).realize())
    x, good, bad = _table(), _wrong(2), _wrong(ROWS)
    wanted = [step(x, good).tolist() for _ in range(3)]
    assert wanted[0] == wanted[1] == wanted[2]
    with pytest.raises(BoundsError, match=_expected(name, ROWS)):
        step(x, bad).tolist()
    assert step(x, good).tolist() == wanted[0]


def test_a_repeated_index_is_looked_at_once() -> None:
    """The number of elements checked is the number of given indices, not of elements read."""
    index = build.expand(build.reshape(build.iota(3, Device.DEFAULT), (3, 1)), (3, 40))
    looked_at = topological([any_outside([(index, Check(3))])])
    assert max(numel(node.shape) for node in looked_at) == 3
    nothing = Tensor([9]).reshape(1, 1).expand(1, 0)
    assert Tensor.rand(3, 2).gather(0, nothing).shape == (1, 0)


@pytest.mark.parametrize("name", METHODS)
def test_a_gradient_raises(name: str) -> None:
    """The backward pass uses the forward pass's indices."""
    if name == "one_hot":
        return  # no gradient flows
    x = _table().requires_grad_()
    METHODS[name][0](x, _wrong(ROWS)).square().sum().backward()
    assert x.grad is not None
    with pytest.raises(BoundsError, match=_expected(name, ROWS)):
        x.grad.tolist()


@pytest.mark.parametrize("name", METHODS)
def test_the_silent_form(name: str) -> None:
    """BOUNDS=0: an index out of range reads 0 and writes nothing."""
    method, wraps, value = METHODS[name]
    with Context(BOUNDS=0):
        for bad in (*BEYOND, *(() if wraps else (-1,))):
            got = method(_table(), _wrong(bad)).tolist()
            if value is not None:
                assert got[1] == value
            elif "scatter" in name or name == "x[…] = v":
                assert got[2:] == _table()[2:].tolist()


def test_ignored_labels() -> None:
    logits = _table().T
    for loss in (Tensor.cross_entropy, Tensor.nll_loss):
        one = loss(logits, Tensor([4, 9]), ignore_index=9).item()
        assert one == pytest.approx(loss(logits[:1], Tensor([4])).item())
        assert one == pytest.approx(loss(logits, Tensor([4, -100])).item())
        with pytest.raises(BoundsError, match=r"-1 at.* 5 classes.*or 9, which is ignored"):
            loss(logits, Tensor([4, -1]), ignore_index=9).item()


def test_indices_of_every_dtype() -> None:
    x = Tensor.arange(200).float().realize()
    for dtype in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"):
        assert x[Tensor([3, 7], dtype=dtype).realize()].tolist() == [3, 7]
    for dtype, bad in (("int64", 2**40), ("uint64", 2**64 - 1), ("uint32", 2**32 - 1),
                       ("uint8", 255), ("int16", 200)):  # fmt: skip
        index = Tensor([3, bad], dtype=dtype).realize()
        for read in (x.gather(0, index), x[index]):
            with pytest.raises(BoundsError, match=f"index {bad} at position"):
                read.tolist()
    more = Tensor.arange(300).float().realize()  # more classes than uint8 can hold
    assert more[Tensor([3, 255], dtype="uint8").realize()].tolist() == [3, 255]


def test_the_first_of_several() -> None:
    """The first bad element of one index, and of an index computed from another."""
    x, i = _table(), Tensor([[0, 1], [9, 8]]).realize()
    with pytest.raises(BoundsError, match=r"index 9 at position \(1, 0\)"):
        x[i].tolist()
    places = Tensor([0, 3, 17, 0]).realize()
    with pytest.raises(BoundsError, match=r"x\[…\]: index 17 at position \(1,\) .* 5 elements"):
        x[places[Tensor([1, 2]).realize()]].tolist()
    with pytest.raises(BoundsError, match=r"x\[…\]: index 6 at position \(1,\) .* 4 elements"):
        x[places[Tensor([1, 6]).realize()]].tolist()


def test_no_indices_and_no_elements() -> None:
    none = Tensor([], dtype="int32").realize()
    assert _table()[none].shape == (0, 2) and _table()[none].tolist() == []
    for empty in (Tensor.zeros(0, 2).realize(), Tensor.zeros(0, 2).realize().cumsum(0)):
        with pytest.raises(BoundsError, match="expected no index"):
            empty[Tensor([0]).realize()].tolist()


def test_a_mask_takes_no_more_than_there_is() -> None:
    x, none = _table(), Tensor([]).realize()
    assert x.masked_scatter(x < 0, none).tolist() == x.tolist()
    with pytest.raises(BoundsError, match=r"masked_scatter: index 0 at .* expected no index"):
        x.masked_scatter(x > 4, none).tolist()
    with pytest.raises(BoundsError, match=r"masked_scatter: index 1 at .* 1 elements"):
        x.masked_scatter(x > 3, Tensor([7.0]).realize()).tolist()


def test_known_constants_raise_at_once() -> None:
    with pytest.raises(BoundsError, match="index 5"):
        _table().gather(0, Tensor.full((1, 2), ROWS))
    with pytest.raises(BoundsError, match="dimension 0"):
        Tensor.zeros(2, 3)[[0, 2]]


def test_a_symbolic_axis() -> None:
    """The bound value is the limit, in one program for all values."""
    x, index = _table()[:, 0].contiguous().realize(), Tensor([0, 2]).realize()
    length = Variable("length", 1, ROWS)
    assert x.shrink(((0, length.bind(3)),)).gather(0, index).tolist() == [0, 2]
    with pytest.raises(BoundsError, match=r"index 2 at position \(1,\) .* 2 elements"):
        x.shrink(((0, length.bind(2)),)).gather(0, index).tolist()


# ---- after a program has failed ------------------------------------------------------------------


def test_results_of_a_failed_program_are_lost() -> None:
    x = _table()
    result, beside = x[_wrong(9)], x + 1
    with pytest.raises(BoundsError):
        result.realize(beside).tolist()
    for _ in range(2):
        with pytest.raises(LostValueError, match="index 9 at position"):
            (result + 1).tolist()
    assert beside.tolist() == [[row + 1, row + 1.5] for row in range(ROWS)]


def test_a_target_is_read_again_when_it_is_assigned_anew() -> None:
    x, other = _table(), Tensor([1.0]).realize()
    x[_wrong(9)] = 3.0
    other += 1  # pending, too
    with pytest.raises(BoundsError):
        x.realize(other).tolist()
    lazy = x + 1
    with pytest.raises(LostValueError, match=r"x\[…\] = v: index 9"):
        x.tolist()
    x[0] = 1.0  # reads the other elements
    with pytest.raises(LostValueError):
        x.tolist()
    assert other.tolist() == [2.0]
    x.assign(Tensor.ones(ROWS, 2))
    assert x.tolist() == [[1.0, 1.0]] * ROWS
    with pytest.raises(LostValueError):
        lazy.tolist()
    assert (x + 1).tolist() == [[2.0, 2.0]] * ROWS


def test_data_of_the_host_is_a_new_value() -> None:
    x = _table()
    x[_wrong(9)] = 3.0
    with pytest.raises(BoundsError):
        x.tolist()
    lazy = x + 1
    x.set_data([[4.0, 4.0]] * ROWS)
    assert x.tolist() == [[4.0, 4.0]] * ROWS
    with pytest.raises(LostValueError):
        lazy.tolist()


def test_an_index_that_the_program_overwrites() -> None:
    """The message leaves out the index, which is gone."""
    x, index = _table(), _wrong(9)
    taken = x[index]
    index.assign(Tensor([1, 2, 3]))
    with pytest.raises(BoundsError, match=r"an index is out of range for 5 .*overwritten"):
        taken.realize(index).tolist()
    assert index.tolist() == [1, 2, 3]


def test_a_training_step() -> None:
    """Parameters that a failed step updated raise when read; after set_data they work again."""
    layer = nn.Embedding(ROWS, 2)
    optimizer = nn.optim.SGD([layer.weight], lr=0.1)

    @jit
    def step(index: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = layer(index).square().sum()
        loss.backward()
        optimizer.step()
        return loss.realize()

    with Tensor.train():
        for _ in range(3):
            step(_wrong(2)).tolist()
        good = layer.weight.tolist()
        with pytest.raises(BoundsError, match=r"Embedding: index 5 at .* 5 rows"):
            step(_wrong(ROWS)).tolist()
        for read in (layer.weight.tolist, lambda: step(_wrong(2)), (layer.weight + 1).tolist):
            with pytest.raises(LostValueError, match="Embedding"):
                read()
        layer.weight.set_data(good)
        assert layer.weight.tolist() == good
        step(_wrong(2)).tolist()


def test_what_a_later_program_of_a_replay_wrote_is_lost(on_device: str) -> None:
    """Also in place; what does not depend on the index keeps its value."""
    table = _table().realize()
    total, steps = Tensor([10.0]).realize(), Tensor([0.0]).realize()

    @jit
    def step(index: Tensor) -> Tensor:
        row = table[index].realize()
        total.add_(row.sum()).realize()
        steps.add_(1).realize()
        return row

    for _ in range(3):
        step(_wrong(2)).tolist()
    with pytest.raises(BoundsError):
        step(_wrong(ROWS)).tolist()
    with pytest.raises(LostValueError, match="index 5"):
        total.tolist()
    assert steps.tolist() == [4]


def test_others_go_on_beside_what_is_lost() -> None:
    """Lost gradients and results do not stop other programs from running."""
    x = _table().requires_grad_()
    loss = x[_wrong(9)].sum()
    loss.backward()
    with pytest.raises(BoundsError):
        loss.item()
    later = loss * 2
    assert x.grad is not None and later is not None
    step = jit(lambda y: (y * 2).realize())
    for _ in range(4):
        assert step(Tensor([1.0]).realize()).tolist() == [2.0]
    with Tensor.no_grad():
        x += 1
    assert x.tolist() == [[row + 1, row + 1.5] for row in range(ROWS)]
    with pytest.raises((LostValueError, BoundsError)):
        x.grad.tolist()


def test_random_numbers_go_on() -> None:
    x = _table().dropout(0.5) if Tensor.training else _table() + Tensor.rand(ROWS, 2)
    with pytest.raises(BoundsError):
        x[_wrong(9)].tolist()
    assert len(set(Tensor.rand(8).tolist())) == 8


def test_what_is_computed_from_a_failed_result() -> None:
    """An asynchronous device reports it later; then results computed from it are lost as well."""
    result = _table()[_wrong(9)]
    total = Tensor([0.0]).realize()
    with pytest.raises((BoundsError, LostValueError)):
        result.realize()
        total.assign(result.sum().reshape(1)).realize()
        Tensor([1.0]).tolist()
        total.tolist()
    with pytest.raises(LostValueError):
        result.tolist()
    with pytest.raises(LostValueError):
        (result.sum() + total).tolist()


def test_what_a_replay_computes_from_a_failed_result() -> None:
    step = jit(lambda x: x * 2 + 1)
    for _ in range(3):
        step(_table()[_wrong(1)].realize())
    made = []
    with pytest.raises((BoundsError, LostValueError)):
        made.append(step(_table()[_wrong(9)].realize()))
        Tensor([1.0]).tolist()
        made[0].tolist()
    for one in made:
        with pytest.raises(LostValueError):
            one.tolist()
    assert step(Tensor([[1.0, 2.0]] * 3)).tolist() == [[3, 5]] * 3


def test_a_join_of_many_with_a_failed_result() -> None:
    ones = [Tensor([1.0]).realize() for _ in range(600)]  # more than one program can take
    made = []
    with pytest.raises((BoundsError, LostValueError)):
        made.append(Tensor.cat(*ones, _table()[_wrong(9)].reshape(-1).realize()).realize())
        Tensor([1.0]).tolist()
        made[0].tolist()
    for one in made:
        with pytest.raises(LostValueError):
            one.tolist()
