"""What PoCL, the OpenCL of the CPU, needs before it can build a kernel.

It calls a linker, and ends the process where there is none. And it asks its LLVM for the name of
the processor: one older than the processor answers "generic", which its own compiler then does
not know (github.com/pocl/pocl/issues/1049), and nothing names the processor instead.
"""

from __future__ import annotations

import shutil
from typing import Any

from minigrad.errors import DeviceError

POCL = "Portable Computing Language"


def is_pocl(device: Any) -> bool:
    """Whether a device is one of PoCL's."""
    return bool(device.platform.name.strip() == POCL)


def is_too_old(device: Any) -> bool:
    """Whether a device is one of a PoCL whose LLVM does not know the processor."""
    return is_pocl(device) and bool(device.version.strip().endswith("-generic"))


def check_pocl(device: Any) -> None:
    """DeviceError where a PoCL would end the process, or cannot build anything."""
    if is_pocl(device) and shutil.which("ld") is None:
        raise DeviceError(
            "PoCL (the OpenCL of the CPU) needs the linker `ld`, which is not on PATH: install "
            "it (Debian, Ubuntu: apt install binutils), or use the CPU device"
        )
    if is_too_old(device):
        raise DeviceError(
            f"{device.platform.version.split(' Linux')[0].strip()} is older than this processor, "
            "for which it cannot build kernels: install a newer one (Debian, Ubuntu: apt install "
            "pocl-opencl-icd), or use the CPU device"
        )
