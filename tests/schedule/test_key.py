"""The keys of kernels and graphs: equal for equal code, different for different code."""

from __future__ import annotations

import struct
from collections import defaultdict
from dataclasses import fields, replace

import pytest

from minigrad import Tensor, Variable, dtypes
from minigrad.compile import schedule_of
from minigrad.errors import CompileError
from minigrad.graph.canonical import Graph, canonicalize
from minigrad.graph.collective import exchange
from minigrad.graph.node import Node, Op
from minigrad.graph.rewrite import without_rules
from minigrad.graph.symbolic import Affine, Atom
from minigrad.loops.recipes import lower
from minigrad.render.llvm import render
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis
from minigrad.schedule.expr import Array, Expr, Leaf
from minigrad.schedule.key import graph_key, kernel_key
from minigrad.schedule.schedule import Kernel
from minigrad.schedule.stage import Stage
from minigrad.target import Target

from .machine import GOLDEN
from .programs import DEVICE

TARGET = Target(32, 16, 32 << 10, 512 << 10)


def data(*shape, dtype=dtypes.float32):
    """A tensor in memory."""
    return Tensor.ones(*shape, dtype=dtype, device=DEVICE).realize()


def graph_of(*tensors: Tensor) -> Graph:
    roots = [tensor.raw for tensor in tensors]
    return canonicalize(without_rules(roots)).graph()


def kernels_of(*tensors: Tensor, fuse: bool = True) -> tuple[Kernel, ...]:
    return schedule_of(graph_of(*tensors), GOLDEN, fuse).kernels


def network():
    """Gradients of a small network: many kernels; some differ only in their arrays."""
    x = data(12, 16)
    weights = [data(16, 16) for _ in range(4)]
    biases = [data(16) for _ in range(4)]
    scale = data(16)
    for weight, bias in zip(weights, biases, strict=True):
        x = ((x @ weight + bias).gelu() * scale).softmax(1)
    loss = x.square().mean()
    return [loss, *loss.gradient(*weights, *biases, scale)]


def renamed(kernel: Kernel, number: int) -> Kernel:
    """The kernel with other names for its arrays."""
    names: dict[Array, Array] = {}

    def other(array: Array) -> Array:
        return names.setdefault(array, replace(array, name=f"x{(len(names) * 7 + number) % 101}"))

    def change(e: Expr) -> Expr | None:
        if e.op is not Leaf.LOAD:
            return None
        array, index, guard = e.array, e.index, e.guard
        return expr.load(other(array), index, guard)

    stages = tuple(
        replace(stage, body=expr.rebuild(stage.body, change), array=other(stage.array))
        for stage in kernel.stages
    )
    return replace(kernel, stages=stages, stored=frozenset(map(other, kernel.stored)))


@pytest.mark.parametrize("fuse", [True, False])
def test_names_of_arrays_do_not_matter(fuse):
    for kernel in kernels_of(*network(), fuse=fuse):
        text, arrays = kernel_key(kernel)
        assert len(set(arrays)) == len(arrays)
        for number in range(3):
            again, others = kernel_key(renamed(kernel, number))
            assert again == text
            pairs = zip(arrays, others, strict=True)
            assert all((a.dtype, a.size) == (b.dtype, b.size) for a, b in pairs)


@pytest.mark.parametrize("fuse", [True, False])
def test_kernels_of_one_key_have_one_code(fuse):
    codes = defaultdict(set)
    kernels = kernels_of(*network(), fuse=fuse)
    for kernel in kernels:
        text, arrays = kernel_key(kernel)
        nest = lower(kernel, TARGET)
        taken = tuple(arrays.index(array) for array in nest.buffers)
        figures = (nest.scratch_bytes, nest.total, nest.grain, nest.operations, nest.label)
        codes[text].add((render(nest), taken, nest.symbols, figures))
    assert all(len(found) == 1 for found in codes.values())
    assert len(codes) < len(kernels)  # the network repeats itself


def test_a_bound_value_is_no_part_of_a_key():
    position = Variable("position", 1, 64)
    x = data(64, 8)

    def first(count):
        return x.shrink(((0, position.bind(count)), (0, 8))).sum(0)

    assert graph_key(graph_of(first(3))) == graph_key(graph_of(first(40)))
    keys = [[kernel_key(kernel)[0] for kernel in kernels_of(first(n))] for n in (3, 40)]
    assert keys[0] == keys[1]
    wider = Variable("position", 1, 32)
    other = x.shrink(((0, wider.bind(3)), (0, 8))).sum(0)
    assert graph_key(graph_of(other)) != graph_key(graph_of(first(3)))


def test_buffers_and_devices_are_no_part_of_a_key():
    def made(device):
        a, b = (Tensor.ones(4, 4, device=device).realize() for _ in range(2))
        return graph_of(a @ b + a)

    assert graph_key(made(DEVICE)) == graph_key(made(f"{DEVICE}:1"))


def variants():
    """Programs of one kernel each; any two differ in some detail."""
    a, b, c = data(6, 8), data(6, 8), data(8, 6)
    half = data(6, 8, dtype=dtypes.float16)
    integers = data(6, 8, dtype=dtypes.int32)
    position, longer = Variable("n", 1, 6), Variable("n", 1, 5)
    yield "add", a + b
    yield "itself", a + a
    yield "sub", a - b
    yield "half", half + half
    yield "int", integers + integers
    yield "cast", a.cast(dtypes.float16)
    yield "bitcast", a.bitcast(dtypes.int32)
    yield "cast to int", a.cast(dtypes.int32)
    for value in (0.0, -0.0, 1.0, 1.0000001, float("nan"), float("inf")):
        yield f"constant {value}", Tensor.full((6, 8), value, device=DEVICE).maximum(a)
    yield "other NaN", Tensor.full(
        (6, 8), struct.unpack("<d", struct.pack("<Q", 0x7FF8_0000_2000_0000))[0], device=DEVICE
    ).maximum(a)
    yield "constant 1 of int", integers.maximum(1)
    yield "constant 2 of int", integers.maximum(2)
    yield "transposed", a.T.contiguous()
    yield "transposed in memory", c.T.contiguous()
    yield "flipped", a.flip(0)
    yield "flipped otherwise", a.flip(1)
    yield "padded", a.pad(((0, 1), (0, 0)))
    yield "padded before", a.pad(((1, 0), (0, 0)))
    yield "shrunk", a.shrink(((0, 5), (0, 8)))
    yield "shrunk otherwise", a.shrink(((1, 6), (0, 8)))
    yield "sum", a.sum(0)
    yield "sum over the rows", a.sum(1)
    yield "max", a.max(0)
    yield "prod", a.prod(0)
    yield "gathered", a.gather(0, integers)
    yield "gathered elsewhere", a.gather(1, integers)
    yield "symbolic", a.shrink(((0, position.bind(2)), (0, 8))).sum(0)
    yield "less symbolic", a.shrink(((0, longer.bind(2)), (0, 8))).sum(0)


def test_what_differs_has_another_key():
    texts: dict[str, str] = {}
    graphs: dict[str, str] = {}
    for name, tensor in variants():
        graph = graph_key(graph_of(tensor))
        assert graph not in graphs, f"{name} and {graphs[graph]}"
        graphs[graph] = name
        (kernel,) = kernels_of(tensor)
        text, _ = kernel_key(kernel)
        assert text not in texts, f"{name} and {texts[text]}"
        texts[text] = name


def test_what_is_stored_is_part_of_a_key():
    x = data(8, 8)
    shifted = x - x.max(1, keepdim=True)
    total = shifted.exp().sum(1)
    (one,), (two,) = kernels_of(total), kernels_of(total, shifted)
    stages = {stage.array for stage in one.stages}
    assert kernel_key(one) != kernel_key(two)
    everything = replace(one, stored=frozenset(stages))
    assert len(stages) > 1 and kernel_key(everything)[0] != kernel_key(one)[0]
    assert kernel_key(replace(one, rows=4))[0] != kernel_key(one)[0]
    assert kernel_key(replace(one, kind="scatter"))[0] != kernel_key(one)[0]


def test_order_and_targets_of_outputs_are_part_of_a_graph():
    x, y = data(4), data(4)
    graph = graph_of(x + 1, y * 2)
    for changed in (
        replace(graph, outputs=tuple(reversed(graph.outputs))),
        replace(graph, roots=tuple(reversed(graph.roots))),
        replace(graph, slots=graph.slots + 1),
        replace(graph, variables=("n",)),
    ):
        assert graph_key(changed) != graph_key(graph)


def test_no_field_is_forgotten():
    """A new field of one of these classes must become part of the key, and then of this list."""
    names = {kind: {field.name for field in fields(kind)} for kind in (Kernel, Stage, Axis, Array)}
    assert names[Kernel] == {
        "kind", "stages", "rows", "stored", "sums",
        "numbers",  # they are arguments, not code
    }  # fmt: skip
    assert names[Axis] == {"variable", "extent"}
    assert names[Array] == {
        "name", "dtype", "size", "usual", "space", "image",
        "of",  # of lowered arrays only
        "whole",  # a part uses its whole's memory
        "lanes", "width", "folded",  # of registers
    }  # fmt: skip
    assert names[Stage] == {
        "array", "shape", "axes", "reduced", "op", "body", "position", "guard", "initial",
        "initial_axes", "initial_position", "in_place",
        "exchange", "pieces",  # which have no key, as they are not compiled
        "start",  # which `position` contains
    }  # fmt: skip
    known = {"op", "dtype", "args", "value", "array", "index", "guard"}
    derived = {"indices", "operands", "variables", "inner_loads"}
    assert {n for n in Expr.__slots__ if not n.startswith("_")} == known | derived
    assert {n for n in Atom.__slots__ if not n.startswith("_")} == {
        "kind", "name", "inner", "divisor", "low", "high", "payload", "usual",
    }  # fmt: skip
    assert {n for n in Affine.__slots__ if not n.startswith("_")} == {"constant", "terms"}
    assert {n for n in Node.__slots__ if not n.startswith("_")} == {
        "op", "dtype", "shape", "src", "arg", "device",
        "form",  # follows from dtype, shape and device
        "age",  # of the object, not of its meaning
    }  # fmt: skip
    assert {field.name for field in fields(Graph)} == {
        "roots", "outputs", "slots", "variables", "device",
        "layouts",  # of a mesh: it is compiled as the graphs of its ranks, which have none
    }  # fmt: skip
    words = [member.value for member in (*Op, *Leaf)]
    assert len(set(words)) == len(words) and not {"array", "stage"} & set(words)


def test_exchanges_are_numbered_anew_and_are_part_of_a_graph():
    def key(place: int, group: str = "g") -> str:
        x = data(4)
        moved = Tensor._of(exchange("permute", group, 4, [x.node], place=place))
        return graph_key(graph_of(moved + 1))

    assert key(1) == key(1)  # though no two exchanges have one number
    assert len({key(1), key(2), key(1, "h")}) == 3


def test_an_exchange_is_not_compiled():
    x = data(4)
    plan = schedule_of(graph_of(Tensor._of(exchange("permute", "g", 4, [x.node])) * 2), GOLDEN)
    assert [kernel.kind for kernel in plan.kernels] == ["exchange", "wait", "rows"]
    with pytest.raises(CompileError, match="an exchange is not a kernel"):
        kernel_key(plan.kernels[0])


def test_registers_have_no_place_in_a_schedule():
    (kernel,) = kernels_of(data(4) + 1)
    own = expr.register("r", dtypes.float32)
    stage = replace(kernel.stages[0], body=own)
    with pytest.raises(CompileError, match="no key"):
        kernel_key(replace(kernel, stages=(stage,)))


def test_a_deep_graph_has_a_key():
    x = data(4)
    for _ in range(5000):
        x = x.sin() + 1.0
    graph = graph_of(x)
    assert graph_key(graph).count("\n") > 10_000
    assert all(kernel_key(kernel)[0] for kernel in schedule_of(graph, GOLDEN).kernels)
