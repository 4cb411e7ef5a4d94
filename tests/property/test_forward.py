"""Every operation of the table on every device: edge and random shapes, views, special values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from .compare import REFERENCE
from .layouts import LAYOUTS
from .operation import Case, Operation, disagreement, evaluate, expected, make_case
from .operations import BY_NAME, OPERATIONS
from .plans import Plan

VIEWS = tuple(name for name in LAYOUTS if name != "contiguous")
BATCH = 4  # cases per realization: several outputs, one program


def check(operation: Operation, cases: Sequence[Case], device: str) -> None:
    """The device agrees with REF, and REF with numpy."""
    reference = evaluate(operation, cases, REFERENCE)
    problems = []
    for case, result in zip(cases, reference, strict=True):
        wanted = expected(operation, case)
        if wanted is not None:
            problems.append(("REF against numpy", disagreement(operation, case, result, wanted)))
    if device != REFERENCE:
        for case, result, wanted in zip(
            cases, evaluate(operation, cases, device), reference, strict=True
        ):
            problems.append(
                (f"{device} against REF", disagreement(operation, case, result, wanted))
            )
    found = [f"{title}: {problem}" for title, problem in problems if problem]
    assert not found, "\n".join(found[:5])


@pytest.mark.parametrize("name", BY_NAME)
def test_edge_shapes(name: str, compiled: str) -> None:
    """0-d, zero-size, one element, sizes around the vector widths.

    Every other plan, and the last one, has NaN, ±0, ±inf and extreme integers in its first and last
    lanes.
    """
    operation = BY_NAME[name]
    dtype = operation.dtypes[0]
    cases = [
        make_case(operation, plan, dtype, seed, special=seed % 2 == 1)
        for seed, plan in enumerate(operation.plans.edges)
    ]
    full = [plan for plan in operation.plans.edges if all(0 not in s for s in plan.shapes)]
    cases += [make_case(operation, plan, dtype, special=True) for plan in full[-1:]]
    check(operation, cases, compiled)


VIEWED = [o.name for o in OPERATIONS if o.layouts and o.plans.edges[0].shapes]


@pytest.mark.parametrize("name", VIEWED)
def test_views(name: str, compiled: str) -> None:
    """Operands that are transposed, sliced, flipped, broadcast, padded … views.

    Each row has a third of the layouts for its first operand; three rows in turn have all of them.
    """
    operation = BY_NAME[name]
    dtype = operation.dtypes[0]
    large = sorted(operation.plans.edges, key=_elements)[-3:]
    start = VIEWED.index(name) % 3 * 3
    cases = [
        make_case(
            operation, large[n % len(large)], dtype, n, (VIEWS[n], VIEWS[(n + 3) % len(VIEWS)])
        )
        for n in range(start, start + 3)
    ]
    check(operation, cases, compiled)


def _elements(plan: Plan) -> int:
    return max((len(shape) * 1000 + sum(shape) for shape in plan.shapes), default=0)


@st.composite
def _batches(draw: Any, operation: Operation) -> list[Case]:
    # Without new shapes or layouts, only new values of the first dtype: test_dtypes has the others.
    new = operation.plans.new or operation.layouts
    dtype = draw(st.sampled_from(operation.dtypes if new else operation.dtypes[:1]))
    layouts = st.lists(st.sampled_from(tuple(LAYOUTS)), min_size=1, max_size=3)
    return [
        make_case(
            operation,
            draw(operation.plans.random),
            dtype,
            draw(st.integers(0, 2**20)),
            draw(layouts),
            special=draw(st.booleans()) and dtype == operation.dtypes[0],
        )
        for _ in range(draw(st.integers(1, BATCH)))
    ]


@pytest.mark.parametrize("name", BY_NAME)
@given(data=st.data())
def test_random_shapes(name: str, compiled: str, data: Any) -> None:
    """Random shapes, parameters, dtypes and layouts from Hypothesis, several at a time."""
    operation = BY_NAME[name]
    check(operation, data.draw(_batches(operation)), compiled)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: np.exp(x) * (1 + 1e-5),
        lambda x: np.exp(x[..., ::-1]),
        lambda x: np.exp(x)[..., :-1],
    ],
    ids=["values", "order", "shape"],
)
def test_the_check_notices_a_difference(wrong: Any) -> None:
    """A row fails if its reference differs from what Tensor computes."""
    operation = replace(BY_NAME["exp"], reference=wrong)
    case = make_case(operation, Plan(((17,),)), "float32")
    with pytest.raises(AssertionError, match="REF against numpy"):
        check(operation, [case], REFERENCE)
