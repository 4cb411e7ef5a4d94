"""The examples in the package's docstrings give the results that they show."""

from __future__ import annotations

import ast
import doctest
import inspect
from pathlib import Path
from typing import Any

import pytest

import minigrad
from minigrad import Mesh, P, Tensor, linalg


def _documented() -> dict[str, str]:
    """Docstrings with an example, by name, without aliases."""
    found: dict[str, str] = {}
    for owner in (linalg, *Tensor.__mro__[:-1]):
        for name, value in vars(owner).items():
            function: Any = getattr(value, "fget", None) or getattr(value, "__func__", value)
            text = getattr(function, "__doc__", None) or ""
            if ">>>" in text and getattr(function, "__name__", name) == name:
                found[f"linalg.{name}" if owner is linalg else name] = text
    return found


EXAMPLES = _documented()
NAMES = {"Tensor": Tensor, "Mesh": Mesh, "P": P, **{n: getattr(linalg, n) for n in linalg.__all__}}


# Modes and state, and methods that a sentence explains.
WITHOUT = {
    "cat", "concat", "concatenate", "stack", "repeat", "repeat_interleave", "roll", "split",
    "chunk", "data", "no_grad", "train", "manual_seed", "random_state", "set_random_state", "mro",
}  # fmt: skip


def test_every_method_has_an_example() -> None:
    """Aliases and in-place forms show their method's."""
    silent = []
    for name in dir(Tensor):
        method = inspect.getattr_static(Tensor, name)
        method = getattr(method, "__func__", method)
        text = getattr(method, "__doc__", None) or ""
        if name[0] != "_" and callable(method) and " in place; gives self" not in text:
            silent += [] if ">>>" in text or name in WITHOUT else [name]
    assert not silent


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name: str, on_device: None) -> None:
    example = doctest.DocTestParser().get_doctest(EXAMPLES[name], dict(NAMES), name, None, 0)
    report: list[str] = []
    assert doctest.DocTestRunner().run(example, out=report.append).failed == 0, "".join(report)


def test_no_example_is_left_out() -> None:
    """Every docstring in the package with an example is in EXAMPLES."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    known = set(map(inspect.cleandoc, EXAMPLES.values()))  # as Python 3.13 stores them anyway
    for path in Path(minigrad.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            text = (ast.get_docstring(node) or "") if isinstance(node, kinds) else ""
            assert ">>> " not in text or text in known, f"{path}: {text}"
