"""Which generations the garbage collector visits while a program is compiled, and before and after.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator

import pytest

from minigrad import Tensor
from minigrad.gc_pause import NEVER, young_gc_only
from minigrad.programs import Programs, programs

USUAL = (701, 11, 12)  # values that nothing else would choose
INSIDE = (701, 11, NEVER)


@pytest.fixture(autouse=True)
def thresholds() -> Iterator[None]:
    """Thresholds for these tests."""
    before = gc.get_threshold()
    gc.set_threshold(*USUAL)
    yield
    gc.set_threshold(*before)


def test_a_program_is_made_undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    make = Programs._make

    def watched(*arguments: object) -> None:
        seen.append(gc.get_threshold())
        make(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Programs, "_make", watched)
    programs.forget()
    assert (Tensor([1.0, 2.0]) + 1).tolist() == [2.0, 3.0]
    assert set(seen) == {INSIDE}
    assert gc.get_threshold() == USUAL


def test_an_error_leaves_the_thresholds_as_they_were() -> None:
    with pytest.raises(ZeroDivisionError), young_gc_only():
        assert gc.get_threshold() == INSIDE
        1 / 0  # noqa: B018
    assert gc.get_threshold() == USUAL


def test_the_last_of_several_threads_puts_them_back() -> None:
    inside, first_is_out = threading.Event(), threading.Event()
    found = []

    def second() -> None:
        with young_gc_only():
            inside.set()
            first_is_out.wait()
            found.append(gc.get_threshold())

    thread = threading.Thread(target=second)
    with young_gc_only():
        thread.start()
        inside.wait()
    first_is_out.set()
    thread.join()
    assert found == [INSIDE]
    assert gc.get_threshold() == USUAL


@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is not available")
def test_a_child_of_a_fork_has_the_usual_thresholds() -> None:
    read, write = os.pipe()
    with young_gc_only():
        child = os.fork()
        if child == 0:
            os.write(write, repr(gc.get_threshold()).encode())
            os._exit(0)
        os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as file:
        assert file.read() == repr(USUAL)
    assert gc.get_threshold() == USUAL
