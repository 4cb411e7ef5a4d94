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

__all__ = [
    "CPU", "OPENCL", "OTHER", "REFERENCE", "devices_of_ranks", "exchanges", "kind", "opened",
    "shares_memory",
]  # fmt: skip


def kind(device: str) -> str:
    """A device's name without its number."""
    return device.partition(":")[0]


def shares_memory(device: str) -> bool:
    """Whether arrays of the host are its own memory: a promise of CPUs, and of nothing else."""
    return kind(device) == CPU


def exchanges(device: str) -> bool:
    """Whether ranks on such devices may exchange: a promise of these two kinds."""
    return kind(device) in (CPU, REFERENCE)


def opened(name: str) -> str:
    """The name of a device that can be opened; else the test is skipped with the reason."""
    import pytest  # not at the top: processes of MPI import this module, too

    try:
        Device[name]
    except (DeviceError, ImportError) as error:
        pytest.skip(f"device {name}: {error}")
    return name


def devices_of_ranks(device: str, size: int) -> list[str]:
    """Where so many threads compute; the test is skipped where the machine has fewer devices."""
    first = kind(device)
    return [opened(name) for name in (first, *(f"{first}:{n}" for n in range(1, size)))]
