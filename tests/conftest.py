"""What all tests share: the devices on which a test runs.

`MINIGRAD_TEST_DEVICES=CL,CPU:1` names others. A device of OpenCL as a whole is checked by

    MINIGRAD_TEST_DEVICES=CL python -m pytest tests/property tests/test_jit.py tests/models
"""

from __future__ import annotations

import os

import pytest

from minigrad.device import Device
from minigrad.errors import DeviceError
from minigrad.settings import Context


def _named(default: str) -> list[str]:
    return os.environ.get("MINIGRAD_TEST_DEVICES", default).split(",")


def _missing(name: str) -> str | None:
    """Why a device cannot be opened, or None."""
    try:
        Device[name]
    except (DeviceError, ImportError) as error:
        return str(error)
    return None


def _opened(name: str) -> str:
    reason = _missing(name)
    if reason is not None:
        pytest.skip(f"device {name}: {reason}")
    return name


@pytest.fixture(scope="session", params=_named("REF,CPU"))
def device(request: pytest.FixtureRequest) -> str:
    """The name of a device; tests of one that cannot be opened are skipped with the reason."""
    return _opened(request.param)


@pytest.fixture(scope="session", params=_named("CPU"))
def compiled(request: pytest.FixtureRequest) -> str:
    """A device to be compared with REF; the comparison runs REF, and checks it, too."""
    return _opened(request.param)


@pytest.fixture
def on_device(device: str):
    """The device as the default of the thread: for tests that name no device at each tensor."""
    with Context(DEVICE=device):
        yield device
