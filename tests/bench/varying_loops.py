"""Rows of `varying`: Python loops, each with a length that no earlier one had."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from minigrad import Tensor, nn
from tests.bench.measure import Row
from tests.bench.peers import Work, installed

ACTIONS, SEEN, HIDDEN = 2, 4, 128  # of a policy, as in PyTorch's example of REINFORCE
CHARACTERS, WIDTH, BATCH = 65, 128, 16
MOST = 100


def rows(threads: int) -> Iterator[Row]:
    """Acting, an episode, a recurrent network as a loop of cells, and loops of writes."""
    seen = np.random.default_rng(0).standard_normal((MOST + 2, 1, SEEN), dtype=np.float32)
    yield Row("REINFORCE: a step of acting, its log-probability kept", Policy(seen).act,
              peers(TorchPolicy, "act", seen, threads))  # fmt: skip
    ours, theirs = Policy(seen), peers(TorchPolicy, "episode", seen, threads)
    for _ in range(4):
        ours.episode()
    yield Row("REINFORCE: an episode of 50 … 100 steps, each length new", ours.episode, theirs)
    ids = np.random.default_rng(1).integers(0, CHARACTERS, (MOST + 3, BATCH), np.int32)
    network, other = Cells(ids), peers(TorchCells, "step", ids, threads)
    for _ in range(4):
        network.step()
    yield Row("LSTM as a loop of 50 … 100 cells, a step of SGD, each length new", network.step,
              other)  # fmt: skip
    for name, write in WRITES.items():
        loop, other = Writes(write), peers(partial(TorchWrites, write), "run", seen, threads)
        for _ in range(4):
            loop.run()
        yield Row(f"{name}, 150 … 300 times, each length new", loop.run, other)


def lengths() -> Iterator[int]:
    """50 … 100, in random order."""
    return itertools.cycle(int(n) for n in np.random.default_rng(0).permutation(51) + 50)


def peers(kind: Any, method: str, data: np.ndarray, threads: int) -> dict[str, Work]:
    """The same by PyTorch."""
    if not installed("torch"):
        return {}
    import torch

    torch.set_num_threads(threads)
    return {"torch": getattr(kind(data), method)}


def counts(out: Any, x: Any, drawn: list[tuple[int, int]]) -> None:
    """A confusion matrix."""
    for i, j in drawn:
        out[i, j] += 1


def rows_of_results(out: Any, x: Any, drawn: list[tuple[int, int]]) -> None:
    """Each result has its row."""
    for i in range(len(drawn)):
        out[i] = x[i] * 2 + 1


def from_the_row_before(out: Any, x: Any, drawn: list[tuple[int, int]]) -> None:
    """A recurrence."""
    for i in range(1, len(drawn)):
        out[i] = out[i - 1] * 0.9 + x[i]


WRITES = {"counts[i, j] += 1 at drawn places": counts, "out[i] = x[i] * 2 + 1": rows_of_results,
          "out[i] = out[i - 1] * 0.9 + x[i]": from_the_row_before}  # fmt: skip
PLACES = 10


class Writes:
    """A loop that writes to parts of an array, which is then read."""

    def __init__(self, write: Callable[..., None]) -> None:
        self.write, self.draws = write, np.random.default_rng(0)
        self.x = self.array(self.draws.standard_normal((300, PLACES), np.float32))
        self.lengths = iter(self.draws.permutation(150).tolist() * 9)

    def array(self, data: np.ndarray) -> Any:
        """A tensor with these numbers."""
        return Tensor(data).realize()

    def zeros(self, *shape: int) -> Any:
        """An array of zeros."""
        return Tensor.zeros(*shape)

    def run(self) -> None:
        """The loop, with the next length."""
        count = next(self.lengths) + 150
        drawn = self.draws.integers(0, PLACES, (count, 2)).tolist()
        out = self.zeros(PLACES if self.write is counts else count, PLACES)
        self.write(out, self.x, drawn)
        out.sum().item()


class TorchWrites(Writes):
    """The same with PyTorch."""

    def __init__(self, write: Callable[..., None], data: np.ndarray) -> None:
        super().__init__(write)

    def array(self, data: np.ndarray) -> Any:
        """A tensor with these numbers."""
        import torch

        return torch.from_numpy(data)

    def zeros(self, *shape: int) -> Any:
        """An array of zeros."""
        import torch

        return torch.zeros(*shape)


class Policy:
    """Two layers; an action is drawn from their softmax."""

    def __init__(self, seen: np.ndarray) -> None:
        self.first, self.second = nn.Linear(SEEN, HIDDEN), nn.Linear(HIDDEN, ACTIONS)
        self.optimizer = nn.optim.SGD(nn.state.get_parameters([self.first, self.second]), lr=0.01)
        self.seen, self.lengths, self.kept = seen, lengths(), list[Tensor]()

    def act(self, number: int = 0) -> None:
        """Draw an action; keep the log-probabilities of the last 100."""
        chances = self.second(self.first(Tensor(self.seen[number])).relu()).softmax(1)
        action = chances.multinomial(1)
        self.kept = [*self.kept[-MOST + 1 :], chances.log().gather(1, action)]
        action.item()

    def episode(self) -> None:
        """Act for the next length, then do a step of SGD on the whole episode."""
        self.kept = []
        for number in range(next(self.lengths)):
            self.act(number)
        loss = Tensor.cat(*[-one * float(n % 7) for n, one in enumerate(self.kept)]).sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        loss.item()


class TorchPolicy:
    """The same with PyTorch."""

    def __init__(self, seen: np.ndarray) -> None:
        import torch

        self.model = torch.nn.Sequential(
            torch.nn.Linear(SEEN, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, ACTIONS)
        )
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.seen, self.lengths, self.kept = seen, lengths(), list[Any]()

    def act(self, number: int = 0) -> None:
        """Draw an action; keep the log-probabilities of the last 100."""
        import torch

        chances = self.model(torch.from_numpy(self.seen[number])).softmax(1)
        action = chances.multinomial(1)
        self.kept = [*self.kept[-MOST + 1 :], chances.log().gather(1, action)]
        action.item()

    def episode(self) -> None:
        """Act for the next length, then do a step of SGD on the whole episode."""
        import torch

        self.kept = []
        for number in range(next(self.lengths)):
            self.act(number)
        loss = torch.cat([-one * float(n % 7) for n, one in enumerate(self.kept)]).sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        loss.item()


class Cells:
    """An embedding of characters, a recurrent cell for each, and the next character."""

    def __init__(self, ids: np.ndarray) -> None:
        self.table, self.cell = nn.Embedding(CHARACTERS, WIDTH), nn.LSTMCell(WIDTH, WIDTH)
        self.output = nn.Linear(WIDTH, CHARACTERS)
        parameters = nn.state.get_parameters([self.table, self.cell, self.output])
        self.optimizer = nn.optim.SGD(parameters, lr=0.01)
        self.ids, self.lengths = ids, lengths()

    def step(self) -> None:
        """A step of SGD on a text of the next length."""
        count = next(self.lengths)
        ids = Tensor(self.ids[: count + 1])
        x, state, hidden = self.table(ids[:-1]), None, list[Tensor]()
        for t in range(count):
            state = self.cell(x[t], state)
            hidden.append(state[0])
        loss = self.output(Tensor.stack(hidden)).cross_entropy(ids[1:], axis=-1)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        loss.item()


class TorchCells:
    """The same with PyTorch."""

    def __init__(self, ids: np.ndarray) -> None:
        import torch

        self.table = torch.nn.Embedding(CHARACTERS, WIDTH)
        self.cell = torch.nn.LSTMCell(WIDTH, WIDTH)
        self.output = torch.nn.Linear(WIDTH, CHARACTERS)
        parts = (self.table, self.cell, self.output)
        self.optimizer = torch.optim.SGD([p for part in parts for p in part.parameters()], lr=0.01)
        self.ids, self.lengths = torch.from_numpy(ids).long(), lengths()

    def step(self) -> None:
        """A step of SGD on a text of the next length."""
        import torch

        count = next(self.lengths)
        ids = self.ids[: count + 1]
        x, state, hidden = self.table(ids[:-1]), None, list[Any]()
        for t in range(count):
            state = self.cell(x[t], state)
            hidden.append(state[0])
        scores = self.output(torch.stack(hidden)).flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(scores, ids[1:].flatten())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        loss.item()
