"""Drawing the next token."""

from __future__ import annotations

import numpy as np
import pytest

from minigrad.models.sampling import Sampling, choose, penalized, probabilities

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))


def test_probabilities() -> None:
    assert np.allclose(probabilities(LOGITS), [0.1, 0.4, 0.2, 0.3])
    squares = np.array([0.01, 0.16, 0.04, 0.09])
    assert np.allclose(probabilities(LOGITS, temperature=0.5), squares / squares.sum())
    assert np.allclose(probabilities(LOGITS, top_k=2), [0, 4 / 7, 0, 3 / 7])
    assert np.allclose(probabilities(LOGITS, top_k=9), [0.1, 0.4, 0.2, 0.3])
    assert np.allclose(probabilities(LOGITS, top_p=0.5), [0, 4 / 7, 0, 3 / 7])
    assert np.allclose(probabilities(LOGITS, top_p=0.3), [0, 1, 0, 0])
    assert np.allclose(probabilities(LOGITS, top_p=1.0), [0.1, 0.4, 0.2, 0.3])
    assert np.allclose(probabilities(LOGITS, temperature=1e-300), [0, 1, 0, 0])


def test_large_logits_do_not_overflow() -> None:
    assert np.allclose(probabilities(np.array([1e30, -1e30, 1e30], np.float32)), [0.5, 0, 0.5])


def test_choices_follow_the_probabilities() -> None:
    generator = np.random.default_rng(0)
    counts = np.bincount([choose(LOGITS, generator) for _ in range(20_000)])
    assert np.allclose(counts / 20_000, [0.1, 0.4, 0.2, 0.3], atol=0.02)
    assert {choose(LOGITS, generator, top_k=2) for _ in range(200)} == {1, 3}
    assert {choose(LOGITS, generator, temperature=0) for _ in range(20)} == {1}


def test_a_seed_gives_the_same_choices() -> None:
    first, second = (np.random.default_rng(3) for _ in range(2))
    for _ in range(50):
        assert choose(LOGITS, first) == choose(LOGITS, second)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((-0.1, None, None), "temperature is -0.1"),
        ((float("nan"), None, None), "temperature is nan"),
        ((1.0, 0, None), "top_k is 0"),
        ((1.0, None, 0.0), "top_p is 0"),
        ((1.0, None, 1.5), "top_p is 1.5"),
    ],
)
def test_settings_that_make_no_sense(
    settings: tuple[float, int | None, float | None], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(*settings)


def test_repetition_is_penalized() -> None:
    logits = np.array([2.0, -2.0, 1.0, 4.0], np.float32)
    assert np.allclose(penalized(logits, [0, 1, 0], 2.0), [1.0, -4.0, 1.0, 4.0])
    generator = np.random.default_rng(0)
    greedy = Sampling(0.0, repetition_penalty=8.0)
    assert greedy.choose(logits, generator, []) == 3
    assert greedy.choose(logits, generator, [3]) == 0
    with pytest.raises(ValueError, match="repetition_penalty is 0"):
        Sampling(repetition_penalty=0.0)
