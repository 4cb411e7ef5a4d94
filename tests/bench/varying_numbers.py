"""Rows of `varying`: each call has a number, an offset or a size that no earlier one had."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from minigrad import Tensor, jit, nn
from minigrad.models.gpt import GPT, GPTConfig
from minigrad.programs import programs
from minigrad.runtimes.cpu import CPU
from tests.bench.gpt_step import torch_step
from tests.bench.measure import Row
from tests.bench.peers import Work, installed, torch_work

LARGE, SMALL = (784, 256, 128, 10), (4, 64, 2)


def rows(threads: int) -> Iterator[Row]:
    """Numbers, sizes, and the time of Python."""
    yield from numbers(threads)
    for widths, most in ((LARGE, 200), (SMALL, 60)):
        yield training(widths, most, threads)
        yield training(widths, most, threads, captured=True)
    yield from matrices(threads)
    yield images(threads)
    yield prompts(threads)
    yield texts(threads)
    yield texts(threads, number=True)
    yield from general_against_special()
    yield from eager(threads)


def numbers(threads: int) -> Iterator[Row]:
    """An offset or a constant that is new in each call."""
    a = np.random.default_rng(0).standard_normal((60_000, 64), dtype=np.float32)
    x = Tensor(a).realize()
    work: dict[str, Callable[[Any, int], Any]] = {
        "x[i].sum().item(), each i new": lambda x, i: x[i % 59_000].sum().item(),
        "x[i : i + 32] * 2, each i new": lambda x, i: x[i % 59_000 : i % 59_000 + 32] * 2,
        "(x[:64] * f).sum().item(), each f new": lambda x, i: (x[:64] * (i / 7)).sum().item(),
    }
    for name, function in work.items():
        ours, theirs = itertools.count(1), itertools.count(1)

        def run(function: Any = function, count: Any = ours) -> None:
            result = function(x, next(count))
            if isinstance(result, Tensor):
                result.realize()

        peer = torch_work(lambda a, f=function, n=theirs: f(a, next(n)), a, threads=threads)
        yield Row(name, run, peer)


def _sizes(most: int) -> Iterator[int]:
    """Sizes in random order, none of them twice within `most` calls."""
    return itertools.cycle(int(n) for n in np.random.default_rng(0).permutation(most) + 2)


def training(
    widths: Sequence[int], most: int, threads: int, captured: bool = False
) -> Row:
    """A step of SGD on a batch of another size than before; captured: each size was captured."""
    rng = np.random.default_rng(0)
    data = rng.standard_normal((most + 2, widths[0]), dtype=np.float32)
    labels = rng.integers(0, widths[-1], most + 2)
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    optimizer = nn.optim.SGD(nn.state.get_parameters(layers), lr=0.01)

    def step(x: Tensor, y: Tensor) -> Tensor:
        for layer in layers[:-1]:
            x = layer(x).relu()
        loss = layers[-1](x).cross_entropy(y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.realize()

    run, sizes = jit(step) if captured else step, _sizes(8 if captured else most)

    def ours() -> None:
        size = next(sizes)
        run(Tensor(data[:size]), Tensor(labels[:size].astype(np.int32))).item()

    for _ in range(16 if captured else 4):
        ours()
    name = "-".join(map(str, widths))
    kind = "captured, 8 sizes in turn" if captured else "each size new"
    return Row(f"training step of {name}, {kind}", ours,
               _torch_training(widths, data, labels, 8 if captured else most, threads))  # fmt: skip


def _torch_training(
    widths: Sequence[int], data: np.ndarray, labels: np.ndarray, most: int, threads: int
) -> dict[str, Work]:
    if not installed("torch"):
        return {}
    import torch

    torch.set_num_threads(threads)
    pairs = list(itertools.pairwise(widths))
    parts = [part for a, b in pairs for part in (torch.nn.Linear(a, b), torch.nn.ReLU())]
    model = torch.nn.Sequential(*parts[:-1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sizes, x, y = _sizes(most), torch.from_numpy(data), torch.from_numpy(labels)

    def step() -> None:
        size = next(sizes)
        _descend(optimizer, torch.nn.functional.cross_entropy(model(x[:size]), y[:size]))

    return {"torch": step}


def _descend(optimizer: Any, loss: Any) -> None:
    """A step of an optimizer of either library, up to the loss on the host."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    loss.item()


def matrices(threads: int) -> Iterator[Row]:
    """Functions of matrices whose rows and columns no earlier ones had."""
    data = np.random.default_rng(0).standard_normal((200, 200), dtype=np.float32)
    work: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
        "x * 2 + 1": (lambda x: x * 2 + 1, lambda x: x * 2 + 1),
        "softmax": (lambda x: x.softmax(-1), lambda x: x.softmax(-1)),
        "x @ x.T": (lambda x: x @ x.T, lambda x: x @ x.T),
    }
    for name, (function, other) in work.items():
        pairs, others = (zip(_sizes(190), _sizes(170), strict=False) for _ in range(2))

        def ours(function: Any = function, pairs: Any = pairs) -> None:
            rows, columns = next(pairs)
            function(Tensor(data[:rows, :columns])).realize()

        def theirs(a: Any, function: Any = other, pairs: Any = others) -> Any:
            rows, columns = next(pairs)
            return function(a[:rows, :columns].contiguous())

        for _ in range(3):
            ours()
        yield Row(f"{name}, rows and columns new", ours, torch_work(theirs, data, threads=threads))


def images(threads: int) -> Row:
    """A step of SGD of a small convolutional network on images of a new height and width."""
    rng = np.random.default_rng(0)
    data = rng.standard_normal((4, 3, 96, 96), dtype=np.float32)
    labels = rng.integers(0, 10, 4).astype(np.int32)
    convolutions = [nn.Conv2d(a, b, 3, padding=1) for a, b in ((3, 16), (16, 32), (32, 32))]
    last = nn.Linear(32, 10)
    optimizer = nn.optim.SGD(nn.state.get_parameters([*convolutions, last]), lr=0.01)

    def turn() -> Iterator[tuple[int, int]]:
        return zip(_sizes(10), _sizes(9), strict=False)

    pairs, others = turn(), turn()

    def ours() -> None:
        height, width = next(pairs)
        x = Tensor(data[:, :, : 8 * height, : 8 * width])
        for layer in convolutions:
            x = layer(x).relu().max_pool2d(2)
        _descend(optimizer, last(x.mean((2, 3))).cross_entropy(Tensor(labels)))

    peer: dict[str, Work] = {}
    if installed("torch"):
        import torch

        torch.set_num_threads(threads)
        shapes = ((3, 16), (16, 32), (32, 32))
        layers: list[Any] = [torch.nn.Conv2d(a, b, 3, padding=1) for a, b in shapes]
        head = torch.nn.Linear(32, 10)
        parameters = [p for layer in (*layers, head) for p in layer.parameters()]
        descent = torch.optim.SGD(parameters, lr=0.01)
        x, y = torch.from_numpy(data), torch.from_numpy(labels).long()

        def theirs() -> None:
            height, width = next(others)
            z = x[:, :, : 8 * height, : 8 * width]
            for layer in layers:
                z = torch.nn.functional.max_pool2d(layer(z).relu(), 2)
            _descend(descent, torch.nn.functional.cross_entropy(head(z.mean((2, 3))), y))

        peer = {"torch": theirs}
    for _ in range(5):
        ours()
    return Row("step of a convolutional network, height and width new", ours, peer)


def prompts(threads: int) -> Row:
    """The logits of a prompt whose length no earlier one had."""
    model = GPT(GPTConfig(4, 4, 128, 256, 500))
    tokens, sizes = np.random.default_rng(0).integers(0, 500, (1, 256)), _sizes(250)

    def ours() -> None:
        model(Tensor(tokens[:, : next(sizes)].astype(np.int32))).realize()

    return Row("GPT 4 × 128, each length of a prompt new", ours, {})


def texts(threads: int, number: bool = False) -> Row:
    """A training step on eight texts of a length that no earlier ones had; number: on 2 … 16."""
    config, random = GPTConfig(4, 4, 128, 256, 65), np.random.default_rng(0)
    model, tokens = GPT(config), random.integers(0, 65, (16, 256), dtype=np.int32)
    optimizer = nn.optim.AdamW(nn.state.get_parameters(model), lr=1e-4)

    def batches() -> Iterator[np.ndarray[Any, Any]]:
        rng = np.random.default_rng(1)
        for length in _sizes(250):
            yield tokens[: int(rng.integers(2, 17)) if number else 8, : length + 1]

    own = batches()

    def ours() -> None:
        batch = next(own)
        logits, targets = model(Tensor(batch[:, :-1])), Tensor(batch[:, 1:])
        _descend(optimizer, logits.reshape(-1, 65).cross_entropy(targets.reshape(-1)))

    peer: dict[str, Work] = {}
    if installed("torch"):
        step, others = torch_step(config, threads), batches()

        def theirs() -> None:
            batch = next(others)
            step(batch[:, :-1], batch[:, 1:])

        peer["torch"] = theirs
    for _ in range(6 if number else 4):
        ours()
    how = "their number and length new" if number else "each length new"
    return Row(f"training step of GPT 4 × 128 on {'' if number else '8 '}texts, {how}", ours, peer)


class OfSizes(NamedTuple):
    """A function of arrays of these shapes; −1 stands for n, of which `size` is measured."""

    size: int
    shapes: Sequence[tuple[int, ...]]
    function: Callable[..., Sequence[Tensor]]

    def run(self, given: Sequence[Tensor]) -> None:
        """Compute the function of tensors."""
        Tensor.realize(*self.function(*given))

    def data(self, n: int) -> list[Tensor]:
        """Tensors of the shapes, drawn."""
        generator = np.random.default_rng(n)
        shapes = [tuple(n if extent < 0 else extent for extent in shape) for shape in self.shapes]
        return [Tensor(generator.standard_normal(shape, dtype=np.float32)).realize()
                for shape in shapes]  # fmt: skip


def with_gradients(function: Callable[..., Tensor]) -> Callable[..., Sequence[Tensor]]:
    """The function's result with gradients by all of its arguments."""

    def both(*given: Tensor) -> Sequence[Tensor]:
        result = function(*given)
        return result, *result.gradient(*given, gradient=result.ones_like())

    return both


def functions_of_sizes() -> dict[str, OfSizes]:
    """Functions of arrays whose number of rows (or images) varies, by name."""
    rows, images, filters = (-1, 512), (-1, 16, 32, 32), (32, 16, 3, 3)
    padded = with_gradients(lambda x, w: x.conv2d(w, padding=1))
    return {
        "(x @ w).relu()": OfSizes(250, (rows, (512, 1536)), lambda x, w: [(x @ w).relu()]),
        "xᵀ @ x": OfSizes(250, (rows,), lambda x: [x.T @ x]),
        "softmax": OfSizes(250, (rows,), lambda x: [x.softmax()]),
        "layer norm": OfSizes(250, (rows,), lambda x: [x.layernorm()]),
        "gelu": OfSizes(250, (rows,), lambda x: [x.gelu()]),
        "relu": OfSizes(2000, (rows,), lambda x: [x.relu()]),
        "a sum": OfSizes(2000, (rows,), lambda x: [x.sum()]),
        "sums of columns": OfSizes(250, (rows,), lambda x: [x.sum(0)]),
        "mean squared error, gradients": OfSizes(
            2000, (rows, rows), with_gradients(lambda x, y: (x - y).square().mean())),
        "top 50 of 10,000": OfSizes(40, ((-1, 10_000),), lambda x: list(x.topk(50))),
        "3 × 3 convolution": OfSizes(
            16, (images, filters), lambda x, w: [x.conv2d(w, padding=1).relu()]),
        "the same, gradients": OfSizes(16, (images, filters), padded),
        "1 × 1 convolution, gradients": OfSizes(
            16, (images, (32, 16, 1, 1)), with_gradients(lambda x, w: x.conv2d(w))),
        "replicated borders": OfSizes(
            16, (images,), lambda x: [x.pad((2, 2, 2, 2), mode="replicate")]),
        "pixel shuffle": OfSizes(16, (images,), lambda x: [x.pixel_shuffle(2)]),
        "attention": OfSizes(100, ((-1, 4, 64, 32),) * 3, lambda q, k, v: [
            q.scaled_dot_product_attention(k, v, is_causal=True)]),
    }  # fmt: skip


def general_against_special() -> Iterator[Row]:
    """The general program of varying sizes against one compiled for the size (the peer)."""
    for name, one in functions_of_sizes().items():
        programs.forget()
        for n in (one.size // 4, one.size // 2, one.size * 3 // 8):
            one.run(one.data(n))
        general = programs._families
        programs._families = {}
        given = one.data(one.size)
        CPU.generalizes = False
        try:
            one.run(given)
        finally:
            CPU.generalizes = True
        special = programs._families

        def run(families: Any, one: OfSizes = one, given: Sequence[Tensor] = given) -> None:
            programs._families = families
            one.run(given)

        yield Row(f"{name} of {one.size}: one program for all sizes, beside its own",
                  lambda run=run, f=general: run(f),
                  {"special": lambda run=run, f=special: run(f)}, goal=0.95)  # fmt: skip
    programs.forget()


def eager(threads: int) -> Iterator[Row]:
    """The time of Python: operations that are realized one by one, and many at once."""
    a, b = np.random.default_rng(0).standard_normal((2, 64, 64), dtype=np.float32)
    x, y = Tensor(a).realize(), Tensor(b).realize()
    yield Row("x * y of 64 × 64, realized", lambda: (x * y).realize(),
              torch_work(lambda a, b: a * b, a, b, threads=threads))  # fmt: skip
    waiting: list[Tensor] = []

    def among_others() -> None:
        if not waiting:
            waiting.extend(Tensor([float(n)]).realize() + 1 for n in range(5000))
        (x * y).realize()

    yield Row("the same while 5,000 others are lazy", among_others,
              torch_work(lambda a, b: a * b, a, b, threads=threads))  # fmt: skip
    waiting.clear()

    def many(x: Any, y: Any) -> Any:
        for n in range(500):
            x = (x + y) * 0.5 if n % 2 else (x - y).tanh()
        return x

    yield Row("1,000 of them, realized at the end", lambda: many(x, y).realize(),
              torch_work(many, a, b, threads=threads))  # fmt: skip
    weights = [Tensor(np.eye(64, dtype=np.float32) * 0.9).realize() for _ in range(10)]

    def layers(x: Any, y: Any, weights: Sequence[Any]) -> Any:
        for weight in weights:
            x = (x @ weight + y[0]).relu()
        return x

    eyes = [np.eye(64, dtype=np.float32) * 0.9] * 10
    yield Row("10 layers of 64, eager", lambda: layers(x, y, weights).realize(),
              torch_work(lambda x, y, *w: layers(x, y, w), a, b, *eyes, threads=threads))
