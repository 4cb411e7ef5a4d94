"""What all tests share: the devices on which a test runs.

A test of something general takes `device`, `compiled` or `on_device`.

`MINIGRAD_TEST_DEVICES=CL,CPU:1` names others. A device of OpenCL as a whole is checked by

    MINIGRAD_TEST_DEVICES=CL python -m pytest tests/property tests/jit tests/models
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest
from devices import CPU, OTHER, REFERENCE, opened
from skips import register

from minigrad.settings import Context


def pytest_configure(config: pytest.Config) -> None:
    """Write down which tests are skipped, where `skips.VARIABLE` is set."""
    register(config)


def _named(default: str) -> list[str]:
    return os.environ.get("MINIGRAD_TEST_DEVICES", default).split(",")


@pytest.fixture(scope="module", autouse=True)
def settled() -> Iterator[None]:
    """What is there before a file's tests no collection of garbage looks at again.

    All tests' items and what the files before have left are millions of objects: looking through
    them took two seconds, for each `gc.collect()` of a test.
    """
    gc.collect()
    gc.freeze()
    yield


@pytest.fixture(scope="session", params=_named(f"{REFERENCE},{CPU}"))
def device(request: pytest.FixtureRequest) -> str:
    """The name of a device; tests of one that cannot be opened are skipped with the reason."""
    return opened(request.param)


@pytest.fixture(scope="session", params=_named(CPU))
def compiled(request: pytest.FixtureRequest) -> str:
    """A device to be compared with REF; the comparison runs REF, and checks it, too."""
    return opened(request.param)


@pytest.fixture(scope="session")
def reference() -> str:
    """The device whose results say what those of all others mean."""
    return REFERENCE


@pytest.fixture(scope="session")
def other() -> str:
    """A device beside the one under test, whichever that is."""
    return OTHER


@pytest.fixture(scope="session")
def cpu() -> str:
    """The CPU, for tests of its own runtime: its threads, guards and files."""
    return CPU


@pytest.fixture(scope="module")
def brief() -> Iterator[None]:
    """Trainings of a GPT show little of what they have learned: 500 tokens take longer than they do
    where a context is short. test_gpt.py looks at them."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("minigrad.models.gpt_commands.SHOWN", 8)
        yield


@pytest.fixture
def on_device(device: str):
    """The device as the default of the thread: for tests that name no device at each tensor."""
    with Context(DEVICE=device):
        yield device
