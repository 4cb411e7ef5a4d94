"""What PoCL, the OpenCL of the CPU, needs before it can build a kernel.

It calls a linker, and ends the process where there is none. And it asks its LLVM for the name of
the processor: one older than the processor answers "generic", which its own compiler then does
not know (github.com/pocl/pocl/issues/1049). No option or variable names the processor instead, so
we write a name over that word, where PoCL keeps it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
from typing import Any

from minigrad.errors import DeviceError
from minigrad.runtimes.host import Host, host

POCL = "Portable Computing Language"
UNKNOWN = "generic"  # how LLVM calls a processor that it does not know
# The newest processors that every PoCL knows, and what marks machines that run their code.
NAMES = (
    ("skylake-avx512", ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")),
    ("haswell", ("avx2", "fma", "bmi", "bmi2", "f16c", "movbe")),
    ("x86-64", ()),
)
DEVICE_BYTES = 4096  # PoCL's description of a device is not longer
MOST_ADDRESS = 1 << 47  # of a process


def is_pocl(device: Any) -> bool:
    """Whether a device is one of PoCL's."""
    return bool(device.platform.name.strip() == POCL)


def check_linker(device: Any) -> None:
    """DeviceError where PoCL would end the process because it cannot find its linker."""
    if is_pocl(device) and shutil.which("ld") is None:
        raise DeviceError(
            "PoCL (the OpenCL of the CPU) needs the linker `ld`, which is not on PATH: install "
            "it (Debian, Ubuntu: apt install binutils), or use the CPU device"
        )


def name_for(machine: Host) -> str:
    """A processor that every PoCL knows, and whose code an x86 machine runs."""
    return next(name for name, needs in NAMES if machine.features.issuperset(needs))


def name_processor(device: Any) -> str:
    """Tell a PoCL that does not know the processor which one it is like; the name, or "".

    DeviceError where that cannot be done: such a device builds nothing.
    """
    if not (is_pocl(device) and host().is_x86 and device.version.endswith(f"-{UNKNOWN}")):
        return ""
    name = name_for(host())
    try:
        memory = os.open("/proc/self/mem", os.O_RDWR)
        try:
            done = _rename(memory, device.int_ptr, name)
        finally:
            os.close(memory)
    except OSError:
        done = False
    if not done:
        raise DeviceError(
            f"{device.platform.version.split(' Linux')[0].strip()} is older than this processor, "
            "for which it cannot build kernels: install a newer one (Debian, Ubuntu: apt install "
            "pocl-opencl-icd; MINIGRAD_CL_PLATFORM chooses it), or use the CPU device"
        )
    return name


def _rename(memory: int, description: int, name: str) -> bool:
    """Write the name over the only "generic" to which a device's description points.

    memory: this process's, as a file, which answers a wrong address with an error. True also where
    it has been done before.
    """
    wanted, known = f"{UNKNOWN}\0".encode(), f"{name}\0".encode()
    words = os.pread(memory, DEVICE_BYTES, description)
    places, before = [], False
    for (address,) in struct.iter_unpack("Q", words[: len(words) // 8 * 8]):
        if not DEVICE_BYTES <= address < MOST_ADDRESS:
            continue
        try:
            text = os.pread(memory, len(known) + len(wanted), address)
        except OSError:
            continue
        before = before or text.startswith(known)
        if text.startswith(wanted):
            places.append(address)
    if len(places) != 1:
        return before and not places
    usable = ctypes.CDLL(None).malloc_usable_size
    usable.argtypes, usable.restype = [ctypes.c_void_p], ctypes.c_size_t
    return len(known) <= usable(places[0]) and os.pwrite(memory, known, places[0]) == len(known)
