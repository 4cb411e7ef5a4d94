"""Parts of one CPU as separate devices: they hold tensors, copy, and run concurrently."""

from __future__ import annotations

import subprocess

import pytest
from child import ended

from minigrad.device import Device
from minigrad.errors import DeviceError

SCRIPT = """
import threading
import numpy as np
from minigrad import Device, Tensor
from minigrad.runtimes.opencl_devices import devices

assert Device["CL"].device.max_compute_units == Device["CL:1"].device.max_compute_units
given = np.arange(100_000, dtype=np.float32)
x = Tensor(given, device="CL")
y = x.to("CL:1")
assert y.device == "CL:1" and np.array_equal(y.numpy(), given)
back = ((y + 1).to("CL") - x).sum().item()
assert back == 100_000, back
across = []
for runtime in (Device["CL"], Device["CL:1"]):
    runtime.copy_out = lambda *given: across.append(given)  # the host is not on the way
w = Tensor(np.zeros(1000, np.float32), device="CL").realize()
for number in range(1, 20):  # the copy has the value from before the next write
    w.assign(w * 0 + number).realize()
    there = (w.to("CL:1") + 0.5).realize()
    w = (there.to("CL") - 0.5).realize()
assert not across
for runtime in (Device["CL"], Device["CL:1"]):
    del runtime.copy_out
assert np.array_equal(w.numpy(), np.full(1000, 19, np.float32)), w.numpy()
barrier, results = threading.Barrier(2), {}

def work(name):
    z = Tensor(given, device=name)
    barrier.wait()
    for _ in range(20):
        z = (z * 0.5 + 1).realize()
    results[name] = z.numpy()

threads = [threading.Thread(target=work, args=(name,)) for name in ("CL", "CL:1")]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert np.array_equal(results["CL"], results["CL:1"])
count = len(devices())  # two of each CPU that OpenCL knows, one for each driver
try:
    Device[f"CL:{count}"]
except Exception as error:
    assert f"{count} OpenCL devices" in str(error), error
else:
    raise AssertionError("one part more")
print("fine")
"""


@pytest.fixture(scope="module")
def divisible(first):
    device = Device[first].device
    if device.max_compute_units < 2 or device.partition_max_sub_devices < 2:
        pytest.skip("the OpenCL device cannot be divided")


def run(script: str, parts: int) -> subprocess.CompletedProcess[str]:
    return ended("-c", script, MINIGRAD_CL_SUBDEVICES=str(parts))


def test_two_parts_of_one_cpu(divisible):
    done = run(SCRIPT, 2)
    assert done.returncode == 0 and done.stdout.strip() == "fine", done.stderr[-2000:]


def test_more_parts_than_there_are_units(first, divisible):
    done = run(f"from minigrad import Device\nDevice[{first!r}]", 10_000)
    assert DeviceError.__name__ in done.stderr and "compute units" in done.stderr
