"""What PoCL, the OpenCL of the CPU, needs before it can build a kernel.

PoCL calls a linker, and ends the process if there is none. It also asks its LLVM for the name of
the processor. If the processor is newer than that LLVM, the answer may be "generic", which PoCL's
compiler does not accept (github.com/pocl/pocl/issues/1049), and no option overrides the name. Or
the answer is the previous processor, and PoCL ends the process on many kernels.

PoCL builds in a folder, its cache. It ends the process if the disk is full, or if a library in the
cache is damaged; we cannot prevent the latter. (A process that finds all of its kernels there needs
no linker, but we cannot know that in advance.)
"""

from __future__ import annotations

import ctypes
import os
import shutil
from functools import cache
from typing import Any

from minigrad.errors import DeviceError

POCL = "Portable Computing Language"
WITH_AVX2 = ("-znver1", "-znver2", "-znver3")  # processors with vectors of 8 float32
ROOM = 16 << 20  # bytes that must be free in PoCL's folder


def is_pocl(device: Any) -> bool:
    """Whether a device belongs to PoCL."""
    return bool(device.platform.name.strip() == POCL)


def is_too_old(device: Any) -> bool:
    """Whether a device belongs to a PoCL whose LLVM does not know the processor.

    LLVM may take it for the previous one: a Zen 4 for a Zen 3, though it has AVX-512.
    """
    if not is_pocl(device):
        return False
    version = device.version.strip()
    before = version.endswith(WITH_AVX2) and device.native_vector_width_float > 8
    return bool(version.endswith("-generic") or before)


def folder_of_pocl() -> str:
    """Where PoCL keeps what it builds, as its manual says."""
    chosen = os.environ.get("POCL_CACHE_DIR")
    if chosen:
        return chosen
    if base := os.environ.get("XDG_CACHE_HOME"):
        return os.path.join(base, "pocl", "kcache")
    if home := os.environ.get("HOME"):
        return os.path.join(home, ".cache", "pocl", "kcache")
    return "/tmp/pocl/kcache"


def where_kept(device: Any) -> str:
    """For messages: where a device keeps its built kernels, if it belongs to PoCL."""
    if not is_pocl(device):
        return ""
    return f" (PoCL's cache is the folder {folder_of_pocl()!r}; if it is damaged, delete it)"


def trouble_with_folder() -> str:
    """Why PoCL cannot build in its folder and what to do about it, or an empty text."""
    folder = folder_of_pocl()
    why = ""
    try:
        os.makedirs(folder, exist_ok=True)
        space = os.statvfs(folder)
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            why = "which is not writable"
        elif space.f_bavail * space.f_frsize < ROOM:
            why = f"which has less than {ROOM >> 20} MiB of free space"
    except OSError as error:
        why = f"which cannot be used ({error.strerror})"
    if not why:
        return ""
    return (
        f"PoCL (OpenCL on the CPU) builds kernels in the folder {folder!r}, {why}; set "
        "POCL_CACHE_DIR to another one, or use the CPU device"
    )


def choose_loops() -> None:
    """Let PoCL run the work-items of a group in plain loops, unless the user has chosen how.

    Otherwise LLVM vectorizes these loops, and kernels of groups with one or two items then ran
    past the end of another loop (PoCL 6.0, LLVM 18: a product of 65 × 17 and 17 × 128).
    """
    os.environ.setdefault("POCL_WORK_GROUP_METHOD", "loops")


def calm_llvm(device: Any) -> None:
    """Keep the LLVM 18 of PoCL 6 from ending the process when it builds a kernel.

    PoCL lets LLVM check that another round of instruction combining would change nothing, and if it
    would, LLVM ends the process (github.com/pocl/pocl/issues/1608). In all cases that were found,
    it had moved a computation into the branch that needs it; we turn that off.
    """
    if is_pocl(device) and "LLVM 18." in device.platform.version:
        _stop_sinking("libLLVM.so.18.1")


@cache  # once: LLVM also ends the process if an option is given twice
def _stop_sinking(name: str) -> None:
    try:
        library = ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except OSError:  # this PoCL contains its own LLVM
        return
    words = (ctypes.c_char_p * 2)(b"minigrad", b"-instcombine-code-sinking=false")
    library.LLVMParseCommandLineOptions(2, words, None)


def check_pocl(device: Any) -> None:
    """DeviceError if PoCL would end the process, or cannot build anything."""
    if not is_pocl(device):
        return
    if shutil.which("ld") is None:
        raise DeviceError(
            "PoCL (OpenCL on the CPU) needs the linker `ld`, which is not on PATH; install it "
            "(Debian, Ubuntu: apt install binutils), or use the CPU device"
        )
    if trouble := trouble_with_folder():
        raise DeviceError(trouble)
    if is_too_old(device):
        raise DeviceError(
            f"{device.platform.version.split(' Linux')[0].strip()} is older than this processor "
            "and cannot build kernels for it; install a newer one (Debian, Ubuntu: apt install "
            "pocl-opencl-icd), or use the CPU device"
        )
