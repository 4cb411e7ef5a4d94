"""A loop as a node: one step is described once and runs for each element of arrays.

    carries[0] = init                                       a LOOP, with
    for i in range(count):                                    sources  init, arrays, constants
        carries[i + 1] = next(carries[i], arrays[i])          RESULTs  ("carry", k)  (count + 1, …)
        outs[i] = out(carries[i], arrays[i])                           ("last", k)   the last row
                                                                       ("out", k)    (count, …)

In a reversed loop, i runs from count − 1 to 0, carries[count] is init, and carries[i] is computed
from carries[i + 1]. Rows are always numbered like those of the arrays.

Only what depends on the previous step runs step by step. Everything else in the body is computed
for all steps at once before the loop (`batched`), as one large product instead of many small ones.
The gradient is a loop in reverse, for the carries only. Gradients of arrays and constants are
computed for all steps at once, from the rows that both loops stored. Only the carries are stored
for each step; everything else is recomputed, in large pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any, NamedTuple

from minigrad.dtype import dtypes
from minigrad.errors import ScanError
from minigrad.graph import build
from minigrad.graph.axes import pad_along, part_along, row_of
from minigrad.graph.canonical import exact
from minigrad.graph.gradient import gradient
from minigrad.graph.interned import kept
from minigrad.graph.node import Node, Op, depending, make, topological, value_src
from minigrad.graph.operations import MOVEMENT, REDUCTIONS
from minigrad.graph.rewrite import replaced, without_rules
from minigrad.graph.symbolic import Atom, Integer, high
from minigrad.graph.vmap import batched, stand_in, sum_of_rows

MOST_STEPS = (1 << 31) - 1  # so that a row's number fits an int32
_IMPOSSIBLE = (Op.ASSIGN, Op.COPY, Op.COLLECTIVE, Op.LOOP, Op.MARK)


@dataclass(frozen=True, eq=False)
class Loop:
    """The body of a LOOP: the nodes of one step, with nodes that stand for its sources.

    carries: before the step; next: after it. elements: rows of the arrays. outs: values that may be
    wanted; only those that are wanted are computed and stored. Reductions are among them, so that a
    gradient need not compute them again.

    Loops of one form are equal: what was derived from one serves the next (`graph/template.py`).
    """

    count: int
    reverse: bool
    carries: tuple[Node, ...]
    elements: tuple[Node, ...]
    constants: tuple[Node, ...]
    next: tuple[Node, ...]
    outs: tuple[Node, ...]

    @kept
    def form(self) -> tuple[Any, ...]:
        """What equal loops share: their nodes, whatever these stand for."""
        ends = (*self.carries, *self.elements, *self.constants, *self.next, *self.outs)
        counts = map(len, (self.carries, self.elements, self.constants))
        return self.count, self.reverse, *counts, exact(topological(ends), ends)

    @kept
    def number(self) -> int:
        """The hash of the form."""
        return hash(self.form)

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Loop) and self.form == other.form)

    @property
    def first(self) -> int:
        """The row of the carries before the first step."""
        return self.count if self.reverse else 0

    @kept
    def body(self) -> list[Node]:
        """What is computed in a step: next and outs, without gradient rules."""
        return without_rules([*self.next, *self.outs])

    @kept
    def checks(self) -> bool:
        """Whether a step checks indices."""
        return any(node.op is Op.CHECK for node in topological(self.body))

    @kept
    def used(self) -> list[bool]:
        """Which of a LOOP's sources its steps need (not only gradients of them)."""
        found = set(topological(self.body))
        needed = [one in found for one in (*self.elements, *self.constants)]
        return [True] * len(self.carries) + needed

    def gradient(self, node: Node, given_for: Mapping[Node, Node]) -> list[Node | None]:
        """The gradients of a LOOP's sources. given_for: the gradients of its RESULTs."""
        floats = [number for number, carry in enumerate(self.carries) if carry.dtype.is_float]
        later = [stand_in(self.carries[number]) for number in floats]
        targets = [x for x in (*self.elements, *self.constants) if x.dtype.is_float]
        wanted = [*(self.carries[number] for number in floats), *targets]
        found, rows = self._of_a_step(node, given_for, floats, later, wanted)
        # a reversed loop for the gradients of the carries
        new: list[Node] = []
        starts: list[Node] = []
        for number, part in zip(floats, found, strict=False):
            carry, g = self.carries[number], _of_rows(node, number, given_for)
            total = part if part is not None else carry.constant(0.0)
            start = node.src[number].constant(0.0)
            if g is not None:
                row = stand_in(carry)
                rows[row] = _rows_from(g, int(self.reverse))
                total = total + row
                start = row_of(g, self.count - self.first)
            new.append(total)
            starts.append(start)
        step = Step(tuple(later), tuple(rows), tuple(new))
        back = Looped(step, starts, list(rows.values()), self.count, not self.reverse)
        # those of arrays and constants, all at once
        rows |= {g: before(back.node, number) for number, g in enumerate(later)}
        gradients = dict(zip((self.carries[number] for number in floats), back.last, strict=True))
        for target, part in zip(targets, found[len(floats) :], strict=True):
            if part is not None:
                (all_rows,) = batched([part], rows, self.count)
                gradients[target] = all_rows if target in self.elements else sum_of_rows(all_rows)
        return [gradients.get(x) for x in (*self.carries, *self.elements, *self.constants)]

    def _of_a_step(
        self, node: Node, given_for: Mapping[Node, Node], floats: Sequence[int],
        later: Sequence[Node], wanted: Sequence[Node],
    ) -> tuple[list[Node | None], dict[Node, Node]]:  # fmt: skip
        """The gradients of `wanted` in one step, and the rows of all that they are computed from.

        later: nodes for the gradients of the float carries after the step.
        """
        rows: dict[Node, Node] = {}
        outputs = [self.next[number] for number in floats]
        seeds = list(later)
        for number, out in enumerate(self.outs):
            g = given_for.get(_result(node, "out", number))
            if g is not None:
                outputs.append(out)
                seeds.append(stand_in(out))
                rows[seeds[-1]] = g
        parts = gradient(outputs, seeds, wanted)
        arrays = node.src[len(self.carries) :]
        same = dict(zip(self.constants, arrays[len(self.elements) :], strict=True))
        found = iter(replaced([part for part in parts if part is not None], same))
        rows |= dict(zip(self.elements, arrays, strict=False))
        rows |= {carry: before(node, number) for number, carry in enumerate(self.carries)}
        outs = enumerate(replaced(self.outs, same))
        rows |= {out: _result(node, "out", number) for number, out in outs}
        return [None if part is None else next(found) for part in parts], rows


@dataclass(frozen=True)
class Step:
    """One step: from carries and rows of arrays, which `given` made, to `next` and outs.

    All else that its nodes depend on is the same in all steps.
    """

    carries: tuple[Node, ...]
    elements: tuple[Node, ...]
    next: tuple[Node, ...]
    outs: tuple[Node, ...] = ()


class Looped:
    """A loop and its values, as nodes; count is at least 1."""

    def __init__(
        self, step: Step, init: Sequence[Node], arrays: Sequence[Node], count: int,
        reverse: bool = False,
    ) -> None:  # fmt: skip
        rows = dict(zip(step.elements, arrays, strict=True))
        order = topological([*step.next, *step.outs])
        carried = depending(order, step.carries)
        _check(carried)
        sums = [x for x in order if x in carried and x.op in REDUCTIONS]
        held = tuple(o for o in dict.fromkeys([*step.outs, *sums])
                     if o in carried and o not in step.next)  # fmt: skip
        roots = (*step.next, *held)
        bases = _bases(roots, carried)
        varied = depending(topological(bases), step.elements)
        varying, fixed = ([b for b in bases if (b in varied) is kind] for kind in (True, False))
        stand = {base: stand_in(base) for base in bases}
        body = replaced(roots, stand)
        loop = Loop(
            count, reverse, step.carries, tuple(stand[b] for b in varying),
            tuple(stand[b] for b in fixed), tuple(body[: len(step.next)]),
            tuple(body[len(step.next) :]),
        )  # fmt: skip
        src = (*init, *batched(varying, rows, count), *fixed)
        self.node = make(Op.LOOP, dtypes.float32, (), src, loop, src[0].device if src else "")
        free = [out for out in step.outs if out not in carried]
        outs = dict(zip(free, batched(free, rows, count), strict=True))
        outs |= {out: _result(self.node, "out", number) for number, out in enumerate(held)}
        for number, out in enumerate(step.next):
            if out not in outs and out in step.outs:
                outs[out] = after(self.node, number)
        self.outs = [outs[out] for out in step.outs]
        self.last = [_result(self.node, "last", number) for number in range(len(init))]


def _result(node: Node, kind: str, number: int) -> Node:
    """A RESULT of a LOOP."""
    loop: Loop = node.arg
    one = (loop.outs if kind == "out" else loop.carries)[number]
    lengths = {"carry": (loop.count + 1,), "out": (loop.count,), "last": ()}
    shape = (*lengths[kind], *one.shape)
    return make(Op.RESULT, one.dtype, shape, (node,), (kind, number), one.device)


def before(node: Node, number: int) -> Node:
    """A carry before each step of a LOOP (count, …)."""
    return _rows_from(_result(node, "carry", number), int(node.arg.reverse))


def after(node: Node, number: int) -> Node:
    """A carry after each step of a LOOP (count, …)."""
    return _rows_from(_result(node, "carry", number), int(not node.arg.reverse))


def _rows_from(x: Node, start: int) -> Node:
    """All rows of x but one, from `start` on."""
    return part_along(x, 0, start, x.shape[0] - 1 + start)


def _check(carried: set[Node]) -> None:
    for node in carried:
        if node.op in _IMPOSSIBLE:
            what = "writes in place" if node.op is Op.ASSIGN else f"uses {node.op.value!r}"
            raise ScanError(
                f"Tensor.scan: the step {what}, which cannot be repeated; return the new value "
                "from the function, as part of the carry"
            )


def _bases(roots: Sequence[Node], carried: set[Node]) -> dict[Node, None]:
    """Values that a step reads but does not compute; below movements, which cost nothing in it."""
    found: dict[Node, None] = {}
    users = [node for node in topological(roots) if node in carried]
    for node in (*(s for user in users for s in user.src), *roots):
        while node.op in MOVEMENT and node not in carried:
            node = node.src[0]
        if node not in carried and node.op not in (Op.CONST, Op.IOTA):
            found[node] = None
    return found


def _of_rows(node: Node, number: int, given_for: Mapping[Node, Node]) -> Node | None:
    """The gradient of a carry's rows (count + 1, …), or None."""
    total = given_for.get(_result(node, "carry", number))
    g = given_for.get(_result(node, "last", number))
    if g is None:
        return total
    loop: Loop = node.arg
    alone = pad_along(build.reshape(g, (1, *g.shape)), 0, loop.count - loop.first, loop.first)
    return alone if total is None else total + alone


STAGED = frozenset({Op.COPY, Op.LOOP})  # a graph is cut at these


class Stage(NamedTuple):
    """A part of a graph up to some COPYs and LOOPs, which can run together.

    needs: the values that these read, and those of the roots that can be computed before them.
    first: the COPYs and LOOPs → their RESULTs.
    """

    needs: list[Node]
    first: dict[Node, list[Node]]


def stages_of(roots: Sequence[Node], late: Container[Node] = ()) -> list[Stage]:
    """How to cut a graph: what stage n runs depends on chains of at most n COPYs and LOOPs.

    late: roots that are not computed before the end.
    """
    stages: list[Stage] = []
    behind: dict[Node, int] = {}  # the longest such chain that a node depends on
    for node in topological(roots, (), read_of):
        sources = read_of(node)
        behind[node] = number = max([behind[source] for source in sources], default=0)
        if node.op in STAGED:
            if number == len(stages):
                stages.append(Stage([], {}))
            stages[number].needs.extend(map(written, sources))
            stages[number].first[node] = []
            behind[node] += 1
        elif node.op is Op.RESULT:
            (loop,) = sources
            stages[number - 1].first[loop].append(node)
    for root in roots:
        if behind[root] < len(stages) and root not in late:
            stages[behind[root]].needs.append(written(root))
    return stages


def written(node: Node) -> Node:
    """The value of an in-place write, which COPYs and LOOPs read: the write itself comes last."""
    return node.src[1] if node.op is Op.ASSIGN else node


def read_of(node: Node) -> Sequence[Node]:
    """The sources of a node whose values it needs: of a LOOP, those that its steps need."""
    return [*compress(node.src, node.arg.used)] if node.op is Op.LOOP else value_src(node)


class StepsInMemory:
    """The programs of a LOOP: one for its start, and one for a step. sources: → BUFFERs.

    begin, step: their roots, which all write into rows of `memory`. If only the last value of a
    carry is wanted, it alternates between two rows. results: RESULT → its node in memory.
    """

    def __init__(
        self, node: Node, sources: Mapping[Node, Node], results: Sequence[Node],
        new: Callable[[Node, int], Node],
    ) -> None:  # fmt: skip
        loop: Loop = node.arg
        self.loop = loop
        self._places: dict[tuple[str, int], str] = {}  # a kind of row, rows of a value → variable
        wanted = {result.arg for result in results}
        stand: dict[Node, Node] = {}
        stored: list[tuple[Node, Node, str]] = []  # for each carry and out: array, like, where
        self.begin: list[Node] = []
        found: dict[tuple[str, int], Node] = {}  # a RESULT's arg → its node
        for number, carry in enumerate(loop.carries):
            all_rows = ("carry", number) in wanted
            whole = new(carry, loop.count + 1 if all_rows else 2)
            stand[carry] = self._read(whole, carry, "before" if all_rows else "from")
            stored.append((whole, carry, "after" if all_rows else "to"))
            start = loop.first if all_rows else 0
            self.begin.append(_written_at(whole, carry, sources[node.src[number]], start))
            end = loop.count - loop.first if all_rows else loop.count % 2
            found["carry", number], found["last", number] = whole, row_of(whole, end)
        values = loop.body[: len(loop.carries)]
        for number, out in enumerate(loop.outs):
            if ("out", number) in wanted:
                found["out", number] = new(out, loop.count)
                stored.append((found["out", number], out, "row"))
                values.append(loop.body[len(loop.carries) + number])
        self.memory = [whole for whole, _, _ in stored]
        self.results = {result: found[result.arg] for result in results}
        stands = (*loop.elements, *loop.constants)
        for one, source in zip(stands, node.src[len(loop.carries) :], strict=True):
            if source in sources:  # others are not read
                known = sources[source]
                stand[one] = self._read(known, one, "row") if one in loop.elements else known
        self.step = [
            _written_at(whole, like, value, self._at(where, _together(whole, like)[1]))
            for (whole, like, where), value in zip(stored, replaced(values, stand), strict=True)
        ]

    def _read(self, whole: Node, like: Node, where: str) -> Node:
        """One of the values in an array."""
        rows, count = _together(whole, like)
        start = self._at(where, count)
        return build.reshape(part_along(rows, 0, start, start + count), like.shape)

    def _at(self, where: str, count: int) -> Integer:
        """Where a value of `count` rows begins: a variable, so that any number of steps may run."""
        name = self._places.setdefault((where, count), f"_{where}{len(self._places)}")
        return Atom("var", name, 0, MOST_STEPS, payload=0).index

    def values(self) -> Iterator[dict[str, int]]:
        """The variables' values for each step, in order."""
        count = self.loop.count
        rows = range(count - 1, -1, -1) if self.loop.reverse else range(count)
        for number, row in enumerate(rows):
            before, after = row + self.loop.reverse, row + (not self.loop.reverse)
            now = {"row": row, "before": before, "after": after,
                   "from": number % 2, "to": 1 - number % 2}  # fmt: skip
            yield {name: now[where] * of_each
                   for (where, of_each), name in self._places.items()}  # fmt: skip


def _together(whole: Node, like: Node) -> tuple[Node, int]:
    """An array of values like a node as the rows of all of them, and how many rows one has.

    The position of row j of value i would be i · n + j, which is not linear if n varies: so where a
    value begins, i · n, is one number.
    """
    count = like.shape[0] if like.shape else 1
    if not like.shape or not isinstance(count, int) or high(whole.shape[0]) * count > MOST_STEPS:
        return whole, 1
    shape = (whole.shape[0] * count, *like.shape[1:])
    if whole.op is Op.BUFFER:
        return build.buffer(whole.arg, whole.dtype, shape, whole.device), count
    return build.reshape(whole, shape), count


def _written_at(whole: Node, like: Node, value: Node, start: Integer) -> Node:
    """A write of a value to an array of such values. start: a variable, or the value's number."""
    rows, count = _together(whole, like)
    place = start * count if isinstance(start, int) else start
    return build.assign(rows, build.reshape(value, (count, *rows.shape[1:])), place)
