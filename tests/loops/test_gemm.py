"""Products of every kind, by every recipe of contractions, on every kind of processor."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from property.compare import difference
from schedule.agreement import NEAR, agree
from schedule.machine import GOLDEN, MACHINES, run, target_of
from schedule.programs import (
    F32,
    LENGTH,
    Build,
    Inputs,
    add,
    gelu,
    graph_of,
    mul,
    product,
    transpose,
    values_for,
)

from minigrad.compile import schedule_of
from minigrad.dtype import DType, dtypes
from minigrad.graph import build as g
from minigrad.graph.node import Node, Op
from minigrad.graph.symbolic import Integer, ceildiv, var
from minigrad.loops import cost
from minigrad.loops.cost import tiling_of
from minigrad.loops.nest import show, written
from minigrad.loops.product import in_words, prepare
from minigrad.loops.recipes import lower
from minigrad.render.llvm import render
from minigrad.runtimes.reference import numpy_dtype
from minigrad.schedule.schedule import Kernel

CASES: dict[str, Build] = {}


def case(build: Build) -> Build:
    """Register a function that makes a program's roots."""
    CASES[build.__name__] = build
    return build


def wide(node: Node) -> Node:
    """Converted to float32."""
    return g.cast(node, F32)


@case
def pulls_of_pairs(inputs: Inputs) -> list[Node]:
    """As in gradients of distances: an operand is equal for all terms."""
    shape = (33, 41, 22)
    x, y, strength = (
        g.expand(g.reshape(inputs(*(n for n in one if n > 1)), one), shape)
        for one in ((33, 1, 22), (1, 41, 22), (33, 41, 1))
    )
    pulls = mul(strength, g.elementwise(Op.SUB, x, y))
    return [g.reduce(Op.SUM, pulls, [axis]) for axis in (0, 1)]


@case
def vector_times_matrix(inputs: Inputs) -> list[Node]:
    """By columns: a block with a remainder, a depth that is no multiple of the steps."""
    x, w = inputs(1, 43), inputs(43, 1201)
    return [add(product(x, w), 1.0)]


@case
def vector_times_transposed(inputs: Inputs) -> list[Node]:
    """By rows, which no block divides; a depth with a remainder; two outputs."""
    x, w = inputs(1, 43), inputs(203, 43)
    result = product(x, transpose(w))
    return [gelu(result), result]


@case
def matrix_times_vector(inputs: Inputs) -> list[Node]:
    return [product(inputs(77, 30), inputs(30, 1)), product(inputs(1, 30), inputs(30, 64))]


@case
def few_rows(inputs: Inputs) -> list[Node]:
    x, w, transposed = inputs(3, 35), inputs(35, 130), inputs(130, 35)
    return [product(x, w), product(mul(x, x), transpose(transposed))]


@case
def few_columns(inputs: Inputs) -> list[Node]:
    """Neighbours in the result belong to different vectors."""
    return [product(inputs(90, 33), inputs(33, 4)), product(inputs(90, 33), inputs(33, 1))]


@case
def rest_alone(inputs: Inputs) -> list[Node]:
    """Blocks of whole tiles take almost all rows; the remaining ones have a block of their own."""
    return [product(inputs(rows, 5), inputs(5, 3)) for rows in (495, 481, 500, 970, 391)]


@case
def few_strided(inputs: Inputs) -> list[Node]:
    """The vectors are columns of a table, which are copied to be contiguous."""
    x, w = inputs(40, 3), inputs(50, 40)
    return [product(transpose(x), transpose(w))]


@case
def batches_of_one_tile(inputs: Inputs) -> list[Node]:
    """All rows of a batch are one tile, which prefetches the next panel."""
    x, w, more = inputs(32, 9, 256), inputs(64, 256), inputs(9, 64)
    right = g.expand(g.reshape(transpose(w), (1, 256, 64)), (32, 256, 64))
    return [add(product(x, right), g.expand(g.reshape(more, (1, 9, 64)), (32, 9, 64)))]


@case
def batches_of_vectors(inputs: Inputs) -> list[Node]:
    x, w = inputs(5, 1, 33), inputs(5, 33, 70)
    keys = inputs(5, 70, 33)
    return [product(x, w), product(x, transpose(keys))]


@case
def several_sums(inputs: Inputs) -> list[Node]:
    """Queries, keys and values of one token."""
    x = inputs(1, 48)
    three = [product(x, transpose(inputs(64, 48))) for _ in range(3)]
    return [*three, add(three[0], three[1])]


@case
def half_weights(inputs: Inputs) -> list[Node]:
    x = inputs(1, 40)
    weights = [inputs(90, 40, dtype=d) for d in (dtypes.float16, dtypes.bfloat16)]
    return [product(x, transpose(wide(w))) for w in weights]


@case
def double_vectors(inputs: Inputs) -> list[Node]:
    x, w = inputs(2, 41, dtype=dtypes.float64), inputs(41, 75, dtype=dtypes.float64)
    return [product(x, w)]


@case
def scaled_weights(inputs: Inputs) -> list[Node]:
    """Integers with a scale for each row, dequantized when they are read."""
    x, q = inputs(1, 64), inputs(100, 64, dtype=dtypes.int8, low=-128, high=127)
    scale = inputs(100, 1)
    return [product(x, transpose(mul(wide(q), g.expand(scale, (100, 64)))))]


def quantized(inputs: Inputs, count: int, rows: int, blocks: int, minima: bool) -> list[Node]:
    """Rows of blocks of 32 four-bit integers; each block has a scale and perhaps a minimum."""
    shape, whole = (rows, blocks, 16), (count, rows, blocks, 16)
    x = inputs(count, blocks, 2, 16)
    q = inputs(*shape, dtype=dtypes.uint8, low=0, high=256)
    four, fifteen = (
        g.expand(g.const(n, dtypes.uint8, (1, 1, 1), q.device), shape) for n in (4, 15)
    )
    low, shifted = g.elementwise(Op.AND, q, fifteen), g.elementwise(Op.SHR, q, four)

    def spread(node: Node) -> Node:
        return g.expand(g.reshape(node, (1, rows, blocks, node.shape[-1])), whole)

    def half(place: int) -> Node:
        part = g.shrink(x, [(0, count), (0, blocks), (place, place + 1), (0, 16)])
        return g.expand(g.reshape(part, (count, 1, blocks, 16)), whole)

    halves = half(0), half(1)
    terms = [mul(part, spread(wide(n))) for part, n in zip(halves, (low, shifted), strict=True)]
    scales = [spread(wide(inputs(rows, blocks, 1, dtype=dtypes.float16))) for _ in range(2)]
    term = mul(add(*terms), scales[0])
    if minima:
        term = add(term, mul(add(*halves), scales[1]))
    return [g.reshape(g.reduce(Op.SUM, term, (2, 3)), (count, rows))]


@case
def quantized_row(inputs: Inputs) -> list[Node]:
    return quantized(inputs, 1, 203, 5, minima=True)


@case
def quantized_few(inputs: Inputs) -> list[Node]:
    return quantized(inputs, 3, 96, 2, minima=False)


@case
def two_summed_axes(inputs: Inputs) -> list[Node]:
    x, w = inputs(1, 6, 9), inputs(60, 6, 10)
    part = g.shrink(w, [(0, 60), (0, 6), (1, 10)])
    left = g.expand(x, (60, 6, 9))
    return [g.reduce(Op.SUM, mul(left, part), [1, 2])]


@case
def symbolic_depth(inputs: Inputs) -> list[Node]:
    x, w = inputs(1, LENGTH), inputs(LENGTH, 70)
    return [product(x, w)]


@case
def few_by_varying_depth(inputs: Inputs) -> list[Node]:
    """Results that are stored transposed, and results with few columns."""
    x, w = inputs(LENGTH, 34), inputs(LENGTH, 5)
    return [product(transpose(x), w), g.contiguous(transpose(product(transpose(x), w)))]


@case
def varying_rows(inputs: Inputs) -> list[Node]:
    """Blocks of one tile each; the last one has a number of rows that is not a constant."""
    return [add(product(inputs(LENGTH, 30), inputs(30, 70)), 1.0)]


@case
def varying_columns(inputs: Inputs) -> list[Node]:
    """Several panels, the last of them in part; also of columns along k, and with pieces of k."""
    wide = LENGTH * 5
    turned = transpose(inputs(2, wide, 30))
    deep = product(inputs(40, 1500), inputs(1500, wide))
    return [add(product(inputs(60, 30), inputs(30, wide)), 1.0),
            product(inputs(2, 40, 30), turned), deep]  # fmt: skip


@case
def left_transposed(inputs: Inputs) -> list[Node]:
    """The left operand's rows are contiguous: they are copied tile by tile."""
    x, y = inputs(33, 230), inputs(33, 150)
    return [add(product(transpose(x), y), 0.5)]


@case
def left_computed(inputs: Inputs) -> list[Node]:
    """Converted and masked while it is copied, row by row."""
    x = g.pad(inputs(217, 29, dtype=dtypes.float16), [(0, 0), (3, 1)])
    return [product(wide(x), inputs(33, 140))]


@case
def left_sliced(inputs: Inputs) -> list[Node]:
    """Neither its rows nor its columns are contiguous."""
    x = g.reshape(inputs(60, 2, 21, 2), (60, 2, 21, 2))
    every_other = g.reshape(g.shrink(x, [(0, 60), (0, 1), (0, 21), (1, 2)]), (60, 21))
    return [product(every_other, inputs(21, 133))]


@case
def right_transposed(inputs: Inputs) -> list[Node]:
    """The right operand's squares are transposed; columns and depth have remainders, or not."""
    x = inputs(40, 75)
    return [product(x, transpose(inputs(n, 75))) for n in (203, 64)]


@case
def far_rows(inputs: Inputs) -> list[Node]:
    """Rows larger than the second cache: tiles of them meet several panels each."""
    x, y = inputs(7, 70, 1000), inputs(7, 75, 1000)
    return [add(product(x, transpose(y)), 2.0), product(x, inputs(7, 1000, 140))]


@case
def rows_in_pieces(inputs: Inputs) -> list[Node]:
    """Two devices have half of each row, as an all-gather leaves them."""
    x = g.permute(inputs(2, 8, 40, 64), (1, 0, 2, 3))
    return [product(g.reshape(x, (640, 64)), inputs(64, 200))]


@case
def deep(inputs: Inputs) -> list[Node]:
    """So deep that k is cut; the last piece is shorter, and so is the last block of rows."""
    x, y = inputs(45, 4500), inputs(4500, 131)
    return [mul(product(x, y), 0.25)]


@case
def deep_transposed(inputs: Inputs) -> list[Node]:
    x, y = inputs(5000, 30), inputs(140, 5000)
    return [product(transpose(x), transpose(y))]


@case
def deep_windows(inputs: Inputs) -> list[Node]:
    """Several summed axes: one is cut, and the outer ones stay whole."""
    x, w = inputs(6, 70, 30, 40), inputs(6, 30, 40, 150)
    left = g.expand(g.reshape(x, (6, 70, 30, 40, 1)), (6, 70, 30, 40, 150))
    right = g.expand(g.reshape(w, (6, 1, 30, 40, 150)), (6, 70, 30, 40, 150))
    return [g.reduce(Op.SUM, g.elementwise(Op.MUL, left, right), [0, 2, 3])]


@pytest.mark.parametrize("machine", [*MACHINES, "wide tiles"])
@pytest.mark.parametrize("name", CASES)
def test_products(name: str, machine: str) -> None:
    agree(CASES[name], machine, 5)


def halves(inputs: Inputs, *shape: int) -> Node:
    return inputs(*shape, dtype=dtypes.bfloat16)


def plain_pairs(inputs: Inputs) -> list[Node]:
    """bfloat16 as it is in memory; odd depth; remainders of rows and columns; a rounded result."""
    x, y, z = halves(inputs, 47, 35), halves(inputs, 35, 150), halves(inputs, 47, 36)
    short = product(wide(x), wide(y))
    return [short, g.cast(product(wide(z), wide(halves(inputs, 36, 130))), dtypes.bfloat16)]


def turned_pairs(inputs: Inputs) -> list[Node]:
    """Each operand transposed, and one of them padded."""
    x, y = halves(inputs, 35, 47), halves(inputs, 130, 35)
    padded = g.pad(halves(inputs, 40, 30), [(0, 0), (2, 3)])
    left = wide(transpose(x))
    return [product(left, wide(transpose(y))), product(wide(padded), wide(transpose(y)))]


def squares_of_pairs(inputs: Inputs) -> list[Node]:
    """The right operand's squares of words are transposed; columns and depth have remainders."""
    return [product(wide(halves(inputs, 20, 76)), wide(transpose(halves(inputs, 130, 76))))]


def deep_pairs(inputs: Inputs) -> list[Node]:
    return [product(wide(halves(inputs, 40, 9001)), wide(halves(inputs, 9001, 132)))]


def many_squares(inputs: Inputs) -> list[Node]:
    """Several blocks of rows, and a batch; elements beyond the end of a row are not 0."""
    x, y = halves(inputs, 700, 411), halves(inputs, 411, 270)
    batch = product(wide(halves(inputs, 3, 40, 50)), wide(halves(inputs, 3, 50, 160)))
    left = wide(g.shrink(x, [(0, 700), (0, 333)]))
    return [add(product(left, wide(g.shrink(y, [(5, 338), (0, 270)]))), 1.0), batch]


def lying_pairs(inputs: Inputs) -> list[Node]:
    """Rows as matrix registers read them: separate, as parts of longer ones, and in a batch."""
    y, more = halves(inputs, 64, 150), inputs(96, 150)
    part = g.shrink(halves(inputs, 64, 160), [(0, 64), (32, 96)])
    batch = product(wide(halves(inputs, 3, 64, 96)), wide(halves(inputs, 3, 96, 160)))
    first = add(product(wide(halves(inputs, 96, 64)), wide(y)), more)
    return [first, product(wide(part), wide(y)), batch]


def rounded(inputs: Inputs, *shape: int) -> Node:
    """float32 in memory that a product reads as bfloat16."""
    return wide(g.cast(inputs(*shape), dtypes.bfloat16))


def rounded_pairs(inputs: Inputs) -> list[Node]:
    """Operands that are rounded when they are copied, in every layout, of even and odd depth."""
    x, y = rounded(inputs, 40, 75), rounded(inputs, 75, 132)
    a, b = transpose(rounded(inputs, 76, 50)), transpose(rounded(inputs, 140, 76))
    mixed = product(wide(halves(inputs, 33, 75)), y)
    return [product(x, y), product(a, b), mixed, product(x, transpose(rounded(inputs, 140, 75)))]


def repeated_pairs(inputs: Inputs) -> list[Node]:
    """Repeated columns, so that all lanes, or both halves of a word, are equal; and windows."""
    x = halves(inputs, 33, 1, 2)
    left = g.reshape(g.expand(x, (33, 32, 2)), (33, 64))
    odd = g.shrink(left, [(0, 33), (0, 63)])
    windows = g.window(halves(inputs, 200), ((0, 35, 3, 1),))
    return [product(wide(x), wide(halves(inputs, x.shape[1], 130))) for x in (left, odd, windows)]


@pytest.mark.parametrize("machine", ["amx", "avx512bf16", "avx512", "avx2"])
@pytest.mark.parametrize("build", [
    plain_pairs, turned_pairs, squares_of_pairs, deep_pairs, many_squares, lying_pairs,
    rounded_pairs, repeated_pairs,
])  # fmt: skip
def test_bfloat16(build: Build, machine: str) -> None:
    """With matrix registers, with dot products of pairs, and with neither."""
    agree(build, machine)


def test_pairs_are_used() -> None:
    """A product of bfloat16 uses pairs, unless it is too small for copies of its operands."""
    dots = target_of("avx512bf16")
    for build in (deep_pairs, rounded_pairs):
        kernel, *_ = schedule_of(graph_of(build)[0], GOLDEN).kernels
        assert "dpbf16ps" in render(lower(kernel, dots))
        assert "dpbf16ps" not in render(lower(kernel, replace(dots, bfloat16_dots=False)))


def test_columns_are_copied_to_matrix_registers_by_squares() -> None:
    """Not word by word, if rows of the left operand are not contiguous; the last squares, too."""

    def build(inputs: Inputs) -> list[Node]:
        turned = [transpose(halves(inputs, 70, 40)), transpose(rounded(inputs, 70, 40))]
        return [product(left, wide(halves(inputs, 70, 132))) for left in map(wide, turned)]

    amx = replace(target_of("amx"), l2=1 << 21)
    for kernel in schedule_of(graph_of(build)[0], amx).kernels:
        text = render(lower(kernel, amx))
        assert "tdpbf16ps" in text and "scatter" not in text


def test_rows_are_copied_to_squares_only_where_they_do_not_lie_so() -> None:
    """They are copied, for example, if they are whole pages apart and share lines of L1."""

    def apart(inputs: Inputs) -> list[Node]:
        y = halves(inputs, 64, 150)
        lefts = [halves(inputs, 64, 2048), halves(inputs, 64, 72), halves(inputs, 70, 64)]
        parts = [g.shrink(x, [(0, x.shape[0]), (0, 64)]) for x in lefts]
        return [product(wide(x), wide(y)) for x in (*parts, transpose(halves(inputs, 64, 64)))]

    amx = target_of("amx")
    for build, copied in ((lying_pairs, False), (apart, True)):
        for kernel in schedule_of(graph_of(build)[0], amx).kernels:
            scratch = {array.name for array, _ in lower(kernel, amx).scratch}
            assert scratch == {"panel", "square"} | ({"left"} if copied else set())


def test_what_is_read_behind_a_square_is_asked_for_before() -> None:
    amx = target_of("amx")
    kernel, *_ = schedule_of(graph_of(lying_pairs)[0], amx).kernels
    text = show(lower(kernel, amx))
    assert text.count("prefetch") == 2 and text.index("prefetch") < text.index("square[0 …] =")


def test_each_operand_has_one_matrix_register() -> None:
    """Some of the eight stay free: four tiles of sums take five loads."""
    amx = target_of("amx")
    kernel, *_ = schedule_of(graph_of(lying_pairs)[0], amx).kernels
    lines = [line.strip() for line in render(lower(kernel, amx)).split("\n")]
    loads = [line.partition("i8 ")[2][0] for line in lines if "tileload" in line and "call" in line]
    products = [line for line in lines if "call void @llvm.x86.tdpbf16ps" in line]
    sums, lefts, rights = zip(*(re.findall(r"i8 (\d)", line) for line in products), strict=True)
    whole = slice(0, 4)
    assert len(set(sums[whole])) == 4 and len({*lefts[whole], *rights[whole]}) == 2
    assert len(loads) % 5 == 0 and len(set(loads[:5])) == 2


def test_matrices_are_used() -> None:
    """If there are matrix registers, unless the copies would not fit into a cache."""
    amx = replace(target_of("amx"), l2=1 << 21)
    (kernel,) = schedule_of(graph_of(deep_pairs)[0], GOLDEN).kernels
    assert "tdpbf16ps" in render(lower(kernel, amx))
    assert "tdpbf16ps" not in render(lower(kernel, replace(amx, matrices=False)))
    assert "tdpbf16ps" not in render(lower(kernel, replace(amx, l2=amx.l2 // 4)))


def whole(inputs: Inputs, *shape: Integer, dtype: DType = dtypes.int8) -> Node:
    """Bytes over their whole range, as int32."""
    least = int(dtype.minimum)
    return g.cast(inputs(*shape, dtype=dtype, low=least, high=least + 256), dtypes.int32)


def plain_bytes(inputs: Inputs) -> list[Node]:
    """A depth that is no multiple of 4; remainders of rows and columns; a float result."""
    short = product(whole(inputs, 47, 35), whole(inputs, 35, 150))
    scaled = mul(wide(product(whole(inputs, 40, 128), whole(inputs, 128, 64))), 0.25)
    return [short, add(scaled, inputs(64))]


def signs_of_bytes(inputs: Inputs) -> list[Node]:
    """Signed and unsigned bytes in all combinations; unsigned sums, too."""
    kinds = dtypes.int8, dtypes.uint8
    found = [
        product(whole(inputs, 33, 70, dtype=one), whole(inputs, 70, 34, dtype=other))
        for one in kinds for other in kinds
    ]  # fmt: skip
    x, y = (
        g.cast(inputs(*shape, dtype=dtypes.uint8, low=0, high=256), dtypes.uint32)
        for shape in ((16, 64), (64, 16))
    )
    return [*found, product(x, y)]


def turned_bytes(inputs: Inputs) -> list[Node]:
    """Each operand transposed, and one padded; whole squares of words, and remainders."""
    left = transpose(whole(inputs, 75, 47))
    padded = g.pad(whole(inputs, 40, 70), [(0, 0), (2, 3)])
    right = transpose(whole(inputs, 130, 75))
    whole_words = product(whole(inputs, 20, 128), transpose(whole(inputs, 70, 128)))
    return [product(left, right), product(padded, right), whole_words]


def many_bytes(inputs: Inputs) -> list[Node]:
    """Several blocks of rows, a batch, and parts of matrices."""
    x, y = whole(inputs, 700, 411), whole(inputs, 411, 270)
    batch = product(whole(inputs, 3, 40, 50), whole(inputs, 3, 50, 160))
    left = g.shrink(x, [(0, 700), (0, 333)])
    return [product(left, g.shrink(y, [(5, 338), (0, 270)])), batch]


def bytes_of_size_n(inputs: Inputs) -> list[Node]:
    """A varying number of rows, and of columns; and a varying depth, which has no words."""
    rows = product(whole(inputs, LENGTH, 70), whole(inputs, 70, 40))
    columns = product(whole(inputs, 40, 70), whole(inputs, 70, LENGTH * 5))
    return [rows, columns, product(whole(inputs, 20, LENGTH), whole(inputs, LENGTH, 40))]


def few_bytes(inputs: Inputs) -> list[Node]:
    """Too few rows or columns for squares."""
    return [product(whole(inputs, *x), whole(inputs, *y)) for x, y in (
        ((1, 70), (70, 40)), ((5, 70), (70, 40)), ((12, 70), (70, 100)), ((40, 70), (70, 3)),
        ((40, 70), (70, 1)), ((3, 20, 9), (3, 9, 5)), ((30, 2), (2, 70)),
    )]  # fmt: skip


BYTES = [
    plain_bytes, signs_of_bytes, turned_bytes, many_bytes, bytes_of_size_n, few_bytes,
]  # fmt: skip


@pytest.mark.parametrize("machine", ["amx", "avx512", "avx2"])
@pytest.mark.parametrize("build", BYTES)
def test_bytes(build: Build, machine: str) -> None:
    """With matrix registers and without."""
    for n in (24, 17) if build is bytes_of_size_n else (1,):
        agree(build, machine, n)


@pytest.mark.parametrize("kinds", [(dtypes.int8, -128), (dtypes.uint8, 255)], ids=str)
def test_sums_of_bytes_wrap(kinds: tuple[DType, int]) -> None:
    """A sum beyond int32 wraps, as everywhere."""
    dtype, value = kinds
    graph, inputs = graph_of(lambda inputs: [
        product(whole(inputs, 16, 140_000, dtype=dtype), whole(inputs, 140_000, 16, dtype=dtype))
    ])
    values = {
        slot: np.full(node.shape, value, numpy_dtype(dtype))
        for slot, node in enumerate(inputs.nodes)
    }
    (found,) = run(graph, values, "amx")
    expected = (value * value * 140_000 + (1 << 31)) % (1 << 32) - (1 << 31)
    assert (found == expected).all()


def test_matrices_of_bytes_are_used() -> None:
    """If there are matrix registers, by the instruction for the operands' signs."""
    amx = target_of("amx")
    graph, _ = graph_of(signs_of_bytes)
    kernels = schedule_of(graph, amx).kernels
    text = "".join(render(lower(kernel, amx)) for kernel in kernels)
    for name in ("tdpbssd", "tdpbsud", "tdpbusd", "tdpbuud"):
        assert name in text
    for target in (GOLDEN, replace(GOLDEN, byte_dots=True)):
        assert all(one.kind != "contraction" for one in schedule_of(graph, target).kernels)


@pytest.mark.parametrize(("n", "brief"), [
    (1, False), (7, True), (8, False), (8, True), (17, False), (24, True),
])  # fmt: skip
@pytest.mark.parametrize("build", [symbolic_depth, varying_rows, few_by_varying_depth])
def test_symbolic_extents(
    build: Build, n: int, brief: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not brief:
        monkeypatch.setattr(cost, "BRIEF_OPERATIONS", 0)
    agree(build, "avx2", n)


def test_only_little_work_of_a_size_that_varies_has_short_code(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    def kernel(rows: Integer) -> Kernel:
        x = graph_of(lambda inputs: [product(inputs(rows, 64), inputs(64, 70))])[0]
        return schedule_of(x, GOLDEN).kernels[0]

    some, many = kernel(var("n", 1, 100)), kernel(var("n", 1, 4096))
    found = [cost.is_brief(one.stages) for one in (kernel(16), some, many)]
    assert found == [False, True, False]
    short = render(lower(some, GOLDEN)).count("\n")
    monkeypatch.setattr(cost, "BRIEF_OPERATIONS", 0)
    assert short < 0.7 * render(lower(some, GOLDEN)).count("\n")


def test_the_last_columns_are_no_code_of_their_own() -> None:
    def lines(columns: int) -> int:
        graph = graph_of(lambda inputs: [product(inputs(60, 40), inputs(40, columns))])[0]
        (kernel,) = schedule_of(graph, GOLDEN).kernels
        return render(lower(kernel, GOLDEN)).count("\n")

    assert lines(96 + 5) < 1.5 * lines(96)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("rows", [30, LENGTH], ids=str)
def test_what_tiles_share_is_stored_once(rows: Integer, machine: str) -> None:
    """The result overwrites an operand of its epilogue, so no element may be computed twice."""

    def build(inputs: Inputs) -> list[Node]:
        x, y, z = inputs(rows, 20), inputs(20, 101), inputs(rows, 20)
        first = product(x, y)
        return [product(add(first, product(z, y)), inputs(101, 40))]

    graph, inputs = graph_of(build)
    plan = schedule_of(graph, target_of(machine))
    assert any(len(one.arrays) > 1 for one in plan.held)
    for n in (1, 3, 13, 18):
        values = values_for(inputs, n)
        x, y, z, w = (values[slot] for slot in range(4))
        (found,) = run(graph, values, machine, n)
        np.testing.assert_allclose(found, (x @ y + z @ y) @ w, rtol=1e-4, atol=1e-4)


def turned_left(inputs: Inputs) -> list[Node]:
    return [product(transpose(inputs(1024, 1536)), inputs(1024, 384))]


def turned_pairs_on_the_left(inputs: Inputs) -> list[Node]:
    return [product(transpose(wide(halves(inputs, 1024, 1536))), wide(halves(inputs, 1024, 384)))]


def few_rows_of_pairs(inputs: Inputs) -> list[Node]:
    return [product(wide(halves(inputs, 256, 768)), transpose(rounded(inputs, 6400, 768)))]


@pytest.mark.parametrize("build, rows, columns", [
    (turned_left, 192, 384), (turned_pairs_on_the_left, 192, 384), (few_rows_of_pairs, 256, 800),
])  # fmt: skip
def test_tasks_copy_as_little_as_they_can(build: Build, rows: int, columns: int) -> None:
    """Eight tasks share rows, columns or both: whatever needs the fewest copies in all."""
    dots = target_of("avx512bf16")
    (kernel,) = schedule_of(graph_of(build)[0], dots).kernels
    problem = prepare(kernel)
    plan = tiling_of(in_words(problem) or problem, dots)
    assert (plan.mc, plan.nc, plan.kc) == (rows, columns, 0)


def few_rows_turned_left(inputs: Inputs) -> list[Node]:
    return [product(transpose(inputs(768, 512)), inputs(768, 128))]


def test_few_tasks_divide_evenly() -> None:
    """Four, though there could be five: two threads took 1.2 times as long for these."""
    (kernel,) = schedule_of(graph_of(few_rows_turned_left)[0], GOLDEN).kernels
    plan = tiling_of(prepare(kernel), target_of("avx512"))
    assert (plan.mc, plan.nc) == (128, 128)


@pytest.mark.parametrize(
    "rows, machine, fetched", [(2048, "avx512", True), (64, "avx512", False), (2048, "amx", False)]
)
def test_large_results_are_fetched_before_they_are_written(
    rows: int, machine: str, fetched: bool
) -> None:
    graph, _ = graph_of(lambda inputs: [product(inputs(rows, 384), inputs(384, 1536))])
    target = target_of(machine)
    loops = show(lower(schedule_of(graph, target).kernels[0], target))
    assert ("prefetch o2[" in loops) == fetched


@pytest.mark.parametrize("across", [False, True])
def test_results_that_are_stored_as_columns_are_transposed(across: bool) -> None:
    """Then no tile overlaps the one before."""
    def build(inputs: Inputs) -> list[Node]:
        made = product(inputs(40, 48), inputs(48, 70))
        return [g.contiguous(transpose(made)) if across else made]

    (kernel,) = schedule_of(graph_of(build)[0], GOLDEN).kernels
    loops = show(lower(kernel, GOLDEN)).splitlines()
    tiles = loops[loops.index(next(line for line in loops if "tile" in line and "o2[" in line)) - 1]
    assert ("transposed" in tiles) is across
    assert any("overlaps" in line for line in loops) is not across


@pytest.mark.parametrize(
    "rows, tile", [(10, 10), (32, 8), (64, 8), (96, 12), (97, 14), (100, 10), (768, 12), (784, 14)]
)
def test_tiles_divide_the_rows(rows: int, tile: int) -> None:
    """If tiles of at least eight rows do; so not with half as many registers."""
    graph = graph_of(lambda inputs: [product(inputs(rows, 40), inputs(40, 64))])[0]
    problem = prepare(schedule_of(graph, GOLDEN).kernels[0])
    found = [tiling_of(problem, target_of(name)).mr for name in ("avx512", "avx2")]
    assert found == [tile, ceildiv(rows, ceildiv(rows, 6))]


@pytest.mark.parametrize("rows, depth, columns, tile", [
    (96, 1000, 128, (6, 64)), (40, 1000, 1000, (6, 64)), (96, 1100, 128, (12, 32)),
    (14, 40, 128, (14, 32)), (96, 40, 96, (12, 32)), (96, 40, 32, (12, 32)),
])  # fmt: skip
def test_wide_tiles(rows: int, depth: int, columns: int, tile: tuple[int, int]) -> None:
    """Not for large panels, for few rows, or if many columns would be computed for nothing."""
    graph = graph_of(lambda inputs: [product(inputs(rows, depth), inputs(depth, columns))])[0]
    problem = prepare(schedule_of(graph, GOLDEN).kernels[0])
    plan = tiling_of(problem, target_of("wide tiles"))
    assert (plan.mr, plan.nr) == tile


def test_rows_that_are_not_equally_far_apart_are_packed() -> None:
    """Tiles of them in place took twice as long, as each row needs an address."""
    target = target_of("avx512")
    for build, packed in (
        (rows_in_pieces, True), (lambda i: [product(i(640, 64), i(64, 200))], False)
    ):  # fmt: skip
        (kernel,) = schedule_of(graph_of(build)[0], target).kernels
        assert tiling_of(prepare(kernel), target).packs_left == packed

@pytest.mark.parametrize("depth, twice", [(512, True), (130, True), (131, False), (64, False)])
def test_long_sums_take_two_steps_at_once(depth: int, twice: bool) -> None:
    graph = graph_of(lambda i: [product(i(64, depth), i(depth, 64))])[0]
    (kernel,) = schedule_of(graph, GOLDEN).kernels
    loops = show(lower(kernel, target_of("avx512")))
    assert ("for v0 in 0 … 2 unroll" in loops) == twice


def test_a_copy_of_a_tile_is_hardly_larger_than_the_tile() -> None:
    """(Contiguous rows were copied in vectors of 16; half of each belonged to another tile.)"""
    graph = graph_of(lambda i: [product(transpose(i(1024, 1024)), i(1024, 1024))])[0]
    (kernel,) = schedule_of(graph, GOLDEN).kernels
    plan = tiling_of(prepare(kernel), target_of("avx512"))
    nest = lower(kernel, target_of("avx512"))
    (left,) = (array for array, _ in nest.scratch if array.name == "left")
    assert plan.mr == 8 and left.size <= 1.01 * plan.mc * 1024


@pytest.mark.parametrize("depth, cut", [(2 * 1000, False), (2 * 1100, True)])
def test_sums_of_pairs_have_long_blocks(depth: int, cut: bool) -> None:
    """Up to 1,024 dots are added in one set of registers; beyond, each block has its own set."""

    def build(inputs: Inputs) -> list[Node]:
        return [product(wide(halves(inputs, 64, depth)), wide(halves(inputs, depth, 128)))]

    dots = target_of("avx512bf16")
    (kernel,) = schedule_of(graph_of(build)[0], dots).kernels
    names = {array.name for array in written(lower(kernel, dots).parallel) if array.in_registers}
    assert ("tile8_ko0" in names) == cut and "tile8" in names


def test_the_next_panel_is_asked_for() -> None:
    """Also if several are packed at once, from contiguous pairs, which are two lines here."""
    dots = target_of("avx512bf16")
    (kernel,) = schedule_of(graph_of(few_rows_of_pairs)[0], dots).kernels
    loops = show(lower(kernel, dots))
    hints = [line.strip() for line in loops.splitlines() if "prefetch s1[" in line]
    assert len(hints) % 2 == 0 and hints
    assert all("768·i1" in hint and "32·ko0" in hint for hint in hints), hints


def test_reports_count_flops() -> None:
    """Two per multiply-add, whatever the number of loads: reports state shares of peak flops."""
    for rows, depth, columns in ((40, 30, 50), (1, 64, 128)):
        inputs = (lambda m, k, n: lambda i: [product(i(m, k), i(k, n))])(rows, depth, columns)
        (kernel,) = schedule_of(graph_of(inputs)[0], GOLDEN).kernels
        nest = lower(kernel, target_of("avx512"))
        assert nest.operations == 2 * rows * depth * columns


def test_a_target_without_vectors_has_tiles_of_one_column() -> None:
    def build(inputs: Inputs) -> list[Node]:
        return [product(inputs(64, 48), inputs(48, 32))]

    (kernel,) = schedule_of(graph_of(build)[0], GOLDEN).kernels
    assert tiling_of(prepare(kernel), replace(GOLDEN, vector_bytes=0)).nr == 1


def test_a_wrong_value_is_seen() -> None:
    ones = np.ones(3, np.float32)
    assert difference(ones + np.float32(1e-3), ones, NEAR) is not None


@pytest.mark.parametrize("name", CASES)
def test_a_kernel_is_called_by_its_kind(name: str) -> None:
    """(Kernels that copy vectors once had their copies' names.)"""
    for kernel in schedule_of(graph_of(CASES[name])[0], GOLDEN).kernels:
        assert lower(kernel, GOLDEN).name == kernel.kind
