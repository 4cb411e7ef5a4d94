"""Decoding with cached keys and values gives what the whole model gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from minigrad import GlobalCounters, Tensor, nn
from minigrad.models.decode import ContextFull, Decoder
from minigrad.models.gpt import GPT, GPTConfig
from minigrad.models.gpt_config import llama
from minigrad.models.sizing import cache_bytes

TINY = GPTConfig(layers=2, heads=2, dim=16, context=8, vocabulary=11)
TINY_LONG = replace(TINY, context=54)


def strong_model(config: GPTConfig) -> GPT:
    """A model with weights so large that every position matters."""
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
    np.testing.assert_allclose(decoder.logits(), decoder.logits(), rtol=1e-5, atol=1e-5)  # twice


def test_a_context_of_one(on_device: str) -> None:
    model = strong_model(GPTConfig(layers=1, heads=1, dim=4, context=1, vocabulary=5))
    decoder = Decoder(model, [[2]])
    for token in (3, 4, 0):
        decoder.append([token])
        wanted = model(Tensor([[token]])).numpy()[:, -1]
        for _ in range(2):
            np.testing.assert_allclose(decoder.logits(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("config", [TINY_LONG, llama(2, 4, 16, 54, 11, key_heads=2)])
def test_more_tokens_are_read_in_one_pass(config: GPTConfig, on_device: str) -> None:
    model, generator = strong_model(config), np.random.default_rng(0)
    features, passes = model.features, list[int]()

    def noted(ids: Tensor, *more: Any) -> Tensor:
        passes.append(int(ids.shape[1]))
        return features(ids, *more)

    model.features = noted  # type: ignore[method-assign]
    decoder = Decoder(model, [[3, 1, 4]])
    decoder.logits()
    for count in (9, 6, 1, 20, 11):  # the last one has no room for its padding
        decoder.extend(generator.integers(0, 11, count).tolist())
        passes.clear()
        got = decoder.logits()
        several = [width for width in passes if width > 1]
        assert several == {9: [8], 6: [8], 20: [32]}.get(count, [])
        wanted = model(Tensor([decoder.rows[0]])).numpy()[:, -1]
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_one_step_serves_all_positions() -> None:
    decoder = Decoder(strong_model(GPTConfig(2, 2, 16, 64, 11)), [[1]])
    for _ in range(4):  # the prompt, an ordinary call, a captured one, a replay
        decoder.logits()
        decoder.append([1])
    before = GlobalCounters.programs_compiled, GlobalCounters.program_calls
    for _ in range(60):
        decoder.logits()
        decoder.append([1])
    assert GlobalCounters.programs_compiled == before[0]
    assert GlobalCounters.program_calls == before[1] + 60


def test_layers_share_programs() -> None:
    """Compiling a deep model takes no longer than compiling a shallow one."""
    for layers in (3, 5):
        decoder = Decoder(strong_model(GPTConfig(layers, 2, 16, 24, 13)), [[3, 1, 4]])
        before = GlobalCounters.programs_compiled
        for _ in range(3):
            decoder.logits()
            decoder.append([1])
    assert GlobalCounters.programs_compiled == before


def test_the_first_tokens_are_kept() -> None:
    model = strong_model(TINY)
    decoder = Decoder(model, [[3, 1, 4, 1, 5, 9, 2, 6]], keep=2)
    for token in (5, 3):
        decoder.logits()
        decoder.append([token])
    # at the ninth token the window was cut to 3, 1, 6, 5; the tenth came after it
    wanted = model(Tensor([[3, 1, 6, 5, 3]])).numpy()[:, -1]
    np.testing.assert_allclose(decoder.logits(), wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"keep: expected 0 … 4, half of .*, got 5"):
        Decoder(model, [[1]], keep=5)


def test_an_error_where_the_context_ends() -> None:
    model = strong_model(TINY)
    with pytest.raises(ContextFull, match="9 tokens are more than the model's context of 8"):
        list(model.generate([1, 2, 3], 9, context_policy="error"))
    assert len(list(model.generate([1, 2, 3], 6, context_policy="error"))) == 6
    with pytest.raises(ValueError, match="context_policy: expected roll or error, got 'forget'"):
        model.generate([1], 1, context_policy="forget")


def test_several_tokens_at_once_and_the_bytes_of_the_cache() -> None:
    config = llama(2, 4, 16, 16, 11, key_heads=2)
    model = strong_model(config)
    decoder = Decoder(model, [[3, 1]])
    assert decoder.nbytes() == cache_bytes(config, itemsize=4) == 2 * 2 * 2 * 16 * 4 * 4
    decoder.logits()
    decoder.extend([4, 1, 5])
    wanted = model(Tensor([[3, 1, 4, 1, 5]])).numpy()[:, -1]
    np.testing.assert_allclose(decoder.logits(), wanted, rtol=1e-5, atol=1e-5)
