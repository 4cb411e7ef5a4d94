"""Systems where the CPU device does not run: it says so, and the other devices run."""

from __future__ import annotations

from subprocess import CompletedProcess

import pytest
from child import ended
from devices import CPU, OPENCL, REFERENCE, opened

# Acts like another system. It imports numpy and others first, which must see the real one.
SYSTEM = """
import asyncio, ctypes, os, subprocess, sys, tempfile
import llvmlite.binding, ml_dtypes, numpy
try:
    import pyopencl
except ImportError:
    pass
ours, sys.platform, library = sys.platform, sys.argv[1], ctypes.CDLL
del os.register_at_fork, os.sched_getaffinity
if sys.platform == "win32":
    del os.geteuid, os.O_CLOEXEC, os.O_NOFOLLOW, os.O_NONBLOCK
    ctypes.CDLL = lambda name, *args, **more: library(os.fspath(name), *args, **more)
"""
COMPUTE = """
from minigrad import Tensor
from minigrad.runtimes import opencl, reference
if len(sys.argv) > 3:  # pyopencl asks, too, and finds what is really here
    sys.platform = ours
x = Tensor([3.0, 4.0], device=sys.argv[2], requires_grad=True)
(x @ x).backward()
print(x.grad.tolist())
"""


def ran(system: str, device: str) -> CompletedProcess[str]:
    return ended("-c", SYSTEM + COMPUTE, system, device, *["real"][: device == OPENCL])


@pytest.mark.parametrize("system", ["darwin", "win32"])
@pytest.mark.parametrize("device", [REFERENCE, OPENCL])
def test_devices_of_all_systems(system: str, device: str) -> None:
    opened(device)
    done = ran(system, device)
    assert done.stdout == "[6.0, 8.0]\n", done.stderr


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_the_cpu_device_names_its_systems(system: str) -> None:
    done = ran(system, CPU)
    assert f"DeviceError: the device CPU does not support {system}" in done.stderr.splitlines()[-1]
