"""Gradients: leaves, histories of realized tensors, constants, and what raises."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from minigrad import Tensor, nn
from minigrad.errors import GradientError, ShapeError
from minigrad.graph.node import ages, topological
from minigrad.graph.operations import SCATTERS
from minigrad.tensor import history


def leaf(values):
    return Tensor(np.array(values, np.float32), requires_grad=True)


def test_backward_adds_up(on_device):
    x = leaf([1, 2, 3])
    (x * x).sum().backward()
    assert x.grad.tolist() == [2, 4, 6]
    (x * 10).sum().backward()
    assert x.grad.tolist() == [12, 14, 16]
    x.grad = None
    x.sum().backward()
    assert x.grad.tolist() == [1, 1, 1]
    assert x.grad.requires_grad is False


def test_backward_adds_in_place(on_device):
    """Whoever holds the gradient, or a part of it, sees what is added; not who computed with it."""
    x = leaf([1, 2])
    (x * x).sum().backward()
    held, last, twice = x.grad, x.grad[1:], x.grad * 2
    for _ in range(2):
        (x * 10).sum().backward()
    assert x.grad is held and held.tolist() == [22, 24]
    assert last.tolist() == [24] and twice.tolist() == [4, 8]


def test_marked_leaves_only(on_device):
    x, y, z = leaf([1, 2]), Tensor([3.0, 4.0]), Tensor([1.0, 1.0], requires_grad=False)
    (x * y * z).sum().backward()
    assert x.grad.tolist() == [3, 4]
    assert y.grad is None and z.grad is None


def test_every_leaf_where_none_is_marked(on_device):
    x, y = Tensor([1.0, 2.0]), Tensor([3.0, 4.0], requires_grad=False)
    r = Tensor.rand(2)
    (x * y + r).sum().backward()
    assert x.grad.tolist() == [3, 4]
    assert r.grad.tolist() == [1, 1]
    assert y.grad is None


def test_what_was_looked_at_has_no_way_back_where_no_leaf_is_marked(on_device):
    x = Tensor([1.0, 2.0])
    loss = x.square().sum()
    loss.item()
    with pytest.raises(GradientError, match="read before, while no leaf had requires_grad"):
        loss.backward()
    assert loss.grad is None
    loss.square().backward()  # it is a leaf now
    assert loss.grad.item() == 10
    alone = Tensor(3.0).realize()
    alone.backward()
    assert alone.grad.item() == 1


def test_a_leaf_written_between_its_uses(on_device):
    """Uses of a leaf before and after an in-place write both count, in both methods."""
    w, x = leaf([3]), leaf([5])
    before = w * 3 * x
    with Tensor.no_grad():
        w += 1
    assert [g.tolist() for g in before.gradient(w, x)] == [[15], [9]]
    both = before + w * 5
    assert [g.tolist() for g in both.gradient(w, x, w)] == [[20], [9], [20]]
    both.backward()
    assert (w.grad.tolist(), x.grad.tolist(), w.tolist()) == ([20], [9], [4])


@pytest.mark.parametrize("looks", [True, False])
def test_a_value_written_to_another_leaf_is_a_constant(on_device, looks):
    """As in a moving average of weights: the write waits when a gradient by `w` is asked for."""
    w, mean = leaf([3, 4]), leaf([1, 2])
    with Tensor.no_grad():
        mean.lerp_(w, 0.5)
    if looks:
        assert mean.tolist() == [2, 3]
    loss = (mean * w).sum() + (w * w * w).sum()
    grad = loss.gradient(w)[0]
    assert grad.tolist() == [2 + 27, 3 + 48]
    grad.sum().backward()
    assert w.grad.tolist() == [18, 24]
    with pytest.raises(GradientError, match="does not depend"):
        mean.sum().gradient(w)


def test_leaf_after_a_waiting_write(on_device):
    x = Tensor([1.0, 2.0])
    x += 1
    (x * x).sum().backward()
    assert x.grad.tolist() == [4, 6]


@pytest.mark.parametrize("realize_what", ["loss", "middle", "both", "item first"])
def test_realized_tensors_keep_their_history(on_device, realize_what):
    x, w = leaf([1, 2]), leaf([3, 4])
    middle = (x * w).exp()
    if realize_what in ("middle", "both"):
        middle.realize()
    loss = (middle * middle).sum()
    if realize_what == "item first":
        loss.item()
        loss.item()
    elif realize_what != "middle":
        loss.realize()
    loss.backward()
    e = np.exp(np.array([3.0, 8.0]))
    np.testing.assert_allclose(x.grad.numpy(), 2 * e * e * [3, 4], rtol=1e-5)
    np.testing.assert_allclose(w.grad.numpy(), 2 * e * e * [1, 2], rtol=1e-5)
    g = loss.gradient(middle)[0]
    np.testing.assert_allclose(g.numpy(), 2 * e, rtol=1e-5)


def test_history_keeps_the_dropout_mask(on_device):
    Tensor.manual_seed(5)
    x = leaf(np.ones(1000))
    with Tensor.train():
        y = x.dropout(0.5)
        y.realize()
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), y.numpy())
    assert 300 < (x.grad.numpy() > 0).sum() < 700


def test_a_lazy_tensor_that_is_written_with_what_is_in_memory(on_device):
    """Assigning a leaf or a realized result passes gradients on, unless assigned under no_grad."""
    w = Tensor([1.0, 2.0], requires_grad=True)
    for value in (w, (w * 1).realize()):
        with Tensor.no_grad():
            copy = w * 2
        copy.assign(value)
        constant = Tensor([0.0, 0.0]) + 0
        with Tensor.no_grad():
            constant.assign(value)
        for tensor, wanted in ((copy, 3.0), (constant, 0.0)):
            (gradient,) = (tensor * 3 + w).sum().gradient(w)
            assert gradient.tolist() == [wanted + 1] * 2
    plain = Tensor([0.0, 0.0]) + 0
    with Tensor.no_grad():
        plain.assign(Tensor([3.0, 4.0]))
    plain.square().sum().backward()
    assert plain.grad.tolist() == [6.0, 8.0]


def test_a_value_that_is_read_while_its_leaf_waits_to_be_written(on_device):
    """The value is of the leaf before the pending write; it may follow an earlier pending write."""
    cases = ((0, False, [2.0, 4.0]), (0, True, None), (1, False, None))
    for writes_before, realized, wanted in cases:
        w = Tensor([1.0, 2.0], requires_grad=True)
        loss = (w * w).sum()
        for number in range(writes_before + 1):
            if number:
                loss = (w * w).sum()
            with Tensor.no_grad():
                w += 1
        assert loss.item() == (13.0 if writes_before else 5.0)
        if realized:
            w.realize()
        if wanted is None:
            with pytest.raises(GradientError, match="overwritten in place"):
                loss.backward()
        else:
            loss.backward()
        assert (None if w.grad is None else w.grad.tolist()) == wanted


def test_history_of_overwritten_leaves_raises(on_device):
    x = leaf([1, 2])
    loss = (x * x).sum()
    loss.realize()
    with Tensor.no_grad():
        x += 1
    x.realize()
    with pytest.raises(GradientError, match="overwritten"):
        loss.backward()


def test_writes_to_what_no_history_reads_are_not_numbered(on_device):
    """Each numbered write costs a walk through all histories: a long loop became quadratic."""
    x, other, later = leaf([1, 2]), Tensor([3.0, 4.0]).realize(), leaf([5, 6])
    loss = (x * x).sum()
    loss.realize()
    before = history._latest
    other.assign(other * 2).realize()
    history.replayed([other.node.arg])
    assert history._latest == before
    result = (other * later).sum()  # from here on a history reads it
    result.realize()
    other.assign(other * 2).realize()
    assert history._latest > before
    with pytest.raises(GradientError, match="overwritten in place"):
        result.backward()
    loss.backward()
    assert x.grad.tolist() == [2, 4]
    history.replayed([loss.node.arg])  # it has no history then
    assert not history.has_history(loss.node)


def test_what_a_part_of_a_result_was_written_over_is_told(on_device):
    w, a = leaf([1, 2]), Tensor([3.0, 4.0]).realize()
    b = (a * w.tanh()).realize()
    a[1:] = b[:1]
    a.realize()
    with pytest.raises(GradientError, match="since been overwritten in place"):
        b.sum().backward()


def test_what_a_program_writes_with_its_result_is_saved(on_device):
    w, a = leaf([1, 2]), Tensor([3.0, 4.0]).realize()
    b = a * w.tanh()
    a[1:] = b[:1]  # b's program carries it out, too
    b.realize()
    b.sum().backward()
    slope = 1 - np.tanh([1.0, 2.0]) ** 2
    np.testing.assert_allclose(w.grad.numpy(), [3, 4] * slope, rtol=1e-5)
    np.testing.assert_allclose(a.numpy(), [3, 3 * np.tanh(1.0)], rtol=1e-6)


OVERWRITES = {
    "assign": lambda x: x.assign(x * 0).realize(),
    "assigned": lambda x: x.assign(Tensor([0.0, 0.0], device=x.device)).realize(),
    "set_data": lambda x: x.set_data([0.0, 0.0]),
}


@pytest.mark.parametrize("write", OVERWRITES)
@pytest.mark.parametrize("beside", [False, True])
def test_who_shares_memory_that_is_written_keeps_the_way_back(on_device, write, beside):
    """`contiguous` of a contiguous tensor shares its memory until one of the two is written."""
    w = leaf([1, 2]).realize()
    x = (w * 2).realize()
    y, z = x.contiguous(), x * x if beside else 0
    with Tensor.no_grad():
        OVERWRITES[write](x)
    (y * y + z).sum().backward()
    assert y.tolist() == [2, 4]
    assert w.grad.tolist() == ([16, 32] if beside else [8, 16])


@pytest.mark.parametrize("write", OVERWRITES)
def test_who_shares_memory_with_a_leaf_that_is_written(on_device, write):
    w = leaf([1, 2]).realize()
    y = w.contiguous()
    with Tensor.no_grad():
        OVERWRITES[write](w)
    assert y.tolist() == [1, 2]
    with pytest.raises(GradientError, match="since been overwritten in place"):
        y.sum().backward()
    assert w.grad is None


READS = {
    "item": lambda t: t.sum().item(), "numpy": lambda t: t.numpy(), "tolist": lambda t: t.tolist(),
    "realize": lambda t: t.realize(), "print": repr, "float": lambda t: float(t.sum()),
    "equal": lambda t: (t == t).tolist(), "bool": lambda t: bool((t > 0).all()),
    "in": lambda t: 1.0 in t, "clone": lambda t: t.clone().realize(),
    "view": lambda t: t[1:].numpy(),
    "realized view": lambda t: (t[1:].realize() * 2).numpy(), "mask": lambda t: t[t > 0].numpy(),
}  # fmt: skip


@pytest.mark.parametrize("name", READS)
def test_no_read_raises_for_a_history(on_device, name):
    """A computed value can always be read; only its gradient is lost."""
    w, x = leaf([1, 2]), Tensor([3.0, 4.0])
    optimizer = nn.optim.SGD([w], lr=0.5)
    out = w * x
    out.realize()
    lazy = out * out + w
    out.sum().backward()
    optimizer.step()
    READS[name](out)
    READS[name](lazy)
    late = out * w
    READS[name](late)
    np.testing.assert_allclose(lazy.numpy(), [10, 66])
    np.testing.assert_allclose(late.numpy(), [-1.5, 0])
    for tensor in (out, lazy, late, late.exp().realize()):
        with pytest.raises(GradientError, match="overwritten in place"):
            tensor.sum().backward()


def test_lazy_loss_of_the_old_value(on_device):
    x = leaf([1, 2])
    other = leaf([1, 1])
    loss = (x * other).sum()
    with Tensor.no_grad():
        x += 10
    loss.gradient(other)
    assert loss.gradient(other)[0].tolist() == [1, 2]
    (loss + (x * x).sum()).backward()  # x got no gradient from this one
    assert x.grad.tolist() == [1 + 22, 1 + 24] and other.grad.tolist() == [1, 2]


def test_history_is_dropped_with_the_tensor(on_device):
    from minigrad.tensor import history

    gc.collect()
    count = len(history._histories)
    x = leaf([1, 2])
    y = (x * 2).exp().realize()
    assert len(history._histories) == count + 1
    with Tensor.no_grad():
        (x * 3).realize()
    (x.detach() * 3).realize()
    assert len(history._histories) == count + 1
    del y
    gc.collect()
    assert len(history._histories) == count


@pytest.mark.parametrize("how", ["backward", "gradient"])
def test_values_of_a_leaf_between_writes_that_wait(on_device, how):
    w = Tensor([1.0, 2.0], requires_grad=True)
    first = w * 2
    with Tensor.no_grad():
        w *= 2
    second = w * 3
    with Tensor.no_grad():
        w[1:] = w[:1] * 5
    loss = (first + second + w * 7).sum()
    gradient = loss.backward() and w.grad if how == "backward" else loss.gradient(w)[0]
    assert gradient.tolist() == [12.0, 12.0]
    assert (first.tolist(), second.tolist(), w.tolist()) == ([2, 4], [6, 12], [2, 10])


@pytest.mark.parametrize("same", [Tensor, lambda x: x.contiguous(), lambda x: (x * 0).assign(x)])
def test_a_write_to_who_shares_memory_with_a_leaf_that_is_written(on_device, same):
    """A write to one does not change the other, and gradients are those from before both writes."""
    x = leaf([1, 2])
    y = same(x)
    with Tensor.no_grad():
        x.assign(x * 10)
    y[0] = 5
    (y * 3).sum().backward()
    assert (x.grad.tolist(), x.tolist(), y.tolist()) == ([0, 3], [10, 20], [5, 2])


def test_detach_and_no_grad(on_device):
    x = leaf([1, 2])
    (x * x.detach()).sum().backward()
    assert x.grad.tolist() == [1, 2]
    x.grad = None
    with Tensor.no_grad():
        factor = x * 3
    (x * factor).sum().backward()
    assert x.grad.tolist() == [3, 6]
    with pytest.raises(GradientError, match="does not depend on a float leaf"):
        (factor * 2).sum().backward()
    (x * x).sum().backward()
    x = x - 0.1 * x.grad
    with pytest.raises(GradientError, match=r"as after w = w - lr \* w\.grad"):
        (x * x).sum().backward()
    x = leaf([1, 2])

    @Tensor.no_grad()
    def double(y):
        return y * 2

    with pytest.raises(GradientError):
        double(x).sum().backward()


def test_zeros_are_different_parameters(on_device):
    a, b = Tensor.zeros(2, requires_grad=True), Tensor.zeros(2, requires_grad=True)
    ((a + 1) * (b + 2)).sum().backward()
    assert a.grad.tolist() == [2, 2]
    assert b.grad.tolist() == [1, 1]
    c = (Tensor.ones(2) * 3).requires_grad_()
    (c * c).sum().backward()
    assert c.grad.tolist() == [6, 6]


def test_parameters_given_equal_values_stay_different(on_device):
    a, b = Tensor.uniform(2, requires_grad=True), Tensor.uniform(2, requires_grad=True)
    with Tensor.no_grad():
        a.assign(Tensor.zeros(2))
        b.assign(Tensor.zeros(2))
    Tensor.realize(a, b)
    ((a + 1) * (b + 2)).sum().backward()
    assert a.grad.tolist() == [2, 2]
    assert b.grad.tolist() == [1, 1]
    c, d = Tensor.uniform(2, requires_grad=True), Tensor.uniform(2, requires_grad=True)
    source = Tensor([1.0, 2.0])
    with Tensor.no_grad():
        c.assign(source)
        d.assign(source)
    (c * c * d).sum().backward()
    assert c.grad.tolist() == [2, 8]
    assert d.grad.tolist() == [1, 4]


def test_marking_an_intermediate_result_makes_a_leaf(on_device):
    x = leaf([2.0])
    y = (x * 3).requires_grad_()
    (y * y).sum().backward()
    assert y.grad.tolist() == [12]
    assert x.grad is None


def test_lazy_random_parameters(on_device):
    Tensor.manual_seed(0)
    w = Tensor.uniform(3, 2, requires_grad=True)
    assert not w.is_realized()
    x = Tensor([[1.0, 2.0, 3.0]])
    out = x @ w
    out.realize()
    assert w.is_realized(), "a parameter on the way is stored with what needs it"
    out.sum().backward()
    assert w.grad.tolist() == [[1, 1], [2, 2], [3, 3]]
    np.testing.assert_allclose(out.numpy(), x.numpy() @ w.numpy(), rtol=1e-6)


def test_writes_to_non_leaves_pass_gradients(on_device):
    x = leaf([1, 2])
    total = Tensor(np.zeros(2, np.float32))
    total += x * 3
    total[1] = total[0] * 5
    (total * Tensor([1.0, 2.0])).sum().backward()
    assert x.grad.tolist() == [3 + 2 * 15, 0]


def added(x, look):
    total = Tensor(0.0)
    for factor in (1, 2, 3):
        total += (x * factor).sum()
        look(total)
    return total


def parts(x, look):
    total = Tensor([0.0, 0.0])
    total[0] = x.square().sum()
    look(total)
    total[1] = total[0] * 3
    look(total)
    return total.sum()


def by_a_view(x, look):
    y = look(x * x)
    look(y[1:]).mul_(3)
    return look(y).sum() + y[1]


def read_before(x, look):
    total = look(x * 3)
    square = total * total
    total.assign(Tensor([9.0, 9.0]))
    look(total)
    return square.sum()


def all_of_it(x, look):
    total = Tensor([0.0, 0.0])
    total += x * 3
    y = total * 2
    total += x
    z = total * total
    for one in (z, total, y):
        look(one)
    return (y + z + total).sum()


def of_the_host(x, look):
    total = look(x * 3)
    square = total * total
    total.set_data([1.0, 1.0])
    return look(square).sum()


IN_PLACE = {added: [6, 6], parts: [8, 16], by_a_view: [2, 24], read_before: [18, 36],
            all_of_it: [42, 74], of_the_host: [18, 36]}  # fmt: skip


@pytest.mark.parametrize("look", [lambda t: t, Tensor.realize, lambda t: (repr(t), t)[1]])
@pytest.mark.parametrize("write", IN_PLACE)
def test_results_that_are_written_in_place_keep_their_history(write, look, on_device):
    """(A `print(loss)` between `loss += …` and `backward` lost the gradient.)"""
    x = leaf([1, 2])
    write(x, look).backward()
    assert x.grad.tolist() == IN_PLACE[write]


def test_a_state_written_in_place_is_detached_before_its_leaves_change(on_device):
    x, state, kept = leaf([1, 2]), Tensor([0.0, 0.0]).realize(), Tensor([0.0, 0.0]).realize()
    optimizer = nn.optim.SGD([x], lr=0.5)
    for number in range(3):
        optimizer.zero_grad()
        state.assign(state.detach() + x * x)
        kept += x
        state.sum().backward()
        assert x.grad.tolist() == (x * 2).tolist()
        optimizer.step()
        if number:
            with pytest.raises(GradientError, match=r"overwritten.*\.detach\(\)"):
                (x * kept).sum().backward()


def test_gradient_of_gradient(on_device):
    x = leaf([1.0, 2.0])
    (first,) = (x**4).sum().gradient(x)
    np.testing.assert_allclose(first.numpy(), [4, 32], rtol=1e-6)
    (second,) = first.sum().gradient(x)
    np.testing.assert_allclose(second.numpy(), [12, 48], rtol=1e-6)
    (third,) = second.sum().gradient(x)
    np.testing.assert_allclose(third.numpy(), [24, 48], rtol=1e-5)


def test_seed(on_device):
    x = leaf([[1, 2], [3, 4]])
    (x * x).backward(gradient=Tensor([[1.0, 0.0], [0.0, 2.0]]))
    assert x.grad.tolist() == [[2, 0], [0, 16]]
    with pytest.raises(GradientError, match="one element"):
        (x * x).backward()
    with pytest.raises(ShapeError):
        (x * x).backward(gradient=Tensor([1.0, 2.0, 3.0]))


def test_what_has_no_gradient(on_device):
    x = leaf([1, 2])
    with pytest.raises(GradientError, match="int32"):
        Tensor([1, 2], requires_grad=True)
    with pytest.raises(GradientError, match="bool"):
        (x > 1).any().backward()
    with pytest.raises(GradientError, match="does not depend"):
        x.sum().gradient(Tensor([1.0]))


def test_softmax_at_a_shift(on_device):
    x = leaf([1000.0, 1001.0, 999.0])
    loss = x.log_softmax()[1]
    loss.backward()
    p = np.exp([-1.0, 0, -2]) / np.exp([-1.0, 0, -2]).sum()
    np.testing.assert_allclose(x.grad.numpy(), np.array([0, 1, 0]) - p, rtol=1e-4)


@pytest.mark.parametrize("name", ["sigmoid", "silu", "softplus", "logsigmoid", "tanh", "gelu",
                                  "mish", "asinh", "quick_gelu", "log_softmax"])  # fmt: skip
def test_saturated_activations_have_finite_gradients(on_device, name):
    x = leaf([-1e4, -200, -90, -1, 0, 1, 90, 200, 1e4])
    getattr(x, name)().sum().backward()
    assert np.isfinite(x.grad.numpy()).all(), x.grad.tolist()


def test_sigmoid_at_zero(on_device):
    x = leaf([0.0, -0.0])
    x.sigmoid().sum().backward()
    assert x.grad.tolist() == [0.25, 0.25]


def test_threads_have_their_own_modes(on_device):
    import threading

    seen = []
    with Tensor.no_grad(), Tensor.train():
        x = Tensor([1.0], requires_grad=True)
        thread = threading.Thread(target=lambda: seen.append(
            (Tensor.training, (x * 2).sum().backward().item())
        ))  # fmt: skip
        thread.start()
        thread.join()
        assert Tensor.training
    assert seen == [(False, 2)]
    assert not Tensor.training


def test_a_loop_that_never_realizes(device: str) -> None:
    """Gradient descent by hand: each write depends on the pending one before; w stays a leaf."""
    x = Tensor(np.arange(12, dtype=np.float32).reshape(4, 3) / 12, device=device)
    y = x.sum(1, keepdim=True) * 0.5
    w = Tensor(np.zeros((3, 1), np.float32), device=device, requires_grad=True)
    expected = np.zeros((3, 1))
    values, wanted = x.numpy().astype(np.float64), y.numpy().astype(np.float64)
    for _ in range(5):
        ((x @ w - y) ** 2).mean().backward()
        with Tensor.no_grad():
            w.assign(w - 0.1 * w.grad)
        w.grad = None
        expected -= 0.1 * values.T @ (2 * (values @ expected - wanted)) / 4
    assert w.numpy() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_gradients_of_parts_along_two_axes(on_device):
    x = Tensor(np.arange(16, dtype=np.float32).reshape(4, 4), requires_grad=True)
    (x[:2, :2].square().sum() + (x[2:, 2:] * 3).sum()).backward()
    expected = np.zeros((4, 4))
    expected[:2, :2], expected[2:, 2:] = 2 * x.numpy()[:2, :2], 3
    np.testing.assert_array_equal(x.grad.numpy(), expected)


def test_gradients_of_a_matrix_that_two_products_share(on_device):
    generator = np.random.default_rng(4)
    x, y, g, h = (generator.random((3, 7, n), np.float32) for n in (4, 4, 33, 33))
    w = Tensor(generator.random((4, 33), np.float32))
    loss = (Tensor(x) @ w * Tensor(g) + Tensor(y) @ w * Tensor(h)).sum()
    made = loss.gradient(w)[0].numpy()
    wanted = np.einsum("abi,abj->ij", x, g) + np.einsum("abi,abj->ij", y, h)
    np.testing.assert_allclose(made, wanted, rtol=1e-5)


MOVED_THERE_AND_BACK = {
    "transpose": (lambda x: x.T, lambda v: v.T),
    "permute": (lambda x: x.reshape(1, 2, 3).permute(2, 0, 1), lambda v: v.permute(1, 2, 0)),
    "reshape": (lambda x: x.reshape(6), lambda v: v.reshape(2, 3)),
    "flip": (lambda x: x.flip(0, 1), lambda v: v.flip(0, 1)),
    "shrink": (lambda x: x[:, :2], lambda v: v[:1]),
    "expand": (lambda x: x.reshape(2, 3, 1, 1).expand(2, 3, 4, 1), lambda v: v.expand(2, 3, 4, 5)),
    "pad": (lambda x: x.pad((1, 1)), lambda v: v[:, 1:-1]),
    "bits": (lambda x: x * 1, lambda v: v * 1),
}


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("case", MOVED_THERE_AND_BACK)
def test_gradients_by_what_stands_between_two_movements(case: str, lazy: bool, on_device) -> None:
    """If a second movement undoes the first, the gradient must still stop at the target."""
    there, back = MOVED_THERE_AND_BACK[case]
    x = Tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    x = x * 3 if lazy else x.realize()
    v = there(x)
    after = back(v)
    (alone,) = (after * 2).sum().gradient(v)
    (both,) = ((after * 2).sum() + v.square().sum()).gradient(v)
    repeats = np.ones(v.shape) * (5 if case == "expand" else 1)
    counts = repeats if case != "shrink" else np.array([[1, 1], [0, 0]])
    counts = np.pad(np.ones((2, 3)), ((0, 0), (1, 1))) if case == "pad" else counts
    np.testing.assert_array_equal(alone.numpy(), 2 * counts)
    np.testing.assert_array_equal(both.numpy(), 2 * counts + 2 * v.numpy())


CARRIES = {
    "detach": Tensor.detach, "clone": lambda h: h.detach().clone(),
    "condition": lambda h: (h > 0.5).where(1.0, -0.5),
    "position": lambda h: h.argmax(1, True) + h.detach(),
}  # fmt: skip


@pytest.mark.parametrize("name", CARRIES)
def test_a_state_is_carried_past_updates(name, on_device):
    """As in a recurrent net: the overwritten weights it was computed from need no gradient."""

    def trained(known):
        w, h = leaf([[0.3, 0.1], [-0.2, 0.4]]), Tensor(np.eye(2, dtype=np.float32))
        optimizer = nn.optim.SGD([w], lr=0.5)
        for _ in range(4):
            optimizer.zero_grad()
            h = (CARRIES[name](Tensor(h.numpy()) if known else h) @ w).tanh()
            h.square().sum().backward()
            optimizer.step()
        return w.numpy()

    np.testing.assert_allclose(trained(False), trained(True), rtol=1e-5)


WRITES = {
    "another leaf": lambda h, p, x: x.copy_(p), "a realized result": lambda h, p, x: x.copy_(h),
    "a lazy result": lambda h, p, x: x.copy_((p * 2).tanh()),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITES)
def test_what_a_leaf_is_given_is_a_constant(name, on_device):
    """Also when it was computed from that leaf; its history may be invalid."""
    p, q, x = leaf([0.5, 0.25]), leaf([1, 2]), Tensor([0.0, 0.0]).realize()
    h = (p * 3).tanh()
    with Tensor.no_grad():
        p.assign(p * 2)
    h.realize()
    with Tensor.no_grad():
        q.copy_(WRITES[name](h, p, x))
    (p * q * q).sum().backward()
    given = q.numpy()
    np.testing.assert_allclose(p.grad.numpy(), given * given, rtol=1e-6)
    np.testing.assert_allclose(q.grad.numpy(), 2 * p.numpy() * given, rtol=1e-6)


@pytest.mark.parametrize("then", ["nothing", "realized", "written", "realized, written"])
def test_a_waiting_write_that_no_gradient_passes(on_device, then):
    """Gradients read a target network's new weights, as the loss does, whatever comes later."""
    w, target, other = leaf([1, 2]), Tensor([4.0, 8.0]).realize(), Tensor([0.0, 0.0]).realize()
    with Tensor.no_grad():
        target.assign(target * 0.5 + w)  # 3, 6
        goal = target * 2
    other.assign(w * 3)  # through which a gradient passes
    ((w - goal).square() + other * goal).sum().backward()
    expected = 2 * (np.array([1, 2]) - [6, 12]) + 3 * np.array([6, 12])
    if "realized" in then:
        target.realize()
    if "written" in then:
        with Tensor.no_grad():
            target.assign(target + 100)
            target.mul_(2)
        target.realize()
    assert w.grad.tolist() == expected.tolist()
    assert target.tolist() == ([206, 212] if "written" in then else [3, 6])
    assert other.tolist() == [3, 6]


def _tanh_of_products(count: int, w: Tensor) -> list[Tensor]:
    return [(Tensor([0.1 * i, 1.0]) @ w).tanh().sum() for i in range(count)]


def _cell_steps(count: int, w: Tensor) -> Tensor:
    h = Tensor.zeros(2)
    for i in range(count):
        h = (h @ w + 0.01 * i).tanh()
    return h


@pytest.mark.parametrize(
    "of",
    [
        lambda w: sum(_tanh_of_products(12, w)[1:], Tensor(0.5)),
        lambda w: sum(_tanh_of_products(12, w)[1:], Tensor(0.5)).exp(),
        lambda w: Tensor.stack(_tanh_of_products(12, w)),
        lambda w: Tensor.stack(_tanh_of_products(12, w)).exp(),
        lambda w: _cell_steps(90, w).exp(),
    ],
    ids=["sum", "of a sum", "stack", "of a stack", "of a loop"],
)
def test_gradient_by_a_result_of_many_copies(of, on_device):
    """Copies in a Python loop are batched; what a gradient is asked by must stay in the graph."""
    values = [[0.3, -0.2], [0.1, 0.4]]
    w, alone = leaf(values), leaf(values)
    y = of(w)
    by_y, by_w = y.square().sum().gradient(y, w)
    np.testing.assert_allclose(by_y.numpy(), 2 * y.numpy(), rtol=1e-6)
    (expected,) = of(alone).square().sum().gradient(alone)
    np.testing.assert_allclose(by_w.numpy(), expected.numpy(), rtol=1e-5)


@pytest.mark.parametrize("how", ["add_", "data", "copy_"])
def test_a_loss_that_is_read_after_each_update(how, on_device):
    """Every step updates every weight, and no step computes earlier ones again."""
    Tensor.manual_seed(1)
    first, second = nn.Linear(4, 4), nn.Linear(4, 2)
    weights = nn.state.get_parameters([first, second])
    for weight in weights:
        weight.requires_grad = True
    x, y = Tensor.randn(1, 4).realize(), Tensor([1])
    losses, sizes = [], []
    for _ in range(16):
        loss = second(first(x).tanh()).cross_entropy(y)
        loss.backward()
        assert all(weight.grad is not None for weight in weights)
        for weight in weights:
            if how == "data":
                weight.data.add_(weight.grad.data, alpha=-0.1)
            else:
                with Tensor.no_grad():
                    new = weight - 0.1 * weight.grad
                    weight.copy_(new) if how == "copy_" else weight.add_(weight.grad, alpha=-0.1)
            weight.grad = None
        losses.append(loss.item())
        sizes.append(len(topological([weight.raw for weight in weights])))
    assert losses == sorted(losses, reverse=True)
    assert max(sizes[8:]) <= max(sizes[:8])


@pytest.mark.parametrize("leaf", ["x.detach()", "x", "x.view(2)", "x.requires_grad_(False)"])
def test_no_gradient_comes_from_what_was_computed_before(leaf: str, on_device: str) -> None:
    """Of a tensor that is marked later, or marked again, or shares memory with the marked one."""
    x = Tensor([1.0, 2.0], requires_grad=True if "False" in leaf else None)
    marked = eval(leaf)
    before = x * 3
    marked.requires_grad_()
    (before * marked).sum().backward()
    assert marked.grad.tolist() == before.tolist() == [3, 6]
    (x.detach() * 3 * marked).sum().backward()
    assert marked.grad.tolist() == [6, 12]


@pytest.mark.parametrize("made", ["of data", "drawn", "written"])
@pytest.mark.parametrize("realized", [False, True])
@pytest.mark.parametrize("partner", [False, True])
@pytest.mark.parametrize("later", [False, True])
def test_no_gradient_comes_from_what_was_computed_while_frozen(
    made: str, realized: bool, partner: bool, later: bool, on_device: str
) -> None:
    """Whether or not writes wait, the value was read, and another leaf gave it a history."""
    x = Tensor.rand(2) if made == "drawn" else Tensor([1.0, 2.0])
    y = Tensor([3.0, 5.0], requires_grad=True)
    if made == "written":
        x.requires_grad_().data[:1] = 7
    x.requires_grad_(False)
    before = x * y if partner else x * 2
    older = x.numpy()
    if realized:
        before.realize()
    if later:
        x.mul_(2)
    x.requires_grad_()
    (before * x).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), before.numpy())
    if partner:
        np.testing.assert_array_equal(y.grad.numpy(), older * x.numpy())


@pytest.mark.parametrize("write, last, leaf", [
    (lambda x, y: None, [2, 4], True),
    (lambda x, y: x.mul_(2), [4, 8], True),
    (lambda x, y: setattr(x, "data", y), [3, 3], True),
    (lambda x, y: x.mul_(y), [6, 12], False),
], ids=["not written", "scaled", "other data", "by a leaf"])  # fmt: skip
@pytest.mark.parametrize("realized", [(), (0,), (1,), (2,)])
def test_a_gradient_comes_from_what_was_computed_before_it_was_frozen(
    write, last, leaf: bool, realized: tuple[int, ...], on_device: str
) -> None:
    """And none from what was computed while it was; nor if a write made it no leaf any more."""
    x = Tensor([1.0, 2.0]) * 2 if realized else Tensor([2.0, 4.0])
    before = x.requires_grad_() * 3
    x.requires_grad_(False)
    between = x * 5
    for number in realized:
        (before, between, x)[number].realize()
    write(x, Tensor([3.0, 3.0], requires_grad=not leaf))
    x.requires_grad_()
    (before + between + x * x).sum().backward()
    assert x.tolist() == last and between.tolist() == [10, 20]
    assert x.grad.tolist() == [2 * value + 3 * leaf for value in last]


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x.data.fill_(0.5),
        lambda x: x.detach().zero_(),
        lambda x: x.copy_(x[:]),
        lambda x: x.assign(x.detach()),
    ],
    ids=["data", "detached", "its own view", "itself"],
)
def test_a_leaf_that_is_written_with_what_it_has(on_device, write):
    """It stays in its memory, so what was computed from it before still leads to it."""
    x, w = (Tensor([1.0, 2.0], requires_grad=True) for _ in range(2))
    y = (x * 2 + w).square().sum()
    for _ in range(2):
        with Tensor.no_grad():
            write(x)
    y.backward()
    assert x.grad.tolist() == [12, 24] and w.grad.tolist() == [6, 12]


def test_freezing_again_and_again_adds_nothing(on_device: str) -> None:
    x = Tensor([1.0, 2.0], requires_grad=True)
    with Tensor.no_grad():
        x.mul_(2)
    later, sizes = x * 3, []
    for _ in range(5):
        x.requires_grad_(False).requires_grad_()
        sizes.append(len(topological([x.raw, later.raw])))
    assert len(set(sizes)) == 1
    assert later.tolist() == [6, 12]


def test_unfreezing_many_parameters_takes_linear_time(on_device: str) -> None:
    """Also if a result that nobody has read yet reads all of them."""
    made = []
    for count in (20, 80):
        parameters = [Tensor.ones(2).requires_grad_().requires_grad_(False) for _ in range(count)]
        result = Tensor.ones(2)
        for parameter in parameters:
            result = (result * parameter).tanh()
        before = next(ages)
        for parameter in parameters:
            parameter.requires_grad_()
        (result * parameters[0]).sum().backward()
        made.append(next(ages) - before)
        assert all(parameter.grad is None for parameter in parameters[1:])
        np.testing.assert_array_equal(parameters[0].grad.numpy(), result.numpy())
    assert made[1] < 5 * made[0]


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("mode", ["linear", "bicubic"])
@pytest.mark.parametrize(
    ("extent", "size"), [(32, 24), (24, 32), (7, 40), (5, 1), (1, 5), (2, 3), (90, 4), (13, 12)]
)
def test_the_gradient_of_another_size_is_a_few_sums(
    mode: str, extent: int, size: int, aligned: bool
) -> None:
    """Linear in x, so its matrix is what it makes of the unit vectors. Nothing is scattered."""

    def resized(x: Tensor) -> Tensor:
        shape = (len(x), 1, extent) if mode == "linear" else (len(x), 1, 1, extent)
        wide = size if mode == "linear" else (1, size)
        return x.reshape(shape).interpolate(wide, mode=mode, align_corners=aligned)

    matrix = resized(Tensor.eye(extent)).reshape(extent, size).numpy()
    x, g = Tensor.rand(3, extent).realize(), np.random.default_rng(0).random((3, size))
    (found,) = resized(x).reshape(3, size).gradient(x, gradient=Tensor(g, dtype=x.dtype))
    operations = {node.op for node in topological([found.node])}
    assert operations.isdisjoint(SCATTERS) or mode == "bicubic" or extent == 1
    assert np.abs(found.numpy() - g @ matrix.T).max() < 1e-5


def test_windows_of_what_is_joined_with_nothing(on_device: str) -> None:
    """A roll by 0 along one of two dimensions joins an empty part, which needs no gradient."""
    x = Tensor(np.ones((1, 1, 4, 5), np.float32), requires_grad=True)
    (gradient,) = nn.functional.avg_pool2d(x.roll((-1, 0), (2, 3)), 3, 1).sum().gradient(x)
    rows, columns = np.array([1, 1, 2, 2]), np.array([1, 2, 3, 2, 1])
    np.testing.assert_allclose(gradient.numpy()[0, 0] * 9, rows[:, None] * columns, rtol=1e-6)
