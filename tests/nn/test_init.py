"""`nn.init`: bounds and moments of random values; exact values of the others."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minigrad import Tensor, dtypes, nn
from minigrad.errors import DTypeError, ShapeError

init = nn.init
SHAPE = (200, 40, 3)  # 120 inputs, 600 outputs

UNIFORM = {  # the bound
    "uniform": (lambda t: init.uniform_(t, -3, 3), 3.0),
    "xavier": (lambda t: init.xavier_uniform_(t, gain=2), 2 * math.sqrt(6 / 720)),
    "kaiming": (lambda t: init.kaiming_uniform_(t, a=1), math.sqrt(3 / 120)),
    "kaiming of outputs": (
        lambda t: init.kaiming_uniform_(t, mode="fan_out", nonlinearity="relu"),
        math.sqrt(6 / 600),
    ),
}
NORMAL = {  # mean and deviation
    "normal": (lambda t: init.normal_(t, 2, 0.5), 2, 0.5),
    "xavier": (lambda t: init.xavier_normal_(t), 0, math.sqrt(2 / 720)),
    "xavier with a gain": (lambda t: init.xavier_normal_(t, 3), 0, 3 * math.sqrt(2 / 720)),
    "kaiming of a slope": (lambda t: init.kaiming_normal_(t, a=1), 0, 1 / 120**0.5),
    "kaiming": (lambda t: init.kaiming_normal_(t, nonlinearity="tanh"), 0, 5 / 3 / 120**0.5),
}


def weight(*shape):
    return nn.Parameter(Tensor.zeros(*shape))


@pytest.mark.parametrize("name", UNIFORM)
def test_uniform(name, on_device):
    print("seed 21")
    Tensor.manual_seed(21)
    fill, bound = UNIFORM[name]
    tensor = weight(*SHAPE)
    assert fill(tensor) is tensor and tensor.requires_grad
    values = tensor.numpy()
    assert 0.99 * bound < np.abs(values).max() <= bound * (1 + 1e-6)
    assert abs(values.mean()) < 0.02 * bound
    assert abs(values.std() / (bound / math.sqrt(3)) - 1) < 0.02


@pytest.mark.parametrize("name", NORMAL)
def test_normal(name, on_device):
    print("seed 22")
    Tensor.manual_seed(22)
    fill, mean, std = NORMAL[name]
    values = fill(weight(*SHAPE)).numpy()
    assert abs(values.mean() - mean) < 0.03 * std
    assert abs(values.std() / std - 1) < 0.02
    assert np.abs(values - mean).max() > 3 * std


@pytest.mark.parametrize(("mean", "std", "a", "b"), [(0, 1, -2, 2), (1, 0.5, 0, 1.25),
                                                     (0, 1, -8, 8), (0, 0.02, -2, 2)])  # fmt: skip
def test_truncated_normal(mean, std, a, b, on_device):
    print("seed 23")
    Tensor.manual_seed(23)
    values = init.trunc_normal_(weight(*SHAPE), mean, std, a, b).numpy()
    assert a <= values.min() and values.max() <= b
    low, high = (a - mean) / std, (b - mean) / std
    density = [math.exp(-x * x / 2) / math.sqrt(2 * math.pi) for x in (low, high)]
    mass = (math.erf(high / math.sqrt(2)) - math.erf(low / math.sqrt(2))) / 2
    share = (density[0] - density[1]) / mass
    variance = 1 + (low * density[0] - high * density[1]) / mass - share * share
    assert abs(values.mean() - (mean + std * share)) < 0.03 * std
    assert abs(values.std() / (std * math.sqrt(variance)) - 1) < 0.02


def test_inverse_error_function(on_device):
    y = np.concatenate([np.linspace(-0.99999, 0.99999, 1001), [0, 1e-6, -1e-3]]).astype(np.float32)
    x = init._erfinv(Tensor(y)).numpy()
    np.testing.assert_allclose([math.erf(value) for value in x], y, atol=2e-7)


@pytest.mark.parametrize("shape", [(5, 5), (3, 8), (8, 3), (4, 2, 3)])
def test_orthogonal(shape, on_device):
    print("seed 24")
    Tensor.manual_seed(24)
    matrix = init.orthogonal_(weight(*shape), gain=2).numpy().reshape(shape[0], -1)
    rows, columns = matrix.shape
    gram = matrix @ matrix.T if rows <= columns else matrix.T @ matrix
    np.testing.assert_allclose(gram, 4 * np.eye(min(rows, columns)), atol=1e-5)


def test_what_is_not_drawn(on_device):
    tensor = Tensor.rand(2, 3, dtype=dtypes.float64)
    assert init.zeros_(tensor).tolist() == [[0, 0, 0]] * 2
    assert init.ones_(tensor).tolist() == [[1, 1, 1]] * 2
    assert init.constant_(tensor, 0.5).tolist() == [[0.5] * 3] * 2
    assert init.eye_(tensor).tolist() == [[1, 0, 0], [0, 1, 0]]
    assert tensor.dtype is dtypes.float64
    layer = nn.Linear(3, 2)
    nn.Sequential(layer).apply(
        lambda module: init.zeros_(module.weight) if isinstance(module, nn.Linear) else None
    )
    assert not layer.weight.numpy().any() and layer.weight.requires_grad


def test_tensors_without_elements_stay(on_device):
    for fill in (init.uniform_, init.normal_, init.trunc_normal_):
        assert fill(weight(0, 5)).shape == (0, 5)
    for fill in (init.xavier_uniform_, init.xavier_normal_, init.kaiming_uniform_,
                 init.kaiming_normal_):  # fmt: skip
        for shape in ((0, 5), (5, 0), (0, 0)):
            assert fill(weight(*shape)).shape == shape
    assert init.kaiming_normal_(weight(0, 5), mode="fan_out").shape == (0, 5)
    assert nn.Linear(0, 3).bias.tolist() == [0, 0, 0]


def test_integers_are_not_drawn():
    """The numbers were cut off: a weight of zeros."""
    tensor = Tensor.ones(3, 4, dtype="int32")
    for fill in (init.uniform_, init.normal_, init.trunc_normal_, init.orthogonal_,
                 init.kaiming_uniform_, init.xavier_normal_):  # fmt: skip
        with pytest.raises(DTypeError, match="expected a float tensor, got int32"):
            fill(tensor)
    assert tensor.tolist() == [[1] * 4] * 3
    assert init.eye_(tensor).tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]


def test_gains_are_pytorchs():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    for name in ("linear", "conv2d", "sigmoid", "tanh", "relu", "leaky_relu", "selu"):
        assert init.calculate_gain(name) == torch.nn.init.calculate_gain(name)
    assert init.calculate_gain("leaky_relu", 0.3) == torch.nn.init.calculate_gain("leaky_relu", 0.3)


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"calculate_gain\('gelu'\): expected one of leaky_relu"):
        init.calculate_gain("gelu")
    with pytest.raises(ShapeError, match="use zeros_, normal_ or uniform_ for a bias"):
        init.xavier_uniform_(weight(3))
    with pytest.raises(ValueError, match="'fan_in' or 'fan_out'"):
        init.kaiming_normal_(weight(3, 3), mode="in")
    for fill in (init.eye_, init.orthogonal_):
        with pytest.raises(ShapeError, match="expected"):
            fill(weight(3))
    with pytest.raises(ValueError, match="a < b"):
        init.trunc_normal_(weight(3), a=2, b=2)
