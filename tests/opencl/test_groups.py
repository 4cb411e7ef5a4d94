"""Recipes with work-groups: their nests, and that a device computes the same with them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from devices import REFERENCE
from schedule.agreement import compare, reference
from schedule.machine import GPU, place, read
from schedule.programs import PROGRAMS, graph_of

from minigrad import Context, Tensor, Variable
from minigrad.compile import schedule_of
from minigrad.device import Buffer, Device
from minigrad.dtype import dtypes
from minigrad.errors import CompileError
from minigrad.graph import build
from minigrad.graph.canonical import Graph
from minigrad.graph.node import Op
from minigrad.graph.shapes import numel
from minigrad.graph.symbolic import high
from minigrad.loops import transforms
from minigrad.loops.gpu import choose_tile
from minigrad.loops.nest import show
from minigrad.loops.recipes import lower
from minigrad.programs import programs
from minigrad.render.opencl_kernel import render
from minigrad.target import CPU_TILES, TILES, Group

PLACE = REFERENCE  # nodes need a device's name; nothing runs on it


def slot(number, *shape, dtype=dtypes.float32):
    return build.buffer(number, dtype, shape, PLACE)


def nests(*roots, slots=2):
    """The loop nests of a program."""
    outputs = tuple(range(slots, slots + len(roots)))
    plan = schedule_of(Graph(roots, outputs, slots + len(roots), (), PLACE), GPU)
    return [lower(kernel, GPU) for kernel in plan.kernels]


def product(m, k, n):
    left = build.expand(build.reshape(slot(0, m, k), (m, k, 1)), (m, k, n))
    right = build.expand(build.reshape(slot(1, k, n), (1, k, n)), (m, k, n))
    total = build.reduce(Op.SUM, build.elementwise(Op.MUL, left, right), (1,))
    return build.reshape(total, (m, n))


CONTRACTION = """\
kernel contraction(s0: float32[144], s1: float32[144], o2: float32[81])  # grain 1
  local left: float32[320]
  local right: float32[320]
  parallel for r0 in 0 … 1:
    for item0 in 0 … 64 items:
      for x0 in 0 … 4 step 4 lanes:
        tile1[0] = 0.0
      for q0 in 0 … 1 unroll:
        for y0 in 0 … 4 step 4 lanes:
"""

CONTRACTION_STEPS = """\
split(m99, 16, c)
split(n99, 16, p)
split(m99, 1, ir)
split(k99, 16, kp)
split(n99, 16, v)
split(n99, 4, ic)
count(n99, x)
count(k99, k)
vectorize(x0, 4)
reorder(c0, p0, ir0, ic0, x0, m99, v0)
sink(ir0, ic0, x0, m99, v0, into=kp0)
insert(kp0, …)
insert(ir0, …, behind=True)
stage(right, None, (k0, v0, ic0, x0), (((k0), None), ((v0, ic0, x0), 20)), right, flat=1, \
item=item0 of 64)
stage(left, None, (ir0, m99, k0), (((k0), None), ((ir0, m99), 20)), left, flat=4, \
item=item0 of 64)
sink(m99, v0)
unroll(m99, u)
unroll(v0, v)
bind(item0 of 64, p0, ir0, ic0)
simplify
parallelize(c0, p0)"""


def steps_of(monkeypatch, *roots):
    """The steps of the recipes."""
    found = []
    monkeypatch.setattr(transforms.watching, "see", lambda step, body: found.append(step))
    nests(*roots)
    return "\n".join(found[1:])


def test_the_steps_of_a_product(monkeypatch):
    assert steps_of(monkeypatch, product(9, 16, 9)) == CONTRACTION_STEPS


def test_golden_contraction():
    (nest,) = nests(product(9, 16, 9))
    assert show(nest).startswith(CONTRACTION)
    text = render(nest).text
    assert "__attribute__((reqd_work_group_size(64, 1, 1)))" in text
    assert "*(__local const float4 *)(shared1" in text and "barrier(CLK_LOCAL_MEM_FENCE);" in text
    assert "CLK_GLOBAL_MEM_FENCE" not in text


ROWS = """\
kernel rows(s0: float32[1200], o2: float32[3])  # grain 3
  local fold_float32: float32[64]
  parallel for r0 in 0 … 3:
    for item0 in 0 … 64 items:
      sum0[0] = 0.0
      for k0 in item0 … 400 step 64:
        sum0[0] = (sum0[0] + s0[k0 + 400·r0])
      fold_float32[item0] = sum0[0]
      barrier
      fold_float32[item0] = (fold_float32[item0] + fold_float32[item0 + 32]) if -item0 + 31 >= 0
"""

ROWS_END = """
      barrier
      fold_float32[item0] = (fold_float32[item0] + fold_float32[item0 + 1]) if -item0 >= 0
      sum0[0] = fold_float32[item0]
      barrier
      for e0 in item0 … 1 step 64:
        o2[r0] = sum0[0]"""

ROWS_STEPS = """\
insert(k0, …, behind=True)
share(sum0, item0 of 64, k0)
share(o2, item0 of 64, e0)
bind(item0 of 64, r0)
parallelize(r0)"""


def test_the_steps_of_rows(monkeypatch):
    assert steps_of(monkeypatch, build.reduce(Op.SUM, slot(0, 3, 400), (1,))) == ROWS_STEPS


def test_golden_rows():
    (nest,) = nests(build.reduce(Op.SUM, slot(0, 3, 400), (1,)))
    assert show(nest).startswith(ROWS)
    assert show(nest).endswith(ROWS_END)


def test_neighbours_are_read_as_one_word_where_they_begin_at_one():
    size = 4 * GPU.group.items * GPU.group.units * 8
    (nest,) = nests(build.elementwise(Op.NEG, slot(0, size)))
    text = render(nest).text
    assert "*(__global const float4 *)(a0 + " in text and "get_global_size(0)" in text
    shifted = build.shrink(slot(0, size + 1), ((1, size + 1),))
    (nest,) = nests(build.elementwise(Op.NEG, shifted))
    assert "vload4(0, a0 + " in render(nest).text


def test_tiles_fit_the_device_and_the_product():
    large, small = Group(256, 48 << 10, 108), Group(64, 16 << 10, 2)
    assert choose_tile(4096, 4096, 1, large, dtypes.float32) == TILES[0]
    assert choose_tile(8, 4096, 1, large, dtypes.float32).rows == 8
    for size in (7, 100, 4096):
        tile = choose_tile(size, size, 1, small, dtypes.float64)
        assert tile.items <= small.items
        assert (tile.rows + tile.columns) * 16 * 8 <= small.local_bytes


# ---- on a device ----


def numbers(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def same(make, device, *arrays, tolerance=1e-5):
    got, wanted = (
        make(*(Tensor(a, device=name) for a in arrays)).numpy() for name in (device, REFERENCE)
    )
    scale = np.abs(wanted).max(initial=1)
    np.testing.assert_allclose(got / scale, wanted / scale, rtol=0, atol=tolerance)


def noted(name, monkeypatch):
    """A list to which a device's launches are added."""
    found, launch = [], Device[name].launch
    monkeypatch.setattr(
        Device[name], "launch", lambda given, values: found.extend(given) or launch(given, values)
    )
    return found


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_programs_of_recipes(first, name):
    """Each recipe for GPUs in loops/ applies to some of these (loops/test_recipes.py)."""
    graph, inputs = graph_of(PROGRAMS[name])
    values, wanted = reference(PROGRAMS[name], 5)
    buffers = [Buffer(first, x.dtype, numel(x.shape)) for x in (*inputs.nodes, *graph.roots)]
    for node, buffer, value in zip(inputs.nodes, buffers, values.values(), strict=False):
        memory = np.zeros(buffer.nbytes, np.uint8)
        place(memory, value, tuple(map(high, node.shape)))
        buffer.copy_in(memory.data)
    Device[first].compile(graph).run(buffers, {"n": 5})
    results = buffers[len(inputs.nodes) :]
    found = [
        read(np.frombuffer(buffer.copy_out(), np.uint8), root, 5)
        for root, buffer in zip(graph.roots, results, strict=True)
    ]
    compare(found, wanted, values, first)


@pytest.mark.parametrize("tile", TILES + CPU_TILES, ids=lambda t: f"{t.rows}x{t.columns}")
def test_products_of_all_tiles(first, tile, monkeypatch):
    target = Device[first].target
    group = replace(target.group, tiles=(tile,))
    monkeypatch.setattr(Device[first], "target", replace(target, group=group))
    number = float((TILES + CPU_TILES).index(tile))  # every tile has a program of its own
    x, w, b = numbers(65, 17), numbers(17, 132), numbers(132)
    same(lambda x, w, b: (x @ w + b * number).relu(), first, x, w, b)


@pytest.mark.parametrize("m,k,n", [(1, 1, 1), (5, 3, 7), (3, 300, 8), (96, 32, 64), (65, 17, 128)])
def test_products_of_many_sizes(first, m, k, n):
    x, w = numbers(m, k), numbers(k, n)
    same(lambda x, w: x @ w, first, x, w)
    same(lambda x, w: x.T @ x - w.sum(), first, x, w)


def test_places_that_are_loaded_are_read_lane_by_lane(first):
    places = np.random.default_rng(2).integers(0, 50, 1 << 14).astype(np.int32)
    same(lambda x, at: x[at] * 2, first, numbers(50), places)


def numbers_of(x):
    return Tensor.arange(x.shape[0], device=x.device)


LARGE = {  # so large that each work-item has vectors
    "zeros around": lambda x: x.pad((3, 5)) * 2,
    "zeros around what is across": lambda x: x.reshape(-1, 3).T.reshape(-1).pad((1, 3)),
    "numbers across": lambda x: x + numbers_of(x).reshape(3, -1).T.reshape(-1),
}


@pytest.mark.parametrize("make", LARGE.values(), ids=LARGE)
def test_vectors_of_what_is_not_in_a_row(first, make):
    same(make, first, numbers(3 << 18))


def test_a_last_dimension_that_varies(first):
    data, n = numbers(64, 1 << 12), Variable("n", 1, 1 << 12)
    for count in (1, 1003, 1 << 12):
        part = Tensor(data, device=first)[:, : n.bind(count)] * 2
        np.testing.assert_array_equal(part.numpy(), data[:, :count] * 2)


def test_what_is_no_vector_is_refused(monkeypatch):
    (nest,) = nests(product(9, 16, 9))
    monkeypatch.setattr("minigrad.render.opencl_kernel._takes", lambda *given: False)
    with pytest.raises(CompileError, match="a lanes loop of step 4, which is not a vector width"):
        render(nest)


def test_attention_makes_no_square_buffer(first, monkeypatch):
    programs.forget()  # a general program, made for other lengths, stores all scores
    length = 256
    queries = [numbers(1, length, 8, seed=s) for s in range(3)]
    launches = noted(first, monkeypatch)

    def gradients(name):
        given = [Tensor(x, device=name, requires_grad=True) for x in queries]
        made = given[0].scaled_dot_product_attention(*given[1:], is_causal=True)
        return [g.numpy() for g in made.square().sum().gradient(*given)]

    for got, wanted in zip(gradients(first), gradients(REFERENCE), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5)
    sizes = [array.size for launch in launches for array in launch.code.nest.arrays]
    assert sizes and max(sizes) < length * length // 8


@pytest.mark.parametrize("rows", [40, 42, 43])
def test_attention_with_any_number_of_rows(first, rows):
    def attention(q, k, v):
        return q.scaled_dot_product_attention(k, v, is_causal=True)

    same(attention, first, *(numbers(3, rows, 12, seed=s) for s in range(3)))


def test_groups_that_share_slices_of_scratch_run_in_pieces(first, monkeypatch):
    monkeypatch.setattr("minigrad.runtimes.opencl.SCRATCH_BYTES", 3 << 17)
    x = numbers(11, 20_000)  # a row and its exponentials do not fit into local memory
    launches = noted(first, monkeypatch)
    same(lambda x: (x * 2).softmax(1), first, x)
    assert any(len(launch.code.pieces({})) > 1 for launch in launches)


def test_scattered_additions_are_made_in_order_by_parts(first):
    places = np.random.default_rng(1).integers(0, 500, (300, 3)).astype(np.int32)
    places[:100] = 7
    updates = numbers(300, 3) * np.float32(1e4)

    def scattered(base, updates, places):
        return base.scatter_reduce(0, places, updates, "sum")

    results = [
        scattered(*(Tensor(a, device=name) for a in (numbers(500, 3), updates, places))).numpy()
        for name in (first, REFERENCE)
    ]
    np.testing.assert_array_equal(*results)


def test_symbolic_sizes(first):
    results = []
    for name in (first, REFERENCE):
        with Context(DEVICE=name):
            x, w = Tensor(numbers(40, 50)).realize(), Tensor(numbers(50, 64)).realize()
            for count in (1, 17, 40):
                n = Variable("n", 1, 40).bind(count)
                part = x.shrink(((0, n), (0, 50)))
                results.append((name, [
                    part.sum(0).numpy(), (part.T @ part).numpy(), (part @ w).sum(0).numpy(),
                    (part.exp().sum()).numpy(), part.softmax(1).numpy(),
                ]))  # fmt: skip
    half = len(results) // 2
    for (_, got), (_, wanted) in zip(results[:half], results[half:], strict=True):
        for one, other in zip(got, wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("width", [2, 3, 5])
def test_items_read_what_others_of_their_group_have_stored(first: str, width: int) -> None:
    """Two means of columns in one kernel, for any number of rows: the second reads the first.

    PoCL let items read before that was written if a group could return before its barriers.
    """
    random, weight = np.random.default_rng(width), np.eye(width, dtype=np.float32) * 2
    programs.forget()
    for m, n in ((8, 2), (7, 7), (5, 9), (8, 7), (3, 4)):
        data = random.standard_normal((m, n, width)).astype(np.float32)
        garbage = [Tensor.full((n, width), 1e30, device=first).realize() for _ in range(4)]
        x, w = (Tensor(one, device=first).realize() for one in (data, weight))
        del garbage  # its memory is used next
        y = x @ w
        mean = y.mean(0)
        rest = (y - mean).mean(0)
        Tensor.realize(y - mean - rest, mean, rest)
        np.testing.assert_allclose(mean.numpy(), 2 * data.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(rest.numpy(), np.zeros((n, width)), atol=1e-5)
