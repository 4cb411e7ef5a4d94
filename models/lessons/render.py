"""Pages: what lessons said, showed and checked, as HTML that a browser opens from a folder."""

from __future__ import annotations

import ast
import html
import io
import json
import keyword
import platform
import re
import shutil
import textwrap
import time
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from minigrad import Device
from minigrad.models.lessons.page import Page, Part, shown
from minigrad.runtimes.host import usable_threads

HERE = Path(__file__).resolve().parent
ASSETS = HERE / "assets"
SITE = "Neural networks, computed"


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


def machine() -> str:
    """Which machine computes, in words."""
    found = re.search(r"^model name\s*: (.*)", _cpuinfo(), re.MULTILINE)
    name = found[1] if found else platform.machine()
    return f"{name}, {usable_threads()} threads, device {Device.DEFAULT}"


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def prose(text: str) -> str:
    """Paragraphs and lists with **strong** and `code`."""
    result = []
    for paragraph in text.split("\n\n"):
        if paragraph.startswith("- "):
            items = re.split(r"\n?(?:^|(?<=\n))- ", paragraph)[1:]
            result.append("<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in items) + "</ul>")
        else:
            result.append(f"<p>{_inline(paragraph)}</p>")
    return "\n".join(result)


def _inline(text: str) -> str:
    text = html.escape(text, quote=False)
    text = re.sub(r"`(.+?)`", r"<code>\1</code>", text, flags=re.S)
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text, flags=re.S)


def code(source: str) -> str:
    """Python with its keywords, comments and texts marked."""
    lines = source.splitlines(keepends=True)
    result, row, column = [], 0, 0

    def until(stop_row: int, stop_column: int) -> str:
        nonlocal row, column
        found = ""
        while row < stop_row:
            found += lines[row][column:]
            row, column = row + 1, 0
        if row < len(lines):
            found += lines[row][column:stop_column]
        column = stop_column
        return html.escape(found, quote=False)

    kinds = {tokenize.COMMENT: "c", tokenize.STRING: "s"}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind = kinds.get(token.type, "")
        if token.type == tokenize.NAME and keyword.iskeyword(token.string):
            kind = "k"
        if kind:
            result.append(until(token.start[0] - 1, token.start[1]))
            inner = until(token.end[0] - 1, token.end[1])
            result.append(f'<span class="{kind}">{inner}</span>')
    result.append(until(len(lines), 0))
    return f'<pre tabindex="0"><code>{"".join(result)}</code></pre>'


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
    body = [f'<p class="about">{html.escape(lesson.about)}</p>']
    codes = pieces(lesson.source)
    count = sum(part.kind == "say" for part in made.parts)
    if count != len(codes):
        raise ValueError(f"{lesson.name} says {count} things, but {len(codes)} of them at the top "
                         "of its function: say nothing in loops and branches")  # fmt: skip
    waiting = ""
    remaining = iter(codes)
    for number, part in enumerate(made.parts):
        if part.kind == "say":
            body.append(waiting)
            body.append(prose(part.content["text"]))
            follows = next(remaining)
            waiting = _details("the code of this part", code(follows)) if follows else ""
        else:
            body.append(PARTS[part.kind](part, number))
    body.append(waiting)
    checks = [part.content for part in made.parts if part.kind == "check"]
    if checks:
        items = "".join(f"<li>{_inline(c['what'])}: <strong>{_inline(c['found'])}</strong></li>"
                        for c in checks)  # fmt: skip
        body.append("<h2>Checked while this page was made</h2>")
        body.append(f'<ul class="checks">{items}</ul>')
    body.append("<h2>The program</h2>")
    body.append(f"<p>Run it: <code>python models/lessons/{lesson.name}.py</code></p>")
    body.append(_details("all of it", code(lesson.source)))
    scripts = ["kit.js", *([f"{lesson.name}.js"] if (HERE / f"{lesson.name}.js").exists() else [])]
    before = next((other for other in lessons if other.number == lesson.number - 1), None)
    after = next((other for other in lessons if other.number == lesson.number + 1), None)
    links = [
        f'<a rel="prev" href="{before.file}">← {html.escape(before.title)}</a>' if before else
        "<span></span>",
        '<a href="index.html">Contents</a>',
        f'<a rel="next" href="{after.file}">{html.escape(after.title)} →</a>' if after else
        "<span></span>",
    ]  # fmt: skip
    return _document(
        f"{lesson.number} · {lesson.title}", "\n".join(part for part in body if part),
        "".join(links), f"Computed in {seconds:.1f} s, {_stamp(made.quick)}", scripts,
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
    ("Does a model plan its sentence, and what changes with the temperature?", 8),
    ("Why does a chat forget how it began, and what does remembering cost?", 9),
    ("What are the four stages of training, and how long does each take?", 10),
    ("Which numbers does training not find?", 11),
    ("Why not change parameters at random and keep what helps?", 12),
    ("What happens if the steps are too large?", 13),
    ("Why are examples shown in batches, and how often is each shown?", 14),
    ("Is a larger model always better?", 15),
    ("How can a model have more parameters and no more work?", 16),
    ("How many GPUs hold GPT-3, how many train it, and for how long?", 17),
    ("How do copies of a model stay the same?", 18),
    ("What if not even one text fits into a GPU?", 19),
    ("Why is the network of a cluster so expensive?", 20),
)


def contents(lessons: Sequence[Lesson], quick: bool) -> str:
    """The first page: what lessons there are, and which section of the article each covers."""
    items = "".join(
        f'<li><a href="{lesson.file}"><strong>{html.escape(lesson.title)}</strong></a> '
        f'<span>{html.escape(lesson.about)}</span></li>'
        for lesson in lessons
    )  # fmt: skip
    rows = "".join(
        f'<tr><td>{html.escape(section)}</td><td><a href="{lesson.file}">'
        f"{lesson.number} · {html.escape(lesson.title)}</a></td></tr>"
        for lesson in lessons for section in lesson.sections
    )  # fmt: skip
    by_number = {lesson.number: lesson for lesson in lessons}
    asked = "".join(
        f'<li>{html.escape(question)} <a href="{by_number[number].file}">Lesson {number}</a></li>'
        for question, number in QUESTIONS if number in by_number
    )
    body = f"""
<p class="about">From one neuron to a cluster that trains a language model, in {len(lessons)}
lessons. Every number on these pages was computed by minigrad, a deep-learning framework small
enough to read, just before the page was written; every page has something to do.</p>
<p>You need no mathematics beyond multiplication. Begin with the first lesson and follow the link at
the end of each. Where you want to know how a number came about, open “the code of this part”: it is
what made the page, and runs alone in a terminal.</p>
<h2>Lessons</h2>
<ol class="contents">{items}</ol>
<h2>Questions, and where they are answered</h2>
<ul class="questions">{asked}</ul>
<h2>Where the sections of the article are</h2>
<div class="wide" tabindex="0" role="region" aria-label="sections"><table>
<thead><tr><th scope="col">section</th><th scope="col">lesson</th></tr></thead>
<tbody>{rows}</tbody></table></div>"""
    return _document(SITE, body, f'<span></span><a rel="next" href="{lessons[0].file}">Begin: '
                     f"{html.escape(lessons[0].title)} →</a>", _stamp(quick), ["kit.js"])


def _stamp(quick: bool) -> str:
    size = "in the quick form, with small models" if quick else "in the full form"
    return f"{size}, {time.strftime('%-d %B %Y, %H:%M %Z')}, on {machine()}."


def _document(
    title: str, body: str, links: str, stamp: str, scripts: Sequence[str]
) -> str:
    loads = "\n".join(f'<script src="{name}"></script>' for name in scripts)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="style.css">
</head>
<body>
<a class="skip" href="#lesson">To the text</a>
<header><a href="index.html">{SITE}</a></header>
<main id="lesson">
<h1>{html.escape(title)}</h1>
{body}
</main>
<nav aria-label="lessons">{links}</nav>
<footer>{html.escape(stamp[0].upper() + stamp[1:])}</footer>
{loads}
<script>start();</script>
</body>
</html>
"""


def _details(summary: str, inner: str) -> str:
    return f"<details><summary>{summary}</summary>{inner}</details>"


def _table(part: Part, _: int) -> str:
    return _wide(part.content["head"], part.content["rows"], part.content["title"])


def _wide(head: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> str:
    top = "".join(f'<th scope="col">{_inline(cell)}</th>' if cell else "<td></td>" for cell in head)
    lines = "".join(
        "<tr>" + "".join(_cell(number, cell) for number, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    caption = f'<p class="title">{_inline(title)}</p>' if title else ""
    label = html.escape(title or ", ".join(cell for cell in head if cell))
    return (f'{caption}<div class="wide" tabindex="0" role="region" aria-label="{label}"><table>'
            f"<thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>")  # fmt: skip


def _cell(place: int, text: str) -> str:
    if place == 0:
        return f'<th scope="row">{_inline(text)}</th>'
    number = re.fullmatch(r"[−\d∞][\d.,%·⁻⁰¹²³⁴⁵⁶⁷⁸⁹−]*( [A-Za-zµ%]+)?", text) is not None
    return f'<td{" class=number" if number else ""}>{_inline(text)}</td>'


def _chart(part: Part, number: int) -> str:
    spec = part.content
    rows = [[name, shown(x), shown(y)] for name, line in spec["lines"].items() for x, y in line]
    return (f'<figure class="chart" data-of="part-{number}"></figure>{_json(spec, number)}'
            + _details("as numbers", _wide(["", spec["x"], spec["y"]], rows, "")))  # fmt: skip


def _widget(part: Part, number: int) -> str:
    content = part.content
    return (f'<section class="widget" data-of="part-{number}" data-widget="{content["name"]}" '
            f'aria-label="{html.escape(content["name"])}"><p class="task">'
            f"{_inline(content['task'])}</p></section>"
            + _json({"data": content["data"], "plays": content["plays"]}, number))  # fmt: skip


def _json(value: object, number: int) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    text = text.replace("<", "\\u003c")  # no end of the script inside it
    return f'<script type="application/json" id="part-{number}">{text}</script>'


def _drawing(part: Part, _: int) -> str:
    text = html.escape(part.content["text"], quote=False)
    title = html.escape(part.content["title"], quote=False)
    return f'<p class="title">{title}</p><pre tabindex="0">{text}</pre>'


def _check(part: Part, _: int) -> str:
    return ""  # they stand together, at the end


PARTS = {"table": _table, "chart": _chart, "drawing": _drawing, "widget": _widget, "check": _check}


def assets() -> Iterator[Path]:
    """What pages load: style, kit, and each lesson's JavaScript."""
    yield from sorted(ASSETS.iterdir())
    yield from sorted(HERE.glob("[0-9][0-9]_*.js"))


def write_assets(folder: Path) -> None:
    """Copy them into the site."""
    for path in assets():
        shutil.copyfile(path, folder / path.name)
