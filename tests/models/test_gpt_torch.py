"""A GPT against itself on REF in float64, and that against a PyTorch program.

Every gradient at the start and ten losses of training are compared, with the defaults of
models/gpt.py. Gradients are compared per tensor: element by element, float32 misses 1e-4 on some of
a GPT's weights in any framework.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from devices import REFERENCE

from minigrad import Context, Tensor, nn
from minigrad.models.gpt import GPT, GPTConfig
from minigrad.models.train import MatrixAdamW, TrainingPlan, make_schedule, make_step

from .test_training_torch import Judge

CONFIG = GPTConfig(layers=2, heads=2, dim=32, context=16, vocabulary=29)
PLAN = TrainingPlan(steps=10, batch=4, lr=3e-3, warmup=3)
Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]


@pytest.fixture(scope="module")
def weights() -> Arrays:
    """Weights in float64 that float32 represents exactly; none is 0, though biases start there."""
    generator = np.random.default_rng(5)
    with Context(DEVICE=REFERENCE):
        shapes = {k: v.shape for k, v in nn.state.get_state_dict(GPT(CONFIG)).items()}
    values = {}
    for name, shape in shapes.items():
        center = 1.0 if ".ln_" in f".{name}" and name.endswith("weight") else 0.0
        value = center + 0.1 * generator.standard_normal(shape)
        values[name] = value.astype(np.float32).astype(np.float64)
    return values


def batch(step: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    generator = np.random.default_rng((9, step))
    ids = generator.integers(0, CONFIG.vocabulary, (PLAN.batch, CONFIG.context + 1))
    return ids[:, :-1].astype(np.int32), ids[:, 1:].astype(np.int32)


def with_weights(weights: Arrays, dtype: type) -> GPT:
    """A model on the default device whose parameters are `weights` in another precision."""
    model = GPT(CONFIG)
    for name, value in weights.items():
        *path, last = name.split(".")
        place: Any = model
        for step in path:
            place = place[int(step)] if step.isdecimal() else getattr(place, step)
        setattr(place, last, Tensor(value.astype(dtype), requires_grad=True))
    return model


def gradients(model: GPT) -> Arrays:
    ids, targets = batch(0)
    model.loss(Tensor(ids), Tensor(targets)).backward()
    tensors = nn.state.get_state_dict(model)
    grads = [tensor.grad for tensor in tensors.values()]
    assert all(grad is not None for grad in grads)
    grads[0].realize(*grads[1:])
    return {name: grad.numpy() for name, grad in zip(tensors, grads, strict=True)}


def losses(model: GPT) -> list[float]:
    optimizer = MatrixAdamW(nn.state.get_parameters(model), PLAN)
    step = make_step(model, optimizer, PLAN.clip)
    result = []
    for number in range(PLAN.steps):
        optimizer.set_lr(make_schedule(PLAN)(number))
        ids, targets = batch(number)
        result.append(float(step(Tensor(ids), Tensor(targets)).item()))
    return result


def logits(model: GPT) -> np.ndarray[Any, Any]:
    return model(Tensor(batch(0)[0])).numpy()


@pytest.fixture(scope="module")
def reference(weights: Arrays) -> dict[str, Any]:
    """Results of REF in float64."""
    with Context(DEVICE=REFERENCE):
        return {
            "logits": logits(with_weights(weights, np.float64)),
            "gradients": gradients(with_weights(weights, np.float64)),
            "losses": losses(with_weights(weights, np.float64)),
        }


def split_key_biases(name: str, value: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """The keys' biases on their own: a shift of all keys shifts all scores of a query equally, so
    their true gradient is 0.
    """
    if not name.endswith("c_attn.bias"):
        return {name: value}
    q, k, v = np.split(value, 3)
    return {f"{name} (keys)": k, f"{name} (others)": np.concatenate([q, v])}


def compare_gradients(got: Arrays, wanted: Arrays, relative: float, key_biases: float) -> None:
    assert got.keys() == wanted.keys()
    for name in wanted:
        parts = split_key_biases(name, wanted[name])
        for part, value in split_key_biases(name, got[name]).items():
            assert value.shape == parts[part].shape
            if part.endswith("(keys)"):
                assert np.abs(value).max() <= key_biases, part
            else:
                error = np.abs(value - parts[part]).max()
                assert error <= relative * np.abs(parts[part]).max(), f"{part}: {error}"


def test_logits_equal_the_reference(
    device: str, weights: Arrays, reference: dict[str, Any]
) -> None:
    with Context(DEVICE=device):
        got = logits(with_weights(weights, np.float32))
    assert np.abs(got - reference["logits"]).max() <= 1e-5 * np.abs(reference["logits"]).max()


def test_gradients_equal_the_reference(
    device: str, weights: Arrays, reference: dict[str, Any]
) -> None:
    with Context(DEVICE=device):
        got = gradients(with_weights(weights, np.float32))
    compare_gradients(got, reference["gradients"], 1e-5, 1e-8)


def test_ten_losses_equal_the_reference(
    device: str, weights: Arrays, reference: dict[str, Any]
) -> None:
    with Context(DEVICE=device):
        got = losses(with_weights(weights, np.float32))
    assert got == pytest.approx(reference["losses"], rel=1e-5)
    assert reference["losses"][0] != pytest.approx(reference["losses"][-1], rel=1e-2)


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[compare]'")


def test_the_reference_equals_pytorch(
    torch: Any, weights: Arrays, reference: dict[str, Any]
) -> None:
    judge, (ids, targets) = Judge(torch, CONFIG, weights), (torch.tensor(x) for x in batch(0))
    wanted = judge.logits(ids).detach().numpy()
    assert np.abs(reference["logits"] - wanted).max() <= 1e-12 * np.abs(wanted).max()

    judge.loss(ids, targets.long()).backward()
    grads = {name: tensor.grad.numpy() for name, tensor in judge.p.items()}
    compare_gradients(reference["gradients"], grads, 1e-11, 1e-14)
