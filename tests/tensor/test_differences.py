"""minigrad/differences.md is true: each expression in it gives the result stated after it."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minigrad
from minigrad import Tensor, nn

PAGE = Path(__file__).parents[2] / "minigrad" / "differences.md"
GIVEN = re.findall(r"`([^`|]+)` gives `([^`|]+)`", PAGE.read_text("utf-8"))


def raises(call: Callable[[], Any]) -> str:
    """The class of the error that a call raises."""
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return "nothing"


def test_each_line_says_something() -> None:
    lines = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| ")]
    rows = [line for line in lines if not line.startswith(("| what", "| ---"))]
    assert len(rows) >= 30 and all(" gives `" in row for row in rows)


@pytest.mark.parametrize(("code", "value"), GIVEN, ids=[code for code, _ in GIVEN])
def test_difference(code: str, value: str) -> None:
    scope = {"Tensor": Tensor, "minigrad": minigrad, "nn": nn, "np": np, "copy": copy,
             "raises": raises}  # fmt: skip
    if "torch" in code or "F." in code:
        torch = pytest.importorskip("torch", reason="PyTorch is not installed")
        scope |= {"torch": torch, "F": torch.nn.functional}
    assert repr(eval(code, scope)) == value
