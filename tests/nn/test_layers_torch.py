"""Layers and losses against PyTorch's of the same names: results, gradients, names, reprs."""

from __future__ import annotations

import numpy as np
import pytest

from minigrad import Tensor, jit, nn
from minigrad.errors import ShapeError
from minigrad.nn import state
from minigrad.program import GlobalCounters

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
tnn = torch.nn
F = nn.functional

# the expression that creates it in either library → shape of the input
LAYERS = {
    "ReLU()": (3, 4), "ReLU6()": (3, 4), "LeakyReLU(0.2)": (3, 4), "ELU(0.5)": (3, 4),
    "GELU()": (3, 4), "GELU('tanh')": (3, 4), "SiLU()": (3, 4), "Mish()": (3, 4),
    "Softplus(2.0)": (3, 4), "Hardswish()": (3, 4), "Tanh()": (3, 4), "Sigmoid()": (3, 4),
    "Softmax(dim=1)": (3, 4, 2), "LogSoftmax(dim=-1)": (3, 4), "Identity(5, unused=1)": (3,),
    "Flatten()": (2, 3, 4), "Flatten(0, 1)": (2, 3, 4), "Unflatten(1, (2, 3))": (4, 6),
    "Conv3d(2, 4, 3, stride=(1, 2, 1), padding=1, groups=2)": (2, 2, 4, 5, 3),
    "ConvTranspose3d(2, 3, 2, stride=2)": (1, 2, 2, 3, 2),
    "MaxPool2d(2)": (2, 3, 5, 6), "MaxPool2d((2, 3), 1, (1, 0), ceil_mode=True)": (2, 3, 5, 6),
    "AvgPool2d(3, 2, 1, count_include_pad=False)": (2, 3, 6, 7), "AvgPool2d(2)": (3, 4, 6),
    "AdaptiveAvgPool2d(1)": (2, 3, 5, 7), "AdaptiveAvgPool2d((3, None))": (3, 5, 7),
    "AdaptiveAvgPool2d((4, 3))": (2, 3, 6, 7), "PixelShuffle(2)": (2, 8, 3, 2),
    "ReflectionPad2d(2)": (2, 3, 4, 5), "ReflectionPad1d((1, 3))": (2, 4),
    "ReplicationPad2d((1, 0, 2, 3))": (2, 3, 4, 5), "ReplicationPad3d(1)": (1, 2, 3, 4, 5),
    "CircularPad2d((1, 2, 0, 1))": (2, 3, 4, 5), "ZeroPad2d((-1, 2, 1, 0))": (2, 3, 4, 5),
    "Upsample(scale_factor=2)": (2, 3, 4, 5),
    "Upsample((7, 9), mode='bilinear', align_corners=True)": (2, 3, 4, 5),
    "Linear(4, 3)": (2, 4), "LayerNorm(4, elementwise_affine=False)": (2, 4),
    "Sequential(Linear(4, 3), BatchNorm1d(3))": (2, 4),
    "Sequential(ModuleDict({'a': Linear(2, 2)})['a'], ReLU())": (3, 2),
    "TransformerEncoderLayer(8, 2, 16, 0.0)": (5, 3, 8),
    "TransformerEncoder(TransformerEncoderLayer(8, 2, 16, 0.0), 2, LayerNorm(8))": (5, 3, 8),
    "Hardsigmoid()": (3, 4), "Hardtanh(-0.5, 0.5)": (3, 4), "Hardshrink(0.3)": (3, 4),
    "Softshrink()": (3, 4), "Tanhshrink()": (3, 4), "Threshold(0.1, 3.0)": (3, 4),
    "LogSigmoid()": (3, 4), "SELU()": (3, 4),
    "GLU()": (3, 4),
    "PReLU()": (3, 4), "PReLU(3)": (2, 3, 4), "Dropout2d()": (2, 3, 4, 4),
    "MaxPool1d(2)": (2, 3, 7), "MaxPool3d(2, padding=1)": (2, 3, 4, 5, 4),
    "MaxPool2d(2, 3, 1, 1, False, True)": (2, 3, 6, 6),  # ceil_mode is the last one
    "Conv1d(2, 3, 3, padding=1, padding_mode='reflect')": (0, 2, 5),
    "AvgPool1d(2, padding=1)": (2, 3, 7),
    "AvgPool3d(2)": (2, 4, 5, 4),
    "AdaptiveAvgPool1d(3)": (2, 3, 7),
    "AdaptiveAvgPool3d((2, None, 3))": (2, 3, 4, 5, 6), "AdaptiveMaxPool2d((2, 3))": (2, 3, 5, 6),
    "PixelUnshuffle(2)": (2, 2, 4, 6),
    "InstanceNorm2d(3)": (2, 3, 4, 4),
    "TransformerEncoderLayer(8, 4, 16, activation='gelu', batch_first=True, norm_first=True, "
    "bias=False)": (3, 5, 8),
    "Linear(5, 3)": (4, 2, 5), "Linear(5, 3, bias=False)": (5,),
    "Conv1d(4, 6, 3, 2, 1, groups=2)": (2, 4, 9),
    "Conv2d(3, 4, (3, 2), padding=(1, 0), dilation=2)": (2, 3, 7, 8),
    "Conv2d(3, 4, 4, padding='same', bias=False)": (2, 3, 7, 8),
    "Conv2d(3, 4, 3, padding=(2, 1), padding_mode='reflect')": (2, 3, 5, 6),
    "Conv2d(3, 4, 3, padding='same', padding_mode='circular')": (3, 5, 6),
    "ConvTranspose1d(4, 6, 3, 2, 1, 1, 2)": (2, 4, 5),
    "ConvTranspose2d(3, 4, 3, stride=(1, 2), dilation=2)": (2, 3, 4, 5),
    "LayerNorm((3, 5))": (4, 3, 5), "LayerNorm(5, bias=False)": (4, 5),
    "RMSNorm(5, eps=1e-5)": (4, 5), "GroupNorm(2, 6)": (3, 6, 4, 5),
    "InstanceNorm1d(4, affine=True)": (3, 4, 7),
}  # fmt: skip
BATCH_NORMS = {
    "BatchNorm2d(4)": (3, 4, 5, 2), "BatchNorm1d(4, momentum=None)": (6, 4),
    "BatchNorm2d(4, affine=False, track_running_stats=False)": (3, 4, 5, 2),
}  # fmt: skip


def made(text, library):
    return eval(text, {name: getattr(library, name) for name in dir(library)})


def filled(theirs, ours, generator, training=False):
    """Random parameters in PyTorch's module, and the same in ours."""
    with torch.no_grad():
        for value in theirs.parameters():
            value.copy_(torch.tensor(generator.uniform(-1, 1, tuple(value.shape))))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    for module in (theirs, ours):
        module.train(training)


def close(found, wanted, what=""):
    """Results that cancel to nearly 0 may have the error of the largest terms."""
    wanted = wanted.detach().numpy()
    atol = 2e-5 * np.abs(wanted).max(initial=1.0)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=2e-4, atol=atol, err_msg=what)


def gradients_are_close(ours, theirs):
    wanted = {name: value.grad for name, value in theirs.named_parameters()}
    found = {name: tensor.grad for name, tensor in ours.named_parameters()}
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        if value is not None:
            close(found[name], value, name)


def compare(ours, theirs, shape, generator):
    """Compare results, and gradients by the input and by each parameter."""
    x = generator.standard_normal(shape).astype(np.float32)
    tx, mx = torch.tensor(x, requires_grad=True), Tensor(x, requires_grad=True)
    ty, y = theirs(tx), ours(mx)
    weights = generator.standard_normal(tuple(ty.shape)).astype(np.float32)
    for module in (theirs, ours):
        module.zero_grad()
    (ty * torch.tensor(weights)).sum().backward()
    (y * weights).sum().backward()
    close(y, ty)
    close(mx.grad, tx.grad)
    gradients_are_close(ours, theirs)


@pytest.mark.parametrize("text", LAYERS)
def test_layers(text, on_device):
    generator = np.random.default_rng(11)
    ours, theirs = made(text, nn), made(text, tnn)
    filled(theirs, ours, generator)
    compare(ours, theirs, LAYERS[text], generator)


def test_means_of_all_batches_in_float64():
    """The share of a batch, 1/3, was rounded to float32."""
    x = np.random.default_rng(12).standard_normal((3, 5, 2))
    layer = nn.BatchNorm1d(2, momentum=None).to(dtype="float64").train()
    for batch in x:
        layer(Tensor(batch)).realize()
    np.testing.assert_allclose(layer.running_mean.numpy(), x.mean((0, 1)), rtol=1e-13)


DECODERS = [
    "TransformerDecoderLayer(8, 2, 16, 0.0, batch_first=True)",
    "TransformerDecoderLayer(8, 2, 16, 0.0, 'gelu', norm_first=True, bias=False, batch_first=True)",
    "TransformerDecoder(TransformerDecoderLayer(8, 2, 16, 0.0, batch_first=True), 2, LayerNorm(8))",
    "Transformer(8, 2, 2, 1, 16, 0.0, batch_first=True)",
]


@pytest.mark.parametrize("text", DECODERS)
def test_decoders(text, on_device):
    """With all masks; results and the gradients of both inputs and all parameters."""
    generator = np.random.default_rng(12)
    ours, theirs = made(text, nn), made(text, tnn)
    filled(theirs, ours, generator)
    arrays = [generator.standard_normal((3, n, 8)).astype(np.float32) for n in (4, 5)]
    arrays = arrays[::-1] if text.startswith("Transformer(") else arrays  # src, tgt
    causal, unseen, padding = np.triu(np.ones((4, 4), bool), 1), np.eye(4, 5) > 0, np.eye(3, 5) > 0
    masks = {"tgt_mask": causal, "memory_mask": unseen, "memory_key_padding_mask": padding,
             "tgt_key_padding_mask": np.eye(3, 4, 2) > 0}  # fmt: skip
    if text.startswith("Transformer("):
        masks |= {"src_mask": np.eye(5) > 0, "src_key_padding_mask": padding}
    found = []
    for module, tensor in ((theirs, torch.tensor), (ours, Tensor)):
        inputs = [tensor(a, requires_grad=True) for a in arrays]
        out = module(*inputs, **{name: tensor(mask) for name, mask in masks.items()})
        (out * out).sum().backward()
        found.append([out, *(x.grad for x in inputs)])
    for theirs_one, ours_one in zip(*found, strict=True):
        close(ours_one, theirs_one)
    gradients_are_close(ours, theirs)


def test_transformer():
    """Copied layers differ; a causal mask as floats; a wrong mask is named."""
    model = nn.Transformer(8, 2, 2, 2, 16)
    first, second = (layer.linear1.weight for layer in model.decoder.layers)
    assert not first.allclose(second)
    mask = nn.Transformer.generate_square_subsequent_mask(3)
    assert mask.tolist() == tnn.Transformer.generate_square_subsequent_mask(3).tolist()
    with pytest.raises(ShapeError, match=r"attn_mask.*expected \(4, 5\)"):
        model(Tensor.ones(5, 1, 8), Tensor.ones(4, 1, 8), memory_mask=mask)


GRIDS = {  # spatial dimensions, and options
    "bilinear": (2, {}), "corners": (2, {"align_corners": True}),
    "border": (2, {"padding_mode": "border"}), "nearest": (2, {"mode": "nearest"}),
    "border corners": (2, {"padding_mode": "border", "align_corners": True}),
    "space": (3, {}), "space nearest": (3, {"mode": "nearest", "padding_mode": "border"}),
}  # fmt: skip


@pytest.mark.parametrize("name", GRIDS)
def test_grid_sample(name, on_device):
    """Results and gradients at places inside, outside and beside an image."""
    n, options = GRIDS[name]
    generator = np.random.default_rng(3)
    arrays = [generator.standard_normal((2, 3, *(5, 4, 6)[:n])),
              generator.uniform(-1.4, 1.4, (2, *(3, 7, 2)[:n], n))]  # fmt: skip
    found = []
    for function, tensor in ((tnn.functional.grid_sample, torch.tensor), (F.grid_sample, Tensor)):
        leaves = [tensor(a.astype(np.float32), requires_grad=True) for a in arrays]
        out = function(*leaves, **{"align_corners": False, **options})
        (out * out * out).sum().backward()
        smooth = leaves if options.get("mode") != "nearest" else leaves[:1]
        found.append([out, *(x.grad for x in smooth)])
    for theirs, ours in zip(*found, strict=True):
        close(ours, theirs)


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("size", [(2, 1, 3, 4), (2, 1, 1, 2), (2, 1, 2, 1, 3)])
def test_affine_grid(size, align, on_device):
    theta = np.random.default_rng(4).standard_normal((2, len(size) - 2, len(size) - 1))
    theta = theta.astype(np.float32)
    wanted = tnn.functional.affine_grid(torch.tensor(theta), size, align_corners=align)
    close(F.affine_grid(Tensor(theta), size, align_corners=align), wanted)


def test_grids_that_are_wrong():
    with pytest.raises(ShapeError, match=r"maps of shape \(1, 2, 3\)"):
        F.affine_grid(Tensor.ones(1, 3, 2), (1, 1, 4, 4))
    with pytest.raises(ShapeError, match="a grid"):
        F.grid_sample(Tensor.ones(1, 1, 4, 4), Tensor.ones(1, 4, 4, 3))
    with pytest.raises(ValueError, match="expected 'zeros' or 'border'"):
        F.grid_sample(Tensor.ones(1, 1, 4, 4), Tensor.ones(1, 4, 4, 2), padding_mode="reflection")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("text", BATCH_NORMS)
def test_batch_norms(text, training, on_device):
    """Several batches, one after another; running statistics are compared at the end."""
    generator = np.random.default_rng(7)
    ours, theirs = made(text, nn), made(text, tnn)
    filled(theirs, ours, generator, training)
    for _ in range(3):
        compare(ours, theirs, BATCH_NORMS[text], generator)
    for name, value in theirs.named_buffers():
        close(ours.state_dict()[name], value, name)


def test_a_batch_norm_that_is_called_several_times(on_device):
    """Statistics of several lazy calls are right, and a step of two calls is still one program."""
    generator = np.random.default_rng(8)
    ours, theirs = made("BatchNorm1d(4)", nn), made("BatchNorm1d(4)", tnn)
    filled(theirs, ours, generator, True)
    for _ in range(19):
        batch = generator.standard_normal((6, 4)).astype(np.float32)
        theirs(torch.tensor(batch))
        ours(Tensor(batch))
    for name, value in theirs.named_buffers():
        close(ours.state_dict()[name], value, name)
    x = Tensor(batch)
    before = GlobalCounters.program_calls
    both = ours(x) + ours(x * 2)
    assert GlobalCounters.program_calls == before
    Tensor.realize(both, *ours.state_dict().values())
    assert GlobalCounters.program_calls == before + 1


SAME_REPR = [
    "Linear(2, 32)", "Linear(2, 3, bias=False)", "Conv2d(3, 4, 3)", "Identity(3)", "Tanh()",
    "Conv2d(3, 6, (3, 2), padding=(1, 0), dilation=2, groups=3, bias=False)", "Softmax(dim=1)",
    "Conv1d(3, 4, 4, padding='same')", "ConvTranspose1d(4, 6, 3, 2, 1, 1, 2)", "GRUCell(3, 4)",
    "Conv2d(3, 4, 3, padding=1, padding_mode='reflect')", "Embedding(5, 3, padding_idx=1)",
    "ReLU(inplace=True)", "ReLU()", "LeakyReLU(0.2)", "GELU()", "Flatten()", "PixelShuffle(2)",
    "Unflatten(1, (2, 2))", "AdaptiveAvgPool2d((1, None))", "ELU()",
    "Sequential(Linear(2, 3), ReLU(), Sequential(Linear(3, 1), Sigmoid()))",
]  # fmt: skip


@pytest.mark.parametrize("text", SAME_REPR)
def test_reprs(text):
    assert repr(made(text, nn)) == repr(made(text, tnn))


@pytest.mark.parametrize("kind", ["ReLU", "LeakyReLU", "Hardswish", "SiLU"])
def test_what_writes_to_its_input(kind, on_device):
    """An in-place activation changes its input, which is then added: results and gradients."""
    generator = np.random.default_rng(13)
    x, results = generator.standard_normal((3, 4)).astype(np.float32), []
    w = generator.standard_normal((4, 4)).astype(np.float32)
    for library, kinds in ((torch.tensor, tnn), (Tensor, nn)):
        weight = library(w, requires_grad=True)
        layer = getattr(kinds, kind)(inplace=True)
        hidden = library(x) @ weight
        out = hidden + 2 * layer(hidden)
        out.square().sum().backward()
        read = library(x)
        assert layer(read) is read
        results.append([out.detach(), weight.grad, hidden.detach(), read])
    for theirs, ours in zip(*results, strict=True):
        close(ours, theirs)


@pytest.mark.parametrize("kind", [nn.Dropout, nn.Dropout2d])
def test_dropout_that_writes_to_its_input(kind, on_device):
    x = Tensor.ones(2, 3, 4, 5).realize()
    layer = kind(0.5, inplace=True).train()
    assert layer(x) is x and set(x.flatten().tolist()) == {0, 2}
    assert layer.eval()(x) is x


@pytest.mark.parametrize("text", ["GRUCell(5, 4)", "RNNCell(5, 4)", "LSTMCell(5, 4)",
                                  "RNNCell(5, 4, False, 'relu')"])  # fmt: skip
def test_cells(text, on_device):
    generator = np.random.default_rng(12)
    ours, theirs = made(text, nn), made(text, tnn)
    filled(theirs, ours, generator)
    states, wanted = None, None
    for x in generator.standard_normal((3, 6, 5)).astype(np.float32):
        states, wanted = ours(Tensor(x), states), theirs(torch.tensor(x), wanted)
    first = states[0] if isinstance(states, tuple) else states
    last = wanted[0] if isinstance(wanted, tuple) else wanted
    first.square().sum().backward()
    last.square().sum().backward()
    close(first, last)
    gradients_are_close(ours, theirs)
    with pytest.raises(ShapeError, match="expected"):
        ours(Tensor.ones(6, 3))
    with pytest.raises(ShapeError, match=r"state: .* got shape \(6, 3\)"):
        ours(Tensor.ones(6, 5), Tensor.ones(6, 3) if text[0] != "L" else [Tensor.ones(6, 3)] * 2)


MASKS = {
    "none": {}, "causal": {"attn_mask": np.triu(np.ones((4, 4), bool), 1)},
    "added": {"attn_mask": np.linspace(-2, 2, 16, dtype=np.float32).reshape(4, 4)},
    "padding": {"key_padding_mask": np.array([[0, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]], bool)},
    "both": {"attn_mask": np.triu(np.ones((4, 4), bool), 1),
             "key_padding_mask": np.array([[0, 0, 0, 1]] * 3, bool)},
    "mixed": {"attn_mask": np.linspace(-2, 2, 16, dtype=np.float32).reshape(4, 4),
              "key_padding_mask": np.array([[0, 0, 0, -np.inf]] * 3, np.float32)},
    "by head": {"attn_mask": np.arange(6 * 16).reshape(6, 4, 4) % 3 == 1},
}  # fmt: skip


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("options", [{}, {"batch_first": True, "bias": False}], ids=str)
def test_attention(kind, options, on_device):
    generator = np.random.default_rng(13)
    ours, theirs = nn.MultiheadAttention(8, 2, **options), tnn.MultiheadAttention(8, 2, **options)
    filled(theirs, ours, generator)
    lead = (3, 4) if options.get("batch_first") else (4, 3)
    inputs = [generator.standard_normal((*lead, 8)).astype(np.float32) for _ in range(3)]
    masks = MASKS[kind]
    mine = ours(*map(Tensor, inputs), **{k: Tensor(v) for k, v in masks.items()},
                average_attn_weights=kind != "none")  # fmt: skip
    wanted = theirs(*map(torch.tensor, inputs), **{k: torch.tensor(v) for k, v in masks.items()},
                    average_attn_weights=kind != "none")  # fmt: skip
    for a, b in zip(mine, wanted, strict=True):
        close(a, b)
    (mine[0] * mine[0]).sum().backward()
    (wanted[0] * wanted[0]).sum().backward()
    gradients_are_close(ours, theirs)
    if "attn_mask" in masks:  # is_causal and attn_mask combine
        future = np.triu(np.ones((4, 4), bool), 1)
        joined = np.where(future, -np.inf, masks["attn_mask"]) if kind in ("added", "mixed") else (
            masks["attn_mask"] | future)  # fmt: skip
        both, one = (
            ours(*map(Tensor, inputs), is_causal=causal,
                 **{k: Tensor(v) for k, v in {**masks, "attn_mask": mask}.items()})[0].numpy()
            for causal, mask in ((True, masks["attn_mask"]), (False, joined))
        )  # fmt: skip
        np.testing.assert_allclose(both, one, rtol=1e-4, atol=1e-5)
    if kind == "causal":
        causal, nothing = ours(*map(Tensor, inputs), need_weights=False, is_causal=True)
        close(causal, wanted[0])
        assert nothing is None
        single = [x[0] if options else x[:, 0] for x in inputs]
        close(ours(*map(Tensor, single))[0], theirs(*map(torch.tensor, single))[0])


def test_weights_of_a_query_that_sees_nothing(on_device):
    """They are zeros, as is its result before out_proj."""
    layer, x = nn.MultiheadAttention(8, 2, batch_first=True), Tensor.ones(1, 3, 8)
    hidden = Tensor([[False, False, False], [True, True, True], [False, True, True]])
    result, weights = layer(x, x, x, attn_mask=hidden)
    np.testing.assert_allclose(weights.tolist(), [[[1 / 3] * 3, [0.0] * 3, [1.0, 0, 0]]], rtol=1e-6)
    np.testing.assert_allclose(result[0, 1].numpy(), layer.out_proj.bias.numpy(), rtol=1e-6)


def test_attention_that_is_asked_wrongly():
    with pytest.raises(ShapeError, match="multiple of num_heads"):
        nn.MultiheadAttention(8, 3)
    with pytest.raises(ShapeError, match=r"\(…, 8\) with 3 dimensions"):
        nn.MultiheadAttention(8, 2)(*[Tensor.ones(4, 3, 7)] * 3)
    with pytest.raises(ValueError, match="'relu', 'gelu' or a function"):
        nn.TransformerEncoderLayer(8, 2, activation="tanh")
    with pytest.raises(ShapeError, match="divisible by 4"):
        nn.PixelShuffle(2)(Tensor.ones(1, 6, 2, 2))
    with pytest.raises(ValueError, match="'tanh' or 'relu'"):
        nn.RNNCell(2, 2, nonlinearity="gelu")
    with pytest.raises(ValueError, match="padding_idx to be a row"):
        nn.Embedding(3, 2, padding_idx=3)


def test_embedding_with_padding(on_device):
    ours, theirs = nn.Embedding(5, 3, padding_idx=-4), tnn.Embedding(5, 3, padding_idx=-4)
    assert ours.weight[1].tolist() == [0, 0, 0] and ours.weight[0].numpy().any()
    ours.load_state_dict(theirs.state_dict())
    index = np.array([[0, 1, 2], [1, 1, 4]])
    ours(Tensor(index)).square().sum().backward()
    theirs(torch.tensor(index)).square().sum().backward()
    gradients_are_close(ours, theirs)


def test_embedding_of_given_vectors(on_device):
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    for options in ({}, {"freeze": False, "padding_idx": 1}):
        ours = nn.Embedding.from_pretrained(Tensor(rows), **options)
        theirs = tnn.Embedding.from_pretrained(torch.tensor(rows), **options)
        assert repr(ours) == repr(theirs) and ours.weight.tolist() == theirs.weight.tolist()
        assert ours.weight.requires_grad is theirs.weight.requires_grad
        assert len(list(ours.parameters())) == 1 and [*ours.state_dict()] == ["weight"]
    with pytest.raises(ShapeError, match="a matrix"):
        nn.Embedding.from_pretrained(Tensor([1.0]))


def draws(kind, generator):
    """Random inputs and targets for a kind of loss."""
    logits = generator.standard_normal((5, 4, 3)).astype(np.float32)
    if kind == "classes":
        return logits, generator.integers(0, 4, (5, 3))
    other = generator.random((5, 4, 3)).astype(np.float32)
    shares = other / other.sum(1, keepdims=True)
    if kind == "shares":
        return np.log(np.exp(logits) / np.exp(logits).sum(1, keepdims=True)), shares
    return (generator.random((5, 4, 3)).astype(np.float32), shares) if kind == "unit" else (
        logits, other)  # fmt: skip


BY_CLASS, BY_ELEMENT = np.array([0.5, 2.0, 1.0, 0.25], np.float32), np.ones(3, np.float32) * 0.5
LOSSES = [
    ("MSELoss", {}, "any"), ("L1Loss", {}, "any"), ("SmoothL1Loss", {"beta": 0.5}, "any"),
    ("SmoothL1Loss", {"beta": 0}, "any"), ("HuberLoss", {"delta": 0.7}, "any"),
    ("CrossEntropyLoss", {}, "classes"), ("CrossEntropyLoss", {"weight": BY_CLASS}, "classes"),
    ("CrossEntropyLoss", {"ignore_index": 2, "label_smoothing": 0.1}, "classes"),
    ("CrossEntropyLoss", {"weight": BY_CLASS, "ignore_index": 2, "label_smoothing": 0.1},
     "classes"),
    ("CrossEntropyLoss", {"weight": BY_CLASS, "label_smoothing": 0.2}, "shares"),
    ("CrossEntropyLoss", {}, "shares"), ("NLLLoss", {"weight": BY_CLASS}, "classes"),
    ("NLLLoss", {"ignore_index": 1}, "classes"), ("BCELoss", {}, "unit"),
    ("BCELoss", {"weight": BY_ELEMENT}, "unit"), ("BCEWithLogitsLoss", {}, "any"),
    ("BCEWithLogitsLoss", {"weight": BY_ELEMENT, "pos_weight": BY_ELEMENT * 3}, "any"),
    ("KLDivLoss", {}, "shares"), ("KLDivLoss", {"log_target": True}, "any"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options", "kind", "reduction"),
    [(*case, reduction) for case in LOSSES for reduction in ("mean", "sum", "none")]
    + [("KLDivLoss", {}, "shares", "batchmean")],
)
def test_losses(name, options, kind, reduction, on_device):
    generator = np.random.default_rng(14)
    x, target = draws(kind, generator)
    arrays = {k: v for k, v in options.items() if isinstance(v, np.ndarray)}
    ours, theirs = (
        getattr(library, name)(
            **{**options, **{k: tensor(v) for k, v in arrays.items()}}, reduction=reduction
        )
        for library, tensor in ((nn, Tensor), (tnn, torch.tensor))
    )
    assert list(ours.state_dict()) == list(theirs.state_dict())
    tx, mx = torch.tensor(x, requires_grad=True), Tensor(x, requires_grad=True)
    loss, wanted = ours(mx, Tensor(target)), theirs(tx, torch.tensor(target))
    close(loss, wanted)
    loss.sum().backward()
    wanted.sum().backward()
    close(mx.grad, tx.grad)


def test_losses_of_wrong_shapes():
    for loss in (nn.L1Loss(), nn.HuberLoss(), nn.KLDivLoss(), nn.SmoothL1Loss(), nn.MSELoss()):
        with pytest.raises(ShapeError, match="equal shapes"):
            loss(Tensor.ones(4, 1), Tensor.ones(4))
    with pytest.raises(ValueError, match="expected a number > 0"):
        nn.HuberLoss(delta=0)(Tensor.ones(4), Tensor.ones(4))


# x → calls that are the same in both libraries, unlike the methods
FUNCTIONS = {
    "linear": lambda f, x, t: f.linear(x, t([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), t([1.0, 2.0])),
    "gelu": lambda f, x, t: f.gelu(x), "tanh gelu": lambda f, x, t: f.gelu(x, approximate="tanh"),
    "normalize": lambda f, x, t: f.normalize(x, dim=0), "softmax": lambda f, x, t: f.softmax(x, 1),
    "log_softmax": lambda f, x, t: f.log_softmax(x, dim=0),
    "layer_norm": lambda f, x, t: f.layer_norm(x, (3,), t([1.0, 2.0, 3.0]), eps=0.1),
    "cross_entropy": lambda f, x, t: f.cross_entropy(x, t([0, 2])),
    "cross_entropy of one": lambda f, x, t: f.cross_entropy(x[0], t(2)),
    "dropout": lambda f, x, t: f.dropout(x, 0.5, training=False),
    "pad": lambda f, x, t: f.pad(x, (1, 2), value=3.0),
    "embedding": lambda f, x, t: f.embedding(t([1, 0]), x),
    "mse_loss": lambda f, x, t: f.mse_loss(x, x * 2), "relu": lambda f, x, t: f.relu(x),
    "conv1d": lambda f, x, t: f.conv1d(x, t([[[1.0, 2.0]], [[3.0, 4.0]]]), groups=2, stride=1),
    "bce": lambda f, x, t: f.binary_cross_entropy_with_logits(x, t([[1.0, 0.0, 1.0]] * 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name, on_device):
    x = np.random.default_rng(15).standard_normal((2, 3)).astype(np.float32)
    found = FUNCTIONS[name](F, Tensor(x), Tensor)
    close(found, FUNCTIONS[name](torch.nn.functional, torch.tensor(x), torch.tensor))


def test_weights_in_bfloat16(on_device):
    """numpy has no bfloat16: PyTorch's bfloat16 tensors are accepted, transposed ones, too."""
    theirs = tnn.Linear(3, 2).to(torch.bfloat16)
    for ours in (nn.Linear(3, 2), nn.Linear(3, 2).to("bfloat16")):
        ours.load_state_dict(theirs.state_dict())
        for name, value in ours.state_dict().items():
            assert value.float().tolist() == theirs.state_dict()[name].float().tolist()
    turned = theirs.weight.detach().T
    assert Tensor(turned).dtype.name == "bfloat16"
    assert Tensor(turned).float().tolist() == turned.float().tolist()
    assert Tensor(turned[0, 0], dtype="float32").item() == turned[0, 0].item()


def test_dropout_as_a_function(on_device):
    print("seed 6")
    Tensor.manual_seed(6)
    assert 300 < (F.dropout(Tensor.ones(1000), 0.5).numpy() == 0).sum() < 700
    with Tensor.train():
        assert F.dropout(Tensor.ones(1000), 0.5, training=False).numpy().all()


RECURRENT = [
    "LSTM(3, 4)", "GRU(3, 4, 2)", "RNN(3, 4, 2, bias=False, bidirectional=True)",
    "RNN(3, 4, nonlinearity='relu')", "LSTM(3, 4, 2, batch_first=True, bidirectional=True)",
    "GRU(3, 4, dropout=0.5, num_layers=2, batch_first=True)",
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "batch"), [*((text, (2,)) for text in RECURRENT), ("GRU(3, 4, batch_first=True)", ())]
)
def test_recurrent(text, batch, on_device):
    """On sequences: results, states, gradients, names of parameters."""
    generator = np.random.default_rng(16)
    ours, theirs = made(text, nn), made(text, tnn)
    filled(theirs, ours, generator)
    shape = (*batch, 2, 3) if "batch_first" in text else (2, *batch, 3)
    x = generator.standard_normal(shape).astype(np.float32)
    tx, mx = torch.tensor(x, requires_grad=True), Tensor(x, requires_grad=True)
    (ty, ts), (y, s) = theirs(tx), ours(mx)
    pairs = [(y, ty), *zip(s, ts, strict=True)] if isinstance(s, tuple) else [(y, ty), (s, ts)]
    for found, wanted in pairs:
        close(found, wanted)
    one, t_one = (v[:, :1] if "batch_first" in text and batch else v[:1] for v in (mx, tx))
    close(ours(one, s)[0], theirs(t_one, ts)[0])  # continues from a state
    weights = generator.standard_normal(tuple(ty.shape)).astype(np.float32)
    (y * weights).sum().backward()
    (ty * torch.tensor(weights)).sum().backward()
    gradients_are_close(ours, theirs)
    close(mx.grad, tx.grad)


def test_layers_that_are_made_wrongly():
    with pytest.raises(TypeError, match="Softshrink: too many positional"):
        nn.Softshrink(1, 2, 3)
    with pytest.raises(ShapeError, match=r"LSTM.*\(length, batch, 3\)"):
        nn.LSTM(3, 4)(Tensor.zeros(5, 2, 4))
    hidden = Tensor.zeros(1, 2, 4)
    for layer, x in ((nn.LSTM(3, 4), Tensor.zeros(5, 2, 3)), (nn.LSTMCell(3, 4), hidden[0, :, :3])):
        for given in (hidden, (hidden,), 5, (1, 2), np.zeros((1, 2, 4))):
            with pytest.raises((ShapeError, TypeError), match=r"a state of hidden and cell"):
                layer(x, given)
    outs, (last, _) = nn.LSTM(3, 4)(Tensor.zeros(0, 2, 3), [hidden + 1, hidden])  # no steps
    assert outs.shape == (0, 2, 4) and last.tolist() == [[[1.0] * 4] * 2]


@pytest.mark.parametrize("norm", ["instance_norm", "batch_norm"])
@pytest.mark.parametrize("shape", [(4, 3, 5), (2, 1, 3, 2)])
def test_norms_move_their_statistics(norm, shape, on_device):
    options = {"training": True} if norm == "batch_norm" else {}
    x = np.random.default_rng(7).standard_normal(shape).astype(np.float32)
    found = []
    for library, tensor in ((torch.nn.functional, torch.tensor), (F, Tensor)):
        mean, var = tensor([0.5] * shape[1]), tensor([2.0] * shape[1])
        for _ in range(3):
            y = getattr(library, norm)(tensor(x), mean, var, momentum=0.25, **options)
        found.append((y, mean, var))
    for wanted, ours in zip(*found, strict=True):
        close(ours, wanted)


def test_layer_norm_of_pixels(on_device):
    x = np.random.default_rng(0).standard_normal((2, 5, 3, 4)).astype(np.float32)
    expected = tnn.LayerNorm(5)(torch.tensor(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    close(nn.LayerNorm2d(5)(Tensor(x)), expected)


def test_transposed_to_a_given_size(on_device):
    theirs, ours = tnn.ConvTranspose2d(2, 3, 3, stride=2), nn.ConvTranspose2d(2, 3, 3, stride=2)
    ours.load_state_dict(theirs.state_dict())
    x = np.ones((1, 2, 4, 5), np.float32)
    close(ours(Tensor(x), (10, 11)), theirs(torch.tensor(x), output_size=(10, 11)))
    with pytest.raises(ShapeError, match="expected"):
        ours(Tensor(x), (12, 11))


class Small:
    """Its first layer reads only data: no parameter is computed before its statistics."""

    def __init__(self):
        self.first, self.conv = nn.BatchNorm(3), nn.Conv2d(3, 4, 3, padding=1)
        self.second, self.head = nn.BatchNorm(4), nn.Linear(4, 2)

    def __call__(self, x):
        x = self.second(self.conv(self.first(x))).relu()
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("captured", [False, True])
def test_training_with_running_statistics(captured, on_device):
    """Statistics of layers before and after parameters are updated once a step; replayed, too."""
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
            close(loss, expected)
    for name, tensor in own.items():
        layer, attribute = name.split(".")
        close(tensor, theirs.state_dict()[f"{names[layer]}.{attribute}"], name)


def test_one_element_per_channel(on_device):
    with Tensor.train(), pytest.raises(ShapeError, match="at least 2 elements"):
        nn.BatchNorm(3)(Tensor.ones(1, 3))
    assert nn.BatchNorm(3)(Tensor.ones(1, 3)).shape == (1, 3)


def test_pad_has_the_names_of_pytorch():
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for options in ({"pad": (1, 2), "value": 1.5}, {"pad": (0, 1, 2, 0), "mode": "constant"}):
        ours = nn.functional.pad(Tensor(x), **options)
        assert ours.tolist() == torch.nn.functional.pad(torch.tensor(x), **options).tolist()
