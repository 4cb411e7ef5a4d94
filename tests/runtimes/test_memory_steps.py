"""Memory does not grow: a short run of `python -m tests.bench.memory_steps`, and bounded tables."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bench import memory_steps
from child import said

from minigrad import Context, Tensor, jit, program
from minigrad.programs import MOST_PROGRAMS, Programs
from minigrad.runtimes.cpu import host_kernels


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch, cpu: str):
    """Tensors are on the CPU; other tests' programs are set aside."""
    monkeypatch.setattr(program, "programs", Programs(MOST_PROGRAMS))
    with Context(DEVICE=cpu):
        yield


def test_memory_stays_flat() -> None:
    """Neither tensors nor tables grow with the number of steps or programs.

    Runs in a process of its own, so that everything in it was made by the measured code.
    """
    counts = ["--captured", "500", "--plain", "100", "--graphs", "60", "--most", "20"]
    said(str(memory_steps.__file__), *counts)


def test_the_measurement_notices_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeping each step's loss counts as growth."""
    kept: list[Any] = []
    make = memory_steps.training_step

    def keeping(captured: bool) -> Any:
        once = make(captured)
        return lambda: kept.append(once())

    monkeypatch.setattr(memory_steps, "training_step", keeping)
    found = memory_steps.growth_of_steps(20, captured=True, warm_up=3)
    assert any(line.startswith("used") for line in found), found


def _program(table: Programs, structure: int, reference: str) -> Any:
    """The program of a graph that is only a number."""
    root = SimpleNamespace(op=None, dtype=None, ndim=0, device=reference)
    call: Any = SimpleNamespace(
        structure=structure, cells=(), roots=[root], graph=object, order=(), values={}
    )
    found, _ = table.find(call, lambda graph: graph)  # type: ignore[arg-type, return-value]
    return found


def test_the_longest_unused_programs_go(reference: str) -> None:
    """An eighth at a time; recently used ones are kept."""
    table = Programs(16)
    made = [_program(table, number, reference) for number in range(16)]
    assert len(table) == 16 and len(set(map(id, made))) == 16
    assert _program(table, 0, reference) is made[0]
    _program(table, 16, reference)
    assert len(table) == 15
    assert _program(table, 0, reference) is made[0]
    assert _program(table, 3, reference) is made[3]
    assert _program(table, 1, reference) is not made[1]


def test_a_capture_keeps_its_kernels() -> None:
    """A replay works after its programs were forgotten; its code is freed with the replay."""
    bias = Tensor(np.arange(7, dtype=np.float32)).realize()

    @jit
    def step(x: Tensor) -> Tensor:
        return ((x * 3 + bias).exp().sum(1) / 1024).realize()

    rows = Tensor(np.linspace(-1, 1, 77, dtype=np.float32).reshape(11, 7)).realize()
    known = host_kernels()._known
    gc.collect()
    others = set(known)
    wanted = step(rows).tolist()
    assert step(rows).tolist() == wanted
    program.programs.most = 2
    for number in range(6):
        (Tensor(np.ones((number + 2, 3), np.float32)) + number).sum().realize()
    assert len(program.programs) <= 2
    program.programs.forget()
    gc.collect()
    keys = set(known) - others
    assert keys
    assert step(rows).tolist() == wanted
    step.reset()
    program.programs.forget()
    gc.collect()
    assert not keys & set(known)
