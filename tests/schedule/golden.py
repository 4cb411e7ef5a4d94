"""Schedules and loop nests printed into files, so that changes of them are noticed.

    cd tests && python -m schedule.golden     # rewrite the files, then read `git diff`
"""

from __future__ import annotations

from pathlib import Path

from minigrad.loops.nest import show as show_nest
from minigrad.loops.recipes import lower
from minigrad.schedule.schedule import Schedule
from minigrad.schedule.show import show

from .machine import GOLDEN
from .programs import PRINTED, PROGRAMS, plan_of

TESTS = Path(__file__).resolve().parent.parent
ROOMS = {"schedule": lambda plan: show(plan), "loops": lambda plan: show_nests(plan)}


def show_nests(plan: Schedule) -> str:
    """All kernels of a schedule as loop nests for the golden target."""
    return "\n".join(show_nest(lower(kernel, GOLDEN)) for kernel in plan.kernels)


def path_of(room: str, name: str) -> Path:
    """The file with a program's printout."""
    return TESTS / room / "golden" / f"{name}.txt"


def printed(room: str, name: str) -> str:
    """The program's printout now."""
    return ROOMS[room](plan_of(PROGRAMS[name])) + "\n"


def mismatch(room: str, name: str) -> str | None:
    """How the printout differs from the file, or None."""
    path, now = path_of(room, name), printed(room, name)
    before = path.read_text("utf-8") if path.exists() else ""
    if now == before:
        return None
    return (
        f"{path.name} of {room} is now:\n{now}\nand was:\n{before}\n"
        "If the new one is meant: cd tests && python -m schedule.golden"
    )


if __name__ == "__main__":
    for room in ROOMS:
        for name in PRINTED:
            path_of(room, name).write_text(printed(room, name), "utf-8")
