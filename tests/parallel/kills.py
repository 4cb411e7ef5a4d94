"""Random faults in a row: `python tests/parallel/kills.py --count 20`.

Each job trains a small GPT on four processes (dp 2, sp 2) and is ended at a random moment in a
random way: a rank is killed, or stopped, or told twice to end. Reported are what was said, how long
the job took to end, whether a process is left, and whether its checkpoint, if any, is whole.
"""

from __future__ import annotations

import argparse
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

GPT = str(Path(__file__).resolve().parent.parent.parent / "models" / "gpt.py")
FLAGS = "--steps 100000 --layers 1 --dim 16 --heads 2 --context 8 --batch 4 --dp 2 --sp 2"
WAYS = {
    "killed": [signal.SIGKILL], "stopped": [signal.SIGSTOP], "told to end": [signal.SIGTERM] * 2,
}  # fmt: skip


def one(way: str, rank: int, wait: float, folder: Path) -> str:
    """One job and its end, in a line."""
    mark, path = uuid4().hex, folder / "gpt.safetensors"
    extra = {"MINIGRAD_TEST_MARK": mark, "MINIGRAD_PATIENCE": "5"}
    process = start([GPT, *FLAGS.split(), "--checkpoint", str(path), "--overwrite"], 4, extra)
    assert process.stderr is not None
    said = process.stderr.readline()
    numbers = dict(re.findall(r"(\d+) is process (\d+)", said))
    time.sleep(wait)
    clock = Clock()  # a pause of this whole machine does not count
    for number in WAYS[way]:
        with suppress(ProcessLookupError):  # the first may have been enough
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
    whole = "no checkpoint yet"
    if path.exists():
        checkpoint.load(path)
        whole = "checkpoint whole"
    lines = [line for line in (errors + out).splitlines()
             if "rank " in line or "PID" in line]  # fmt: skip
    return (f"rank {rank} {way} after {wait:4.1f} s: ended in {took:4.1f} s, status {status}, "
            f"{len(left)} left, {whole}; {lines[0].strip() if lines else '?'}")  # fmt: skip


def main() -> None:
    """Some jobs in a row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    flags = parser.parse_args()
    print(f"seed {flags.seed}")
    generator = random.Random(flags.seed)
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(flags.count):
            way, rank = generator.choice(sorted(WAYS)), generator.randrange(4)
            print(one(way, rank, generator.uniform(1.0, 12.0), Path(folder)), flush=True)


if __name__ == "__main__":
    main()
