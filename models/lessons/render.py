"""Pages: what lessons said, showed and checked, as HTML that a browser opens from a folder."""

from __future__ import annotations

import ast
import json
import re
import shutil
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from minigrad import Device
from minigrad.models.console import require
from minigrad.models.lessons.page import Page, shown
from minigrad.runtimes.host import described

HERE = Path(__file__).resolve().parent
ASSETS = HERE / "assets"
SITE = "Neural networks, computed"
FIGURE = re.compile(r"[−\d∞][\d.,%·⁻⁰¹²³⁴⁵⁶⁷⁸⁹−]*( [A-Za-zµ%]+)?")  # in a table, and its unit


@dataclass(frozen=True)
class Lesson:
    """A lesson as its module tells of it. sections: the article's headings that it covers."""

    number: int
    name: str
    title: str
    about: str
    sections: tuple[str, ...]
    source: str

    @classmethod
    def of(cls, module: ModuleType) -> Lesson:
        """From NN_name.py: TITLE, SECTIONS, and the first line of its docstring."""
        path = Path(str(module.__file__))
        about = str(module.__doc__).partition("\n")[0]
        return cls(int(path.stem[:2]), path.stem, module.TITLE, about, module.SECTIONS,
                   path.read_text("utf-8"))  # fmt: skip

    @property
    def file(self) -> str:
        """The name of its page."""
        return f"{self.name}.html"


def code(source: str) -> str:
    """Python with its keywords, comments and texts marked."""
    lexer = require("pygments.lexers.python").PythonLexer(stripnl=False)
    writer = require("pygments.formatters.html").HtmlFormatter(nowrap=True)
    marked = require("pygments").highlight(source, lexer, writer)
    return f'<pre tabindex="0"><code>{marked}</code></pre>'


def pieces(source: str) -> list[str]:
    """The code of a lesson, cut where it says something: what follows each `page.say`."""
    tree = ast.parse(source)
    (function,) = (node for node in tree.body
                   if isinstance(node, ast.FunctionDef) and node.name == "lesson")  # fmt: skip
    lines = source.splitlines()
    says = [node for node in function.body if ast.unparse(node).startswith("page.say(")]
    ends = [node.lineno - 1 for node in says[1:]] + [function.end_lineno or len(lines)]
    return [textwrap.dedent("\n".join(lines[node.end_lineno : end])).strip("\n")
            for node, end in zip(says, ends, strict=True)]  # fmt: skip


def page(lesson: Lesson, made: Page, lessons: Sequence[Lesson], seconds: float) -> str:
    """The page of a lesson that took so long to run."""
    codes = pieces(lesson.source)
    count = sum(part.kind == "say" for part in made.parts)
    if count != len(codes):
        raise ValueError(f"{lesson.name} calls page.say {count} times, but {len(codes)} times at "
                         "the top of its function: do not call it in loops or branches")
    sections, remaining = list[dict[str, Any]](), iter(codes)
    for number, part in enumerate(made.parts):
        if part.kind == "say":
            sections.append({**part.content, "parts": [], "code": next(remaining)})
        else:
            sections[-1]["parts"].append((number, part))
    checks = [part.content for part in made.parts if part.kind == "check"]
    own = f"{lesson.name}.js"
    before, after = (
        next((other for other in lessons if other.number == lesson.number + step), None)
        for step in (-1, 1)
    )
    return _filled(
        "lesson.html", f"{lesson.number} · {lesson.title}", made.quick, lesson=lesson,
        sections=sections, checks=checks, seconds=seconds, before=before, after=after,
        scripts=["kit.js", *([own] if (HERE / own).exists() else [])],
    )  # fmt: skip


# What somebody may ask who has read the article, and the lesson that answers it.
QUESTIONS = (
    ("What does a neuron do with its signals, and what is a bias?", 1),
    ("Where do 13,002 parameters come from?", 2),
    ("Why does a network without activation functions need only one layer?", 3),
    ("Why does the same text cost more tokens in some languages?", 4),
    ("How can a list of numbers mean a word?", 5),
    ("What are query, key and value, and who looks at whom?", 6),
    ("What is in a block, and why can a hundred of them be stacked?", 7),
    ("Does a model plan its sentences, and what does the temperature change?", 8),
    ("Why does a chat forget how it began, and what does remembering cost?", 9),
    ("What are the four stages of training, and how long does each take?", 10),
    ("Which numbers does training not find?", 11),
    ("Why not change parameters at random and keep what helps?", 12),
    ("What happens if the steps are too large?", 13),
    ("Why are examples shown in batches, and how often is each shown?", 14),
    ("Is a larger model always better?", 15),
    ("How can a model have more parameters, but no more work?", 16),
    ("How many GPUs hold GPT-3, how many train it, and for how long?", 17),
    ("How do copies of a model stay the same?", 18),
    ("What if not even one text fits into a GPU?", 19),
    ("Why is the network of a cluster so expensive?", 20),
)


def contents(lessons: Sequence[Lesson], quick: bool) -> str:
    """The first page: what lessons there are, and which section of the article each covers."""
    files = {lesson.number: lesson.file for lesson in lessons}
    return _filled("contents.html", SITE, quick, lessons=lessons, questions=QUESTIONS, files=files,
                   scripts=["kit.js"])  # fmt: skip


def _filled(template: str, title: str, quick: bool, **values: Any) -> str:
    """A template of this folder with its values; what is no HTML is escaped."""
    jinja: Any = require("jinja2")
    markup = jinja.utils.markupsafe.Markup
    environment = jinja.Environment(
        loader=jinja.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    # paragraphs, lists with "- ", **strong** and `code`; all else is text
    prose: Any = require("markdown_it").MarkdownIt("zero").enable(["list", "emphasis", "backticks"])
    filters = {"prose": prose.render, "inline": prose.renderInline, "code": code, "json": _json}
    for name, make in filters.items():
        environment.filters[name] = lambda value, make=make: markup(make(value))
    environment.filters["points"] = _points
    environment.tests["figure"] = FIGURE.fullmatch
    moment = time.strftime("%-d %B %Y, %H:%M %Z")
    machine = f"{described()}, device {Device.DEFAULT}"
    found: str = environment.get_template(template).render(
        title=title, site=SITE, quick=quick, moment=moment, machine=machine, **values
    )
    return found


def _points(chart: Mapping[str, Any]) -> list[list[str]]:
    """A chart's points as rows of a table."""
    return [[name, shown(x), shown(y)] for name, line in chart["lines"].items() for x, y in line]


def _json(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")  # no end of the script inside it


def assets() -> Iterator[Path]:
    """What pages load: style, kit, and each lesson's JavaScript."""
    yield from sorted(ASSETS.iterdir())
    yield from sorted(HERE.glob("[0-9][0-9]_*.js"))


def write_assets(folder: Path) -> None:
    """Copy them into the site."""
    for path in assets():
        shutil.copyfile(path, folder / path.name)
