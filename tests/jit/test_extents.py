"""A captured step with inputs of several sizes: a capture for each, compiled for the first two."""

from __future__ import annotations

import numpy as np
import pytest
from jit.arrays import data

from minigrad import GlobalCounters, Tensor, jit, nn
from minigrad.programs import programs

SIZES = (6, 6, 6, 9, 9, 9, 4, 4, 4, 6, 31, 31, 31, 9)


def trainer(device):
    """A training step of a small network, with the same weights each time."""
    Tensor.manual_seed(5)
    layers = [nn.Linear(7, 12), nn.Linear(12, 3)]
    parameters = nn.state.get_parameters(layers)
    optimizer = nn.optim.Adam([p.to(device).realize() for p in parameters], lr=0.05)
    weights = optimizer.params

    def step(x, y):
        hidden = (x @ weights[0].T + weights[1]).relu()
        loss = (hidden @ weights[2].T + weights[3]).cross_entropy(y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.realize()

    return step


def batch(size, device):
    rng = np.random.default_rng(size)
    x = rng.standard_normal((size, 7)).astype(np.float32)
    y = rng.integers(0, 3, size).astype(np.int32)
    return Tensor(x, device=device).realize(), Tensor(y, device=device).realize()


def test_every_size_trains_alike(on_device):
    """For any order of sizes, the captured step gives the same losses as the function."""
    plain, captured = trainer(on_device), jit(trainer(on_device))
    expected = [plain(*batch(size, on_device)).item() for size in SIZES]
    given = [captured(*batch(size, on_device)).item() for size in SIZES]
    np.testing.assert_allclose(given, expected, rtol=2e-5)
    assert expected[0] != expected[1]


def test_from_the_third_size_on_nothing_is_compiled(compiled):
    programs.forget()
    step = jit(trainer(compiled))
    for size in (6, 6, 6, 9, 9, 9):
        step(*batch(size, compiled)).item()
    before = GlobalCounters.programs_compiled
    for size in (4, 4, 4, 31, 31, 31, 6, 9, 100):
        step(*batch(size, compiled)).item()
    assert GlobalCounters.programs_compiled == before


def test_other_extents_are_captures_of_their_own(on_device):
    """The third call with a size does not run the function."""
    seen = []
    step = jit(lambda x: seen.append(x.shape) or x.sum(0))
    for size in (2, 2, 2, 3, 3, 3, 2, 3, 2):
        given = data(size, 4)
        np.testing.assert_allclose(step(Tensor(given)).numpy(), given.sum(0), rtol=1e-6)
    assert seen == [(2, 4)] * 2 + [(3, 4)] * 2
    step.reset()
    step(Tensor(data(3, 4)))
    assert len(seen) == 5


@pytest.mark.parametrize("count", [20])
def test_old_captures_make_room(reference, count):
    """The captures that were used last are kept."""
    seen = []
    step = jit(lambda x: seen.append(len(x)) or x + 1)
    for size in (1, 1, *(n for n in range(2, count) for _ in range(2))):
        step(Tensor(data(size)))
    seen.clear()
    for size in (count - 1, 1, count - 2, 2):
        step(Tensor(data(size)))
    assert seen == [2]
