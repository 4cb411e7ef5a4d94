"""From a kernel's source to what the driver makes of it, which is kept on disk.

A binary is looked up by the source, the options, the device and its driver's version, so another
card or an update finds nothing. A driver may still refuse one; then the source is built anew.
"""

from __future__ import annotations

import warnings
from typing import Any

from minigrad.cache import digest, open_cache
from minigrad.errors import CompileError
from minigrad.program import GlobalCounters
from minigrad.render.opencl import Source
from minigrad.runtimes.opencl_devices import check_linker, opencl


def build(context: Any, device: Any, label: str, source: Source, options: list[str]) -> Any:
    """A built program. Raises CompileError where the driver does not take the source."""
    cl, cache = opencl(), open_cache()
    check_linker(device)  # it may have gone since the device was opened
    key = _key(device, source, options)
    found = cache.read(key) if cache is not None else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a driver's remarks are not the user's concern
        if found is not None:
            try:
                program = cl.Program(context, [device], [found[1]]).build(options)
            except cl.Error:
                pass  # made by a driver that calls itself the same, but is another
            else:
                GlobalCounters.cache_hits += 1
                return program
        try:
            program = cl.Program(context, source.text).build(options)
        except cl.Error as error:
            raise CompileError(
                f"{label} cannot build the kernel {source.name!r}: {error}\n"
                f"(MINIGRAD_DEBUG=5 prints kernels; please report this one)"
            ) from None
    GlobalCounters.kernels_compiled += 1
    if cache is not None:
        (binary,) = program.get_info(cl.program_info.BINARIES)
        if binary:
            cache.write(key, {"kernel": source.name}, bytes(binary))
    return program


def _key(device: Any, source: Source, options: list[str]) -> str:
    driver = (device.platform.name, device.platform.version, device.vendor, device.name,
              device.driver_version)  # fmt: skip
    return digest("opencl", *driver, *options, source.text)
