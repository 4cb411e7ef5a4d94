"""Settings in the environment of a process."""

from concurrent.futures import ThreadPoolExecutor
from subprocess import CompletedProcess
from types import SimpleNamespace

import pytest
from child import ended

from minigrad.settings import DEFAULTS, MODES, OWN, having

from minigrad import Context, Tensor, getenv  # isort: skip


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


def test_a_block_restores_what_it_has_changed() -> None:
    """And nothing else: settings and modes that were changed inside of it for good stay."""
    with Context(FUSE=0), Tensor.no_grad():
        Tensor.training = True
        assert getenv("FUSE") == 0 and Tensor([1.0]).stopped
    assert Tensor.training and getenv("FUSE") == 1 and not Tensor([1.0]).stopped
    Tensor.training = False


def test_a_context_decorates_a_function() -> None:
    @Context(TRAINING=1)
    def trains() -> bool:
        return Tensor.training

    assert trains() and not Tensor.training and trains()


@pytest.mark.parametrize("mode", OWN)
def test_nobody_else_says_what_a_thread_is_doing(mode: str) -> None:
    with pytest.raises(KeyError, match=f"unknown setting '{mode}'"):
        Context(**{mode: 1})


def test_threads_may_use_the_same_block() -> None:
    """Each thread gets back what it had itself, in whatever order they leave the block."""
    block = Tensor.no_grad()
    with ThreadPoolExecutor(1) as other, Tensor.no_grad():
        other.submit(block.__enter__).result()
        block.__enter__()
        other.submit(block.__exit__).result()
        block.__exit__()
        assert Tensor([1.0]).stopped
        assert not other.submit(lambda: Tensor([1.0]).stopped).result()


def test_the_environment_has_settings_but_no_modes() -> None:
    assert MODES.keys().isdisjoint(DEFAULTS)
    said = ended("-c", "import minigrad; print(minigrad.Tensor.training)", MINIGRAD_TRAINING="1")
    assert said.stdout == "False\n"
