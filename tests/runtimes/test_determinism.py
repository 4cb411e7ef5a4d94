"""Results are bitwise equal with any number of threads and any order of chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minigrad import Context, Device, Tensor, nn, program
from minigrad.loops import assemble
from minigrad.models.gpt import GPT, GPTConfig
from minigrad.models.train import MatrixAdamW, TrainingPlan, make_step
from minigrad.programs import Programs
from minigrad.runtimes import cpu, cpu_pool
from minigrad.runtimes.cpu_kernels import Kernel, Kernels

RUNS = [(threads, seed) for threads in (1, 2, 3, 8) for seed in (0, 1, 2)]


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Kernel]]:
    """The kernels compiled so far, with chunks so small that all threads share even little work."""
    monkeypatch.setattr(assemble, "CHUNK_OPERATIONS", 50)
    monkeypatch.setattr(program, "programs", Programs(1000))
    made = Kernels(cpu.host_target(), cpu.host_compiler())
    monkeypatch.setattr(cpu, "host_kernels", lambda: made)
    with Context(CACHE=str(tmp_path / "cache")):
        seen: list[Kernel] = []
        original = made._kept

        def kept(*arguments: Any) -> dict[str, Kernel]:
            found = original(*arguments)
            seen.extend(found.values())
            return found

        monkeypatch.setattr(made, "_kept", kept)
        yield seen


def are_shared(kernels: list[Kernel]) -> bool:
    """Whether a kernel has more than one chunk; otherwise a test would compare equal runs."""
    return any(kernel.code.total > kernel.code.grain for kernel in kernels)


@contextmanager
def device_of(threads: int, seed: int = 0) -> Iterator[str]:
    """A CPU device with this many threads, which runs chunks in an order drawn from seed."""
    name = Device.canonical(f"CPU:{100 + threads}")
    with Context(THREADS=threads):
        pool = cpu_pool.pool_for(name)
    assert pool.threads == threads
    pool.shuffle(seed)
    try:
        yield name
    finally:
        pool.shuffle(0)


def everywhere(
    compute: Callable[[str], list[np.ndarray]], runs: Sequence[tuple[int, int]] = RUNS
) -> None:
    """Results on one thread have the same bits as on more threads, also in two random orders."""
    first: list[bytes] | None = None
    for threads, seed in runs:
        with device_of(threads, seed) as device:
            results = [array.tobytes() for array in compute(device)]
        first = first or results
        assert results == first, f"{threads} threads, order {seed}"


def data(*shape: int, seed: int = 0) -> np.ndarray:
    """Values whose sums depend on the order in which they are added."""
    generator = np.random.default_rng(seed)
    scale = 10.0 ** generator.integers(-3, 4, shape)
    return (generator.standard_normal(shape) * scale).astype(np.float32)


def test_the_data_depend_on_the_order() -> None:
    """Otherwise these tests could not fail: another order of addition gives other bits."""
    values = data(1_000_000)
    forward = np.add.accumulate(values)[-1]
    backward = np.add.accumulate(values[::-1])[-1]
    assert forward != backward


@pytest.mark.parametrize("reduction", ["sum", "mean", "max", "var", "argmax", "prod"])
def test_reductions_to_a_scalar(reduction: str, kernels: list[Kernel]) -> None:
    """A million elements: partial results are added in the order of their positions."""
    values = data(1_000_000)
    if reduction == "prod":
        values = np.exp(values / 1e6)

    def compute(device: str) -> list[np.ndarray]:
        x = Tensor(values, device=device)
        return [
            getattr(x, reduction)().numpy(),
            getattr(x.reshape(1000, 1000), reduction)(0).numpy(),
        ]

    everywhere(compute)
    assert are_shared(kernels)


@pytest.mark.parametrize("shape", [(1, 700, 1), (65, 129, 33), (200, 301, 257), (7, 4096, 5)])
def test_products(shape: tuple[int, int, int], kernels: list[Kernel]) -> None:
    """Matrix products with remainders along every axis, and a long one that may be cut along K."""
    m, k, n = shape
    a, b = data(m, k), data(k, n, seed=1)
    everywhere(lambda device: [(Tensor(a, device=device) @ Tensor(b, device=device)).numpy()])
    assert are_shared(kernels) or m * n < 100


def test_rows(kernels: list[Kernel]) -> None:
    """Softmax, layer norm, cumulative sums, with their gradients."""
    values = data(300, 257)

    def compute(device: str) -> list[np.ndarray]:
        x = Tensor(values, device=device, requires_grad=True)
        results = [(x / 100).softmax(), x.layernorm(), x.cumsum(1), x.logsumexp(0)]
        weights = Tensor(data(300, 257, seed=2), device=device)
        (slope,) = (results[0] * weights + results[1]).sum().gradient(x)
        Tensor.realize(*results, slope)
        return [result.numpy() for result in (*results, slope)]

    everywhere(compute)
    assert are_shared(kernels)


@pytest.mark.usefixtures("kernels")
def test_scatter_add() -> None:
    """Additions to one place happen in the order of the indices."""
    index = np.random.default_rng(5).integers(0, 11, 50_000).astype(np.int32)
    values = data(50_000, 3)

    def compute(device: str) -> list[np.ndarray]:
        places = Tensor(index, device=device).reshape(-1, 1).expand(50_000, 3)
        base = Tensor(np.zeros((11, 3), np.float32), device=device)
        return [base.scatter_add(0, places, Tensor(values, device=device)).numpy()]

    everywhere(compute)


def test_gpt_training_steps(kernels: list[Kernel]) -> None:
    """Three steps of a tiny GPT, the last one a replay: loss, parameters and random numbers."""
    config = GPTConfig(vocabulary=61, context=40, layers=2, heads=2, dim=48, dropout=0.1)
    generator = np.random.default_rng(3)
    ids = generator.integers(0, 61, (3, 5, 40)).astype(np.int32)
    targets = generator.integers(0, 61, (3, 5, 40)).astype(np.int32)

    def compute(device: str) -> list[np.ndarray]:
        with Context(DEVICE=device):
            Tensor.manual_seed(1)
            model = GPT(config)
            plan = TrainingPlan()
            parameters = nn.state.get_parameters(model)
            step = make_step(model, MatrixAdamW(parameters, plan), plan.clip)
            losses = [step(Tensor(ids[i]), Tensor(targets[i])).numpy().copy() for i in range(3)]
            return [*losses, *(parameter.numpy() for parameter in parameters)]

    everywhere(compute, [(1, 0), (3, 0), (2, 1), (8, 2)])
    assert are_shared(kernels)
