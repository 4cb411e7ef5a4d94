"""What a training prints, validates and saves: the loop around the steps."""

from __future__ import annotations

import json
import math
import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minigrad import Tensor
from minigrad.models import gpt_commands, inspection
from minigrad.models.gpt import GPT, GPTConfig
from minigrad.models.gpt_checkpoint import load_training, save_checkpoint
from minigrad.models.interrupt import Interruption, Stopped
from minigrad.models.metrics import KEYS, Metrics
from minigrad.models.sizing import flops_per_token
from minigrad.models.text import Windows
from minigrad.models.tokenizer import CharacterTokenizer
from minigrad.models.train import TrainingPlan, TrainingRun, evenly, finish, validate
from minigrad.models.utilization import utilization

pytestmark = pytest.mark.usefixtures("brief")
TINY = GPTConfig(layers=1, heads=2, dim=16, context=8, vocabulary=11)
IDS = np.random.default_rng(0).integers(0, 11, 400).astype(np.int32)
SMALL = ("--layers", "1", "--heads", "2", "--dim", "16", "--context", "8", "--batch", "2")
TEXT, SHORT = Windows(IDS, 8), Windows(IDS[:80], 8)


class Uniform:
    """A model that has learned nothing, counts the tokens it reads, and calls `seen` each time."""

    def __init__(self, seen: Callable[[], None] = lambda: None) -> None:
        self.tokens, self.seen = 0, seen

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        self.tokens += ids.numel()
        self.seen()
        return Tensor(2.5)


def test_validation_reads_no_token_twice() -> None:
    model = Uniform()
    assert validate(model, SHORT, 2400, 48) == pytest.approx(2.5)
    assert model.tokens == 9 * 8  # of 79 tokens that have a next one


@pytest.mark.parametrize(
    ("length", "most", "batch", "least", "expected"),
    [(470_000, 2400, 48, 1, (2400, 48)),  # Shakespeare: as many as planned
     (470_000, 480, 48, 1, (480, 48)),
     (1840, 2400, 48, 1, (28, 28)),
     (64 * 49 + 1, 2400, 48, 1, (50, 25)),  # batches of one size: one window overlaps
     (65, 2400, 48, 1, (1, 1)),
     (65, 2400, 48, 4, (4, 4))],  # a window for each rank
)  # fmt: skip
def test_how_many_windows(
    length: int, most: int, batch: int, least: int, expected: tuple[int, int]
) -> None:
    windows = Windows(np.zeros(length, np.int32), 64)
    assert evenly(windows, most, batch, least) == expected


def a_run(**plan: Any) -> TrainingRun:
    Tensor.manual_seed(1)
    return TrainingRun(GPT(TINY), TrainingPlan(**{"steps": 2, "batch": 2, "warmup": 1, **plan}))


def test_the_steps_are_saved_before_the_last_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    run, events = a_run(), []

    def validated(*_: Any) -> float:
        events.append("validated")
        return 2.0

    monkeypatch.setattr("minigrad.models.train.validate", validated)
    finish(run, TEXT, SHORT, Metrics(), lambda: events.append(f"saved step {run.done}"))
    assert events == ["saved step 2", "validated"]


@pytest.mark.parametrize("steps", [2, 4])
def test_a_signal_ends_a_validation(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both in the last validation and in one between steps."""
    run, metrics = a_run(steps=steps, validate_every=2), Metrics()
    interruption, saved = Interruption(), []

    def notice() -> None:
        interruption.number = signal.SIGINT

    slow = Uniform(notice)
    monkeypatch.setattr(run.division, "model", slow)
    with pytest.raises(Stopped, match=f"stopped after step 2 of {steps}"):
        finish(run, TEXT, TEXT, metrics, lambda: saved.append(len(metrics.history)), interruption)
    assert slow.tokens == 7 * 8  # one batch, not all 49 windows
    assert saved[-1] == len(metrics.history) == 2
    assert metrics.history[-1]["val_loss"] is None


def test_a_signal_in_the_last_validation_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*arguments: Any) -> float:
        os.kill(os.getpid(), signal.SIGTERM)
        return validate(*arguments)

    monkeypatch.setattr("minigrad.models.train.validate", slow)
    text, path = tmp_path / "text.txt", tmp_path / "gpt.safetensors"
    text.write_text("to be, or not to be: that is the question.\n" * 20)
    with pytest.raises(Stopped, match=r"all steps are done, and .*gpt\.safetensors is saved"):
        gpt_commands.main(["--text", str(text), "--checkpoint", str(path), *SMALL, "--steps", "2"])
    _, _, resumable = load_training(GPT, path)
    assert resumable is not None and len(resumable.history) == resumable.facts["step"] == 2


def line(step: int, loss: float, val_loss: float | None) -> dict[str, Any]:
    return {**dict.fromkeys(KEYS), "step": step, "loss": loss, "val_loss": val_loss}


EARLIER = [line(1, 3.0, 2.0), line(2, 1.0, 2.1), line(3, 1.0, None)]


@pytest.mark.parametrize("history", [[], EARLIER])
def test_overfitting_is_watched_across_a_pause(
    history: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The best loss and the first rise came before the pause, the second rise comes after it."""
    run, metrics = a_run(steps=4), Metrics()
    metrics.history += history
    run.done = 3
    monkeypatch.setattr(run, "advance", lambda windows: (setattr(run, "done", 4), (1.0, 0.1))[1])
    monkeypatch.setattr("minigrad.models.train.validate", lambda *_: 2.2)
    finish(run, TEXT, SHORT, metrics)
    said = capsys.readouterr().out
    assert ("was 2.0000 at step 1 and is 2.2000 now" in said) is bool(history)
    assert ("stop earlier (--steps 1), more text, dropout" in said) is bool(history)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a text and a model of it."""
    monkeypatch.chdir(tmp_path)
    words = "to be, or not to be: that is the question.\n" * 20
    Path("text.txt").write_text(words)
    tokenizer = CharacterTokenizer.of(words)
    model = GPT(replace(TINY, vocabulary=len(tokenizer)))
    save_checkpoint(Path("old.safetensors"), model, tokenizer)
    return tmp_path


def rates(path: Path) -> list[float]:
    return [json.loads(line)["lr"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("flags", "peak"),
    [((), 3e-3), (("--weights", "old.safetensors"), 1e-4),
     (("--weights", "old.safetensors", "--lr", "2e-4"), 2e-4)],
)  # fmt: skip
def test_fine_tuning_is_careful(
    flags: tuple[str, ...], peak: float, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpt_commands.main(["--text", "text.txt", *SMALL, *flags, "--steps", "20", "--metrics", "m"])
    found = rates(folder / "m")
    assert max(found) == pytest.approx(peak)
    assert found.index(max(found)) == (1 if flags else 9)  # warm-up: a tenth of the steps, or half
    said = capsys.readouterr().out.splitlines()
    first = next(number for number, line in enumerate(said) if line.startswith("step 1/20"))
    assert said[first - 1].startswith("before the first step: validation ") is bool(flags)


def test_help_tells_both_learning_rates(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpt_commands.main(["train", "--help"])
    assert "(default: 0.003, with --weights 0.0001)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("ranks", "said"),
    [(1, "80% of the speed of a large product"),
     (4, "20% of the speed of 4 large products, one on each device")],
)  # fmt: skip
def test_utilization_is_that_of_all_ranks(
    ranks: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = Metrics()
    metrics.record(step=1, loss=1.0, tokens_per_s=8.0)
    peak = 10.0 * flops_per_token(TINY, TINY.context)
    monkeypatch.setattr("minigrad.models.utilization.product_rate", lambda device: peak)
    assert utilization(TINY, TINY.context, metrics, ranks).endswith(said)


@pytest.mark.parametrize(
    ("loss", "text"),
    [(4450442363336130560.0, "4.45e+18"), (2.90914, "2.9091"), (123.4, "123.4000")],
)
def test_a_huge_loss_is_readable(
    loss: float, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run(steps=1)
    monkeypatch.setattr(run, "advance", lambda windows: (setattr(run, "done", 1), (loss, 0.1))[1])
    monkeypatch.setattr("minigrad.models.train.validate", lambda *_: loss)
    finish(run, TEXT, SHORT, Metrics())
    step, validation = capsys.readouterr().out.splitlines()
    assert step.startswith(f"step 1/1  loss {text}  ")
    assert validation.startswith(f"step 1: validation {text}, training {text} (mean of")


def test_gradient_norms_are_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "minigrad.models.inspection.gradient_norms",
        lambda config, *_: [2.88, 2.4] if config.residual else [7.1, 0.071],
    )
    inspection.show_gradient_norms(TINY, TEXT, TrainingPlan())
    _, first, last, residual, without, plain = capsys.readouterr().out.splitlines()
    assert first.split() == ["block", "1", "2.88", "7.1"]
    assert last.split() == ["block", "2", "2.4", "0.071"]
    assert len(first) == len(last)
    assert residual == (
        "with residual connections: the first block's norm is 1.2 times as large as the last's: "
        "all blocks learn at a similar rate"
    )
    assert without.startswith("without: the first block's norm is 100 times as large as the last's")
    assert without.endswith("would explode")
    with_them, without_them = map(float, re.findall(r"([\d.e-]+) times", plain))
    assert 0.1 < with_them < 10 and without_them < 1e-4


@pytest.mark.parametrize(
    ("norms", "said"),
    [([1.0, 2.0, 3.0], "norm is 3 times smaller than the last's: all blocks learn at a similar"),
     ([1.0, 7.0, 49.0], "49 times smaller than the last's, a factor of 7 per block backward"),
     ([1.0, 7.0, 49.0], "with more blocks, gradients would vanish"),
     ([1e6, 1e3, 1.0], "a factor of 1e+03 per block backward: with more blocks, gradients"),
     ([0.0, 1.0], "a block gets no gradient"),
     ([math.inf, 1.0], "gradients explode"),
     ([2.0], "only one block, so nothing to compare")],
)  # fmt: skip
def test_the_explanation_follows_from_the_norms(norms: list[float], said: str) -> None:
    assert said in inspection.told_of_norms(norms)


def test_the_training_loss_is_a_mean(capsys: pytest.CaptureFixture[str]) -> None:
    run, metrics = a_run(steps=3), Metrics()
    val_loss = finish(run, TEXT, SHORT, metrics)
    losses = metrics.curve("loss")[1]
    said = capsys.readouterr().out.splitlines()
    mean = sum(losses) / 3
    assert said[-1] == (
        f"step 3: validation {val_loss:.4f}, training {mean:.4f} (mean of the last 3 batches)"
    )
    # the bar advances before the validation, and the last batch's own loss is printed once
    assert said[-2].startswith(f"step 3/3  loss {losses[-1]:.4f}")
    assert sum(f"{losses[-1]:.4f}" in line for line in said) == 1
