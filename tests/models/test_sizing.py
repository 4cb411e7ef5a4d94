"""The arithmetic of sizes: against models that are built, and the article's figures."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from devices import CPU, REFERENCE, kind

from minigrad import Context, GlobalCounters, Tensor, nn
from minigrad.models import network, sizing
from minigrad.models.errors import InputError
from minigrad.models.gpt import GPT, GPTConfig
from minigrad.models.gpt_config import llama
from minigrad.models.train import MatrixAdamW, TrainingPlan, make_step, parameter_count

CONFIGS = [
    GPTConfig(2, 2, 16, 8, 11), GPTConfig(2, 2, 16, 8, 11, bias=False, tied=False),
    llama(2, 4, 16, 8, 11, key_heads=2, feed_forward=24),
    llama(2, 4, 16, 8, 11, feed_forward=24, experts=4, active=2, tied=True),
    GPTConfig(1, 2, 16, 8, 11, experts=3, active=1),
    llama(1, 2, 16, 8, 11, hidden_bias=True, experts=3, active=1, shared=8),
]  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS)
def test_parameters_are_those_of_the_model(config: GPTConfig) -> None:
    assert sizing.parameters(config).total == parameter_count(GPT(config))


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080),
     ("gpt2-xl", 1_557_611_200), ("gpt3", 174_604_259_328), ("smollm2", 134_515_008),
     ("llama-7b", 6_738_415_616), ("mixtral", 46_702_792_704)],
)  # fmt: skip
def test_presets_have_the_published_sizes(preset: str, parameters: int) -> None:
    assert sizing.parameters(GPTConfig.preset(preset)).total == parameters


def test_the_figures_of_the_article() -> None:
    gpt3 = GPTConfig.preset("gpt3")
    n = sizing.parameters(gpt3).total
    assert round(n / 1e9) == 175 and round(2 * n / 1e9) == 349
    assert sizing.devices(2 * n, sizing.H100) == 5
    assert sizing.cache_bytes(gpt3) == 9_663_676_416 == 9 * 2**30
    assert 3e12 * 0.9 < sizing.state_bytes(gpt3) < 6e12
    assert sizing.duration_text(100_000 * 120.0) == "4.6 months"
    assert sizing.flops_per_token(gpt3) == pytest.approx(6 * n, rel=0.02)


def test_memory_that_was_measured() -> None:
    """Memory of a model's weights and AdamW's state: within 5 % of the formula."""
    config = GPTConfig(layers=2, heads=4, dim=256, context=128, vocabulary=2000)
    gc.collect()  # otherwise other tests' leftovers would be freed meanwhile
    before = GlobalCounters.mem_used
    model = GPT(config)
    weights = GlobalCounters.mem_used - before
    assert weights == pytest.approx(4 * sizing.parameters(config).total, rel=0.05)
    optimizer = MatrixAdamW(nn.state.get_parameters(model), TrainingPlan())
    for tensor in nn.state.get_state_dict(optimizer).values():
        tensor.numpy()  # moments of zeros have no memory until they are read
    state = GlobalCounters.mem_used - before
    assert state == pytest.approx(12 * sizing.parameters(config).total, rel=0.05)
    assert sizing.state_bytes(config, 4) == 16 * sizing.parameters(config).total
    assert optimizer.params and Tensor


@pytest.mark.parametrize(("config", "batch"), [
    (GPTConfig(4, 4, 128, 64, 68), 12), (GPTConfig(2, 4, 128, 64, 3000), 12),
    (llama(3, 4, 128, 64, 68, key_heads=2, feed_forward=352, tied=True), 12),
    (GPTConfig(4, 4, 128, 8, 68), 2),  # gradients need more than activations
    (GPTConfig(2, 4, 128, 64, 68, experts=8, active=2), 12),
    (llama(2, 4, 128, 64, 68, feed_forward=352, tied=True, experts=8, active=1), 12),
])  # fmt: skip
def test_memory_of_training(config: GPTConfig, batch: int, compiled: str) -> None:
    """All memory of a training, activations included: within 5 % on a CPU, where arrays between
    kernels share one arena. Another device may have a buffer for each, of certain sizes only.
    """
    if kind(compiled) == REFERENCE:
        pytest.skip("the memory of REF is not counted")
    generator = np.random.default_rng(0)
    shape = (2, batch, config.context)
    both = generator.integers(0, config.vocabulary, shape).astype(np.int32)
    with Context(DEVICE=compiled):
        ids, targets = map(Tensor, both)
        gc.collect()  # the model of the test before
        before = GlobalCounters.mem_used
        model = GPT(config)
        optimizer = MatrixAdamW(nn.state.get_parameters(model), TrainingPlan())
        step = make_step(model, optimizer, 1.0)
        for _ in range(3):
            GlobalCounters.reset()
            with Tensor.train():
                step(ids, targets).item()
        measured = GlobalCounters.mem_peak - before
    predicted = sizing.peak_bytes(config, batch, 4)
    if kind(compiled) == CPU:
        assert predicted == pytest.approx(measured, rel=0.05)
    else:
        assert 0.95 * predicted < measured < 1.5 * predicted


@pytest.mark.parametrize("model", ["gpt3", "mixtral", "mini"])
def test_the_script(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    sizing.main([model])
    said = capsys.readouterr().out
    assert "parameters" in said and ("the article's figures" in said) == (model == "gpt3")
    if model == "gpt3":
        for figure in ("174.6 B", "349 GB", "9.66 GB = 9.0 GiB", "4.6 months", "144 B"):
            assert figure in said
    network.main([model])
    assert "InfiniBand" in capsys.readouterr().out


def test_invalid_flags(capsys: pytest.CaptureFixture[str]) -> None:
    for main in (sizing.main, network.main):
        with pytest.raises(InputError, match="unknown preset 'gpt9'"):
            main(["gpt9"])
        with pytest.raises(SystemExit):
            main(["--utilization", "2"])
        assert "--utilization: expected at most 1, got 2" in capsys.readouterr().err


def test_state_of_a_copy_is_that_of_the_paper() -> None:
    """ZeRO (2020), figure 1: 7.5 B parameters on 64 devices, in GB."""
    sizes = [sizing.state_bytes_of_device(7.5e9, 64, zero) / 1e9 for zero in range(4)]
    assert sizes == pytest.approx([120, 31.4, 16.6, 1.88], rel=3e-3)
