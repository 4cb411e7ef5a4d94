"""Indices as expressions: values, sizes of intermediate results, and lanes."""

from __future__ import annotations

import random
from typing import Any

import pytest

from minigrad.dtype import dtypes
from minigrad.graph.node import Op
from minigrad.graph.substitution import substitute
from minigrad.graph.symbolic import Atom, Integer
from minigrad.loops.nest import Loop, Nest
from minigrad.render.indices import Indices, Lanes
from minigrad.render.scopes import Scope
from minigrad.schedule.expr import Expr, Leaf, walk

X = Atom("var", "x", -40, 40)
Y = Atom("var", "y", 0, 99)
Z = Atom("var", "z", 3, 3)
NEST = Nest("none", Loop(X, 0, (1,), ()), (), (), (), 0, 1, 0, 0, 0, "")


class Short(Indices[Scope, str]):
    """As a renderer that computes in 32 bits where it can."""

    narrow = True


def value(root: Expr, at: dict[Atom, int]) -> int:
    """The value of an index's expression; all its parts must fit their dtypes."""
    found: dict[Expr, int] = {}
    made: Any
    for e in walk(root):
        args = [found[arg] for arg in e.args]
        match e.op:
            case Op.CONST:
                made = int(e.value)
            case Leaf.INDEX:
                made = substitute(e.index, at)
            case Leaf.PLUS | Op.ADD:
                made = args[0] + args[1]
            case Leaf.TIMES:
                made = args[0] * args[1]
            case Leaf.PART:
                assert args[0] >= 0
                made = args[0] // args[1]
            case Leaf.REST:
                assert args[0] >= 0
                made = args[0] % args[1]
            case Leaf.QUOTIENT:
                made = int(args[0] / args[1])
            case Leaf.REMAINDER:
                made = args[0] - int(args[0] / args[1]) * args[1]
            case Op.LT:
                made = args[0] < args[1]
            case Op.WHERE:
                made = args[1] if args[0] else args[2]
            case Op.CAST:
                (made,) = args
            case _:
                raise AssertionError(f"{e.op} in an index")
        assert e.dtype.is_bool or e.dtype.minimum <= made <= e.dtype.maximum
        found[e] = made
    return found[root]


def some_index(rng: random.Random, depth: int) -> Integer:
    """A random sum of variables, quotients and remainders."""
    x: Integer = rng.choice((0, 5, -7, 1 << 33 if depth == 2 else 1))
    for atom in (X, Y, Z):
        x = x + atom.index * rng.choice((0, 1, -1, 12))
    if depth:
        inner = some_index(rng, depth - 1)
        inner = inner // rng.choice((3, 8)) if rng.random() < 0.5 else inner % rng.choice((5, 16))
        x = x + inner * rng.choice((1, 9))
    return x


@pytest.mark.parametrize("seed", range(40))
def test_values(seed: int) -> None:
    rng = random.Random(seed)
    x = some_index(rng, seed % 3)
    levels = Short(Scope(), NEST)
    made = levels.arithmetic(x)
    assert made.dtype is levels.dtype_of(x)
    for _ in range(20):
        at = {atom: rng.randint(atom.low, atom.high) for atom in (X, Y, Z)}
        assert value(made, at) == substitute(x, at)


def test_constants_and_shifted_variables() -> None:
    levels = Short(Scope(), NEST)
    levels.bind_known(X, 6)
    levels.bind_known(Y, Z.index + 2)
    assert levels.arithmetic(7 * X.index + Y.index).known() == 7 * 6 + 3 + 2


def test_what_grows_evenly_along_lanes_is_one_leaf() -> None:
    levels = Short(Scope(), NEST)
    levels.vectors[Y] = Lanes(8 * X.index, 4)
    assert levels.lane_stride(3 * Y.index + X.index) == 3
    assert levels.lane_stride(Y.index // 5) is None
    assert levels.at_lane(3 * Y.index + X.index, 2) == 25 * X.index + 6
    assert levels.arithmetic(3 * Y.index + X.index + 1).op is Leaf.INDEX
    both = X.index + Y.index
    total = levels.arithmetic(3 * Y.index + both // 5 * 2)
    assert [e.index for e in walk(total) if e.op is Leaf.INDEX] == [both, 3 * Y.index]
    assert total.dtype is dtypes.int32
