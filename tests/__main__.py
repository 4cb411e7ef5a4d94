"""All checks: `python tests` runs lint and types, beside them the tests; prints how each ended.

Arguments select some of them (`python tests lint types`); what follows `--` is passed to pytest
(`python tests tests -- -k gpt`). The exit status is 0 only if every check that ran succeeded.

If MINIGRAD_TEST_SKIPPED names a file, `tests` records there what it skips, and `skipped` runs that
again, once the missing packages are installed: then only missing hardware may skip a test.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import skips  # in this folder

ROOT = Path(__file__).resolve().parent.parent


def command(*arguments: str) -> list[str]:
    """A command that runs a module of this interpreter; its import path lacks the current folder.
    """
    return [sys.executable, "-P", "-m", *arguments]


def call(arguments: Sequence[str], folder: Path, **variables: str) -> bool:
    """Run a module of this interpreter in a folder that stays off its import path."""
    environment = {**os.environ, **variables}
    return subprocess.run(command(*arguments), cwd=folder, env=environment).returncode == 0


def call_aside(title: str, arguments: Sequence[str], folder: Path, **variables: str) -> bool:
    """The same beside other calls: the output is printed, below a title, when it has ended."""
    environment = {**os.environ, **variables}
    with tempfile.TemporaryFile("w+") as said:
        done = subprocess.run(
            command(*arguments), cwd=folder, env=environment, stdout=said, stderr=subprocess.STDOUT
        )
        said.seek(0)
        print(f"== {title}:\n{said.read()}\n", end="", flush=True)
    return done.returncode == 0


def lint(extra: Sequence[str]) -> bool:
    """Ruff with the rules of pyproject.toml."""
    return call_aside("ruff", ["ruff", "check", "."], ROOT)


def types(extra: Sequence[str]) -> bool:
    """Check mypy's strict rules on a copy in which folders are placed as setup.py installs them.

    Users' programs are checked, too: `user_program.py`, and the front README's. mypy follows
    neither `package_dir` nor an editable install's mapping of folders.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "minigrad", place / "minigrad", ignore=ignored)
        for name in ("runtimes", "models"):
            shutil.copytree(ROOT / name, place / "minigrad" / name, ignore=ignored)
        shutil.copy(ROOT / "tests" / "user_program.py", place)
        readme = (ROOT / "README.md").read_text("utf-8")
        (example,) = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
        (place / "readme_example.py").write_text(example, "utf-8")
        programs = ["-m", "user_program", "-m", "readme_example"]
        settings = str(ROOT / "pyproject.toml")
        cache = str(ROOT / ".mypy_cache")
        return call_aside(
            "mypy",
            ["mypy", "--config-file", settings, "--cache-dir", cache, "-p", "minigrad", *programs],
            place,
        )


# Folders that one process of pytest tests; OTHERS is everything in none of them. Two processes take
# portions in this order, the longest first (the lessons, if there is a browser), so that the short
# ones fill the rest of the time.
OTHERS = "others"
PORTIONS = (
    "tests/parallel", "tests/property", "tests/lessons", "tests/loops tests/render tests/runtimes",
    "tests/models", "tests/tensor", "tests/schedule tests/opencl", OTHERS, "tests/nn",
    "tests/explain",
)  # fmt: skip


def whole(portion: str) -> list[str]:
    """pytest's arguments for all tests of a portion."""
    if portion != OTHERS:
        return portion.split()
    return [f"--ignore={folder}" for folder in " ".join(PORTIONS).split()]


def portion_of(node: str) -> str:
    """The portion of a test."""
    return next((one for one in PORTIONS if node.startswith(tuple(one.split()))), OTHERS)


def side_by_side(given: Mapping[str, Sequence[str]], **variables: str) -> bool:
    """Run pytest with the arguments of each portion, two at a time, so that both cores have work.
    """

    def test(portion: str) -> bool:
        return call_aside(portion, ["pytest", "-q", *given[portion]], ROOT, **variables)

    with ThreadPoolExecutor(2) as both:
        return all(list(both.map(test, given)))


def tests(extra: Sequence[str]) -> bool:
    """Every test below tests/, against the installed package."""
    if extra:
        return call(["pytest", *extra], ROOT)
    return side_by_side({portion: whole(portion) for portion in PORTIONS})


def skipped(extra: Sequence[str]) -> bool:
    """Run the tests that an earlier run skipped for lack of a package; now they must run."""
    file = os.environ.get(skips.VARIABLE)
    if not file or not Path(file).exists():
        print(f"{skips.VARIABLE} must name the file that `python tests tests` has written")
        return False
    nodes = sorted({node for node, why in skips.read(Path(file)) if not skips.lacks_hardware(why)})
    print(f"{len(nodes)} tests and files were skipped because a package is missing")
    again = Path(f"{file}.again")
    again.unlink(missing_ok=True)
    variables = {skips.VARIABLE: str(again)}
    given = {portion: [node for node in nodes if portion_of(node) == portion]
             for portion in PORTIONS}  # fmt: skip
    if extra:
        good = not nodes or call(["pytest", *extra, *nodes], ROOT, **variables)
    else:
        good = side_by_side({name: some for name, some in given.items() if some}, **variables)
    wrong = [(node, why) for node, why in skips.read(again) if not skips.lacks_hardware(why)]
    for node, why in wrong:
        print(f"still skipped, but not for missing hardware: {node}: {why}")
    return good and not wrong


CHECKS = {"lint": lint, "types": types, "tests": tests, "skipped": skipped}
DEFAULT = ("lint", "types", "tests")
# The checks of a line run in turn, beside those of the other one.
LINES = (("lint", "types"), ("tests", "skipped"))


def run(name: str, extra: Sequence[str]) -> bool:
    """Run a check; says how it ended."""
    print(f"== {name}", flush=True)
    start = time.monotonic()
    good = CHECKS[name](extra)
    took = time.monotonic() - start
    print(f"== {name}: {'good' if good else 'FAILED'} after {took:.0f} s\n", flush=True)
    return good


def main(arguments: Sequence[str]) -> int:
    """Run the given checks (lint, types, tests by default); returns the exit status."""
    given = list(arguments)
    border = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(prog="python tests", description=(__doc__ or "").strip())
    parser.add_argument("checks", nargs="*", metavar="check", help=", ".join(CHECKS))
    chosen = parser.parse_args(given[:border]).checks or DEFAULT
    for name in chosen:
        if name not in CHECKS:
            parser.error(f"unknown check {name!r}: expected {', '.join(CHECKS)}")
    extra = given[border + 1 :]

    def all_of(line: Sequence[str]) -> bool:
        ended = [run(name, extra) for name in line if name in chosen]  # also after a failure
        return all(ended)

    start = time.monotonic()
    with ThreadPoolExecutor() as lines:
        good = all(list(lines.map(all_of, LINES)))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    took, busy = time.monotonic() - start, used.ru_utime + used.ru_stime
    print(f"== {busy:.0f} s of processor time in {took:.0f} s")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
