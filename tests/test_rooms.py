"""Rules of the code: imports between rooms and files, no numpy where programs run, devices."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
from child import said

from minigrad.device import RUNTIMES
from minigrad.tensor import Tensor
from minigrad.tensor.basic import Basic
from minigrad.tensor.core import Core

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"minigrad": "minigrad", "runtimes": "minigrad.runtimes", "models": "minigrad.models"}

# A module imports only from its own room and from those above it.
ROOMS: tuple[tuple[str, ...], ...] = (
    (
        "minigrad.dtype", "minigrad.errors", "minigrad.hints", "minigrad.locks",
        "minigrad.interrupts", "minigrad.settings", "minigrad.target", "minigrad.gc_pause",
    ),
    ("minigrad.graph",),
    ("minigrad.schedule",),
    ("minigrad.loops",),
    ("minigrad.render",),
    (
        "minigrad.device", "minigrad.program", "minigrad.programs", "minigrad.padded",
        "minigrad.pieced", "minigrad.failure", "minigrad.cache", "minigrad.collective",
        "minigrad.compile", "minigrad.mesh",
    ),
    ("minigrad.runtimes",),
    ("minigrad.tensor",),
    ("minigrad.jit",),
    ("minigrad.linalg", "minigrad.nn", "minigrad.array_api", "minigrad.einops"),
    ("minigrad.explain",),
    ("minigrad", "minigrad.docs"),  # the package itself, which imports what users need
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
    """The number of a module's room."""
    for number, names in enumerate(ROOMS):
        for name in names:
            if module == name or (module.startswith(name + ".") and name != "minigrad"):
                return number
    raise AssertionError(f"{module} lives in no room: add it to ROOMS")


def statements(tree: ast.AST, run: bool) -> Iterator[ast.AST]:
    """All statements; run: without those that imports never run (for type checkers, or a script).
    """
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        never = run and isinstance(node, ast.If) and ast.unparse(node.test) in (
            "TYPE_CHECKING", "__name__ == '__main__'"
        )  # fmt: skip
        for field in ("body", "orelse", "finalbody", "handlers", "cases")[never:]:
            waiting += getattr(node, field, ())


def imports(
    module: str, path: Path, source: str, run: bool = False
) -> Iterator[tuple[str, int]]:
    """(module, line) of every import, at the top or inside functions; run: as in `statements`."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in statements(ast.parse(source), run):
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


def test_imports_only_from_rooms_above() -> None:
    texts = ((name, path, path.read_text("utf-8")) for name, path in MODULES.items())
    found = [breach for text in texts for breach in breaches(*text)]
    assert not found, "\n".join(found)


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


def run_imports(module: str, path: Path, source: str) -> set[str]:
    """The project's modules that a module imports when it, or one of its functions, runs."""
    found = imports(module, path, source, run=True)
    return {target for target, _ in found if target in MODULES}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules each of which imports the next, from one back to itself; empty if there are none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def test_no_files_import_one_another_in_a_circle() -> None:
    """Also inside a room, and inside functions; `if TYPE_CHECKING:` and scripts are excepted."""
    graph = {name: run_imports(name, p, p.read_text("utf-8")) for name, p in MODULES.items()}
    assert not circle(graph), " -> ".join(circle(graph))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from minigrad.graph import build", True),
        ("def f():\n    import minigrad.graph.build", True),
        ("from . import build", True),
        ("if TYPE_CHECKING:\n    from minigrad.graph.build import const", False),
        ("if TYPE_CHECKING:\n    pass\nelse:\n    from minigrad.graph.build import const", True),
        ("if __name__ == '__main__':\n    from minigrad.graph import build", False),
    ],
)
def test_a_circle_is_seen(source: str, expected: bool) -> None:
    inner, outer = "minigrad.graph.node", "minigrad.graph.build"
    found = run_imports(inner, MODULES[inner], source)
    assert bool(circle({inner: found, outer: {inner}})) is expected


def test_families_of_tensor_methods_are_flat() -> None:
    """`Tensor` is made of classes of methods, in any order: none inherits or overrides another."""
    composed = (Tensor, Basic, *Core.__mro__)
    families = [family for family in Tensor.__mro__ if family not in composed]
    assert {family.__bases__ for family in families} == {(object,)}
    own = {"__module__", "__doc__", "__slots__", "__static_attributes__", "__firstlineno__"}
    names = Counter(name for family in (*families, Core) for name in vars(family))
    assert not {name for name, times in names.items() if times > 1} - own


@pytest.mark.parametrize("method", [Tensor.sum, Tensor.zeros, Tensor.manual_seed, Tensor.realize])
def test_messages_of_python_name_methods_of_tensor(method: Any) -> None:
    assert method.__qualname__ == f"Tensor.{method.__name__}"


def runs_programs(module: str) -> bool:
    """Whether a module is part of what compiles and runs programs on CPUs and GPUs.

    The user's API may turn its values into numpy arrays when asked; the reference runtime is numpy.
    """
    return room(module) <= room("minigrad.runtimes") and module != "minigrad.runtimes.reference"


def test_no_numpy_where_programs_run() -> None:
    """(pyopencl imports numpy itself; our code hands it plain buffers.)"""
    found = [
        f"{path.name}:{line}: {target}"
        for name, path in MODULES.items() if runs_programs(name)
        for target, line in imports(name, path, path.read_text("utf-8"))
        if target.partition(".")[0] in ("numpy", "ml_dtypes", "scipy")
    ]  # fmt: skip
    assert len([*filter(runs_programs, MODULES)]) > 100
    assert not found, "\n".join(found)


def modules_after(program: str, **changes: str) -> set[str]:
    """Names of the modules that a fresh interpreter has loaded after running a program.

    changes: of the environment.
    """
    text = f"{program}\nimport sys\nprint(*sys.modules)"
    return set(said("-P", "-c", text, **changes).splitlines()[-1].split())


def test_importing_minigrad_loads_no_numpy() -> None:
    loaded = modules_after("import minigrad")
    assert "minigrad" in loaded
    assert not loaded & {"numpy", "ml_dtypes", "llvmlite", "pyopencl"}


def test_a_program_on_the_cpu_loads_no_numpy(cpu: str) -> None:
    loaded = modules_after(
        "from minigrad import Tensor\n"
        f"x = Tensor([[1.0, 2.0], [3.0, 4.0]], device={cpu!r})\n"
        "loss = ((x @ x).relu().softmax(1) * x).sum()\n"
        "(slope,) = loss.gradient(x)\n"
        "x.assign(x - 0.1 * slope)\n"
        "assert len(x.tolist()) == 2 and isinstance(loss.item(), float)"
    )
    assert "minigrad.runtimes.cpu" in loaded
    assert "numpy" not in loaded


def test_compiling_few_kernels_loads_no_pool_of_threads(cpu: str, tmp_path: Path) -> None:
    loaded = modules_after(
        f"from minigrad import Tensor\nTensor([1.0, 2.0], device={cpu!r}).exp().realize()",
        MINIGRAD_CACHE=str(tmp_path),
    )
    assert "minigrad.render.llvm" in loaded  # it was compiled
    assert not loaded & {"concurrent.futures", "logging"}


# ---- devices are fixtures ----

TESTS = ROOT / "tests"
# All test files. Benchmarks are not included: they name the devices that they measure.
TEST_FILES = [p for p in sorted(TESTS.rglob("*.py")) if TESTS / "bench" not in p.parents]
NAME = rf"(?:{'|'.join(RUNTIMES)})(?::\d+)?"
# A name as a whole string, or in quotes in the text of a program for another process.
NAMED = re.compile(rf"\A{NAME}\Z|(['\"]){NAME}\1")


def named_devices(source: str) -> list[int]:
    """Lines inside functions (also decorators, defaults and lambdas) that name a device.

    At the top of a module a name is allowed: a test of one runtime has it as a constant. Docstrings
    may name devices.
    """
    tree = ast.parse(source)
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    inside = {
        part for node in ast.walk(tree) if isinstance(node, functions) for part in ast.walk(node)
    }
    said = {id(node.value) for node in inside if isinstance(node, ast.Expr)}
    return sorted(
        part.lineno
        for part in inside
        if isinstance(part, ast.Constant) and isinstance(part.value, str) and id(part) not in said
        if NAMED.search(part.value)
    )


def test_no_test_names_a_device() -> None:
    """Devices are fixtures, so that every test runs on those in MINIGRAD_TEST_DEVICES."""
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in TEST_FILES
        for line in named_devices(path.read_text("utf-8"))
    ]
    assert len(TEST_FILES) > 100
    assert not found, "take a fixture of conftest.py, or a name of devices.py: " + ", ".join(found)


A_DEVICE_IN_A_BODY = [
    "def f(): return Tensor([1], device='CPU')",
    "def f():\n    with Context(DEVICE='CL:1'): pass",
    "async def f(): return 'REF'",
    "class A:\n    def f(self, device='CPU'): pass",
    "@parametrize('device', ['CPU', 'REF'])\ndef f(device): pass",
    "ROWS = {'to': lambda x: x.to('REF')}",
    "def f(): run(\"Tensor([1.0], device='CPU').exp()\")",
    "def f(n): run(f\"x = Tensor({n}, device='CL:1')\")",
]
NO_DEVICE_IN_A_BODY = [
    "DEVICE = 'CPU'",
    "PROGRAM = \"Tensor([1.0], device='CPU')\"",
    "def f(device): return Tensor([1], device=device)",
    "def f(): return 'XPU', 'cpu', 'the CPU', 'REF against numpy', 'CL:77 does not exist'",
    "def f():\n    'CPU'\n",
    "def f(cpu): return f'{cpu}:901'",
]


@pytest.mark.parametrize("source", A_DEVICE_IN_A_BODY)
def test_a_named_device_is_seen(source: str) -> None:
    assert named_devices(source)


@pytest.mark.parametrize("source", NO_DEVICE_IN_A_BODY)
def test_what_names_no_device(source: str) -> None:
    assert not named_devices(source)
