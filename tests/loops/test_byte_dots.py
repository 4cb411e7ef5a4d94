"""Products with quantized matrices: dots of words and matrix registers give the same bits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from schedule.agreement import agree
from schedule.machine import run, target_of
from schedule.programs import Build, Inputs, graph_of, values_for

from minigrad import Tensor
from minigrad.compile import schedule_of
from minigrad.dtype import dtypes
from minigrad.graph.node import Node
from minigrad.loops.nest import MatrixProduct, walk
from minigrad.loops.recipes import lower
from minigrad.nn.gguf_blocks import KINDS
from minigrad.nn.quantized import Quantized
from minigrad.render.llvm import render

GROUPS, TILES = 16, 3


def product_of(name: str, rows: int, digits: int) -> Build:
    """A product of `rows` rows with a matrix of one kind, of 48 rows and 16 groups."""
    kind = KINDS[name]
    count, words = 1 + kind.minimum, kind.group * kind.bits // 32

    def build(inputs: Inputs) -> list[Node]:
        x = inputs(rows, GROUPS * kind.group)
        quants = inputs(TILES, GROUPS, words, 16, 4, dtype=dtypes.uint8, low=0, high=256)
        small = dtypes.int8 if kind.factors else dtypes.float16
        scales = [inputs(TILES, GROUPS, 1, 16, 1, dtype=small) for _ in range(count)]
        if kind.factors:
            shape = TILES, GROUPS * kind.group // 256, count, 16, 1
            scales.append(inputs(*shape, dtype=dtypes.float16))
        parts = [Tensor._of(node) for node in (quants, *scales)]
        return [Quantized(kind, TILES * 16, parts, digits).product(Tensor._of(x)).node]

    return build


@pytest.mark.parametrize("digits", [1, 2])
@pytest.mark.parametrize("rows", [16, 27, 40])
@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q8_0", "Q2_K", "Q6_K"])
def test_matrix_registers_give_what_dots_do(name: str, rows: int, digits: int) -> None:
    graph, inputs = graph_of(product_of(name, rows, digits))
    values = values_for(inputs, 1)
    (dots,), (squares,) = (run(graph, values, machine) for machine in ("avx512vnni", "amx bytes"))
    np.testing.assert_array_equal(dots, squares)


@pytest.mark.parametrize("rows", [1, 16, 27])
def test_products_are_those_of_the_reference(rows: int) -> None:
    for machine in ("avx512vnni", "amx bytes"):
        agree(product_of("Q4_1", rows, 2), machine)


def test_few_rows_are_dots() -> None:
    """A matrix is unpacked for matrix registers only if there are at least 16 rows."""
    amx = target_of("amx bytes")
    for rows, wanted in ((1, 0), (15, 0), (16, 2), (40, 4)):
        graph, _ = graph_of(product_of("Q4_0", rows, 2))
        (kernel,) = [k for k in schedule_of(graph, amx).kernels if k.kind == "dots"]
        nest = lower(kernel, amx)
        found = [one for one in walk(nest.parallel) if isinstance(one, MatrixProduct)]
        assert len(found) == wanted and ("tdpbsud" in render(nest)) == bool(wanted)
        assert {one.depths for one in found} <= {(8,)}
    plain = replace(amx, matrices=False)
    assert "tdpb" not in render(lower(kernel, plain))
