"""Kernels on an OpenCL device agree with the reference device, whatever recipe made them."""

from __future__ import annotations

import numpy as np
import pytest
from devices import CPU, REFERENCE
from primitives import OF_FLOATS, OF_INTEGERS, OF_ONE, arity

from minigrad import Context, GlobalCounters, Tensor, Variable, dtypes, nn
from minigrad.device import Buffer, Device
from minigrad.graph import build
from minigrad.graph.node import Op
from minigrad.models.gpt import GPT, GPTConfig
from minigrad.models.mlp import MLP
from minigrad.models.moe import MoE
from minigrad.program import bytes_of, realize
from minigrad.runtimes.reference import numpy_dtype

pytest.importorskip("pyopencl")


def numbers(*shape, seed=0, dtype="float32"):
    generator = np.random.default_rng(seed + sum(shape))
    if dtype.startswith("float"):
        return generator.normal(size=shape).astype(dtype)
    return generator.integers(-9 if dtype.startswith("int") else 0, 9, shape).astype(dtype)


def agree(make, device, *arrays, tolerance=2e-6):
    """`make` gives the same on the device as on REF, floats up to a share of the largest."""
    results = []
    for name in (device, REFERENCE):
        with Context(DEVICE=name), np.errstate(all="ignore"):
            made = make(*(Tensor(array, device=name) for array in arrays))
            made = made if isinstance(made, list) else [made]
            Tensor.realize(*made)
            results.append([t.numpy() for t in made])
    for got, wanted in zip(*results, strict=True):
        assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
        if wanted.dtype.kind not in "fV":
            np.testing.assert_array_equal(got, wanted)
            continue
        got, wanted = got.astype(np.float64), wanted.astype(np.float64)
        scale = np.abs(wanted[np.isfinite(wanted)]).max(initial=1)
        np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance * scale)


# ---- elementwise kernels ----


def test_broadcast_and_transposed_operands(device):
    x, y, z = numbers(9, 70), numbers(70, 9), numbers(9, 1)
    agree(lambda x, y, z: (x * y.transpose(0, 1) + z).tanh() - x.abs().sqrt(), device, x, y, z)


def test_views_become_conditions_on_indices(device):
    def views(x):
        padded = x.pad((1, 2, 3, 0)).flip(0)
        return [padded, padded.shrink(((1, 7), (1, 5))).permute(1, 0), x.roll(2, 1) + x.flip(1)]

    agree(views, device, numbers(6, 5))


def test_bools_are_in_order(device):
    """A vector of bools is a vector of masks, whose true is less than its false."""
    x, y = numbers(4, 1, dtype="int32") > 0, numbers(4, 33, seed=1, dtype="int32") > 0
    agree(lambda x, y: [x > y, x < y, x >= y, x <= y, x == y, x != y], device, x, y)


def test_empty_and_one_element(device):
    agree(lambda x, y: [x + 1, x.sum(0), y.exp()], device, numbers(0, 3), numbers(1))


def test_values_of_one_program_go_to_several_buffers(device):
    agree(lambda x: [x * 2, (x * 2).exp(), (x * 2).sum(1)], device, numbers(8, 12))


EXTREME = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-40, 3.4e38, -3.4e38, 104.5, -0.5, 88.8]


@pytest.mark.parametrize("name", [op.value for op in OF_ONE if op in OF_FLOATS])
def test_functions_at_the_edges_of_float32(device, name):
    x = np.array(EXTREME + list(np.linspace(-9, 9, 37)), np.float32)
    results = [getattr(Tensor(x, device=d), name)().numpy() for d in (device, REFERENCE)]
    np.testing.assert_allclose(*results, rtol=5e-7, atol=1e-45)
    zeros = results[1] == 0
    np.testing.assert_array_equal(*(np.signbit(r[zeros]) for r in results))


def node(values, dtype, device):
    """A realized node that holds these values."""
    data = np.array(values, numpy_dtype(dtype))
    memory = Buffer(device, dtype, data.size)
    memory.copy_in(data.tobytes())
    return build.buffer(memory, dtype, data.shape, device)


def values(roots):
    """Values of nodes, computed by one program."""
    return [
        np.frombuffer(bytes_of(result), numpy_dtype(root.dtype)).reshape(root.shape)
        for root, result in zip(roots, realize(roots), strict=True)
    ]


INTEGERS = [dtypes.int8, dtypes.uint8, dtypes.int16, dtypes.uint16,
            dtypes.int32, dtypes.uint32, dtypes.int64, dtypes.uint64]  # fmt: skip


@pytest.mark.parametrize("dtype", INTEGERS, ids=lambda dtype: dtype.name)
def test_integers_wrap_divide_and_shift_as_on_ref(device, dtype):
    low, high = int(dtype.minimum), int(dtype.maximum)
    edges = [low, low + 1, high, high - 1, 0, 1, 2, 3, 7, dtype.bits - 1, dtype.bits]
    edges += [-1, -2, -7] if dtype.kind == "i" else []
    pairs = [(a, b) for a in edges for b in edges]
    results = []
    for name in (device, REFERENCE):
        a, b = (node(column, dtype, name) for column in zip(*pairs, strict=True))
        results.append(
            values([build.elementwise(op, *(a, b)[: arity(op)]) for op in OF_INTEGERS])
        )
    for op, got, wanted in zip(OF_INTEGERS, *results, strict=True):
        np.testing.assert_array_equal(got, wanted, op.value)


@pytest.mark.parametrize("source", [dtypes.float32, dtypes.float64], ids=lambda dtype: dtype.name)
def test_floats_saturate_on_their_way_to_integers(device, source):
    edges = [float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 0.9, -0.9, 1.5, -1.5]
    for dtype in INTEGERS:
        edges += [float(dtype.minimum), float(dtype.maximum), float(dtype.minimum) - 1]
    results = []
    for name in (device, REFERENCE):
        x = node(edges, source, name)
        results.append(values([build.cast(x, to) for to in [*INTEGERS, dtypes.bool]]))
    for got, wanted in zip(*results, strict=True):
        np.testing.assert_array_equal(got, wanted, str(wanted.dtype))


@pytest.mark.parametrize("half", [dtypes.float16, dtypes.bfloat16], ids=lambda dtype: dtype.name)
def test_every_half_is_read_and_every_neighbourhood_is_rounded(device, half):
    """All 65,536 bit patterns as values; the halfway points between them, and beside, as floats."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    wide = bits.view(numpy_dtype(half)).astype(np.float32)
    wide = wide[np.isfinite(wide)]
    middle = ((wide[:-1].astype(np.float64) + wide[1:]) / 2).astype(np.float32)
    points = np.concatenate([middle, np.nextafter(middle, np.inf), np.nextafter(middle, -np.inf)])
    results = []
    for name in (device, REFERENCE):
        read = build.cast(node(bits, dtypes.uint16, name), dtypes.uint16)
        read = build.cast(build.bitcast(read, half), dtypes.float32)
        x = node(points, dtypes.float32, name)
        doubles = node(np.concatenate([middle, middle * (1 + 2.0**-45), middle * (1 - 2.0**-45)]),
                       dtypes.float64, name)  # fmt: skip
        narrow = [build.cast(build.cast(v, half), dtypes.float32) for v in (x, doubles)]
        stored = build.bitcast(build.contiguous(build.cast(x, half)), dtypes.uint16)
        results.append(values([read, *narrow, stored]))
    for got, wanted in zip(*results, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_vectors_of_halves_may_lie_anywhere(device):
    """Rows of 31 halves, read eight at a time: PoCL 6 itself asks for multiples of 16 bytes."""
    x = np.random.default_rng(5).standard_normal((15, 31)).astype(np.float16)
    assert np.array_equal(Tensor(x, device=device).argmax(0).numpy(), x.argmax(0))


def test_float_remainder_and_nan_in_maximum(device):
    edges = [0.0, -0.0, 1.0, -1.0, 5.5, -5.5, 0.3, 1e30, -7e-42, np.inf, -np.inf, np.nan]
    pairs = [(a, b) for a in edges for b in edges if not a == b == 0]
    results = []
    for name in (device, REFERENCE):
        a, b = (node(column, dtypes.float32, name) for column in zip(*pairs, strict=True))
        results.append(
            values([build.elementwise(op, a, b) for op in (Op.MOD, Op.MAXIMUM, Op.MINIMUM)])
        )
    for got, wanted in zip(*results, strict=True):
        np.testing.assert_array_equal(got, wanted)
        np.testing.assert_array_equal(np.signbit(got[got == 0]), np.signbit(wanted[wanted == 0]))


# ---- rows ----


def test_softmax_and_layer_norm_pass_rows_through_scratch(device):
    def normalized(x, w):
        return [x.softmax(-1), x.layernorm() * w, x.log_softmax(-1).sum(0)]

    agree(normalized, device, numbers(37, 65), numbers(65))


def test_long_rows_live_in_slices_of_one_buffer(device):
    """More rows than work-items have slices: they take strides."""
    runtime = Device[device]
    rows, length = 300, 3000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minigrad.runtimes.opencl.SCRATCH_BYTES", 40 * 4 * length)
        agree(lambda x: (x * 2).softmax(-1), device, numbers(rows, length))
    assert any("get_global_size" in text for text in runtime._programs)


def test_reductions_of_every_kind(device):
    whole = numbers(6, 50, dtype="int32")
    agree(lambda x, y: [x.sum(0), x.max(1), x.prod(0), y.max(1), (y > 0).sum()], device, whole,
          numbers(6, 50))  # fmt: skip
    with_nan = numbers(5, 40)
    with_nan[2, 7] = np.nan
    agree(lambda x: [x.max(1), x.min(0), x.sum(1)], device, with_nan)


def test_a_long_sum_is_cut_in_two(device):
    agree(lambda x: [x.sum(), x.mean(), x.max()], device, numbers(1 << 17))


@pytest.mark.parametrize("count", [1025, 1032, 1500, 2049, 4099, (1 << 17) + 9])
def test_every_term_of_a_long_sum_counts(device, count):
    """Whole numbers, whose sums are exact: also those after the last whole vector of a level."""
    whole = numbers(3, count, dtype="int32").astype(np.float32)
    for x in (whole, whole.T.copy(), whole[0], whole.astype(np.float16)):
        agree(lambda x: [x.sum(0), x.sum(-1), (x * x).sum()], device, x, tolerance=0)
    agree(lambda x: [x @ x.T, x[:1] @ x.T, x.softmax(-1)], device, whole, tolerance=2e-7)


def test_cumulative_sums_and_places_of_maxima(device):
    agree(lambda x: [x.cumsum(1), x.argmax(1), x.argmin(0)], device, numbers(7, 33))


# ---- contractions ----


def test_products_with_tails_transposes_and_an_epilogue(device):
    def products(x, w, b):
        return [(x @ w + b).gelu(), x.T @ x, (w.T @ x.T).relu()]

    agree(products, device, numbers(50, 37), numbers(37, 29), numbers(29), tolerance=1e-5)


def test_batched_products_and_attention(device):
    def attention(q, k, v):
        return [q @ k.transpose(-2, -1), q.scaled_dot_product_attention(k, v, is_causal=True)]

    agree(attention, device, *(numbers(2, 3, 19, 16, seed=s) for s in range(3)), tolerance=1e-5)


@pytest.mark.parametrize("columns", [3, 7, 8, 16, 23, 32, 47, 70])
def test_values_of_any_width_that_may_not_be_finite(device, columns):
    """Masked products look at all lanes of a vector at once, of whatever length it is."""

    def attention(x, y):
        masked = [t.scaled_dot_product_attention(t, t, is_causal=True) for t in (x, y)]
        return [t.layernorm(-1, eps=0.1) for t in masked]

    x, y = numbers(3, 8, columns), numbers(3, 8, columns, seed=1)
    y[:, 5, columns - 1] = np.inf
    y[1, 6, 0] = np.nan
    agree(attention, device, x, y, tolerance=1e-5)


@pytest.mark.parametrize("shape", [(200, 5, 16), (384, 8, 65), (256, 31, 128)])
def test_a_last_tile_of_rows_that_begins_at_a_computed_place(device, shape):
    rows, depth, columns = shape
    agree(lambda x, y: x.transpose(0, 1) @ y, device, numbers(depth, rows), numbers(depth, columns))


def test_rests_of_wide_tiles_and_sums_of_few_rows(device):
    """Columns that are no multiple of two vectors; a matrix that is read once, by long vectors."""
    for columns in (1, 7, 31, 33, 47, 65):
        agree(lambda x, w: (x @ w).gelu(), device, numbers(20, 40), numbers(40, columns),
              tolerance=1e-5)  # fmt: skip
    agree(lambda x, w: x @ w.T, device, numbers(1, 700), numbers(900, 700), tolerance=1e-5)


def test_padded_operands_of_a_product_are_read_under_guards(device):
    agree(lambda x, w: x.pad((2, 1, 1, 0)) @ w.flip(0), device, numbers(20, 30), numbers(33, 13),
          tolerance=1e-5)  # fmt: skip


def test_products_of_half_precision_accumulate_in_float32(device):
    x, w = numbers(33, 129, dtype="float16"), numbers(129, 20, dtype="float16")
    agree(lambda x, w: x @ w, device, x, w, tolerance=1e-3)


# ---- addressed by data ----


def test_gather_reads_zero_out_of_range(device):
    results = []
    for name in (device, REFERENCE):
        x = node(numbers(8, 5), dtypes.float32, name)
        roots = []
        for dtype in (dtypes.int8, dtypes.int32, dtypes.int64, dtypes.uint64):
            edges = [dtype.minimum, dtype.maximum, 0, 7, 8, dtype.maximum - 2]
            index = np.repeat(np.array(edges, numpy_dtype(dtype))[:, None], 5, 1)
            roots.append(build.gather(x, node(index, dtype, name), 0))
        results.append(values(roots))
    for got, wanted in zip(*results, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_scatter_adds_in_order_and_writes_nothing_out_of_range(device):
    where = np.random.default_rng(1).integers(-2, 12, (40, 6)).astype(np.int32)
    results = []
    for name in (device, REFERENCE):
        base, x = (node(numbers(n, 6), dtypes.float32, name) for n in (10, 40))
        index = node(where, dtypes.int32, name)
        swapped = [build.permute(n, (1, 0)) for n in (base, index, x)]
        roots = [build.scatter_add(base, index, x, 0), build.scatter_add(*swapped, 1)]
        results.append(values(roots))
    for got, wanted in zip(*results, strict=True):
        np.testing.assert_array_equal(got, wanted)  # bit for bit: the same order


def test_embedding_and_its_gradient(device):
    def gradient(table, ids):
        table.requires_grad = True
        picked = table[ids]
        return [picked, (picked * picked).sum().gradient(table)[0]]

    agree(gradient, device, numbers(11, 4), np.array([[0, 3, 3], [10, 0, 3]], np.int32))


# ---- symbolic sizes, writes in place, devices ----


def test_one_program_serves_every_value_of_a_variable(device):
    data, length = numbers(16, 6), Variable("length", 1, 16)
    with Context(DEVICE=device):
        cache = Tensor(data).realize()
        built = None
        for n in (1, 5, 16):
            part = cache.shrink(((0, length.bind(n)), (0, 6)))
            total, weights = part.sum(0), part.softmax(0).sum(0)
            np.testing.assert_allclose(total.numpy(), data[:n].sum(0), atol=1e-5)
            np.testing.assert_allclose(weights.numpy(), np.ones(6), atol=1e-6)
            assert built in (None, len(Device[device]._programs))
            built = len(Device[device]._programs)


def test_writes_in_place_see_the_old_values(device):
    data = numbers(30)
    with Context(DEVICE=device):
        x = Tensor(data).realize()
        before = x * 2
        x.assign(x.flip(0) + 1)
        Tensor.realize(before, x)
    np.testing.assert_array_equal(before.numpy(), data * 2)
    np.testing.assert_array_equal(x.numpy(), data[::-1] + 1)


def test_copies_between_devices(device):
    data = numbers(50, 3)
    for name in (CPU, REFERENCE):
        there = Tensor(data, device=name).to(device) + 1
        np.testing.assert_array_equal((there.to(name) * 2).numpy(), (data + 1) * 2)


# Bytes of which a copy waits in the queue (more such copies than may wait), and of which none does.
@pytest.mark.parametrize(("size", "count"), [(1000, 20), (1_100_000, 3)], ids=["few", "many"])
@pytest.mark.parametrize("host", [CPU, REFERENCE, "numpy"])
def test_a_copy_has_what_its_source_held_then(device, host, size, count):
    """The source is written, or its memory given to others, right after; the queue is busy."""
    busy = Tensor(numbers(120, 120), device=device).realize()
    given = numbers(size)
    copies = []
    for number in range(count):
        busy = (busy @ busy).tanh().realize()
        if host == "numpy":
            values = given + number
            copies.append(Tensor(values, device=device).realize())
            values[:] = -1
        else:
            source = (Tensor(given, device=host) + number).realize()
            copies.append(source.to(device).realize())
            source.assign(source * 0 - 1).realize()
            if number % 2:
                del source
                Tensor.full((size,), -2.0, device=host).contiguous().realize()
    for number, copy in enumerate(copies):
        np.testing.assert_array_equal(copy.numpy(), given + np.float32(number))


@pytest.mark.parametrize("host", [CPU, REFERENCE])
def test_a_copy_to_the_host_is_complete_when_a_kernel_reads_it(device, host):
    for number in range(3):
        x = Tensor(numbers(120, 120, seed=number), device=device).realize()
        for _ in range(3):
            x = (x @ x).tanh().realize()
        there = x.to(host).realize()
        got = (there * 2).realize()
        wanted = 2 * x.numpy()
        x.assign(x * 0 + number).realize()
        np.testing.assert_array_equal(got.numpy(), wanted)


def test_a_copy_waits_for_what_fills_it_and_later_writes_for_the_copy(device, first, as_gpu):
    """Two queues of one context: nothing goes through the host."""
    data, other = numbers(3000), as_gpu if device != as_gpu else first
    x, last = Tensor(data, device=device).realize(), None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Device[device], "copy_out", None)
        for number in range(20):
            x.assign(x + number).realize()
            last = x.to(other).realize()
        x.assign(x * 0).realize()
    np.testing.assert_allclose(last.numpy(), data + 190, rtol=1e-6)
    np.testing.assert_array_equal(x.numpy(), np.zeros_like(data))


def test_memory_is_reused_and_counted(device):
    runtime = Device[device]
    first = Tensor(numbers(5000), device=device).realize()
    del first
    held = runtime.pool.held
    for _ in range(5):
        second = Tensor(numbers(5000), device=device).realize()
        del second
    assert runtime.pool.held == held


# ---- models ----


def losses_of(device, make_model, loss_of, steps=3):
    """Losses of a few optimizer steps, and the parameters after them."""
    with Context(DEVICE=device):
        Tensor.manual_seed(5)
        model = make_model()
        optimizer = nn.optim.AdamW(nn.state.get_parameters(model), lr=1e-2)
        losses = []
        with Tensor.train():
            for _ in range(steps):
                optimizer.zero_grad()
                loss = loss_of(model)
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        state = nn.state.get_state_dict(model)
        return losses, {name: value.numpy() for name, value in state.items()}


def same_training(device, make_model, loss_of):
    (got, state), (wanted, reference) = (
        losses_of(name, make_model, loss_of) for name in (device, REFERENCE)
    )
    np.testing.assert_allclose(got, wanted, rtol=2e-5)
    assert got[-1] < got[0]
    for name, value in reference.items():
        difference = np.abs(state[name] - value)
        assert np.median(difference) <= 1e-5, name  # Adam blows up what is nearly zero
    return got


def test_a_multilayer_perceptron_trains(device):
    x, y = numbers(32, 12), np.arange(32, dtype=np.int32) % 10
    same_training(
        device,
        lambda: MLP((12, 16, 16, 10)),
        lambda model: model(Tensor(x)).cross_entropy(Tensor(y)),
    )


def test_a_small_gpt_gives_the_logits_of_ref(device):
    ids = np.random.default_rng(2).integers(0, 20, (2, 8)).astype(np.int32)
    logits = []
    for name in (device, REFERENCE):
        with Context(DEVICE=name):
            Tensor.manual_seed(1)
            model = GPT(GPTConfig(layers=1, heads=2, dim=16, context=8, vocabulary=20))
            logits.append(model(Tensor(ids)).numpy())
    np.testing.assert_allclose(*logits, atol=2e-6)


def test_a_captured_step_replays_without_building_anything(device, small_training):
    def train(captured):
        with Context(DEVICE=device):
            run, weight = small_training(captured)
            data = [
                (Tensor(numbers(8, 12, seed=s)), Tensor(numbers(8, 5, seed=s))) for s in range(6)
            ]
            with Tensor.train():
                losses = [run(*data[n]).item() for n in range(3)]
                built = GlobalCounters.kernels_compiled
                losses += [run(*data[n]).item() for n in range(3, 6)]
            assert GlobalCounters.kernels_compiled == built
            return losses, weight.numpy()

    (losses, weight), (wanted, plain) = train(True), train(False)
    assert losses == wanted
    np.testing.assert_array_equal(weight, plain)


def test_kernels_that_differ_in_buffers_only_share_what_was_made(device):
    """Another program with the same kernels lowers, renders and builds nothing, and is right."""
    x, y = numbers(19, 31), numbers(19, 31, seed=1)

    def made(*arrays):
        before = [GlobalCounters.kernels_lowered, GlobalCounters.kernels_rendered,
                  GlobalCounters.kernels_compiled]  # fmt: skip
        tensors = [Tensor(array, device=device) for array in arrays]
        results = [(t * 3.25).softmax(1).contiguous().sum(0) for t in tensors]
        Tensor.realize(*results)
        after = [GlobalCounters.kernels_lowered, GlobalCounters.kernels_rendered,
                 GlobalCounters.kernels_compiled]  # fmt: skip
        for array, result in zip(arrays, results, strict=True):
            e = np.exp(array * 3.25 - (array * 3.25).max(1, keepdims=True))
            wanted = (e / e.sum(1, keepdims=True)).sum(0)
            np.testing.assert_allclose(result.numpy(), wanted, rtol=1e-5)
        return [b - a for a, b in zip(before, after, strict=True)]

    made(x)
    assert made(x, y) == [0, 0, 0]


def test_conditions_that_are_the_same_in_all_lanes(device):
    """A max pool's gradient chooses by the window's place, not by the lane: found by fuzzing."""
    generator = np.random.default_rng(0)
    x, seed = generator.standard_normal((2, 3, 3, 9)), generator.standard_normal((2, 3, 2, 3))
    found = []
    for name in (REFERENCE, device):
        tensor = Tensor(x, device=name, requires_grad=True)
        y = tensor.max_pool2d((2, 2), stride=(2, 4), ceil_mode=True, dilation=(1, 2))
        (gradient,) = y.gradient(tensor, gradient=Tensor(seed, device=name))
        found.append(gradient.numpy())
    np.testing.assert_array_equal(*found)


def test_loaded_bounds(device):
    """A mixture of experts: rows of each expert's product, and segments of its gradient."""

    def gradients(x):
        Tensor.manual_seed(2)
        experts = MoE(24, 40, 4, 2)
        leaves = [*nn.state.get_parameters(experts), x.requires_grad_(True)]
        y = experts(x)
        return [y, *(y * y).sum().gradient(*leaves)]

    agree(gradients, device, numbers(70, 24), tolerance=1e-5)
