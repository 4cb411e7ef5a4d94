"""Random small networks of images and of sequences give PyTorch's values and gradients.

    python -m tests.property.networks --seed 0 --count 1000

A network is a few layers (convolutions, pooling, attention, sums, …) on images or sequences of
random sizes, most of them near multiples of a vector's length, where loops end in parts of vectors.
It runs eagerly, captured, or on several numbers and heights (or lengths); every second one with an
unreadable page behind each array (MINIGRAD_GUARD=1). PyTorch computes in float64; in float32, too,
which shows the error to expect.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from operator import add
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from minigrad import Context, Tensor, jit
from minigrad.nn import functional

from .command import parser_of, run_command

Arrays = list[npt.NDArray[Any]]
MOST_ELEMENTS = 30_000  # of a layer's result, so that a network takes about a second
WIDTHS = (*range(1, 10), 15, 16, 17, 20, 23, 24, 25, 28, 31, 32, 33, 40, 47, 48, 49)
CHANNELS = (1, 2, 3, 4, 5, 8, 12, 16, 17, 24, 32, 33, 48)
# Errors, of the largest element; or so many times PyTorch's own in float32.
TOLERANCES, MORE = {"float32": 1e-3, "float64": 1e-8}, 20
# Layers of x with c channels, p(…) is a parameter; k, s, a, o, q: drawn from OPTIONS. No elements
# should be equal in float32 only: a maximum's gradient would go elsewhere.
OF_IMAGES = (
    "F.conv2d(x, p({o}, {c}, {k}, {k}), p({o}), stride={s}, padding={a})",
    "F.conv2d(x, p({o}, {c}, 3, 3), padding=1)",
    "F.conv2d(x, p({o}, {c}, {k}, {q}), stride=({s}, 1), padding={a}, dilation=({s}, 1))",
    "F.conv2d(x, p({c}, 1, {k}, {k}), p({c}), stride={s}, padding={a}, groups={c})",
    "F.conv_transpose2d(x, p({c}, {o}, {k}, {q}), p({o}), stride={s}, padding={a})",
    "x + F.conv2d(x, p({c}, {c}, 3, 3), padding=1)",
    "cat([x, F.conv2d(x, p({o}, {c}, 1, 1))], 1)",
    "F.max_pool2d(x, {k}, {s}, min({a}, {k} // 2))", "F.max_pool2d(x, ({k}, {q}))",
    "F.avg_pool2d(x, {k}, {s}, min({a}, {k} // 2))",
    "F.interpolate(x, scale_factor={s}, mode='nearest')",
    "F.interpolate(x, scale_factor={s}, mode='bilinear')",
    "F.pad(x, ({a}, {s}, 0, {a}))", "x[:, :, {a}:, : x.shape[3] - {a}]", "x[:, :, ::{s}].flip(3)",
    "scaled(x, (0, 2, 3)) * p({c}, 1, 1) + p({c}, 1, 1)", "scaled(x, (1,))", "scaled(x, (2, 3))",
    "F.relu(x)", "F.gelu(x)", "F.silu(x)", "F.leaky_relu(x)", "x.transpose(2, 3)",
    "x * p({c}, 1, 1) + x.mean((2, 3), keepdim=True)", "x.softmax(3)", "x.softmax(1)",
    "x.cumsum(3)", "x.cumsum(2)", "x.roll(({s}, {a}), (2, 3))", "x @ x.transpose(2, 3)",
    "F.scaled_dot_product_attention(x, x * 0.1, x)", "F.relu(x) + (x.abs() + 1).log()",
    "(x.permute(0, 2, 3, 1) @ p({c}, {o})).permute(0, 3, 1, 2)", "x.repeat_interleave({s}, 3)",
    "x.flatten(2).reshape(x.shape[0], -1, x.shape[3], x.shape[2])", "x[:, :, :, [0, -1, 0]]",
    "x - x.amax(3, keepdim=True)", "(x.square().sum(2, keepdim=True) + 1).sqrt() + x",
    "x * p({c}, 1, 1) + x.amax((1, 2), keepdim=True)",
)
OF_SEQUENCES = (  # (b, t, c)
    "F.linear(x, p({o}, {c}), p({o}))", "x + F.linear(F.gelu(F.linear(x, p(33, {c}))), p({c}, 33))",
    "scaled(x, (2,)) * p({c}) + p({c})", "scaled(x, (0, 1))", "x + p({o}, {c})[{a} % {o}]",
    "F.conv1d(x.transpose(1, 2), p({o}, {c}, {k}), p({o}), padding={k} - 1).transpose(1, 2)",
    "F.conv1d(x.transpose(1, 2), p({c}, 1, {k}), stride={s}, groups={c}).transpose(1, 2)",
    "F.max_pool1d(x.transpose(1, 2), {k}, {s}).transpose(1, 2)", "F.avg_pool1d(x, {k}, {s})",
    "x + F.scaled_dot_product_attention(x, x * 0.1, x)", "x + x @ (x.transpose(1, 2) @ x) * 0.01",
    "F.scaled_dot_product_attention(x, x * 0.1, x, is_causal=True)", "cat([x, x.flip(1) * 0.5], 2)",
    "x.softmax(2)", "x.softmax(1)", "x.cumsum(1)", "x.roll({a}, 1) * p({c})", "F.silu(x)",
    "F.relu(x)", "F.pad(x, (0, 0, {a}, {q}))", "x[:, {a}:]", "x[:, ::{s}]", "x[:, :, ::{s}] + 1",
    "x - x.amax(1, keepdim=True)", "x * x.amin(2, keepdim=True)", "x * p({c}) + x.mean((0, 1))",
    "F.glu(cat([x, x * p({c})], 2), -1)", "x.unfold(1, {k}, {s}).flatten(2)",
    "x * (x.square().sum((1, 2), keepdim=True) + 1) ** -0.5", "x.repeat_interleave({s}, 1)",
    "x + p({c})[[n % {c} for n in range({c} + 1)][1:]]", "x / (x.abs().sum(2, keepdim=True) + 1)",
)  # fmt: skip
OPTIONS = {"k": (1, 2, 3, 3, 4, 5, 7), "q": (1, 2, 3), "s": (1, 1, 2, 3), "a": (0, 0, 1, 2, 3),
           "o": CHANNELS}  # fmt: skip


class Network(NamedTuple):
    """shape: of an image or a sequence; layers: expressions of x."""

    shape: tuple[int, ...]
    layers: tuple[str, ...]


def scaled(x: Any, axes: Sequence[int]) -> Any:
    """x with mean 0 and variance 1 along axes."""
    x = x - x.mean(axes, keepdim=True)
    return x * ((x * x).mean(axes, keepdim=True) + 0.01) ** -0.5


def outputs(network: Network, x: Any, own: Callable[..., Any], library: Any, cat: Any) -> Any:
    """The result of the last layer. own: makes a parameter of a shape."""
    names = {"F": library, "cat": cat, "scaled": scaled, "p": own}
    for layer in network.layers:
        x = eval(layer, names, {"x": x})
    return x


def network_of(seed: int) -> Network:
    """The network of a seed: layers that PyTorch accepts."""
    import torch

    draw = random.Random(seed)
    shape: tuple[int, ...] = draw.choice(CHANNELS), draw.choice(WIDTHS), draw.choice(WIDTHS)
    some, place = OF_IMAGES, 1
    if draw.random() < 0.4:
        shape, some, place = (shape[1], shape[0]), OF_SEQUENCES, 2
    x, layers, wanted = torch.zeros(1, *shape), list[str](), draw.randint(2, 6)
    while len(layers) < wanted:
        drawn = {name: draw.choice(options) for name, options in OPTIONS.items()}
        text = draw.choice(some).format(c=x.shape[place], **drawn)
        try:
            y = outputs(Network(shape, (text,)), x, torch.zeros, torch.nn.functional, torch.cat)
        except (RuntimeError, ValueError):  # images smaller than a window
            continue
        if 0 < y.numel() <= MOST_ELEMENTS:
            x = y
            layers.append(text)
    return Network(shape, tuple(layers))


def results_of(
    network: Network, images: npt.NDArray[Any], leaf: Callable[[npt.NDArray[Any]], Any],
    library: Any, cat: Any,
) -> list[Any]:  # fmt: skip
    """The result of a network, its loss, and the gradients of images and parameters."""
    draw, x, leaves = np.random.default_rng(0), leaf(images), list[Any]()

    def own(*shape: int) -> Any:
        leaves.append(leaf(draw.standard_normal(shape) / max(np.prod(shape[1:]), 1) ** 0.5))
        return leaves[-1]

    y = outputs(network, x, own, library, cat)
    waves = np.cos(np.arange(np.prod(y.shape))).reshape(tuple(y.shape))
    loss = (y * leaf(waves)).sum() + (y * y).mean()
    loss.backward()
    return [y, loss, x.grad, *(one.grad for one in leaves)]


def wanted(network: Network, images: npt.NDArray[Any], given: str, dtype: str) -> Arrays:
    """PyTorch's results, computed in a dtype, of images and parameters rounded to another."""
    import torch

    def leaf(one: npt.NDArray[Any]) -> Any:
        return torch.tensor(one.astype(given).astype(dtype), requires_grad=True)

    found = results_of(network, images, leaf, torch.nn.functional, torch.cat)
    return [one.detach().numpy() for one in found]


def failure_of(seed: int, device: str) -> str | None:
    """What differs in the network of a seed, or None."""
    network, draw = network_of(seed), random.Random(seed)
    count, mode = draw.choice((1, 2, 3, 8)), draw.choice(("eager", "captured", "sizes"))
    dtype = draw.choice((*["float32"] * 6, "float64"))
    counts = (count, count + 1, count + 3) if mode == "sizes" else (count,) * 3
    sizes, taller = [*network.shape], draw.random() < 0.5
    height = len(sizes) - 2

    def computed(images: Tensor) -> list[Tensor]:
        found = results_of(network, images, _leaf, functional, Tensor.cat)
        return [one.realize() for one in found]

    def _leaf(values: Any) -> Tensor:
        made = values.detach() if isinstance(values, Tensor) else Tensor(values.astype(dtype))
        return made.requires_grad_()

    call = jit(computed) if mode == "captured" else computed
    with Context(DEVICE=device, GUARD=int(draw.random() < 0.5)):
        for number, n in enumerate(counts):
            more = [taller * (n - count) * (place == height) for place in range(len(sizes))]
            size = n, *map(add, sizes, more)
            images = np.random.default_rng(number).standard_normal(size)
            exact, single = (wanted(network, images, dtype, by) for by in ("float64", "float32"))
            found = [one.numpy().astype(float) for one in call(Tensor(images.astype(dtype)))]
            least = 0.01 * max(abs(one).max(initial=0) for one in exact)
            for place, (one, other, rounded) in enumerate(zip(found, exact, single, strict=True)):
                scale = max(abs(other).max(initial=0), least, 1e-6)
                error, theirs = (abs(x - other).max(initial=0) / scale for x in (one, rounded))
                if not error <= max(TOLERANCES[dtype], dtype == "float32" and MORE * theirs):
                    return (f"seed {seed}, {mode}, {dtype} {size}: result {place} is off "
                            f"by {error:.1e} (PyTorch's: {theirs:.1e})\n{network}")  # fmt: skip
    return None


def main() -> None:
    """The command."""
    given = parser_of("networks", __doc__).parse_args()
    run_command(
        given, "networks", lambda seed: str(network_of(seed)),
        lambda seed: failure_of(seed, given.device), lambda: None,
    )  # fmt: skip


if __name__ == "__main__":
    main()
