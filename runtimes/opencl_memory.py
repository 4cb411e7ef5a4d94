"""Memory of one OpenCL device: buffers, pooled by size class.

`free` may be called by the garbage collector at any moment. So it only puts the buffer into a
queue, which `allocate` processes. A buffer may be reused while kernels that use it still wait in
the device's queue: that queue is in order, so the new user comes after them.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import Any

from minigrad.errors import DeviceError
from minigrad.locks import new_rlock
from minigrad.program import GlobalCounters
from minigrad.runtimes.cpu_memory import size_class
from minigrad.runtimes.opencl_devices import opencl


class Pool:
    """Buffers of one context."""

    def __init__(self, name: str, context: Any, device: Any) -> None:
        self.name, self.context = name, context
        self.most: int = device.max_mem_alloc_size
        self.total: int = device.global_mem_size
        self.held = 0  # bytes allocated on the device
        self._idle: dict[int, list[Any]] = {}
        self._returned: deque[tuple[Any, int]] = deque()
        self._lock = new_rlock()

    def allocate(self, nbytes: int) -> Any:
        """A buffer of at least nbytes. Raises DeviceError if the device lacks the memory."""
        size = self._size(nbytes)
        with self._lock:
            self._put_away()
            idle = self._idle.get(size)
            memory = idle.pop() if idle else self._fresh(size, nbytes)
        GlobalCounters.mem_used += size
        GlobalCounters.mem_peak = max(GlobalCounters.mem_peak, GlobalCounters.mem_used)
        return memory

    def free(self, memory: Any, nbytes: int) -> None:
        """Keep a buffer for a later `allocate`."""
        size = self._size(nbytes)
        self._returned.append((memory, size))
        GlobalCounters.mem_used -= size

    def _size(self, nbytes: int) -> int:
        """The size of a buffer for nbytes: its size class, or nbytes for the largest ones."""
        size = size_class(nbytes)
        return size if size <= self.most else nbytes

    def _put_away(self) -> None:
        while self._returned:
            memory, size = self._returned.popleft()
            self._idle.setdefault(size, []).append(memory)

    def _fresh(self, size: int, nbytes: int) -> Any:
        cl = opencl()
        if size > self.most:
            raise DeviceError(
                f"{self.name}: cannot allocate {nbytes:,} bytes: the largest possible buffer has "
                f"{self.most:,} bytes, and {self.held:,} of {self.total:,} bytes are in use; use a "
                "smaller batch or model"
            )
        wanted = f"a buffer of {nbytes:,} bytes"
        if self.held + size > self.total:
            self._trim()
        if self.held + size > self.total:
            # A driver may promise more than there is: PoCL's process is killed when it uses it.
            raise self.exhausted(wanted)
        try:
            memory = cl.Buffer(self.context, cl.mem_flags.READ_WRITE, size)
        except (cl.Error, MemoryError):
            self._trim()
            try:
                memory = cl.Buffer(self.context, cl.mem_flags.READ_WRITE, size)
            except (cl.Error, MemoryError) as error:
                raise self.exhausted(wanted, f" ({error})") from None
        self.held += size
        return memory

    def _trim(self) -> None:
        """Return idle buffers to the device."""
        cl = opencl()
        for size, buffers in self._idle.items():
            for memory in buffers:
                with suppress(cl.Error):  # the device may have vanished, with its memory
                    memory.release()
                self.held -= size
        self._idle.clear()

    def exhausted(self, what: str, why: str = "") -> DeviceError:
        """The error if the device has no memory for something; why: the driver's reason."""
        return DeviceError(
            f"{self.name}: out of memory for {what}{why}: {self.held:,} of {self.total:,} bytes "
            "are in use; use a smaller batch or model, or delete tensors that you no longer need"
        )
