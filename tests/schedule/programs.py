"""Small programs of nodes, which tests of the compiler schedule, lower, print and run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from devices import CPU

from minigrad import Tensor
from minigrad.compile import schedule_of
from minigrad.dtype import DType, dtypes
from minigrad.graph import build as g
from minigrad.graph.canonical import Graph
from minigrad.graph.gradient import gradient
from minigrad.graph.node import Node, Op
from minigrad.graph.rewrite import without_rules
from minigrad.graph.symbolic import Integer, high, var
from minigrad.graph.variable import evaluate
from minigrad.runtimes.reference import numpy_dtype
from minigrad.schedule.schedule import Schedule
from schedule.machine import GOLDEN

DEVICE = CPU  # nodes need a device's name; `machine` compiles for several kinds of CPU
F32 = dtypes.float32
LENGTH = var("n", 1, 24)  # a symbolic dimension


@dataclass
class Inputs:
    """A program's buffers, slot by slot; `ranges[slot]` is the range of its values."""

    nodes: list[Node] = field(default_factory=list)
    ranges: list[tuple[float, float]] = field(default_factory=list)

    def __call__(
        self, *shape: Integer, dtype: DType = F32, low: float = -2, high: float = 2
    ) -> Node:
        node = g.buffer(len(self.nodes), dtype, shape, DEVICE)
        self.nodes.append(node)
        self.ranges.append((low, high))
        return node


Build = Callable[[Inputs], list[Node]]
PROGRAMS: dict[str, Build] = {}


def program(build: Build) -> Build:
    """Register a function that makes a program's roots."""
    PROGRAMS[build.__name__] = build
    return build


def graph_of(build: Build, in_place: dict[int, int] | None = None) -> tuple[Graph, Inputs]:
    """A program as a canonical graph; in_place: root → the slot of an input that it overwrites."""
    inputs = Inputs()
    roots = build(inputs)
    roots = without_rules(roots)
    targets, free = [], len(inputs.nodes)
    for number in range(len(roots)):
        if number in (in_place or {}):
            targets.append((in_place or {})[number])
        else:
            targets.append(free)
            free += 1
    return Graph(tuple(roots), tuple(targets), free, ("n",), DEVICE), inputs


def plan_of(build: Build, in_place: dict[int, int] | None = None, fuse: bool = True) -> Schedule:
    """A program's schedule."""
    return schedule_of(graph_of(build, in_place)[0], GOLDEN, fuse)


def values_for(inputs: Inputs, n: int, seed: int = 0) -> dict[int, np.ndarray]:
    """Random values per slot, in the shapes that slots have for LENGTH = n."""
    random = np.random.default_rng(seed)
    values = {}
    for slot, (node, (least, most)) in enumerate(zip(inputs.nodes, inputs.ranges, strict=True)):
        shape = tuple(evaluate(extent, {"n": n}) for extent in node.shape)
        drawn = random.uniform(least, most, shape)
        values[slot] = np.floor(drawn) if node.dtype.is_int else drawn
        values[slot] = values[slot].astype(numpy_dtype(node.dtype))
    return values


# ---- shorthands ----


def number(value: float, like: Node) -> Node:
    """A constant of another node's shape and dtype."""
    return g.const(value, like.dtype, like.shape, DEVICE)


def ew(op: Op, *args: Node | float) -> Node:
    """An elementwise operation; numbers and smaller operands are broadcast to the largest."""
    nodes = [arg for arg in args if isinstance(arg, Node)]
    shape = max((node.shape for node in nodes), key=lambda s: (len(s), math.prod(map(high, s))))
    full = []
    for arg in args:
        if not isinstance(arg, Node):
            arg = g.const(arg, nodes[-1].dtype, shape, DEVICE)
        if len(arg.shape) < len(shape):
            arg = g.reshape(arg, (1,) * (len(shape) - len(arg.shape)) + arg.shape)
        full.append(g.expand(arg, shape))
    return g.elementwise(op, *full)


def add(*args: Node | float) -> Node:
    """Sum of two operands."""
    return ew(Op.ADD, *args)


def mul(*args: Node | float) -> Node:
    """Product of two operands."""
    return ew(Op.MUL, *args)


def total(x: Node, *axes: int) -> Node:
    """Sum over axes, which stay with length 1."""
    return g.reduce(Op.SUM, x, axes)


def mean(x: Node, axis: int) -> Node:
    """Mean along one axis of known length."""
    return mul(total(x, axis), 1 / high(x.shape[axis]))


def product(a: Node, b: Node) -> Node:
    """Matrix product of the last two dimensions; others must be equal."""
    *batch, m, k = a.shape
    n = b.shape[-1]
    left = g.expand(g.reshape(a, (*batch, m, k, 1)), (*batch, m, k, n))
    right = g.expand(g.reshape(b, (*batch, 1, k, n)), (*batch, m, k, n))
    summed = g.reduce(Op.SUM, g.elementwise(Op.MUL, left, right), [len(batch) + 1])
    return g.reshape(summed, (*batch, m, n))


def transpose(x: Node) -> Node:
    """The last two dimensions swapped."""
    order = list(range(x.ndim))
    order[-2:] = order[-1], order[-2]
    return g.permute(x, order)


def softmax(x: Node, axis: int) -> Node:
    """exp(x − max) / Σ exp(x − max)."""
    powers = ew(Op.EXP, ew(Op.SUB, x, g.reduce(Op.MAX, x, [axis])))
    return ew(Op.DIV, powers, total(powers, axis))


def gelu(x: Node) -> Node:
    """The tanh form (Hendrycks and Gimpel, 2016)."""
    cubic = mul(add(x, mul(mul(mul(x, x), x), 0.044715)), math.sqrt(2 / math.pi))
    return mul(mul(x, 0.5), add(ew(Op.TANH, cubic), 1.0))


# ---- the programs ----


@program
def transposed_chain(inputs: Inputs) -> list[Node]:
    x, y = inputs(48, 70), inputs(70, 48)
    return [mul(add(x, transpose(y)), 2.0)]


@program
def row_softmax(inputs: Inputs) -> list[Node]:
    return [softmax(inputs(40, 100), 1)]


@program
def column_softmax(inputs: Inputs) -> list[Node]:
    return [softmax(inputs(50, 70), 0)]


@program
def long_columns(inputs: Inputs) -> list[Node]:
    """Sums and maxima of long columns of wide rows, some in shared loops."""
    x, y = inputs(3, 21, 300), inputs(3, 21, 300)
    sums, products = total(x, 1), total(mul(x, y), 1)
    return [add(sums, products), g.reduce(Op.MAX, y, (1,)), total(mul(x, x), 0, 1)]


@program
def split_columns(inputs: Inputs) -> list[Node]:
    """So many rows that their sum is cut into sums of parts."""
    return [total(inputs(2100, 130), 0)]


@program
def layer_norm(inputs: Inputs) -> list[Node]:
    x, weight, bias = inputs(40, 72), inputs(72), inputs(72)
    centred = ew(Op.SUB, x, mean(x, 1))
    variance = mean(mul(centred, centred), 1)
    scale = ew(Op.DIV, number(1, variance), ew(Op.SQRT, add(variance, 1e-5)))
    return [add(mul(mul(centred, scale), weight), bias)]


@program
def group_norm(inputs: Inputs) -> list[Node]:
    """Rows are groups of three channels while they are normalized; then each channel is scaled."""
    x, weight = inputs(8, 15, 5, 7), inputs(15)
    rows = g.reshape(x, (8, 5, 105))
    centred = ew(Op.SUB, rows, mean(rows, 2))
    scale = ew(Op.SQRT, add(mean(mul(centred, centred), 2), 1e-5))
    normal = g.reshape(ew(Op.DIV, centred, scale), x.shape)
    return [mul(normal, g.expand(g.reshape(weight, (1, 15, 1, 1)), x.shape))]


@program
def running(inputs: Inputs) -> list[Node]:
    """Running maxima, and running sums that begin with twice the first element."""
    x = inputs(68, 150)
    place = g.expand(g.reshape(g.iota(150, DEVICE), (1, 150)), x.shape)
    twice_first = ew(Op.WHERE, place.equals(0), add(x, x), x)
    return [g.scan(Op.CUMMAX, x, 1), g.scan(Op.CUMSUM, twice_first, 1)]


@program
def gelu_linear(inputs: Inputs) -> list[Node]:
    x, weight, bias = inputs(37, 24), inputs(24, 50), inputs(50)
    return [gelu(add(product(x, weight), bias))]


@program
def linear_transposed(inputs: Inputs) -> list[Node]:
    """PyTorch's layout of weights, (out, in): the panel is packed."""
    x, weight = inputs(37, 24), inputs(50, 24)
    return [product(x, transpose(weight))]


@program
def product_of_sums(inputs: Inputs) -> list[Node]:
    """An operand that is computed before the product, and one that is converted while packing."""
    x, y, z = inputs(21, 18), inputs(21, 18), inputs(18, 33, dtype=dtypes.float16)
    return [product(add(x, y), g.cast(z, F32))]


@program
def batched_product(inputs: Inputs) -> list[Node]:
    x, y = inputs(3, 20, 17), inputs(3, 17, 35)
    return [product(x, y)]


@program
def double_product(inputs: Inputs) -> list[Node]:
    x, y = inputs(19, 33, dtype=dtypes.float64), inputs(33, 21, dtype=dtypes.float64)
    return [product(x, y)]


@program
def convolution(inputs: Inputs) -> list[Node]:
    """3 × 3 windows of a padded image, as a product with shared weights."""
    x, weight = g.pad(inputs(3, 12, 14), [(0, 0), (1, 1), (1, 1)]), inputs(5, 3, 3, 3)
    windows = g.reshape(x, (1, 3, 14, 16))
    # as in Tensor's `unfold`: rows repeated, with a stride of one less, give the windows
    rows = g.reshape(g.expand(g.reshape(windows, (3, 1, 14, 16)), (3, 4, 14, 16)), (3, 56, 16))
    rows = g.reshape(g.shrink(rows, [(0, 3), (0, 45), (0, 16)]), (3, 3, 15, 16))
    rows = g.shrink(rows, [(0, 3), (0, 3), (0, 12), (0, 16)])
    columns = g.reshape(rows, (3, 3, 12, 1, 16))
    columns = g.reshape(g.expand(columns, (3, 3, 12, 4, 16)), (3, 3, 12, 64))
    columns = g.reshape(
        g.shrink(columns, [(0, 3), (0, 3), (0, 12), (0, 51)]), (3, 3, 12, 3, 17)
    )
    columns = g.shrink(columns, [(0, 3), (0, 3), (0, 12), (0, 3), (0, 14)])
    full = (5, 3, 3, 3, 12, 14)
    columns = g.expand(g.reshape(g.permute(columns, (0, 1, 3, 2, 4)), (1, *full[1:])), full)
    factor = g.expand(g.reshape(weight, (5, 3, 3, 3, 1, 1)), full)
    return [g.reshape(total(mul(factor, columns), 1, 2, 3), (5, 12, 14))]


@program
def depthwise(inputs: Inputs) -> list[Node]:
    """Windows of each channel times weights of its own, and the sums of the weights' gradient."""
    x, w, y = inputs(2, 9, 14, 20), inputs(20, 3, 3), inputs(2, 7, 12, 20)
    windows = g.permute(g.window(x, ((1, 3, 1, 1), (2, 3, 1, 1))), (0, 1, 2, 4, 5, 3))
    weight = g.reshape(g.permute(w, (1, 2, 0)), (1, 1, 1, 3, 3, 20))
    change = g.reshape(y, (2, 7, 12, 1, 1, 20))
    forward = total(mul(windows, weight), 3, 4)
    return [ew(Op.MAXIMUM, forward, 0.0), total(mul(windows, change), 0, 1, 2)]


@program
def batch_last(inputs: Inputs) -> list[Node]:
    """A product for each element of a last axis, of 18 elements (more than a vector), and of 5."""
    roots = []
    for rows, columns, depth, batch in ((7, 11, 5, 18), (9, 20, 6, 5)):
        left = g.reshape(inputs(rows, depth, batch), (rows, 1, depth, batch))
        right = g.reshape(inputs(columns, depth, batch), (1, columns, depth, batch))
        shape = (rows, columns, depth, batch)
        roots.append(total(mul(g.expand(left, shape), g.expand(right, shape)), 2))
    return roots


@program
def groups(inputs: Inputs) -> list[Node]:
    """A convolution in groups whose columns are a quarter of a vector."""
    x, w = inputs(6, 12, 8, 4), inputs(8, 4, 4, 3)
    windows = g.permute(g.window(x, ((1, 3, 1, 1),)), (0, 1, 4, 2, 3))  # (6, 10, 3, 8, 4)
    weight = g.reshape(g.permute(w, (3, 0, 2, 1)), (1, 1, 3, 8, 4, 4))
    shape = (6, 10, 3, 8, 4, 4)
    windows = g.expand(g.reshape(windows, (6, 10, 3, 8, 4, 1)), shape)
    return [total(mul(windows, g.expand(weight, shape)), 2, 4)]


@program
def counts(inputs: Inputs) -> list[Node]:
    """Sums of one-hot rows, some outside: the count of each label, and sums of values by label."""
    labels, x = inputs(50, dtype=dtypes.int32, low=-2, high=42), inputs(3, 50)
    named = ew(Op.EQ, g.expand(g.reshape(labels, (50, 1)), (50, 40)), g.iota(40, DEVICE))
    label = g.expand(g.reshape(labels, (1, 50, 1)), (3, 50, 40))
    values = g.expand(g.reshape(x, (3, 50, 1)), (3, 50, 40))
    weighed = ew(Op.WHERE, ew(Op.EQ, label, g.iota(40, DEVICE)), values, number(0, values))
    return [total(g.cast(named, dtypes.int32), 0), total(weighed, 1)]


def attend(q: Node, k: Node, v: Node, first: int | None = None, last: int = 0) -> Node:
    """softmax(q·kᵀ/√d)·v, where a row sees the columns from row + first to row + last."""
    rows, columns = q.shape[-2], k.shape[-2]
    row = g.expand(g.reshape(g.iota(rows, DEVICE), (rows, 1)), (rows, columns))
    column = g.expand(g.reshape(g.iota(columns, DEVICE), (1, columns)), (rows, columns))
    sees = g.elementwise(Op.LE, column, ew(Op.ADD, row, last) if last else row)
    if first is not None:
        sees = g.elementwise(Op.AND, sees, g.elementwise(Op.LE, ew(Op.ADD, row, first), column))
    query, key, value, mask = map(Tensor._of, (q, k, v, sees))
    return query.scaled_dot_product_attention(key, value, mask).node


@program
def attention(inputs: Inputs) -> list[Node]:
    """Causal, two heads; the mask is computed from indices. So small that kernels store scores."""
    return [attend(inputs(2, 20, 8), inputs(2, 20, 8), inputs(2, 20, 8))]


@program
def causal_attention(inputs: Inputs) -> list[Node]:
    """Half of each block of rows is masked, and the last block is not full."""
    return [attend(inputs(3, 100, 16), inputs(3, 100, 16), inputs(3, 100, 24))]


@program
def windowed_attention(inputs: Inputs) -> list[Node]:
    """Each row sees those before it, except distant ones; the first rows see nothing."""
    return [attend(inputs(160, 12), inputs(160, 12), inputs(160, 33), -70, -2)]


@program
def attention_gradient(inputs: Inputs) -> list[Node]:
    """All gradients of causal attention; heads are side by side in memory, as in a GPT."""
    wide = [inputs(2, 64, 5, 16) for _ in range(4)]
    q, k, v, seed = (g.permute(x, (0, 2, 1, 3)) for x in wide)
    result = attend(q, k, v)
    found = gradient([result], [seed], wide[:3])
    return [result, *(x for x in found if x is not None)]


@program
def double_attention(inputs: Inputs) -> list[Node]:
    """Not masked, more columns than rows; another input decides which weights are dropped."""
    shapes = ((2, 70, 10), (2, 130, 10), (2, 130, 9), (2, 70, 130))
    q, k, v, drop = (inputs(*shape, dtype=dtypes.float64) for shape in shapes)
    weights = softmax(product(q, transpose(k)), 2)
    kept = g.elementwise(Op.WHERE, ew(Op.LT, drop, 0.5), mul(weights, 2.0), number(0, weights))
    return [product(kept, v)]


@program
def product_statistics(inputs: Inputs) -> list[Node]:
    """A product read only by maxima of its rows and columns and by a second product."""
    x, y, z = inputs(300, 20), inputs(20, 150), inputs(150, 7)
    scores = gelu(product(x, y))
    maxima = [g.reduce(Op.MAX, scores, [axis]) for axis in (0, 1)]
    return [*maxima, product(scores, z)]


@program
def scaled_rows(inputs: Inputs) -> list[Node]:
    """A second product, of values scaled by their row's sum, which is seldom within ±1."""
    q, k, v = inputs(3, 100, 16), inputs(3, 100, 16), inputs(3, 100, 24)
    weights = ew(Op.TANH, product(q, transpose(k)))
    scale = g.expand(g.reduce(Op.SUM, weights, [2]), (3, 100, 100))
    return [product(mul(weights, scale), v)]


@program
def rows_before(inputs: Inputs) -> list[Node]:
    """A softmax added to that of the row before, which cannot be computed row by row."""
    x = softmax(inputs(40, 30), 1)
    return [add(x, g.pad(g.shrink(x, [(0, 39), (0, 30)]), [(1, 0), (0, 0)]))]


@program
def rows_behind(inputs: Inputs) -> list[Node]:
    """A softmax added to that of the row after."""
    x = softmax(inputs(40, 30), 1)
    return [add(x, g.pad(g.shrink(x, [(1, 40), (0, 30)]), [(0, 1), (0, 0)]))]


@program
def column_sum(inputs: Inputs) -> list[Node]:
    return [total(inputs(90, 33), 0)]


@program
def sums_of_columns(inputs: Inputs) -> list[Node]:
    """Two sums that only read memory, and two that need their column's mean."""
    x, y = inputs(90, 96), inputs(90, 96)
    middle = mean(x, 0)
    moved = ew(Op.SUB, x, g.expand(middle, (90, 96)))
    return [total(mul(x, y), 0), middle, total(moved, 0), total(mul(moved, moved), 0)]


@program
def middle_maximum(inputs: Inputs) -> list[Node]:
    return [g.reduce(Op.MAX, inputs(5, 40, 33), [1])]


@program
def row_product(inputs: Inputs) -> list[Node]:
    return [g.reduce(Op.PROD, inputs(50, 19, low=0.5, high=1.5), [1])]


@program
def long_sum(inputs: Inputs) -> list[Node]:
    """Cut in two: partial sums in parallel, then their sum."""
    return [total(inputs(200, 301), 0, 1)]


@program
def any_and_all(inputs: Inputs) -> list[Node]:
    positive = ew(Op.LT, 0.0, inputs(30, 21))
    return [g.reduce(op, positive, [1]) for op in (Op.SUM, Op.MAX, Op.PROD)]


@program
def rows_and_columns(inputs: Inputs) -> list[Node]:
    """Two reductions of one input in different directions, and a value that needs both."""
    x = inputs(24, 36)
    return [add(add(x, total(x, 1)), total(x, 0))]


@program
def scattered(inputs: Inputs) -> list[Node]:
    """Rows added at random indices, some of them outside."""
    base, index, x = inputs(11, 21), inputs(30, dtype=dtypes.int32, low=-2, high=14), inputs(30, 21)
    spread = g.expand(g.reshape(index, (30, 1)), (30, 21))
    return [g.scatter_add(base, spread, x, 0)]


@program
def scattered_by_each_column(inputs: Inputs) -> list[Node]:
    """Elements added at random indices of their columns, some of them outside."""
    index, x = inputs(30, 21, dtype=dtypes.int32, low=-2, high=14), inputs(30, 21)
    return [g.scatter_add(inputs(11, 21), index, x, 0)]


@program
def scattered_inside_rows(inputs: Inputs) -> list[Node]:
    index, x = inputs(7, 40, dtype=dtypes.int32, low=-2, high=14), inputs(7, 40)
    base = g.const(0.0, F32, (7, 12), DEVICE)
    return [mul(g.scatter_add(base, index, x, 1), 3.0)]


@program
def embedding(inputs: Inputs) -> list[Node]:
    """Rows of a table at given indices, some of them outside."""
    table, index = inputs(13, 24), inputs(9, dtype=dtypes.int64, low=-3, high=17)
    return [g.gather(table, g.expand(g.reshape(index, (9, 1)), (9, 24)), 0)]


@program
def tied_embedding_gradient(inputs: Inputs) -> list[Node]:
    """The gradient of a table used as embedding and in a product, scaled by its norm."""
    index, x = inputs(20, dtype=dtypes.int32, low=0, high=130), inputs(20, 48)
    logits, hidden = inputs(130, 20), inputs(20, 48)
    zeros = g.const(0.0, F32, (130, 48), DEVICE)
    spread = g.expand(g.reshape(index, (20, 1)), (20, 48))
    total = add(product(logits, hidden), g.scatter_add(zeros, spread, x, 0))
    norm = g.reduce(Op.SUM, mul(total, total), [0, 1])
    return [mul(total, g.expand(norm, total.shape))]


@program
def padded(inputs: Inputs) -> list[Node]:
    """Zeros around a value; the value at padded places would not be 0."""
    return [g.pad(add(inputs(21, 30), 1.0), [(2, 1), (3, 0)])]


@program
def padded_row_sums(inputs: Inputs) -> list[Node]:
    """A sum over windows that begin outside the array."""
    x = g.pad(inputs(60), [(5, 6)])
    rows = g.reshape(g.shrink(g.reshape(g.expand(g.reshape(x, (1, 71)), (8, 71)), (568,)),
                              [(0, 560)]), (8, 70))  # fmt: skip
    return [total(rows, 1)]


@program
def symbolic_sum(inputs: Inputs) -> list[Node]:
    """A sum over a number of rows that the call decides."""
    return [total(inputs(LENGTH, 40), 0)]


@program
def symbolic_softmax(inputs: Inputs) -> list[Node]:
    return [softmax(inputs(12, LENGTH), 1)]


@program
def symbolic_chain(inputs: Inputs) -> list[Node]:
    return [add(mul(inputs(LENGTH, 9), 2.0), inputs(9))]


@program
def half_precision(inputs: Inputs) -> list[Node]:
    x, y = inputs(33, 21, dtype=dtypes.float16), inputs(33, 21, dtype=dtypes.bfloat16)
    wide = mul(g.cast(x, F32), g.cast(y, F32))
    return [g.cast(wide, dtypes.float16), g.cast(wide, dtypes.bfloat16), total(x, 1)]


@program
def two_outputs(inputs: Inputs) -> list[Node]:
    x = inputs(30, 40)
    shifted = add(x, 1.0)
    return [shifted, mul(shifted, shifted), total(shifted, 1)]


@program
def scalar(inputs: Inputs) -> list[Node]:
    return [add(mul(inputs(), 2.0), 1.0)]


@program
def nothing(inputs: Inputs) -> list[Node]:
    """Reductions over no elements."""
    x = inputs(5, 0)
    return [total(x, 1), g.reduce(Op.MAX, x, [1]), g.reduce(Op.PROD, x, [1])]


@program
def symbolic_product(inputs: Inputs) -> list[Node]:
    """A product over a symbolic dimension, and one with symbolic rows."""
    x, y, z = inputs(11, LENGTH), inputs(LENGTH, 20), inputs(20, 9)
    return [product(x, y), product(y, z)]


@program
def symbolic_attention(inputs: Inputs) -> list[Node]:
    """One new query against a varying number of keys and values."""
    q, keys, values = inputs(2, 1, 8), inputs(2, LENGTH, 8), inputs(2, LENGTH, 8)
    return [product(softmax(product(q, transpose(keys)), 2), values)]


@program
def symbolic_places(inputs: Inputs) -> list[Node]:
    """The value of the variable as a number, and a part of an array whose length it is."""
    x = inputs(24, 5)
    count = g.cast(g.variable(LENGTH, DEVICE), F32)
    part = g.shrink(x, [(0, LENGTH), (0, 5)])
    back = g.pad(part, [(0, 24 - LENGTH), (0, 0)])
    return [ew(Op.DIV, total(part, 0), count), add(back, 1.0)]


@program
def products_of_vectors(inputs: Inputs) -> list[Node]:
    """Matrix by vector, vector by matrix, inner and outer product."""
    a, x, y = inputs(30, 40), inputs(40, 1), inputs(1, 30)
    return [product(a, x), product(y, a), product(transpose(x), x), product(x, y)]


@program
def spread_of_rows(inputs: Inputs) -> list[Node]:
    """Two sums with a vector; one needs the other."""
    weights, x = inputs(64), inputs(40, 64)
    middle = total(mul(x, weights), 1)
    return [total(mul(ew(Op.SUB, x, middle), weights), 1)]


@program
def product_and_more(inputs: Inputs) -> list[Node]:
    """One product with several outputs, one of them transposed."""
    x, weight, other = inputs(33, 16), inputs(16, 40), inputs(40, 33)
    result = product(x, weight)
    return [result, mul(result, 2.0), add(transpose(result), other)]


@program
def integer_product(inputs: Inputs) -> list[Node]:
    x, y = (inputs(9, 14, dtype=dtypes.int32, low=-9, high=9) for _ in range(2))
    return [product(x, transpose(y))]


@program
def product_of_masked(inputs: Inputs) -> list[Node]:
    """The left operand is zero above the diagonal, the right one is chosen by indices."""
    x, table = inputs(20, 20), inputs(50, 18)
    index = inputs(20, dtype=dtypes.int32, low=-3, high=54)
    row, column = g.reshape(g.iota(20, DEVICE), (20, 1)), g.reshape(g.iota(20, DEVICE), (1, 20))
    lower = g.elementwise(Op.LE, g.expand(column, (20, 20)), g.expand(row, (20, 20)))
    left = g.elementwise(Op.WHERE, lower, x, number(0.0, x))
    right = g.gather(table, g.expand(g.reshape(index, (20, 1)), (20, 18)), 0)
    return [product(left, right)]


@program
def product_of_products(inputs: Inputs) -> list[Node]:
    """Σ over two axes of three factors."""
    x, y, z = inputs(6, 8, 10), inputs(8, 10), inputs(6, 10)
    both = mul(mul(x, y), g.expand(g.reshape(z, (6, 1, 10)), (6, 8, 10)))
    return [total(both, 1, 2), total(both, 0)]


@program
def wide_product(inputs: Inputs) -> list[Node]:
    """Enough rows and columns for several tasks and tiles of every size."""
    x, y = inputs(205, 31), inputs(31, 130)
    return [add(product(x, y), 1.0)]


@program
def one_tile_of_rows(inputs: Inputs) -> list[Node]:
    """A single tile; while it uses one packed panel, it prefetches the next."""
    return [product(inputs(14, 260), transpose(inputs(1000, 260)))]


@program
def far_rows(inputs: Inputs) -> list[Node]:
    """Rows of the right operand are so far apart that its panel is packed."""
    x, y = inputs(100, 130), inputs(130, 1100)
    return [g.shrink(product(x, y), [(0, 100), (0, 70)])]


@program
def integers(inputs: Inputs) -> list[Node]:
    x = inputs(7, 37, dtype=dtypes.int64, low=-9, high=9)
    y = inputs(7, 37, dtype=dtypes.int64, low=-3, high=3)
    small = g.cast(x, dtypes.int8)
    return [
        ew(Op.IDIV, x, y), ew(Op.MOD, x, y), total(mul(small, small), 1),
        g.reduce(Op.MAX, g.cast(x, dtypes.uint8), [0]), g.reduce(Op.PROD, y, [1]),
    ]  # fmt: skip


@program
def mixed_widths(inputs: Inputs) -> list[Node]:
    """Values of 1, 2, 4 and 8 bytes in one loop."""
    x, y = inputs(9, 45, dtype=dtypes.float64), inputs(9, 45, dtype=dtypes.uint8, low=0, high=9)
    positive = ew(Op.LT, 0.0, x)
    chosen = g.elementwise(Op.WHERE, positive, g.cast(y, dtypes.int16), g.cast(x, dtypes.int16))
    return [chosen, positive, mul(g.cast(chosen, dtypes.float64), x)]


@program
def long_chain(inputs: Inputs) -> list[Node]:
    """One dimension, cut into blocks, whose length no vector width divides."""
    x = inputs(10_007)
    return [ew(Op.SQRT, ew(Op.MAXIMUM, mul(x, x), 0.25))]


@program
def diagonal(inputs: Inputs) -> list[Node]:
    """A matrix with a diagonal, and one with two, as gradients build them; no lane divides."""

    def below(x: Node) -> Node:
        wide = g.pad(x, [(0, 0), (0, 72 - high(x.shape[1]))])
        return g.reshape(g.shrink(g.reshape(wide, (71 * 72,)), [(0, 71 * 71)]), (71, 71))

    return [below(inputs(71, 1)), below(inputs(71, 2))]


@program
def distances(inputs: Inputs) -> list[Node]:
    """Σ |a − b| of all pairs of rows; zeros around `a` count, unlike those of a product."""
    a, b, shape = g.pad(inputs(35, 18), [(3, 2), (1, 1)]), inputs(50, 20), (40, 50, 20)
    left = g.expand(g.reshape(a, (40, 1, 20)), shape)
    right = g.expand(g.reshape(b, (1, 50, 20)), shape)
    apart = g.elementwise(Op.SUB, left, right)
    positive = g.elementwise(Op.LE, number(0, apart), apart)
    away = g.elementwise(Op.WHERE, positive, apart, mul(apart, -1))
    return [g.reshape(total(away, 2), (40, 50))]


# Programs whose schedules and loop nests are compared with the files in golden/.
PRINTED = (
    "transposed_chain", "row_softmax", "layer_norm", "gelu_linear", "linear_transposed",
    "column_sum", "scattered", "padded", "symbolic_sum", "causal_attention", "attention_gradient",
)  # fmt: skip
