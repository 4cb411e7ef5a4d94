"""Failures outside of a program end in one plain sentence, and the process goes on."""

from __future__ import annotations

import gc
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from child import said
from devices import CPU, REFERENCE

from minigrad import Context, GlobalCounters, Tensor
from minigrad.cache import pack, unpack
from minigrad.device import Device
from minigrad.errors import CompileError, DeviceError
from minigrad.programs import programs
from minigrad.render.opencl_kernel import Source
from minigrad.runtimes import (
    cpu_memory,
    opencl,
    opencl_build,
    opencl_devices,
    opencl_pocl,
)

pytest.importorskip("pyopencl")


@pytest.fixture
def runtime(first):
    return opencl.open_device(first)


def test_a_number_beyond_the_last_device(first):
    with pytest.raises(DeviceError, match=r"unknown device CL:77: this machine has \d+ OpenCL"):
        Device[f"{first}:77"]


def test_the_platform_is_chosen_by_a_part_of_its_name_or_version():
    everything = opencl_devices.devices()
    name = everything[0].platform.name
    with Context(CL_PLATFORM=name[2:9].upper()):
        assert everything[0] in opencl_devices.devices()
    message = "matches no OpenCL platform.*" + name
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


def run_in(**changes):
    """What TOUCH prints in a process with a changed environment; None removes a variable."""
    return said("-c", TOUCH, **changes).splitlines()


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


@pytest.fixture
def pocl():
    """Skips the test if the device is not one of PoCL's."""
    if opencl_devices.devices()[0].platform.name != opencl_pocl.POCL:
        pytest.skip("only PoCL needs a folder")


@pytest.mark.parametrize("name", ["HOME", "POCL_CACHE_DIR"])
def test_pocl_may_not_write_where_it_builds(pocl, name, tmp_path):
    """As with a read-only home: PoCL then reports that there is no device, or a wrong kernel."""
    file = tmp_path / "file"
    file.touch()
    changes = {"XDG_CACHE_HOME": None, "POCL_CACHE_DIR": None, name: str(file)}
    error, after = run_in(**changes)
    assert re.match(r"PoCL .* in the folder '/.*', which cannot be used .*POCL_CACHE_DIR", error)
    assert after == "[2.0]"


def test_pocl_has_no_room_where_it_builds(pocl, runtime, monkeypatch):
    """PoCL itself would end the process."""
    monkeypatch.setattr(opencl_pocl, "ROOM", 1 << 80)
    sources = [source("no_room", "")]
    with pytest.raises(DeviceError, match=r"in the folder .*has less than .* MiB of free space"):
        opencl_build.build(runtime.context, runtime.device, runtime.label, sources, [])


def test_what_pocl_keeps_is_damaged(pocl, tmp_path):
    assert run_in(POCL_CACHE_DIR=str(tmp_path))[-1] == "[2.0]"
    for file in tmp_path.rglob("*.bc"):
        file.write_bytes(b"")
    error, after = run_in(POCL_CACHE_DIR=str(tmp_path))
    assert "looking up the kernel 'rows' in its program" in error
    assert f"{str(tmp_path)!r}; if it is damaged, delete it" in error and after == "[2.0]"


def test_pyopencl_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyopencl", None)
    with pytest.raises(DeviceError, match=r"needs pyopencl.* pip install 'pyopencl\[pocl\]'"):
        opencl_devices.devices()


def source(name, body):
    return Source((), "__kernel void ", name, f"(__global float *a) {{ {body} }}", 0)


def test_a_kernel_that_cannot_be_built(runtime, first):
    """The message names it even if it was built together with others."""
    good, broken = source("good", "a[0] = 1;"), source("broken", "a[0] = nothing;")
    for sources in ([broken], [good, broken]):
        with pytest.raises(CompileError, match=r"(?s)cannot build the kernel 'broken'.*nothing"):
            opencl_build.build(runtime.context, runtime.device, runtime.label, sources, [])
    assert (Tensor([2.0], device=first) * 2).tolist() == [4.0]


def test_a_built_kernel_is_kept_for_this_driver_only(runtime, tmp_path, monkeypatch):
    """A damaged or rejected binary is built again."""
    monkeypatch.setattr(opencl_build, "is_pocl", lambda device: False)  # as PoCL has a cache itself

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
            assert isinstance(unpack(file.stem, file.read_bytes()), bytes)
            file.write_bytes(pack(file.stem, b"no program"))
        assert [built(1), built(1)] == [1, 0]


class Newer:
    """A device with another driver version."""

    driver_version = "another"

    def __init__(self, device):
        self.device = device

    def __getattr__(self, name):
        return getattr(self.device, name)


def test_a_buffer_larger_than_any(runtime):
    message = r"cannot allocate [\d,]+ bytes: the largest .* has [\d,]+ bytes, and [\d,]+ of"
    with pytest.raises(DeviceError, match=message):
        runtime.allocate(runtime.pool.most + 1)
    memory = runtime.allocate(100)  # it still works
    runtime.free(memory, 100)


def test_the_largest_buffer_is_not_rounded_up(runtime, monkeypatch):
    monkeypatch.setattr(runtime.pool, "most", 9_000_001)  # whose size class is larger
    memory = runtime.allocate(9_000_001)
    runtime.free(memory, 9_000_001)
    assert runtime.pool.held == 9_000_001
    assert runtime.allocate(9_000_001) is memory


def test_a_full_device_goes_on_when_something_is_freed(first, monkeypatch):
    """A driver may promise more memory than there is; the process is killed when it uses that."""
    pool = Device[first].pool
    pool._put_away()
    pool._trim()
    monkeypatch.setattr(pool, "total", pool.held + (10 << 20))
    held = []
    message = r"out of memory for a buffer of 4,194,304 bytes: [\d,]+ of [\d,]+ bytes are in use"
    with pytest.raises(DeviceError, match=message):
        while len(held) < 10:
            held.append((Tensor.zeros(1 << 20, device=first) + len(held)).contiguous().realize())
    assert len(held) == 2
    assert (Tensor([3.0], device=REFERENCE) * 2).tolist() == [6.0]
    assert [tensor[5].item() for tensor in held] == [0.0, 1.0]
    held.pop()
    assert (held[0] + 7).contiguous().realize()[9].item() == 7.0


def test_idle_buffers_are_given_up_before_an_error(runtime, monkeypatch):
    monkeypatch.setattr(runtime.pool, "total", 1 << 20)
    for nbytes in (1 << 19, 700 << 10):
        runtime.free(runtime.allocate(nbytes), nbytes)
    assert runtime.pool.held == cpu_memory.size_class(700 << 10)


def test_the_driver_has_no_memory_left(runtime, monkeypatch):
    cl = opencl_devices.opencl()

    def refuse(*arguments):
        raise cl.MemoryError("clCreateBuffer failed")

    first = runtime.allocate(1000)
    monkeypatch.setattr(cl, "Buffer", refuse)
    with pytest.raises(DeviceError, match=r"out of memory for a buffer of 5,000 bytes .* 1,024 of"):
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


class Vanishing:
    """After `after` more calls, every call of the driver raises.

    made: the number of calls; launched: how many of them launched kernels.
    """

    def __init__(self, monkeypatch, after):
        self.after, self.made, self.launched = after, 0, 0
        cl = opencl_devices.opencl()
        names = ("enqueue_nd_range_kernel", "enqueue_copy", "enqueue_fill_buffer", "Buffer")
        calls = [(cl, name) for name in names]
        calls += [(cl.Kernel, "set_arg"), (cl.CommandQueue, "finish"), (cl.CommandQueue, "flush")]
        for place, name in calls:
            monkeypatch.setattr(place, name, self.counted(getattr(place, name)))
        kernel = cl.Kernel  # a class; set_arg is replaced above
        monkeypatch.setattr(cl, "Kernel", self.counted(kernel))

    def counted(self, call):
        """A function of the driver that may fail."""

        def made(*given, **named):
            self.made += 1
            if self.made > self.after:
                raise opencl_devices.opencl().RuntimeError("DEVICE_NOT_AVAILABLE")
            self.launched += call.__name__ == "enqueue_nd_range_kernel"
            return call(*given, **named)

        return made


def train(device, begin, captured, vanishes, after, monkeypatch):
    """Train what `begin` makes; the device may vanish within one step, and is back for the next.

    begin: see `small_training`. vanishes: the number of the step. after: the number of driver calls
    before the device vanishes; None leaves that step out. Returns losses, the error, the calls, and
    the bytes in use afterwards.
    """
    generator = np.random.default_rng(0)
    data = [[generator.standard_normal((8, n)).astype(np.float32) for n in (12, 5)] for _ in "1234"]
    error, calls = "", None
    with Context(DEVICE=device), Tensor.train():
        run, _ = begin(captured)
        losses = [run(*map(Tensor, pair)).item() for pair in data[:vanishes]]
        if after is not None:
            with monkeypatch.context() as patch:
                calls = Vanishing(patch, after)
                try:
                    run(*map(Tensor, data[vanishes])).item()
                except DeviceError as raised:
                    error = str(raised)
                assert (Tensor([3.0], device=CPU) * 2).tolist() == [6.0]
        losses += [run(*map(Tensor, pair)).item() for pair in (data[3], *data)]
        assert not captured or run.captured
    gc.collect()
    return losses, error, calls, GlobalCounters.mem_used


@pytest.mark.parametrize(("captured", "step"), [(False, 2), (True, 0), (True, 1), (True, 2)])
def test_a_device_that_vanishes_within_a_step(first, small_training, captured, step, monkeypatch):
    """Wherever it does: one sentence, no memory is lost, and training goes on when it is back.

    If no kernel ran, the step has either not happened, or is still done later.
    """
    programs.forget()  # programs of other tests
    # else the step gets a program of its own, with fewer calls, when it came often enough
    monkeypatch.setattr("minigrad.programs.FREQUENT", 1 << 30)
    case = first, small_training, captured, step
    without, _, _, used = train(*case, None, monkeypatch)
    whole, error, calls, _ = train(*case, 1 << 30, monkeypatch)
    assert not error
    most = calls.made
    for after in {*range(0, most, max(most // 12, 1)), 1, 2, 3, most - 2, most - 1}:
        losses, error, calls, left = train(*case, after, monkeypatch)
        place = f"after call {after} of {most}: {error}"
        assert re.match(r"CL \(.*\)( failed|: out of memory) .*DEVICE_NOT_AVAIL", error), place
        assert left == used, place
        assert np.isfinite(losses).all() and losses[-1] < losses[-5], place
        if not calls.launched:
            assert losses in (without, whole), place


def test_a_copy_that_failed_is_forgotten(runtime):
    """Later copies, when the device is back, are not affected."""
    failed = SimpleNamespace(command_execution_status=-5)  # OUT_OF_RESOURCES
    runtime._staged.append(failed)
    memory = runtime.allocate(8)
    runtime.copy_in(memory, memoryview(b"12345678"))
    assert failed not in runtime._staged
    got = bytearray(8)
    runtime.copy_out(memory, memoryview(got))
    assert got == b"12345678"


def test_a_device_that_vanishes_while_kernels_are_built(runtime, monkeypatch):
    cl = opencl_devices.opencl()

    def vanish(*arguments):
        raise cl.RuntimeError("clBuildProgram failed: DEVICE_NOT_AVAILABLE")

    monkeypatch.setattr(cl, "Program", vanish)
    with pytest.raises(DeviceError, match=r"CL .* failed while building kernels: .*NOT_AVAIL"):
        opencl_build.build(runtime.context, runtime.device, "CL (x)", [source("a", "")] * 2, [])


def test_nothing_of_opencl_is_imported_before_it_is_needed():
    text = "import sys, minigrad; print([m for m in sys.modules if 'opencl' in m])"
    assert said("-c", text) == "[]\n"
