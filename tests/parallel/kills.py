"""Random faults in a row: `python tests/parallel/kills.py --count 20`.

Each job trains a small GPT on four processes, in one of several layouts. At a random moment one
rank is killed, stopped, or told to end, once or twice. Printed for each job: its error message, how
long it took to end, whether a process is left, whether its checkpoint (if any) is complete, and how
far the losses differ when fewer ranks resume from that checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from minigrad.models import checkpoint
from minigrad.models.parallel.faults import Clock
from parallel.ranks import start
from parallel.test_faults import processes_with, still_there

SAVED_EVERY = 50  # steps; usually 500
# models/gpt.py, but with more frequent checkpoints
JOB = f"""import sys; from dataclasses import replace; from minigrad.models import gpt_commands
make_plan = gpt_commands.make_plan
gpt_commands.make_plan = lambda flags: replace(
    make_plan(flags), validate_every={SAVED_EVERY}, validation_windows=8)
gpt_commands.main(sys.argv[1:])"""
FLAGS = "--steps 100000 --layers 2 --dim 16 --heads 2 --context 8 --batch 8 --text text"
# layout of four ranks → flags of the smaller layout that resumes, and its number of ranks
LAYOUTS = {
    "--dp 2 --sp 2": ("--dp 1", 2), "--dp 2 --tp 2 --zero 3": ("--dp 1 --zero 0", 2),
    "--experts 4 --dp 2 --ep 2": ("--dp 1", 2), "--tp 2 --pp 2 --micro 2": ("--pp 1", 2),
    "--experts 4 --ep 4": ("--ep 2", 2), "--dp 4 --zero 1": ("--dp 1 --zero 0", 1),
}  # fmt: skip
STEPS = 8  # after which enough is known about the resumed job
WAYS = {
    "killed": [signal.SIGKILL], "stopped": [signal.SIGSTOP], "told to end": [signal.SIGTERM],
    "told twice to end": [signal.SIGTERM] * 2,
}  # fmt: skip


def losses(record: Path) -> dict[int, float]:
    """The losses by step, from the complete lines of a record."""
    lines = record.read_text("utf-8").splitlines(keepends=True) if record.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return {line["step"]: line["loss"] for line in found}


def prepared(folder: Path) -> list[str]:
    """The command of a job, without its layout; writes the job's text into the folder."""
    (folder / "text").write_text("To be, or not to be, that is the question. " * 40, "utf-8")
    words = FLAGS.replace("text text", f"text {folder / 'text'}").split()
    return ["-c", JOB, "train", *words, "--overwrite", "--checkpoint",
            str(folder / "gpt.safetensors"), "--metrics", str(folder / "killed.jsonl")]  # fmt: skip


def going_on(layout: str, folder: Path) -> tuple[int, float]:
    """Resume on fewer ranks: (steps that both runs did, the largest difference of losses)."""
    before, record = losses(folder / "killed.jsonl"), folder / "resumed.jsonl"
    record.unlink(missing_ok=True)
    smaller, ranks = LAYOUTS[layout]
    path, mark = str(folder / "gpt.safetensors"), uuid4().hex
    process = start(
        ["-c", JOB, "train", "--resume", path, "--metrics", str(record), *smaller.split()], ranks,
        {"MINIGRAD_TEST_MARK": mark},
    )  # fmt: skip
    try:
        while process.poll() is None and len(losses(record)) < STEPS:
            time.sleep(0.1)
        assert process.poll() is None, process.communicate()
    finally:
        for number in processes_with(mark):
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        process.communicate()
    after = losses(record)
    both = sorted(after.keys() & before.keys())
    return len(both), max((abs(after[n] / before[n] - 1) for n in both), default=0.0)


def one(way: str, layout: str, rank: int, wait: float | None, folder: Path) -> str:
    """Run one job until its end; a line about it.

    wait: seconds before the fault; None: until there is a checkpoint and some steps after it.
    AssertionError if processes or files are left that should not be.
    """
    mark, path = uuid4().hex, folder / "gpt.safetensors"
    extra = {"MINIGRAD_TEST_MARK": mark, "MINIGRAD_PATIENCE": "5"}
    process = start([*prepared(folder), *layout.split()], 4, extra)
    assert process.stderr is not None
    said = process.stderr.readline()
    numbers = dict(re.findall(r"(\d+) is process (\d+)", said))
    begun = time.monotonic()
    while wait is None and process.poll() is None and not _is_beyond(folder):
        time.sleep(0.05)
    time.sleep(wait or 0.0)
    waited = time.monotonic() - begun
    clock = Clock()  # not counting pauses of the whole machine
    for number in WAYS[way]:
        with suppress(ProcessLookupError):  # the first signal may have been enough
            os.kill(int(numbers[str(rank)]), number)
        time.sleep(0.2)
        clock.tick(0.2)
    status, out, errors = "still running", "", ""
    while status == "still running" and clock.seconds < 60:
        with suppress(subprocess.TimeoutExpired):
            out, errors = process.communicate(timeout=0.1)
            status = str(process.returncode)
        clock.tick(0.1)
    took = clock.seconds
    left = still_there(processes_with(mark))
    for number in left:
        os.kill(number, signal.SIGKILL)
    assert not left, f"{len(left)} processes are left"
    whole = "no checkpoint yet"
    if path.exists():
        checkpoint.load(path)
        steps, worst = going_on(layout, folder)
        whole = f"checkpoint whole, {steps} steps again, losses within {worst:.0e}"
        assert worst < 1e-4, whole
    lines = [line for line in (errors + out).splitlines()
             if "ranks are stopped" in line]  # fmt: skip
    return (f"{layout}: rank {rank} {way} after {waited:4.1f} s: ended in {took:4.1f} s, status "
            f"{status}, none left, {whole}; {lines[0].strip() if lines else '?'}")  # fmt: skip


def _is_beyond(folder: Path) -> bool:
    """Whether a job has saved a checkpoint and done some steps since."""
    done = losses(folder / "killed.jsonl")
    saved = (folder / "gpt.safetensors").exists()
    return saved and max(done, default=0) % SAVED_EVERY in range(STEPS, SAVED_EVERY // 2)


def main() -> None:
    """Run some jobs in a row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    flags = parser.parse_args()
    print(f"seed {flags.seed}")
    generator = random.Random(flags.seed)
    for _ in range(flags.count):
        way, rank = generator.choice(sorted(WAYS)), generator.randrange(4)
        layout, wait = generator.choice(sorted(LAYOUTS)), generator.uniform(4.0, 16.0)
        with tempfile.TemporaryDirectory() as folder:
            print(one(way, layout, rank, wait, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
