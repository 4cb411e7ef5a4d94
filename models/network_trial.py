"""A small training with any layout, as in `gpt.py`, in processes that run steps on command."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from minigrad import GlobalCounters, Tensor
from minigrad.models.errors import InputError
from minigrad.models.gpt import GPT, GPTConfig
from minigrad.models.network_model import Layout
from minigrad.models.parallel import Rank
from minigrad.models.parallel.layouts import division_of, on_devices
from minigrad.models.text import Windows
from minigrad.models.train import TrainingPlan, TrainingRun

WARM = 3  # steps for compiling and capturing


class Trial:
    """A training on random tokens, shared by ranks if there are any.

    layout: also on one device, a pipeline's micro-batches are parts of a batch.
    """

    def __init__(
        self, config: GPTConfig, batch: int, layout: Layout, rank: Rank | None = None
    ) -> None:
        Tensor.manual_seed(1)
        ids = np.random.default_rng(1).integers(0, config.vocabulary, 64 * config.context + 1)
        self.windows = Windows(ids.astype(np.int32), config.context, "random tokens")
        parts = layout.micro if layout.pp == 1 else 1  # one after the other
        model, plan = GPT(config), TrainingPlan(batch=batch, accumulate=parts)
        division = division_of(_flags(layout, config), model, config.context, rank)
        self.run = TrainingRun(model, plan, division)

    def step(self) -> float:
        """Run one step; returns its seconds."""
        start = time.perf_counter()
        self.run.advance(self.windows)
        return time.perf_counter() - start


def _flags(layout: Layout, config: GPTConfig) -> Namespace:
    """A layout as flags of `gpt.py`."""
    sp = layout.tp if layout.tokens else layout.sp
    return Namespace(**{**asdict(layout), "sp": sp, "experts": config.experts})


def with_trial(config: GPTConfig, batch: int, layout: Layout, use: Callable[[Trial], Any]) -> Any:
    """The result of use(trial) in this process's rank, after the first steps."""

    def begin(rank: Rank | None = None) -> Any:
        trial = Trial(config, batch, layout, rank)
        for _ in range(WARM):
            trial.step()
        return use(trial)

    # copies of a training on one device are independent, also if MPI has started them
    return begin() if layout.devices == 1 else on_devices(_flags(layout, config), begin)


# --- processes of such a training -----------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """Figures of some steps, from rank 0: median seconds, idle share of stages, peak bytes."""

    seconds: float
    idle: float
    memory: int


@dataclass(frozen=True)
class Job:
    """A training that waits for commands."""

    process: subprocess.Popen[str]
    errors: IO[str]

    def steps(self, count: int) -> Report:
        """Run `count` steps, after one uncounted; InputError if the training has ended."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(f"{count}\n")
            self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):
                return Report(**json.loads(line))
        self.errors.seek(0)
        said = self.errors.read().strip().splitlines()
        raise InputError("the training failed: " + "\n".join(said[-5:]))


@contextmanager
def started(
    layout: Layout, config: GPTConfig, batch: int, hosts: Sequence[Sequence[str]] = (),
    copies: int = 1,
) -> Iterator[Job]:  # fmt: skip
    """A training with so many ranks, each on its own core, for the time of a `with` block.

    hosts: for each rank, the words before a command that run it on its host. Hosts are joined by a
    network only; without hosts, ranks are neighbours. copies: of a training on one device, which
    run simultaneously and independently; the first one reports.
    """
    given = json.dumps([asdict(config), batch, asdict(layout)])
    module = ["-m", "minigrad.models.network_trial", given]
    words, variables = [sys.executable, *module], {"MINIGRAD_THREADS": "1"}
    ranks = layout.devices * copies
    if ranks > 1:
        words = [mpiexec(), "-launcher", "fork"]
        for number in range(ranks):
            host = hosts[number] if hosts else []
            words += [":", "-n", "1", *host, sys.executable, "-m", "mpi4py", *module]
        del words[words.index(":")]
    if hosts:  # else MPICH uses shared memory, as all are on one machine
        variables |= {"MPIR_CVAR_NOLOCAL": "1", "UCX_TLS": "tcp,self"}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            start_new_session=True, env={**os.environ, **variables},
        )  # fmt: skip
        try:
            yield Job(process, errors)
        finally:
            for number, patience in ((signal.SIGTERM, 2.0), (signal.SIGKILL, None)):
                with suppress(ProcessLookupError):  # its ranks are in its process group
                    os.killpg(process.pid, number)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(patience)


def mpiexec() -> str:
    """The launcher of this environment's MPI; InputError if there is none."""
    own = Path(sys.executable).parent / "mpiexec"
    found = str(own) if own.exists() else shutil.which("mpiexec")
    if found is None:
        raise InputError("mpiexec is missing: pip install '.[mpi]'")
    return found


def _told(world: Any) -> int:
    """The number in the next line of rank 0's input, 0 at its end. Ranks sleep until then."""
    first = world is None or world.rank == 0
    cell = ctypes.c_int(int(sys.stdin.readline() or 0) if first else 0)
    if world is not None:
        request = world.Ibcast(memoryview(cell).cast("B"))
        while not request.Test():
            time.sleep(1e-3)
    return cell.value


def _obey(trial: Trial) -> None:
    world = None
    if "PMI_RANK" in os.environ:
        from mpi4py import MPI  # which the trial has begun

        world = MPI.COMM_WORLD
    while count := _told(world):
        trial.step()
        GlobalCounters.reset()
        took, idle = [], []
        for _ in range(count):
            took.append(trial.step())
            idle.append(getattr(trial.run.division, "idle", 0.0))
        if world is None or world.rank == 0:
            report = Report(
                statistics.median(took), statistics.median(idle), GlobalCounters.mem_peak
            )
            print(json.dumps(asdict(report)), flush=True)


if __name__ == "__main__":
    facts, batch, layout = json.loads(sys.argv[1])
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ.get("PMI_RANK", "0")) % len(cores)]})
    with_trial(GPTConfig(**facts), batch, Layout(**layout), _obey)
