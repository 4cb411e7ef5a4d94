"""Whether the garbage collector is on while a program is made, and before and after."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from minigrad import Tensor, nn
from minigrad.gc_pause import gc_paused
from minigrad.programs import Programs, programs
from minigrad.tensor import backward, realization


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    assert gc.isenabled()
    yield
    gc.enable()


@pytest.mark.parametrize("usual", [True, False])
def test_a_program_is_made_undisturbed(usual: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a user who has turned it off finds it off."""
    seen = []
    make = Programs._make

    def watched(*arguments: object) -> None:
        seen.append(gc.isenabled())
        make(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Programs, "_make", watched)
    programs.forget()
    if not usual:
        gc.disable()
    assert (Tensor([1.0, 2.0]) + 1).tolist() == [2.0, 3.0]
    assert set(seen) == {False}
    assert gc.isenabled() is usual


def test_an_error_turns_it_on_again() -> None:
    with pytest.raises(ZeroDivisionError), gc_paused():
        assert not gc.isenabled()
        1 / 0  # noqa: B018
    assert gc.isenabled()


def test_the_last_of_several_threads_turns_it_on() -> None:
    inside, first_is_out = threading.Event(), threading.Event()
    found = []

    def second() -> None:
        with gc_paused():
            inside.set()
            first_is_out.wait()
            found.append(gc.isenabled())

    thread = threading.Thread(target=second)
    with gc_paused():
        thread.start()
        inside.wait()
    first_is_out.set()
    thread.join()
    assert found == [False]
    assert gc.isenabled()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is not available")
def test_it_is_on_in_a_child_of_a_fork() -> None:
    read, write = os.pipe()
    with gc_paused():
        child = os.fork()
        if child == 0:
            os.write(write, str(gc.isenabled()).encode())
            os._exit(0)
        os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as file:
        assert file.read() == "True"
    assert gc.isenabled()


def test_a_gradient_is_derived_and_a_step_is_made_undisturbed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Most nodes of a training step are made there, and live until its program has run."""
    seen: list[bool] = []
    realize, derive = realization.realize, backward._gradients

    def realized(*arguments: Any, **options: Any) -> None:
        seen.append(gc.isenabled())
        realize(*arguments, **options)

    def derived(*arguments: Any) -> Any:
        seen.append(gc.isenabled())
        return derive(*arguments)

    weight = Tensor([1.0, 2.0], requires_grad=True)
    optimizer = nn.optim.SGD([weight], lr=0.5)
    monkeypatch.setattr(realization, "realize", realized)
    monkeypatch.setattr(backward, "_gradients", derived)
    weight.square().sum().backward()
    assert seen == [False] and gc.isenabled()
    optimizer.step()
    assert seen == [False, False] and gc.isenabled()
    assert weight.tolist() == [0.0, 0.0]
