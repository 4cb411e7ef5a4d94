"""Rows of `table_names`: against PyTorch if it is installed, else each device against REF."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
from devices import REFERENCE
from expressions import NAMES, Comparison, as_list, cases, difference, ours_array

from minigrad import Context, Tensor, dtypes, linalg, nn

from .table_beside import BESIDE
from .table_names import DTYPES, FAMILIES

HAS_TORCH = importlib.util.find_spec("torch") is not None


def _inputs() -> dict[str, np.ndarray]:
    g = np.random.default_rng(8)

    def normal(*shape: int) -> np.ndarray:
        return g.standard_normal(shape).astype(np.float32)

    odd, other = normal(3, 4), normal(3, 4)
    odd.flat[[0, 3, 5, 6, 8]] = np.nan, np.inf, -np.inf, -0.0, 0.0
    other.flat[[0, 3, 5, 6, 8, 9]] = 1, np.inf, np.inf, -0.0, 0.0, np.nan
    return {
        "x": normal(3, 4), "y": normal(3, 4), "t": normal(2, 3, 4), "v": normal(4),
        "p": g.uniform(1.1, 3, (3, 4)).astype(np.float32), "s": normal(3, 3),
        "u": g.uniform(-0.9, 0.9, (3, 4)).astype(np.float32), "s4": normal(4, 4),
        "d": g.standard_normal((3, 4)), "img": normal(2, 4, 4, 6), "tall": normal(9, 3),
        "z": odd, "zt": other, "line": np.sort(normal(5)),
        "q3": np.array([0.0, 0.37, 1.0], np.float32),
        "i": g.integers(-9, 10, (3, 4)).astype(np.int32),
        "j": g.integers(1, 6, (3, 4)).astype(np.int32), "k": np.array([2, 0, 1]),
        "k0": np.array([1, 0, 1]), "k3": g.integers(0, 3, (3, 4)), "k4": np.array([1, 0, 3, 2]),
        "b": g.integers(0, 2, (3, 4)).astype(bool), "a": np.array([3, 200], np.uint8),
        "sign": np.sign(normal(3, 4)),
        "few": g.integers(0, 3, (3, 5)).astype(np.int32),
        "h": normal(3, 4).astype(np.float16), "n8": g.integers(0, 200, (3, 4)).astype(np.uint8),
        "pic": normal(2, 3, 6, 7), "w": normal(4, 3, 3, 3), "c4": normal(4),
        "tri": np.tri(3, dtype=bool), "ign": np.array([2, -100, 1]),
    }  # fmt: skip


INPUTS = _inputs()
LEAVES = ("x", "y", "t", "v", "p", "s", "u", "d", "img", "h", "pic", "w", "c4")


def _ours(changes: dict[str, np.ndarray]) -> dict[str, Any]:
    tensors = {
        name: Tensor(value, requires_grad=True if name in LEAVES and not changes else None)
        for name, value in {**INPUTS, **changes}.items()
    }
    return {"Tensor": Tensor, "F": nn.functional, "linalg": linalg, "float": float, "tuple": tuple,
            **{name: getattr(dtypes, name) for name in NAMES}, **tensors}  # fmt: skip


def _theirs(changes: dict[str, np.ndarray]) -> dict[str, Any]:
    import torch

    tensors = {
        name: torch.from_numpy(np.array(value)).requires_grad_(name in LEAVES and not changes)
        for name, value in {**INPUTS, **changes}.items()
    }
    return {"torch": torch, "F": torch.nn.functional, "linalg": torch.linalg, "float": float,
            "tuple": tuple, **tensors,
            **{name: getattr(torch, name) for name in NAMES}}  # fmt: skip


def _check(rows: list[tuple[str, str, bool]], changes: dict[str, np.ndarray], device: str) -> None:
    if HAS_TORCH:
        with Context(DEVICE=device):
            comparison = Comparison(_ours(changes), _theirs(changes), list(LEAVES))
            for number, row in enumerate(rows):
                comparison.add(number, *row)
            comparison.finish()
        return
    found = []
    for name in (device, REFERENCE):
        with Context(DEVICE=name):
            scope = _ours(changes)
            results = [as_list(eval(ours, scope)) for ours, _, _ in rows]
            Tensor.realize(*(r for each in results for r in each if isinstance(r, Tensor)))
            found.append([[ours_array(r) for r in each] for each in results])
    half = any(value.dtype == np.float16 for value in changes.values())
    problems = [
        difference(row[0], one, other, half)
        for row, mine, its in zip(rows, *found, strict=True)
        for one, other in zip(mine, its, strict=True)
    ]
    assert not any(problems), "\n".join(filter(None, problems))


@pytest.mark.parametrize("family", FAMILIES)
def test_names(family: str, compiled: str) -> None:
    """Values, dtypes, arguments and gradients."""
    _check(list(cases(FAMILIES[family].replace("*x", "x"))), {}, compiled)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype: str, compiled: str) -> None:
    """Rows that begin with *, with each dtype of DTYPES."""
    lines = "\n".join(
        "!" + line.strip()[1:]
        for text in FAMILIES.values() for line in text.splitlines() if line.strip()[:1] == "*"
    )  # fmt: skip
    changes = {name: (INPUTS[name] * 4).astype(dtype) for name in ("x", "y")}
    if dtype in ("uint8", "int8"):
        changes = {name: (np.abs(INPUTS[name] * 4) + 1).astype(dtype) for name in changes}
    _check(list(cases(lines)), changes, compiled)


@pytest.mark.parametrize("family", BESIDE)
def test_beside_pytorch(family: str, compiled: str) -> None:
    """Values, dtypes and gradients."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    _check(list(cases(BESIDE[family])), {}, compiled)


PROMOTIONS = (
    "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64", "bool",
)  # fmt: skip


@pytest.mark.parametrize("left", PROMOTIONS)
def test_promotion(left: str) -> None:
    """Between each pair of dtypes, and with Python numbers."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    for right in PROMOTIONS:
        ours = (Tensor.ones(2, dtype=left) * Tensor.ones(2, dtype=right)).dtype.name
        theirs = (
            torch.ones(2, dtype=getattr(torch, left)) * torch.ones(2, dtype=getattr(torch, right))
        ).dtype
        assert f"torch.{ours}" == str(theirs), (left, right)
    for scalar in (2, 2.5, True):
        ours = (Tensor.ones(2, dtype=left) * scalar).dtype.name
        theirs = str((torch.ones(2, dtype=getattr(torch, left)) * scalar).dtype)
        wide = theirs.replace("int64", "int32") if left == "bool" else theirs  # our default int
        assert f"torch.{ours}" == wide, (left, scalar)
