"""Compares an OpenCL device with REF."""

from __future__ import annotations

import numpy as np
from devices import REFERENCE

from minigrad import Context, Tensor
from minigrad.device import Buffer
from minigrad.graph import build
from minigrad.program import realize
from minigrad.runtimes.reference import numpy_dtype


def numbers(*shape, seed=0, dtype="float32"):
    generator = np.random.default_rng(seed + sum(shape))
    if dtype.startswith("float"):
        return generator.normal(size=shape).astype(dtype)
    return generator.integers(-9 if dtype.startswith("int") else 0, 9, shape).astype(dtype)


def agree(make, device, *arrays, tolerance=2e-6):
    """`make` gives the same on the device as on REF, floats within a share of the largest."""
    results = []
    for name in (device, REFERENCE):
        with Context(DEVICE=name), np.errstate(all="ignore"):
            made = make(*(Tensor(array, device=name) for array in arrays))
            made = made if isinstance(made, list) else [made]
            Tensor.realize(*made)
            results.append([t.numpy() for t in made])
    for got, wanted in zip(*results, strict=True):
        assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
        if wanted.dtype.kind not in "fV":
            np.testing.assert_array_equal(got, wanted)
            continue
        got, wanted = got.astype(np.float64), wanted.astype(np.float64)
        scale = np.abs(wanted[np.isfinite(wanted)]).max(initial=1)
        np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance * scale)


def node(values, dtype, device):
    """A realized node that holds these values."""
    data = np.array(values, numpy_dtype(dtype))
    memory = Buffer(device, dtype, data.size)
    memory.copy_in(data.tobytes())
    return build.buffer(memory, dtype, data.shape, device)


def values(roots):
    """Values of nodes, computed by one program."""
    return [
        np.frombuffer(result.arg.copy_out(), numpy_dtype(root.dtype)).reshape(root.shape)
        for root, result in zip(roots, realize(roots, []), strict=True)
    ]
