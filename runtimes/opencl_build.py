"""From kernel sources to binaries of the driver, which are cached on disk.

Kernels that are needed together are built as one program: for each program a driver reads the
declarations of OpenCL C's functions again, which takes PoCL longer than a small kernel.

A binary is looked up by the source, the options, the device and its driver's version, so another
card or an update finds nothing. If the driver refuses a binary, the source is built again. PoCL has
its own cache; it would build once more to give us a binary.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from minigrad.cache import digest, open_cache
from minigrad.errors import CompileError, DeviceError
from minigrad.program import GlobalCounters
from minigrad.render.opencl_kernel import Source, join
from minigrad.runtimes.opencl_devices import opencl
from minigrad.runtimes.opencl_pocl import check_pocl, is_pocl

MOST_TOGETHER = 16  # kernels of a program, so that errors and files on disk stay small
# Errors of a driver for which a source is responsible, not the device.
FAULTS = ("BUILD_PROGRAM_FAILURE", "COMPILE_PROGRAM_FAILURE", "INVALID_BUILD_OPTIONS")

Built = tuple[Any, str]  # a program of the driver, and the kernel's name in it


def build(
    context: Any, device: Any, label: str, sources: Sequence[Source], options: list[str]
) -> list[Built]:
    """Build all kernels; returns for each a program, and the kernel's name in it.

    Raises CompileError if the driver refuses a source, DeviceError if it fails.
    """
    check_pocl(device)  # it may have gone since the device was opened
    found: list[Built] = []
    for start in range(0, len(sources), MOST_TOGETHER):
        part = sources[start : start + MOST_TOGETHER]
        try:
            found += _build_together(context, device, label, part, options)
        except CompileError:
            if len(part) == 1:
                raise
            for source in part:  # one of them is wrong: the error should name it
                found += _build_together(context, device, label, [source], options)
    return found


def _build_together(
    context: Any, device: Any, label: str, sources: Sequence[Source], options: list[str]
) -> list[Built]:
    cl, cache = opencl(), None if is_pocl(device) else open_cache()
    text, names = join(sources)
    key = _key(device, text, options)
    found = cache.read(key) if cache is not None else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a driver's remarks are not the user's concern
        if found is not None:
            try:
                program = cl.Program(context, [device], [found]).build(options)
            except cl.Error:
                pass  # made by another driver with the same name and version
            else:
                GlobalCounters.cache_hits += len(names)
                return [(program, name) for name in names]
        try:
            program = cl.Program(context, text).build(options, [device])
        except cl.Error as error:
            if not any(fault in str(error) for fault in FAULTS):
                raise DeviceError(
                    f"{label} failed while building kernels: {error}; other devices still work"
                ) from None
            raise CompileError(
                f"{label} cannot build the kernel {sources[0].name!r}: {error}\n(MINIGRAD_DEBUG=5 "
                "prints kernels; please report this one)"
            ) from None
    GlobalCounters.kernels_compiled += len(names)
    if cache is not None:
        members = program.get_info(cl.program_info.DEVICES)  # of the context
        binary = program.get_info(cl.program_info.BINARIES)[members.index(device)]
        if binary:
            cache.write(key, bytes(binary))
    return [(program, name) for name in names]


def _key(device: Any, text: str, options: list[str]) -> str:
    driver = (device.platform.name, device.platform.version, device.vendor, device.name,
              device.driver_version)  # fmt: skip
    return digest("opencl", *driver, *options, text)
