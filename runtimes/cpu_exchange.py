"""Exchanges in a launch table: entries whose kernel is a Python function.

Such an entry looks like any other, so the driver needs no knowledge of it. Its `kernel` is a C
function that takes the interpreter's lock, and starts an exchange or waits for it. A Python
exception cannot pass through native code: it is stored, the table is interrupted, and the code that
ran the table raises it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minigrad.collective import Exchange
from minigrad.dtype import named
from minigrad.graph.collective import Collective
from minigrad.runtimes.cpu_interrupt import Run
from minigrad.runtimes.cpu_pool import Pool

_KERNEL = ctypes.CFUNCTYPE(
    None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p
)


@dataclass(frozen=True)
class ExchangeCode:
    """An exchange as a plan stores it: see `minigrad.collective.Exchange`."""

    collective: Collective
    dtype: str
    counts: tuple[int, ...]
    size: int


class Exchanges:
    """The exchanges of one program on a device; `address` gives the functions of its entries."""

    def __init__(self, device: str, pool: Pool) -> None:
        self.device, self.pool = device, pool
        self.error: BaseException | None = None
        self._made: dict[int, Exchange] = {}
        self._functions: list[Any] = []

    def __bool__(self) -> bool:
        return bool(self._made)

    def address(self, code: ExchangeCode, is_start: bool) -> int:
        """The address of a function that starts or ends an exchange, and lives as long as this."""
        exchange = self._made.get(code.collective.number)
        if exchange is None:
            exchange = Exchange(
                self.device, code.collective, named(code.dtype), code.counts, code.size
            )
            self._made[code.collective.number] = exchange
        words = len(code.counts) + 1

        def kernel(begin: int, end: int, args: int, scratch: int) -> None:
            try:
                if self.error is None and is_start:
                    exchange.start(list((ctypes.c_int64 * words).from_address(args)))
                elif self.error is None:
                    exchange.finish()
            except BaseException as error:
                self.error = error
                self.pool.interrupt()

        function = _KERNEL(kernel)
        self._functions.append(function)
        return ctypes.cast(function, ctypes.c_void_p).value or 0


def watched(run: Run, pool: Pool, programs: Sequence[Exchanges]) -> Run:
    """`run`, changed to raise the error of an exchange of the programs, if there was one."""
    some = [exchanges for exchanges in programs if exchanges]
    if not some:
        return run

    def run_and_look(table: int, count: int, scratch_bytes: int) -> None:
        try:
            run(table, count, scratch_bytes)
        except KeyboardInterrupt:
            if all(exchanges.error is None for exchanges in some):
                raise
        for exchanges in some:
            failed, exchanges.error = exchanges.error, None
            if failed is not None:
                pool.forget_interrupt()
                raise failed

    return run_and_look


