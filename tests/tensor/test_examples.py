"""The examples that `help` shows of Tensor's methods give what they say."""

from __future__ import annotations

import doctest
from typing import Any

import pytest

from minigrad import Tensor


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


def test_there_are_examples() -> None:
    """Whatever finds them, it finds most."""
    assert len(EXAMPLES) > 130


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name: str, on_device: None) -> None:
    example = doctest.DocTestParser().get_doctest(EXAMPLES[name], {"Tensor": Tensor}, name, None, 0)
    report: list[str] = []
    assert doctest.DocTestRunner().run(example, out=report.append).failed == 0, "".join(report)
