"""Layers against PyTorch's: names and shapes of parameters, results, gradients, statistics."""

from __future__ import annotations

import numpy as np
import pytest

from minigrad import Tensor, jit, nn
from minigrad.errors import ShapeError
from minigrad.nn import state

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
tnn = torch.nn

# name → (ours, PyTorch's, shape of the input)
LAYERS = {
    "Linear": (lambda: nn.Linear(5, 3), lambda: tnn.Linear(5, 3), (4, 2, 5)),
    "Linear without bias": (lambda: nn.Linear(5, 3, bias=False),
                            lambda: tnn.Linear(5, 3, bias=False), (5,)),
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3, 2, 1, groups=2),
               lambda: tnn.Conv1d(4, 6, 3, 2, 1, groups=2), (2, 4, 9)),
    "Conv2d": (lambda: nn.Conv2d(3, 4, (3, 2), padding=(1, 0), dilation=2),
               lambda: tnn.Conv2d(3, 4, (3, 2), padding=(1, 0), dilation=2), (2, 3, 7, 8)),
    "Conv2d same": (lambda: nn.Conv2d(3, 4, 4, padding="same", bias=False),
                    lambda: tnn.Conv2d(3, 4, 4, padding="same", bias=False), (2, 3, 7, 8)),
    "Conv2d reflect": (lambda: nn.Conv2d(3, 4, 3, padding=(2, 1), padding_mode="reflect"),
                       lambda: tnn.Conv2d(3, 4, 3, padding=(2, 1), padding_mode="reflect"),
                       (2, 3, 5, 6)),
    "Conv2d circular": (lambda: nn.Conv2d(3, 4, 3, padding="same", padding_mode="circular"),
                        lambda: tnn.Conv2d(3, 4, 3, padding="same", padding_mode="circular"),
                        (3, 5, 6)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(4, 6, 3, 2, 1, 1, 2),
                        lambda: tnn.ConvTranspose1d(4, 6, 3, 2, 1, 1, 2), (2, 4, 5)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(3, 4, 3, stride=(1, 2), dilation=2),
                        lambda: tnn.ConvTranspose2d(3, 4, 3, stride=(1, 2), dilation=2),
                        (2, 3, 4, 5)),
    "LayerNorm": (lambda: nn.LayerNorm((3, 5)), lambda: tnn.LayerNorm((3, 5)), (4, 3, 5)),
    "LayerNorm without bias": (lambda: nn.LayerNorm(5, bias=False),
                               lambda: tnn.LayerNorm(5, bias=False), (4, 5)),
    "RMSNorm": (lambda: nn.RMSNorm(5, eps=1e-5), lambda: tnn.RMSNorm(5, eps=1e-5), (4, 5)),
    "GroupNorm": (lambda: nn.GroupNorm(2, 6), lambda: tnn.GroupNorm(2, 6), (3, 6, 4, 5)),
    "InstanceNorm": (lambda: nn.InstanceNorm(4), lambda: tnn.InstanceNorm2d(4), (3, 4, 4, 5)),
    "InstanceNorm with weight": (lambda: nn.InstanceNorm(4, affine=True),
                                 lambda: tnn.InstanceNorm1d(4, affine=True), (3, 4, 7)),
    "BatchNorm": (lambda: nn.BatchNorm(4), lambda: tnn.BatchNorm2d(4), (3, 4, 5, 2)),
    "BatchNorm of vectors": (lambda: nn.BatchNorm(4, momentum=None),
                             lambda: tnn.BatchNorm1d(4, momentum=None), (6, 4)),
    "BatchNorm without weight": (lambda: nn.BatchNorm(4, affine=False, track_running_stats=False),
                                 lambda: tnn.BatchNorm2d(4, affine=False,
                                                         track_running_stats=False),
                                 (3, 4, 5, 2)),
}  # fmt: skip
STATEFUL = [name for name in LAYERS if name.startswith("BatchNorm")]


def perturbed(layer, generator):
    """PyTorch's layer with random parameters (norms start with ones); its state as Tensors."""
    found = {}
    for name, value in layer.state_dict().items():
        if value.dtype.is_floating_point:
            value.copy_(torch.tensor(generator.uniform(0.5, 1.5, tuple(value.shape))))
        found[name] = Tensor(value.numpy())
    return found


def close(found, wanted, what=""):
    np.testing.assert_allclose(found, wanted.detach().numpy(), rtol=2e-4, atol=2e-5, err_msg=what)


@pytest.mark.parametrize(
    ("name", "training"), [*((n, False) for n in LAYERS), *((n, True) for n in STATEFUL)]
)
def test_equals_pytorch(name, training, on_device):
    make, make_theirs, shape = LAYERS[name]
    generator = np.random.default_rng(7)
    theirs = make_theirs().train(training)
    ours = make()
    state.load_state_dict(ours, perturbed(theirs, generator))  # strict: equal names and shapes
    params = dict(theirs.named_parameters())
    assert set(params) == {
        n for n, t in state.get_state_dict(ours).items() if t.requires_grad is not False
    }
    for _ in range(3 if name in STATEFUL else 1):
        x = generator.standard_normal(shape).astype(np.float32)
        tx, mx = torch.tensor(x, requires_grad=True), Tensor(x, requires_grad=True)
        with Tensor.train(training):
            y, ty = ours(mx), theirs(tx)
            weights = generator.standard_normal(tuple(ty.shape)).astype(np.float32)
            theirs.zero_grad()
            (ty * torch.tensor(weights)).sum().backward()
            for tensor in state.get_parameters(ours):
                tensor.grad = None
            (y * weights).sum().backward()
            Tensor.realize(y, mx.grad)
        close(y.numpy(), ty)
        close(mx.grad.numpy(), tx.grad)
    own = state.get_state_dict(ours)
    for key, value in params.items():
        close(own[key].grad.numpy(), value.grad, key)
    for key, value in theirs.named_buffers():
        close(own[key].numpy(), value, key)


def test_lstm_cell(on_device):
    generator = np.random.default_rng(3)
    theirs, ours = tnn.LSTMCell(5, 4), nn.LSTMCell(5, 4)
    state.load_state_dict(ours, perturbed(theirs, generator))
    x = generator.standard_normal((3, 6, 5)).astype(np.float32)
    (h, c), (th, tc) = ours(Tensor(x[0])), theirs(torch.tensor(x[0]))
    for step in x[1:]:
        (h, c), (th, tc) = ours(Tensor(step), (h, c)), theirs(torch.tensor(step), (th, tc))
    (th.sum() + tc.square().sum()).backward()
    (h.sum() + c.square().sum()).backward()
    close(h.numpy(), th)
    close(c.numpy(), tc)
    for name, value in theirs.named_parameters():
        close(state.get_state_dict(ours)[name].grad.numpy(), value.grad, name)


def test_layer_norm_of_pixels(on_device):
    x = np.random.default_rng(0).standard_normal((2, 5, 3, 4)).astype(np.float32)
    expected = tnn.LayerNorm(5)(torch.tensor(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    close(nn.LayerNorm2d(5)(Tensor(x)).numpy(), expected)


def test_transposed_to_a_given_size(on_device):
    theirs, ours = tnn.ConvTranspose2d(2, 3, 3, stride=2), nn.ConvTranspose2d(2, 3, 3, stride=2)
    state.load_state_dict(ours, {n: Tensor(v.numpy()) for n, v in theirs.state_dict().items()})
    x = np.ones((1, 2, 4, 5), np.float32)
    close(ours(Tensor(x), (10, 11)).numpy(), theirs(torch.tensor(x), output_size=(10, 11)))
    with pytest.raises(ShapeError, match="expected"):
        ours(Tensor(x), (12, 11))


class Small:
    """A first layer that reads data only, so that no parameter stands before its statistics."""

    def __init__(self):
        self.first, self.conv = nn.BatchNorm(3), nn.Conv2d(3, 4, 3, padding=1)
        self.second, self.head = nn.BatchNorm(4), nn.Linear(4, 2)

    def __call__(self, x):
        x = self.second(self.conv(self.first(x))).relu()
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("captured", [False, True])
def test_training_with_running_statistics(captured, on_device):
    """Statistics, of layers before and after parameters, move once a step; replayed too."""
    theirs = tnn.Sequential(
        tnn.BatchNorm2d(3), tnn.Conv2d(3, 4, 3, padding=1), tnn.BatchNorm2d(4), tnn.ReLU(),
        tnn.AdaptiveAvgPool2d(1), tnn.Flatten(), tnn.Linear(4, 2),
    )  # fmt: skip
    names = {"first": "0", "conv": "1", "second": "2", "head": "6"}
    ours = Small()
    own = state.get_state_dict(ours)
    values = theirs.state_dict()
    state.load_state_dict(ours, {
        name: Tensor(values[f"{names[name.split('.')[0]]}.{name.split('.')[1]}"].numpy())
        for name in own
    })  # fmt: skip
    optimizer = nn.optim.SGD(state.get_parameters(ours), lr=0.1, momentum=0.9)
    other = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)

    def step(x, y):
        optimizer.zero_grad()
        loss = ours(x).cross_entropy(y)
        loss.backward()
        optimizer.step()
        return loss.realize()

    step = jit(step) if captured else step
    generator = np.random.default_rng(0)
    with Tensor.train():
        for _ in range(5):
            x = generator.standard_normal((4, 3, 5, 5)).astype(np.float32)
            y = generator.integers(0, 2, 4)
            loss = step(Tensor(x), Tensor(y))
            other.zero_grad()
            expected = torch.nn.functional.cross_entropy(theirs(torch.tensor(x)), torch.tensor(y))
            expected.backward()
            other.step()
            close(loss.numpy(), expected)
    for name, tensor in own.items():
        layer, attribute = name.split(".")
        close(tensor.numpy(), theirs.state_dict()[f"{names[layer]}.{attribute}"], name)


def test_one_element_per_channel(on_device):
    with Tensor.train(), pytest.raises(ShapeError, match="two"):
        nn.BatchNorm(3)(Tensor.ones(1, 3))
    assert nn.BatchNorm(3)(Tensor.ones(1, 3)).shape == (1, 3)
