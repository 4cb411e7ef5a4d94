"""The house rules on imports: rooms are in order, and no numpy where programs run."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"minigrad": "minigrad", "runtimes": "minigrad.runtimes", "models": "minigrad.models"}

# A module imports only from its own room and from those above it.
ROOMS: tuple[tuple[str, ...], ...] = (
    ("minigrad.dtype", "minigrad.errors", "minigrad.settings"),
    ("minigrad.graph",),
    ("minigrad.schedule",),
    ("minigrad.loops",),
    ("minigrad.render",),
    ("minigrad.device", "minigrad.program", "minigrad.cache", "minigrad.collective"),
    ("minigrad.runtimes",),
    ("minigrad.tensor", "minigrad.jit"),
    ("minigrad.nn", "minigrad.array_api", "minigrad.einops"),
    ("minigrad",),  # the front door, which names what users import
    ("minigrad.models",),
)


def modules() -> Iterator[tuple[str, Path]]:
    """(name, file) of every module, named as it is installed."""
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            inner = path.relative_to(ROOT / folder).with_suffix("").parts
            if inner[-1] == "__init__":
                inner = inner[:-1]
            yield ".".join((package, *inner)), path


MODULES = dict(modules())


def room(module: str) -> int:
    """Number of the room in which a module lives."""
    for number, names in enumerate(ROOMS):
        for name in names:
            if module == name or (module.startswith(name + ".") and name != "minigrad"):
                return number
    raise AssertionError(f"{module} lives in no room of DESIGN.md: add it to ROOMS")


def imports(module: str, path: Path, source: str) -> Iterator[tuple[str, int]]:
    """(module, line) of all that is imported, at the top or inside functions."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                base = package[: len(package) - node.level + 1]
                origin = ".".join([*base, origin] if origin else base)
            for alias in node.names:
                inner = f"{origin}.{alias.name}"
                yield (inner if inner in MODULES else origin), node.lineno


def breaches(module: str, path: Path, source: str) -> list[str]:
    """Imports from rooms below."""
    return [
        f"{path.name}:{line}: {module} imports {target}, which lives further down"
        for target, line in imports(module, path, source)
        if target.partition(".")[0] == "minigrad" and room(target) > room(module)
    ]


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_from_rooms_above(module: str) -> None:
    path = MODULES[module]
    assert not breaches(module, path, path.read_text("utf-8"))


@pytest.mark.parametrize(
    "source",
    [
        "import minigrad.schedule.fuse",
        "from minigrad.nn import optim",
        "from minigrad import Tensor",
        "def f():\n    from minigrad.runtimes import cpu",
        "from .. import tensor",
        "from ..models.text import split",
        "from minigrad import tensor",
    ],
)
def test_a_breach_is_seen(source: str) -> None:
    place = ROOT / "minigrad" / "graph" / "node.py"
    assert breaches("minigrad.graph.node", place, source)


@pytest.mark.parametrize(
    "source", ["from minigrad.dtype import DType", "from . import build", "import numpy"]
)
def test_what_is_no_breach(source: str) -> None:
    place = ROOT / "minigrad" / "graph" / "node.py"
    assert not breaches("minigrad.graph.node", place, source)


def runs_programs(module: str) -> bool:
    """Whether a module is part of what compiles and runs programs on CPUs and GPUs.

    The user's API may turn its values into numpy arrays when asked; the reference runtime is numpy.
    """
    return room(module) <= room("minigrad.runtimes") and module != "minigrad.runtimes.reference"


@pytest.mark.parametrize("module", [name for name in MODULES if runs_programs(name)])
def test_no_numpy_where_programs_run(module: str) -> None:
    path = MODULES[module]
    names = {target for target, _ in imports(module, path, path.read_text("utf-8"))}
    # pyopencl imports numpy itself; our code hands it plain buffers
    assert not {name for name in names if name.partition(".")[0] in ("numpy", "ml_dtypes", "scipy")}


def modules_after(program: str) -> set[str]:
    """Names of the modules that a fresh interpreter has loaded after running a program."""
    text = f"{program}\nimport sys\nprint(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-P", "-c", text], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return set(result.stdout.splitlines()[-1].split())


def test_importing_minigrad_loads_no_numpy() -> None:
    loaded = modules_after("import minigrad")
    assert "minigrad" in loaded
    assert not loaded & {"numpy", "ml_dtypes", "llvmlite", "pyopencl"}


def test_a_program_on_the_cpu_loads_no_numpy() -> None:
    loaded = modules_after(
        "from minigrad import Tensor\n"
        "x = Tensor([[1.0, 2.0], [3.0, 4.0]], device='CPU')\n"
        "loss = ((x @ x).relu().softmax(1) * x).sum()\n"
        "(slope,) = loss.gradient(x)\n"
        "x.assign(x - 0.1 * slope)\n"
        "assert len(x.tolist()) == 2 and isinstance(loss.item(), float)"
    )
    assert "minigrad.runtimes.cpu" in loaded
    assert "numpy" not in loaded
