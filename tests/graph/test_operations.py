"""The table of operations is complete, and the only one: a new primitive touches four files."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest

from minigrad.graph.operations import ELEMENTWISE, Op

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("minigrad", "runtimes", "models")
SOURCES = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
NAMES = {op.name for op in ELEMENTWISE}
CASTS = (Op.CAST, Op.BITCAST)  # their result dtypes are arguments, so every room handles them


@pytest.mark.parametrize("op", sorted(ELEMENTWISE, key=str), ids=str)
def test_the_facts_of_an_operation_are_whole(op: Op) -> None:
    facts = op.facts
    assert facts.kinds and set(facts.kinds) <= set("fiub") and facts.cost > 0
    assert hasattr(np, facts.numpy) if facts.numpy else facts.formula or op in CASTS
    assert len(facts.gradient) in (0, facts.arity)
    silent = facts.flat or facts.compares or op is Op.BITCAST
    assert bool(facts.gradient) != silent or "f" not in facts.kinds
    if facts.formula:  # it is expanded, so no target has an instruction for it
        assert facts.kinds in ("f", "u") and not any((*facts.llvm, *facts.opencl, facts.symbol))


def tables(source: str) -> list[int]:
    """Lines of dicts and sets with four or more elementwise operations."""
    found = []
    for node in ast.walk(ast.parse(source)):
        keys = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", ())
        if isinstance(node, (ast.Dict, ast.Set)):
            named = [ast.unparse(key) for key in keys if key]
            if sum(name[:3] == "Op." and name[3:] in NAMES for name in named) >= 4:
                found.append(node.lineno)
    return found


def test_no_room_has_a_table_of_its_own() -> None:
    found = [f"{path}:{line}" for path in SOURCES for line in tables(path.read_text("utf-8"))]
    assert len(SOURCES) > 100
    assert not found, f"facts of operations stand in graph/operations.py: {', '.join(found)}"


def test_a_table_is_seen() -> None:
    assert tables("A = {Op.ADD: 1, Op.SUB: 2, Op.MUL: 3, Op.DIV: 4}")
    assert tables("\nB = frozenset({Op.ADD, Op.SUB, Op.MUL, Op.EXP})") == [2]
    assert not tables("C = {Op.ADD: 1, Op.SUB: 2, Op.MUL: 3, Op.SUM: 4}")


@pytest.mark.parametrize("name", ["lgamma", "digamma"])
def test_a_primitive_touches_four_files(name: str) -> None:
    """The table of operations, the formula, the method and the property table, as the README says.

    (Operations composed of it, and its in-place form, were added later.)
    """
    tested = (ROOT / "tests" / "property").glob("table_*.py")
    word = re.compile(rf"\b{name}\b", re.IGNORECASE)
    touched = {
        path.relative_to(ROOT).as_posix()
        for path in [*SOURCES, *tested] if word.search(path.read_text("utf-8"))
    }  # fmt: skip
    later = {"minigrad/tensor/arithmetic.py", "minigrad/tensor/spellings.py"}
    assert touched - later == {
        "minigrad/graph/operations.py", "minigrad/graph/formulas/gamma.py",
        "minigrad/tensor/functions.py", "tests/property/table_unary.py",
    }  # fmt: skip
