"""The examples that `help` shows of Tensor's methods give what they say."""

from __future__ import annotations

import doctest
import inspect
from typing import Any

import pytest

from minigrad import Mesh, P, Tensor


def _documented() -> dict[str, str]:
    """Docstrings with an example, by method, second names left out."""
    found: dict[str, str] = {}
    for family in Tensor.__mro__[:-1]:
        for name, value in vars(family).items():
            function: Any = getattr(value, "fget", None) or getattr(value, "__func__", value)
            text = getattr(function, "__doc__", None) or ""
            if ">>>" in text and getattr(function, "__name__", name) == name:
                found[name] = text
    return found


EXAMPLES = _documented()


# Modes and state, and what is said in a sentence.
WITHOUT = {
    "cat", "concat", "concatenate", "stack", "repeat", "repeat_interleave", "roll", "split",
    "chunk", "data", "no_grad", "train", "manual_seed", "random_state", "set_random_state", "mro",
}  # fmt: skip


def test_every_method_has_an_example() -> None:
    """Second names and in-place forms show their method's."""
    silent = []
    for name in dir(Tensor):
        method = inspect.getattr_static(Tensor, name)
        method = getattr(method, "__func__", method)
        text = getattr(method, "__doc__", None) or ""
        if name[0] != "_" and callable(method) and " in place; gives self" not in text:
            silent += [] if ">>>" in text or name in WITHOUT else [name]
    assert not silent


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name: str, on_device: None) -> None:
    names = {"Tensor": Tensor, "Mesh": Mesh, "P": P}
    example = doctest.DocTestParser().get_doctest(EXAMPLES[name], names, name, None, 0)
    report: list[str] = []
    assert doctest.DocTestRunner().run(example, out=report.append).failed == 0, "".join(report)
