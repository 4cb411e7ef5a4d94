"""The API on one page, from docstrings: `python -m minigrad.docs [FILE]`.

FILE is api-VERSION.md unless given; "-" prints the page.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import minigrad
from minigrad import Tensor, linalg, nn
from minigrad.nn import functional, init, optim, schedule, state, utils


def places() -> dict[str, Any]:
    """The places that have public names, by the names that users import."""
    return {
        "minigrad": minigrad, "Tensor": Tensor, "nn": nn, "nn.functional": functional,
        "nn.optim": optim, "nn.schedule": schedule, "nn.init": init, "nn.state": state,
        "nn.utils": utils, "linalg": linalg,
    }  # fmt: skip


def public_names(place: Any) -> list[str]:
    """A place's public names: `__all__`, or those defined there that do not begin with "_"."""
    if hasattr(place, "__all__"):
        return sorted(place.__all__)
    names = [name for name in dir(place) if not name.startswith("_")]
    if inspect.isclass(place):
        return [name for name in names if name != "mro"]
    return [n for n in names if getattr(getattr(place, n), "__module__", "") == place.__name__]


def entry(name: str, value: Any) -> str:
    """The entry of one name: its signature and its docstring."""
    signature = str(inspect.signature(value)).replace("'", "") if callable(value) else ""
    text, mark, example = (inspect.getdoc(value) or "").partition("\n>>> ")
    if mark:  # as a block of code
        text = f"{text}\n```python\n>>> {example}\n```"
    return f"### `{name}{signature}`\n\n{text}\n"


def page() -> Iterator[str]:
    """The page, part by part."""
    yield f"# minigrad {minigrad.__version__}\n"
    for title, place in places().items():
        yield f"## {title}\n\n{inspect.getdoc(place) or ''}\n"
        for name in public_names(place):
            value = inspect.getattr_static(place, name) if place is Tensor else getattr(place, name)
            value = getattr(value, "__func__", value)
            if not inspect.ismodule(value):
                yield entry(f"{title}.{name}", value)


def main(arguments: list[str]) -> None:
    """Write the page."""
    name = arguments[0] if arguments else f"api-{minigrad.__version__}.md"
    text = "\n".join(page())
    if name == "-":
        sys.stdout.write(text)
    else:
        Path(name).write_text(text, "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
