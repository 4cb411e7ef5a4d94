"""Random products of 64 … 1024 against numpy: `python -m tests.bench.random_products`.

Prints the ratio of numpy's time to ours for each, then the median and the 5th percentile. `--count
50` measures fewer, `--seed 3` others. `--threads 1` measures the processor time of one thread,
which other processes disturb less than wall time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import numpy as np

from minigrad import Tensor, jit
from tests.bench.measure import restart_tuned

LAYOUTS = ("A·B", "A·Bᵀ", "Aᵀ·B", "Aᵀ·Bᵀ")
SECONDS = 0.015  # least time that each side is measured for
CALM_SECONDS = 0.03  # after which numpy's threads no longer spin


def best(work: Callable[[], object], clock: Callable[[], float]) -> float:
    """Seconds of the fastest of many calls."""
    time.sleep(CALM_SECONDS)
    work()
    times: list[float] = []
    while len(times) < 3 or sum(times) < SECONDS:
        started = clock()
        work()
        times.append(clock() - started)
    return min(times)


def ratio(generator: np.random.Generator, clock: Callable[[], float]) -> tuple[str, float]:
    """One random product: its name, and numpy's time divided by ours."""
    m, k, n = (int(2 ** generator.uniform(6, 10)) for _ in range(3))
    layout = int(generator.integers(4))
    a = generator.standard_normal((k, m) if layout & 2 else (m, k), dtype=np.float32)
    b = generator.standard_normal((n, k) if layout & 1 else (k, n), dtype=np.float32)

    def product(x, y):
        return (x.T if layout & 2 else x) @ (y.T if layout & 1 else y)

    x, y = Tensor(a).realize(), Tensor(b).realize()
    step = jit(lambda x, y: product(x, y).realize())
    for _ in range(3):
        found = step(x, y).numpy()
    expected = product(a, b)
    assert np.abs(found - expected).max() <= 1e-5 * k * np.abs(a).max() * np.abs(b).max()
    theirs, ours = best(lambda: product(a, b), clock), best(lambda: step(x, y), clock)
    return f"{m}×{k}×{n} {LAYOUTS[layout]}", theirs / ours


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    restart_tuned(given.threads, tuned=False)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.threads])
    generator = np.random.default_rng(given.seed)
    clock = time.process_time if given.threads == 1 else time.perf_counter
    found = [ratio(generator, clock) for _ in range(given.count)]
    for name, value in sorted(found, key=lambda item: item[1]):
        print(f"{value:6.2f}  {name}")
    values = sorted(value for _, value in found)
    low = values[len(values) // 20]
    print(f"seed {given.seed}: median {statistics.median(values):.2f}, 5th percentile {low:.2f}")


if __name__ == "__main__":
    main()
