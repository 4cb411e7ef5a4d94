"""All checks in turn: `python tests` runs lint, types and tests, and says how each ended.

Arguments choose some of them (`python tests lint types`); what follows `--` goes to pytest
(`python tests tests -- -k gpt`). The exit status is 0 only if every check that ran succeeded.

Where MINIGRAD_TEST_SKIPPED names a file, `tests` writes down what it skips, and `skipped` runs that
again, once the packages that were missing are there: nothing but missing hardware may skip then.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import skips  # beside this file

ROOT = Path(__file__).resolve().parent.parent


def command(*arguments: str) -> list[str]:
    """A module of this interpreter, with what its folder holds off its import path."""
    return [sys.executable, "-P", "-m", *arguments]


def call(arguments: Sequence[str], folder: Path, **variables: str) -> bool:
    """Run a module of this interpreter in a folder that stays off its import path."""
    environment = {**os.environ, **variables}
    return subprocess.run(command(*arguments), cwd=folder, env=environment).returncode == 0


def lint(extra: Sequence[str]) -> bool:
    """Ruff with the rules of pyproject.toml."""
    return call(["ruff", "check", "."], ROOT)


def types(extra: Sequence[str]) -> bool:
    """Check mypy's strict rules on a copy whose folders lie as setup.py installs them.

    On programs of users, too: `user_program.py`, and the front README's.
    mypy follows neither `package_dir` nor an editable install's mapping of folders.
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
        return call(
            ["mypy", "--config-file", settings, "--cache-dir", cache, "-p", "minigrad", *programs],
            place,
        )


# What one of two processes tests, so that both cores have work; it takes about half of the time.
HALF = ("tests/property", "tests/opencl", "tests/parallel", "tests/schedule", "tests/nn")


def side_by_side(others: Sequence[str], half: Sequence[str], **variables: str) -> bool:
    """Two processes of pytest; what the second says is printed when both have ended."""
    environment = {**os.environ, **variables}
    with tempfile.TemporaryFile("w+") as report:
        second = subprocess.Popen(
            command("pytest", "-q", *half), cwd=ROOT, stdout=report, env=environment
        )
        good = call(["pytest", "-q", *others], ROOT, **variables)
        good = second.wait() == 0 and good
        report.seek(0)
        print(f"== meanwhile {' and '.join(HALF)}:\n{report.read()}", flush=True)
    return good


def tests(extra: Sequence[str]) -> bool:
    """Every test below tests/, against the installed package: all of them in two processes."""
    if extra:
        return call(["pytest", *extra], ROOT)
    return side_by_side([f"--ignore={folder}" for folder in HALF], HALF)


def skipped(extra: Sequence[str]) -> bool:
    """The tests that an earlier run skipped for want of a package; now they must run."""
    file = os.environ.get(skips.VARIABLE)
    if not file or not Path(file).exists():
        print(f"{skips.VARIABLE} must name the file that `python tests tests` has written")
        return False
    nodes = sorted({node for node, why in skips.read(Path(file)) if not skips.lacks_hardware(why)})
    print(f"{len(nodes)} tests and files were skipped for want of a package")
    again = Path(f"{file}.again")
    again.unlink(missing_ok=True)
    variables = {skips.VARIABLE: str(again)}
    half = [node for node in nodes if node.startswith(HALF)]
    others = [node for node in nodes if not node.startswith(HALF)]
    if half and others and not extra:
        good = side_by_side(others, half, **variables)
    else:
        good = not nodes or call(["pytest", *(extra or ["-q"]), *nodes], ROOT, **variables)
    wrong = [(node, why) for node, why in skips.read(again) if not skips.lacks_hardware(why)]
    for node, why in wrong:
        print(f"still skipped, and not for missing hardware: {node}: {why}")
    return good and not wrong


CHECKS = {"lint": lint, "types": types, "tests": tests, "skipped": skipped}
DEFAULT = ("lint", "types", "tests")


def main(arguments: Sequence[str]) -> int:
    """Run the checks that were asked for (lint, types, tests by default); gives the exit status."""
    given = list(arguments)
    border = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(prog="python tests", description=(__doc__ or "").strip())
    parser.add_argument("checks", nargs="*", metavar="check", help=", ".join(CHECKS))
    chosen = parser.parse_args(given[:border]).checks or DEFAULT
    for name in chosen:
        if name not in CHECKS:
            parser.error(f"unknown check {name!r}: expected {', '.join(CHECKS)}")
    failed = []
    for name in chosen:
        print(f"== {name}", flush=True)
        start = time.monotonic()
        good = CHECKS[name](given[border + 1 :])
        took = time.monotonic() - start
        print(f"== {name}: {'good' if good else 'FAILED'} after {took:.0f} s\n", flush=True)
        if not good:
            failed.append(name)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
