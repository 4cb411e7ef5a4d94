"""MINIGRAD_TUNE: every way to cut a product computes it, and the fastest one is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from minigrad import Tensor
from minigrad.programs import programs
from minigrad.runtimes import cpu_kernels
from minigrad.settings import Context

# rows, terms, columns, transposed operand: packed or not, k cut or not, with remainders
SHAPES = [
    (300, 70, 200, ""), (129, 600, 513, "left"), (257, 100, 96, "right"), (70, 3000, 150, ""),
    (100, 2500, 700, "right"), (5, 40, 1000, ""),
]  # fmt: skip


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of ways of each product; the last way counts as the fastest."""
    counts: list[int] = []

    def seconds(self: Any, ways: Sequence[Any], arrays: Any) -> list[float]:
        counts.append(len(ways))
        return [float(number != len(ways) - 1) for number in range(len(ways))]

    monkeypatch.setattr(cpu_kernels.Kernels, "seconds", seconds)
    return counts


def product(shape: tuple[int, int, int, str], device: str) -> tuple[np.ndarray, np.ndarray]:
    programs.forget()  # a program for other sizes, too, is not measured
    m, k, n, transposed = shape
    random = np.random.default_rng(0)
    a = random.standard_normal((k, m) if transposed == "left" else (m, k)).astype(np.float32)
    b = random.standard_normal((n, k) if transposed == "right" else (k, n)).astype(np.float32)
    x, y = Tensor(a, device=device), Tensor(b, device=device)
    x, a = (x.T, a.T) if transposed == "left" else (x, a)
    y, b = (y.T, b.T) if transposed == "right" else (y, b)
    return (x @ y + 1).numpy(), a @ b + 1


@pytest.mark.parametrize("shape", SHAPES)
def test_every_way_is_right(
    shape: tuple[int, int, int, str], cpu: str, measured: list[int], tmp_path: Any
) -> None:
    for most in range(2, 12):
        before = len(measured)
        with Context(TUNE=most, CACHE=str(tmp_path / str(most))):
            got, wanted = product(shape, cpu)
        assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max() + 1e-4, most
        if len(measured) == before or measured[-1] < most:  # there are no more
            break
    assert measured or shape[0] < 8


def test_the_best_is_kept(cpu: str, measured: list[int], tmp_path: Any) -> None:
    with Context(TUNE=4, CACHE=str(tmp_path)):
        product(SHAPES[0], cpu)
        programs.forget()
        product(SHAPES[0], cpu)
    assert len(measured) == 1


def test_it_is_measured(cpu: str, tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with Context(TUNE=3, DEBUG=1, CACHE=str(tmp_path)):
        product(SHAPES[0], cpu)
    assert "tuned: " in capsys.readouterr().err
