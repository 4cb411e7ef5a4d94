"""The few devices that tests may name; no test names one in its body.

Tests take fixtures of conftest.py. Tables, helpers and programs for other processes need names
before there is a fixture, and take them from here; test_rooms.py reports all other names.
"""

from __future__ import annotations

from property.compare import REFERENCE

from minigrad.device import Device
from minigrad.errors import DeviceError

CPU = "CPU"
OPENCL = "CL"
OTHER = f"{REFERENCE}:99"  # every machine can open it, and it is never a device under test

__all__ = [
    "CPU", "OPENCL", "OTHER", "REFERENCE", "devices_of_ranks", "exchanges", "kind", "opened",
    "shares_memory",
]  # fmt: skip


def kind(device: str) -> str:
    """A device's name without its number."""
    return device.partition(":")[0]


def shares_memory(device: str) -> bool:
    """Whether a device's memory is the host's: only CPUs promise that."""
    return kind(device) == CPU


def exchanges(device: str) -> bool:
    """Whether ranks on such devices may exchange: only these two kinds promise that."""
    return kind(device) in (CPU, REFERENCE)


def opened(name: str) -> str:
    """The name of a device, if it can be opened; otherwise the test is skipped with the reason."""
    import pytest  # not at the top: MPI processes import this module, too

    try:
        Device[name]
    except (DeviceError, ImportError) as error:
        pytest.skip(f"device {name}: {error}")
    return name


def devices_of_ranks(device: str, size: int) -> list[str]:
    """The devices of `size` ranks; skips the test if the machine has fewer."""
    first = kind(device)
    return [opened(name) for name in (first, *(f"{first}:{n}" for n in range(1, size)))]
