"""Steps whose program is known run it as it is, and give what they give without that."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest

from minigrad import Context, GlobalCounters, Tensor, nn, program
from minigrad.errors import BoundsError
from minigrad.program import programs
from minigrad.tensor import plan

SIDE = 6


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of roots of the graphs in which loops were looked for."""
    found: list[int] = []
    search = plan.with_loops

    def counted(roots, *given):
        found.append(len(roots))
        return search(roots, *given)

    monkeypatch.setattr(plan, "with_loops", counted)
    return found


class Session:
    """Steps of equal structure that differ in who holds, reads, writes and differentiates what."""

    def __init__(self, seed: int) -> None:
        self.coins, numbers = random.Random(seed), np.random.default_rng(seed)
        self.w, self.v, self.m = (
            Tensor(numbers.standard_normal((SIDE, SIDE), np.float32)).realize() for _ in range(3)
        )
        self.w.requires_grad = self.v.requires_grad = True
        self.m.requires_grad = False
        self.x = Tensor(numbers.standard_normal((SIDE, SIDE), np.float32)).realize()
        self.kept: list[Tensor] = []  # whatever may be read or differentiated later

    def forward(self) -> Tensor:
        hidden = (self.x @ self.w + self.m).tanh()
        return ((hidden @ self.v).sigmoid() - 0.25).square().mean()

    def step(self) -> list[float]:
        """One step of several kinds; returns what is read."""
        names = [name for name in dir(self) if name.startswith("by_")]
        loss = getattr(self, self.coins.choice(names))()
        for leaf in (self.w, self.v):
            if leaf.grad is not None and leaf.requires_grad:
                with Tensor.no_grad():
                    leaf.assign(leaf - 0.1 * leaf.grad)
        if self.coins.random() < 0.7:
            self.w.grad = self.v.grad = None
        read = [loss, self.w.sum(), self.m.sum()]
        if self.coins.random() < 0.5:
            read += self.kept
        del self.kept[: self.coins.randrange(3)]
        return [one.sum().item() for one in read]

    def by_gradient(self) -> Tensor:
        return self.forward().backward()

    def by_gradient_of_one(self) -> Tensor:
        self.v.requires_grad = False
        loss = self.forward().backward()
        self.v.requires_grad = True
        return loss

    def by_values(self) -> Tensor:
        with Tensor.no_grad():
            return self.forward()

    def by_a_reader_of_old_values(self) -> Tensor:
        self.kept.append((self.w * self.v + self.m).exp().sum(axis=0))
        return self.forward().backward()

    def by_a_view(self) -> Tensor:
        self.kept += [self.w.detach(), self.m[1:3]]
        return self.forward().backward()

    def by_two_of_one_node(self) -> Tensor:
        self.kept += [self.x * self.w, self.x * self.w]
        return self.forward().backward()

    def by_a_write_before(self) -> Tensor:
        self.m.assign(self.m * 0.9 + self.x)
        return self.forward().backward()

    def by_a_write_to_a_view(self) -> Tensor:
        self.m[2].assign(self.m[3] + 1)
        return self.forward().backward()

    def by_a_kept_loss(self) -> Tensor:
        self.kept.append(self.forward())
        return self.kept[-1].backward()

    def by_a_gradient_of_memory(self) -> Tensor:
        loss = self.forward().realize()
        return loss.backward()

    def by_random_numbers(self) -> Tensor:
        self.m.assign(self.m + Tensor.rand(SIDE, SIDE))
        return self.forward().backward()


@pytest.mark.parametrize("seed", range(6))
def test_steps_of_equal_structure(compiled, reference, seed, searches, monkeypatch):
    def run(device: str) -> list[list[float]]:
        with Context(DEVICE=device):
            Tensor.manual_seed(seed)
            session = Session(seed)
            return [session.step() for _ in range(40)]

    found = run(compiled)
    few = len(searches)
    monkeypatch.setattr(program, "known_program", lambda roots, order: None)
    wanted = run(reference)
    assert few < len(searches) - few, "no program was found as it is"
    for step, (one, other) in enumerate(zip(found, wanted, strict=True)):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-4, err_msg=f"step {step}")


def train(steps: int) -> Callable[[], None]:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    optimizer = nn.optim.AdamW(model.parameters(), lr=0.01)
    x = Tensor.ones(3, 4).realize()

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    for _ in range(steps):
        step()
    return step


def test_loops_are_not_looked_for_in_a_known_program(compiled, searches):
    with Context(DEVICE=compiled):
        step = train(2)
        searches.clear()
        step()
    assert not searches


def test_a_loop_with_as_many_nodes_as_a_known_program(compiled, searches):
    """Sizes are only a hint: each length of the loop still becomes the same program."""

    def run(length: int) -> float:
        h = x
        for _ in range(length):
            h = h * 0.5 + x
        return float(h.sum().item())

    with Context(DEVICE=compiled):
        x = Tensor.ones(5).realize()
        for length in (150, 160):
            run(length)
        plan._unchanged.update(range(2000))
        GlobalCounters.reset()
        for length in (170, 180, 190):
            assert run(length) == pytest.approx(10, rel=1e-5)
        assert GlobalCounters.programs_compiled == 0
        plan._unchanged.clear()


def test_an_index_out_of_range_in_a_known_program(compiled, searches):
    with Context(DEVICE=compiled):
        table, index = Tensor.arange(12.0).reshape(4, 3).realize(), Tensor([1, 2]).realize()

        def step() -> float:
            rows = (table.gather(0, index.reshape(2, 1).expand(2, 3)) * 2 + 1).tanh().exp().sin()
            return float((rows.softmax(-1) * rows.cos().square()).sum().item())

        first = step()
        assert step() == first
        searches.clear()
        index.assign(Tensor([1, 9]))
        index.realize()
        with pytest.raises(BoundsError):
            step()
        index.assign(Tensor([1, 2]))
        assert step() == first


def test_other_numbers_in_a_known_structure(compiled):
    with Context(DEVICE=compiled):
        programs.forget()
        x = Tensor.arange(40.0).realize()

        def step(length: int) -> Tensor:
            part = x[1 : 1 + length]
            return ((part * 2 + 1).tanh() + (part - 3).exp().sigmoid() + part.softmax(0)).sum()

        for length in (5, 6, 7, 8, 7, 6, 9, 9):
            part = np.arange(1.0, 1 + length)
            e = np.exp(part - part.max())
            wanted = np.tanh(part * 2 + 1) + 1 / (1 + np.exp(-np.exp(part - 3))) + e / e.sum()
            np.testing.assert_allclose(step(length).item(), wanted.sum(), rtol=1e-5)
