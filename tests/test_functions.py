"""The page of functions matches the code, and accounts for every name that others document."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from function_page import DIFFERENT, PAGE, PLACES, absent, here, namespaces, otherwise, page

from minigrad import Tensor, docs, linalg, nn


def test_the_page_is_as_written() -> None:
    """`python tests/function_page.py` rewrites it."""
    assert PAGE.read_text("utf-8") == page()


def test_every_name_is_here_or_said_why_not() -> None:
    assert set(namespaces()) == set(PLACES)
    open_ends = [
        f"{space}.{name}"
        for space, names in namespaces().items() for name in names
        if not (here(space, name) or otherwise(space, name) or absent(name))
    ]  # fmt: skip
    assert not open_ends


def test_what_is_typed_instead_exists() -> None:
    owners = {"x": Tensor, "Tensor": Tensor, "F": nn.functional, "nn": nn, "linalg": linalg}
    for name, text in DIFFERENT.items():
        for owner, typed in re.findall(r"\b(x|Tensor|F|nn|linalg)\.(\w+)", text):
            assert hasattr(owners[owner], typed), f"{name}: {text}"


def test_the_page_from_docstrings(tmp_path: Path) -> None:
    """`python -m minigrad.docs` lists every public name, with its docstring."""
    made = tmp_path / "api.md"
    docs.main([str(made)])
    text = made.read_text("utf-8")
    for title, place in docs.places().items():
        for name in docs.public_names(place):
            value = getattr(place, name)
            if not inspect.ismodule(value) and not name.startswith("__"):
                assert f"### `{title}.{name}" in text, name
                assert (inspect.getdoc(value) or "").split("\n")[0] in text, name
    assert ">>> Tensor([3.0]).hypot(Tensor([4.0])).tolist()" in text
    assert "mse_loss(self, target: Core, reduction: str = 'mean') -> Self`" in text
    assert "### `minigrad.__version__`\n\n'0.1.0'\n" in text
    assert "Called with `(x: Tensor, hidden: Tensor | None = None) -> Tensor`: (…, input" in text
    assert "### `nn.Module.state_dict(self" in text and "### `nn.Module.cuda" not in text


def test_the_page_says_how_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A flag is no name of a file."""
    monkeypatch.chdir(tmp_path)
    docs.main(["--help"])
    assert "python -m minigrad.docs [FILE]" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_public_names_are_documented() -> None:
    """help() has a text for each."""
    silent = [
        f"{title}.{name}"
        for title, place in docs.places().items() for name in docs.public_names(place)
        if not inspect.getdoc(getattr(place, name)) and not name.startswith("__")
    ]  # fmt: skip
    assert set(silent) <= {"Tensor.raw", "Tensor.stopped"}  # used by the engine


def test_most_of_pytorch_is_here() -> None:
    """At least 420 of PyTorch's names mean the same here."""
    same = {
        name
        for space, names in namespaces().items() if space.startswith("torch")
        for name in names if here(space, name)
    }  # fmt: skip
    assert len(same) >= 420
