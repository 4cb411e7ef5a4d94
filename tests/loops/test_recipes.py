"""Every recipe on every kind of processor gives the reference's results.

Code for older processors runs on newer ones, so AVX-512, AVX2 and SSE2 are all tested on one host,
and a target without vectors, as GPUs are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from property.compare import difference
from schedule.agreement import NEAR, agree
from schedule.machine import GOLDEN, GPU, MACHINES
from schedule.programs import PROGRAMS, Inputs, add, ew, graph_of, mul, total

from minigrad.compile import schedule_of
from minigrad.errors import CompileError
from minigrad.graph import build as g
from minigrad.graph.node import Node, Op
from minigrad.loops import cost, recipes
from minigrad.loops.assemble import assemble
from minigrad.loops.build import flat_loop
from minigrad.loops.nest import Fold, Loop, Lowered, Store, expressions, loops_in, walk
from minigrad.loops.recipes import lower
from minigrad.schedule import expr


# Without a second kind of AVX-512, whose stores bypass the caches: test_pipeline.py has those.
@pytest.mark.parametrize("machine", [one for one in MACHINES if one != "avx512 streaming"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_fused(name: str, machine: str) -> None:
    agree(PROGRAMS[name], machine, 5)


@pytest.mark.parametrize("name", PROGRAMS)
def test_unfused(name: str) -> None:
    agree(PROGRAMS[name], "avx2", 5, fuse=False)


@pytest.mark.parametrize("name", PROGRAMS)
def test_asking_memory(name: str) -> None:
    """Prefetches beyond an array's end do no harm."""
    agree(PROGRAMS[name], "tiny caches", 5)


@pytest.mark.parametrize(("n", "brief"), [
    (1, False), (2, True), (15, False), (16, True), (17, False), (23, True), (24, False),
])  # fmt: skip
@pytest.mark.parametrize("name", [name for name in PROGRAMS if name.startswith("symbolic")])
def test_symbolic_lengths(
    name: str, n: int, brief: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One kernel serves every length, and does not touch memory beyond it."""
    if not brief:
        monkeypatch.setattr(cost, "BRIEF_OPERATIONS", 0)
    agree(PROGRAMS[name], "avx2", n)


def test_places_on_a_diagonal_are_compared() -> None:
    """No lane divides."""
    kernels = schedule_of(graph_of(PROGRAMS["diagonal"])[0], GOLDEN).kernels
    bodies = [repr(stage.body) for kernel in kernels for stage in kernel.stages]
    assert len(bodies) == 2 and all("-i0 + i1 >= 0" in body for body in bodies)
    assert not any(sign in body for body in bodies for sign in ("//", "%"))


def test_sums_of_columns_share_passes() -> None:
    """Sums of memory share one pass, sums that need the mean another."""
    (kernel,) = schedule_of(graph_of(PROGRAMS["sums_of_columns"])[0], GOLDEN).kernels
    loops = loops_in((lower(kernel, GOLDEN).parallel,))
    passes = [one for one in loops if one.kind == "serial" and one.trips == 90]
    assert len(passes) == 2


def test_sums_of_what_vectors_and_a_matrix_make_together() -> None:
    """Additive attention, Σ w·tanh(a + b): no sum of products, although few rows read b."""

    def build(inputs: Inputs) -> list[Node]:
        a, b, w = inputs(4, 1, 32), inputs(1, 64, 32), inputs(32)
        added = add(*(g.expand(x, (4, 64, 32)) for x in (a, b)))
        return [total(mul(ew(Op.TANH, added), w), 2)]

    agree(build)
    (kernel,) = schedule_of(graph_of(build)[0], GOLDEN).kernels
    assert recipes.gemv(kernel, GOLDEN) is None


def test_running_reductions_do_not_wait_for_each_step() -> None:
    """Four rows take turns in maxima; sums select the first element only once."""
    kernels = schedule_of(graph_of(PROGRAMS["running"])[0], GOLDEN).kernels
    maxima, sums = (loops_in((lower(kernel, GOLDEN).parallel,)) for kernel in kernels)
    assert {one.trips for one in maxima if one.kind == "unroll"} == {4}
    selects = [
        one.trips for one in sums
        if any(e.op is Op.WHERE for e in expr.walk(*expressions(one)))
        and not any(isinstance(inner, Loop) for inner in one.body)
    ]  # fmt: skip
    assert selects == [1]


# Recipes of kernels that no program here has; property/ runs them.
ELSEWHERE = {"distribute", "byte_dots"}


def test_the_programs_use_every_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no recipe is left untested by accident."""
    made = {
        name: function for name, function in vars(recipes).items()
        if inspect.isfunction(function) and function is not lower
        and function.__annotations__.get("return") in ("Lowered", "Lowered | None")
    }  # fmt: skip
    used = set()

    def noted(name: str, function: Callable[..., Lowered | None]) -> Callable[..., Lowered | None]:
        def recipe(*given: Any) -> Lowered | None:
            made = function(*given)
            used.update([name] if made else [])
            return made

        return recipe

    for name, function in made.items():
        monkeypatch.setattr(recipes, name, noted(name, function))
    kinds, loops, packed = set(), set(), set()
    for build in PROGRAMS.values():
        for kernel in schedule_of(graph_of(build)[0], GOLDEN).kernels:
            nest = lower(kernel, GOLDEN)
            kinds.add(kernel.kind)
            loops.add((kernel.kind, nest.parallel.kind))
            packed.add(any(array.name == "panel" for array, _ in nest.scratch))
        for kernel in schedule_of(graph_of(build)[0], GPU).kernels:  # opencl/test_groups.py runs it
            lower(kernel, GPU)
    assert set(made) - used == ELSEWHERE, "add a program to schedule/programs.py that needs it"
    assert kinds == {"rows", "contraction", "scatter", "scan", "block_rows"}
    wanted = {(kind, loop) for kind in ("rows", "scatter") for loop in ("lanes", "serial")}
    assert wanted <= loops
    assert packed == {True, False}


def forgets_its_stores(loop: Loop) -> Loop:
    return replace(loop, body=())


def forgets_its_registers(loop: Loop) -> Loop:
    sets = [one for one in walk(loop) if isinstance(one, Store) and one.array.in_registers]
    kept = tuple(s for s in loop.body if s not in sets and not isinstance(s, Loop | Fold))
    return replace(loop, body=kept)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (forgets_its_stores, "do not store"),
        (forgets_its_registers, "before a Store or a Fold"),
    ],
)
def test_a_recipe_that_forgets_something(wrong: Callable[[Loop], Loop], message: str) -> None:
    (kernel,) = schedule_of(graph_of(PROGRAMS["row_product"])[0], GOLDEN).kernels
    nest = lower(kernel, GOLDEN)
    with pytest.raises(CompileError, match=message):
        assemble(kernel, Lowered(wrong(nest.parallel)), GOLDEN)


def test_a_recipe_that_keeps_nothing_at_hand() -> None:
    """A value used only inside its kernel has no memory, so a recipe must not store it."""
    (kernel,) = schedule_of(graph_of(PROGRAMS["row_softmax"])[0], GOLDEN).kernels
    loop = flat_loop([], tuple(Store(stage.array, 0, stage.body) for stage in kernel.stages))
    with pytest.raises(CompileError, match="in memory: expected a register"):
        assemble(kernel, Lowered(loop), GOLDEN)


def test_a_difference_is_seen() -> None:
    """The comparison itself can fail."""
    a = np.ones(3, np.float32)
    assert difference(a + np.float32(1e-4), a, NEAR) is not None
