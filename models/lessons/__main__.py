"""The article as a site: every lesson is run, and what it said and computed becomes a page.

    python models/lessons --out site            # then open site/index.html
    python models/lessons --serve               # … or have it built and opened
    python models/lessons/06_attention.py       # one lesson, in the terminal

Neither the pages nor the making of them need a network.
"""

from __future__ import annotations

import functools
import http.server
import importlib
import sys
import tempfile
import time
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from minigrad import Tensor
from minigrad.models import console
from minigrad.models.errors import InputError, failing_as
from minigrad.models.lessons import render
from minigrad.models.lessons.page import Page

HERE = Path(__file__).resolve().parent
SEED = 1


def numbered() -> list[ModuleType]:
    """The modules of the lessons, in their order."""
    names = sorted(path.stem for path in HERE.glob("[0-9][0-9]_*.py"))
    return [importlib.import_module(f"minigrad.models.lessons.{name}") for name in names]


def build(folder: Path, quick: bool, only: Sequence[int] = ()) -> None:
    """Run the lessons and write their pages, the contents, and what the pages load."""
    modules = numbered()
    lessons = [render.Lesson.of(module) for module in modules]
    start = time.perf_counter()
    for module, lesson in zip(modules, lessons, strict=True):
        if only and lesson.number not in only:
            continue
        begin = time.perf_counter()
        Tensor.manual_seed(SEED)
        page = Page(quick=quick, talks=False)
        module.lesson(page)
        seconds = time.perf_counter() - begin
        path = folder / lesson.file
        path.write_text(render.page(lesson, page, lessons, seconds), "utf-8")
        print(f"{lesson.number:>2}  {seconds:6.1f} s  {path.stat().st_size / 1e3:7,.0f} kB  "
              f"{lesson.title}", flush=True)  # fmt: skip
    (folder / "index.html").write_text(render.contents(lessons, quick), "utf-8")
    render.write_assets(folder)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder / 'index.html'}: {size / 1e6:.1f} MB in {time.perf_counter() - start:.0f} s")


def serve(folder: Path) -> None:
    """Show the site in the browser until Ctrl-C."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        address = f"http://127.0.0.1:{server.server_port}/"
        print(f"serving the lessons at {address} (Ctrl-C stops)", flush=True)
        webbrowser.open(address)
        server.serve_forever()


def main(arguments: Sequence[str]) -> None:
    """Build the site, and serve it where that is wanted."""
    parser = console.Parser(
        description="Build the lessons as a site: a page for each, and a table of contents."
    )
    add = parser.add_argument
    add("--out", metavar="DIR", help="folder to write the site to; optional with --serve")
    add("--quick", action="store_true",
        help="use smaller models and fewer sizes, for the same pages")  # fmt: skip
    add("--only", type=console.positive_int, nargs="+", default=[], metavar="N",
        help="build only these lessons; leave other pages as they are")  # fmt: skip
    add("--serve", action="store_true", help="open the site in the browser, served at 127.0.0.1")
    flags = parser.parse_args(arguments)
    if flags.out is None and not flags.serve:
        raise InputError("no folder for the site: give --out DIR, or --serve")
    known = len(numbered())
    if flags.only and max(flags.only) > known:
        raise InputError(f"--only: expected at most {known}, got {max(flags.only)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(flags.out or temporary)
        with failing_as(f"cannot write {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
            build(folder, flags.quick, flags.only)
        if flags.serve:
            serve(folder)


if __name__ == "__main__":
    sys.exit(console.run(main))
