"""`Tensor.scan` against a Python loop: values, gradients, captures, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from minigrad import GlobalCounters, Tensor, Variable, jit, nn, program
from minigrad.errors import (
    BoundsError,
    DTypeError,
    ScanError,
    ShapeError,
)
from minigrad.graph import build, rewrite
from minigrad.graph.node import Node, Op

COUNT, ROWS, WIDTH = 5, 3, 4
ALIKE = 5e-5  # relative to the largest element

Step = Callable[[Any, Any], tuple[Any, Any]]


def one_by_one(f: Step, carry: Any, xs: Any, reverse: bool = False) -> tuple[Any, Any]:
    """What a scan computes, as a loop; x is a tensor, and y a tensor, a tuple of them, or None."""
    outs = []
    for number in range(COUNT - 1, -1, -1) if reverse else range(COUNT):
        carry, out = f(carry, xs[number])
        outs.append(out)
    if reverse:
        outs.reverse()
    if outs[0] is None:
        return carry, None
    if isinstance(outs[0], Tensor):
        return carry, Tensor.stack(outs)
    return carry, tuple(Tensor.stack(list(part)) for part in zip(*outs, strict=True))


class Weights:
    """Tensors that steps close over: leaves, the same on every device."""

    def __init__(self, device: str) -> None:
        random = np.random.default_rng(0)

        def floats(*shape: int) -> Tensor:
            data = random.standard_normal(shape).astype(np.float32) * 0.5
            return Tensor(data, device=device, requires_grad=True)

        self.xs, self.start = floats(COUNT, ROWS, WIDTH), floats(ROWS, WIDTH)
        self.square, self.wide = floats(WIDTH, WIDTH), floats(4 * WIDTH, WIDTH)
        self.table = floats(7, WIDTH)

    def leaves(self) -> list[Tensor]:
        """All leaves."""
        return [self.xs, self.start, self.square, self.wide, self.table]


def plain(w: Weights) -> Step:
    def step(h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        h = (x @ w.square + h @ w.square.T).tanh()
        return h, h

    return step


def gates(w: Weights) -> Step:
    """Like an LSTM's step; outs differ from the carry, and one does not depend on it."""

    def step(h: Tensor, x: Tensor) -> tuple[Tensor, Any]:
        a, b, c, d = (x.linear(w.wide.T) + h.linear(w.wide.T)).chunk(4, -1)
        new = a.sigmoid() * h + b.sigmoid() * c.tanh()
        return d.sigmoid() * new.tanh(), (new.exp(), x.square().sum(-1), h * x)

    return step


def addressed(w: Weights) -> Step:
    """Rows indexed by the carry and by x, a sort, a running sum, a concatenation, a maximum."""

    def step(h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        # rows of a softmax sum to about 1, so no multiple of that may be near an integer
        by_carry = w.table[(h.abs().sum(-1) * 3.5).int() % 7]
        by_x = w.table[(x.abs().sum(-1) * 3).int() % 7]
        ordered = x.sort(-1)[0] if isinstance(x.sort(-1), tuple) else x.sort(-1)
        joined = Tensor.cat(h, by_carry, by_x, ordered, h.cumsum(-1), dim=-1)
        return joined.reshape(ROWS, 5, WIDTH).mean(1).softmax(-1), joined.max(-1)

    return step


def own_rules(w: Weights) -> Step:
    """Functions with a gradient rule of their own, and a windowed mean."""

    def step(h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        h = (h.softplus() + x.expm1().sinh()).log1p() * w.start
        return h, h.gelu() + w.table[:ROWS].logsigmoid()

    return step


def nothing_kept(w: Weights) -> Step:
    return lambda h, x: (h * w.start + x, None)


def no_history(w: Weights) -> Step:
    """The next carry does not depend on this one."""
    return lambda h, x: (x @ w.square, h)


STEPS = [plain, gates, addressed, own_rules, nothing_kept, no_history]


def close(got: Tensor, wanted: Tensor, what: str) -> None:
    a, b = got.numpy(), wanted.numpy()
    assert a.shape == b.shape, what
    assert np.abs(a - b).max() <= ALIKE * max(np.abs(b).max(), 1e-3), what


def results(last: Any, outs: Any) -> list[Tensor]:
    return [last, *(() if outs is None else outs if isinstance(outs, tuple) else (outs,))]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("make", STEPS)
def test_values_and_gradients(make: Callable[[Weights], Step], reverse: bool, device: str) -> None:
    w = Weights(device)

    def all_of(scan: Callable[..., tuple[Any, Any]]) -> list[Tensor]:
        found = results(*scan(make(w), w.start, w.xs, reverse=reverse))
        # different weights, so that no part of a gradient is the sum of another
        loss = sum((y * (n + 1)).square().sum() for n, y in enumerate(found))
        assert isinstance(loss, Tensor)
        marked = [x for x in w.leaves() if depends(loss, x)]
        return [*found, loss, *loss.gradient(*marked)]

    got, wanted = all_of(Tensor.scan), all_of(one_by_one)
    Tensor.realize(*got)
    assert len(got) == len(wanted)
    for number, (a, b) in enumerate(zip(got, wanted, strict=True)):
        close(a, b, f"{make.__name__}, result {number}")


@pytest.mark.parametrize("make", STEPS)
def test_steps_that_came_before(make: Callable[[Weights], Step], device: str) -> None:
    """From the second time on, the programs of a graph with a loop are kept and run as one."""
    w = Weights(device)
    for turn in range(4):
        w.start = Tensor(np.full((ROWS, WIDTH), turn - 1.5, np.float32), device=device)
        w.start.requires_grad = True
        found = []
        for scan in (Tensor.scan, one_by_one):
            last, outs = scan(make(w), w.start, w.xs)
            loss = sum((y.square().sum() for y in results(last, outs)), Tensor(0, device=device))
            found.append([*results(last, outs), *loss.gradient(w.xs, w.start)])
        before = GlobalCounters.program_calls
        Tensor.realize(*found[0])
        calls = GlobalCounters.program_calls - before
        for number, (a, b) in enumerate(zip(*found, strict=True)):
            close(a, b, f"{make.__name__}, turn {turn}, result {number}")
    # a step that checks an index is not among them
    assert (calls == 1) == (make is not addressed)


def test_one_value_may_be_wanted_several_times(device: str) -> None:
    xs = Tensor(np.arange(12, dtype=np.float32).reshape(4, 3) / 8, device=device).realize()
    for turn in range(4):
        start = Tensor([float(turn)] * 3, device=device).realize()
        last, outs = Tensor.scan(lambda c, x: (c * 0.5 + x, c), start, xs)
        found = [last.softmax(-1), last.softmax(-1), last, outs, outs * 1, outs.sum(), last + 0]
        Tensor.realize(*found)
        wanted = [np.full(3, turn, np.float32)]
        for x in xs.numpy():
            wanted.append(wanted[-1] * 0.5 + x)
        final, rows = wanted[-1], np.stack(wanted[:-1])
        share = np.exp(final) / np.exp(final).sum()
        for got, value in zip(
            found, [share, share, final, rows, rows, rows.sum(), final], strict=True
        ):
            np.testing.assert_allclose(got.numpy(), value, rtol=1e-5)


def test_training_with_loops(device: str) -> None:
    """Steps with kept programs, and captured ones, change weights in the same way."""
    data = np.random.default_rng(3).standard_normal((6, 5, 2, 3)).astype(np.float32)

    def trained(wrap: Callable[[Callable[[Tensor], Tensor]], Callable[[Tensor], Tensor]]) -> Any:
        Tensor.manual_seed(1)
        model = nn.GRU(3, 4).to(device)
        optimizer = nn.optim.Adam(model.parameters(), lr=0.05)

        def step(x: Tensor) -> Tensor:
            loss = model(x)[0].square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        call = wrap(step)
        losses = [call(Tensor(x, device=device)).item() for x in data]
        return [losses, *(weight.numpy() for weight in model.parameters())]

    weights = [trained(lambda step: step), trained(jit)]
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("by_hand", [False, True])
def test_numbers_that_vary_from_step_to_step(
    by_hand: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps on parts of a text, with a carried state, have one program and compute all once."""
    random = np.random.default_rng(5)
    text = random.standard_normal((41, 2, 3)).astype(np.float32)
    places = [(0, 2.0), (10, 2.5), (5, 0.5), (20, 1.0), (31, 3.0), (5, 0.25), (7, 1.5)]

    def trained() -> tuple[list[Any], set[int]]:
        Tensor.manual_seed(1)
        model = nn.LSTM(3, 4, 2).to(device)
        Tensor.realize(*model.parameters())
        optimizer = nn.optim.SGD(model.parameters(), lr=0.1)
        data = Tensor(text, device=device).realize()
        state = (data[0, :, :1].expand(2, 2, 4) * 0.1,) * 2
        losses, calls = [], set()
        for start, scale in places:
            state = (state[0].detach(), state[1].detach())
            before = GlobalCounters.program_calls
            y, state = model(data[start : start + 9], state)
            loss = (y - data[start + 1 : start + 10].mean(-1, keepdim=True)).square().mean() * scale
            optimizer.zero_grad()
            loss.backward()
            if by_hand:
                for weight in model.parameters():
                    weight.data.add_(weight.grad, alpha=-0.1)
            else:
                optimizer.step()
            losses.append(loss.item())
            calls.add(GlobalCounters.program_calls - before)
        return [losses, *(one.numpy() for one in (*state, *model.parameters()))], calls

    got, calls = trained()
    assert calls == {1}
    program.programs.forget()
    monkeypatch.setattr(program, "_runs_in_stages", lambda order, operations: True)
    wanted, stages = trained()
    assert min(stages) > 1
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_batches_of_other_sizes_compile_nothing(compiled: str) -> None:
    """Not from the fourth on, though a row of what a loop stores has another size each time."""
    programs = []
    model, ends = nn.GRU(3, 4).to(compiled), []
    for batch in (2, 5, 3, 7, 4, 6):
        before = GlobalCounters.programs_compiled
        random = np.random.default_rng(batch)
        x = Tensor(random.standard_normal((6, batch, 3)).astype(np.float32), device=compiled)
        out, _ = model(x)
        out.square().sum().backward()
        weights = [weight.grad for weight in model.parameters()]
        Tensor.realize(out, *weights)
        programs.append(GlobalCounters.programs_compiled - before)
        ends.append((out.numpy()[:, :1], x))
        model.zero_grad()
    assert programs[3:] == [0] * 3, programs
    for first, x in ends:  # alone, an example gets the same result
        np.testing.assert_allclose(first, model(x[:, :1])[0].numpy(), rtol=1e-5, atol=1e-6)


def test_equal_loops() -> None:
    """Loops are equal if they compute the same, whatever they compute it of."""

    def loop_of(f: Step, count: int = COUNT, arrays: int = 1, reverse: bool = False) -> Any:
        xs = [Tensor.ones(count, 2).realize() for _ in range(arrays)]
        last, _ = Tensor.scan(
            f, Tensor.ones(2).realize(), xs[0] if arrays == 1 else tuple(xs), reverse=reverse
        )
        node = last.node
        while node.op is not Op.LOOP:
            node = node.src[0]
        return node.arg

    by, other = Tensor.ones(2).realize(), Tensor.ones(2).realize()
    first = loop_of(lambda c, x: (c * by + x, None))
    again = loop_of(lambda c, x: (c * other + x, None))
    assert first == again and hash(first) == hash(again) and first is not again
    for unlike in (
        loop_of(lambda c, x: (c * by - x, None)), loop_of(lambda c, x: (c * x + by, None)),
        loop_of(lambda c, x: (c * by + x, c)), loop_of(lambda c, x: (c * by + x, None), COUNT + 1),
        loop_of(lambda c, x: (c * 2 + x, None)), loop_of(lambda c, x: (c * 3 + x, None)),
        loop_of(lambda c, x: (c * by + x, None), reverse=True),
    ):  # fmt: skip
        assert first != unlike
    rows = loop_of(lambda c, x: (c * x[0] + x[1], None), arrays=2)
    assert rows != loop_of(lambda c, x: (c * x + by, None)), "a row of an array is no constant"


def test_both_directions_in_one_program(device: str) -> None:
    """The two loops have the same body and read the same memory."""
    w, step = Weights(device), plain(Weights(device))
    runs = []
    for scan in (one_by_one, Tensor.scan):
        pairs = [scan(step, w.start, w.xs, reverse=way) for way in (False, True)]
        last, outs = zip(*pairs, strict=True)
        loss = (last[0] + last[1] * 3).square().sum() + (outs[0] + outs[1] * 2).sum()
        runs.append([*last, *outs, *loss.gradient(w.xs, w.start)])
        Tensor.realize(*runs[-1])
    for number, (wanted, got) in enumerate(zip(*runs, strict=True)):
        close(got, wanted, str(number))


def test_variables_have_the_values_of_the_call(device: str) -> None:
    """Also in a program of a loop that came before."""
    x, xs = (Tensor(np.arange(size, dtype=np.float32), device=device).realize() for size in (8, 3))
    for count in (2, 2, 3, 3, 5, 2):
        part = x[: Variable("count", 1, 8).bind(count)]
        last, _ = Tensor.scan(lambda state, row: (state * 0.5 + row, None), part.sum(), xs)
        assert last.item() == count * (count - 1) / 16 + 2.5


def depends(loss: Tensor, x: Tensor) -> bool:
    try:
        loss.gradient(x)
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("make", [plain, gates])
def test_second_gradient(make: Callable[[Weights], Step], device: str) -> None:
    w = Weights(device)

    def second(scan: Callable[..., tuple[Any, Any]]) -> list[Tensor]:
        last, _ = scan(make(w), w.start, w.xs)
        first = last.square().sum().gradient(w.xs, w.start)
        return (first[0].square().sum() + first[1].sum()).gradient(w.xs, w.start)

    for a, b in zip(second(Tensor.scan), second(one_by_one), strict=True):
        close(a, b, make.__name__)


def test_several_kinds(device: str) -> None:
    """Tensors in tuples, lists and dicts, integers among them; carries that swap their places."""
    xs = {"a": Tensor([1, 2, 3, 4], device=device), "b": [Tensor([[0.5]] * 4, device=device)]}
    init = (Tensor(0, device=device), Tensor([1.0], device=device), Tensor([2.0], device=device))

    def step(carry: Any, x: Any) -> tuple[Any, Any]:
        total, p, q = carry
        return (total + x["a"], q, p + x["b"][0]), {"sum": total, "pair": [p, q * 2]}

    (total, p, q), outs = Tensor.scan(step, init, xs)
    assert total.item() == 10 and (p.tolist(), q.tolist()) == ([2.0], [3.0])
    assert outs["sum"].tolist() == [0, 1, 3, 6] and outs["sum"].dtype is total.dtype
    assert outs["pair"][0].tolist() == [[1.0], [2.0], [1.5], [2.5]]
    assert outs["pair"][1].tolist() == [[4.0], [3.0], [5.0], [4.0]]


def test_lengths(device: str) -> None:
    one = Tensor(1.0, device=device)
    assert Tensor.scan(lambda c, _: (c * 2, c), one, length=6)[0].item() == 64
    last, outs = Tensor.scan(lambda c, x: (c + x, c), one, Tensor.zeros(0, device=device))
    assert last.item() == 1 and outs.shape == (0,)
    last, outs = Tensor.scan(lambda c, x: (c + x, c), one, Tensor.ones(1, device=device))
    assert last.item() == 2 and outs.tolist() == [1]
    _, outs = Tensor.scan(lambda c, x: ((), x * 2), (), Tensor([1, 2], device=device))
    assert outs.tolist() == [2, 4]


def test_inside_another(device: str) -> None:
    grid = Tensor.arange(12, device=device).reshape(3, 4)

    def row(total: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return Tensor.scan(lambda c, y: (c + y, c), total, x)

    last, outs = Tensor.scan(row, Tensor(0, device=device), grid)
    assert last.item() == 66
    assert outs.flatten().tolist() == [0, *np.cumsum(np.arange(12))[:-1]]


def test_copies_to_another_device(device: str, other: str) -> None:
    start, xs = Tensor([1.0, 2.0], device=device), Tensor([[3.0], [4.0]], device=device)
    last, outs = Tensor.scan(lambda c, x: (c + x, c), start, xs)
    assert last.to(other).tolist() == [8.0, 9.0]
    assert outs.to(other).tolist() == [[1.0, 2.0], [4.0, 5.0]]


def test_on_two_devices_at_once(device: str, other: str) -> None:
    for number in range(3):
        starts = [Tensor.full((2,), float(number), device=one).realize() for one in (device, other)]
        last = [Tensor.scan(lambda state, _: (state * 0.5 + 1, None), start, start)[0]
                for start in starts]  # fmt: skip
        Tensor.realize(*last)
        assert [one.tolist() for one in last] == [[number / 4 + 1.5] * 2] * 2


def test_memory_of_loops_that_came_before(compiled: str) -> None:
    """What no later loop reads is given back: two of four results are in memory at a time."""
    x = Tensor.ones(100, 500, device=compiled).realize()
    start = Tensor.zeros(500, device=compiled).realize()
    for number in range(3):
        GlobalCounters.reset()
        before, y = GlobalCounters.mem_used, x
        for _ in range(4):
            _, y = Tensor.scan(lambda state, row: (state * 0.5 + row, state * row), start, y)
        y.sum().item()
        assert GlobalCounters.mem_peak - before < (5 if number == 0 else 2.5) * x.nbytes()


def test_writes_in_between(device: str) -> None:
    """Two scans around an in-place write, realized together: each reads the values of its time."""
    x = Tensor([1.0, 2.0], device=device).realize()
    w = Tensor([3.0], device=device).realize()

    def loop() -> Tensor:
        return Tensor.scan(lambda c, e: (c + e * w, None), Tensor([0.0], device=device), x)[0]

    for old in (3, 6, 12):  # from the second time on their programs are kept together
        before, square = loop(), w * w
        w.assign(w * 2)
        after = loop() + square
        Tensor.realize(after, before, w)
        assert (before.item(), after.item(), w.item()) == (3 * old, 6 * old + old**2, 2 * old)


def training(device: str, scan: Any, captured: bool) -> list[float]:
    """Losses of a few steps with dropout and momentum: random state and parameters are written."""
    Tensor.manual_seed(1)
    w = Weights(device)
    optimizer = nn.optim.SGD([w.square, w.start, w.table], lr=0.1, momentum=0.9)

    def step(xs: Tensor) -> Tensor:
        optimizer.zero_grad()
        _, outs = scan(plain(w), w.start, xs.dropout(0.3))
        loss = (outs.dropout(0.5) @ w.table[:4]).square().mean()
        loss.backward()
        optimizer.step()
        return loss.realize()

    run = jit(step) if captured else step
    with Tensor.train():
        return [run(w.xs.detach() * (n + 1)).item() for n in range(5)]


@pytest.mark.parametrize("captured", [False, True])
def test_training(captured: bool, device: str) -> None:
    got = training(device, Tensor.scan, captured)
    assert np.allclose(got, training(device, one_by_one, False), rtol=1e-4)


def test_captured_outs(compiled: str) -> None:
    """Each replay has its own results, and reads its argument anew."""
    w = Weights(compiled)
    run = jit(lambda xs: [y.realize() for y in results(*Tensor.scan(gates(w), w.start, xs))])
    kept = []
    for number in range(4):
        xs = (w.xs.detach() * (number - 1)).realize()
        wanted = results(*one_by_one(gates(w), w.start, xs))
        kept.append((run(xs), wanted))
    for got, wanted in kept:
        for a, b in zip(got, wanted, strict=True):
            close(a, b, "a replay")


def test_lengths_share_programs(compiled: str) -> None:
    layer = nn.LSTM(6, 8, num_layers=2, bidirectional=True).to(compiled)
    weights = nn.state.get_parameters(layer)
    Tensor.realize(*weights)

    def step(length: int) -> None:
        x = Tensor.ones(length, 3, 6, device=compiled).realize()
        loss = layer(x)[0].square().mean()
        Tensor.realize(loss, *loss.gradient(*weights))

    for length in (4, 7):
        step(length)
    before = GlobalCounters.kernels_compiled, GlobalCounters.programs_scheduled
    for length in (9, 5, 20):
        step(length)
    assert before == (GlobalCounters.kernels_compiled, GlobalCounters.programs_scheduled)


def test_compiled_once_whatever_the_length(compiled: str) -> None:
    """The number of kernels does not grow with the number of steps."""

    def kernels(count: int) -> int:
        before = GlobalCounters.kernels_lowered
        x = Tensor.ones(count, 2, 5, device=compiled).realize()
        Tensor.scan(lambda c, e: ((c + e).tanh() * 0.5, None), x[0], x)[0].realize()
        return GlobalCounters.kernels_lowered - before

    kernels(3)
    assert kernels(50) <= 4


def test_scans_of_scans_take_time_with_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan reads the results of earlier ones from memory, and does not rebuild their nodes."""
    made = [0]

    def rebuild(*given: Any) -> Node:
        made[0] += 1
        return build.rebuild(*given)

    monkeypatch.setattr(rewrite, "rebuild", rebuild)

    def nodes(count: int) -> int:
        total, xs = Tensor.zeros(2), Tensor.ones(3, 2)
        for _ in range(count):
            total, xs = Tensor.scan(lambda c, x: ((c + x).tanh(), c * 0.5), total, xs)
        made[0] = 0
        Tensor.realize(total + xs.sum(0))
        return made[0]

    assert nodes(24) < 4 * nodes(8)


def test_index_out_of_range(device: str) -> None:
    table = Tensor.ones(4, 2, device=device)
    places = Tensor([1, 3, 7, 0], device=device)
    zero = Tensor.zeros(2, device=device).realize()
    for _ in range(3):  # also with programs that are kept
        with pytest.raises(BoundsError, match=r"index 7 .*out of range for 4"):
            Tensor.scan(lambda c, i: (c + table[i], None), zero, places)[0].numpy()
    with pytest.raises(BoundsError, match="out of range for 4"):
        count = Tensor(2, device=device)
        Tensor.scan(lambda c, _: (c + 1, table[c]), count, length=3)[1].numpy()
    one = Tensor(1, device=device).realize()
    for _ in range(3):  # an index that a loop computes
        with pytest.raises(BoundsError, match=r"index 8 .*out of range for 4"):
            table[Tensor.scan(lambda c, _: (c * 2, None), one, length=3)[0]].numpy()


def test_refusals() -> None:
    x, zero = Tensor.ones(3, 2), Tensor.zeros(2)
    kept: list[Tensor] = []

    def keeps(c: Tensor, e: Tensor) -> tuple[Tensor, None]:
        kept.append(c + e)
        return c, None

    def writes(c: Tensor, e: Tensor) -> tuple[Tensor, None]:
        target = Tensor.zeros(2).contiguous().realize()
        return target.assign(c + e), None

    def refuse(kind: type[Exception], words: str, f: Any, init: Any = zero, xs: Any = x) -> None:
        with pytest.raises(kind, match=words):
            Tensor.scan(f, init, xs)

    refuse(TypeError, "expected xs, or length=", lambda c, e: (c, None), xs=None)
    refuse(ShapeError, "the same first size", lambda c, e: (c, None), xs=[x, zero])
    refuse(ShapeError, "a dimension of steps", lambda c, e: (c, None), xs=Tensor(1.0))
    refuse(ShapeError, "before a step, but", lambda c, e: (c.sum(), c))
    refuse(DTypeError, "cast it in the step", lambda c, e: (c.int(), c))
    refuse(ScanError, "to return a pair", lambda c, e: c)
    refuse(ScanError, "return the same structure", lambda c, e: ((c, c), c))
    refuse(ScanError, "draw them outside", lambda c, e: (c + Tensor.rand(2), c))
    refuse(ScanError, "draw them outside", lambda c, e: (c + Tensor.rand(2), c), xs=x[:0])
    refuse(ScanError, "writes in place", writes)
    refuse(ScanError, "return it from the function", lambda c, e: (c * c.sum().item(), c))
    Tensor.scan(keeps, zero, x)
    with pytest.raises(ScanError, match="a value from inside the step function"):
        kept[0].realize()
    kept.clear()


@pytest.mark.parametrize("captured", [False, True])
def test_what_is_kept_from_inside_is_nobodys_business(captured: bool, device: str) -> None:
    """It cannot be read afterwards; but its sources may be written."""
    x, w = Tensor.ones(3, 2, device=device), Tensor.ones(2, device=device).realize()
    kept: dict[str, Tensor] = {}

    def step(c: Tensor, e: Tensor) -> tuple[Tensor, None]:
        kept["last"] = e * w
        return c + kept["last"], None

    def loop() -> Tensor:
        last, _ = Tensor.scan(step, Tensor.zeros(2, device=device), x)
        w.assign(w * 2)
        return last

    run = jit(loop) if captured else loop
    for number in range(4):
        assert run().tolist() == [3.0 * 2**number] * 2
        assert w.tolist() == [2.0 ** (number + 1)] * 2
    with pytest.raises(ScanError, match="a value from inside the step function"):
        kept["last"].realize()


def test_what_is_written_from_inside(device: str) -> None:
    """A step may write to its own tensors only: any other write would happen once, not per step."""
    x = Tensor.ones(3, 2, device=device)
    in_memory = Tensor.zeros(2, device=device).contiguous().realize()
    for outside in (in_memory, Tensor.ones(2, device=device) - 1, in_memory[:1]):
        for write in (
            lambda t: t.add_(1), lambda t: t.assign(2), lambda t: t.set_data([3.0] * t.shape[0]),
            lambda t: t.detach().assign(4), lambda t: t.__setitem__(0, 5.0),
        ):  # fmt: skip

            def step(c: Tensor, e: Tensor, t: Tensor = outside, do: Any = write) -> Any:
                do(t)
                return c + e, None

            for xs in (x, x[:0]):
                with pytest.raises(ScanError, match="from outside"):
                    Tensor.scan(step, Tensor.zeros(2, device=device), xs)
    assert in_memory.tolist() == [0.0, 0.0]

    def own(c: Tensor, e: Tensor) -> Any:
        new = c * 1
        new[0] = e[0]
        fixed = Tensor.zeros(2, device=device)
        fixed[1] = 1.0
        return new + fixed, None

    last, _ = Tensor.scan(own, Tensor.zeros(2, device=device), x)
    assert last.tolist() == [1.0, 3.0]
