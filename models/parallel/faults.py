"""How a parallel program fails: a rank's fault, in a sentence that names the rank."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from minigrad.errors import DeviceError
from minigrad.models.errors import InputError
from minigrad.models.interrupt import heard

ADVICE = "all ranks must make the same exchanges in the same order"
SAME_DATA = (
    "on a mesh, all ranks must give the same array; load it from the same file, or give all ranks "
    "the same seed, e.g. np.random.default_rng(0)"
)


class RankError(DeviceError):
    """A rank raised, died or hangs: the parallel program cannot continue.

    number: the rank at fault; -1 if the program as a whole was stopped.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


def told(rank: int, error: BaseException) -> str:
    """A rank's exception as a sentence; a user's error is not blamed on a rank."""
    if isinstance(error, InputError):
        return str(error)
    return f"rank {rank} failed: {named(error)}"


def named(error: BaseException) -> str:
    """An exception's kind and message, as Python prints them."""
    return f"{type(error).__name__}: {error}".removesuffix(": ")


@dataclass(frozen=True)
class Sign:
    """A sign of life: what a rank does, since how many seconds, after how many exchanges.

    asked: the signal that told it to end, if any.
    """

    state: str  # "computing", "waiting" (for an exchange), "ended"
    seconds: float
    exchanges: int
    asked: int = 0


class Clock:
    """Seconds for which this process was awake, measured by ticks every `beat` seconds.

    A late tick means that everything stood still (Ctrl-Z, a job that Slurm suspends, a sleeping
    laptop), which must not count against ranks that wait.
    """

    def __init__(self) -> None:
        self.seconds, self._last = 0.0, time.monotonic()

    def tick(self, beat: float) -> None:
        """Add the time since the last tick, at most two beats."""
        now = time.monotonic()
        self.seconds += min(now - self._last, 2 * beat)
        self._last = now


class Activity:
    """What this rank's program is doing, recorded by itself and read by a watch."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.state, self.since, self.exchanges = "computing", clock.seconds, 0

    def enter(self, state: str) -> None:
        """Record a new state."""
        self.state, self.since = state, self.clock.seconds

    def sign(self) -> Sign:
        """The current sign of life."""
        return Sign(self.state, self.clock.seconds - self.since, self.exchanges, heard())


def culprit(signs: Mapping[int, Sign], silence: Mapping[int, float], patience: float) -> str | None:
    """A sentence about the rank that keeps the others waiting for longer than `patience` seconds.

    signs: the latest of each rank; silence: seconds since it arrived.
    """
    for rank, seconds in silence.items():
        if seconds > patience and signs[rank].state != "ended":
            return f"rank {rank} hangs: no sign of life for {seconds:.0f} s"
    waiting = [sign for sign in signs.values() if sign.state == "waiting"]
    if not any(sign.seconds > patience for sign in waiting):
        return None
    behind = {rank: sign for rank, sign in signs.items() if sign.state != "waiting"}
    longest = max(sign.seconds for sign in waiting)
    limit = f"(MINIGRAD_PATIENCE={patience:g}; 0 waits forever)"
    if not behind and all(sign.seconds > patience for sign in waiting):
        made = ", ".join(f"rank {rank} after {sign.exchanges}" for rank, sign in signs.items())
        return f"all ranks have waited for {longest:.0f} s ({made} exchanges): {ADVICE} {limit}"
    if not behind:
        furthest = max(sign.exchanges for sign in waiting)
        behind = {rank: sign for rank, sign in signs.items() if sign.exchanges < furthest} or {
            rank: sign for rank, sign in signs.items() if sign.seconds > patience
        }
    rank, sign = min(behind.items(), key=lambda item: item[1].exchanges)
    what = "has ended" if sign.state == "ended" else "hangs"
    return (
        f"rank {rank} {what}: it made {sign.exchanges} exchanges, and the others have waited for "
        f"{longest:.0f} s for its next {limit}"
    )
