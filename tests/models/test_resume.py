"""A training stopped by a person or a signal continues as if it had not been stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minigrad import Tensor, nn
from minigrad.models import gpt_commands
from minigrad.models.errors import InputError
from minigrad.models.gpt import GPT, GPTConfig
from minigrad.models.gpt_checkpoint import load_training, save_checkpoint
from minigrad.models.interrupt import EndedAtOnce, Interruption, Stopped
from minigrad.models.metrics import Metrics
from minigrad.models.text import Windows
from minigrad.models.tokenizer import CharacterTokenizer
from minigrad.models.train import TrainingPlan, TrainingRun, finish

pytestmark = pytest.mark.usefixtures("brief")
SCRIPT = Path(__file__).resolve().parents[2] / "models" / "gpt.py"
TINY = GPTConfig(layers=1, heads=2, dim=16, context=8, vocabulary=11, dropout=0.2)
PLAN = TrainingPlan(steps=20, batch=4, warmup=4, validate_every=7, validation_windows=8,
                    final_windows=16, seed=3)  # fmt: skip
WORDS = "to be, or not to be: that is the question.\n" * 50
SMALL = ("--text", "text.txt", "--layers", "1", "--heads", "2", "--dim", "16", "--context", "8",
         "--batch", "2", "--dropout", "0.1", "--metrics", "m.jsonl")  # fmt: skip


class AfterStep(Metrics):
    """Metrics that give an interruption its signal once a step is done."""

    def __init__(self, step: int, interruption: Interruption) -> None:
        super().__init__()
        self.step, self.interruption = step, interruption

    def record(self, **figures: Any) -> None:
        super().record(**figures)
        if figures["step"] == self.step:
            self.interruption.number = signal.SIGTERM


def curves(metrics: Metrics) -> list[tuple[Any, ...]]:
    return [(m["step"], m["loss"], m["val_loss"], m["lr"]) for m in metrics.history]


@pytest.mark.parametrize("stop", [1, 2, 10, 14])
def test_bitwise_the_losses_of_an_uninterrupted_run(
    on_device: str, stop: int, tmp_path: Path
) -> None:
    ids = np.random.default_rng(0).integers(0, 11, 400).astype(np.int32)
    windows = Windows(ids, TINY.context)
    Tensor.manual_seed(5)
    whole, model = Metrics(), GPT(TINY)
    last = finish(TrainingRun(model, PLAN), windows, windows, whole)
    weights = {name: tensor.numpy() for name, tensor in nn.state.get_state_dict(model).items()}

    Tensor.manual_seed(5)
    path, tokenizer = tmp_path / "model.safetensors", CharacterTokenizer("abcdefghijk")
    run, interruption = TrainingRun(GPT(TINY), PLAN), Interruption()
    first = AfterStep(stop, interruption)
    with pytest.raises(Stopped, match=f"stopped after step {stop} of 20"):
        finish(
            run, windows, windows, first,
            lambda: save_checkpoint(path, run.model, tokenizer, run, first), interruption,
        )  # fmt: skip
    assert len(first.history) == stop

    Tensor.manual_seed(99)
    Tensor.rand(7).realize()  # numbers drawn meanwhile must not matter
    model, _, resumable = load_training(GPT, path)
    assert resumable is not None and curves(first) == [
        (m["step"], m["loss"], m["val_loss"], m["lr"]) for m in resumable.history
    ]
    run, second = TrainingRun(model, PLAN), Metrics()
    run.restore(resumable.optimizer, resumable.facts)
    assert finish(run, windows, windows, second) == last
    assert curves(first) + curves(second) == curves(whole)
    for name, tensor in nn.state.get_state_dict(model).items():
        assert (tensor.numpy() == weights[name]).all(), name


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start the script in a process of its own, in which Ctrl-C is not ignored."""
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *arguments], cwd=folder, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def wait_for_steps(process: subprocess.Popen[str], path: Path, steps: int) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() or path.read_bytes().count(b"\n") < steps:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def losses(path: Path) -> list[tuple[int, float]]:
    return [(m["step"], m["loss"]) for m in map(json.loads, path.read_text().splitlines())]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_resume(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(WORDS)
    metrics = tmp_path / "m.jsonl"
    process = start(tmp_path, *SMALL, "--steps", "100000")
    wait_for_steps(process, metrics, 3)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in errors and "stopping after this step" in errors
    first = losses(metrics)
    done = len(first)
    command = f"python {SCRIPT} train --resume gpt.safetensors --metrics m.jsonl"
    assert f"stopped after step {done} of 100000; to resume: {command}\n" in errors

    # a few more steps, which are not in the checkpoint, and half a line
    with metrics.open("a") as file:
        file.write(json.dumps({"step": done + 1, "loss": 1.0}) + '\n{"step": ')
    process = start(tmp_path, "train", "--resume", "gpt.safetensors", "--metrics", "m.jsonl")
    wait_for_steps(process, metrics, done + 3)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert f"resuming after step {done} of 100000" in output and "Traceback" not in errors
    both = losses(metrics)
    assert both[:done] == first and [step for step, _ in both] == list(range(1, len(both) + 1))
    assert f"stopped after step {len(both)}" in errors

    process = start(tmp_path, "--resume", "gpt.safetensors", "--steps", str(len(both)))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and f"has finished all its {len(both)} steps" in errors


def test_a_second_signal_ends_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(EndedAtOnce), Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.number == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint of three steps and the text of its training."""
    folder = tmp_path_factory.mktemp("unfinished")
    (folder / "text.txt").write_text(WORDS)
    (folder / "other.txt").write_text(WORDS.upper())
    process = start(folder, *SMALL, "--steps", "3")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return folder


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--context", "16"], "--context is 16, but the model in gpt.safetensors has 8"),
     (["--dim", "32"], "--dim is 32, but the model"),
     (["--text", "other.txt"], "trained on a different text than other.txt"),
     ([], "has finished all its 3 steps: give a larger --steps"),
     (["--steps", "5", "--metrics", "other.txt"], "is not a record of training")],
)  # fmt: skip
def test_trainings_that_cannot_be_resumed(
    unfinished: Path, flags: list[str], message: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(unfinished)
    before = {path.name: path.read_bytes() for path in unfinished.iterdir()}
    with pytest.raises(InputError, match=message):
        gpt_commands.main(["--resume", "gpt.safetensors", *flags])
    assert {path.name: path.read_bytes() for path in unfinished.iterdir()} == before


def test_a_model_without_training_state_cannot_be_resumed(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "f", GPT(TINY), CharacterTokenizer("abcdefghijk"))
    (tmp_path / "text.txt").write_text(WORDS)
    with pytest.raises(InputError, match="no training state"):
        gpt_commands.main(
            ["--resume", str(tmp_path / "f"), "--text", str(tmp_path / "text.txt"),
             "--checkpoint", str(tmp_path / "g")]
        )  # fmt: skip
