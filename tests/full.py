"""The long suites, for a night or a release: `python -m tests.full`.

    python -m tests.full graphs pairs          some of them
    python -m tests.full --count 500 pairs     shorter
    python -m tests.full --seed 123 graphs     the same programs again
    python -m tests.full --guard general       an access outside an array ends the process (CPU)

Without a seed each run takes new programs, and prints its seed. Results, dated, belong in
tests/bench/RESULTS.md. The exit status is 0 only if nothing failed.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def call(*arguments: str) -> bool:
    """Run a module of this interpreter at the root of the checkout."""
    print("+ python -m", *arguments, flush=True)
    return subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT).returncode == 0


def programs(
    module: str, device: str, count: int, groups: bool = False
) -> Callable[[int, int | None], bool]:
    """A suite of a module's random programs, `count` unless another number is given.

    groups: the seed also decides the order of chunks.
    """

    def suite(seed: int, given: int | None) -> bool:
        more = ("--groups", str(seed)) if groups else ()
        return call(f"tests.property.{module}", "--seed", str(seed), "--count", str(given or count),
                    "--device", device, *more)  # fmt: skip

    return suite


def examples(seed: int, given: int | None) -> bool:
    """The operation table with 300 examples per test instead of 5, without random programs."""
    left_out = ("--ignore=tests/property/test_graphs.py", "--ignore=tests/property/test_pairs.py")
    some = ("-k", "exp or sum or matmul") if given else ()
    return call("pytest", "-q", "tests/property", "--hypothesis-profile=long",
                f"--hypothesis-seed={seed}", *left_out, *some)  # fmt: skip


SUITES: dict[str, Callable[[int, int | None], bool]] = {
    "graphs": programs("graphs", "CPU", 20_000),
    "general": programs("general", "CPU", 4_000),
    "pairs": programs("pairs", "CPU", 20_000),
    "steps": programs("steps", "CPU", 5_000),
    "torch": programs("torch_programs", "REF", 2_000),
    "networks": programs("networks", "CPU", 2_000),
    "groups": programs("graphs", "CPU", 2_000, groups=True),
    "steps-in-groups": programs("steps", "CPU", 2_000, groups=True),
    "graphs-cl": programs("graphs", "CL", 300),
    "general-cl": programs("general", "CL", 100),
    "pairs-cl": programs("pairs", "CL", 300),
    "examples": examples,
}


def main() -> int:
    """Run the given suites (all by default); returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.full",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("suites", nargs="*", metavar="suite", help=", ".join(SUITES))
    parser.add_argument("--seed", type=int, help="seed of the first random program")
    parser.add_argument("--count", type=int, help="programs per suite")
    parser.add_argument("--guard", action="store_true", help="with MINIGRAD_GUARD=1")
    given = parser.parse_args()
    if given.guard:
        os.environ["MINIGRAD_GUARD"] = "1"
    for name in given.suites:
        if name not in SUITES:
            parser.error(f"unknown suite {name!r}: expected {', '.join(SUITES)}")
    seed = random.SystemRandom().randrange(2**31) if given.seed is None else given.seed
    failed = []
    for name in given.suites or list(SUITES):
        start = time.monotonic()
        print(f"== {name}, seed {seed}", flush=True)
        good = SUITES[name](seed, given.count)
        took = (time.monotonic() - start) / 60
        print(f"== {name}: {'good' if good else 'FAILED'} after {took:.1f} min\n", flush=True)
        if not good:
            failed.append(name)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
