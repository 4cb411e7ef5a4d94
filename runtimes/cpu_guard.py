"""Programs under `GUARD=1`: every array that a kernel touches ends at an unreadable page.

An access outside ends the process at the instruction that makes it (a write before the beginning is
reported when the block is freed). Each array between kernels and each thread's scratch memory is a
block of its own, mapped for one run: slow, and meant for tests.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping, Sequence

from minigrad.device import Buffer
from minigrad.graph.variable import evaluate, most
from minigrad.program import GlobalCounters
from minigrad.runtimes import cpu_memory
from minigrad.runtimes.cpu_exchange import Exchanges, watched
from minigrad.runtimes.cpu_kernels import Kernel, Plan, entry_address
from minigrad.runtimes.cpu_pool import Launch, guarded_pool_for


class GuardedProgram:
    """A plan that is run kernel by kernel, between guards."""

    def __init__(self, device: str, plan: Plan) -> None:
        self.plan = plan
        self.pool = guarded_pool_for(device)
        self.exchanges = Exchanges(device, self.pool)
        self.addresses = [entry_address(kernel, self.exchanges) for kernel in plan.kernels]
        self._run = watched(self.pool.run_guarded, self.pool, [self.exchanges])

    def run(self, buffers: Sequence[Buffer], variables: Mapping[str, int]) -> None:
        """Map the blocks, run the kernels in order, and unmap the blocks."""
        plan = self.plan
        sizes = [most(one.nbytes, variables) for one in plan.held]
        blocks = [cpu_memory.allocate_exact(nbytes) for nbytes in sizes]
        try:
            memories = [buffer.memory for buffer in buffers]
            each = zip(plan.kernels, self.addresses, plan.sources, strict=True)
            for kernel, address, sources in each:
                words = [
                    memories[where] if kind == "slot"
                    else blocks[where] if kind == "held"
                    else where if kind == "number"
                    else variables[where]
                    for kind, where in sources
                ]  # fmt: skip
                self._run_kernel(kernel, address, words, evaluate(kernel.code.total, variables))
        finally:
            for block, nbytes in zip(blocks, sizes, strict=True):
                cpu_memory.free(block, nbytes)
        codes = [kernel.code for kernel in plan.kernels]
        operations = sum(code.operations for code in codes)
        GlobalCounters.ran(len(codes), operations, sum(code.traffic for code in codes))

    def _run_kernel(
        self, kernel: Kernel, address: int, words: Sequence[int], total: int
    ) -> None:
        """A table of one launch, with scratch areas of this kernel's size."""
        arguments = struct.pack(f"={len(words)}q", *words)
        memory = ctypes.create_string_buffer(arguments, max(len(arguments), 8))
        table = (Launch * 1)(Launch(address, ctypes.addressof(memory), total, kernel.code.grain))
        self._run(ctypes.addressof(table), 1, kernel.code.scratch_bytes)
