"""The devices that tests may name, which are few: no test names one in its body.

A test takes a fixture of conftest.py. From here come the names that tables, helpers and the
programs of other processes need before there is a fixture; test_rooms.py looks for all others.
"""

from __future__ import annotations

from property.compare import REFERENCE

from minigrad.device import Device
from minigrad.errors import DeviceError

CPU = "CPU"
OPENCL = "CL"
OTHER = f"{REFERENCE}:99"  # every machine can open it, and nobody names it in a run of tests

__all__ = ["CPU", "OPENCL", "OTHER", "REFERENCE", "kind", "opened", "shares_memory"]


def kind(device: str) -> str:
    """A device's name without its number."""
    return device.partition(":")[0]


def shares_memory(device: str) -> bool:
    """Whether arrays of the host are its own memory: a promise of CPUs, and of nothing else."""
    return kind(device) == CPU


def opened(name: str) -> str:
    """The name of a device that can be opened; else the test is skipped with the reason."""
    import pytest  # not at the top: processes of MPI import this module, too

    try:
        Device[name]
    except (DeviceError, ImportError) as error:
        pytest.skip(f"device {name}: {error}")
    return name
