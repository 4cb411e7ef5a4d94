"""Schedules of a few programs, as text: golden.py rewrites the files."""

from __future__ import annotations

import pytest
from child import said

from .golden import TESTS, mismatch, path_of
from .programs import PRINTED


@pytest.mark.parametrize("name", PRINTED)
def test_schedule(name: str) -> None:
    assert mismatch("schedule", name) is None, mismatch("schedule", name)


def test_no_file_is_left_over() -> None:
    names = {path.stem for path in path_of("schedule", "x").parent.glob("*")}
    assert names == set(PRINTED)


def test_nothing_depends_on_hashing() -> None:
    """Sets of strings and addresses differ between processes; schedules and nests must not."""
    found = {said("-c", PRINT_ALL, cwd=TESTS, PYTHONHASHSEED=seed) for seed in ("1", "2")}
    assert len(found) == 1 and "kernel" in found.pop()


PRINT_ALL = """
from minigrad.render.llvm import render
from minigrad.loops.recipes import lower
from schedule.golden import printed
from schedule.machine import GOLDEN
from schedule.programs import PROGRAMS, plan_of
padding = [object() for _ in range(hash("x") % 1000)]
for name in PROGRAMS:
    print(printed("schedule", name), printed("loops", name))
    print(*(render(lower(kernel, GOLDEN)) for kernel in plan_of(PROGRAMS[name]).kernels))
"""
