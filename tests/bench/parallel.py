"""Many devices: `python -m tests.bench.parallel bandwidth --ranks 2`, `… dp`, `… sp`, `… pp`.

bandwidth: a ring all-reduce of 4 … 64 MB beside MPI_Allreduce, interleaved in the same processes.
dp: a training step of the GPT of 6 layers and 384 dims, at one global batch, on one rank and on
two. sp: the same for one sequence of 8,192 tokens, with each rank's peak of memory. pp: the step of
dp with its layers at stages, and which share of it these are idle, by table and measured. Each rank
has one thread and one core. Ranks are processes of MPI.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.parallel.ranks import mpiexec

ROOT = Path(__file__).resolve().parent.parent.parent
MEGABYTES = (4, 8, 16, 32, 64)


def bandwidth(rank: Any, rounds: int) -> list[list[float]]:
    """(megabytes, seconds of the ring, of MPI_Allreduce, the best of each): of the slowest rank."""
    import numpy as np
    from mpi4py import MPI

    from minigrad import dtypes
    from minigrad.device import Buffer
    from minigrad.models.parallel import ring

    group, rows = rank.world, []
    group.members.transport.pressing = True
    for size in MEGABYTES:
        count = (size << 20) // 4
        mine = Buffer("CPU", dtypes.float32, count)
        mine.copy_in(bytes(mine.nbytes))
        other = np.zeros(count, np.float32)
        times: list[list[float]] = [[], []]
        for _ in range(rounds + 2):
            for which in range(2):
                MPI.COMM_WORLD.Barrier()
                start = time.perf_counter()
                if which:
                    MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, other)
                else:
                    ring.ring_all_reduce(
                        group.members, mine.memory, count, dtypes.float32, "sum", group
                    )
                took = MPI.COMM_WORLD.allreduce(time.perf_counter() - start, MPI.MAX)
                times[which].append(took)
        middle = [statistics.median(one[2:]) for one in times]
        rows.append([float(size), *middle, *(min(one[2:]) for one in times)])
    return rows


def training(rank: Any, config: Any, batch: int, rounds: int) -> list[float]:
    """(seconds of a step, peaks of device memory and of the process, seconds of the processor)."""
    import numpy as np

    from minigrad import GlobalCounters, Tensor
    from minigrad.models.gpt import GPT
    from minigrad.models.parallel.training import Replica
    from minigrad.models.train import MatrixAdamW, TrainingPlan, make_step
    from minigrad.nn.state import get_parameters

    Tensor.manual_seed(1)
    model, plan = GPT(config), TrainingPlan(batch=batch)
    replica = None if rank is None else Replica.of_gpt(rank, model, config.context)
    optimizer = MatrixAdamW(get_parameters(model), plan)
    step = make_step(model, optimizer, 1.0, replica=replica)
    times, used = [], []
    for number in range(rounds + 3):
        ids = np.random.default_rng(number).integers(0, config.vocabulary, (batch, config.context))
        parts = [ids.astype(np.int32), np.roll(ids, -1, 1).astype(np.int32)]
        if replica is not None:
            parts = replica.part(*parts)
        if number == 3:
            GlobalCounters.reset()
        start, before = time.perf_counter(), time.process_time()
        with Tensor.train():
            step(*map(Tensor, parts)).item()
        times.append(time.perf_counter() - start)
        used.append(time.process_time() - before)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    middle = statistics.median(times[3:]), statistics.median(used[3:])
    return [middle[0], GlobalCounters.mem_peak, peak, middle[1]]


def pipelines(ranks: int, config: Any, batch: int, rounds: int) -> list[list[Any]]:
    """(schedule, micro-batches, idle share by its table, measured, seconds of a step) of each."""
    import numpy as np

    from minigrad import Tensor
    from minigrad.models.gpt import GPT
    from minigrad.models.parallel import layouts, schedules
    from minigrad.models.train import MatrixAdamW, TrainingPlan

    plan, rows = TrainingPlan(batch=batch), []
    for schedule, micro in itertools.product(schedules.SCHEDULES, (2, 4, 8)):
        Tensor.manual_seed(1)
        pieces = 2 if schedule == "interleaved" else 1
        made = layouts.pipeline(GPT(config), ranks, {"dp": 1}, schedule, micro, pieces)
        made.train_with(lambda params: MatrixAdamW(params, plan), 1.0)
        times, idle = [], []
        for number in range(rounds + 3):
            ids = np.random.default_rng(number).integers(0, 65, (batch, config.context), np.int32)
            start = time.perf_counter()
            made.step(ids, np.roll(ids, -1, 1))
            times.append(time.perf_counter() - start)
            idle.append(made.idle)
        formula = schedules.bubble(schedules.simulate(made.table))
        middle = statistics.median(idle[3:]), statistics.median(times[3:])
        rows.append([schedule, micro, formula, *middle])
    return rows


def child(what: str, ranks: int, rounds: int, layers: int) -> None:
    """One process: rank 0 prints what was measured."""
    os.environ["MINIGRAD_THREADS"] = "1"
    number = int(os.environ.get("PMI_RANK", "0"))
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[number % len(cores)]})
    from minigrad.models.gpt import GPTConfig
    from minigrad.models.parallel import Mesh, run

    if what == "bandwidth":
        found: Any = run(lambda rank: bandwidth(rank, rounds), ranks)[number]
    elif what == "pp":
        found = pipelines(ranks, GPTConfig(layers, 6, 384, 256, 65), 8, rounds)
    else:
        context, batch = (256, 8) if what == "dp" else (8192, 1)
        config = GPTConfig(layers, 6, 384, context, 65)
        if ranks == 1:
            found = training(None, config, batch, rounds)
        else:
            mesh = Mesh(dp=ranks) if what == "dp" else Mesh(sp=ranks)
            found = run(lambda rank: training(rank, config, batch, rounds), mesh)[number]
    if number == 0:
        print(json.dumps(found))


def measure(what: str, ranks: int, rounds: int, layers: int = 6) -> Any:
    """What rank 0 of so many processes measures."""
    command = [sys.executable, "-m", "mpi4py", "-m", "tests.bench.parallel", what,
               "--ranks", str(ranks), "--rounds", str(rounds), "--layers", str(layers),
               "--child"]  # fmt: skip
    if ranks == 1:
        command = [sys.executable, *command[3:]]
    else:
        command = [mpiexec(), "-n", str(ranks), *command]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=["bandwidth", "dp", "sp", "pp"])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.child:
        child(flags.what, flags.ranks, flags.rounds, flags.layers)
    elif flags.what == "bandwidth":
        share = 2 * (flags.ranks - 1) / flags.ranks
        print(f"{'MB':>4} {'ring GB/s':>10} {'MPI GB/s':>9} {'ratio':>6} {'of the best':>12}")
        for size, ring, mpi, best, other in measure("bandwidth", flags.ranks, flags.rounds):
            moved = share * size * (1 << 20) / 1e9
            print(f"{size:>4.0f} {moved / ring:>10.2f} {moved / mpi:>9.2f} {mpi / ring:>6.2f} "
                  f"{other / best:>12.2f}")  # fmt: skip
    elif flags.what == "pp":
        one, *_ = measure("dp", 1, flags.rounds, flags.layers)
        print(f"one rank {1e3 * one:.0f} ms\n{'schedule':12} {'micro':>5} {'table':>6} "
              f"{'measured':>9} {'step':>8} {'at work':>8}")  # fmt: skip
        for schedule, micro, table, idle, took in measure(
            "pp", flags.ranks, flags.rounds, flags.layers
        ):
            print(f"{schedule:12} {micro:>5} {table:>6.1%} {idle:>9.1%} {1e3 * took:>5.0f} ms "
                  f"{one / took / flags.ranks:>8.1%}")  # fmt: skip
    else:
        one, memory, process, work = measure(flags.what, 1, flags.rounds, flags.layers)
        many, less, smaller, part = measure(
            flags.what, flags.ranks, flags.rounds, flags.layers
        )
        print(f"one rank {1e3 * one:.0f} ms, {flags.ranks} ranks {1e3 * many:.0f} ms: "
              f"{one / many:.2f}×; of the processor {1e3 * work:.0f} ms and {1e3 * part:.0f} ms a "
              f"rank: {work / part:.2f}×")  # fmt: skip
        print(f"peak of device memory {memory / 1e6:.0f} MB, {less / 1e6:.0f} MB: "
              f"{less / memory:.2f}×; of processes {process / 1e6:.0f}, {smaller / 1e6:.0f}")


if __name__ == "__main__":
    main()
