"""The same random graph with other numbers: what a general program computes.

    python -m tests.property.general --seed 17 --device CPU     one graph, in full
    python -m tests.property.general --count 500 --device CPU   many, with statistics

A graph runs several times, each time with another extent, another offset, other constants in the
place of some of its numbers: the first is compiled as it is, the second makes a general program
(`minigrad/graph/general.py`), which runs the others. Each must be right. An even seed draws a graph
of `graph_steps`, of which one extent varies; an odd one a graph of `graph_merging`, of which one to
three vary, and are merged and split.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import count, islice
from math import prod

import numpy as np

from minigrad import GlobalCounters
from minigrad.programs import programs

from .command import parser_of, run_command
from .compare import REFERENCE
from .graph_merging import extents, make_merging
from .graph_steps import make_graph
from .graphs import Graph, Statement, fails, run

VERSIONS = 4
# Bound of a version's largest value, in elements: at least this, or so many times the graph's. An
# extent that several dimensions share may give tens of thousands, which take REF half a minute.
ELEMENTS, TIMES = 1 << 13, 8
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e-?\d+)?(?![\w.])")
LEAF = re.compile(r"leaf\((\d+), \(([^)]*)\)")


def versions(seed: int) -> list[Graph]:
    """A random graph, and the same with other numbers that REF accepts."""
    random = np.random.default_rng(seed)
    return _merging(seed, random) if seed % 2 else _of_one_extent(make_graph(seed), random)


def _merging(seed: int, random: np.random.Generator) -> list[Graph]:
    for another in count(seed, 1 << 32):
        graph = make_merging(another)
        others = _others(graph, extents(graph, random), 4 * ELEMENTS, random)
        found = list(islice(others, VERSIONS + 1))
        if len(found) >= 3:
            break
    return found


def _of_one_extent(graph: Graph, random: np.random.Generator) -> list[Graph]:
    given = sorted({
        int(text)
        for statement in graph.statements
        for found in LEAF.findall(statement.code)
        for text in found[1].split(",")
        if text.strip() and int(text) > 1
    })  # fmt: skip
    random.shuffle(given)
    most = max(TIMES * _largest(graph), ELEMENTS)
    for extent in given:
        sizes = [{extent: extent + int(random.integers(1, 40))} for _ in range(VERSIONS - 1)]
        found = [graph, *_others(graph, sizes, most, random)]
        if len(found) >= 3:
            return found
    return [graph, *_others(graph, [{}] * (VERSIONS - 1), most, random)]


def _others(
    graph: Graph, extents: Iterable[Mapping[int, int]], most: int, random: np.random.Generator
) -> Iterator[Graph]:
    """The graph with other extents and constants, if REF accepts it, and no value is too large.

    extents: for each graph, what to put in the place of some whole numbers.
    """
    for new in extents:
        factor = float(random.integers(5, 12)) / 8
        changed = replace(graph, finite=False, statements=tuple(
            _changed(statement, new, factor) for statement in graph.statements
        ))  # fmt: skip
        if _largest(changed) > most:
            continue
        try:
            run(changed, REFERENCE)
        except Exception:
            continue
        yield changed


def _largest(graph: Graph) -> int:
    """Elements of the largest value."""
    return max(prod(statement.shape) for statement in graph.statements)


def _changed(statement: Statement, new: Mapping[int, int], factor: float) -> Statement:
    """A statement with other extents and other constants."""
    leaf = LEAF.match(statement.code)
    start = leaf.end(1) if leaf else 0  # keep the seed

    def number(match: re.Match[str]) -> str:
        text = match.group()
        if text.isdigit():
            return str(new.get(int(text), text))
        return repr(float(text) * factor) if not leaf else text

    code = statement.code[:start] + NUMBER.sub(number, statement.code[start:])
    return replace(statement, code=code, shape=tuple(new.get(n, n) for n in statement.shape))


def failure(seed: int, device: str) -> str | None:
    """The first failure among a graph's versions, with scripts that reproduce it; or None."""
    programs.forget()
    graphs = versions(seed)
    for number, graph in enumerate(graphs):
        found = fails(graph, device)
        if found is not None:
            programs.forget()
            kind = "as any other" if fails(graph, device) else "where others ran before it"
            scripts = "\n\n".join(one.script(device) for one in graphs[: number + 1])
            return f"seed {seed}, version {number} ({kind}): {found}\n\nScripts:\n\n{scripts}"
    return None


def main() -> None:
    """The command line; see the head of this file."""
    given = parser_of("general", __doc__).parse_args()
    counts = Counter[str]()

    def check(seed: int) -> str | None:
        compiled = GlobalCounters.programs_compiled
        found = failure(seed, given.device)
        counts["compiled"] += GlobalCounters.programs_compiled - compiled
        counts["general"] += sum(len(one.general) for one in programs._families.values())
        counts["versions"] += len(versions(seed))
        return found

    def statistics() -> None:
        print(", ".join(f"{name} {count}" for name, count in counts.items()))

    def script(seed: int) -> str:
        return "\n\n".join(graph.script(given.device) for graph in versions(seed))

    run_command(given, "graphs", script, check, statistics)


if __name__ == "__main__":
    main()
