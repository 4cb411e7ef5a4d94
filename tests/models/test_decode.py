"""Decoding with kept keys and values gives what the whole model gives."""

from __future__ import annotations

import numpy as np
import pytest

from minigrad import GlobalCounters, Tensor, nn
from minigrad.models.decode import Decoder
from minigrad.models.gpt import GPT, GPTConfig

TINY = GPTConfig(layers=2, heads=2, dim=16, context=8, vocabulary=11)


def strong_model(config: GPTConfig) -> GPT:
    """Weights large enough that every position matters."""
    Tensor.manual_seed(1)
    model = GPT(config)
    with Tensor.no_grad():
        for parameter in nn.state.get_parameters(model):
            if parameter.ndim == 2:
                parameter.assign(parameter * 10).realize()
    return model


@pytest.mark.parametrize(
    "rows", [[[3, 1, 4]], [[1], [2]], [[0, 1, 2, 3, 4, 5, 6, 7]], [list(range(10)), [5] * 10]]
)
def test_logits_at_every_position(on_device: str, rows: list[list[int]]) -> None:
    model, generator = strong_model(TINY), np.random.default_rng(0)
    decoder = Decoder(model, rows)
    start, sizes = max(len(rows[0]) - 8, 0), set()
    for _ in range(18):
        if len(decoder.rows[0]) - start > 8:
            start = len(decoder.rows[0]) - 4
        window = [row[start:] for row in decoder.rows]
        wanted = model(Tensor(window)).numpy()[:, -1]
        assert np.abs(wanted).max() > 0.1
        np.testing.assert_allclose(decoder.logits(), wanted, rtol=1e-5, atol=1e-5)
        sizes.add(len(window[0]))
        decoder.append(generator.integers(0, 11, len(rows)).tolist())
    assert sizes >= {4, 5, 6, 7, 8}


def test_a_context_of_one(on_device: str) -> None:
    model = strong_model(GPTConfig(layers=1, heads=1, dim=4, context=1, vocabulary=5))
    decoder = Decoder(model, [[2, 3]])
    for token in (3, 4, 0):
        decoder.rows[0][-1] = token
        wanted = model(Tensor([[token]])).numpy()[:, -1]
        np.testing.assert_allclose(decoder.logits(), wanted, rtol=1e-5, atol=1e-6)
        decoder.append([0])


def test_one_step_serves_all_positions() -> None:
    decoder = Decoder(strong_model(GPTConfig(2, 2, 16, 64, 11)), [[1]])
    for _ in range(4):  # the prompt, a call as it is, one that is captured, a replay
        decoder.logits()
        decoder.append([1])
    before = GlobalCounters.programs_compiled, GlobalCounters.program_calls
    for _ in range(60):
        decoder.logits()
        decoder.append([1])
    assert GlobalCounters.programs_compiled == before[0]
    assert GlobalCounters.program_calls == before[1] + 60
