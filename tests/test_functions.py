"""The page of functions is what the code has; nothing that others document goes unanswered."""

from __future__ import annotations

from function_page import PAGE, PLACES, absent, here, namespaces, otherwise, page


def test_the_page_is_as_written() -> None:
    """`python tests/function_page.py` writes it."""
    assert PAGE.read_text("utf-8") == page()


def test_every_name_is_here_or_said_why_not() -> None:
    assert set(namespaces()) == set(PLACES)
    open_ends = [
        f"{space}.{name}"
        for space, names in namespaces().items() for name in names
        if not (here(space, name) or otherwise(space, name) or absent(name))
    ]  # fmt: skip
    assert not open_ends


def test_most_of_pytorch_is_here() -> None:
    """420 names under which PyTorch's users find what they mean."""
    same = {
        name
        for space, names in namespaces().items() if space.startswith("torch")
        for name in names if here(space, name)
    }  # fmt: skip
    assert len(same) >= 420
