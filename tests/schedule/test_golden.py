"""Schedules of a few programs, as text: see golden.py for how to write them anew."""

from __future__ import annotations

import pytest

from minigrad.schedule.show import show

from .golden import mismatch, path_of
from .programs import PRINTED, PROGRAMS, plan_of


@pytest.mark.parametrize("name", PRINTED)
def test_schedule(name: str) -> None:
    assert mismatch("schedule", name) is None, mismatch("schedule", name)


def test_no_file_is_left_over() -> None:
    names = {path.stem for path in path_of("schedule", "x").parent.glob("*")}
    assert names == set(PRINTED)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_schedule_does_not_depend_on_chance(name: str) -> None:
    """Two graphs that are built alike give one text, though their nodes may have been made anew."""
    assert show(plan_of(PROGRAMS[name])) == show(plan_of(PROGRAMS[name]))
