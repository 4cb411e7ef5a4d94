"""Ctrl-C during a long program: noticed between two kernels, not only at the end.

Python runs signal handlers on the main thread between instructions, so not while that thread is in
native code. But the signal itself writes a byte to the process's wakeup descriptor at once. During
a long program on the main thread, that descriptor is a socket of ours on which a thread listens. It
tells the pool to stop before the next launch, and Python then raises KeyboardInterrupt.

In these cases nothing is done, and the handler runs when the program has ended: if SIGINT has
another handler than Python's own, if other code uses the wakeup descriptor (asyncio does), and on
other threads, to which Python does not deliver signals.
"""

from __future__ import annotations

import signal
import socket
import threading
from functools import partial

from minigrad.locks import in_child, new_lock
from minigrad.runtimes.cpu_pool import Pool, Run

# Operations and bytes from which a program is long: a millisecond at best, and a third of a second
# in scalar code; watching costs a few microseconds.
LONG = 1 << 28


class _Watcher:
    """A thread that interrupts the pool that the main thread is running, if any."""

    def __init__(self) -> None:
        self.pool: Pool | None = None
        self.interrupted = False
        self.lock = new_lock()
        self.listening, self.signalled = socket.socketpair()
        self.signalled.setblocking(False)
        thread = threading.Thread(target=self._listen, name="minigrad Ctrl-C", daemon=True)
        thread.start()

    def _listen(self) -> None:
        """Wait for bytes, but take them under the lock: `begin` removes those of older programs."""
        while self.listening.recv(1, socket.MSG_PEEK):
            with self.lock:
                if signal.SIGINT in self._take() and self.pool is not None:
                    self.interrupted = True
                    self.pool.interrupt()

    def _take(self) -> bytes:
        """The numbers of the signals since the last call."""
        try:
            return self.listening.recv(64, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""

    def begin(self, pool: Pool) -> None:
        """From now on a signal interrupts the pool; Python has handled earlier ones."""
        with self.lock:
            while self._take():
                pass
            self.pool, self.interrupted = pool, False

    def end(self) -> None:
        """Stop; an interrupt that came too late must not end the pool's next run."""
        with self.lock:
            if self.pool is not None and self.interrupted:
                self.pool.forget_interrupt()
            self.pool = None


_watcher: _Watcher | None = None


def runner(pool: Pool, work: int) -> Run:
    """The function that runs so many operations and bytes: `pool.run`, or one that SIGINT ends."""
    return pool.run if work < LONG else partial(run_interruptibly, pool)


def run_interruptibly(pool: Pool, table: int, count: int, scratch_bytes: int = 0) -> None:
    """Like `pool.run`, but SIGINT ends it before the next launch, with KeyboardInterrupt."""
    global _watcher
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        pool.run(table, count, scratch_bytes)
        return
    if _watcher is None:
        _watcher = _Watcher()
    watcher, ours = _watcher, _watcher.signalled.fileno()
    before = signal.set_wakeup_fd(ours, warn_on_full_buffer=False)
    try:
        if before in (-1, ours):
            watcher.begin(pool)
        else:  # other code uses it: restore it
            signal.set_wakeup_fd(before)
        pool.run(table, count, scratch_bytes)
    finally:
        watcher.end()
        if before in (-1, ours):
            signal.set_wakeup_fd(-1)


def _after_fork() -> None:
    """In the child of a fork: it has no watcher thread, and shares the socket with its parent."""
    global _watcher
    _watcher = None


in_child(_after_fork)
