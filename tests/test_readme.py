"""READMEs: their examples run, their numbers are right, and their listings are printed by the code.

    python tests/test_readme.py     # print the product of minigrad/README.md again

Then read `git diff`.
"""

from __future__ import annotations

import ast
import importlib.resources
import io
import json
import os
import platform
import re
import tempfile
import tokenize
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
from child import ended, said
from devices import CPU

from minigrad.graph.canonical import canonicalize
from minigrad.graph.node import topological
from minigrad.runtimes.cpu_kernels import Kernels
from minigrad.runtimes.jit_compiler import Compiler, host_compiler
from minigrad.settings import DEFAULTS, Context
from minigrad.target import Target

ROOT = Path(__file__).resolve().parent.parent
FRONT, INSIDE = ROOT / "README.md", ROOT / "minigrad" / "README.md"
READMES = (FRONT, INSIDE, ROOT / "models" / "README.md", ROOT / "tests" / "README.md")
README = FRONT.read_text("utf-8")


def blocks(path: Path) -> list[str]:
    """The Python programs of a README; excerpts are left out."""
    found = re.findall(r"^```python\n(.*?)^```", path.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [block for block in found if block.startswith(("from ", "import "))]


EXAMPLES = [(path, block) for path in READMES for block in blocks(path)]
COMMANDS = dict(re.findall(r"<!-- command (\d) -->\n```sh\n(.*?)```", README, re.DOTALL))


# ---- examples and commands ----


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_runs(number: int, tmp_path: Path) -> None:
    result = ended("-P", "-c", EXAMPLES[number][1], cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert not result.stderr
    right = re.search(r"^right: (\S+)$", result.stdout, re.MULTILINE)
    assert number > 0 or (right is not None and float(right[1]) > 0.9), result.stdout


def test_the_first_example_is_short() -> None:
    path, example = EXAMPLES[0]
    assert path == FRONT
    assert len([line for line in example.splitlines() if line.strip()]) <= 20


def test_the_commands() -> None:
    assert set(COMMANDS) == {"1", "2"}
    assert COMMANDS["1"].rstrip().endswith("python models/gpt.py")
    assert COMMANDS["2"].rstrip().endswith("python tests")


def test_the_front_door_is_short() -> None:
    assert len(README.splitlines()) <= 160


# ---- named files and settings exist ----


def test_the_map_of_the_models_has_every_file_once() -> None:
    """A file that is new belongs to a subject; one that is gone leads nowhere."""
    folder = ROOT / "models"
    text = (folder / "README.md").read_text("utf-8")
    section = text.partition("## The files\n")[2].partition("\n## ")[0]
    named = sorted(re.findall(r"`([\w/]+\.py)`", section))
    files = [*folder.glob("[!_]*.py"), *(folder / "parallel").glob("[!_]*.py")]
    assert named == sorted(str(path.relative_to(folder)) for path in files)


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.parent.name)
def test_files_that_are_named_exist(path: Path) -> None:
    """Links, and files in code spans: relative to the README's folder, or one name of a script."""
    text = path.read_text("utf-8")
    linked = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    named = re.findall(r"`((?:\.\./)?[\w/]+(?:\.py|\.md|/))`", text)
    assert named
    assert [name for name in (*linked, *named) if not (path.parent / name).exists()] == []
    assert re.findall(r"(`[^`\n]+`)(?:,| and| or)\s\1", text) == []  # a file is named twice


def test_links_lead_to_headings() -> None:
    for path in READMES:
        for file, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", path.read_text("utf-8")):
            target = (path.parent / file if file else path).read_text("utf-8")
            headings = re.findall(r"^#+ (.*)$", target, re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]


def table_below(heading: str, path: Path) -> list[str]:
    """The first column of the table in a section."""
    section = path.read_text("utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| (.*?) \|", section, re.MULTILINE)[2:]


def test_settings_are_listed() -> None:
    assert {name.strip("`") for name in table_below("Settings", INSIDE)} == set(DEFAULTS)


def test_the_glossary_is_short() -> None:
    assert 15 <= len(table_below("Glossary", INSIDE)) <= 25


def test_extras_are_listed() -> None:
    found = re.search(r"^EXTRAS = (\{.*?^\})", (ROOT / "setup.py").read_text("utf-8"), re.M | re.S)
    assert found is not None
    extras = ast.literal_eval(found[1])
    assert [name.strip("`") for name in table_below("Run it", FRONT)] == list(extras)


def test_types_are_installed() -> None:
    """One file is enough for the whole package (PEP 561), and so for runtimes and models."""
    assert importlib.resources.files("minigrad").joinpath("py.typed").is_file()


# ---- the weekend's path ----

MOST_LINES = 3000
Definitions = dict[str, ast.FunctionDef | ast.ClassDef]


def path_of_reading() -> dict[str, list[str]]:
    """File → the functions and classes to read in it; an empty list means the whole file."""
    section = README.split("\n## A weekend")[1].split("\n## ")[0]
    entry = r"`((?:minigrad|runtimes)/[\w/]+\.py)`(?::\s*((?:`[\w.]+`,?\s*)+))?"
    return {file: re.findall(r"`([\w.]+)`", names) for file, names in re.findall(entry, section)}


def definitions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(name, node) of classes, methods and functions of modules."""
    for node in getattr(tree, "body", ()):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield prefix + node.name, node
        if isinstance(node, ast.ClassDef):
            yield from definitions(node, f"{prefix}{node.name}.")


def lines_of_code(source: str) -> set[int]:
    """The numbers of lines that have code: no blank lines, comments and docstrings."""
    silent = (
        tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
        tokenize.ENDMARKER,
    )  # fmt: skip
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in silent:
            found.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        owner = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        if owner and ast.get_docstring(node) is not None:
            found.difference_update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return found


def resolve(name: str, known: Definitions, file: str) -> str:
    """The full name of something that a README calls by its last part."""
    full = [name] if name in known else [one for one in known if one.endswith(f".{name}")]
    assert len(full) == 1, f"README: {name} means {full or 'nothing'} in {file}"
    return full[0]


def read(file: str, names: list[str]) -> tuple[int, list[str], Definitions]:
    """Lines of code, full names, and definitions of one entry of the path."""
    source = (ROOT / file).read_text("utf-8")
    known = dict(definitions(ast.parse(source)))
    lines = lines_of_code(source)
    if not names:
        return len(lines), [], known
    chosen = [resolve(name, known, file) for name in names]
    kept: set[int] = set()
    for name in chosen:
        node = known[name]
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        kept.update(range(first, node.end_lineno + 1))
    return len(lines & kept), chosen, known


def test_the_path_is_short() -> None:
    counted = {file: read(file, names)[0] for file, names in path_of_reading().items()}
    assert len(counted) > 20
    assert sum(counted.values()) <= MOST_LINES, counted


def module_of(file: str) -> str:
    """The name under which a file is installed."""
    return "minigrad." + file.removeprefix("minigrad/").removesuffix(".py").replace("/", ".")


FOLLOW = """
import json, sys, threading
from minigrad import Tensor
ran = set()
def note(frame, event, argument):
    if event == "call":
        ran.add((frame.f_globals.get("__name__"), frame.f_code.co_qualname))
threading.setprofile(note)
sys.setprofile(note)
PRODUCT
sys.setprofile(None)
print(json.dumps(sorted(one for one in ran if one[0])))
"""


def test_a_product_runs_along_the_path(cpu: str, tmp_path: Path) -> None:
    """Every named function is called, and at least one of each file."""
    (product,) = re.findall(r"`(\(Tensor\.rand.*\.realize\(\))`", README)
    settings: dict[str, str | None] = {name: None for name in os.environ if "MINIGRAD" in name}
    settings |= {"MINIGRAD_DEVICE": cpu, "MINIGRAD_CACHE": str(tmp_path / "cache")}
    found = said("-P", "-c", FOLLOW.replace("PRODUCT", product), cwd=tmp_path, **settings)
    ran: dict[str, set[str]] = {}
    for module, name in json.loads(found):
        ran.setdefault(module, set()).add(name)
    for file, names in path_of_reading().items():
        _, chosen, known = read(file, names)
        functions = {name for name, node in known.items() if isinstance(node, ast.FunctionDef)}
        called = functions & ran.get(module_of(file), set())
        missed = (functions & set(chosen)) - called
        assert not missed, f"{file}: the product does not call {missed}"
        inner = tuple(f"{name}." for name in chosen)
        within = {name for name in called if name in chosen or name.startswith(inner)}
        assert within or (called and not chosen), f"{file}: the product calls nothing of it"


# ---- the way of one matrix product ----

AVX512 = Target(vector_bytes=64, registers=32, l1=1 << 15, l2=1 << 20)
MARKED = re.compile(r"(<!-- printed: (\w+) -->\n```\n)(.*?)(```)", re.DOTALL)


def report() -> dict[str, str]:
    """The output of MINIGRAD_DEBUG=5 for the product of minigrad/README.md, part by part.

    For a processor with AVX-512, whatever the host is; its assembly only on x86.
    """
    (program,) = blocks(INSIDE)
    names: dict[str, Any] = {}
    intel = platform.machine() == "x86_64"
    compiler = Compiler("x86-64-v4") if intel else host_compiler()
    output = io.StringIO()
    with tempfile.TemporaryDirectory() as cache, redirect_stderr(output):
        with Context(DEVICE=CPU, DEBUG=0):
            exec(program.partition("y.realize()")[0], names)
        graph = canonicalize([names["y"].node]).graph()
        with Context(DEBUG=5, FUSE=1, GUARD=0, CACHE=cache):
            Kernels(AVX512, compiler).plan(graph)
    found = re.fullmatch(
        r"(?P<schedule>schedule: .*?\n)(?P<naive>naive loops\n.*?\n)(?P<steps>\w+\(.*?\n)"
        r"(?P<nest>kernel \w+\(.*?\n)(?P<ir>(?:declare|define) .*?\n)(?P<assembly>\t.*)",
        output.getvalue(), re.DOTALL,
    )  # fmt: skip
    assert found is not None, output.getvalue()
    parts = found.groupdict()
    steps = re.findall(r"^\w.*\n", parts["steps"], re.MULTILINE)
    parts["steps"] = "".join(steps)
    parts["graph"] = "".join(f"{node}\n" for node in topological(graph.roots))
    inner = re.sub(r"(phi <.*\n)(.*phi <.*\n)+", r"\1  …\n", block_with("fmul", parts["ir"]))
    parts["ir"] = excerpt(inner, "fadd")
    if intel:
        parts["assembly"] = loop_of(block_with("\tvfmadd", parts["assembly"]))
    else:
        del parts["assembly"]
    return parts


def block_with(word: str, text: str) -> str:
    """The block of assembly, from one label to the next, with the most occurrences of a word."""
    return max(re.split(r"^(?=[.\w]+:)", text, flags=re.MULTILINE), key=lambda b: b.count(word))


def loop_of(block: str) -> str:
    """A block of assembly up to its jump back to its label."""
    label = block.partition(":")[0]
    head, jump, _ = re.split(rf"(\tj\w+\t{re.escape(label)}\n)", block, maxsplit=1)
    return head + jump


def excerpt(block: str, last: str) -> str:
    """The beginning of a block, up to the first line with the word `last`."""
    lines = block.splitlines()
    end = next(number for number, line in enumerate(lines) if last in line)
    return "\n".join([*lines[: end + 1], "  …", ""])


def instructions(text: str) -> Counter[str]:
    """How often each instruction occurs in assembly."""
    return Counter(re.findall(r"^\s+([a-z]\w+)", text, re.MULTILINE))


def test_the_product_is_as_printed() -> None:
    shown = {name: text for _, name, text, _ in MARKED.findall(INSIDE.read_text("utf-8"))}
    printed = report()
    assert set(shown) == {"graph", "schedule", "naive", "steps", "nest", "ir", "assembly"}
    for name in ("graph", "schedule", "naive", "steps", "nest", "ir"):
        assert shown[name] == printed[name], "if it is meant: python tests/test_readme.py"
    if "assembly" in printed:  # registers and order are LLVM's own, and change with its version
        loop = instructions(printed["assembly"])
        assert set(instructions(shown["assembly"])) <= set(loop)
        assert (loop["vmovups"], loop["vbroadcastss"], loop["vfmadd231ps"]) == (2, 13, 26)


def test_debug_prints_the_same(cpu: str, tmp_path: Path) -> None:
    """The program itself, run as the README says: its schedule is the same on every processor."""
    (program,) = blocks(INSIDE)
    result = ended("-P", "-c", program, cwd=tmp_path, MINIGRAD_DEVICE=cpu, MINIGRAD_DEBUG="3",
                   MINIGRAD_CACHE=str(tmp_path / "cache"))  # fmt: skip
    shown = {name: text for _, name, text, _ in MARKED.findall(INSIDE.read_text("utf-8"))}
    assert shown["schedule"] in result.stderr


def print_again() -> None:
    """Write the code's present output into minigrad/README.md."""
    parts = report()
    if "assembly" in parts:
        text = re.sub(r"\t(\w+)\t", lambda found: f"  {found[1]:<14}", parts["assembly"])
        parts["assembly"] = excerpt(text, "vfmadd")

    def new(found: re.Match[str]) -> str:
        return found[1] + parts.get(found[2], found[3]) + found[4]

    INSIDE.write_text(MARKED.sub(new, INSIDE.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    print_again()
