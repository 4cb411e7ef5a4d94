"""Drawing the next token, against the same rules written in numpy."""

from __future__ import annotations

import numpy as np
import pytest

from minigrad import Context, Tensor, jit
from minigrad.models.sampling import Sampler, Sampling
from minigrad.tensor.random import threefry

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))
# settings for comparisons; none cuts exactly at a partial sum of these logits
CASES = [
    Sampling(1.0),
    Sampling(0.5),
    Sampling(1.0, 7),
    Sampling(2.0, None, 0.73),
    Sampling(0.7, 50, 0.9),
    Sampling(1.0, 3, 0.99),
    Sampling(0.9, None, 0.31, 1.7),
    Sampling(1.3, 20, 0.8, 1.7),
    Sampling(0.0, None, None, 1.7),
    Sampling(0.0),
]


def in_order(
    logits: np.ndarray, settings: Sampling, seen: set[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Kept tokens and their probabilities, the likeliest first."""
    x = logits.astype(np.float32)
    for token in seen:
        by = np.float32(settings.repetition_penalty)
        x[token] = x[token] / by if x[token] > 0 else x[token] * by
    distance = (x.max() - x).astype(np.float64)
    order = np.argsort(distance, kind="stable")
    if settings.temperature == 0:
        return order[:1], np.ones(1)
    weights = np.exp(-distance[order] / settings.temperature)
    weights[settings.top_k or len(weights) :] = 0
    weights /= weights.sum()
    weights[np.cumsum(weights) - weights >= (settings.top_p or 1.0)] = 0
    kept = weights > 0
    return order[kept], weights[kept] / weights.sum()


def share(seed: int, number: int, count: int) -> float:
    """The random number between 0 and 1 of one draw."""
    words = (Tensor([w], dtype="uint32").raw for w in (seed, 0, number, count))
    first, second, *counter = words
    high, low = (
        Tensor._of(node).item() for node in threefry((first, second), (counter[0], counter[1]))
    )
    return (int(high) * 2.0**20 + (int(low) >> 12) + 0.5) * 2.0**-52


def expected(logits: np.ndarray, settings: Sampling, seen: set[int], part: float) -> int:
    """The token at `part` of the probabilities' sum, by ids; ties with the last token come last."""
    tokens, chances = in_order(logits, settings, seen)
    cut = settings.top_k or settings.top_p
    nearer = np.sort(tokens[chances > chances[-1] * (1 + 1e-9)] if cut else tokens)
    order = np.concatenate([nearer, np.sort(tokens[len(nearer) :])])
    by_id = dict(zip(tokens, chances, strict=True))
    until = np.cumsum([by_id[token] for token in order])
    assert np.abs(until - part).min() > 1e-6, "too near to a boundary to tell"
    return int(order[np.searchsorted(until, part, side="right")])


@pytest.mark.parametrize("vocabulary", [11, 700])
def test_each_draw(device: str, vocabulary: int) -> None:
    """Each row has its own settings; some logits are equal; several draws."""
    generator = np.random.default_rng(vocabulary)
    logits = np.round(generator.normal(size=(len(CASES), vocabulary)) * 2, 1).astype(np.float32)
    with Context(DEVICE=device):
        sampler = Sampler(CASES, vocabulary, seed=9, numbers=range(5, 5 + len(CASES)))
        seen = [{1, 2, vocabulary - 1} for _ in CASES]
        sampler.see(seen)
        draw = jit(sampler)
        for count in range(4):
            tokens = draw(Tensor(logits)).tolist()
            for row, settings in enumerate(CASES):
                part = share(9, 5 + row, count)
                assert tokens[row] == expected(logits[row], settings, seen[row], part), settings
                seen[row].add(tokens[row])


def chances(settings: Sampling, draws: int = 1000) -> np.ndarray:
    """How often each token of LOGITS is drawn in `draws` rows."""
    sampler = Sampler([settings] * draws, len(LOGITS))
    tokens = sampler(Tensor(LOGITS).expand(draws, len(LOGITS)))
    return np.bincount(tokens.numpy(), minlength=len(LOGITS)) / draws


def test_choices_follow_the_probabilities() -> None:
    assert np.allclose(chances(Sampling()), [0.1, 0.4, 0.2, 0.3], atol=0.06)
    squares = np.array([0.01, 0.16, 0.04, 0.09])
    assert np.allclose(chances(Sampling(0.5)), squares / squares.sum(), atol=0.06)
    assert np.allclose(chances(Sampling(1.0, 2)), [0, 4 / 7, 0, 3 / 7], atol=0.06)
    assert np.allclose(chances(Sampling(1.0, 9)), [0.1, 0.4, 0.2, 0.3], atol=0.06)
    assert np.allclose(chances(Sampling(1.0, None, 0.5)), [0, 4 / 7, 0, 3 / 7], atol=0.06)
    for sure in (Sampling(0.0), Sampling(1.0, 1), Sampling(1.0, None, 0.3), Sampling(1e-300)):
        assert np.array_equal(chances(sure, 50), [0, 1, 0, 0])


def test_equal_logits() -> None:
    """Of the tokens as likely as the last one kept, those with the lowest ids are kept."""
    for settings, kept in ((Sampling(1.0, 3), 3), (Sampling(1.0, None, 0.29), 3)):
        sampler = Sampler([settings] * 500, 10)
        assert set(sampler(Tensor.zeros(500, 10)).tolist()) == set(range(kept))


@pytest.mark.parametrize("zeros", [[-0.0, 0.0, -0.0], [0.0, -0.0, 0.0], [-0.0, -0.0, 0.0]])
def test_zeros_are_equal(zeros: list[float], device: str) -> None:
    every = [Sampling(0.0), Sampling(0.3, 1), Sampling(1.0, None, 1e-9), Sampling(1.0)]
    with Context(DEVICE=device):
        for count in (3, 299):
            sampler = Sampler(every, count)
            tokens = sampler(Tensor(zeros * (count // 3) + [-0.0] * (count % 3)).expand(4, count))
            assert tokens.tolist()[:3] == [0] * 3 and 0 <= tokens.tolist()[3] < count


def test_the_highest_temperature_draws_nothing_impossible() -> None:
    sampler = Sampler([Sampling(float("inf"))] * 200, 3)
    tokens = sampler(Tensor([-float("inf"), 0.0, 9.0]).expand(200, 3)).tolist()
    assert set(tokens) == {1, 2} and 60 < tokens.count(1) < 140


def test_large_logits_do_not_overflow() -> None:
    sampler = Sampler([Sampling(1.0), Sampling(1.0, 3, 0.9)] * 50, 3)
    logits = Tensor([1e30, -1e30, 1e30]).expand(100, 3)
    assert set(sampler(logits).tolist()) == {0, 2}
    masked = Tensor([-float("inf"), 0.0, -float("inf")]).expand(100, 3)
    assert set(sampler(masked).tolist()) == {1}


def test_a_seed_gives_the_same_choices() -> None:
    logits = Tensor(np.random.default_rng(0).normal(size=(2, 5000)).astype(np.float32))

    def draws(seed: int, threads: int = 1) -> list[list[int]]:
        with Context(THREADS=threads):
            sampler = Sampler([Sampling(), Sampling(1.0, 90, 0.8)], 5000, seed)
            return [sampler(logits).tolist() for _ in range(8)]

    assert draws(3) == draws(3) == draws(3, threads=2) != draws(4)
    assert draws(1) != draws(1 << 32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((-0.1, None, None), "temperature: expected 0 .greedy. or more, got -0.1"),
        ((float("nan"), None, None), "temperature: .*, got nan"),
        ((1.0, 0, None), "top_k: expected at least 1, got 0"),
        ((1.0, None, 0.0), "top_p: expected above 0, at most 1, got 0"),
        ((1.0, None, 1.5), "top_p: expected above 0, at most 1, got 1.5"),
    ],
)
def test_invalid_settings(
    settings: tuple[float, int | None, float | None], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(*settings)


def test_a_greedy_row_beside_rows_that_draw() -> None:
    logits = Tensor([[1.0, 1.1, 1.0, 0.9]] * 3)
    sampler = Sampler([Sampling(0.0), Sampling(1.0), Sampling(2.0)], 4, seed=3)
    assert {sampler(logits).tolist()[0] for _ in range(30)} == {1}


def test_repetition_is_penalized() -> None:
    logits = Tensor([[2.0, -2.0, 1.0, 4.0]])
    sampler = Sampler([Sampling(0.0, repetition_penalty=8.0)], 4)
    assert [sampler(logits).item() for _ in range(4)] == [3, 0, 2, 3]
    with pytest.raises(ValueError, match="repetition_penalty: expected above 0, got 0"):
        Sampling(repetition_penalty=0.0)
