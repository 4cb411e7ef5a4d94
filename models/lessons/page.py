"""What a lesson says and shows: printed as it goes, and kept as the parts of a page of the site."""

from __future__ import annotations

import base64
import inspect
import math
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from minigrad import Tensor
from minigrad.models import console

WIDTH = 88  # columns of prose in the terminal
SAMPLES = 9  # points of a curve that the terminal shows
PACKED = 64  # numbers: a longer row goes to a page as bytes, as matrices do


@dataclass(frozen=True)
class Part:
    """kind: "say", "table", "chart", "drawing", "widget" or "check"; content: what is in it."""

    kind: str
    content: dict[str, Any]


@dataclass
class Page:
    """What a lesson is given: it says, shows and checks, and the page keeps all of it.

    quick: smaller models and fewer sizes, for those who only test. talks: print, too.
    """

    quick: bool = False
    talks: bool = True
    parts: list[Part] = field(default_factory=list)

    def pick(self, full: Any, quick: Any) -> Any:
        """A size: the first, or the second where the page is made quickly."""
        return quick if self.quick else full

    def say(self, text: str) -> None:
        """Prose: paragraphs with empty lines between, **strong**, `code`, lists with "- "."""
        text = inspect.cleandoc(text)
        self.parts.append(Part("say", {"text": text}))
        if self.talks:
            _print_prose(text)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> None:
        """Rows of words and numbers below a head."""
        cells = [[shown(cell) for cell in row] for row in rows]
        self.parts.append(Part("table", {"head": list(head), "rows": cells, "title": title}))
        if self.talks:
            self._print_table(head, cells, title)

    def chart(
        self, title: str, x: str, y: str, lines: Mapping[str, Sequence[tuple[float, float]]],
        log: str = "",
    ) -> None:  # fmt: skip
        """Curves: points (x, y) of each, by name; log: which axes are logarithmic, "xy"."""
        curves = {name: [(float(a), float(b)) for a, b in line] for name, line in lines.items()}
        facts = {"title": title, "x": x, "y": y, "lines": curves, "log": log}
        self.parts.append(Part("chart", facts))
        if self.talks:
            rows = [
                [name, shown(a), shown(b)]
                for name, line in curves.items()
                for a, b in line[:: max(1, math.ceil(len(line) / SAMPLES))]
            ]
            self._print_table(["", x, y], rows, title)

    def widget(
        self, name: str, task: str, data: Mapping[str, Any],
        plays: Sequence[tuple[Mapping[str, Any], Any, float]],
    ) -> None:  # fmt: skip
        """Something to do on the page: `name` is its function in the lesson's JavaScript.

        plays: what a test does with it, the numbers that it must then show, by minigrad, and how
        far they may be away, relative to the largest of them.
        """
        moves = [{"do": dict(do), "shows": plain(found), "within": within}
                 for do, found, within in plays]  # fmt: skip
        content = {"name": name, "task": task, "data": plain(data, pack=True), "plays": moves}
        self.parts.append(Part("widget", content))
        if self.talks:
            _print_prose(f"(On the page: {task})")

    def drawing(self, title: str, text: str) -> None:
        """Lines of characters that stand one below the other."""
        self.parts.append(Part("drawing", {"title": title, "text": text}))
        if self.talks:
            print(f"  {title}\n" + textwrap.indent(text, "    ") + "\n")

    def check(self, what: str, holds: bool, found: str) -> None:
        """Something that the lesson claims; AssertionError where it does not hold."""
        if not holds:
            raise AssertionError(f"{what}: found {found}")
        self.parts.append(Part("check", {"what": what, "found": found}))
        if self.talks:
            print(f"  ✓ {what}: {found}\n")

    def _print_table(self, head: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> None:
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        if title:
            print(f"  {title}")
        for row in [head, *rows]:
            cells = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in
                     enumerate(zip(row, widths, strict=True))]  # fmt: skip
            print("    " + "  ".join(cells).rstrip())
        print()


def _print_prose(text: str) -> None:
    terminal: Any = console.require("rich.console").Console(width=WIDTH, highlight=False)
    terminal.print(console.require("rich.markdown").Markdown(text), "")


def shown(value: Any) -> str:
    """A number as people read it, four digits of it; other things as they are."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    if not math.isfinite(value):
        return "∞" if value > 0 else str(value)
    size = abs(value)
    if size and not 1e-4 <= size < 1e7:
        number, exponent = f"{value:.2e}".split("e")
        return f"{number}·10{_raised(int(exponent))}".replace("-", "−")
    return f"{value:,.4g}".replace("-", "−") if size < 1000 else f"{value:,.0f}".replace("-", "−")


def _raised(number: int) -> str:
    return str(number).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def plain(value: Any, pack: bool = False) -> Any:
    """As JSON holds it: tensors and arrays as lists.

    pack: matrices and long rows of floats as base64 of float32: {"shape": …, "f32": …}.
    """
    if isinstance(value, Mapping):
        return {key: plain(item, pack) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, pack) for item in value]
    array = value.numpy() if isinstance(value, Tensor) else value
    if not hasattr(array, "tolist"):
        return array
    if pack and array.dtype.kind == "f" and (array.ndim > 1 or array.size > PACKED):
        data = base64.b64encode(array.astype("<f4").tobytes()).decode()
        return {"shape": list(array.shape), "f32": data}
    return array.tolist()


def alone(lesson: Callable[[Page], None]) -> NoReturn:
    """Run one lesson in the terminal, as `python models/lessons/01_neuron.py` does."""

    def main(arguments: Sequence[str]) -> None:
        parser = console.Parser(description=str(inspect.getmodule(lesson).__doc__))
        parser.add_argument("--quick", action="store_true",
                            help="use smaller models and fewer sizes")  # fmt: skip
        lesson(Page(quick=parser.parse_args(arguments).quick))

    sys.exit(console.run(main))
