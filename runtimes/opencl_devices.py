"""Which OpenCL devices this machine has, in an order that does not depend on the driver's.

pyopencl is only imported here, when a device is opened, so `import minigrad` does not load it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minigrad.errors import DeviceError, expect
from minigrad.locks import in_child, new_lock
from minigrad.runtimes.opencl_pocl import POCL, choose_loops, is_too_old, trouble_with_folder
from minigrad.settings import getenv
from minigrad.target import CPU_TILES, TILES, Group

MOST_ITEMS = 256  # per group: the items of larger ones wait longer, and have fewer registers each
MOST_LOCAL = 48 << 10  # bytes that a kernel may have without asking the driver for more
_divided: dict[tuple[int, int], list[Any]] = {}  # a CPU's address and a number → so many parts
_contexts: dict[Any, Any] = {}  # by their first devices
_lock = new_lock()


_used = _inherited = False


def opencl() -> Any:
    """The module pyopencl.

    DeviceError if it is not installed, or in the child of a process that used it before the fork.
    """
    global _used
    if _inherited:
        raise DeviceError(
            "OpenCL was used before this process was forked, but the threads of its driver stay in "
            "the parent; start processes with multiprocessing's method 'spawn', or use the CPU "
            "device here"
        )
    _used = True
    choose_loops()
    try:
        import pyopencl
    except ImportError as error:
        raise DeviceError(
            f"the device CL needs pyopencl, which cannot be imported ({error}); pip install "
            "'pyopencl[pocl]' installs it with OpenCL for the CPU"
        ) from None
    return pyopencl


def chosen_platforms() -> list[Any]:
    """The platforms whose name or version contains the setting CL_PLATFORM; all if it is empty.

    DeviceError if there is none.
    """
    cl, found, why = opencl(), list[Any](), ""
    try:
        found = cl.get_platforms()
    except cl.Error as error:  # the loader reports that there is no platform as an error
        why = f" ({error})"
    if not found:
        raise DeviceError(
            f"no OpenCL platform was found{why}; install the driver (ICD) of your GPU, or pip "
            "install 'pyopencl[pocl]' for OpenCL on the CPU, or use the CPU device"
        )
    wanted = str(getenv("CL_PLATFORM"))
    chosen = [p for p in found if wanted.lower() in f"{p.name} {p.version}".lower()]
    if not chosen:
        names = "; ".join(f"{p.name} {p.version}" for p in found)
        raise DeviceError(
            f"CL_PLATFORM={wanted!r} matches no OpenCL platform: expected a part of a name or "
            f"version of {names}"
        )
    return chosen


def devices() -> list[Any]:
    """The devices of the chosen platforms: GPUs first, then by name and version.

    Those that cannot build kernels, because they are older than the processor, come last. Raises
    DeviceError if there are none because PoCL has no folder in which it may build.
    """
    cl = opencl()
    order = {cl.device_type.GPU: 0, cl.device_type.ACCELERATOR: 1}
    found: list[tuple[tuple[int, str, str, str, int], Any]] = []
    chosen = chosen_platforms()
    for platform in chosen:
        try:
            members = platform.get_devices()
        except cl.Error:  # a driver without its hardware
            continue
        for number, device in enumerate(part for member in members for part in _parts(member)):
            rank = order.get(device.type & ~cl.device_type.DEFAULT, 2) + is_too_old(device)
            found.append(((rank, platform.name, platform.version, device.name, number), device))
    if not found and any(platform.name.strip() == POCL for platform in chosen):
        if trouble := trouble_with_folder():
            raise DeviceError(trouble)
    found.sort(key=lambda item: item[0])
    return [device for _, device in found]


def _parts(device: Any) -> list[Any]:
    """The device, or the parts into which the setting CL_SUBDEVICES divides a CPU."""
    count = int(getenv("CL_SUBDEVICES"))
    if count < 2 or not is_cpu(device):
        return [device]
    with _lock:
        key = (device.int_ptr, count)
        if key not in _divided:
            _divided[key] = _divide(device, count)
        return _divided[key]


def _divide(device: Any, count: int) -> list[Any]:
    cl, units = opencl(), device.max_compute_units
    expect(count <= units, f"CL_SUBDEVICES={count}", f"at most {units}, as "
           f"{device.name.strip()} has {units} compute units", error=DeviceError)  # fmt: skip
    try:
        kind = cl.device_partition_property.EQUALLY
        parts: list[Any] = device.create_sub_devices([kind, units // count])
    except cl.Error as error:
        raise DeviceError(
            f"CL_SUBDEVICES={count}: {device.name.strip()} cannot be divided ({error}); set it to 0"
        ) from None
    return parts[:count]


def context_of(device: Any) -> Any:
    """The context of a device. All parts of a CPU share one, so memory can be copied among them."""
    with _lock:
        known = next((parts for parts in _divided.values() if device in parts), [device])
        if known[0] not in _contexts:
            _contexts[known[0]] = opencl().Context(known)
        return _contexts[known[0]]


def device_called(name: str) -> Any:
    """The pyopencl device of "CL", "CL:1", …; DeviceError if it does not exist."""
    number = int(name.partition(":")[2] or 0)
    found = devices()
    if number >= len(found):
        raise DeviceError(
            f"unknown device {name}: this machine has {len(found)} OpenCL "
            f"device{'' if len(found) == 1 else 's'}: {describe(found) or 'none'}"
        )
    return found[number]


def describe(found: Sequence[Any]) -> str:
    """A list of devices with minigrad's names, for messages."""
    names = [f"CL:{i}" if i else "CL" for i in range(len(found))]
    return ", ".join(
        f"{name} is {device.name.strip()} ({device.platform.name.strip()})"
        for name, device in zip(names, found, strict=True)
    )


def has_doubles(device: Any) -> bool:
    """Whether a device computes in double precision."""
    return "cl_khr_fp64" in device.extensions.split()


def is_cpu(device: Any) -> bool:
    """Whether a device is the host's processor."""
    return bool(device.type & opencl().device_type.CPU)


def group_of(device: Any) -> Group:
    """The limits of a device's work-groups."""
    items = min(device.max_work_group_size, device.max_work_item_sizes[0], MOST_ITEMS)
    items = 1 << (items.bit_length() - 1)
    tiles = CPU_TILES if is_cpu(device) else TILES
    units = max(device.max_compute_units, 1)
    return Group(items, min(device.local_mem_size, MOST_LOCAL), units, tiles)


def _after_fork() -> None:
    """In the child of a fork: anything that waited for the driver would wait forever."""
    global _inherited
    _inherited = _used


in_child(_after_fork)
