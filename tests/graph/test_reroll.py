"""Python loops whose steps depend on each other become LOOPs, with the same values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from devices import OTHER

from minigrad import GlobalCounters, Tensor, linalg, nn
from minigrad.graph.node import Node, Op, topological
from minigrad.graph.reroll import LEAST_NODES, reroll, with_loops
from minigrad.programs import programs


def loops(*roots: Tensor) -> int:
    """The number of LOOPs in the rewritten graph."""
    nodes = [root.node for root in roots]
    made, _ = with_loops(nodes, topological(nodes))
    return sum(node.op is Op.LOOP for node in topological(made))


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def cell_of(kind: str) -> Callable[..., tuple[Tensor, ...]]:
    cell = {"rnn": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}[kind](3, 4)
    for number, parameter in enumerate(cell.parameters()):
        parameter.set_data(array(*parameter.shape, seed=number) * 0.3)
    cell.step = lambda x, state: cell(x, state) if kind == "lstm" else (cell(x, state[0]),)
    return cell


def states(cell, x: Tensor, count: int) -> list[tuple[Tensor, ...]]:
    state = (Tensor.zeros(2, 4), Tensor.zeros(2, 4))
    found = []
    for step in range(count):
        state = cell.step(x[step], state)
        found.append(state)
    return found


def test_gradients_by_name_are_of_copies_and_loops(compiled):
    """`gradient` also compiles nothing from the third length on, like `backward`."""
    programs.forget()
    cell, made = cell_of("rnn"), []
    for count in (30, 41, 23, 52):
        before = GlobalCounters.programs_compiled
        found = states(cell, Tensor(array(count, 2, 3)), count)
        loss = Tensor.stack([state[0] for state in found]).square().sum()
        Tensor.realize(*loss.gradient(*cell.parameters()))
        made.append(GlobalCounters.programs_compiled - before)
    assert made[0] > 0 and made[2:] == [0, 0]


@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
def test_cells(on_device, kind):
    cell, count = cell_of(kind), 40
    x = Tensor(array(count, 2, 3))
    found = states(cell, x, count)
    stacked = Tensor.stack([state[0] for state in found])
    assert loops(stacked) == loops(found[-1][-1]) == 1
    loss = (stacked * Tensor(array(count, 2, 4, seed=1))).sum() + found[-1][-1].square().sum()
    loss.backward()
    grads = [parameter.grad.numpy() for parameter in cell.parameters()]
    alone = []  # the same, realizing each step before the next
    state = (Tensor.zeros(2, 4), Tensor.zeros(2, 4))
    for step in range(count):
        state = tuple(part.detach().realize() for part in cell.step(x[step], state))
        alone.append(state[0].numpy())
    np.testing.assert_allclose(stacked.numpy(), np.stack(alone), rtol=1e-5, atol=1e-6)
    layer = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[kind](3, 4)
    for mine, its in zip(layer.parameters(), cell.parameters(), strict=True):
        mine.set_data(its.numpy())
    out, last = layer(x)
    other = last[1] if kind == "lstm" else last
    ((out * Tensor(array(count, 2, 4, seed=1))).sum() + other.square().sum()).backward()
    for grad, parameter in zip(grads, layer.parameters(), strict=True):
        np.testing.assert_allclose(grad, parameter.grad.numpy(), rtol=1e-4, atol=1e-5)


def test_from_the_third_length_on_nothing_is_compiled(compiled):
    programs.forget()
    cell = cell_of("lstm")
    optimizer = nn.optim.SGD(cell.parameters(), lr=0.01)
    made = []
    for count in (30, 41, 23, 52):
        before = GlobalCounters.programs_compiled
        kept = states(cell, Tensor(array(count, 2, 3)), count)  # lazy until weights change
        optimizer.zero_grad()
        Tensor.stack([state[0] for state in kept]).square().sum().backward()
        optimizer.step()
        assert np.isfinite(kept[count // 2][1].numpy()).all()
        made.append(GlobalCounters.programs_compiled - before)
    assert made[0] > 0 and made[2:] == [0, 0]


def test_who_looks_at_what_a_loop_left_sees_the_old_values(on_device):
    cell, count = cell_of("gru"), 30
    x = Tensor(array(count, 2, 3))
    expected = [state[0].numpy() for state in states(cell, x, count)]
    kept = states(cell, x, count)
    with Tensor.no_grad():
        for parameter in cell.parameters():
            parameter.assign(Tensor.zeros(*parameter.shape))
        Tensor.realize(*cell.parameters())
    for (state,), value in zip(kept, expected, strict=True):
        np.testing.assert_allclose(state.numpy(), value, rtol=1e-5, atol=1e-6)


def test_layers_are_no_steps(on_device):
    """Each layer has its own weights, which a LOOP would have to concatenate."""
    layers = [nn.Linear(64, 64) for _ in range(20)]
    for layer in layers:
        layer.weight.realize()
        layer.bias.realize()
    x = Tensor(array(2, 64))
    for layer in layers:
        x = (x + layer(x).relu()).layernorm()
    assert len(topological([x.node])) > LEAST_NODES and loops(x) == 0


def test_what_reaches_back_two_steps_is_computed(on_device):
    w = Tensor(array(3, 3) * 0.3)
    a, b = Tensor(array(2, 3)), Tensor(array(2, 3, seed=1))
    x, y = a.numpy(), b.numpy()
    for _ in range(40):
        a, b = b, ((a @ w).tanh() + (b * 0.5).sin() - a.exp().log() * 0.1).maximum(-1)
        x, y = y, np.maximum(np.tanh(x @ w.numpy()) + np.sin(y * 0.5) - x * 0.1, -1)
    np.testing.assert_allclose(b.numpy(), y, rtol=1e-3, atol=1e-4)


def test_random_loops(on_device):
    """Random steps of one to three carries, with rows, numbers and constant arrays."""
    rolled_up = 0
    for seed in range(12):
        random = np.random.default_rng(seed)
        carries, count = int(random.integers(1, 4)), int(random.integers(24, 40))
        rows = array(count, 2, 3, seed=seed)
        same = Tensor(array(2, 3, seed=seed + 1))
        steps = [tuple(random.integers(0, 9, 3)) for _ in range(9)]
        wanted = random.integers(0, 2, carries + 1)

        def step(state, row, number, steps=steps, same=same, carries=carries):
            values = [*state, row, same, row * number]
            for op, a, b in steps:
                p, q = values[-1 - a % len(values)], values[-1 - b % len(values)]
                values.append([
                    lambda p, q: (p + q) * 0.5, lambda p, q: p * q, lambda p, q: p.maximum(q),
                    lambda p, q: p @ q.T @ q, lambda p, q: p.softmax(-1) - q,
                    lambda p, q: p.sum(0, keepdim=True) + q, lambda p, q: p.flip(1) * 0.5 + q,
                    lambda p, q: (p < q).where(p, q * number),
                    lambda p, q: Tensor.cat(p, q, dim=1)[:, 1:4],
                ][op](p, q))  # fmt: skip
            return [(value + 0 * state[0]).tanh() for value in values[-carries:]], values[-1]

        begin = [Tensor(array(2, 3, seed=seed + 9 + n)) for n in range(carries)]
        table = Tensor(rows) if seed % 2 else [Tensor(row) for row in rows]
        state, kept, total = begin, [], Tensor.zeros(2, 3)
        for n in range(count):
            state, out = step(state, table[n], n * 0.01)
            kept.append(out.tanh())
            total = total + out.sigmoid()
        roots = [Tensor.stack(kept), total, *state] if wanted[0] else [total, state[-1]]
        rolled_up += loops(*roots)
        Tensor.realize(*roots)
        state, alone, sums = begin, [], np.zeros((2, 3), np.float32)
        for n in range(count):
            state, out = step(state, Tensor(rows[n]), n * 0.01)
            out, *state = (part.realize() for part in (out, *state))
            alone.append(np.tanh(out.numpy()))
            sums = sums + out.sigmoid().numpy()
        expected = [np.stack(alone), sums, *(part.numpy() for part in state)]
        expected = expected if wanted[0] else [sums, expected[-1]]
        for root, value in zip(roots, expected, strict=True):
            np.testing.assert_allclose(
                root.numpy(), value, rtol=2e-3, atol=2e-3, err_msg=f"seed {seed}"
            )
    assert rolled_up > 6


def test_few_nodes_stay(on_device):
    x = Tensor([1.0, 2.0])
    for _ in range(20):
        x = x * 0.5 + 1
    nodes: list[Node] = [x.node]
    assert reroll(nodes, topological(nodes)) == nodes
    assert x.tolist() == [2 - 0.5**20, 2.0]


def test_what_goes_into_the_steps_must_be_copies(on_device):
    """Inputs of the same shape may be computed differently in some steps."""
    begin, count = array(2, 3), 40
    given = [Tensor(array(2, 3, seed=n)) for n in range(count)]
    leaf = Tensor.full((2, 3), 0.5, requires_grad=True) * 1
    for kind in ("otherwise", "leaf"):
        inputs = [x.exp() if n % 3 else x.tanh() for n, x in enumerate(given)]
        if kind == "leaf":
            inputs = [x.exp() for x in given]
            inputs[7] = leaf.exp()
        state, plain = Tensor(begin), begin
        for x in inputs:
            state = (state * 0.5 + x).tanh().sin() + x.minimum(0.25) * 0.5 - state.exp() * 0.1
        found = state.numpy()  # before the inputs are realized
        for x in inputs:
            one = x.detach().numpy()
            inner = np.sin(np.tanh(plain * 0.5 + one))
            plain = inner + np.minimum(one, 0.25) * 0.5 - np.exp(plain) * 0.1
        np.testing.assert_allclose(found, plain, rtol=1e-4, atol=1e-5)


def test_a_state_goes_on_as_it_is_not_as_products_read_it():
    """With steps that began after `h.expand(…)`, the carry was 128 times as large."""
    x, w, u = (Tensor(array(*shape)) for shape in ((2, 24, 6), (6, 512), (128, 512)))
    h = c = Tensor.zeros(2, 128)
    for step in range(24):
        i, f, o, z = (x[:, step] @ w + h @ u).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * z.tanh()
        h = o.sigmoid() * c.tanh()
    _, made = with_loops([h.node], topological([h.node]))
    (loop,) = [node for node in made if node.op is Op.LOOP]
    assert {state.shape for state in loop.arg.carries} == {(2, 128)}


def test_layers_with_weights_are_not_taken_for_steps(monkeypatch):
    """Different weights are detected at once: no multiple of a layer's nodes is tried as a step."""
    layers = [nn.Linear(80, 80) for _ in range(80)]
    Tensor.realize(*nn.state.get_parameters(layers))
    x = Tensor(array(4, 80))
    tried: list[int] = []
    chain = reroll.__globals__["_Chain"]
    monkeypatch.setitem(
        reroll.__globals__, "_Chain", lambda *a: tried.append(a[2]) or chain(*a)
    )
    for layer in layers:
        x = (layer(x).tanh() + 1) * 2
    (node,) = [x.node]
    assert reroll([node], topological([node])) == [node]
    assert not tried
    small = Tensor(array(4, 4))
    for _ in range(80):  # layers without weights are steps
        small = ((small.tanh() + 1) * 2).exp()
    assert loops(small) == 1 and tried


def test_a_number_of_the_second_step_that_is_another_constant(on_device):
    """If n is 3 in one step, the variable for h·n must not replace the 3 in + 3."""
    numbers = [5, 3, *(2 + step % 9 for step in range(98))]
    h, wanted = Tensor([1, 2]), np.array([1, 2])
    for number in numbers:
        h, wanted = (h * number + 3) % 11, (wanted * number + 3) % 11
    assert np.array_equal(h.numpy(), wanted)


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_powers_of_long_integers(on_device, dtype):
    """63 steps, one per bit: in the step for bit 1, the bit equals the constant compared with."""
    x = np.array([-2 if dtype == "int64" else 29, 3, 3, 10, 7], dtype)
    exponents = np.array([1, 2**61 + 1, 4, 3, 0], dtype)
    found = Tensor(x) ** (Tensor(exponents) % 5)
    assert np.array_equal(found.numpy(), x ** (exponents % np.array(5, dtype)))


def test_loops_on_two_devices(on_device):
    """Interleaved, as one Python loop creates them."""
    xs, state, w = array(60, 3, 4), array(3, 4, seed=1), array(4, 4, seed=2) * 0.3
    there = [[Tensor(x, device=device) for x in (xs, w, state)] for device in (on_device, OTHER)]
    for n in range(60):
        for one in there:
            x, weight, h = one
            one[2] = (h @ weight * 0.5 + x[n]).tanh() + h * 0.25
    found = [h for *_, h in there]
    Tensor.realize(*found)
    for x in xs:
        state = np.tanh(state @ w * 0.5 + x) + state * 0.25
    for h in found:
        np.testing.assert_allclose(h.numpy(), state, rtol=1e-4, atol=1e-5)


def test_systems_that_are_solved_in_each_step(on_device):
    """A Kalman filter's covariance: the gradient of a solution is another, which needs values."""

    def filtered(noise, one, solve):
        state, total = one, 0.0
        for _ in range(40):
            state = state * 0.9 + noise
            state = state - state @ solve(state + one, state)
            total = total + state.sum()
        return total

    noise = np.array([[0.3, 0.1], [0.1, 0.2]])
    leaf = Tensor(noise.astype(np.float32), requires_grad=True)
    filtered(leaf, Tensor.eye(2), linalg.solve).backward()
    steps = 1e-6 * np.eye(4).reshape(4, 2, 2)
    ends = [[filtered(noise + sign * step, np.eye(2), np.linalg.solve) for step in steps]
            for sign in (1, -1)]  # fmt: skip
    wanted = np.subtract(*ends).reshape(2, 2) / 2e-6
    np.testing.assert_allclose(leaf.grad.numpy(), wanted, rtol=1e-4)


def test_a_first_step_of_two_states(on_device):
    """In all later steps both are the same tensor."""
    xs, state, other = array(60, 3, 4), array(3, 4, seed=1), array(3, 4, seed=2)
    x, h, g = Tensor(xs), Tensor(state), Tensor(other)
    for n in range(60):
        h = g = (h * 0.5 + x[n] - g.tanh() * 0.25).sin() * 1.5 + h * 0.125
    for one in xs:
        state = other = np.sin(state * 0.5 + one - np.tanh(other) * 0.25) * 1.5 + state * 0.125
    np.testing.assert_allclose(h.numpy(), state, rtol=1e-4, atol=1e-4)
