"""What all tests share: the devices on which a test runs.

A test of something general takes `device`, `compiled` or `on_device`.

`MINIGRAD_TEST_DEVICES=CL,CPU:1` selects others. To check an OpenCL device as a whole:

    MINIGRAD_TEST_DEVICES=CL python -m pytest tests/property tests/jit tests/models
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

# The products of numpy and PyTorch are small here. Threads that share them would spend half of a
# run's processor time waiting for each other. Both libraries read this when they are imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from devices import CPU, OTHER, REFERENCE, opened
from skips import register

from minigrad.settings import Context


def pytest_configure(config: pytest.Config) -> None:
    """Record which tests are skipped, if `skips.VARIABLE` is set."""
    register(config)


def _named(default: str) -> list[str]:
    return os.environ.get("MINIGRAD_TEST_DEVICES", default).split(",")


@pytest.fixture(scope="module", autouse=True)
def settled() -> Iterator[None]:
    """Garbage collections skip objects that existed before a file's tests.

    All tests' items, and what earlier files have left, are millions of objects: a search through
    them took two seconds, for each `gc.collect()` of a test.
    """
    gc.collect()
    gc.freeze()
    yield


@pytest.fixture(scope="session", params=_named(f"{REFERENCE},{CPU}"))
def device(request: pytest.FixtureRequest) -> str:
    """The name of a device; if it cannot be opened, the test is skipped with the reason."""
    return opened(request.param)


@pytest.fixture(scope="session", params=_named(CPU))
def compiled(request: pytest.FixtureRequest) -> str:
    """A device to compare with REF; the comparison also runs, and so checks, REF."""
    return opened(request.param)


@pytest.fixture(scope="session")
def reference() -> str:
    """The device whose results define those of all others."""
    return REFERENCE


@pytest.fixture(scope="session")
def other() -> str:
    """A device other than the one under test."""
    return OTHER


@pytest.fixture(scope="session")
def cpu() -> str:
    """The CPU, for tests of its own runtime: its threads, guards and files."""
    return CPU


@pytest.fixture(scope="module")
def brief() -> Iterator[None]:
    """Trainings of a GPT print samples of 8 tokens: the usual 500 take longer than a training with
    a short context. test_gpt.py runs the script, with all 500.
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("minigrad.models.gpt_commands.SHOWN", 8)
        yield


@pytest.fixture
def on_device(device: str):
    """The device as the thread's default, for tests that do not pass one to each tensor."""
    with Context(DEVICE=device):
        yield device
