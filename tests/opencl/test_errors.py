"""What goes wrong outside of a program ends in one plain sentence, and the process lives."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from minigrad import Context, GlobalCounters, Tensor
from minigrad.cache import pack, unpack
from minigrad.device import Device
from minigrad.errors import CompileError, DeviceError
from minigrad.render.opencl import Source
from minigrad.runtimes import (
    opencl,
    opencl_build,
    opencl_devices,
    opencl_memory,
    opencl_pocl,
)

pytest.importorskip("pyopencl")


@pytest.fixture
def runtime(first):
    return opencl.open_device(first)


def test_a_number_beyond_the_last_device(first):
    with pytest.raises(DeviceError, match=r"CL:77 does not exist: this machine has \d+ OpenCL"):
        Device[f"{first}:77"]


def test_the_platform_is_chosen_by_a_part_of_its_name_or_version():
    everything = opencl_devices.devices()
    name = everything[0].platform.name
    with Context(CL_PLATFORM=name[2:9].upper()):
        assert everything[0] in opencl_devices.devices()
    message = "fits none of the OpenCL platforms here.*" + name
    with Context(CL_PLATFORM="no such thing"), pytest.raises(DeviceError, match=message):
        opencl_devices.devices()


TOUCH = """
from minigrad import Tensor
from minigrad.errors import DeviceError
try:
    Tensor([1.0], device="CL").exp().numpy()
except DeviceError as error:
    print(error)
print((Tensor([1.0], device="REF") + 1).tolist())
"""


def run_in(**environment):
    """What TOUCH prints in a process of its own with another environment."""
    done = subprocess.run(
        [sys.executable, "-c", TOUCH], env={**os.environ, **environment}, text=True,
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_no_platform_at_all(tmp_path):
    error, after = run_in(OCL_ICD_VENDORS=str(tmp_path / "none"))
    assert error.startswith("no OpenCL platform was found") and "pyopencl[pocl]" in error
    assert after == "[2.0]"


def test_no_linker(tmp_path):
    if opencl_devices.devices()[0].platform.name != opencl_pocl.POCL:
        pytest.skip("only PoCL calls a linker")
    error, after = run_in(PATH=str(tmp_path))
    assert "needs the linker `ld`, which is not on PATH" in error and "binutils" in error
    assert after == "[2.0]"


def test_pyopencl_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyopencl", None)
    with pytest.raises(DeviceError, match=r"needs pyopencl.* pip install 'pyopencl\[pocl\]'"):
        opencl_devices.devices()


def source(name, body):
    return Source((), "__kernel void ", name, f"(__global float *a) {{ {body} }}", 0)


def test_a_kernel_that_cannot_be_built(runtime, first):
    """The message names it also where it was built together with others."""
    good, broken = source("good", "a[0] = 1;"), source("broken", "a[0] = nothing;")
    for sources in ([broken], [good, broken]):
        with pytest.raises(CompileError, match=r"(?s)cannot build the kernel 'broken'.*nothing"):
            opencl_build.build(runtime.context, runtime.device, runtime.label, sources, [])
    assert (Tensor([2.0], device=first) * 2).tolist() == [4.0]


def test_a_built_kernel_is_kept_for_this_driver_only(runtime, tmp_path, monkeypatch):
    """A damaged or refused binary is built anew."""
    monkeypatch.setattr(opencl_build, "is_pocl", lambda device: False)  # which keeps them itself

    def built(*numbers):
        before = GlobalCounters.kernels_compiled
        sources = [source("kept", f"a[0] = {number};") for number in numbers]
        made = opencl_build.build(runtime.context, runtime.device, runtime.label, sources, [])
        for program, name in made:
            assert name in program.kernel_names.split(";")
        return GlobalCounters.kernels_compiled - before

    with Context(CACHE=str(tmp_path)):
        assert [built(1), built(1), built(2), built(1, 3), built(1, 3)] == [1, 0, 1, 2, 0]
        key = opencl_build._key
        monkeypatch.setattr(opencl_build, "_key", lambda device, *rest: key(Newer(device), *rest))
        assert [built(1), built(1)] == [1, 0]
        for file in tmp_path.iterdir():
            entry = unpack(file.stem, file.read_bytes())
            file.write_bytes(pack(file.stem, entry[0], b"no program"))
        assert [built(1), built(1)] == [1, 0]


class Newer:
    """A device with another version of its driver."""

    driver_version = "another"

    def __init__(self, device):
        self.device = device

    def __getattr__(self, name):
        return getattr(self.device, name)


def test_a_buffer_larger_than_any(runtime):
    message = r"cannot make a buffer of [\d,]+ bytes: its largest is [\d,]+ bytes, and [\d,]+ of"
    with pytest.raises(DeviceError, match=message):
        runtime.allocate(runtime.pool.most + 1)
    memory = runtime.allocate(100)  # it goes on
    runtime.free(memory, 100)


def test_idle_buffers_are_given_up_before_an_error(runtime, monkeypatch):
    monkeypatch.setattr(runtime.pool, "total", 1 << 20)
    for nbytes in (1 << 19, 700 << 10):
        runtime.free(runtime.allocate(nbytes), nbytes)
    assert runtime.pool.held == opencl_memory.size_class(700 << 10)


def test_the_driver_has_no_memory_left(runtime, monkeypatch):
    cl = opencl_devices.opencl()

    def refuse(*arguments):
        raise cl.MemoryError("clCreateBuffer failed")

    first = runtime.allocate(1000)
    monkeypatch.setattr(cl, "Buffer", refuse)
    with pytest.raises(DeviceError, match=r"no memory for a buffer of 5,000 bytes .* 1,024 of"):
        runtime.allocate(5000)
    runtime.free(first, 1000)


def test_a_device_that_fails_names_itself(first, reference, monkeypatch):
    cl = opencl_devices.opencl()

    def vanish(*arguments, **options):
        raise cl.RuntimeError("DEVICE_NOT_AVAILABLE")

    x = Tensor([1.0, 2.0], device=first).realize()
    with monkeypatch.context() as patch:
        patch.setattr(cl, "enqueue_nd_range_kernel", vanish)
        with pytest.raises(DeviceError, match=r"CL \(.*\) failed while running.*NOT_AVAIL"):
            (x * 3 - 1).realize()
        patch.setattr(cl, "enqueue_copy", vanish)
        with pytest.raises(DeviceError, match="failed while copying"):
            x.numpy()
        with pytest.raises(DeviceError, match="failed while copying"):
            Tensor([1.0], device=first).realize()
        assert (Tensor([3.0], device=reference) * 2).tolist() == [6.0]
    assert (x * 3).tolist() == [3.0, 6.0]


def test_nothing_of_opencl_is_imported_before_it_is_needed():
    text = "import sys, minigrad; print([m for m in sys.modules if 'opencl' in m])"
    done = subprocess.run([sys.executable, "-c", text], text=True, capture_output=True, check=True)
    assert done.stdout.strip() == "[]"
