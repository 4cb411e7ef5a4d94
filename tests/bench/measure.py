"""How everything here is measured: a Row is a piece of work, done by us and by each peer.

All of a row's functions run in one process, in turn, round after round; a row's figures are the
medians of its rounds, so that disturbances of the machine affect everyone. Every function does the
work once and returns when it is done.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from minigrad.runtimes.cpu_limits import Limits, measured_limits
from tests.bench import peers
from tests.bench.peers import Work

ROUND_SECONDS = 0.03  # short work is repeated until a round has taken this long
CALM_SECONDS = 0.06  # after which the idle threads of every library no longer spin

THREAD_VARIABLES = (
    "MINIGRAD_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A piece of work. flops: floating-point operations (a multiply-add is two); bytes: the least
    that must be read and written; goal: the desired ratio best peer / ours; reads_only: whether
    next to nothing of the bytes is written.
    """

    name: str
    ours: Work
    peers: Mapping[str, Work]
    flops: float = 0.0
    bytes: float = 0.0
    goal: float | None = None
    reads_only: bool = False


@dataclass
class Result:
    """Seconds per run of the work, by name ("minigrad" is ours), one entry per round."""

    row: Row
    seconds: dict[str, list[float]] = field(default_factory=dict)
    limits: list[Limits] = field(default_factory=list)

    def median(self, name: str) -> float:
        """The median of the rounds, in seconds."""
        return statistics.median(self.seconds[name])

    @property
    def best_peer(self) -> str | None:
        """The fastest peer."""
        names = [name for name in self.seconds if name != "minigrad"]
        return min(names, key=self.median, default=None)

    @property
    def ratio(self) -> float | None:
        """The best peer's time divided by ours."""
        peer = self.best_peer
        return None if peer is None else self.median(peer) / self.median("minigrad")

    @property
    def limit(self) -> float:
        """The least time that the machine needs, in seconds: the median of its limits in the
        rounds.

        A virtual machine's bandwidth varies by half, depending on where its processors run and what
        its neighbours do, so the limit of its best moment is no measure for the work.
        """
        return statistics.median(
            max(
                self.row.flops / machine.operations,
                machine.moving(self.row.bytes, self.row.reads_only),
            )
            for machine in self.limits
        )


def restart_tuned(threads: int, tuned: bool = True) -> None:
    """Start this process again with the environment under which peers are at their best.

    Allocators and thread pools read their environment once, when a process starts.
    """
    if os.environ.get("MINIGRAD_BENCH_CHILD") == str(threads):
        return
    given = {**os.environ, "JAX_PLATFORMS": "cpu", "MINIGRAD_BENCH_CHILD": str(threads)}
    given |= dict.fromkeys(THREAD_VARIABLES, str(threads))
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):  # numpy should choose its kernels itself
        given.pop(name, None)
    if threads == 1:
        given["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    if tuned:
        given |= peers.environment(threads)
    # sys.argv[0] is the module's file: run it as a module, as it was started
    module = sys.modules["__main__"].__spec__
    assert module is not None, "start benchmarks with python -m"
    name = module.name.removesuffix(".__main__")
    os.execve(sys.executable, [sys.executable, "-m", name, *sys.argv[1:]], given)


def measure(row: Row, rounds: int = 7) -> Result:
    """Run a row's functions in turn, and measure them."""
    works = {"minigrad": row.ours, **row.peers}
    repeats = {}
    for name, work in works.items():
        for _ in range(3):  # compile, capture, warm the caches
            work()
        started = time.perf_counter()
        work()
        repeats[name] = max(1, round(ROUND_SECONDS / max(time.perf_counter() - started, 1e-7)))
    result = Result(row, {name: [] for name in works})
    for _ in range(rounds):
        result.limits.append(measured_limits())
        for name, work in works.items():
            count = repeats[name]
            time.sleep(CALM_SECONDS)  # or the previous one's threads would take a core away
            work()
            started = time.perf_counter()
            for _ in range(count):
                work()
            result.seconds[name].append((time.perf_counter() - started) / count)
    return result


HEADER = (
    "| work | minigrad | best peer | others | ratio | goal | limit | share of it |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- |"
)


def as_line(result: Result) -> str:
    """A result as a line of a table in Markdown."""
    peer, ratio, ours = result.best_peer, result.ratio, result.median("minigrad")
    others = [n for n in result.seconds if n not in ("minigrad", peer)]
    cells = [
        result.row.name,
        duration(ours),
        f"{peer} {duration(result.median(peer))}" if peer else "–",
        ", ".join(f"{n} {duration(result.median(n))}" for n in others) or "–",
        f"{ratio:.2f}" if ratio else "–",
        f"{result.row.goal:.2f}" if result.row.goal else "–",
        duration(result.limit) if result.limit else "–",
        f"{100 * result.limit / ours:.0f} %" if result.limit else "–",
    ]
    return "| " + " | ".join(cells) + " |"


def duration(seconds: float) -> str:
    """A time with three digits and a unit."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1 or unit == "µs":
            return f"{seconds * factor:.3g} {unit}"
    raise AssertionError


def show(rows: Iterable[Row], rounds: int = 7) -> list[str]:
    """Measure rows and print each line at once; returns the lines."""
    print(HEADER, flush=True)
    lines = []
    for row in rows:
        lines.append(as_line(measure(row, rounds)))
        print(lines[-1], flush=True)
    return lines
