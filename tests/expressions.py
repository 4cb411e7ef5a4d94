"""Expressions, evaluated with minigrad's tensors and with PyTorch's.

If the two are written differently, ours is before "::", after which a line may be broken. A leading
"!" compares values only: gradients differ by convention (ties), or there are none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from minigrad import Tensor, dtypes
from minigrad.errors import GradientError

NAMES = ("float16", "float32", "float64", "int32", "int64")


def cases(text: str) -> Iterator[tuple[str, str, bool]]:
    """(our expression, PyTorch's, whether gradients are compared) of each line."""
    for line in re.sub(r"::\n\s*", ":: ", text.strip()).splitlines():
        ours, _, theirs = line.strip().partition(" :: ")
        plain = ours.removeprefix("!")
        yield plain, theirs or plain, ours == plain


def as_list(value: Any) -> list[Any]:
    """One result or several, as a list."""
    return list(value) if isinstance(value, (tuple, list)) else [value]


def array(tensor: Any) -> Any:
    """PyTorch's tensor as a numpy array; other values, too."""
    if not hasattr(tensor, "detach"):
        return np.asarray(tensor)
    tensor = tensor.detach()
    return tensor.float().numpy() if str(tensor.dtype) == "torch.bfloat16" else tensor.numpy()


def ours_array(value: Any) -> Any:
    """The same for our tensors."""
    if not isinstance(value, Tensor):
        return np.asarray(value)
    return value.float().numpy() if value.dtype is dtypes.bfloat16 else value.numpy()


def same_dtype(found: str, wanted: str) -> bool:
    """Indices are int32 here, sums of unsigned integers uint64 (as in numpy); in PyTorch int64."""
    wide = {"int64": ("int64", "int32", "uint64")}
    return found in wide.get(wanted, (wanted,))


def difference(name: str, found: Any, wanted: Any, half: bool | None = None) -> str | None:
    """What differs between two arrays, or None."""
    if found.shape != wanted.shape:
        return f"{name}: shape {found.shape}, expected {wanted.shape}"
    half = wanted.dtype == np.float16 if half is None else half
    tolerance = {"rtol": 4e-3, "atol": 4e-3} if half else {"rtol": 2e-4, "atol": 2e-5}
    try:
        np.testing.assert_allclose(
            found.astype(np.float64), wanted.astype(np.float64), **tolerance
        )
    except AssertionError as error:
        return f"{name}: {str(error).strip()[:400]}"
    return None


class Comparison:
    """Our results of expressions, to be computed in one program, and PyTorch's."""

    def __init__(self, ours: dict[str, Any], theirs: dict[str, Any], inputs: list[str]) -> None:
        self.ours, self.theirs, self.inputs = ours, theirs, inputs
        self.checks: list[tuple[str, Any, Any]] = []
        self.problems: list[str] = []

    def add(self, number: int, ours: str, theirs: str, differentiable: bool) -> None:
        """Add an expression; the weights for its gradients are drawn from its number."""
        wanted = as_list(eval(theirs, self.theirs))
        try:
            found = as_list(eval(ours, self.ours))
            if len(found) != len(wanted):
                self.problems.append(f"{ours}: {len(found)} results, PyTorch {len(wanted)}")
                return
            for f, w in zip(found, wanted, strict=True):
                kind = str(getattr(w, "dtype", "")).removeprefix("torch.")
                if kind and not same_dtype(f.dtype.name, kind):
                    self.problems.append(f"{ours}: {f.dtype.name}, PyTorch {kind}")
                self.checks.append((ours, f, array(w)))
            if differentiable and any(getattr(w, "requires_grad", False) for w in wanted):
                self._gradients(number, ours, found, wanted)
        except Exception as error:
            self.problems.append(f"{ours}: {type(error).__name__}: {error}")

    def _gradients(self, number: int, name: str, found: list[Any], wanted: list[Any]) -> None:
        """Compare gradients of a weighted sum of all float results, by all that it depends on."""
        import torch

        generator = np.random.default_rng(number)
        loss, total = None, None
        for f, w in zip(found, wanted, strict=True):
            if not w.requires_grad:
                continue
            weights = np.asarray(generator.standard_normal(tuple(w.shape)), str(array(w).dtype))
            mine = (f * Tensor(weights)).sum().double()
            its = (w * torch.from_numpy(weights)).sum().double()
            loss = mine if loss is None else loss + mine
            total = its if total is None else total + its
        leaves = [self.theirs[n] for n in self.inputs]
        grads = torch.autograd.grad(total, leaves, allow_unused=True)
        for n, wanted_grad in zip(self.inputs, grads, strict=True):
            if wanted_grad is None:
                continue
            try:
                (grad,) = loss.gradient(self.ours[n])
            except GradientError:  # PyTorch gives zeros where a derivative is 0 everywhere
                grad = self.ours[n].detach() * 0
            self.checks.append((f"d({name})/d{n}", grad, array(wanted_grad)))

    def finish(self) -> None:
        """Compute all of ours at once; AssertionError if something differs."""
        waiting = [tensor for _, tensor, _ in self.checks if isinstance(tensor, Tensor)]
        Tensor.realize(*waiting)
        for name, tensor, value in self.checks:
            problem = difference(name, ours_array(tensor), value)
            if problem:
                self.problems.append(problem)
        assert not self.problems, "\n".join([f"{len(self.problems)} differences", *self.problems])
