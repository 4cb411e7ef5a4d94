"""Python loops that read a value in each iteration do not compute earlier iterations again."""

from __future__ import annotations

import random
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

from minigrad import Context, GlobalCounters, Tensor
from minigrad.graph.node import topological
from minigrad.tensor.plan import Plan

TURNS = 8


def numbers(*shape: int) -> Tensor:
    return Tensor(np.random.default_rng(0).standard_normal(shape, np.float32)).realize()


class Chain:
    """The state is a new tensor in each iteration."""

    def __init__(self) -> None:
        self.h, self.x = Tensor.zeros(5), numbers(5)

    def turn(self) -> float:
        self.h = self.h * 0.5 + self.x
        return self.h.sum().item()


class OfLeaf(Chain):
    def turn(self) -> float:
        w = self.__dict__.setdefault("w", Tensor.ones(5, requires_grad=True))
        self.h = self.h * 0.5 * w + self.x
        return self.h.sum().item()


SHOWN = {
    "itself": lambda h: h, "moved": lambda h: h.flip(0), "part": lambda h: h.cat(h[:1])[1:],
    "cast": lambda h: h.bfloat16().float(), "padded": lambda h: h[1:].pad(((0, 1),)),
}  # fmt: skip


class Moved(Chain):
    """No name stands for what is computed, but one for a view of it."""

    shown = "moved"

    def turn(self) -> float:
        self.h = SHOWN[self.shown](self.h * 0.5 + self.x)
        return self.h.sum().item()


class Part(Moved):
    shown = "part"


class Cast(Moved):
    shown = "cast"


class Drawn(Chain):
    def turn(self) -> float:
        self.h = self.h * 0.5 + Tensor.rand(5)
        return self.h.sum().item()


class Written(Chain):
    """A tensor that is written element by element, and then summed."""

    def turn(self) -> float:
        for place in range(5):
            self.h[place] = self.x[place] * 2
        return (self.h * 2).sum().item()


class Collected(Chain):
    """An array that collects what each step looks at, and of which elements are used then."""

    def __init__(self) -> None:
        self.h, self.x = Tensor.zeros(12, 5), numbers(12, 5)

    def turn(self) -> float:
        for place in range(12):
            scores = (self.x[place] * 2).log_softmax(0)
            scores.max().item()
            self.h[place] = scores
        parts = [self.h[place] * place for place in range(12)]
        return Tensor.stack(*parts).sum().item()


class InTurn(Chain):
    """Two states that follow from each other; the loop looks only at the first, before the second
    is computed. No name stands for the value of `h` that both new states read."""

    def turn(self) -> float:
        before = self.__dict__.get("u", self.h)
        self.u = (self.h * 0.5 + self.x).tanh()
        self.h = (self.u - self.h) * 0.5
        return (self.u - before).square().sum().item()


class Grown(Chain):
    """Two states to which the loop adds what it looks at; both read old ones without a name."""

    def turn(self) -> float:
        if not hasattr(self, "u"):
            self.h, self.u = self.x * 0.5, self.x + 1
        seen = (self.h * self.u).tanh()
        self.h += seen.mean() * 0.1
        self.u += seen * 0.1
        return seen.mean().item()


class Twice(Chain):
    """The loop looks at a value twice: the second time it is kept, but not what it comes from."""

    def turn(self) -> float:
        self.h = self.h.roll(1, 0)
        seen = (self.h + self.x).tanh()
        self.h += seen * 0.1
        return seen.sum().item() + seen.max().item()


class Means:
    """k-means, written in the obvious way."""

    def __init__(self) -> None:
        self.points = numbers(40, 3)
        self.h = self.points[:4].realize()

    def turn(self) -> float:
        far = (self.points.unsqueeze(1) - self.h).square().sum(-1)
        member = far.argmin(1).one_hot(4).cast("float32")
        new = member.T @ self.points / member.sum(0).unsqueeze(1).maximum(1)
        shift = (new - self.h).square().sum().item()
        self.h = new
        return shift


LOOPS = (Chain, OfLeaf, Moved, Part, Cast, Drawn, Written, Collected, InTurn, Grown, Twice, Means)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_turn_takes_what_the_first_ones_take(on_device, loop):
    state, nodes, programs = loop(), [], []
    for _ in range(TURNS):
        before = GlobalCounters.programs_compiled
        state.turn()
        programs.append(GlobalCounters.programs_compiled - before)
        nodes.append(len(topological([state.h.raw])))
    assert not any(programs[5:]), programs
    assert max(nodes[4:]) <= max(nodes[:3]), nodes


def test_values_of_such_loops(on_device):
    chain, want = Chain(), np.zeros(5, np.float32)
    for _ in range(TURNS):
        found, want = chain.turn(), want * 0.5 + chain.x.numpy()
        assert found == pytest.approx(want.sum(), rel=1e-5)
    written = Written()
    for _ in range(TURNS):
        assert written.turn() == pytest.approx(4 * written.x.numpy().sum(), rel=1e-5)


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("shown", SHOWN)
def test_the_way_back_through_what_is_kept(on_device, marked, shown):
    """Stored states do not change gradients, not even for leaves that were not marked."""
    found = []
    for looks in (True, False):
        w, h = Tensor([0.5, 2.0], requires_grad=marked or None), Tensor([1.0, 3.0])
        for _ in range(TURNS):
            h = SHOWN[shown](h * w + 1)
            if looks:
                assert h.sum().item() > 0
        h.square().sum().backward()
        found.append(w.grad.numpy())
    np.testing.assert_allclose(*found, rtol=1e-5)


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("stops", [True, False])
def test_the_way_back_through_what_no_name_stands_for(on_device, marked, stops):
    """Also if the loop reads it through a reshape, and if another reader stops gradients."""
    found = []
    for looks in (True, False):
        w, x = Tensor([[0.5, 2.0], [0.1, -0.3]], requires_grad=marked or None), numbers(3, 2)
        product, u, v = x @ w, Tensor.zeros(3, 2), Tensor.zeros(3, 2)
        with Tensor.no_grad() if stops else nullcontext():
            aside = product * 2
        for _ in range(TURNS):
            u = (product - v).tanh() + u * 0.5
            v = (u * product).sigmoid() + v * w[0]
            if looks:
                assert np.isfinite(u.sum().item())
        (u * v + aside).sum().backward()
        found.append(w.grad.numpy())
    np.testing.assert_allclose(*found, rtol=1e-5)


def test_a_product_that_is_read_again_is_kept(on_device):
    """Its node is a reshape of a sum."""
    product = numbers(5, 4) @ numbers(4, 3)
    for factor in range(3):
        assert np.isfinite((product * factor).sum().item())
    assert len(topological([product.raw])) <= 2


def test_such_a_loop_keeps_nothing_of_turns_that_are_over(on_device):
    """No gradient by the inputs of past iterations can be asked for any more."""
    h, held = Tensor.zeros(100), []
    for turn in range(3 * TURNS):
        x = Tensor(np.full(100, turn, np.float32))
        h = h * 0.5 + x
        h.sum().item()
        held.append(GlobalCounters.mem_used)
    assert max(held[TURNS:]) <= max(held[:TURNS])
    (h * h).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 2 * h.numpy(), rtol=1e-5)


def test_a_detached_state_keeps_nothing_of_turns_that_are_over(on_device):
    """As in truncated backpropagation through time; the last turn has its gradient."""
    w, h, held = Tensor([0.5] * 100, requires_grad=True), Tensor.zeros(100), []
    for turn in range(3 * TURNS):
        h = (h * w + turn).detach()
        (h * h).sum().item()
        held.append(GlobalCounters.mem_used)
    assert max(held[TURNS:]) <= max(held[:TURNS])
    out = h * w
    out.sum().item()
    out.sum().backward()
    np.testing.assert_allclose(w.grad.numpy(), h.numpy(), rtol=1e-5)


@pytest.mark.parametrize("trained", [False, True])
def test_a_detached_state_in_memory_keeps_nothing_of_turns_that_are_over(on_device, trained):
    """Nobody writes the weight, so no history becomes void; the latest ones have their gradient."""
    w, h, held = Tensor([0.5] * 100, requires_grad=True), Tensor.zeros(100).realize(), []
    kept = []
    for turn in range(3 * TURNS):
        before, h = h, (h.detach() * w + turn).realize()
        if trained:
            w.grad = None
            h.sum().backward()
        if turn < 3:
            kept.append((before.numpy(), h))
        held.append(GlobalCounters.mem_used)
    assert max(held[2 * TURNS :]) <= max(held[TURNS : 2 * TURNS])
    for value, result in kept:  # as for PyTorch, what a name stands for can be differentiated
        w.grad = None
        result.sum().backward()
        np.testing.assert_allclose(w.grad.numpy(), value, rtol=1e-5)


@pytest.mark.parametrize("way", ["backward", "twice", "gradient"])
def test_updates_of_a_leaf_that_nobody_reads_do_not_pile_up(on_device, way):
    w, want, nodes = Tensor([1.0, 2.0], requires_grad=True), np.array([1.0, 2.0]), []
    for _ in range(2 * TURNS):  # what is made of a form is copied from about its fourth time on
        loss = (w**3).sum()
        if way == "gradient":
            w.grad = loss.gradient(w)[0]
        else:
            (loss if way == "backward" else loss.gradient(w)[0].sum()).backward()
        with Tensor.no_grad():
            w -= w.grad * 0.01
        w.grad = None
        want = want - 0.01 * (6 * want if way == "twice" else 3 * want**2)
        nodes.append(len(topological([w.raw])))
    assert max(nodes[TURNS:]) <= max(nodes[:TURNS]), nodes
    np.testing.assert_allclose(w.numpy(), want, rtol=1e-5)


def test_what_many_turns_have_left_stays_as_it_is(on_device):
    """Values of many iterations are computed together when they are needed, or never."""
    x = numbers(3)
    kept = [x * number + 1 for number in range(20)]
    for factor in (1.0, 2.0, 3.0):
        assert (sum(kept[1:], kept[0]) * factor).sum().item() != 0
    assert not any(one.is_realized() for one in kept)


def test_a_large_value_of_which_little_is_read_is_not_kept(compiled):
    """An outer product that is larger than all its inputs together."""
    with Context(DEVICE=compiled):
        rows, columns = numbers(1 << 13, 1), numbers(1 << 12)
        first = rows * columns
        second = first + 1
        used = GlobalCounters.mem_used
        for some in (first[0, 0], second[0, 1], second[5, 5]):
            assert np.isfinite(some.item())
            assert GlobalCounters.mem_used < used + 4096


FORMS = ("({} * {}).tanh()", "({} @ {}).sigmoid()", "({} - {}) * 0.5", "{}.roll(1, 0) + {}",
         "({} + {}).softmax(1)", "{}.T * {}", "{}.mean(0) + {}", "{}.detach() * {}",
         "({} > {}).float()")  # fmt: skip
STARTS = ("numbers(4, 4)", "numbers(4, 4) + 1", "Tensor.zeros(4, 4)", "Tensor.ones(4, 4)")


def random_loop(seed: int) -> tuple[str, str]:
    """Lines before a loop over the states a, b and c, and the lines of a turn."""
    draw, known = random.Random(seed), ["a", "b", "c", "x"]
    start = "; ".join(f"{name} = {draw.choice(STARTS)}" for name in "abc") + "; x = numbers(4, 4)"
    turn = []
    for place in range(draw.randint(3, 7)):
        value = draw.choice(FORMS).format(draw.choice(known), draw.choice(known))
        state = draw.choice("abc")
        turn.append(draw.choice((
            f"t{place} = {value}", f"t{place} = {value}", f"{state} += 0.1 * ({value})",
            f"{state} = 0.9 * {state} + 0.1 * ({value})", f"{state} *= 0.95",
            f"{state}[1:3] = ({value})[0, :1]", f"look({draw.choice(known)})",
        )))  # fmt: skip
        known += [f"t{place}"] * turn[-1].startswith("t")
    return start, "\n".join([*turn, f"look({draw.choice(known)})"])


@pytest.mark.parametrize("seed", range(30))
def test_turns_of_random_loops(seed: int, reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """None takes more nodes than the first ones, and looking changes no value."""
    sizes: list[int] = []
    ends: list[list[np.ndarray]] = []
    looks: tuple[Any, ...] = (lambda x: x.sum().item(), lambda x: None)
    plan = Plan.__init__

    def counting(self: Plan, *args: Any, **options: Any) -> None:
        plan(self, *args, **options)
        sizes.append(len(self.order))

    monkeypatch.setattr(Plan, "__init__", counting)
    start, turn = random_loop(seed)
    for look in looks:
        names: dict[str, Any] = {"Tensor": Tensor, "numbers": numbers, "look": look}
        taken: list[int] = []
        with Context(DEVICE=reference):
            exec(start, names)
            for _ in range(2 * TURNS):
                sizes.clear()
                exec(turn, names)
                taken.append(sum(sizes))
            ends.append([names[name].numpy() for name in "abc"])
        assert max(taken[-4:]) <= max(taken[4:TURNS]), (start, turn, taken)
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-4, atol=1e-5)


def read_path(turns: int, realizes: bool) -> tuple[list[int], list[int]]:
    """Rounds of a hidden Markov model: forward, backward, new numbers; the likeliest states, read.

    Returns the kernels of each round, and the states of the last.
    """
    draw = np.random.default_rng(1)
    a, b = (Tensor(np.log(draw.dirichlet(np.ones(3), n))).realize() for n in (3, 4))
    seen, kernels = [int(x) for x in draw.integers(0, 4, 12)], []
    for _ in range(turns):
        before = GlobalCounters.kernel_count
        ahead, after = [b[seen[0]]], [Tensor.zeros(3, dtype="float64")]
        for x in seen[1:]:
            ahead.append((ahead[-1].unsqueeze(1) + a).logsumexp(0) + b[x])
        for x in seen[:0:-1]:
            after.append((a + b[x] + after[-1]).logsumexp(1))
        total = Tensor.stack(*ahead) + Tensor.stack(*after[::-1])
        a = a + (total.unsqueeze(2) + a).logsumexp(0) - total.logsumexp(0).unsqueeze(1)
        b = Tensor.stack(*[total[i::4].logsumexp(0) for i in range(4)])
        if realizes:
            Tensor.realize(a, b)
        best, back = b[seen[0]], []
        for x in seen[1:]:
            scores = best.unsqueeze(1) + a
            back.append(scores.argmax(0))
            best = scores.max(0) + b[x]
        path = [int(best.argmax())]
        for one in back[::-1]:
            path.append(int(one[path[-1]]))
        kernels.append(GlobalCounters.kernel_count - before)
    return kernels, path


def test_many_numbers_that_are_read_of_many_values() -> None:
    """So many values are alive that none is kept at first; each look computed all rounds again."""
    kernels, path = read_path(5, False)
    assert max(kernels[1:]) <= 2 * kernels[0] and kernels[-1] <= kernels[1]
    assert path == read_path(5, True)[1]


def test_programs_set_no_attribute_of_a_class() -> None:
    """Python then finds all attributes of its instances anew: 5 of 40 µs of a small operation."""
    other, before = numbers(3) + 1, dict(vars(Plan))
    (numbers(3) * 2).realize()
    assert dict(vars(Plan)) == before
    assert not other.is_realized()
