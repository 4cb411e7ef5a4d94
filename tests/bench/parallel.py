"""Many devices: `python -m tests.bench parallel`, or some rows: `… parallel --only dp`.

Efficiency: the time of a training step on one rank, divided by twice the time on two ranks. Each
rank has one thread and one core; both are MPI processes that do steps in turn. The model is a GPT
of 6 layers, 384 dims, with a batch of 8 × 256 (sp: 2 layers, one text of 8,192 tokens; ep: 8
experts). Pipelines are compared with one rank that takes as many micro-batches one after the other;
their limit is 1 − the idle share of their schedule, and the measured idle share of stages is next
to it. "two alone": a training on one rank against two such trainings at once on two cores, which
share nothing but caches and memory. Rings: all-reduces of 4 KiB … 64 MiB against MPI_Allreduce,
interleaved in the same processes; two ranks add in memory that they share.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from minigrad.models.gpt_config import GPTConfig
from minigrad.models.network_model import Layout
from minigrad.models.network_trial import Report, mpiexec, started
from minigrad.models.parallel import schedules
from minigrad.models.parallel.layouts import cut_layers

ROOT = Path(__file__).resolve().parent.parent.parent
SIZES = (1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 4 << 20, 16 << 20, 64 << 20)  # bytes
CONFIG, BATCH = GPTConfig(6, 6, 384, 256, 65), 8
LONG = GPTConfig(2, 6, 384, 8192, 65)

class Kind(NamedTuple):
    """A layout, and its wanted efficiency; copies: several trainings at once, of one rank each."""

    layout: Layout
    limit: float = 0.0
    copies: int = 1


KINDS = {
    "two alone, 1 part": Kind(Layout(), copies=2),
    "two alone, 8 parts": Kind(Layout(micro=8), copies=2),
    "dp": Kind(Layout(dp=2), 0.95), "zero 3": Kind(Layout(dp=2, zero=3), 0.9 * 0.95),
    "tp": Kind(Layout(tp=2), 0.85), "tp, tokens": Kind(Layout(tp=2, tokens=True), 0.85),
    "sp": Kind(Layout(sp=2), 0.85), "ep": Kind(Layout(ep=2), 0.85),
}  # fmt: skip
GOALS = {2: dict.fromkeys(SIZES, 1.0), 4: {4 << 20: 0.8}}  # of a ring, by ranks and size


def rings(rank: Any, rounds: int) -> list[list[float]]:
    """(bytes, medians of the ring and of MPI_Allreduce, the best of each), of the slowest rank."""
    import numpy as np
    from mpi4py import MPI

    from minigrad import dtypes
    from minigrad.collective import Piece
    from minigrad.device import Buffer
    from minigrad.models.parallel import ring

    group, rows = rank.world, []
    group.members.transport.pressing = True
    for size in SIZES:
        count = size // 4
        mine = Buffer("CPU", dtypes.float32, count)
        mine.copy_in(bytes(mine.nbytes))
        sent, other = [Piece(mine.memory, count)], np.zeros(count, np.float32)
        times: list[list[float]] = [[], []]
        for number in range(2 * (max(rounds, min((1 << 24) // size, 400)) + 2)):
            MPI.COMM_WORLD.Barrier()
            start = time.perf_counter()
            if number % 2:
                MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, other)
            else:
                ring.all_reduce(group.members, sent, mine.memory, dtypes.float32, "sum",
                                group.kernels)  # fmt: skip
            took = time.perf_counter() - start
            times[number % 2].append(MPI.COMM_WORLD.allreduce(took, MPI.MAX))
        rows.append([size, *(statistics.median(one[2:]) for one in times),
                     *(min(one[2:]) for one in times)])  # fmt: skip
    return rows


def child(given: str) -> None:
    """One process of rings; rank 0 prints the results."""
    from minigrad.models.parallel import run

    os.environ["MINIGRAD_THREADS"] = "1"
    number = int(os.environ.get("PMI_RANK", "0"))
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[number % len(cores)]})
    ranks, rounds = json.loads(given)
    found = run(lambda rank: rings(rank, rounds), ranks)[number]
    if number == 0:
        print(json.dumps(found))


def ring_lines(ranks: int, rounds: int) -> Iterator[str]:
    """Lines of the table of rings."""
    command = [mpiexec(), "-n", str(ranks), sys.executable, "-m", "mpi4py", "-m",
               "tests.bench.parallel", json.dumps([ranks, rounds])]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    share = 2 * (ranks - 1) / ranks / 1e9
    for size, ring, other, best, others_best in json.loads(done.stdout.splitlines()[-1]):
        goal = GOALS[ranks].get(size)
        missed = goal is not None and other / ring < goal
        yield (f"| {size >> 10:,} KiB | {share * size / ring:.2f} GB/s | "
               f"{share * size / other:.2f} GB/s | {other / ring:.2f}"
               f"{', **missed**' if missed else ''} | {goal or '–'} | {others_best / best:.2f} |"
               )  # fmt: skip


def compared(kind: Kind, config: GPTConfig, batch: int, rounds: int) -> list[Report]:
    """Steps on one rank and on two, in turn: the median round of each."""
    alone = Layout(micro=kind.layout.micro)
    with (
        started(alone, config, batch) as one,
        started(kind.layout, config, batch, copies=kind.copies) as two,
    ):
        found = [(one.steps(1), two.steps(1)) for _ in range(rounds)]
    return [sorted(some, key=lambda report: report.seconds)[rounds // 2]
            for some in zip(*found, strict=True)]  # fmt: skip


def pipelines() -> Iterator[tuple[str, Kind]]:
    """All schedules; their limit is the busy share of the schedule's table."""
    for schedule in schedules.SCHEDULES:
        for micro in (4, 8):
            pieces = 2 if schedule == "interleaved" else 1
            layout = Layout(pp=2, schedule=schedule, micro=micro, pieces=pieces)
            order = schedules.make_table(schedule, 2, micro, 2 * pieces)
            rows = schedules.simulate(order, sizes=cut_layers(order, CONFIG)[1])
            yield f"pp {schedule}, {micro} parts", Kind(layout, 1 - schedules.bubble(rows))


def line(name: str, kind: Kind, rounds: int) -> str:
    """A row of the table of layouts."""
    layout = kind.layout
    config, batch = (LONG, 1) if layout.sp > 1 else (CONFIG, BATCH)
    if layout.ep > 1:
        config = replace(config, experts=8)
    one, two = compared(kind, config, batch, rounds)
    share = one.seconds / two.seconds / layout.devices
    wanted, good = f"{kind.limit:.3f}" if kind.limit else "–", share >= kind.limit
    if layout.pp > 1:
        wanted, good = f"{wanted} ± 0.05", abs(share - kind.limit) <= 0.05
    return (f"| {name} | {1e3 * one.seconds:.0f} ms | {1e3 * two.seconds:.0f} ms | "
            f"{share:.3f}{'' if good else ', **missed**'} | {wanted} | {two.idle:.1%} | "
            f"{two.memory / one.memory:.2f}× |")  # fmt: skip


def table(rounds: int, only: str = "") -> Iterator[str]:
    """The lines of all rows, or of those whose names match."""
    kinds = {**KINDS, **dict(pipelines())}
    chosen = [(name, kind) for name, kind in kinds.items() if re.search(only, name)]
    if chosen:
        yield "| layout | one rank | two ranks | efficiency | goal, limit | stages idle | memory |"
        yield "| --- | --- | --- | --- | --- | --- | --- |"
    for name, kind in chosen:
        yield line(name, kind, rounds)
    for ranks in GOALS:
        if re.search(only, f"ring {ranks}"):
            yield (f"\n| ring of {ranks} beside MPI_Allreduce | ring | MPI | ratio | goal "
                   "| of the best |")  # fmt: skip
            yield "| --- | --- | --- | --- | --- | --- |"
            yield from ring_lines(ranks, 5 * rounds)


if __name__ == "__main__":
    child(sys.argv[1])
