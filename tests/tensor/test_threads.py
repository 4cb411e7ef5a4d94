"""Tensors in several Python threads at once: each thread gets the results it would get alone."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest

from minigrad import Tensor, jit, program
from minigrad.graph.node import Op, topological
from minigrad.tensor import access, backward, history

THREADS = 6


def together(work: Callable[[int], Any]) -> list[Any]:
    """work(0) … work(5), each in its own thread, all started at once."""
    results: list[Any] = [None] * THREADS
    errors: list[BaseException] = []
    gate = threading.Barrier(THREADS)

    def run(number: int) -> None:
        gate.wait()
        try:
            results[number] = work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if errors:
        raise errors[0]
    return results


def _data(number: int, *shape: int) -> np.ndarray:
    return np.random.default_rng([number, *shape]).normal(size=shape)


def test_each_thread_with_its_own_tensors(device: str) -> None:
    """Threads compile the same and different programs at once: forward, backward, writes."""

    def work(number: int) -> bool:
        extent = 5 + number % 3
        for turn in range(4):
            x, w = _data(number, extent, 7), _data(turn, 7, 3)
            a, b = Tensor(x, device=device), Tensor(w, device=device)
            loss = (a @ b).tanh().sum()
            (gradient,) = loss.gradient(b)
            wanted = x.T @ (1 - np.tanh(x @ w) ** 2)
            np.testing.assert_allclose(gradient.numpy(), wanted, rtol=1e-9)
            a[number % extent] = float(turn)
            x[number % extent] = float(turn)
            values, order = a.sort(0, descending=True)
            assert np.array_equal(values.numpy(), -np.sort(-x, axis=0))
            assert np.array_equal(np.take_along_axis(x, order.numpy(), 0), values.numpy())
        return True

    assert all(together(work))


def test_one_lazy_tensor_computed_by_all(device: str) -> None:
    """All threads get the same value, whichever of them computes it."""
    x = _data(9, 40, 40)
    for _ in range(5):
        shared = (Tensor(x, device=device) * 2).exp().sum(1)
        for found in together(lambda number, shared=shared: (shared + number).numpy() - number):
            np.testing.assert_allclose(found, np.exp(x * 2).sum(1), rtol=1e-12)


def test_a_write_that_waits_and_readers_of_what_was_before(device: str) -> None:
    """The write happens once, and not while another thread computes from the old value."""
    x = Tensor(np.zeros(1000), device=device).realize()
    for turn in range(40):
        before = [x * (number + 1) for number in range(THREADS)]
        x += 1
        some = [x if number % 2 else lazy for number, lazy in enumerate(before)]
        for number, found in enumerate(together(lambda number, some=some: some[number].numpy())):
            assert (found == (turn + 1 if number % 2 else turn * (number + 1))).all()


def test_a_loss_that_another_thread_realizes_meanwhile(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread's capture may realize this loss while `backward` sorts its graph."""
    leaf = Tensor([1.0, 2.0], device=device, requires_grad=True)
    loss = (leaf * leaf).sum()

    def order_of(nodes: Any) -> Any:
        order = topological(nodes)
        loss.realize()
        return order

    monkeypatch.setattr(backward, "topological", order_of)
    loss.backward()
    assert leaf.grad is not None and leaf.grad.tolist() == [2.0, 4.0]


def test_a_tensor_that_another_thread_fills_meanwhile(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pending computation has become a constant."""
    lazy = Tensor([1.0, 2.0], device=device) * 2
    compute = program.realize

    def realize(*given: Any) -> Any:
        made = compute(*given)
        lazy.fill_(7)
        return made

    monkeypatch.setattr(program, "realize", realize)
    assert lazy.tolist() == [7.0, 7.0]


def test_steps_that_are_captured_beside_others(device: str) -> None:
    """Other threads' tensors, writes and gradients are not part of a captured step."""

    def work(number: int) -> bool:
        total, added = Tensor(np.zeros(3), device=device).realize(), np.zeros(3)

        @jit
        def step(x: Tensor) -> Tensor:
            total.assign(total + x.sum(0))
            return (x * 2).sum(1)

        for turn in range(24):
            data = np.round(4 * _data(turn, 2 + turn // 3 + number, 3))
            written = Tensor(data, device=device).realize()
            written += 1
            leaf = Tensor(data, device=device, requires_grad=True)
            (leaf * leaf).sum().backward()
            added += data.sum(0)
            assert np.array_equal(step(Tensor(data, device=device)).numpy(), (data * 2).sum(1))
            assert np.array_equal(written.numpy(), data + 1)
            assert leaf.grad is not None and np.array_equal(leaf.grad.numpy(), data * 2)
            assert np.array_equal(total.numpy(), added)
        return True

    assert all(together(work))


def test_a_step_of_another_thread_than_what_it_writes(device: str) -> None:
    """Also if, at the first call, a written tensor has no memory yet, or a pending write."""
    total = Tensor(np.zeros(3), device=device) * 2
    other = Tensor(np.ones(3), device=device).realize()
    other *= 5

    @jit
    def step(x: Tensor) -> Tensor:
        total.assign(total + x)
        return other * x

    found: list[list[float]] = []

    def work() -> None:
        for number in range(5):
            found.append(step(Tensor(np.full(3, float(number)), device=device)).tolist())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(120)
    assert found == [[5.0 * number] * 3 for number in range(5)]
    assert total.tolist() == [10.0] * 3


def test_one_leaf_read_by_all(device: str) -> None:
    """Gradients by a shared parameter, each thread with its own loss."""
    weights = Tensor(_data(1, 8), device=device, requires_grad=True)

    def work(number: int) -> np.ndarray:
        (gradient,) = (weights * weights * float(number)).sum().gradient(weights)
        return gradient.numpy()

    for number, found in enumerate(together(work)):
        np.testing.assert_allclose(found, 2 * number * weights.numpy(), rtol=1e-12)


@pytest.mark.parametrize("mode", ["training", "gradients"])
def test_modes_belong_to_a_thread(mode: str, device: str) -> None:
    """`train` and `no_grad` in one thread do not affect others."""

    def work(number: int) -> bool:
        x = Tensor([1.0, 2.0], device=device)
        for _ in range(20):
            if number % 2 == 0:
                with Tensor.train() if mode == "training" else Tensor.no_grad():
                    assert Tensor.training or mode != "training"
                    (x * 2).realize()
            else:
                assert not Tensor.training
                assert (x * x).sum().gradient(x)[0].tolist() == [2.0, 4.0]
        return True

    assert all(together(work))


@pytest.mark.parametrize("calls", [None, 0, 1, 2])
def test_a_write_while_a_scan_is_described(calls: int | None, device: str) -> None:
    """By another thread, directly or by a step (first call, capture, replay): the scan sees it."""
    weights = Tensor(np.ones(3), device=device).realize()

    @jit
    def double() -> Tensor:
        return weights.assign(weights * 2).sum()

    for _ in range(calls or 0):
        double()

    def body(carry: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        before = weights * x
        write = double if calls is not None else lambda: weights.set_data(np.full(3, 2.0))
        together(lambda number: number or write())
        return carry + before, weights + carry

    xs = Tensor(np.ones((2, 3)), device=device)
    last, outs = Tensor.scan(body, Tensor(np.zeros(3), device=device), xs)
    now = 2.0 ** ((calls or 0) + 1)
    assert last.tolist() == [2 * now] * 3 and outs.tolist() == [[now] * 3, [2 * now] * 3]


def test_what_other_threads_make_while_a_step_is_captured(device: str) -> None:
    """They read the tensor that the step will write: their values are not part of the step."""
    state = Tensor(np.zeros(3), device=device).realize()
    found = SimpleQueue[list[Tensor]]()  # (a list that a step adds tensors to is refused)

    def read(_: int) -> list[Tensor]:
        written = Tensor(np.zeros(3), device=device)
        written += state
        return [state * 1, state.contiguous(), (state * 2).exp().log() / 2, written]

    @jit
    def step(x: Tensor) -> Tensor:
        found.put(together(read)[0])
        state.assign(state + x)
        return state.sum()

    one = Tensor(np.ones(3), device=device)
    for _ in range(4):
        step(one)
    assert found.qsize() == 2
    for number in range(2):
        for tensor in found.get():
            assert np.allclose(tensor.numpy(), number)


@pytest.mark.parametrize("way", ["straight", "general", "of another step"])
def test_a_replay_that_writes_and_readers(way: str, device: str) -> None:
    """Readers of a tensor that replays write see its value before or after a step, never a mixture.

    The readers are lazy tensors, copies to the host, and another step's replays.
    """
    state = Tensor(np.zeros(1 << 20, np.float32), device=device).realize()
    one = Tensor(np.ones(1, np.float32), device=device).realize()

    @jit
    def step(x: Tensor, *, flag: bool = False) -> Tensor:
        state.assign(state + x)
        return x + 1

    @jit
    def double(x: Tensor) -> Tensor:
        return state * x

    named = {"flag": True} if way == "general" else {}
    for _ in range(3):
        step(one, **named)
        double(one)
    ended = threading.Event()

    def work(number: int) -> bool:
        if number == 0:
            for _ in range(150):
                step(one, **named)
            ended.set()
        while number and not ended.is_set():
            if way == "of another step":
                found = double(one).numpy()
            else:
                found = (state * 2 if number % 2 else state).numpy()
            assert found.min() == found.max()
        return True

    assert all(together(work))
    assert state.min().item() == state.max().item() == 153


def test_histories_that_come_while_a_replay_ends_others(on_device):
    """`replayed` iterates over all histories: it raised RuntimeError if others were recorded."""
    leaf = Tensor([1.0], requires_grad=True)
    kept = [leaf * number for number in range(2, 300)]
    Tensor.realize(*kept)
    node, interval = kept[0].raw, sys.getswitchinterval()

    def record():
        for _ in range(20_000):
            history.lose(node, node)
            history.record({}, {}, written=[node])

    thread = threading.Thread(target=record)
    sys.setswitchinterval(1e-6)
    try:
        thread.start()
        while thread.is_alive():
            history.replayed([])
    finally:
        sys.setswitchinterval(interval)
        thread.join()
    assert all(history.has_history(one.raw) for one in kept[1:])


@pytest.mark.parametrize("busy", [False, True])
def test_two_writes_in_a_row_are_one(on_device, monkeypatch, busy):
    """Unless another thread may be carrying out the first, after which it must not be repeated."""
    x = Tensor([1.0, 2.0]).realize()
    x.mul_(2)
    between = x * 10
    if busy:
        monkeypatch.setitem(access.under_way, -1, (lambda _: (set(), frozenset()), None))
    x.add_(x)
    writes = [node.op for node in topological([x.raw])].count(Op.ASSIGN)
    assert writes == (2 if busy else 1)
    assert between.tolist() == [20, 40]
    assert x.tolist() == [4, 8]
