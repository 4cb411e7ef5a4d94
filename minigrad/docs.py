"""The API on one page, from docstrings: `python -m minigrad.docs [FILE]`.

FILE is api-VERSION.md unless given; "-" prints the page; "--help" prints this.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import minigrad
from minigrad import Tensor, linalg, nn
from minigrad.hints import Missing
from minigrad.nn import functional, init, optim, schedule, state, utils


def places() -> dict[str, Any]:
    """The places that have public names, by the names that users import."""
    return {
        "minigrad": minigrad, "Tensor": Tensor, "nn": nn, "nn.Module": nn.Module,
        "nn.functional": functional, "nn.optim": optim, "nn.optim.Optimizer": optim.Optimizer,
        "nn.schedule": schedule, "nn.init": init, "nn.state": state, "nn.utils": utils,
        "linalg": linalg,
    }  # fmt: skip


def public_names(place: Any) -> list[str]:
    """A place's public names: `__all__`, or those defined there that do not begin with "_"."""
    if hasattr(place, "__all__"):
        return sorted(place.__all__)
    names = [name for name in dir(place) if not name.startswith("_")]
    if inspect.isclass(place):
        here = [n for n in names if not isinstance(inspect.getattr_static(place, n, None), Missing)]
        return [name for name in here if name != "mro"]
    return [n for n in names if getattr(getattr(place, n), "__module__", "") == place.__name__]


class _Bare(str):
    """An annotation, which a signature prints without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _bare(annotation: Any) -> Any:
    text = getattr(annotation, "__forward_arg__", annotation)
    return _Bare(text) if isinstance(text, str) else annotation


def signature(value: Any) -> str:
    """How a function or class is called, as text."""
    found = inspect.signature(value)
    arguments = [one.replace(annotation=_bare(one.annotation)) for one in found.parameters.values()]
    result = _bare(found.return_annotation)
    return str(found.replace(parameters=arguments, return_annotation=result))


def entry(name: str, value: Any) -> str:
    """The entry of one name: its signature and its docstring; of a layer also those of its call."""
    if isinstance(value, str):
        return f"### `{name}`\n\n{value!r}\n"
    called = signature(value) if callable(value) else ""
    text, mark, example = (inspect.getdoc(value) or "").partition("\n>>> ")
    if mark:  # as a block of code
        text = f"{text}\n```python\n>>> {example}\n```"
    call = getattr(value, "__call__", None)  # noqa: B004
    own = inspect.isclass(value) and call not in (nn.Module.__call__, nn.FunctionLayer.__call__)
    if own and issubclass(value, nn.Layer):
        inputs = signature(call).replace("(self, ", "(")
        text = f"{text}\n\nCalled with `{inputs}`: {inspect.getdoc(call)}"
    return f"### `{name}{called}`\n\n{text}\n"


def page() -> Iterator[str]:
    """The page, part by part."""
    yield f"# minigrad {minigrad.__version__}\n"
    for title, place in places().items():
        yield f"## {title}\n\n{inspect.getdoc(place) or ''}\n"
        for name in public_names(place):
            static = inspect.isclass(place)
            value = inspect.getattr_static(place, name) if static else getattr(place, name)
            value = getattr(value, "__func__", value)
            if not inspect.ismodule(value):
                yield entry(f"{title}.{name}", value)


def main(arguments: list[str]) -> None:
    """Write the page."""
    name = arguments[0] if arguments else f"api-{minigrad.__version__}.md"
    asked = name != "-" and name.startswith("-")
    text = f"{__doc__}\n" if asked else "\n".join(page())
    if name == "-" or asked:
        sys.stdout.write(text)
    else:
        Path(name).write_text(text, "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
