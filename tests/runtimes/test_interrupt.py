"""Ctrl-C ends a long program between two kernels, and disturbs nothing else."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from child import ended

from minigrad import Context, Tensor, nn, program
from minigrad.device import Program

# Sends Ctrl-C to its own process, when a table has begun to run or at once.
PRELUDE = """
import os, signal, socket, threading, time

SENT = signal.SIGINT

def interrupt(has_begun=lambda: True):
    def send():
        while not has_begun():
            time.sleep(0.001)
        os.kill(os.getpid(), SENT)

    threading.Thread(target=send).start()
"""

# A table of two hundred launches of some milliseconds each. Their chunks, two of each, are counted.
TABLE = PRELUDE + """
import ctypes
from minigrad.runtimes import cpu_interrupt
from minigrad.runtimes.cpu_pool import Launch, pool_for
from minigrad.runtimes.jit_compiler import host_compiler

text = '''
define void @busy(i64 %begin, i64 %end, ptr %args, ptr %scratch) {
entry:
  %before = atomicrmw add ptr %args, i64 1 seq_cst
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
  call void asm sideeffect "", ""()
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, 30000000
  br i1 %more, label %loop, label %done
done:
  ret void
}
'''
addresses, keep = host_compiler().compile(text, ["busy"])
args = (ctypes.c_int64 * 1)()
COUNT = 200
table = (Launch * COUNT)(*[Launch(addresses["busy"], ctypes.addressof(args), 2, 1, 0)] * COUNT)
pool = pool_for("CPU")
run = cpu_interrupt.runner(pool, cpu_interrupt.LONG)
short = cpu_interrupt.runner(pool, cpu_interrupt.LONG - 1)
assert short == pool.run

def attempt(count=COUNT, run=run):
    try:
        run(ctypes.addressof(table), count, 0)
        print("ended", flush=True)
    except KeyboardInterrupt:
        print("late" if args[0] == 2 * count else "interrupted", flush=True)

def attempt_and_interrupt(count=COUNT):
    args[0] = 0
    interrupt(lambda: args[0] > 3)
    attempt(count)
"""


def said_by(program: str) -> list[str]:
    """The lines that a Python process prints, which must exit normally."""
    # a shell's background jobs, and their children, ignore SIGINT
    as_usual = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    done = ended("-X", "faulthandler", "-c", program, preexec_fn=as_usual)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_an_interrupt_ends_a_long_table() -> None:
    """Twice; then the next table runs to its end, and the wakeup descriptor is free again."""
    twice = "attempt_and_interrupt(); attempt_and_interrupt(); attempt(2)\n"
    said = said_by(f"{TABLE}{twice}assert signal.set_wakeup_fd(-1) == -1")
    assert said == ["interrupted", "interrupted", "ended"]


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        ("lambda number, frame: print('handled', flush=True)", ["handled", "ended"]),
        ("signal.SIG_IGN", ["ended"]),
    ],
)
def test_the_handlers_of_others_decide(handler: str, said: list[str]) -> None:
    """A handler that does not raise does not end the program; nor does one that runs another."""
    before = f"signal.signal(signal.SIGINT, {handler})\n"
    after = "assert args[0] == 20\n"
    assert said_by(f"{TABLE}{before}attempt_and_interrupt(10)\n{after}") == said


def test_handlers_run_between_two_launches() -> None:
    """Also those of other signals; one may run a table itself, and so run handlers itself."""
    inner = """
seen = []

def handler(number, frame):
    seen.append((number, args[0]))
    if number == signal.SIGUSR1:
        os.kill(os.getpid(), signal.SIGUSR2)
        run(ctypes.addressof(table), 3, 0)

signal.signal(signal.SIGUSR1, handler)
signal.signal(signal.SIGUSR2, handler)
SENT = signal.SIGUSR1
attempt_and_interrupt(10)
assert args[0] == 26, args[0]
(first, before), (second, after) = seen
assert (first, second) == (signal.SIGUSR1, signal.SIGUSR2) and before < 20 and after <= before + 2
"""
    assert said_by(TABLE + inner) == ["ended"]


def test_the_wakeup_descriptor_of_others_stays() -> None:
    """Its owner gets the signal's number, and still has the descriptor afterwards."""
    others = """
ours, theirs = socket.socketpair()
theirs.setblocking(False)
signal.set_wakeup_fd(theirs.fileno())
attempt_and_interrupt(10)
assert signal.set_wakeup_fd(-1) == theirs.fileno()
assert ours.recv(10) == bytes([signal.SIGINT])
"""
    assert said_by(TABLE + others) == ["late"]  # by Python itself, at the end


def test_other_threads_are_left_alone() -> None:
    """Python interrupts only the main thread; another thread's program runs on."""
    thread = """
over = threading.Event()
worker = threading.Thread(target=lambda: (attempt_and_interrupt(10), over.set()))
try:
    worker.start()
    over.wait()
except KeyboardInterrupt:
    print("main", flush=True)
worker.join()
"""
    assert said_by(TABLE + thread) == ["main", "ended"]


def test_a_signal_of_the_program_before_does_not_end_the_next() -> None:
    """Its number may still be in the file, although Python has handled it."""
    stale = """
_, number = cpu_interrupt._signals()
number.value = signal.SIGINT
attempt(2)
pid = os.fork()  # a child has a file of its own
if not pid:
    attempt(2)
    assert cpu_interrupt._signals()[1] is not number
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
"""
    assert said_by(TABLE + stale) == ["ended", "ended"]


MODEL = PRELUDE + """
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
try:
    for number in range(1000):
        if number == 1:
            interrupt()
        run(x)
    print("ended")
except KeyboardInterrupt:
    print("interrupted")
print(abs(run(x).sum().item() - 640) < 1)
"""


@pytest.mark.parametrize("captured", [True, False])
def test_a_model_is_interrupted(captured: bool) -> None:
    """A step of many kernels, as a program and as a replay; the next step's values are right."""
    assert said_by(MODEL.replace("CAPTURED", str(captured))) == ["interrupted", "True"]


CALLBACK = """
import threading, weakref
from minigrad import Tensor

class Thing:
    pass

def interrupted(_):
    raise KeyboardInterrupt

thing = Thing()
link = weakref.ref(thing, interrupted)
try:
    del thing
    threading.Event().wait(60)
    print("lost")
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interrupt_in_a_callback_comes_again() -> None:
    """It cannot be caught there: Python only prints exceptions raised while an object is freed."""
    assert said_by(CALLBACK) == ["interrupted"]


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

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
    with Context(DEVICE=compiled):
        yield call
    signal.signal(signal.SIGINT, before)


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


LONG_STEP = PRELUDE + """
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
try:
    for number in range(3, 1000):
        if number == 4:
            interrupt()
        run(Tensor.full((640, 640), float(number)).contiguous())
except KeyboardInterrupt:
    print("interrupted")
print(len({round(one[0, 0].item()) for one in last}) == 1)
"""


def test_a_captured_step_writes_all_or_nothing() -> None:
    assert said_by(LONG_STEP) == ["interrupted", "True"]
