"""The libraries that rows compare with; each is left out where it is not installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

Work = Callable[[], object]


def installed(name: str) -> bool:
    """Whether a library can be imported."""
    return importlib.util.find_spec(name) is not None


def numpy_work(function: Callable[..., Any], *arrays: np.ndarray) -> dict[str, Work]:
    """`function` of numpy arrays."""
    return {"numpy": lambda: function(*arrays)}


def torch_work(
    function: Callable[..., Any], *arrays: np.ndarray, threads: int, compiled: bool = False
) -> dict[str, Work]:
    """`function` of PyTorch tensors; with `compiled`, under torch.compile too."""
    if not installed("torch"):
        return {}
    import torch

    torch.set_num_threads(threads)
    tensors = [torch.from_numpy(array) for array in arrays]
    works: dict[str, Work] = {"torch": lambda: function(*tensors)}
    if compiled:
        fast = torch.compile(function)
        works["torch.compile"] = lambda: fast(*tensors)
    return works


def jax_work(function: Callable[..., Any], *arrays: np.ndarray) -> dict[str, Work]:
    """`function` of JAX arrays under jax.jit, waited for."""
    if not installed("jax"):
        return {}
    import jax

    given = [jax.device_put(array) for array in arrays]
    fast = jax.jit(function)
    return {"jax": lambda: jax.block_until_ready(fast(*given))}
