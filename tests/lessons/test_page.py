"""The texts, numbers and checks of lessons, in the terminal and on their pages."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import numpy as np
import pytest

from minigrad import Tensor
from minigrad.models.errors import InputError
from minigrad.models.lessons import __main__ as builder
from minigrad.models.lessons import render
from minigrad.models.lessons.page import Page, plain, shown
from minigrad.models.lessons.render import Lesson

SOURCE = '''"""What it is about."""
def lesson(page):
    page.say("First")
    x = 1  # one
    page.say("""
        Second, and **last**.
    """)
    page.check("one is one", x == 1, "1 < 2")
'''


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (-1234567, "−1,234,567"), (0.5, "0.5"), (-0.12345, "−0.1235"), (1234.5, "1,234"),
     (1e-7, "1.00·10⁻⁷"), (2.5e12, "2.50·10¹²"), (float("inf"), "∞"), ("word", "word"),
     (True, "True")],
)  # fmt: skip
def test_numbers_are_readable(value: object, text: str) -> None:
    assert shown(value) == text


def test_the_terminal_is_told_what_the_page_shows(capsys: pytest.CaptureFixture[str]) -> None:
    page = Page()
    page.say("One **two** `three`")
    page.table(["", "n"], [["a", 1000], ["bb", 0.5]], "title")
    page.chart("curve", "x", "y", {"line": [(n, n * n) for n in range(100)]})
    page.widget("name", "Do it.", {}, [])
    page.check("what", True, "found")
    out = capsys.readouterr().out
    assert "One two three" in out and "1,000" in out and "✓ what: found" in out
    assert out.count("line") < 13 and "(On the page: Do it.)" in out
    assert [part.kind for part in page.parts] == ["say", "table", "chart", "widget", "check"]


def test_a_claim_that_does_not_hold_ends_the_lesson() -> None:
    with pytest.raises(AssertionError, match="two is three: found 2"):
        Page(talks=False).check("two is three", False, "2")


def test_arrays_travel_as_bytes() -> None:
    short = {"a": [Tensor([1.0, 2.0])], "b": np.arange(3)}
    assert plain(short, pack=True) == {"a": [[1, 2]], "b": [0, 1, 2]}
    matrix = plain(np.eye(2, dtype=np.float32), pack=True)
    assert matrix == {"shape": [2, 2], "f32": "AACAPwAAAAAAAAAAAACAPw=="}


def made(source: str, page: Page) -> str:
    lesson = Lesson(1, "01_it", "It < all", "About.", ("Section",), source)
    return render.page(lesson, page, [lesson], 1.0)


def test_a_page_has_prose_code_and_checks() -> None:
    page = Page(talks=False)
    space: dict[str, object] = {}
    exec(compile(ast.parse(SOURCE), "lesson", "exec"), space)
    space["lesson"](page)  # type: ignore[operator]
    text = made(SOURCE, page)
    assert "<p>Second, and <strong>last</strong>.</p>" in text and "It &lt; all" in text
    assert '<span class="c1"># one</span>' in text and "<strong>1 &lt; 2</strong>" in text
    assert text.index("First") < text.index("# one") < text.index("Second")


def test_say_in_a_branch_is_refused() -> None:
    page = Page(talks=False)
    page.say("only one thing")
    with pytest.raises(ValueError, match=r"calls page\.say 1 times, but 2 times at the top"):
        made(SOURCE, page)


def test_a_text_cannot_end_its_script() -> None:
    page = Page(talks=False)
    page.say("a")
    page.widget("w", "t", {"text": "</script>"}, [])
    source = 'def lesson(page):\n    page.say("a")\n'
    assert "\\u003c/script>" in made(source, page)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [([], "give --out DIR, or --serve"), (["--out", "x", "--only", "99"], "expected at most 20")],
)
def test_wrong_flags(arguments: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        builder.main(arguments)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        builder.main(["--out", str(tmp_path / "file"), "--only", "1"])


def test_one_lesson_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    builder.main(["--out", str(tmp_path), "--quick", "--only", "1"])
    names = {path.name for path in tmp_path.iterdir()}
    assert {"index.html", "01_neuron.html", "01_neuron.js", "kit.js", "style.css"} <= names
    assert "A neuron" in capsys.readouterr().out


def test_lessons_are_numbered_without_gaps() -> None:
    lessons = [Lesson.of(module) for module in builder.numbered()]
    assert [number for _, number in render.QUESTIONS] == [lesson.number for lesson in lessons]
    assert [lesson.number for lesson in lessons] == list(range(1, len(lessons) + 1))
    assert all(lesson.sections and lesson.title and lesson.about for lesson in lessons)
    assert "minigrad.models.lessons.01_neuron" in sys.modules


def test_the_readme_says_where_each_section_is() -> None:
    readme = Path(__file__).resolve().parents[2] / "models" / "README.md"
    rows = [line for line in readme.read_text("utf-8").splitlines() if "](lessons/" in line]
    lessons = [Lesson.of(module) for module in builder.numbered()]
    expected = [(section, f"lessons/{lesson.name}.py") for lesson in lessons
                for section in lesson.sections]  # fmt: skip
    found = [(section, row.split("](")[1].split(")")[0]) for row in rows
             for section in row.split(" | ")[0].removeprefix("| ").split("; ")]  # fmt: skip
    assert found == expected
