"""Settings of Python that hold while a program is made, and no longer."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Iterator

import pytest

from minigrad import Tensor, undisturbed
from minigrad.programs import Family, programs

Settings = tuple[tuple[int, int, int], float]


def settings() -> Settings:
    return gc.get_threshold(), sys.getswitchinterval()


@pytest.fixture
def usual() -> Iterator[Settings]:
    """Settings that nobody else would choose."""
    before = settings()
    gc.set_threshold(701, 11, 12)
    sys.setswitchinterval(0.004)
    yield settings()
    gc.set_threshold(*before[0])
    sys.setswitchinterval(before[1])


def assert_inside(usual: Settings) -> None:
    thresholds, turn = settings()
    assert thresholds == (*usual[0][:2], undisturbed.NEVER)
    assert turn < usual[1]


def test_a_program_is_made_undisturbed(
    usual: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    make = Family.make

    def watched(*arguments: object) -> None:
        assert_inside(usual)
        seen.append(True)
        make(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Family, "make", watched)
    programs.forget()
    assert (Tensor([1.0, 2.0]) + 1).tolist() == [2.0, 3.0]
    assert seen
    assert settings() == usual


def test_an_error_leaves_the_settings_as_they_were(usual: Settings) -> None:
    with pytest.raises(ZeroDivisionError), undisturbed.undisturbed():
        assert_inside(usual)
        1 / 0  # noqa: B018
    assert settings() == usual


def test_the_last_of_several_threads_puts_them_back(usual: Settings) -> None:
    inside, first_is_out = threading.Event(), threading.Event()
    found: list[Settings] = []

    def second() -> None:
        with undisturbed.undisturbed():
            inside.set()
            first_is_out.wait()
            found.append(settings())

    thread = threading.Thread(target=second)
    with undisturbed.undisturbed():
        thread.start()
        inside.wait()
    first_is_out.set()
    thread.join()
    assert found[0][0][2] == undisturbed.NEVER
    assert settings() == usual


def test_the_turn_is_no_longer_than_the_user_has_it(usual: Settings) -> None:
    sys.setswitchinterval(undisturbed.TURN / 2)
    with undisturbed.undisturbed():
        assert sys.getswitchinterval() == pytest.approx(undisturbed.TURN / 2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_child_of_a_fork_has_the_usual_settings(usual: Settings) -> None:
    read, write = os.pipe()
    with undisturbed.undisturbed():
        child = os.fork()
        if child == 0:
            os.write(write, repr(settings()).encode())
            os._exit(0)
        os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as file:
        assert file.read() == repr(usual)
    assert settings() == usual
