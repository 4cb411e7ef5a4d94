"""Ctrl-C ends a long program between two kernels, and disturbs nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from minigrad import Context, Tensor, nn, program
from minigrad.device import Program

# A table of a thousand launches of 20 ms or more each.
TABLE = """
import ctypes, signal, socket, threading, time
from minigrad.runtimes import cpu_interrupt
from minigrad.runtimes.cpu_pool import Launch, pool_for
from minigrad.runtimes.jit_compiler import host_compiler

text = '''
define void @busy(i64 %begin, i64 %end, ptr %args, ptr %scratch) {
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
  call void asm sideeffect "", ""()
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, 100000000
  br i1 %more, label %loop, label %done
done:
  ret void
}
'''
addresses, keep = host_compiler().compile(text, ["busy"])
args = (ctypes.c_int64 * 1)()
COUNT = 1000
table = (Launch * COUNT)(*[Launch(addresses["busy"], ctypes.addressof(args), 2, 1, 0)] * COUNT)
pool = pool_for("CPU")
run = cpu_interrupt.runner(pool, cpu_interrupt.LONG)
short = cpu_interrupt.runner(pool, cpu_interrupt.LONG - 1)
assert short == pool.run

def attempt(count=COUNT, run=run):
    print("ready", flush=True)
    try:
        run(ctypes.addressof(table), count, 0)
        print("ended", flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


class Child:
    """A Python process that prints "ready" when signals may be sent to it."""

    def __init__(self, program: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-X", "faulthandler", "-c", program],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            # a shell's background jobs, and their children, ignore SIGINT
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    def line(self) -> str:
        """Its next line of output."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def interrupt(self) -> float:
        """Send SIGINT when it is ready and busy; returns the seconds until its next output."""
        assert self.line() == "ready", self.process.communicate(timeout=60)
        time.sleep(0.3)
        start = time.perf_counter()
        os.kill(self.process.pid, signal.SIGINT)
        self.said = self.line()
        return time.perf_counter() - start

    def end(self) -> None:
        """It must exit normally."""
        _, errors = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, errors


def test_an_interrupt_ends_a_long_table() -> None:
    """Twice; then the next table runs to its end, and the wakeup descriptor is free again."""
    child = Child(TABLE + "attempt(); attempt(); attempt(2)\nassert signal.set_wakeup_fd(-1) == -1")
    for _ in range(2):
        seconds = child.interrupt()
        assert child.said == "interrupted" and seconds < 3
    assert child.line() == "ready" and child.line() == "ended"
    child.end()


@pytest.mark.parametrize(
    "before",
    [
        "signal.signal(signal.SIGINT, lambda number, frame: print('handled', flush=True))",
        "signal.signal(signal.SIGINT, signal.SIG_IGN)",
    ],
)
def test_the_handlers_of_others_decide(before: str) -> None:
    """A handler that does not raise does not end the program."""
    child = Child(f"{TABLE}{before}\nattempt(30)\n")
    child.interrupt()
    rest = [child.said, child.line()] if child.said == "handled" else [child.said]
    assert rest in (["handled", "ended"], ["ended"])
    assert ("handled" in rest) == ("handled" in before)
    child.end()


def test_the_wakeup_descriptor_of_others_stays() -> None:
    """Its owner gets the signal's number, and still has the descriptor afterwards."""
    others = """
ours, theirs = socket.socketpair()
theirs.setblocking(False)
signal.set_wakeup_fd(theirs.fileno())
attempt(30)
assert signal.set_wakeup_fd(-1) == theirs.fileno()
assert ours.recv(10) == bytes([signal.SIGINT])
"""
    child = Child(TABLE + others)
    child.interrupt()
    assert child.said == "interrupted"  # by Python itself, at the end
    child.end()


def test_other_threads_are_left_alone() -> None:
    """Python interrupts only the main thread; another thread's program runs on."""
    thread = """
over = threading.Event()
worker = threading.Thread(target=lambda: (attempt(30), over.set()))
worker.start()
try:
    over.wait()
except KeyboardInterrupt:
    print("main", flush=True)
over.wait()
worker.join()
"""
    child = Child(TABLE + thread)
    child.interrupt()
    assert [child.said, child.line()] == ["main", "ended"]
    child.end()


def test_a_late_signal_does_not_end_the_next_program() -> None:
    """A signal after the program's end is left to Python."""
    late = """
class Late:
    def __init__(self): self.count = 0
    def __call__(self, *arguments):
        self.count += 1
        if self.count == 1:
            cpu_interrupt._watcher.interrupted = True
            pool.interrupt()
pool.run = Late()
cpu_interrupt.run_interruptibly(pool, 0, 0)
del pool.run
attempt(2)
"""
    child = Child(TABLE + late)
    assert [child.line(), child.line()] == ["ready", "ended"]
    child.end()


def test_a_signal_of_the_program_before_does_not_end_the_next() -> None:
    """Its byte may still be unread when the next program begins, although Python has handled it."""
    stale = """
watcher = cpu_interrupt._Watcher()
watcher.lock = threading.RLock()
with watcher.lock:
    watcher.signalled.send(bytes([signal.SIGINT]))
    time.sleep(0.2)  # its thread has noticed, and waits for the lock
    watcher.begin(pool)
time.sleep(0.2)
attempt(2, pool.run)
"""
    child = Child(TABLE + stale)
    assert [child.line(), child.line()] == ["ready", "ended"]
    child.end()


MODEL = """
import numpy as np
from minigrad import Tensor, jit

x = Tensor(np.full((640, 640), 1 / 640, np.float32), device="CPU").realize()

def chain(x):
    y = x
    for _ in range(20):
        y = (y @ x).contiguous()
    return y.realize()

run = jit(chain) if CAPTURED else chain
for _ in range(3):
    run(x)
print("ready", flush=True)
try:
    for _ in range(1000):
        run(x)
    print("ended", flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
print(abs(run(x).sum().item() - 640) < 1)
"""


@pytest.mark.parametrize("captured", [True, False])
def test_a_model_is_interrupted(captured: bool) -> None:
    """A step of many kernels, as a program and as a replay; the next step's values are right."""
    child = Child(MODEL.replace("CAPTURED", str(captured)))
    child.interrupt()
    assert [child.said, child.line()] == ["interrupted", "True"]
    child.end()


CALLBACK = """
import threading, weakref
from minigrad import Tensor

class Thing:
    pass

def interrupted(_):
    raise KeyboardInterrupt

thing = Thing()
link = weakref.ref(thing, interrupted)
print("ready", flush=True)
try:
    del thing
    threading.Event().wait(60)
    print("lost", flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_an_interrupt_in_a_callback_comes_again() -> None:
    """It cannot be caught there: Python only prints exceptions raised while an object is freed."""
    child = Child(CALLBACK)
    assert [child.line(), child.line()] == ["ready", "interrupted"]
    child.end()


class Interrupted:
    """A program during which Ctrl-C comes; Python raises as soon as the program has run."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def run(self, *given: Any) -> None:
        """See `minigrad.device.Program`."""
        self.program.run(*given)
        signal.raise_signal(signal.SIGINT)


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch, compiled: str) -> Iterator[Callable[[Any], None]]:
    """A function that calls another one, during whose program Ctrl-C comes."""
    launch = program._launch

    def call(function: Callable[[], Any]) -> None:
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(program, "_launch", lambda call, made, *given:
                            launch(call, Interrupted(made), *given))  # fmt: skip
            function()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    with Context(DEVICE=compiled):
        yield call


def test_what_is_written_in_place_is_written_once(interrupted: Callable[[Any], None]) -> None:
    """And not again by a reader after the interrupt."""
    x, y = Tensor([1.0, 2.0]).realize(), Tensor([5.0]).realize()
    x += 1
    y *= x.sum()
    interrupted(lambda: Tensor.realize(x, y))
    assert x.tolist() == [2.0, 3.0] and y.tolist() == [25.0]
    weight = Tensor([1.0], requires_grad=True)
    optimizer = nn.optim.SGD([weight], lr=0.25)
    for _ in range(2):
        optimizer.zero_grad()
        weight.square().sum().backward()
        interrupted(optimizer.step)
    assert weight.item() == 0.25


def test_numbers_are_drawn_once(interrupted: Callable[[Any], None]) -> None:
    Tensor.manual_seed(3)
    expected = [Tensor.rand(4).tolist() for _ in range(3)]
    Tensor.manual_seed(3)
    found = [Tensor.rand(4) for _ in range(3)]
    interrupted(found[0].realize)
    assert [x.tolist() for x in found] == expected


LONG_STEP = """
from minigrad import Tensor, jit
mean = Tensor.full((640, 640), 1 / 640).contiguous().realize()
last = [Tensor.zeros(640, 640).contiguous().realize() for _ in range(8)]

def step(number):
    for one in last:
        number = (number @ mean).contiguous()
        one.assign(number)
        number = number * 0.5 + one * 0.5
    Tensor.realize(*last)

run = jit(step)
for number in range(3):
    run(Tensor.full((640, 640), float(number)).contiguous())
print("ready", flush=True)
try:
    while True:
        number += 1
        run(Tensor.full((640, 640), float(number)).contiguous())
except KeyboardInterrupt:
    print("interrupted", flush=True)
print(len({round(one[0, 0].item()) for one in last}) == 1, flush=True)
"""


def test_a_captured_step_writes_all_or_nothing() -> None:
    child = Child(LONG_STEP)
    child.interrupt()
    assert [child.said, child.line()] == ["interrupted", "True"]
    child.end()
