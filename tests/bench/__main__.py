"""All rows against all installed peers: `python -m tests.bench [matmul rows …]`.

Each module of this folder that has a function `rows(threads)` is a family of rows. Two threads and
one are measured one after the other, each in a process of its own, with allocators tuned for the
peers. A module that has `table(rounds, only)` starts its processes itself, and runs only if it is
named. `--write` puts the tables into RESULTS.md, in place of those between the markers.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import os
import pkgutil
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.bench.measure import HEADER, Row, restart_tuned, show

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "RESULTS.md"


def families(function: str = "rows") -> list[str]:
    """The names of modules that have rows."""
    names = (m.name for m in pkgutil.iter_modules([str(FOLDER)]) if not m.name.startswith("_"))
    has = re.compile(rf"^def {function}\(", re.M)
    return [name for name in names if has.search((FOLDER / f"{name}.py").read_text())]


def rows_of(family: str, threads: int, pattern: str) -> Iterator[Row]:
    """A family's rows whose names match."""
    for row in importlib.import_module(f"tests.bench.{family}").rows(threads):
        if re.search(pattern, row.name):
            yield row


def processor() -> str:
    """The processor's name, as the machine reports it."""
    found = re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.M)
    return found[1] if found else platform.machine()


def without_others(line: str) -> str:
    """A line of a table without the column of slower peers."""
    cells = line.split(" | ")
    return " | ".join(cells[:3] + cells[4:])


def write(family: str, threads: int, machine: str, lines: list[str]) -> None:
    """Replace the table of a family in RESULTS.md, or add it at the end."""
    start, stop = f"<!-- {family} {threads} -->", f"<!-- end {family} {threads} -->"
    plural = "thread" if threads == 1 else "threads"
    title = f"### {family}, {threads} {plural}, {machine}, {datetime.date.today().isoformat()}"
    short = [without_others(line) for line in (*HEADER.split("\n"), *lines)]
    table = "\n".join([start, title, "", *short, stop])
    text = RESULTS.read_text()
    known = re.compile(re.escape(start) + ".*?" + re.escape(stop), re.S)
    text = known.sub(lambda _: table, text) if known.search(text) else f"{text}\n{table}\n"
    RESULTS.write_text(text)


def main() -> None:
    """Parse the flags; one process per number of threads."""
    parser = argparse.ArgumentParser("python -m tests.bench", description=__doc__)
    tables = families("table")
    parser.add_argument("families", nargs="*", default=families(), metavar="family",
                        help=", ".join((*families(), *tables)))  # fmt: skip
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="only rows that match this regular expression")
    parser.add_argument("--write", action="store_true", help="write the tables to RESULTS.md")
    parser.add_argument("--machine", default=processor(), help="name of this machine in the tables")
    given = parser.parse_args()
    for name in given.families:
        if name not in (*families(), *tables):
            parser.error(f"no family is called {name}; there are {', '.join(families())}, and "
                         f"{', '.join(tables)}")  # fmt: skip
    for name in [name for name in given.families if name in tables]:
        given.families.remove(name)
        print(f"\n{name}", flush=True)
        for line in importlib.import_module(f"tests.bench.{name}").table(given.rounds, given.only):
            print(line, flush=True)
    if not given.families:
        return
    if len(given.threads) > 1:
        rest = ["--rounds", str(given.rounds), "--only", given.only, "--machine", given.machine]
        rest += ["--write"] if given.write else []
        for threads in given.threads:
            command = [sys.executable, "-m", "tests.bench", *given.families]
            subprocess.run([*command, "--threads", str(threads), *rest], check=True)
        return
    (threads,) = given.threads
    restart_tuned(threads)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    for family in given.families:
        print(f"\n{family}, {threads} thread(s)", flush=True)
        lines = show(rows_of(family, threads, given.only), given.rounds)
        if given.write:
            write(family, threads, given.machine, lines)


if __name__ == "__main__":
    main()
