"""Hypothesis profiles of the property harness.

"ci" (the default): modest numbers of examples, chosen anew in each run; a failure prints a blob
that reproduces it. "long": `--hypothesis-profile=long`, for a night.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from minigrad import Device
from minigrad.errors import DeviceError

COMMON: dict[str, Any] = {
    "deadline": None,  # the first call of a kernel compiles it
    "print_blob": True,
    "derandomize": False,
    # The fixture `device` is a name, which all examples of a test may share.
    "suppress_health_check": [
        HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture,
    ],
}  # fmt: skip
settings.register_profile("ci", max_examples=5, database=None, **COMMON)
settings.register_profile("long", max_examples=300, **COMMON)


def pytest_configure(config: pytest.Config) -> None:
    """Use the profile "ci" unless the command line names another."""
    if not config.getoption("--hypothesis-profile", default=None):
        settings.load_profile("ci")


def _devices(default: str) -> list[str]:
    """Devices by name: MINIGRAD_TEST_DEVICES=CL,CPU:1 runs the harness there instead."""
    return os.environ.get("MINIGRAD_TEST_DEVICES", default).split(",")


def _opened(name: str) -> str:
    try:
        Device[name]
    except (DeviceError, ImportError) as error:
        pytest.skip(f"device {name}: {error}")
    return name


@pytest.fixture(scope="session", params=_devices("CPU"))
def compiled(request: pytest.FixtureRequest) -> str:
    """A device to be compared with REF; the comparison runs REF, and checks it, too."""
    return _opened(request.param)


@pytest.fixture(scope="session", params=_devices("REF,CPU"))
def device(request: pytest.FixtureRequest) -> str:
    """A device whose results are compared with something that is no device."""
    return _opened(request.param)
