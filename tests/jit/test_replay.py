"""Replays and their results: reused memory, other modes, overlapping inputs."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from child import said

from minigrad import Context, Tensor, jit, nn
from minigrad.errors import BoundsError, GradientError, JitError, LostValueError
from minigrad.tensor.live_tensors import by_node, holders


def captured(function, *inputs):
    """The function as a captured step whose next call is a replay."""
    step = jit(function)
    for _ in range(2):
        step(*inputs)
    assert step.captured
    return step


def one(value):
    return Tensor([float(value)] * 3).realize()


# ---- results whose memory is reused --------------------------------------------------------------

# What is kept of a result, and the value that it must have for a result of `value`.
KEEPERS = {
    "itself": (lambda r: r, lambda value: value),
    "lazy": (lambda r: r * 2, lambda value: 2 * value),
    "detached": (lambda r: r.detach(), lambda value: value),
    "view": (lambda r: r[1:], lambda value: value),
    "realized view": (lambda r: r[1:].realize(), lambda value: value),
    "its gradient's leaf": (lambda r: r.requires_grad_(), lambda value: value),
    "written": (lambda r: r.assign(r + 1), lambda value: value + 1),
    "read, then kept": (lambda r: (r.tolist(), r)[1], lambda value: value),
    "lent": (np.from_dlpack, lambda value: value),
}


@pytest.mark.parametrize("name", KEEPERS)
def test_what_is_kept_of_a_result_stays(on_device, name):
    keep, wanted = KEEPERS[name]
    step = captured(lambda x: x + 1, one(0))
    kept = []
    for number in range(8):
        kept.append(keep(step(one(number))))
        if number % 3 == 2:
            del kept[-2]
        step(one(99))
    numbers = [0, 2, 3, 5, 6, 7]
    assert [set(t.tolist()) for t in kept] == [{wanted(number + 1.0)} for number in numbers]


def test_a_dropped_result_gives_its_memory_to_a_later_one():
    step = captured(lambda x: x + 1, one(0))
    memories = {step(one(number)).raw.arg.memory for number in range(20)}
    assert len(memories) <= 2
    memories, result = set(), None
    for number in range(20):
        result = step(one(number))
        memories.add(result.raw.arg.memory)
    assert len(memories) <= 3


def test_large_and_several_results(on_device):
    step = captured(lambda x: (x.expand(20000, 3) + 1, [x * 2, {"sum": x.sum()}]), one(0))
    kept = []
    for number in range(5):
        large, (double, named) = step(one(number))
        assert large.shape == (20000, 3) and double.shape == (3,)
        kept.append((large[-1], double, named["sum"]))
    for number, (large, double, total) in enumerate(kept):
        assert large.tolist() == [number + 1.0] * 3
        assert double.tolist() == [2.0 * number] * 3
        assert total.item() == 3.0 * number


def test_gradients_through_what_read_a_dropped_result(on_device):
    step = captured(lambda x: x + 1, one(0))
    w = Tensor([2.0, 3.0, 4.0], requires_grad=True)
    losses = [(w * step(one(number))).sum().realize() for number in range(4)]
    for number, loss in enumerate(losses):
        step(one(50))
        w.grad = None
        loss.backward()
        assert w.grad.tolist() == [number + 1.0] * 3


def test_a_result_is_found_by_whoever_looks_for_tensors(on_device):
    step = captured(lambda x: x + 1, one(0))
    for number in range(4):
        result = step(one(number))
        assert holders(result.raw) == [result]
        (result * 2).sum().backward()  # the result is a leaf, as no other leaf is marked
        assert result.grad.tolist() == [2.0] * 3


def test_results_outlive_their_capture(on_device):
    gc.collect()
    before = set(by_node)
    step = captured(lambda x: x + 1, one(0))
    result = step(one(1))
    step.reset()
    link = weakref.ref(result.raw)
    for number in range(4):
        assert step(one(number)).tolist() == [number + 1.0] * 3
    assert result.tolist() == [2.0] * 3
    del result, step
    gc.collect()
    assert link() is None
    assert set(by_node) <= before


FORK = """
import os
from minigrad import Tensor, jit

step = jit(lambda x: x * 2)
for number in range(3):
    step(Tensor([1.0, 2.0]))
child = os.fork()
found = step(Tensor([3.0, 4.0])).tolist()
if child == 0:
    os._exit(0 if found == [6.0, 8.0] else 1)
print(found, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_replays_in_the_child_of_a_fork():
    assert said("-c", FORK) == "[6.0, 8.0] 0\n"


# ---- what a replay depends on besides its inputs -------------------------------------------------


def test_other_settings_are_another_capture(on_device):
    runs = []

    @jit
    def step(x):
        runs.append(1)
        return x * 2 + 1

    for change in ({}, {"FUSE": 0}, {"GUARD": 1}, {"FUSE": 0, "GUARD": 1}):
        runs.clear()
        with Context(**change):
            for number in range(4):
                assert step.captured == (number >= 2)
                assert step(one(number)).tolist() == [2.0 * number + 1] * 3
        assert len(runs) == 2
    runs.clear()
    assert step(one(7)).tolist() == [15.0] * 3
    assert not runs


def test_a_step_that_was_captured_silently_is_captured_anew_to_be_checked(on_device):
    with Context(BOUNDS=0):
        step = captured(lambda x, index: x[index], one(0), Tensor([1]))
        assert step(one(2), Tensor([5])).tolist() == [0.0]
    with pytest.raises(BoundsError, match=r"index 5 at position \(0,\)"):
        step(one(2), Tensor([5])).realize().tolist()


@pytest.mark.parametrize("by_name", [False, True])
def test_what_a_failed_replay_writes_is_overwritten(on_device, by_name):
    """Gradients of values computed from the old contents raise: they would use the new ones."""
    w, x = Tensor([2.0, 3.0], requires_grad=True), one(1)

    @jit
    def step(index):
        with Tensor.no_grad():
            w.assign(w * 2)
        return x[index].realize(), w.realize()

    def call(index):
        return step(index=index) if by_name else step(index)

    for _ in range(3):
        call(Tensor([1]))
    loss = w.square().sum()
    assert step.captured and loss.item() == 16**2 + 24**2
    with pytest.raises(BoundsError):
        call(Tensor([7]))
    assert w.tolist() == [32.0, 48.0]
    with pytest.raises(GradientError, match="overwritten in place"):
        loss.backward()


@pytest.mark.parametrize("returned", [False, True])
def test_gradients_that_somebody_keeps(on_device, returned):
    """They keep their values; the next replay creates new ones, which are lost if it fails."""
    w, x = Tensor([2.0, 3.0], requires_grad=True), Tensor([1.0, 2.0, 3.0]).realize()
    kept = []

    @jit
    def step(index):
        w.grad = None
        (w * x[index].sum()).sum().backward()
        return (x + 1).realize(), w.grad.realize() if returned else index

    for number in (0, 1, 2, 0, 1):
        step(Tensor([number]))
        kept.append(w.grad)
    with pytest.raises(BoundsError):
        step(Tensor([7]))
    lost = w.grad
    for number in (2, 0):
        with pytest.raises(LostValueError):
            lost.tolist()
        step(Tensor([number]))
        kept.append(w.grad)
    assert step.captured
    assert [g.tolist() for g in kept] == [[n + 1.0] * 2 for n in (0, 1, 2, 0, 1, 2, 0)]


@pytest.mark.parametrize("given", [False, True])
def test_gradients_that_add_up_are_refused_whoever_keeps_them(on_device, given):
    w = Tensor([2.0, 3.0], requires_grad=True)
    step = jit((lambda leaf: leaf.sum().backward()) if given else (lambda _: w.sum().backward()))
    other = w if given else one(0)
    step(other)
    kept = w.grad
    for _ in range(2):
        with pytest.raises(JitError):
            step(other)
    assert kept.tolist() == [1.0, 1.0]
    w.grad = None
    for _ in range(3):
        step(other)
        kept, w.grad = w.grad, None
    assert kept.tolist() == [1.0, 1.0]


def test_gradients_that_the_step_itself_fills_with_0_add_up(on_device):
    w = Tensor([2.0, 3.0], requires_grad=True)
    w.grad = kept = Tensor([0.0, 0.0]).realize()

    @jit
    def step(x):
        w.grad.zero_()
        (w * x).sum().backward()

    for number in range(4):
        step(Tensor([1.0, 2.0 + number]))
        assert w.grad.tolist() == [1.0, 2.0 + number]
    assert step.captured and kept.shape == (2,)


def test_each_check_of_a_failed_replay_says_what_is_lost(on_device):
    x, y = one(0), one(0)

    @jit
    def step(first, second):
        x.assign(one(1)[first].sum() + x).realize()
        y.assign(one(1)[second].sum() + y).realize()

    for _ in range(3):
        step(Tensor([1]), Tensor([2]))
    with pytest.raises(BoundsError):
        step(Tensor([7]), Tensor([8]))
    for lost in (x, y):
        with pytest.raises(LostValueError):
            lost.tolist()


def test_debug_shows_the_kernels_of_replays(capsys):
    step = captured(lambda x: x * 2, one(0))
    with Context(DEBUG=2):
        for number in range(4):
            capsys.readouterr()
            assert step(one(number)).tolist() == [2.0 * number] * 3
            assert "1 kernels" in "".join(capsys.readouterr())
    assert step(one(1)).tolist() == [2.0] * 3
    assert not "".join(capsys.readouterr())


def test_no_grad_is_part_of_the_key(on_device):
    w = Tensor([1.0, 2.0, 3.0], requires_grad=True)

    @jit
    def step(x):
        w.assign(w + x)

    with Tensor.no_grad():
        for _ in range(3):
            step(one(1))
    assert w.tolist() == [4.0, 5.0, 6.0]
    with pytest.raises(Exception, match="no_grad"):  # as an uncaptured call does
        step(one(1))
    with Tensor.no_grad():
        step(one(1))
    assert w.tolist() == [5.0, 6.0, 7.0]


def test_the_default_device_is_part_of_the_key(compiled, other):
    with Context(DEVICE=compiled):
        step = captured(lambda: Tensor.ones(2) + Tensor([1.0, 2.0]))
        assert step().device == compiled
    with Context(DEVICE=other):
        for _ in range(3):
            assert step().device == other


# ---- lazy tensors and replays --------------------------------------------------------------------


def test_lazy_tensors_that_live_on(on_device):
    total, other = one(0), one(5)

    @jit
    def step(x):
        total.assign(total + x)
        return x * 2

    lazy = [other + 1]
    for number in range(4):
        assert step(one(number)).tolist() == [2.0 * number] * 3
    lazy += [total * 10, other + 2]  # total is 6 now
    for number in range(4):
        assert step(one(number)).tolist() == [2.0 * number] * 3
        total.assign(total + 1)  # pending until the next replay
    assert [t.tolist()[0] for t in lazy] == [6.0, 60.0, 7.0]
    assert total.tolist() == [16.0] * 3


# ---- inputs that the step also reads or writes by itself -----------------------------------------


def test_memory_that_the_step_writes_as_an_input(on_device):
    total = Tensor(np.arange(4, dtype=np.float32)).realize()

    def function(x):
        total.assign(total + x.flip(0))

    step = captured(function, Tensor(np.zeros(4, np.float32)))
    step(Tensor(np.ones(4, np.float32)))
    for _ in range(2):
        with pytest.raises(JitError, match="input 0, which the step also uses"):
            step(total)
    assert total.tolist() == [1.0, 2.0, 3.0, 4.0]
    step(total.clone())
    assert total.tolist() == [5.0, 5.0, 5.0, 5.0]


@pytest.mark.parametrize("part", [slice(None), slice(1, None)])
def test_memory_that_the_step_reads_as_an_input_that_it_writes(on_device, part):
    total = one(1)

    def function(x):
        x.assign(x + 1)
        return total[part] * 10

    step = captured(function, one(0)[part])
    with pytest.raises(JitError, match="input 0, which the step also uses"):
        step(total[part])
    assert total.tolist() == [1.0] * 3
    assert step(one(0)[part]).tolist() == [10.0] * len(total[part])


def test_memory_that_another_step_writes_as_an_input(on_device):
    total = one(0)

    def function(x):
        total.assign(total + x)

    add = captured(function, one(1))
    double = captured(lambda x: x * 2, one(0))
    for number in range(3, 6):
        add(one(1))
        assert double(total).tolist() == [2.0 * number] * 3


def test_a_view_that_the_first_call_gives_away_is_no_part_of_what_a_replay_writes(on_device):
    def double(x):
        x *= 2

    step = captured(double, one(0))
    for view in (lambda x: x.detach(), lambda x: x[:]):
        x = one(1)
        kept = jit(view)(x)
        step(x)
        assert (kept.tolist(), x.tolist()) == ([1.0] * 3, [2.0] * 3)


@pytest.mark.parametrize("share", [
    lambda x: x.contiguous(), lambda x: (x * 0).assign(x), lambda x: (x * 0).realize().assign(x),
    lambda x: x.detach().contiguous(), lambda x: x + 0, lambda x: x.contiguous().reshape(3, 1),
])  # fmt: skip
def test_who_shares_memory_with_what_a_capture_writes(on_device, share):
    total = one(0)

    @jit
    def step(x):
        total.assign(total + x)
        return total.contiguous()

    step(one(1))
    kept = share(total)
    for number in range(2, 5):
        assert step(one(1)).tolist() == [number] * 3
        assert kept.flatten().tolist() == [1.0] * 3
    assert total.tolist() == [4.0] * 3


@pytest.mark.parametrize("write", [
    lambda x: x.add_(5), lambda x: x.add_(5).realize(), lambda x: x.set_data([7.0] * 3),
    lambda x: x.detach().assign(7),
])  # fmt: skip
@pytest.mark.parametrize("calls", [0, 1, 2, 3])
@pytest.mark.parametrize("share", [Tensor, lambda x: x.contiguous(), lambda x: (x * 0).assign(x)])
def test_a_write_to_who_shares_memory_with_what_a_capture_reads(on_device, share, calls, write):
    """Memory shared before a call, written after the capture: the step reads the old contents."""
    read = one(1).clone().realize()
    step = jit(lambda x: x + read)
    for number in range(4):
        if number == calls:
            kept = share(read)
        step(one(1))
    write(kept)
    assert step(one(1)).tolist() == [2.0] * 3
    read += 1
    assert step(one(1)).tolist() == [3.0] * 3 and kept.tolist() in ([6.0] * 3, [7.0] * 3)


@pytest.mark.parametrize(("make", "moves"), [
    (lambda x: nn.Parameter(x * 2).requires_grad_(False), False),
    (lambda x: (x * 2).realize().assign(x), False),
    (lambda x: x.contiguous(), False),
    (lambda x: x[1:], True),
    (lambda x: (x.detach().requires_grad_() * 2).realize().detach(), True),
    (lambda x: (x * 2).realize(), False),
])  # fmt: skip
def test_what_is_marked_after_a_capture_that_reads_it(on_device, make, moves):
    """Like a layer that is frozen at first: either it keeps its memory, or the replay raises."""
    given = one(1).clone().realize()
    read = make(given)
    step = jit(lambda x: x[: len(read)] + read)
    for _ in range(3):
        step(one(1))
    read += 1
    read.requires_grad_()
    with Tensor.no_grad():
        read.assign(7)
    if moves:
        with pytest.raises(JitError, match="no longer exists"):
            step(one(1))
    else:
        assert step(one(1)).tolist() == [8.0] * len(read)


@pytest.mark.parametrize("write", ["base", "view"])
def test_a_view_of_what_was_not_computed_yet(on_device, write):
    base = Tensor.arange(3) + 1.0  # reads no memory
    view = base[1:]
    view.realize()
    step = captured(lambda x: x + view, Tensor([0.0, 0.0]))
    (base if write == "base" else view).add_(5)
    assert step(Tensor([0.0, 0.0])).tolist() == view.tolist() == [7.0, 8.0]


def test_views_follow_a_replay_that_writes_what_waited_to_be_written(on_device):
    x = Tensor([1.0, 2.0, 3.0]).realize()
    tail, back = x[1:], x.flip(0)

    def function(y):
        x.assign(x + y)

    step = captured(function, Tensor([0.0]))
    for _ in range(3):
        x *= 2
        step(Tensor([1.0]))
        assert tail.tolist() == x.tolist()[1:] and back.tolist() == x.tolist()[::-1]
    assert x.tolist() == [15.0, 23.0, 31.0]


def test_draws_from_before_are_not_replayed(device):
    def draws(between):
        Tensor.manual_seed(3)
        Tensor.rand(3, device=device)  # not used, but it advances the random state
        between()
        return Tensor.rand(3, device=device).tolist()

    x = one(1)
    assert draws(lambda: captured(lambda x: x + 1, x)(x)) == draws(lambda: None)


def test_a_replay_that_draws_computes_nothing_that_nobody_wants():
    @jit
    def step(x):
        return (x + Tensor.rand(4)).realize()

    x = Tensor.zeros(4).realize()
    Tensor.manual_seed(7)
    step(x)
    pending = Tensor.rand(1 << 20, 1) + Tensor.zeros(1 << 20), Tensor.rand(4)
    for _ in range(3):
        step(x)
    Tensor.manual_seed(7)
    expected = [Tensor.rand(4).tolist() for _ in range(3)]
    Tensor.manual_seed(7)
    kept = Tensor.rand(4)
    whole = Tensor.rand(1 << 20, 1) + Tensor.zeros(1 << 20)  # 4 TiB: computing it would fail
    assert step(x).tolist() == expected[2]
    assert pending[1].tolist() == expected[2]
    assert kept.tolist() == expected[0] and whole.shape[0] == 1 << 20
