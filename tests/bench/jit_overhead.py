"""The cost of a replay in Python: `python tests/bench/jit_overhead.py`.

A step of eight small inputs and a trivial kernel is called many times, with the same tensors and
with other ones each time; the time of the native call alone is subtracted. Figures are the best of
many rounds: this measures code, not the machine's load.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from minigrad import Tensor, jit

CALLS, ROUNDS = 1000, 20


def best(action: Callable[[], object]) -> float:
    """Microseconds of one call: the shortest of ROUNDS rounds of CALLS calls."""
    shortest = float("inf")
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(CALLS):
            action()
        shortest = min(shortest, (time.perf_counter() - started) / CALLS)
    return shortest * 1e6


def main() -> None:
    """Print the table."""

    @jit
    def step(a, b, c, d, e, f, g, h):
        return (a + h).realize()

    sets = [[Tensor([float(n)] * 4).realize() for n in range(8)] for _ in range(2)]
    for _ in range(3):
        step(*sets[0])
    (serve,) = step._replays.values()
    native = best(serve.__globals__["capture"].replay.native)
    nothing = best(lambda: None)

    def changing():
        step(*sets[0])
        step(*sets[1])

    scalar = Tensor(1.5).realize()
    figures = {
        "native call alone": native,
        "replay, the same 8 inputs": best(lambda: step(*sets[0])) - native,
        "replay, 8 other inputs each time": best(changing) / 2 - native,
        "item() of a realized number": best(scalar.item),
        "(an empty Python call)": nothing,
    }
    for name, microseconds in figures.items():
        print(f"{name:36s} {microseconds:6.2f} µs")


if __name__ == "__main__":
    main()
