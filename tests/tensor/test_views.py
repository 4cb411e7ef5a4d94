"""Views share memory with another tensor, as in numpy; all other methods return copies."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest
from pairwise import pairwise

from minigrad import Tensor, jit, nn
from minigrad.errors import GradientError, JitError, ShapeError


def both(*shape):
    """The numbers 0, 1, 2 … as a numpy array and as a Tensor."""
    a = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    return a, Tensor(a)


def same(ours, wanted):
    np.testing.assert_array_equal(ours.numpy(), wanted)


# ---- which methods give views --------------------------------------------------------------------

# For an array (2, 3, 4): the method in numpy, and ours.
VIEWS = {
    "index": (lambda a: a[1], lambda x: x[1]),
    "slices": (lambda a: a[:, 1:, ::2], lambda x: x[:, 1:, ::2]),
    "negative steps": (lambda a: a[::-1, :, ::-2], lambda x: x[::-1, :, ::-2]),
    "new axis": (lambda a: a[:, None, 0], lambda x: x[:, None, 0]),
    "all": (lambda a: a[:], lambda x: x[:]),
    "element": (lambda a: a[1, 2, 3, ...], lambda x: x[1, 2, 3]),
    "reshape": (lambda a: a.reshape(4, 6), lambda x: x.reshape(4, 6)),
    "flatten": (lambda a: a.reshape(-1), lambda x: x.flatten()),
    "permute": (lambda a: a.transpose(2, 0, 1), lambda x: x.permute(2, 0, 1)),
    "transpose": (lambda a: a.swapaxes(0, 2), lambda x: x.transpose(0, 2)),
    "T": (lambda a: a.T, lambda x: x.T),
    "flip": (lambda a: np.flip(a, (0, 2)), lambda x: x.flip(0, 2)),
    "unsqueeze": (lambda a: a[None], lambda x: x.unsqueeze(0)),
    "squeeze": (lambda a: a[:1][0], lambda x: x[:1].squeeze(0)),
    "shrink": (lambda a: a[:, 1:2], lambda x: x.shrink([None, (1, 2), None])),
    "split": (lambda a: a[:, :, 2:], lambda x: x.split(2, -1)[1]),
    "diagonal": (lambda a: np.einsum("aab->ba", a[:, :2]), lambda x: x[:, :2].diagonal()),
    "detach": (lambda a: a[...], lambda x: x.detach()),
    "bitcast": (lambda a: a.view(np.int32), lambda x: x.bitcast("int32")),
    "of views": (lambda a: a[1:].T[::-1][1:, 1], lambda x: x[1:].T[::-1][1:, 1]),
}
READ_ONLY = {
    "expand": (lambda a: np.broadcast_to(a[:, :1], (2, 5, 4)), lambda x: x[:, :1].expand(2, 5, 4)),
    "unfold": (
        lambda a: np.lib.stride_tricks.sliding_window_view(a, 2, 1), lambda x: x.unfold(1, 2, 1),
    ),
    "resized": (lambda a: a.view(np.int16), lambda x: x.bitcast("int16")),
}  # fmt: skip
COPIES = {
    "clone": (np.copy, lambda x: x.clone()),
    "contiguous": (np.copy, lambda x: x.contiguous()),
    "cast": (lambda a: a.astype(np.float64), lambda x: x.double()),
    "constructor": (np.array, Tensor),
    "pad": (lambda a: np.pad(a, 1), lambda x: x.pad([(1, 1)] * 3)),
    "pad by nothing": (np.copy, lambda x: x.pad([None] * 3)),
    "roll": (lambda a: np.roll(a, 1, 0), lambda x: x.roll(1, 0)),
    "roll by nothing": (np.copy, lambda x: x.roll(0, 0)),
    "repeat": (lambda a: np.tile(a, (1, 2, 1)), lambda x: x.repeat(1, 2, 1)),
    "repeat once": (lambda a: np.tile(a, (1, 1, 1)), lambda x: x.repeat(1, 1, 1)),
    "repeat_interleave": (lambda a: a.repeat(2, 0), lambda x: x.repeat_interleave(2, 0)),
    "one of one": (lambda a: a.repeat(1, 0), lambda x: x.repeat_interleave(1, 0)),
    "cat": (lambda a: np.concatenate([a]), lambda x: x.cat()),
    "array": (lambda a: a[[0, 1]], lambda x: x[[0, 1]]),
    "mask": (lambda a: a[a > 3], lambda x: x[x > 3]),
    "sum": (lambda a: a.sum(0), lambda x: x.sum(0)),
}
BASES = {
    "in memory": lambda a: Tensor(a),
    "lazy": lambda a: Tensor(a) + 0,
    "constant": lambda a: Tensor(a),
    "waiting": lambda a: Tensor(a * 0).assign(Tensor(a)),
}
REALIZE = {
    "lazy": lambda *tensors: None,
    "view realized": lambda base, view: view.realize(),
    "base realized": lambda base, view: base.realize(),
    "both realized": lambda base, view: base.realize(view),
}


@pytest.mark.parametrize(("name", "kind", "realized"), pairwise(VIEWS, BASES, REALIZE))
def test_writes_go_both_ways(on_device, name, kind, realized):
    a, _ = both(2, 3, 4)
    numpy_view, our_view = VIEWS[name]
    x = BASES[kind](a)
    v, view = numpy_view(a), our_view(x)
    assert np.shares_memory(a, v)
    for turn in range(2):
        REALIZE[realized](x, view)
        a += 3
        x += 3
        same(view, v)
        REALIZE[realized](x, view)
        v[...] = v + 1
        view.assign(view + 1)
        same(x, a)
        REALIZE[realized](x, view)
        v[...] = 5 + turn
        view.assign(5 + turn)
        a[1:] -= 1
        x[1:] -= 1
        same(x, a)
        same(view, v)
    x.set_data(a * 2)
    a *= 2
    same(view, v)
    view.set_data(v + 7)
    v[...] = v + 7
    same(x, a)


@pytest.mark.parametrize("name", READ_ONLY)
def test_views_that_only_show(on_device, name):
    numpy_view, our_view = READ_ONLY[name]
    a, x = both(2, 3, 4)
    v, view = numpy_view(a), our_view(x)
    for realize in (False, True):
        a += 1.5
        x += 1.5
        if realize:
            view.realize()
        same(view, v)
        with pytest.raises(ShapeError, match=r"cannot write in place to a view .*clone"):
            view += 1
        same(x, a)


@pytest.mark.parametrize("name", COPIES)
def test_copies_are_no_views(on_device, name):
    numpy_copy, our_copy = COPIES[name]
    a, x = both(2, 3, 4)
    c, copy = numpy_copy(a), our_copy(x)
    assert not np.shares_memory(a, c)
    a += 1
    x += 1
    same(copy, c)
    c *= 2
    copy *= 2
    same(copy, c)
    same(x, a)


# Methods that have nothing to do: the array and the method.
IDLE = {
    "abs": ([True, False], lambda x: x.abs()),
    "ceil": ([1, 2], lambda x: x.ceil()),
    "floor": ([1, 2], lambda x: x.floor()),
    "trunc": ([1, 2], lambda x: x.trunc()),
    "round": ([1, 2], lambda x: x.round()),
    "nan_to_num": ([1, 2], lambda x: x.nan_to_num()),
    "clip": ([1, 2], lambda x: x.clip(-(2**40), 2**40)),
    "the first power": ([1.5, 2.5], lambda x: x**1),
    "diff": ([1, 2], lambda x: x.diff(0)),
    "scatter of nothing": ([1, 2], lambda x: x.scatter(0, Tensor([], dtype="int32"), 1)),
    "adaptive pool": ([[1.0, 2.0]], lambda x: nn.functional.adaptive_avg_pool1d(x, None)),
    "cumsum": (1.5, lambda x: x.cumsum()),
    "sort": (1.5, lambda x: x.sort()[0]),
    "topk": (1.5, lambda x: x.topk(1)[0]),
    "kthvalue": (1.5, lambda x: x.kthvalue(1)[0]),
    "median": (1.5, lambda x: x.median(0)),
}


@pytest.mark.parametrize("name", IDLE)
def test_what_has_nothing_to_do_gives_a_copy(on_device, name):
    data, method = IDLE[name]
    x = Tensor(data)
    copy = method(x)
    copy.zero_()
    assert x.tolist() == data
    copy = method(x)
    x.zero_()
    assert copy.tolist() == data
    step = jit(lambda x: (method(x).zero_(), x * 1))
    for _ in range(4):
        assert step(Tensor(data))[1].tolist() == data


def test_who_gives_its_values_is_no_leaf_twice(on_device):
    w = Tensor([2.0, 3.0], requires_grad=True)
    view = w.squeeze(0)
    with Tensor.no_grad():
        power = w**1
    (view * power).sum().backward()
    assert (w.grad.tolist(), view.grad, power.requires_grad) == ([2, 3], None, None)


@pytest.mark.parametrize("count", [1, 20])
def test_a_copy_of_what_is_written_beside_many_readers(on_device, count):
    """A sum over one row is that row, with the values from before the write."""
    x = Tensor([[1.0, 2.0, 3.0]])
    row, readers = x.sum(0), [x * k for k in range(count)]
    x += 10
    assert x.tolist() == [[11, 12, 13]]
    assert row.tolist() == [1, 2, 3]
    assert [reader.tolist()[0][1] for reader in readers] == [2 * k for k in range(count)]


# ---- several views -------------------------------------------------------------------------------


def test_the_first_update_is_not_lost(on_device):
    t = Tensor([1.0, 2, 3, 4])
    v = t[:2]
    t += 10
    v *= 2
    assert t.tolist() == [22, 24, 13, 14]


def test_a_swap_through_a_view(on_device):
    a, t = both(3)
    x, y = a[0, ...], t[0]
    a[0], t[0] = a[1], t[1]
    a[2], t[2] = x, y
    same(t, a)
    t = Tensor([1.0, 2, 3])
    x = t[0].clone()
    t[0], t[2] = t[1], x
    assert t.tolist() == [2, 2, 1]


def test_overlapping_views(on_device):
    a, x = both(6)
    first, second = x[:4], x[2:]
    b, c = a[:4], a[2:]
    for _ in range(3):
        b += c
        first += second
        c *= 2
        second *= 2
        same(first, b)
        same(second, c)
    b[1:] += b[:-1]
    first[1:] += first[:-1]
    same(x, a)


def test_rows_and_lazy_readers(on_device):
    a, x = both(3, 2)
    before = x * 10
    for row in x:
        row += 1
    for row in a:
        row += 1
    same(x, a)
    same(before, (a - 1) * 10)
    total = x[0] + x[1]
    x[0] = 0
    assert total.tolist() == [4, 6]


def test_views_outlive_their_base(on_device):
    x = Tensor([1.0, 2, 3, 4])
    first, second = x[:3], x[1:]
    link = weakref.ref(x)
    del x
    first += 1
    second *= 2
    assert first.tolist() == [2, 6, 8] and second.tolist() == [6, 8, 8]
    del first, second
    gc.collect()
    assert link() is None


def test_views_of_a_lazy_base_that_is_gone(on_device):
    source = Tensor([1.0, 2, 3, 4])
    x = source * 1
    first, second, third = x[:2], x[1:3], x[3:]
    del x
    first += 1
    assert second.tolist() == [3, 3] and first.tolist() == [2, 3]
    source *= 100
    first.realize(second, third)
    third += 1  # shares no element with the others
    assert third.tolist() == [5]
    with pytest.raises(ShapeError, match=r"another view of it, of shape \(2,\).*clone"):
        first += 1
    assert second.tolist() == [3, 3] and first.tolist() == [2, 3]
    del second
    first += 1
    assert first.tolist() == [3, 4]


def test_turned_views_of_a_lazy_base_that_is_gone(on_device):
    """The elements that a view shares are known through transposition and reversal."""
    source = Tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])
    x = source * 1
    left, right, last = x.T[:2], x.flip(1)[:, :2], x.flip(0)[:1]
    del x
    source *= 100
    left.realize(right, last)
    with pytest.raises(ShapeError, match=r"another view of it, of shape \(1, 4\)"):
        left += 1
    del last
    left += 1
    right -= 1
    assert left.tolist() == [[2, 6], [3, 7]] and right.tolist() == [[3, 2], [7, 6]]


@pytest.mark.parametrize("realized", [False, True])
def test_views_of_views_of_a_lazy_base_that_is_gone(on_device, realized):
    """A view between two others may be gone, too."""
    x = Tensor([1.0, 2.0, 3.0]) * 2
    first, middle = x[0], x[None]
    del x
    whole = middle.permute(1, 0).flatten()
    del middle
    part = first.reshape(1)
    if realized:
        Tensor.realize(first, whole, part)
        with pytest.raises(ShapeError, match="its base no longer exists"):
            part.assign(0)
    else:
        part.assign(0)
    left = 2.0 if realized else 0.0
    assert (first.item(), whole.tolist(), part.tolist()) == (left, [left, 4.0, 6.0], [left])


def test_a_lazy_base_is_not_kept(on_device):
    x = Tensor([1.0, 2]) * 3
    link, view = weakref.ref(x), x.reshape(2, 1)[:, 0]
    del x
    assert link() is None
    view += 1
    inner = view[0]
    inner += 1
    assert view.tolist() == [5, 7]


# ---- gradients -----------------------------------------------------------------------------------


def test_leaves(on_device):
    w = Tensor([1.0, 2, 3], requires_grad=True)
    view, detached = w[1:], w.detach()
    for write in (lambda: w.__iadd__(1), lambda: view.__iadd__(1), lambda: view.assign(0)):
        with pytest.raises(GradientError, match="no_grad"):
            write()
    with Tensor.no_grad():
        view *= 2
    assert w.tolist() == detached.tolist() == [1, 4, 6]
    (view * view).sum().backward()
    assert w.grad.tolist() == [0, 8, 12]
    with pytest.raises(GradientError):
        detached.sum().backward()
    detached.mul_(2)[0].add_(w.grad[1], alpha=-1)  # PyTorch's p.data
    assert w.tolist() == detached.tolist() == [-6, 8, 12] and w.requires_grad
    w.grad[1:] = 1.0
    w.grad.reshape(3)[0] = -1
    assert w.grad.tolist() == [-1, 1, 1]


@pytest.mark.parametrize("realized", [False, True])
@pytest.mark.parametrize("captured", [False, True])
def test_views_of_parameters_follow_the_optimizer(on_device, captured, realized):
    w = Tensor([1.0, 2.0, 3.0])
    optimizer = nn.optim.SGD([w], lr=1.0)
    view, average = w[::2], w.detach()

    def step(x):
        optimizer.zero_grad()
        loss = (view * x).sum()
        loss.backward()
        optimizer.step()
        return loss.realize()

    run = jit(step) if captured else step
    wanted = np.array([1.0, 3.0], np.float32)
    for number in range(6):
        x = np.array([1.0, number], np.float32)
        assert run(Tensor(x)).item() == (wanted * x).sum()
        wanted -= x
        if realized:
            view.realize(average)
        same(view, wanted)
        same(average[::2], wanted)
        same(w, [wanted[0], 2, wanted[1]])
        assert w.grad.tolist() == [1, 0, number]


@pytest.mark.parametrize("show", [
    lambda x: x[...], lambda x: x[:2], lambda x: x.reshape(2), lambda x: x.flatten(),
    lambda x: x.permute(0), lambda x: x.expand(2), lambda x: x[1:],
])  # fmt: skip
def test_no_gradient_through_a_view_of_no_grad(on_device, show):
    """Also not through a view of all elements."""
    leaf, other = (Tensor([1.0, 2.0], requires_grad=True) for _ in range(2))
    with Tensor.no_grad():
        view = show(leaf)
    (view * other[: len(view)]).sum().backward()
    assert leaf.grad is None and other.grad is not None


@pytest.mark.parametrize("make", [Tensor, lambda x: (Tensor(x) * 1).realize()])
def test_a_view_that_was_realized_before_its_base_is_a_leaf(on_device, make):
    base = make([1.0, 2.0])
    twice, apart = base.expand(2, 2).flatten(), base.detach()[:1]
    twice.realize(apart)
    base.requires_grad_()
    (twice * 3).sum().backward()
    assert base.grad.tolist() == [6.0, 6.0]
    with pytest.raises(GradientError):
        apart.sum().backward()


def test_no_gradient_through_a_detached_view(on_device):
    w = Tensor([1.0, 2.0], requires_grad=True)
    h = w * 3
    free, constant = h[:1], h.detach()
    h += 1
    (free * constant[:1]).sum().backward()
    assert w.grad.tolist() == [12, 0]
    with Tensor.no_grad():
        h = w * 3
    first, second = h[:1], h[1:]
    del h
    first += w.detach()[:1]
    w.grad = None
    (second * w).sum().backward()
    assert w.grad.tolist() == [6, 6]


# ---- captured steps ------------------------------------------------------------------------------


@pytest.mark.parametrize("realized", [False, True])
def test_views_inside_a_captured_step(on_device, realized):
    a, x = both(4, 3)
    rows, row = x[1:], x[2]

    @jit
    def step(y):
        rows.assign(rows + y)
        row[0] *= 2
        return x.sum(0), x[1:]

    for number in range(6):
        total, part = step(Tensor([1.0, 2.0, number]))
        a[1:] += np.array([1.0, 2.0, number], np.float32)
        a[2, 0] *= 2
        same(total, a.sum(0))
        kept = a[1:].copy()
        a[0] += 1
        x[0] += 1
        a[2, 1] = number
        row[1] = number
        same(part, kept)
        part += 1  # has its own memory: x does not change
        if realized:
            row.realize(rows)
        for ours, wanted in ((x, a), (rows, a[1:]), (row, a[2])):
            same(ours, wanted)


def test_a_view_as_an_input_that_is_written(on_device):
    a, x = both(3, 2)

    @jit
    def step(y):
        y.assign(y * 2)
        return y + 1

    for number in range(6):
        row = x[number % 3]
        result = step(row)
        a[number % 3] *= 2
        same(x, a)
        same(row, a[number % 3])
        same(result, a[number % 3] + 1)


def test_an_input_that_is_a_view_of_what_the_step_writes(on_device):
    x = Tensor([1.0, 2.0, 3.0])

    @jit
    def step(y):
        x.assign(x * 2)
        return y + x[0]

    step(x[:2])
    with pytest.raises(JitError, match="view"):
        step(x[:2])
    step.reset()
    for _ in range(2):
        step(Tensor([0.0, 0.0]))
    with pytest.raises(JitError, match="view"):
        step(x[:2])
    view = x[1:].realize()
    with pytest.raises(JitError, match="view"):
        step(view)

    @jit
    def both_given(y, z):
        y.assign(y * 2)
        return z + 1

    for _ in range(3):
        both_given(Tensor([1.0] * 3).realize(), Tensor([2.0]))
    with pytest.raises(JitError, match="twice"):
        both_given(x, x[:1])


def test_a_write_of_itself_changes_nothing(on_device):
    x = Tensor([1, 2, 3])
    x.assign(x * 2)
    x.assign(x)
    before = x.clone()
    x.set_data([7, 8, 9])
    assert before.tolist() == [2, 4, 6]


def test_a_write_that_is_taken_back_before_it_is_carried_out(on_device):
    x = Tensor([1, 2]).realize()
    old = Tensor(x)
    x += 1
    between = x * 10
    x.assign(old)
    assert between.tolist() == [20, 30] and x.tolist() == old.tolist() == [1, 2]


@pytest.mark.parametrize("copy", [lambda x: x.clone(), lambda x: x.contiguous(), Tensor])
def test_copies_of_waiting_writes(on_device, copy):
    x = Tensor([1, 2, 3])
    x.assign(x * 2)
    x.assign(x + 1)
    before = copy(x)
    x.set_data([7, 8, 9])
    assert before.tolist() == [3, 5, 7]


@pytest.mark.parametrize("shape", [(2, 3, 3), (2, 3, 4), (3, 2, 5), (4, 3, 6)])
def test_a_product_of_a_view_that_no_strides_describe(
    on_device: str, shape: tuple[int, int, int]
) -> None:
    draw = np.random.default_rng(0).standard_normal
    x, weight = draw(shape).astype(np.float32), draw((shape[1], 2)).astype(np.float32)
    turned = Tensor(x).permute(2, 1, 0).reshape(shape)
    found = turned.transpose(1, 2) @ Tensor(weight).T.reshape(weight.shape)
    wanted = x.transpose(2, 1, 0).reshape(shape).swapaxes(1, 2) @ weight.T.reshape(weight.shape)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5, atol=1e-6)


def test_a_write_of_what_waits_to_be_written(on_device):
    """Both get one value in one program, which reads the old value of each."""
    slow, fast = Tensor([1.0, 2.0]).realize(), Tensor([5.0, 4.0]).realize()
    slow += (fast - slow) * 0.5
    fast.copy_(slow)
    assert fast.detach().tolist() == [3.0, 3.0] and slow.tolist() == [3.0, 3.0]


def test_two_tensors_that_write_to_what_they_shared(on_device):
    """The first tensor's write lost its copy of the value once the second was written, too."""
    x, y, p = Tensor([1.0]) + 1, Tensor([5.0]), Tensor([0.5], requires_grad=True)
    x.copy_(y)
    with Tensor.no_grad():
        x.copy_(p)
    y += 1
    with Tensor.no_grad():
        p.assign(p + x)
        p.realize()
    assert (x.tolist(), y.tolist(), p.tolist()) == ([0.5], [6.0], [1.0])


# ---- PyTorch's x.data ----------------------------------------------------------------------------


def test_data_is_a_view_without_history(on_device):
    w = Tensor([[1.0, 2], [3, 4]], requires_grad=True)
    (w * w).sum().backward()
    w.data.sub_(0.5 * w.grad.data)
    assert w.tolist() == [[0, 0], [0, 0]] and w.requires_grad and not w.data.requires_grad
    w.data[1] = 5
    w.data[:, 0].fill_(2)
    w.data += 1
    nn.init.ones_(w.grad.data)
    assert w.tolist() == [[3, 1], [3, 6]] and w.grad.tolist() == [[1, 1], [1, 1]]
    x, mask = w.data, w.data > 2
    for result in (
        x + 1, x[0], x[mask], x @ x, Tensor.ones(2, 2) @ x, 2 * x, x.clone(), x.new_ones(2),
        x.new_tensor([1.0]), x.max_with_indices(1)[0], x.sort()[1], x.nonzero(),
    ):  # fmt: skip
        assert type(result) is Tensor
    assert x[mask].tolist() == [3, 3, 6] and (x @ Tensor.ones(2)).tolist() == [4, 9]
    assert x().tolist() == w.tolist() and isinstance(x, Tensor)
    assert type(copy.deepcopy(x)) is type(pickle.loads(pickle.dumps(x))) is Tensor


@pytest.mark.parametrize("realized", [False, True])
def test_assigning_to_data(on_device, realized):
    """An average of weights is put in, evaluated, and taken out again, as in PyTorch's programs."""
    w = Tensor([1.0, 2, 3], requires_grad=True)
    optimizer = nn.optim.SGD([w], lr=1.0)
    backup, part, result = w.data, w.detach()[1:], w * 2
    if realized:
        Tensor.realize(backup, part, result)
    w.data = Tensor([7.0, 8, 9])
    assert w.tolist() == [7, 8, 9] and w.requires_grad and optimizer.params == [w]
    assert backup.tolist() == [1, 2, 3] and part.tolist() == [2, 3] and result.tolist() == [2, 4, 6]
    part += 10
    assert backup.tolist() == [1, 12, 13] and w.tolist() == [7, 8, 9]
    w.data = backup
    (w * w).sum().backward()
    optimizer.step()
    assert w.tolist() == [-1, -12, -13] and w.data.tolist() == [-1, -12, -13]
    w.data -= 1
    w.data = w.data * 2
    w.data = w.data.flip(0)
    assert w.tolist() == [-28, -26, -4]
    base = Tensor([1.0, 2])
    view = base[:1]
    view.data = Tensor([5.0])
    view += 1
    assert base.tolist() == [1, 2] and view.tolist() == [6]


def test_assigning_to_data_in_a_captured_step(on_device):
    w = Tensor([1.0, 2], requires_grad=True)
    seen = w.detach()

    @jit
    def step(x):
        loss = (w * x).sum()
        w.data = 0.5 * w.data + x
        return loss.realize()

    expected = np.array([1.0, 2], np.float32)
    for number in range(6):
        x = np.array([1.0, number], np.float32)
        assert step(Tensor(x)).item() == (expected * x).sum()
        expected = expected / 2 + x
        assert w.tolist() == expected.tolist()
    assert seen.tolist() == [1, 2]


def test_assigning_to_data_what_does_not_fit():
    w, other = Tensor([1.0, 2], requires_grad=True), Tensor([3.0, 4], requires_grad=True)
    for wrong in (other, other.data, other.detach()[:]):
        with pytest.raises(GradientError, match=r"write x\.data = y\.clone\(\)"):
            w.data = wrong
    for wrong in (Tensor([1.0]), Tensor([1, 2]), w.data.half()):
        with pytest.raises(ShapeError, match=r"x\.data = ….*dtype and shape, float32 \(2,\)"):
            w.data = wrong
    with pytest.raises(TypeError, match="expected a tensor, got list"):
        w.data = [1.0, 2.0]
    assert w.tolist() == [1, 2]
