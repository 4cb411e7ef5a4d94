"""Memory does not grow: many training steps of a tiny model, captured and not.

    python -m tests.bench.memory_steps [--captured 10000] [--plain 2000] [--graphs 3000]

After a warm-up, tensors use the same memory after every step, the process grows by less than a few
MiB, and no table of the compiler grows. `--graphs` runs this many different programs, of which the
process keeps only the last ones.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import _lru_cache_wrapper

import numpy as np

from minigrad import GlobalCounters, Tensor, jit, nn, program
from minigrad.graph import node
from minigrad.runtimes import cpu, cpu_memory

MOST_GROWTH = 3.0  # MiB for the process, over all measured steps


def resident() -> float:
    """MiB of this process that are in memory now (Linux)."""
    with open("/proc/self/status") as file:
        (line,) = (line for line in file if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


def cached() -> int:
    """The number of entries in all lru_caches of minigrad."""
    total = 0
    for thing in gc.get_objects():
        if isinstance(thing, _lru_cache_wrapper) and thing.__module__.startswith("minigrad"):
            total += thing.cache_info().currsize
    return total


@dataclass(frozen=True)
class State:
    """Figures that must not grow: resident in MiB, held and used in bytes, the others numbers."""

    used: int
    held: int
    nodes: int
    programs: int
    kernels: int
    cached: int
    objects: int
    resident: float

    @classmethod
    def now(cls) -> State:
        """The present state, after a garbage collection."""
        gc.collect()
        return cls(
            GlobalCounters.mem_used, cpu_memory.held_bytes(), len(node._interned),
            len(program.programs), len(cpu.host_kernels()._known), cached(),
            len(gc.get_objects()), resident(),
        )  # fmt: skip

    def growth(self, later: State) -> list[str]:
        """The figures that are larger later than they may be."""
        found = [
            f"{name}: {getattr(self, name):,} → {getattr(later, name):,}"
            for name in ("used", "held", "nodes", "programs", "kernels", "cached")
            if getattr(later, name) > getattr(self, name)
        ]
        if later.objects > self.objects + 200:
            found.append(f"Python objects: {self.objects:,} → {later.objects:,}")
        if later.resident > self.resident + MOST_GROWTH:
            found.append(f"resident: {self.resident:.1f} → {later.resident:.1f} MiB")
        return found


def training_step(captured: bool) -> Callable[[], Tensor]:
    """A function that makes one step of a two-layer network on new data."""
    first, second = nn.Linear(12, 16), nn.Linear(16, 3)
    optimizer = nn.optim.Adam([first.weight, first.bias, second.weight, second.bias], lr=0.01)
    generator = np.random.default_rng(0)

    def step(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = second(first(x).relu()).cross_entropy(y)
        loss.backward()
        optimizer.step()
        return loss.realize()

    run = jit(step) if captured else step

    def once() -> Tensor:
        x = Tensor(generator.standard_normal((8, 12)).astype(np.float32))
        return run(x, Tensor(generator.integers(0, 3, 8).astype(np.int32)))

    return once


def growth_of_steps(steps: int, captured: bool, warm_up: int = 50) -> list[str]:
    """The figures that grew over `steps` steps: an empty list, if all is well."""
    once = training_step(captured)
    for _ in range(warm_up):
        once()
    before = State.now()
    for _ in range(steps):
        once()
    after = State.now()
    print(f"{steps} steps, captured {captured}: {before}\n  {after}", file=sys.stderr)
    return before.growth(after)


def growth_of_graphs(count: int, most: int) -> list[str]:
    """Leftovers of `count` different programs, where `most` programs may be kept."""
    kept, program.programs.most = program.programs.most, most
    try:
        before = State.now()
        for number in range(count):
            x = Tensor(np.ones((3 + number, 5), np.float32))
            (x * 2).sum(0).exp().numpy()
        after = State.now()
    finally:
        program.programs.most = kept
    print(f"{count} programs: {before}\n  {after}", file=sys.stderr)
    found = []
    if after.programs > max(most, before.programs):
        found.append(f"programs: {after.programs}, at most {most} were to be kept")
    if after.kernels > before.kernels + most:
        found.append(f"kernels: {after.kernels} of {after.programs} programs")
    return found


def main() -> None:
    """Run the long test."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captured", type=int, default=10_000)
    parser.add_argument("--plain", type=int, default=2_000)
    parser.add_argument("--graphs", type=int, default=3_000)
    parser.add_argument("--most", type=int, default=256, help="most programs that may be cached")
    given = parser.parse_args()
    found = growth_of_steps(given.captured, captured=True)
    found += growth_of_steps(given.plain, captured=False)
    found += growth_of_graphs(given.graphs, given.most)
    print("\n".join(found) or "memory stays flat")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
