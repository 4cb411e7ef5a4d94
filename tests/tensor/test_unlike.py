"""Programs whose graph differs in each step: after some steps nothing is compiled any more."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

import minigrad.pieced
import minigrad.programs
from minigrad import Context, GlobalCounters, Tensor, jit, nn
from minigrad.errors import BoundsError
from minigrad.graph.build import custom
from minigrad.graph.general import Special
from minigrad.graph.node import Node
from minigrad.pieced import Pieced
from minigrad.program import programs
from minigrad.programs import FREQUENT, LEAST_NODES, MOST_ALIKE, RECURRING, Family

STEPS = MOST_ALIKE + 8
KNOWN = MOST_ALIKE + 4  # steps after which nearly all pieces are known


@pytest.fixture
def on_compiled(compiled: str) -> Iterator[None]:
    programs.forget()
    with Context(DEVICE=compiled):
        yield
    programs.forget()


@pytest.fixture
def all_in_pieces(on_compiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minigrad.programs, "WORTH", 0)
    monkeypatch.setattr(minigrad.programs, "LEAST_NODES", 1)
    monkeypatch.setattr(minigrad.programs, "MOST_ALIKE", 0)


def numbers(seed: int, *shape: int) -> Tensor:
    return Tensor(np.random.default_rng(seed).standard_normal(shape, np.float32)).realize()


class Learner:
    """A model that uses its layers at random."""

    def __init__(self) -> None:
        self.coins = random.Random(3)
        Tensor.manual_seed(0)
        self.module = self.made()
        parameters = nn.state.get_parameters(self.module)
        self.optimizer = nn.optim.AdamW(parameters, lr=0.01)

    def step(self) -> float:
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def made(self) -> list[nn.Linear]:
        return [nn.Linear(12, 12) for _ in range(8)]

    def loss(self) -> Tensor:
        x = numbers(1, 4, 12)
        for layer in self.module:
            if self.coins.random() < 0.7:
                x = x + (layer(x).gelu() * 0.5).layernorm()
        return x.square().mean()


class OfTrees(Learner):
    def made(self) -> list[nn.Linear]:
        return [nn.Linear(16, 8)]

    def tree(self, leaves: int) -> Tensor:
        if leaves == 1:
            return numbers(self.coins.randrange(9), 1, 8)
        left = self.coins.randrange(1, leaves)
        both = Tensor.cat(self.tree(left), self.tree(leaves - left), dim=1)
        return self.module[0](both).tanh()

    def loss(self) -> Tensor:
        some = [self.tree(self.coins.randrange(8, 12)).square().sum() for _ in range(2)]
        return some[0] + some[1]


class OfWords(Learner):
    """The next input is the predicted word or the correct one, at random."""

    def made(self) -> list[object]:
        return [nn.Embedding(7, 8), nn.GRUCell(8, 8), nn.Linear(8, 7)]

    def loss(self) -> Tensor:
        embedding, cell, output = self.module
        words, state = Tensor([[1, 2, 3, 4, 5, 6, 0, 1], [2, 4, 6, 1, 3, 5, 0, 2]]), None
        word, total = words[:, 0], Tensor(0.0)
        for place in range(1, 8):
            state = cell(embedding(word), state)
            logits = output(state)
            total = total + logits.cross_entropy(words[:, place])
            word = words[:, place] if self.coins.random() < 0.5 else logits.argmax(1)
        return total


class OfExperts(Learner):
    """Each expert gets as many rows as are given to it; sizes vary, and some are equal by chance.
    """

    def made(self) -> list[nn.Linear]:
        return [nn.Linear(4, 4) for _ in range(4)]

    def loss(self) -> Tensor:
        cuts = sorted(self.coins.sample(range(3, 40, 3), 3))
        sizes = [stop - start for start, stop in pairwise((0, *cuts, 42))]
        parts = numbers(1, 42, 4).split(sizes)
        made = [layer(part).tanh() for layer, part in zip(self.module, parts, strict=True)]
        return Tensor.cat(*made).square().mean()


class OfLetters(Learner):
    """Words of several lengths; each letter is written into zeros by itself."""

    def made(self) -> list[nn.Linear]:
        return [nn.Linear(9 + 8, 8), nn.Linear(8, 3)]

    def loss(self) -> Tensor:
        word = self.coins.choices(range(9), k=self.coins.randrange(3, 9))
        letters, state = Tensor.zeros(len(word), 1, 9), Tensor.zeros(1, 8)
        for place, letter in enumerate(word):
            letters[place][0][letter] = 1
        for place in range(len(word)):
            state = self.module[0](Tensor.cat(letters[place], state, dim=1)).tanh()
        return self.module[1](state).log_softmax(1)[0, 0]


class OfFew(Learner):
    """A few layers, of which some are used: graphs of 70 … 200 nodes."""

    def made(self) -> list[nn.Linear]:
        return [nn.Linear(12, 12, bias=False) for _ in range(10)]

    def loss(self) -> Tensor:
        some = self.coins.sample(self.module, self.coins.randrange(2, 5))
        x = numbers(1, 4, 12)
        for layer in some:
            x = self.coins.choice([Tensor.tanh, Tensor.relu])(layer(x))
        return x.square().mean()


class OfMatches(Learner):
    """Some results of each example are compared: sizes vary, and 1 is another structure."""

    def made(self) -> list[nn.Linear]:
        return [nn.Linear(12, 12) for _ in range(3)]

    sizes = range(1, 4)

    def compared(self, found: Tensor, wanted: Tensor) -> Tensor:
        return (found - wanted).abs().mean()

    def loss(self) -> Tensor:
        count = 2 * self.sizes.stop - 2
        x, total = numbers(0, 4, count, 12), Tensor(0.0)
        for layer in self.module:
            x = x + layer(x.layernorm()).gelu()
        for number, example in enumerate(x):
            found = self.coins.sample(range(count), self.coins.choice(self.sizes))
            total = total + self.compared(example[found], numbers(number, len(found), 12))
        return total


class OfMany(OfMatches):
    """Seldom as many as before."""

    sizes = range(2, 12)


def counts(step, times: int) -> list[int]:
    found = []
    for _ in range(times):
        before = GlobalCounters.programs_compiled
        step()
        found.append(GlobalCounters.programs_compiled - before)
    return found


@pytest.mark.parametrize("kind", [Learner, OfTrees, OfWords])
def test_pieces_are_known(on_compiled, kind):
    found = counts(kind().step, STEPS)
    assert sum(found[KNOWN:]) <= STEPS - KNOWN, found


def test_known_pieces_are_not_described_again(on_compiled, monkeypatch):
    made = []
    learner = OfWords()
    counts(learner.step, KNOWN)
    known = minigrad.pieced.canonicalize
    monkeypatch.setattr(minigrad.pieced, "canonicalize", lambda *a: made.append(a) or known(*a))
    counts(learner.step, STEPS - KNOWN)
    assert len(made) <= 8 * (STEPS - KNOWN)  # of more than a hundred pieces each


def test_sizes_that_become_frequent_share_a_program(on_compiled):
    """If columns differ in the first two, all are padded; then each got one of its own."""
    for columns in (96, 32):
        numbers(0, 6, columns).sum(0).realize()
    some = [numbers(0, rows, 96) for rows in range(2, 7)]
    found = counts(lambda: [x.sum(0).realize() for x in some], FREQUENT + 4)
    assert sum(found) <= 2, found


def test_structures_that_come_now_and_then_are_not_compiled_whole(on_compiled):
    """If their pieces are known, until they have come often."""
    found = counts(OfMatches().step, 6 * STEPS)
    assert sum(found[2 * STEPS :]) <= STEPS // 3, found


def test_a_general_program_that_does_not_exist_is_seldom_looked_for(on_compiled, monkeypatch):
    sought, uses = Family.generalize, []

    def generalize(self, call, *given):
        if len(call.order) >= LEAST_NODES:
            uses.append(self.uses)
        return sought(self, call, *given)

    def none(*given, **named):
        raise Special("none")

    monkeypatch.setattr(Family, "generalize", generalize)
    monkeypatch.setattr("minigrad.programs.generalize", none)
    learner = OfMany()
    for _ in range(4 * RECURRING):
        learner.step()
    late = [number for number in uses if number >= RECURRING]
    assert 1 <= len(late) <= 3, uses


@pytest.mark.parametrize("kind", [OfExperts, OfLetters, OfFew])
def test_small_graphs_and_sizes_that_vary_independently(on_compiled, kind):
    found = counts(kind().step, 3 * STEPS)
    assert sum(found[-STEPS:]) <= STEPS // 3, found


def test_graphs_that_all_differ_are_seldom_cut(on_compiled):
    """Each is another network, whose pieces do not come again either."""
    coins = random.Random(5)
    between = [
        Tensor.tanh, Tensor.sigmoid, Tensor.softmax, Tensor.layernorm, Tensor.log_softmax,
        lambda x: (x * x + 1).log(), lambda x: x / (1 + x.abs()).sum(1, keepdim=True),
    ]  # fmt: skip

    def step() -> None:
        width = coins.choice([8, 16, 24])
        x, layers = numbers(0, 8, width), []
        for _ in range(coins.randrange(2, 5)):
            layers.append(nn.Linear(width, width := coins.choice([8, 12, 20, 24])))
            x = coins.choice(between)(layers[-1](x))
        parameters = nn.state.get_parameters(layers)
        x.square().mean().backward()
        nn.optim.SGD(parameters, lr=0.1).step()

    found = counts(step, 20)
    assert 1 <= sum(one > 8 for one in found) <= 4, found


@pytest.mark.parametrize(
    "kind", [Learner, OfTrees, OfWords, OfExperts, OfLetters, OfFew, OfMatches]
)
def test_the_values_are_those_of_whole_programs(on_compiled, kind, monkeypatch):
    learner = kind()
    found = [learner.step() for _ in range(STEPS)]
    monkeypatch.setattr(minigrad.programs, "WORTH", 1 << 30)
    programs.forget()
    learner = kind()
    np.testing.assert_allclose(found, [learner.step() for _ in range(STEPS)], rtol=2e-4)


def deep(x: Tensor, seed: int) -> Tensor:
    """A chain of random operations."""
    coins = random.Random(seed)
    for _ in range(40):
        y = (x @ x).tanh() if coins.random() < 0.5 else x.T @ x + 1
        x = y / y.square().sum(1, keepdim=True).sqrt() - x
    return x


def test_memory_of_pieces_is_given_back(all_in_pieces):
    x, held = numbers(0, 3, 3), []
    for seed in range(6):
        deep(x, seed).realize()
        held.append(GlobalCounters.mem_used)
    assert max(held) <= held[0]


def test_programs_in_pieces_keep_no_graph(all_in_pieces):
    """They are kept, by the hundred; their nodes made each collection of garbage slower."""

    def nodes() -> int:
        gc.collect()
        return sum(type(one) is Node for one in gc.get_objects())

    x = numbers(1, 8, 8).realize()
    before = nodes()
    for seed in range(4):
        assert deep(x, seed).numpy().shape == (8, 8)
    assert nodes() - before < 10


def test_updates_that_were_computed_together_keep_no_graph(on_compiled):
    """A write was among what stayed apart from its own graph: so each step's graph lived on."""
    gate, experts = nn.Linear(4, 2), [nn.Linear(4, 4), nn.Linear(4, 4)]
    optimizer = nn.optim.SGD(nn.state.get_parameters([gate, experts]), lr=0.1)
    held = []
    for seed in range(8):
        x, coins = numbers(seed, 12, 4), random.Random(seed)
        weights = gate(x).softmax(1)
        chosen = [coins.randrange(2) for _ in range(12)]
        parts = [experts[e](x[i]).tanh() * weights[i, e] for i, e in enumerate(chosen)]
        optimizer.zero_grad()
        Tensor.stack(*parts).square().mean().backward()
        optimizer.step()
        held.append(GlobalCounters.mem_used)
    assert max(held) <= held[1]


def test_what_comes_often_gets_a_program_of_its_own(on_compiled):
    x = numbers(0, 3, 3)
    for seed in range(MOST_ALIKE + 1):
        deep(x, seed).realize()
    found = counts(lambda: deep(x, MOST_ALIKE).realize(), FREQUENT + 4)
    assert sum(found) == 1 and found[-1] == 0, found


def test_what_is_another_now_and_then_is_compiled(on_compiled):
    x, found = numbers(0, 3, 3), []
    for seed in range(2 * MOST_ALIKE):
        found += counts(lambda seed=seed: deep(x, seed).realize(), 3)
    assert found == [1, 0, 0] * (2 * MOST_ALIKE), found


def test_a_captured_step_is_one_program(on_compiled):
    x = numbers(0, 3, 3)
    for seed in range(MOST_ALIKE + 2):
        deep(x, seed).realize()
    step = jit(lambda x: deep(x, 60).realize())
    expected = deep(x, 60).numpy()
    for _ in range(4):
        before = GlobalCounters.program_calls
        np.testing.assert_allclose(step(x).numpy(), expected, rtol=1e-4)
    assert GlobalCounters.program_calls - before <= 1


def test_writes_read_what_was_there_before(all_in_pieces):
    a, b = numbers(0, 4, 4), numbers(1, 4, 4)
    was, other = a.numpy(), b.numpy()
    new = (b @ b).exp().sum(0) + a
    a.assign(b * 2 + a.sum(1))
    b.assign(new)
    Tensor.realize(a, b)
    np.testing.assert_allclose(a.numpy(), other * 2 + was.sum(1), rtol=1e-5)
    np.testing.assert_allclose(b.numpy(), np.exp(other @ other).sum(0) + was, rtol=1e-5)


def test_memory_that_is_a_result_is_copied_before_it_is_overwritten(all_in_pieces):
    x, other = numbers(0, 4, 4), numbers(1, 4, 4)
    was, scale = x.numpy(), other.numpy()
    same = Tensor._of(custom(x.node, [x.node], lambda _, g: [g]))
    total = (x @ x).exp().sum(0)
    x.assign(x + 1)
    other.assign(other * 2 + total)
    Tensor.realize(x, other, same, total)
    np.testing.assert_allclose(same.numpy(), was)
    np.testing.assert_allclose(x.numpy(), was + 1)
    np.testing.assert_allclose(other.numpy(), scale * 2 + np.exp(was @ was).sum(0), rtol=1e-5)


def test_parts_that_are_written(all_in_pieces):
    x, rows = numbers(0, 6, 4), numbers(1, 2, 4)
    expected = x.numpy()
    x[1:3] = rows.softmax(1) + x[4:].sum(0)
    x[3] = x[1] * 2
    expected[1:3] = np.exp(rows.numpy()) / np.exp(rows.numpy()).sum(1, keepdims=True) + (
        expected[4:].sum(0))  # fmt: skip
    expected[3] = expected[1] * 2
    np.testing.assert_allclose(x.numpy(), expected, rtol=1e-5)


def test_an_index_out_of_range_in_a_piece(all_in_pieces):
    x, index = numbers(0, 5, 3), Tensor([1, 9])
    with pytest.raises(BoundsError):
        (x.exp().softmax(0)[index].sum(0) + x.max(0)).numpy()
    assert np.isfinite((x.exp().softmax(0)[Tensor([1, 4])].sum(0) + x.max(0)).numpy()).all()


def test_more_pieces_than_programs_are_kept(all_in_pieces, monkeypatch):
    """While a graph's pieces are compiled, its own entry may be dropped."""
    wanted = [Learner().step() for _ in range(2)]
    programs.forget()
    monkeypatch.setattr(programs, "most", 2)
    np.testing.assert_allclose([Learner().step() for _ in range(2)], wanted, rtol=1e-5)


def test_what_reads_a_write_reads_its_value(all_in_pieces):
    x = Tensor([1, 2, 3])
    x.assign(x * 2)
    x.assign(x)
    before = x.clone()
    x.set_data([7, 8, 9])
    assert before.tolist() == [2, 4, 6]


@pytest.mark.parametrize("run", [0, 12])
def test_pieces_of_a_join_are_alike(on_compiled, run):
    """Numbers of two dtypes in random order, with a run of one dtype among them."""
    coins = random.Random(1)

    def step() -> None:
        first = coins.randrange(20 - run)
        pieces = [
            Tensor([[number]], dtype="int32" if narrow else "int64").realize()
            for number in range(20)
            for narrow in [coins.random() < 0.5 or first <= number < first + run]
        ]
        assert Tensor.cat(*pieces).sum().item() == 190

    assert not any(counts(step, STEPS)[2:])


def test_a_program_in_pieces_is_found(all_in_pieces):
    deep(numbers(0, 3, 3), 3).realize()
    found = [p for family in programs._families.values() for p in family.special.values()]
    assert any(isinstance(program, Pieced) for program in found)


def test_frequent_sizes_among_graphs_that_do_not_recur(all_in_pieces):
    """They get a program of their own, not one in pieces, which they would not use."""

    def shares(n: int, powers: int) -> None:
        x = Tensor(np.full((3, n, 4), 0.5, np.float32))
        for _ in range(powers):
            x = x / x.sum(1, keepdim=True)
        assert abs(x.sum().item() - 12) < 1e-3

    shares(4, 2)
    for _ in range(FREQUENT):
        shares(5, 2)
    for powers in range(3, 12):
        shares(5, powers)
    before = GlobalCounters.programs_compiled
    for _ in range(3):
        shares(5, 2)
    assert GlobalCounters.programs_compiled == before + 1


def test_a_structure_without_a_general_program_is_cut_when_it_comes_again(all_in_pieces):
    """Diagonals of two sizes share no program."""

    def shares(n: int) -> None:
        x = Tensor(np.full((n, n), 2.0, np.float32))
        x = x / x.sum(1, keepdim=True)
        assert abs((x / x.sum(0)).diagonal().sum().item() - 1) < 1e-5

    for n in (4, 5, 6):
        shares(n)
    found = [p for family in programs._families.values() for p in family.special.values()]
    # and their own pieces are cut again where n · n becomes one dimension
    assert sum(isinstance(program, Pieced) for program in found) >= 3
