"""Nodes for tests of rules, on REF; float32 by default."""

from __future__ import annotations

from devices import REFERENCE

from minigrad.dtype import dtypes
from minigrad.graph import build
from minigrad.graph.canonical import canonicalize
from minigrad.graph.simplify import simplify


def leaf(slot, dtype=dtypes.float32, shape=(3,)):
    return build.buffer(slot, dtype, tuple(shape), REFERENCE)


def number(value, dtype=dtypes.float32, shape=(3,)):
    return build.const(value, dtype, tuple(shape), REFERENCE)


def one(node):
    (result,) = simplify([node])
    return result


def form_of(node):
    """Equal for nodes that compute the same of the same memory, also for copies of templates."""
    call = canonicalize([node], True)
    return call.graph().roots, call.inputs
