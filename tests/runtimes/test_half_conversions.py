"""float16 on processors without F16C: the compiler library's conversions against numpy's."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from minigrad.runtimes.host import host
from minigrad.runtimes.jit_compiler import Compiler, undefined_symbols

pytestmark = pytest.mark.skipif(host().architecture != "x86_64", reason="needs an x86 processor")

CONVERT = """
define void @convert(i64 %count, ptr %from, ptr %to) {
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
  %at.from = getelementptr FROM, ptr %from, i64 %i
  %at.to = getelementptr TO, ptr %to, i64 %i
  %x = load FROM, ptr %at.from
  %y = WIDENS FROM %x to TO
  store TO %y, ptr %at.to
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %count
  br i1 %more, label %loop, label %done
done:
  ret void
}
"""


def convert(x: np.ndarray, to: type[np.floating]) -> np.ndarray:
    """x converted by code for the oldest 64-bit x86."""
    compiler = Compiler(cpu="x86-64")
    names = {np.dtype(np.float16): "half", np.dtype(np.float32): "float"}
    widens = "fpext" if to is np.float32 else "fptrunc"
    text = CONVERT.replace("FROM", names[x.dtype]).replace("TO", names[np.dtype(to)])
    text = text.replace("WIDENS", widens)
    code = compiler.object_code(text)
    assert undefined_symbols(code)
    addresses, keep = compiler.load(code, ["convert"])
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)
    result = np.empty(x.size, to)
    kind(addresses["convert"])(x.size, x.ctypes.data, result.ctypes.data)
    del keep
    return result


def test_every_half_becomes_its_float() -> None:
    x = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    found, expected = convert(x, np.float32), x.astype(np.float32)
    nan = np.isnan(expected)
    assert np.isnan(found[nan]).all()
    assert (found[~nan].view(np.uint32) == expected[~nan].view(np.uint32)).all()


def test_floats_are_rounded_to_the_nearest_half() -> None:
    """All halves, all midpoints between two, their neighbours, and random bits."""
    halves = np.arange(1 << 15, dtype=np.uint16).view(np.float16)
    numbers = halves[np.isfinite(halves)].astype(np.float64)
    middles = (numbers + np.append(numbers[1:], 65536.0)) / 2
    exact = np.concatenate([numbers, middles]).astype(np.float32)
    random = np.random.default_rng(0).integers(0, 1 << 32, 300_000).astype(np.uint32)
    special = np.array([np.inf, np.nan, 1e30, 65519.996, 65520, 1e-45], np.float32)
    positive = np.concatenate([
        exact, np.nextafter(exact, np.float32(np.inf)), np.nextafter(exact, np.float32(0)),
        random.view(np.float32), special,
    ])  # fmt: skip
    x = np.concatenate([positive, -positive])
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16)
    found = convert(x, np.float16)
    nan = np.isnan(expected)
    assert np.isnan(found[nan]).all() and nan.any()
    assert (found[~nan].view(np.uint16) == expected[~nan].view(np.uint16)).all()
