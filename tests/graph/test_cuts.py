"""General graphs in which varying dimensions merge: their parts, and what these store."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from devices import REFERENCE

from minigrad import GlobalCounters, Tensor, nn
from minigrad.graph.canonical import canonicalize
from minigrad.graph.general import General, generalize
from minigrad.graph.loop import stages_of
from minigrad.graph.node import Node, Op, topological
from minigrad.programs import programs

SIZES = ((3, 5), (4, 9), (7, 2))


def ones(*shape: int) -> Tensor:
    return Tensor.ones(*shape, device=REFERENCE).contiguous().realize()


def rows_and_texts(m: int, n: int) -> list[Tensor]:
    """Rows of all texts, and then of each text again, beside what was there before."""
    scores = ones(m, n, 3) @ ones(3, 4)
    rows = scores.reshape(-1, 4)
    again = rows.cumsum(1).reshape(m, n, 4)
    return [rows.sum(), (again + scores).sum()]


def attention(m: int, n: int) -> list[Tensor]:
    """Scores (m, n, n) that are needed before and after a merge."""
    x = ones(m, n, 3) @ ones(3, 4)
    scores = x @ x.transpose(1, 2)
    back = scores.sum(2).reshape(-1).cumsum(0).reshape(m, n, 1)
    return [(back * scores).sum()]


def general(of: Callable[[int, int], list[Tensor]]) -> General:
    calls = [canonicalize([x.node for x in of(*sizes)]) for sizes in SIZES]
    return generalize(calls[-1], [one.cells for one in calls])


def parts(found: General) -> list[list[Node]]:
    """What the stages compute, from what earlier ones have stored."""
    stages = [needs for needs, _ in stages_of(found.graph.roots)]
    last = {*found.graph.roots} - {node for needs in stages for node in needs}
    return [topological(needs, (), lambda node: () if node.op is Op.COPY else node.src)
            for needs in (*stages, last)]  # fmt: skip


def products(found: General) -> list[int]:
    """How many sums of products each part has."""
    return [
        sum(node.op is Op.SUM and node.src[0].op is Op.MUL for node in part)
        for part in parts(found)
    ]  # fmt: skip


def test_what_a_part_left_in_memory_is_not_computed_again() -> None:
    found = general(rows_and_texts)
    assert products(found) == [1, 0, 0]
    assert sum(node.op is Op.CUMSUM for part in parts(found) for node in part) == 1


def test_scores_of_attention_are_computed_again() -> None:
    """Their bounds multiply, and a kernel that computes them again does not store them."""
    found = general(attention)
    assert [count > 0 for count in products(found)] == [True, False, True]
    for root in found.graph.roots:
        varying = [extent for extent in root.shape if not isinstance(extent, int)]
        assert len(varying) == len({*varying}), root.shape


class Texts:
    """A layer of attention with a head and an embedding, trained on texts."""

    def __init__(self, device: str) -> None:
        rng = np.random.default_rng(5)
        shapes = (11, 8), (8, 24), (8, 11)
        self.weights = [
            Tensor(rng.standard_normal(shape).astype(np.float32), device=device, requires_grad=True)
            for shape in shapes
        ]  # fmt: skip
        self.optimizer = nn.optim.AdamW(self.weights, lr=0.01)

    def step(self, words: np.ndarray) -> float:
        table, joint, head = self.weights
        given = Tensor(words, device=table.device)
        q, k, v = (given.embedding(table) @ joint).chunk(3, dim=-1)
        logits = q.scaled_dot_product_attention(k, v, is_causal=True) @ head
        loss = logits.reshape(-1, 11).cross_entropy(given.roll(-1, 1).reshape(-1))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def test_training_on_texts_of_other_numbers_and_lengths(compiled: str, reference: str) -> None:
    """From the fourth batch on at the latest, nothing is compiled; in-place writes come last."""
    rng = np.random.default_rng(2)
    sizes = ((3, 5), (4, 9), (7, 2), (6, 11), (2, 8), (9, 3), (5, 7))
    words = [rng.integers(0, 11, some).astype(np.int32) for some in sizes]
    one, other, counts = Texts(compiled), Texts(reference), list[int]()
    exact = [other.step(some) for some in words]
    programs.forget()
    for some, expected in zip(words, exact, strict=True):
        np.testing.assert_allclose(one.step(some), expected, rtol=1e-5)
        counts.append(GlobalCounters.programs_compiled)
    assert counts[3] == counts[-1], counts


def test_what_is_written_in_place_is_read_before(compiled: str) -> None:
    """The memory of an input that is read with another shape is copied, if it is written."""
    for n, m in (*SIZES, (6, 11), (2, 8)):
        data = np.random.default_rng(n).standard_normal((n, m)).astype(np.float32)
        x = Tensor(data, device=compiled).realize()
        sums = x.reshape(-1).cumsum(0)
        again = sums.reshape(n, m) + x
        x.assign(2 * x + again.sum(0))
        Tensor.realize(sums, again, x)
        exact = data.cumsum().reshape(n, m)
        for found, right in (
            (sums, exact.reshape(-1)), (again, exact + data), (x, 2 * data + (exact + data).sum(0)),
        ):  # fmt: skip
            np.testing.assert_allclose(found.numpy(), right, rtol=1e-4, atol=1e-4)


def test_arrays_without_elements_in_other_shapes(compiled: str) -> None:
    """A dimension that varies beside one of 0 has no rows from which a bound would follow."""
    for count in (16, 53, 7, 30):
        x = Tensor.zeros(count, 0, device=compiled).contiguous()
        assert x.reshape(0).realize().shape == (0,)


def test_an_input_with_another_shape_and_back(compiled: str) -> None:
    """Each is the input's memory; the second is not looked for in the first."""
    for n, m in (*SIZES, (6, 11)):
        data = np.random.default_rng(n).standard_normal((n, m)).astype(np.float32)
        x = Tensor(data, device=compiled).reshape(-1).reshape(n, m, 1).reshape(-1)
        sums = x.cumsum(0) + x.reshape(n, m).cumsum(1).reshape(-1)
        exact = data.reshape(-1).cumsum() + data.cumsum(1).reshape(-1)
        np.testing.assert_allclose(sums.numpy(), exact, rtol=1e-4, atol=1e-4)
