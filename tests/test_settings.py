"""Settings in the environment of a process."""

from subprocess import CompletedProcess
from types import SimpleNamespace

import pytest
from child import ended

from minigrad.settings import having


def run(**variables: str) -> CompletedProcess[str]:
    return ended("-c", "import minigrad", **variables)


@pytest.mark.parametrize("name, meant", [
    ("THREAD", "THREADS"), ("NUM_THREADS", "THREADS"), ("CACHE_DIR", "CACHE"), ("DEBG", "DEBUG"),
])  # fmt: skip
def test_a_name_that_is_no_setting_is_told(name: str, meant: str) -> None:
    said = run(**{f"MINIGRAD_{name}": "2"})
    expected = f"minigrad: unknown setting MINIGRAD_{name}; did you mean MINIGRAD_{meant}?\n"
    assert (said.returncode, said.stderr) == (0, expected)


def test_what_is_nothing_alike_is_somebody_elses() -> None:
    assert run(MINIGRAD_TEST_DEVICES="", MINIGRAD_MINE="1").stderr == ""


def test_a_setting_that_is_no_number_is_refused() -> None:
    said = run(MINIGRAD_DEBUG="abc").stderr
    assert "SettingError: MINIGRAD_DEBUG='abc': expected an int" in said


def test_attributes_for_the_time_of_a_block() -> None:
    owner = SimpleNamespace(a=1, b=2)
    with pytest.raises(KeyError), having(owner, a=3):
        assert (owner.a, owner.b) == (3, 2)
        raise KeyError
    assert (owner.a, owner.b) == (1, 2)
