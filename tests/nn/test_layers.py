"""Layers: shapes and names of parameters, initialisation, results."""

from __future__ import annotations

import copy
import gc
import math
import weakref

import numpy as np
import pytest

from minigrad import GlobalCounters, Tensor, nn
from minigrad.errors import ShapeError
from minigrad.graph.node import Op, topological


def test_linear(on_device):
    Tensor.manual_seed(0)
    layer = nn.Linear(40, 30)
    assert layer.weight.shape == (30, 40)
    assert layer.bias.shape == (30,)
    bound = 1 / math.sqrt(40)
    assert 0.95 * bound < np.abs(layer.weight.numpy()).max() <= bound
    x = Tensor.randn(5, 2, 40)
    np.testing.assert_allclose(
        layer(x).numpy(), x.numpy() @ layer.weight.numpy().T + layer.bias.numpy(), atol=1e-5
    )
    assert nn.Linear(3, 2, bias=False).bias is None
    with pytest.raises(ShapeError, match="40"):
        layer(Tensor.zeros(3))


def test_embedding(on_device):
    Tensor.manual_seed(0)
    layer = nn.Embedding(50, 20)
    assert layer.weight.shape == (50, 20)
    assert abs(layer.weight.numpy().std() - 1) < 0.1
    assert layer(Tensor([[1, 2, 3]])).shape == (1, 3, 20)


def test_padding_layers_say_how_they_pad() -> None:
    assert 'mode="reflect"' in (nn.ReflectionPad2d.__doc__ or "")
    assert "4 of them" in (nn.ReplicationPad2d.__doc__ or "")
    assert 'mode="circular"' in (nn.CircularPad1d.__doc__ or "")


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_a_sample_at_nan_is_nan(on_device, mode, padding):
    """Not 0, as outside of the image, where infinity is."""
    places = Tensor([[math.nan, 0.0], [0.0, math.nan], [0.0, 0.0], [math.inf, 0.0]])
    image, grid = Tensor.ones(1, 1, 3, 3), places.reshape(1, 2, 2, 2)
    found = nn.functional.grid_sample(image, grid, mode, padding)
    outside = 0 if padding == "zeros" else 1
    np.testing.assert_array_equal(found.flatten().numpy(), [math.nan, math.nan, 1, outside])


@pytest.mark.parametrize(("channels", "shape"), [(3, (2, 3, 81)), (16, (2, 81, 16))])
def test_many_channels_are_sampled_together(compiled, channels, shape):
    """Side by side; few would leave most of a vector empty."""
    generator = np.random.default_rng(4)
    x, grid = (Tensor(generator.uniform(-1, 1, (2, *s)), device=compiled).realize()
               for s in ((channels, 9, 9), (5, 7, 2)))  # fmt: skip
    found = nn.functional.grid_sample(x, grid)
    gathers = [node for node in topological([found.node]) if node.op is Op.GATHER]
    assert {node.src[0].shape for node in gathers} == {shape}
    alone = [nn.functional.grid_sample(x[:, c : c + 1], grid).numpy() for c in range(channels)]
    np.testing.assert_allclose(found.numpy(), np.concatenate(alone, 1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [1, 7, (4, 14)])
def test_means_of_windows_side_by_side_are_one_sum(compiled, size):
    x = Tensor(np.arange(2.0 * 3 * 28 * 28).reshape(2, 3, 28, 28), device=compiled).realize()
    GlobalCounters.reset()
    found = nn.functional.adaptive_avg_pool2d(x, size).realize()
    assert GlobalCounters.kernel_count == 1
    high, wide = size if isinstance(size, tuple) else (size, size)
    wanted = x.numpy().reshape(2, 3, high, 28 // high, wide, 28 // wide).mean((3, 5))
    np.testing.assert_allclose(found.numpy(), wanted)


def test_blank_layers_draw_nothing(on_device):
    Tensor.manual_seed(3)
    expected = Tensor.rand(4).tolist()
    Tensor.manual_seed(3)
    with nn.blank():
        layers = [nn.Linear(4, 3), nn.Embedding(5, 4), nn.Conv2d(2, 3, 3), nn.LSTMCell(4, 5)]
        with nn.blank():
            layers.append(nn.LayerNorm(4))
        layers.append(nn.Linear(4, 3))
    norm = layers[-2]
    assert norm.weight.tolist() == [1.0] * 4
    for name, tensor in nn.state.get_state_dict([*layers[:4], layers[-1]]).items():
        assert tensor.requires_grad and not tensor.numpy().any(), name
    assert Tensor.rand(4).tolist() == expected
    with pytest.raises(RuntimeError), nn.blank():
        raise RuntimeError
    assert nn.Linear(4, 3).weight.numpy().any()


def test_norms(on_device):
    x = Tensor.randn(4, 7, 8) * 3 + 1
    out = nn.LayerNorm(8)(x).numpy()
    np.testing.assert_allclose(out.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(out.std(-1), 1, atol=1e-3)
    assert nn.LayerNorm((7, 8))(x).shape == (4, 7, 8)
    assert nn.LayerNorm(8, elementwise_affine=False).weight is None
    out = nn.RMSNorm(8)(x).numpy()
    np.testing.assert_allclose((out**2).mean(-1), 1, atol=1e-3)
    with pytest.raises(ShapeError, match="9"):
        nn.LayerNorm(9)(x)


def test_sequential_and_dropout(on_device):
    Tensor.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), Tensor.relu, nn.Dropout(0.5), [nn.Linear(4, 2)])
    x = Tensor.randn(6, 3)
    x.realize(*nn.state.get_parameters(model))
    assert model(x).tolist() == model(x).tolist()
    with Tensor.train():
        assert model(x).tolist() != model(x).tolist()
    assert list(nn.state.get_state_dict(model)) == ["0.weight", "0.bias", "3.weight", "3.bias"]
    with pytest.raises(ValueError, match="expected a number in 0 … 1"):
        nn.Dropout(2)


def test_parameters_are_stored_once(on_device):
    Tensor.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), Tensor.relu, nn.Linear(4, 2))
    params = nn.state.get_parameters(model)
    assert len(params) == 4
    model(Tensor.ones(1, 3)).realize()
    assert all(p.is_realized() for p in params)
    model(Tensor.ones(1, 3) * 2).realize()
    compiled = GlobalCounters.programs_compiled
    model(Tensor.ones(1, 3) * 2).realize()
    assert GlobalCounters.programs_compiled == compiled


def test_layers_of_equal_shape_differ(on_device):
    Tensor.manual_seed(0)
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    assert a.weight.tolist() != b.weight.tolist()
    Tensor.manual_seed(0)
    assert nn.Linear(3, 3).weight.tolist() == a.weight.tolist()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gumbel_softmax(dtype: str) -> None:
    """Classes win in proportion to their probability; hard results are one-hot, with a gradient."""
    Tensor.manual_seed(5)
    logits = Tensor([[0.0, math.log(3), 0.0]], dtype=dtype).expand(4000, 3)
    soft = nn.functional.gumbel_softmax(logits, 0.5)
    assert soft.dtype.name == dtype and soft.shape == (4000, 3)
    np.testing.assert_allclose(soft.float().sum(1).numpy(), 1, atol=0.01)
    often = (soft.argmax(1) == 1).float().mean().item()
    assert abs(often - 0.6) < 0.035  # 4.5 standard deviations
    given = Tensor([[1.0, 2.0], [0.0, -1.0]], dtype=dtype, requires_grad=True)
    hard = nn.functional.gumbel_softmax(given, 1.0, True, 0)
    np.testing.assert_allclose(hard.float().numpy().sum(0), 1, atol=0.01)
    assert set(hard.float().round().numpy().flat) == {0, 1}
    (hard * Tensor([[1.0, 5.0], [0.0, 0.0]], dtype=dtype)).sum().backward()
    assert given.grad is not None
    slopes = given.grad.float().numpy()
    assert (slopes[0] > 0).all() and (slopes[1] < 0).all()


def test_gumbel_noise_is_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the random number is 0, as one of 256 in bfloat16 was."""
    monkeypatch.setattr(Tensor, "rand_like", Tensor.zeros_like)
    for dtype in ("float32", "bfloat16", "float64"):
        shares = nn.functional.gumbel_softmax(Tensor([1.0, 1.0], dtype=dtype))
        assert shares.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
def test_norms_keep_the_dtype(name, on_device):
    """Results have the input's dtype, though weights are float32, and are rounded only once."""
    values = np.random.default_rng(3).normal(size=(2, 4, 3, 3)) * 100 + 1000
    for layer in (nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True), nn.LayerNorm([3, 3]),
                  nn.RMSNorm([3, 3]), nn.LayerNorm2d(4), nn.BatchNorm2d(4).train()):  # fmt: skip
        x = Tensor(values, dtype=name)
        found, wanted = layer(x), layer(x.float())
        assert found.dtype is x.dtype, type(layer).__name__
        if x.dtype.itemsize < 8:
            np.testing.assert_array_equal(found.float().numpy(), wanted.cast(name).float().numpy())


def test_one_step_of_a_recurrent_layer_is_no_loop() -> None:
    """If a decoder makes many of them, loops would each be a separate program."""
    layer, x = nn.LSTM(3, 4), Tensor.randn(1, 2, 3)
    one, two = layer(x)[0], layer(x.cat(x))[0][:1]
    loops = [sum(node.op is Op.LOOP for node in topological([y.node])) for y in (one, two)]
    assert loops == [0, 1]
    params = [*layer.parameters()]
    pairs = zip(one.sum().gradient(*params), two.sum().gradient(*params), strict=True)
    for found, wanted in ((one, two), *pairs):
        assert (found - wanted).abs().max().item() < 1e-6


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize(("given", "weights", "wanted"), [
    ("float16", "float32", "float32"), ("bfloat16", "float16", "float32"),
    ("float32", "float64", "float64"), ("float64", "float32", "float64"),
    ("int32", "float32", "float32"),
])  # fmt: skip
def test_recurrent_layers_promote_as_others_do(
    name: str, length: int, given: str, weights: str, wanted: str
) -> None:
    layer = getattr(nn, name)(3, 4, num_layers=2).to(weights)
    x = Tensor.randint(length, 2, 3, low=-2, high=3).cast(given)
    out, last = layer(x)
    state = (last,) if isinstance(last, Tensor) else last
    assert {one.dtype.name for one in (out, *state)} == {wanted}
    half = tuple(one.cast("float16") for one in state)
    again, _ = layer(x, half if len(half) > 1 else half[0])
    assert again.dtype.name == wanted
    expected, _ = layer.to(wanted)(x.cast(wanted))
    np.testing.assert_allclose(out.numpy(), expected.numpy(), atol=1e-6)


class Wide(nn.Linear):
    """A user's class, with arguments of its own, and a layer inside."""

    def __init__(self) -> None:
        super().__init__(3, 8)
        self.inner = nn.Linear(2, 2)


RESET = {
    "Linear": lambda: nn.Linear(3, 4, bias=False), "a subclass": Wide,
    "Conv2d": lambda: nn.Conv2d(3, 4, [3, 3], padding=1, bias=True),
    "ConvTranspose1d": lambda: nn.ConvTranspose1d(3, 4, 3, stride=2),
    "Embedding": lambda: nn.Embedding(5, 3, padding_idx=0), "PReLU": lambda: nn.PReLU(3, init=0.1),
    "BatchNorm2d": lambda: nn.BatchNorm2d(3), "LayerNorm": lambda: nn.LayerNorm((4,)),
    "GroupNorm": lambda: nn.GroupNorm(2, 4), "RMSNorm": lambda: nn.RMSNorm(4),
    "LSTM": lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True), "RNN": lambda: nn.RNN(3, 4),
    "GRUCell": lambda: nn.GRUCell(3, 4), "attention": lambda: nn.MultiheadAttention(4, 2),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(3, affine=True),
    "no bias": lambda: nn.MultiheadAttention(4, 2, bias=False, batch_first=True),
    "an option": lambda: nn.RNN(3, 4, nonlinearity="relu"),
    "encoder": lambda: nn.TransformerEncoderLayer(4, 2, activation="gelu"),
    "half": lambda: nn.Linear(3, 4).to(dtype="float16"), "ReLU": nn.ReLU,
    "a list": lambda: nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU()),
}  # fmt: skip


@pytest.mark.parametrize("name", RESET)
def test_parameters_are_drawn_again(on_device, name):
    """`model.apply(reset)`, as code for k-fold validation has it, gives a new layer's values."""

    def reset(layer):
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()

    layer = copy.deepcopy(RESET[name]())
    first, tensors = layer.state_dict(), {*map(id, layer.parameters())}
    with Tensor.no_grad():
        for tensor in nn.state.get_state_dict(layer).values():
            tensor.assign(7)
    Tensor.manual_seed(3)
    layer.apply(reset)
    found = layer.state_dict()
    assert {*map(id, layer.parameters())} == tensors  # an optimizer's tensors are still these
    assert [*found] == [*first]
    for key, value in found.items():
        assert value.dtype is first[key].dtype and not (value == 7).any().item(), key
    if name in ("Linear", "Conv2d", "Embedding", "LSTM", "GRUCell"):
        Tensor.manual_seed(3)
        for value, new in zip(found.values(), RESET[name]().state_dict().values(), strict=True):
            assert value.tolist() == new.tolist()


def test_what_a_subclass_added_is_not_drawn_again():
    class Scaled(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 2)
            self.scale = nn.Parameter([7.0])

    layer = Scaled()
    before = layer.weight.tolist()
    layer.reset_parameters()
    assert layer.scale.tolist() == [7.0] and layer.weight.tolist() != before


@pytest.mark.parametrize("kind", [nn.TransformerEncoderLayer, nn.TransformerDecoderLayer])
def test_a_layer_of_layers_draws_nothing_of_its_own(kind):
    layer = kind(4, 2, activation=Tensor.relu)
    layer.scale = nn.Parameter([7.0])
    layer.reset_parameters()
    assert layer.scale.tolist() == [7.0]


def test_what_was_given_is_not_drawn_again():
    loss = nn.BCEWithLogitsLoss(pos_weight=Tensor([1.0, 2.0]))
    known = nn.Embedding.from_pretrained(Tensor([[1.0, 2.0]]))
    loss.reset_parameters()
    known.reset_parameters()
    assert loss.pos_weight.tolist() == [1.0, 2.0] and known.weight.tolist() != [[1.0, 2.0]]
    assert not hasattr(nn.Module(), "reset_parameters")


def test_a_container_keeps_no_layer_that_was_replaced():
    made = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    gone = weakref.ref(made[0])
    made[0] = nn.Linear(2, 3)
    gc.collect()
    assert gone() is None


def test_a_batch_has_one_mean():
    """Also if its nodes are copied from templates: the variance's mean is the one that is kept."""
    layer = nn.BatchNorm1d(3).train()
    y = layer(Tensor(np.arange(12, dtype=np.float32).reshape(4, 3)))
    assert [node.op for node in topological([y.node])].count(Op.SUM) == 3


def test_running_statistics_move_with_each_batch(on_device):
    """Also without gradients, where nothing else asks for them: no batch is computed again."""
    first, last = nn.BatchNorm1d(3), nn.BatchNorm1d(4)
    net = nn.Sequential(first, nn.Linear(3, 4), last).train()
    x = Tensor(np.arange(12, dtype=np.float32).reshape(4, 3), device=on_device).realize()
    net.to(on_device)
    counts = []
    with Tensor.no_grad():
        for _ in range(12):
            GlobalCounters.reset()
            net(x).square().mean().realize()
            counts.append(GlobalCounters.kernel_count)
            assert first.running_mean.is_realized() and last.running_mean.is_realized()
    assert len(set(counts[2:])) == 1, counts
    assert first.num_batches_tracked.item() == 12
    moved = 1 - 0.9**12
    np.testing.assert_allclose(first.running_mean.numpy(), moved * x.numpy().mean(0), rtol=1e-5)
