"""Copies of one expression from a Python loop are computed together; their values do not change."""

from __future__ import annotations

import numpy as np
import pytest
from devices import OTHER

from minigrad import GlobalCounters, Tensor, linalg, nn
from minigrad.errors import BoundsError, GradientError
from minigrad.graph.autobatch import MANY, as_rows, is_leaf, together
from minigrad.graph.node import Node, topological
from minigrad.programs import programs


def merged(root: Tensor, *kept: Tensor) -> Node:
    (node,), _ = together([root.node], topological([root.node]), {one.node for one in kept})
    return node


def size(node: Node) -> int:
    """The number of nodes, without concatenations of leaves."""
    return sum(not is_leaf(one) for one in topological([node]))


def rows(count: int, *shape: int, seed: int = 0) -> list[Tensor]:
    drawn = np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)
    return [Tensor(one) for one in drawn]


def test_a_sum_is_one_graph_for_each_length(on_device):
    w = Tensor(np.eye(3, dtype=np.float32) * 2)

    def loss(count: int) -> Tensor:
        return sum((x @ w).tanh().sum() * float(n) for n, x in enumerate(rows(count, 2, 3)))

    assert len({size(merged(loss(count))) for count in (10, 25, 40)}) == 1
    assert size(merged(loss(MANY))) == size(loss(MANY).node)  # so few copies share a kernel anyway
    for count in (10, 25, 40):
        expected = sum(n * np.tanh(2 * x.numpy()).sum() for n, x in enumerate(rows(count, 2, 3)))
        np.testing.assert_allclose(loss(count).item(), expected, rtol=1e-5)


def test_from_the_third_length_on_nothing_is_compiled(compiled):
    programs.forget()
    with Tensor.train():
        layer = nn.Linear(3, 2)
        optimizer = nn.optim.SGD([layer.weight, layer.bias], lr=0.1)
        made = []
        for count in (11, 15, 21, 30, 14):
            before = GlobalCounters.programs_compiled
            xs = enumerate(rows(count, 1, 3))
            chosen = [(layer(x).log_softmax()[0, n % 2], n) for n, x in xs]
            optimizer.zero_grad()
            Tensor.stack([-p * float(n) for p, n in chosen]).sum().backward()
            optimizer.step()
            made.append(GlobalCounters.programs_compiled - before)
    assert made[0] > 0 and made[1] > 0 and made[2:] == [0, 0, 0]


@pytest.mark.parametrize("join", [Tensor.stack, Tensor.cat, sum])
def test_gradients(on_device, join):
    count, data = 12, np.random.default_rng(1).standard_normal((12, 2, 3)).astype(np.float32)
    w = Tensor(np.arange(6, dtype=np.float32).reshape(3, 2) / 6, requires_grad=True)
    parts = [(Tensor(data[n]) @ w).sigmoid() * (n + 1.0) for n in range(count)]
    total = join(parts) if join is sum else join(*parts) if join is Tensor.cat else join(parts)
    total.sum().backward()
    s = 1 / (1 + np.exp(-(data @ w.numpy())))
    d = s * (1 - s) * np.arange(1, count + 1)[:, None, None]
    np.testing.assert_allclose(w.grad.numpy(), np.einsum("nij,nik->jk", data, d), rtol=1e-5)
    found, of_one = total.sum().gradient(w, parts[5])
    np.testing.assert_allclose(found.numpy(), w.grad.numpy(), rtol=1e-5)
    np.testing.assert_array_equal(of_one.numpy(), np.ones_like(d[5]))


def test_a_part_of_a_loss_is_there_after_its_backward(on_device):
    w = Tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    parts = [(Tensor([[float(n), 1.0]]) @ w).square() for n in range(12)]
    loss = Tensor.cat(*parts).sum()
    loss.backward()
    first = w.grad.tolist()
    loss.backward()
    np.testing.assert_allclose(w.grad.numpy(), 2 * np.array(first), rtol=1e-6)
    assert loss.gradient(parts[5])[0].tolist() == [[1.0, 1.0]]
    with Tensor.no_grad():
        w.assign(w * 0.0)
    values = [[(n + 3.0) ** 2, (2.0 * n + 4.0) ** 2] for n in range(12)]
    assert loss.item() == sum(map(sum, values))
    assert parts[7].tolist() == [values[7]]
    assert w.sum().item() == 0.0


def test_what_was_joined_once_has_its_rows(on_device):
    w = Tensor([[1.0, 2.0], [3.0, 4.0]])
    inner = [Tensor([[float(n), 1.0]]) @ w for n in range(12)]
    chosen = [x.tanh() for x in inner]
    joined = topological([merged(sum(x * float(n) for n, x in enumerate(chosen)))])
    (some, whole), *others = as_rows([x.node for x in chosen], frozenset())
    assert not others and some == [x.node for x in chosen] and whole in joined
    (others, _), *_ = as_rows(some, {inner[5].node})  # this one is needed separately now
    assert others == [*some[:5], *some[6:]]
    (fewer, other), *_ = as_rows(some[1:], frozenset())
    assert fewer == some[1:] and other.shape == (11, 1, 2)


def test_who_wants_a_gradient_stays_apart(on_device):
    xs = [Tensor([float(n), 1.0], requires_grad=True) for n in range(10)]
    total = sum(x.square().sum() for x in xs)
    assert merged(total, *xs) is total.node
    total.backward()
    assert [x.grad.tolist() for x in xs] == [[2.0 * n, 2.0] for n in range(10)]
    xs = [Tensor([float(n), 1.0]) for n in range(10)]  # no leaf is marked: all get gradients
    sum(x.square().sum() for x in xs).backward()
    assert [x.grad.tolist() for x in xs] == [[2.0 * n, 2.0] for n in range(10)]


def test_one_of_them_may_be_in_all(on_device):
    """x₀ is the varying input of the first copy, and part of all copies."""
    xs = rows(10, 3)
    shared = (xs[0] * 2).exp()
    values = np.stack([x.numpy() for x in xs])
    for total, each in (
        (sum((x.exp() * shared).sum() for x in xs), np.exp(values) * np.exp(2 * values[0])),
        (sum((x.exp() * xs[0]).sum() for x in xs), np.exp(values) * values[0]),
    ):
        np.testing.assert_allclose(total.item(), each.sum(), rtol=1e-5)


def test_rows_of_one_array(on_device):
    table = Tensor(np.arange(60, dtype=np.float32).reshape(20, 3))
    total = sum((table[n] * float(n)).minimum(3.0).exp2().sum() for n in range(4, 16))
    expected = sum(np.exp2(np.minimum(table.numpy()[n] * n, 3.0)).sum() for n in range(4, 16))
    np.testing.assert_allclose(total.item(), expected, rtol=1e-5)
    crossed = Tensor.stack([(table[n] + table[19 - n]).exp2() for n in range(12)])
    plain = table.numpy()
    expected = np.stack([np.exp2(plain[n] + plain[19 - n]) for n in range(12)])
    np.testing.assert_allclose(crossed.numpy(), expected, rtol=1e-5)


def test_loops_in_loops(on_device):
    w = Tensor([0.5, -1.0, 2.0])
    xs = rows(120, 3)
    total = sum(sum((x * w).tanh().sum() for x in xs[n : n + 10]).exp() for n in range(0, 120, 10))
    plain = np.tanh(np.stack([x.numpy() for x in xs]) * w.numpy()).sum(1).reshape(12, 10).sum(1)
    np.testing.assert_allclose(total.item(), np.exp(plain).sum(), rtol=1e-4)
    assert size(merged(total)) < 60


def parts_of(x):
    """Parts of which some lie in memory as they are, some do not."""
    return [
        x[2:4], x[1].reshape(1, 3, 4), x[3, 1:].pad((0, 0, 0, 1)).unsqueeze(0), x[0:0], x[4:, :2],
        x[1:3, 1:].detach(), x[:2].flip(1), x[:1, :1, 1:3], x[2].T.unsqueeze(0), x[0, 1:2, :2],
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "int32"])
@pytest.mark.parametrize("kind", range(10))
def test_parts_of_arrays_are_joined(kind, dtype, on_device):
    arrays = rows(3, 5, 3, 4)
    parts = [parts_of(x)[kind] for x in arrays] * 4
    joined = Tensor.cat([part.cast(dtype) for part in parts])
    values = np.concatenate([part.numpy() for part in parts])
    np.testing.assert_array_equal(joined.numpy(), values.astype(dtype))


def test_which_parts_are_joined_compiles_nothing(compiled):
    """As examples drawn from a memory: which of them are parts of one array differs each time."""
    leaves = [x.requires_grad_() for x in rows(4, 16, 1, 6)]
    memory = [one for x in leaves for one in x.detach().chunk(16)]
    counts = []
    for seed in range(4):
        chosen = np.random.default_rng(seed).choice(len(memory), 20).tolist()
        before = GlobalCounters.programs_scheduled
        got = (Tensor.cat([memory[n] for n in chosen]) * 2.5).numpy()
        counts.append(GlobalCounters.programs_scheduled - before)
        np.testing.assert_array_equal(got, np.stack([2.5 * memory[n].numpy()[0] for n in chosen]))
    assert counts[1:] == [0, 0, 0]


def test_a_join_along_an_inner_axis(on_device):
    xs = rows(9, 2, 3, 4)
    joined = Tensor.cat(*[x.exp() for x in xs], dim=1)
    expected = np.concatenate([np.exp(x.numpy()) for x in xs], 1)
    np.testing.assert_allclose(joined.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8", "bool", "float64", "uint16"])
def test_numbers_of_each_dtype(on_device, dtype):
    values = [n % 2 for n in range(12)] if dtype == "bool" else [1.5 * n for n in range(12)]
    joined = Tensor.stack([Tensor(v).cast(dtype) for v in values])
    assert joined.tolist() == [Tensor(v).cast(dtype).item() for v in values]
    small = [Tensor([v]).cast(dtype).realize() for v in values]
    assert Tensor.cat(*small).tolist() == [one.item() for one in small]


def test_wrong_indices_are_found(on_device):
    table = Tensor([1.0, 2.0, 3.0])
    with pytest.raises(BoundsError, match="out of range"):
        sum(table[Tensor([n])].exp().sum() for n in range(12)).item()


def test_who_is_overwritten_leaves_what_it_was(on_device):
    w = Tensor([2.0, 3.0], requires_grad=True)
    waiting = [(w * float(n)).exp2().sum() for n in range(12)]
    with Tensor.no_grad():
        w.assign(Tensor([0.0, 0.0])).realize()
    assert [one.item() for one in waiting] == [4.0**n + 8.0**n for n in range(12)]
    with pytest.raises(GradientError, match="overwritten in place"):
        waiting[3].backward()


@pytest.mark.parametrize("what", ["leaf", "scale"])
def test_who_was_asked_for_a_gradient_is_overwritten(on_device, what):
    """The copies were rewritten as rows by then; each keeps its value, and its history or none."""
    w, scale = Tensor([2.0, 3.0], requires_grad=True), Tensor([1.0, 0.5]).realize()
    waiting = [(w * scale * float(n)).exp2().sum() for n in range(12)]
    with Tensor.no_grad():
        constant = (w * scale * 3.0).exp2().sum()  # the node of a copy, but without its history
    loss = sum(one * float(n + 1) for n, one in enumerate(waiting))
    loss.backward()
    with Tensor.no_grad():
        (w if what == "leaf" else scale).assign(Tensor([0.0, 0.0])).realize()
    values = [4.0**n + 2.0 ** (1.5 * n) for n in range(12)]
    np.testing.assert_allclose([one.item() for one in waiting], values, rtol=1e-5)
    np.testing.assert_allclose(loss.item(), sum(values * np.arange(1, 13)), rtol=1e-5)
    assert constant.item() == waiting[3].item()
    other = Tensor([1.0], requires_grad=True)
    (constant * other).sum().backward()
    assert other.grad.item() == constant.item()
    for tensor in (waiting[3], loss) if what == "leaf" else ():
        with pytest.raises(GradientError, match="overwritten in place"):
            tensor.backward()
    if what == "scale":
        (found,) = waiting[3].gradient(w)
        expected = np.log(2) * 3 * np.array([4.0**3, 2.0**4.5 / 2])
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_random_copies(on_device):
    """Random functions of one array and one number that vary, and of two that do not."""
    for seed in range(20):
        random = np.random.default_rng(seed)
        count = int(random.integers(MANY + 1, 2 * MANY + 3))
        same = [Tensor(random.standard_normal((2, 3)).astype(np.float32)) for _ in range(2)]
        steps = [tuple(random.integers(0, 9, 3)) for _ in range(6)]

        def f(x: Tensor, number: float, same=same, steps=steps) -> Tensor:
            values = [x, *same, x * number]
            for op, a, b in steps:
                one, other = values[a % len(values)], values[b % len(values)]
                values.append([
                    lambda p, q: p + q, lambda p, q: p * q, lambda p, q: p.maximum(q),
                    lambda p, q: p @ q.T @ q, lambda p, q: p.softmax(-1) - q,
                    lambda p, q: p.sum(0, keepdim=True) + q, lambda p, q: p.flip(1) * 0.5 + q,
                    lambda p, q: (p < q).where(p, q * number),
                    lambda p, q: Tensor.cat(p, q, dim=1)[:, 1:4],
                ][op](one, other))  # fmt: skip
            return values[-1]

        xs = rows(count, 2, 3, seed=seed)
        alone = np.stack([f(x, float(n)).numpy() for n, x in enumerate(xs)])
        scale = np.abs(alone).sum() / alone.size + 1
        stacked = Tensor.stack([f(x, float(n)) for n, x in enumerate(xs)]).numpy()
        np.testing.assert_allclose(stacked, alone, rtol=1e-4, atol=1e-5 * scale, err_msg=str(seed))
        total = sum(f(x, float(n)) for n, x in enumerate(xs)).numpy()
        np.testing.assert_allclose(
            total, alone.sum(0), rtol=1e-4, atol=1e-4 * scale, err_msg=str(seed)
        )


def test_copies_on_two_devices(on_device):
    """Readers of overwritten tensors on both."""
    drawn = np.random.default_rng(3).standard_normal((12, 4)).astype(np.float32)
    there = [Tensor(drawn, device=device).realize() for device in (on_device, OTHER)]
    readers = [x[n].exp() * 2.0 for x in there for n in range(12)]
    Tensor.realize(*(x.assign(x + 1.0) for x in there))
    for n, reader in enumerate(readers):
        np.testing.assert_allclose(reader.numpy(), np.exp(drawn[n % 12]) * 2, rtol=1e-5)


def test_a_sum_of_columns(on_device):
    x = Tensor(np.random.default_rng(2).standard_normal((5, 12)).astype(np.float32)).realize()
    total = sum(x[:, n] for n in range(12))
    assert size(merged(total)) < size(total.node)
    np.testing.assert_allclose(total.numpy(), x.numpy().sum(1), rtol=1e-5)


@pytest.mark.parametrize("of", [
    lambda x, odd: x.flip(0) if odd else x.flip(1),  # differs in an argument
    lambda x, odd: Tensor.cat(x[:1] * 2.0, *([x[1:] * 2.0] if odd else [x[1:2] * 2.0, x[2:]])),
], ids=["argument", "sources"])  # fmt: skip
def test_what_differs_in_one_thing_is_no_copy(on_device, of):
    xs = rows(12, 3, 3)
    values = [of(x, n % 2).exp() for n, x in enumerate(xs)]
    alone = [of(x, n % 2).exp().numpy() for n, x in enumerate(xs)]
    np.testing.assert_allclose(sum(values).numpy(), np.sum(alone, 0), rtol=1e-5)


@pytest.mark.parametrize("function", [
    linalg.inv, lambda x: linalg.solve(x, Tensor.ones(3)), linalg.slogdet, linalg.det,
    linalg.cholesky, linalg.eigh, linalg.svd, linalg.qr,
])  # fmt: skip
def test_what_is_computed_at_once_stays_apart(function, on_device):
    """Its gradient uses values of one matrix, which are not those of a batch."""
    generator = np.random.default_rng(2)
    halves = generator.standard_normal((MANY + 2, 3, 3)).astype(np.float32)
    matrices = [Tensor(half @ half.T + np.eye(3, dtype=np.float32)) for half in halves]
    found = []
    for together_ in (True, False):
        scale = Tensor([1.5], requires_grad=True)
        terms = []
        for matrix in matrices:
            made = function(matrix * scale)
            made = made if isinstance(made, tuple) else (made,)
            terms.append(sum((part * part.abs()).sum() for part in made))
        for loss in [sum(terms)] if together_ else terms:
            loss.backward()
        found.append(scale.grad.item())
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_what_is_large_stays_apart(on_device):
    w = Tensor(np.ones((4, 400), np.float32))
    small, large = (sum((x @ w).tanh().sum() for x in rows(10, n, 4)) for n in (2, 100))
    assert size(merged(small)) < size(small.node)
    assert merged(large) is large.node  # 10 arrays of 100 × 400 would be computed at once


def test_copies_that_read_one_node_twice(on_device):
    """A buffer of samples, drawn with repetition: the step raised a KeyError while samples lived.
    """
    w = Tensor([1.0, 2.0, 3.0], requires_grad=True)
    optimizer = nn.optim.SGD([w], lr=0.1)
    held = [(w * scale).tanh() for scale in rows(2 * MANY, 3)]
    drawn = np.random.default_rng(1).integers(0, len(held), 3 * MANY)
    xs = rows(len(drawn), 3)
    loss = sum((held[place] * x).sin().sum() for place, x in zip(drawn, xs, strict=True))
    loss.backward()
    optimizer.step()
    scales = np.stack([scale.numpy() for scale in rows(2 * MANY, 3)])
    expected = np.tanh(scales * np.array([1.0, 2.0, 3.0], np.float32))
    np.testing.assert_allclose([one.tolist() for one in held], expected, rtol=1e-5)
    found = np.sin(expected[drawn] * np.stack([x.numpy() for x in xs])).sum()
    assert loss.item() == pytest.approx(found, rel=1e-5)
