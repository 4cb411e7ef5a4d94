"""General programs: numbers in which two graphs of one structure differ become arguments.

The first graph of a structure is compiled as it is. When a second graph comes with other numbers,
the *general* graph of both is made: where their cells (`graph/canonical.py`) differ, it has a
variable. Cells that differ in the same way, or by a constant and a factor, share one variable
(anti-unification: Plotkin 1970). From the third graph on nothing is compiled: the cells of the call
are matched against the general graph, which gives the values of its variables, or shows that this
call does not fit.

    x[3].sum()      structure   BUFFER (2), SHRINK, RESHAPE, SUM
    x[7].sum()      cells       1000 64 | 3 1 0 64 | 64  and  1000 64 | 7 1 0 64 | 64
                    general     1000 64 | v 1 0 64 | 64

A general graph is built with the constructors that check shapes. Two points always fit a line, but
shapes that are consistent for every value do not arise by chance. Where two shapes must agree, but
have different variables, one variable is expressed by the others: n rows joined to m are n + m.
Where varying dimensions merge, the graph is cut (`graph/cuts.py`), and all parts are one program.
What cannot be generalized in this way stays *special*: compiled for its numbers.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import add
from typing import Any, NamedTuple

from minigrad.dtype import dtypes
from minigrad.errors import MinigradError, ShapeError
from minigrad.graph import build
from minigrad.graph.axes import joined, spread
from minigrad.graph.canonical import NUMBERED, Canonical, Cell, Graph, cells_of
from minigrad.graph.cuts import Cuts, with_stored
from minigrad.graph.node import Node, Op, Shape, is_symbolic, make, topological
from minigrad.graph.operations import ELEMENTWISE, MOVEMENT, REDUCTIONS, SCANS, SCATTERS
from minigrad.graph.shapes import equally_apart, inner, numel
from minigrad.graph.substitution import substitute, variables
from minigrad.graph.symbolic import Affine, Atom, Integer, high, low, typical
from minigrad.graph.variable import evaluate, with_room

# A general program serves sizes up to a multiple of the largest that it was made from, and at least
# up to a fixed size.
FAR = (8, 1024)  # a power of two beyond most batches
NEAR = (4, 128)  # if arrays are laid out at the bound, with unused memory in between
TIGHT = (2, 16)  # the same, if that would be too much memory, unless more dimensions differ than
MOST_TIGHT = 3  # the number, the height and the width of images
LEAST_IMAGE = 0.5  # the smallest, of the smallest size, if windows need so many elements
# Blocks of rows of an array that are copied one by one, at most: of images, each channel is one.
MOST_BLOCKS = 256
# Elements of arrays padded in several dimensions, whose bounds multiply: 256 MB of float32. A
# quarter of that in one array, if it has many rows: small ones, such as batches, may be longer.
# With more than ROOMY, bounds are tight if they can be: memory far apart is cleared in whole pages.
MOST_PADDED, ROOMY = 1 << 26, 1 << 24
LIVE = 4  # of such sums at a time: of a layer of attention and its gradients
MOST_SAMPLES = 4  # samples of which a general graph is made; kinds beyond that stay special
# Operations whose shape follows from their sources', whatever their sizes are.
FOLLOWING = ELEMENTWISE | MOVEMENT | REDUCTIONS | {
    *SCANS, *SCATTERS, Op.CAT, Op.GATHER, Op.CONTIGUOUS, Op.SORT,
}  # fmt: skip
SELDOM_STORED = ELEMENTWISE | MOVEMENT - {Op.PAD}
# Elements of a row that is sorted, or added up, by one thread: all of it, if its length varies.
MOST_IN_TURN = 1 << 18
FEW = 16  # first elements of a sort: up to so many of a row, or 1 of so many (see schedule/sort.py)
_INT64, _INT32 = (-(1 << 63), (1 << 63) - 1), (-(1 << 31), (1 << 31) - 1)


class Special(MinigradError):
    """The reason why graphs have no general graph; perhaps two extents that have to be equal."""


class TooLarge(Special):
    """Arrays that are laid out at their bounds would take too much memory."""


# Graphs without a general one, by a hash of their cells: why.
Refused = dict[int, tuple[type[Special], str]]

# The range of a cell, by kind. 0 as an extent is structure: whole operations depend on it.
_OFFSET = (0, _INT32[1])
_RANGES = {"extent": (1, _INT64[1]), "before": _OFFSET, "after": _OFFSET, "start": _OFFSET}


# A cell that follows from a variable, by place: factor · it + constant (of a float: it).
Followers = dict[int, tuple[int, int]]


class Hole(NamedTuple):
    """A variable, the place of its cell, and the kind of that cell."""

    atom: Atom
    place: int
    kind: str


@dataclass(frozen=True)
class General:
    """A general graph, and how the cells of a call are matched against it."""

    graph: Graph
    holes: Sequence[Hole]
    copies: Sequence[tuple[int, int]]  # places of cells that vary, and of the variable's cell
    formulas: Sequence[tuple[int, Affine]]  # of the other cells that vary
    cells: tuple[Cell, ...]  # of one sample
    cut: bool  # whether it has several stages (`graph/cuts.py`)
    padded: bool  # whether arrays have another layout inside, or another shape in another stage

    def match(self, cells: tuple[Cell, ...]) -> dict[str, int] | None:
        """The variables' values for a call with these cells; None if it does not fit."""
        values: dict[str, int] = {}
        for atom, place, kind in self.holes:
            cell = cells[place]
            if isinstance(cell, int):
                if not atom.low <= cell <= atom.high:
                    return None
                values[atom.name] = cell
            elif isinstance(cell, bytes):
                values[atom.name] = _bits(cell, kind)
            else:
                return None
        expected = list(self.cells)
        for place, same in self.copies:
            expected[place] = cells[same]
        for place, formula in self.formulas:
            expected[place] = evaluate(formula, values)
        return values if tuple(expected) == cells else None


def _bits(cell: bytes, kind: str) -> int:
    """The bits of a float as an integer: of a float32, unless it is a float64."""
    if kind == "float64":
        return int(struct.unpack("<q", cell)[0])
    return int(struct.unpack("<i", struct.pack("<f", *struct.unpack("<d", cell)))[0])


def generalize(
    call: Canonical, samples: Sequence[tuple[Cell, ...]], may_pad: bool = True,
    refused: Refused | None = None, lines: bool = True,
) -> General:  # fmt: skip
    """The general graph of calls of one structure, of which `call` is one.

    may_pad: whether callers' arrays may have another layout inside of the program. refused:
    what is known of graphs of this structure; more is added. lines: whether a number may follow
    from another one by more than a factor; of few samples, many do by chance. Raises Special if
    there is no general graph.
    """
    refused = {} if refused is None else refused
    reason = "an inner dimension of an input or result varies"
    least = LEAST_IMAGE if any(node.op is Op.WINDOW for node in call.order) else 0.0
    ways = [(FAR, False), (NEAR, True)] if may_pad else [(FAR, False)]
    for reach, pads in ways:
        part = least if pads else 0.0
        holes, formulas = unify(samples, _kinds(call), (*reach, part), lines, call.values)
        try:
            found = _general(call, samples, holes, formulas, refused, reach is TIGHT)
        except Special as special:
            reason = str(special)
            if isinstance(special, TooLarge) and reach is not TIGHT:
                ways.insert(ways.index((reach, pads)) + 1, (TIGHT, pads))
        else:
            if pads or not found.padded:
                return found
    raise Special(reason)


def _general(
    call: Canonical, samples: Sequence[tuple[Cell, ...]], holes: Sequence[Hole],
    formulas: Mapping[int, Affine], refused: Refused, tight: bool,
) -> General:  # fmt: skip
    widened = False
    while True:
        new = [*samples[-1]]
        for place, formula in formulas.items():
            new[place] = formula
        key = hash((repr(new), *((atom.low, atom.high) for atom, *_ in holes)))
        if key in refused:
            kind, reason = refused[key]
            raise kind(reason)
        names = tuple(sorted((*call.values, *(atom.name for atom, *_ in holes))))
        cuts = Cuts(call.targets)
        try:
            graph = call.rewritten(partial(_remake, cells=iter(new), cuts=cuts), names)
            if not widened and any(cuts.most.get(one.name, 0) > one.high for one, *_ in holes):
                holes, formulas = _widened(holes, formulas, cuts.most)
                widened = True
                continue
            graph = with_stored(graph, len(call.inputs)) if cuts.made else graph
            padded = _check_layout(graph, tight) or cuts.made
            first = {hole.atom.index: hole.place for hole in holes}
            copies = [(at, first[one]) for at, one in formulas.items() if one in first]
            others = [(at, one) for at, one in formulas.items() if one not in first]
            return General(graph, holes, copies, others, samples[-1], cuts.made, padded)
        except (ShapeError, Special) as error:
            reason, *extents = error.args
            kind = TooLarge if isinstance(error, TooLarge) else Special
        solved = _solved(holes, formulas, samples, *extents) if extents else None
        if solved is None:
            refused[key] = kind, reason
            raise kind(reason)
        holes, formulas = solved


def _widened(
    holes: Sequence[Hole], formulas: Mapping[int, Affine], most: Mapping[str, int]
) -> tuple[Sequence[Hole], Mapping[int, Any]]:
    """Variables with larger bounds."""
    atoms = [hole.atom for hole in holes]
    wide = [Atom("var", one.name, one.low, max(one.high, most.get(one.name, 0)), usual=one.usual)
            for one in atoms]  # fmt: skip
    holes = [hole._replace(atom=atom) for hole, atom in zip(holes, wide, strict=True)]
    new: dict[Atom, Integer] = dict(zip(atoms, [atom.index for atom in wide], strict=True))
    return holes, {place: substitute(formula, new) for place, formula in formulas.items()}


def _solved(
    holes: Sequence[Hole], formulas: Mapping[int, Affine], samples: Sequence[tuple[Cell, ...]],
    one: Integer, other: Integer,
) -> tuple[Sequence[Hole], Mapping[int, Any]] | None:  # fmt: skip
    """Without a variable that follows if two extents are equal; None if there is no such one.

    So if the extent of a join is a sum in one place and a number in another, it becomes the sum in
    both, and so does what windows with a step leave of an extent. An extent of 1 that is repeated
    in some samples is not equal in these.
    """
    difference = one - other
    atoms = {hole.atom: hole for hole in holes}
    places = [(atom.name, place) for atom, place, _ in holes]
    given: list[dict[str, Any]] = [{n: cells[at] for n, at in places} for cells in samples]
    known = variables(difference) <= atoms.keys()
    if not known or any(evaluate(difference, values) for values in given):
        return None
    for atom, factor in () if isinstance(difference, int) else difference.terms:
        if atom not in atoms or abs(factor) != 1:
            continue
        rest = atom.index - difference * factor
        if atom not in variables(rest) and low(rest) >= atom.low:
            del atoms[atom]
            return [*atoms.values()], {
                place: substitute(formula, {atom: rest}) for place, formula in formulas.items()
            }
    return None


_KINDS = {  # of an operation's cells, in turn; others have extents
    Op.SHRINK: ("start", "extent"), Op.PAD: ("before", "after"), Op.ASSIGN: ("start",),
    Op.VARIABLE: ("int32",),
}  # fmt: skip


def _kinds(call: Canonical) -> list[str]:
    """The kind of each cell of a structure.

    "extent", "before" and "after" (of a PAD), "start" (of a part), or a constant's dtype.
    """
    found: list[str] = []
    for node in call.order:
        if node.op in NUMBERED and (call.checks or node.op is not Op.CHECK):
            turns = itertools.cycle(_KINDS.get(node.op, ("extent",)))
            found += itertools.islice(turns, len(cells_of(node)))
            if node.op is Op.CONST and not node.dtype.is_bool:
                found[-1] = node.dtype.name
    return found


def unify(
    samples: Sequence[tuple[Cell, ...]], kinds: Sequence[str], reach: tuple[int, int, float],
    lines: bool, taken: Container[str] = (),
) -> tuple[Sequence[Hole], Mapping[int, Affine]]:
    """The least general variables that give all samples: one for all cells that differ alike.

    Also the formulas of these cells. taken: names of other variables. Raises Special if a cell
    differs that cannot be a variable.
    """
    columns: dict[tuple[int, ...], list[int]] = {}
    alone: dict[Any, Followers] = {}  # places and floats: no extent follows from them
    placed: set[int] = set()
    cells = list(zip(*samples, strict=True))
    for number, column in enumerate(cells):
        kind = kinds[number]
        if number in placed or all(cell == column[0] for cell in column):
            continue
        if any(isinstance(cell, Affine) for cell in column):
            raise Special("a symbolic integer varies")
        if isinstance(column[0], bytes):
            alone.setdefault((kind, *column), {})[number] = (1, 0)
        elif kind == "start":
            alone[number] = {number: (1, 0)}
        elif kind == "before" and len(both := {*map(add, column, cells[number + 1])}) == 1:
            # as many zeros in all samples: a part at any place of a whole
            alone.setdefault((*both, *column), {}).update({number: (1, 0), number + 1: (-1, *both)})
            placed.add(number + 1)
        else:
            columns.setdefault(column, []).append(number)
    bases: list[tuple[tuple[int, ...], Followers]] = []
    for column in sorted(columns, key=lambda column: _rank(column, columns[column], kinds)):
        found = columns[column]
        for base, followers in bases:
            line = _line(base, column)
            if line is not None and (lines or not line[1]):
                followers |= dict.fromkeys(found, line)
                break
        else:
            bases.append((column, dict.fromkeys(found, (1, 0))))
    holes: list[Hole] = []
    formulas: dict[int, Any] = {}
    names = (name for name in map("_{}".format, itertools.count()) if name not in taken)
    for name, followers in zip(names, [*alone.values(), *(one for _, one in bases)], strict=False):
        hole = _hole(name, samples, followers, kinds, reach)
        holes.append(hole)
        for place, (factor, constant) in followers.items():
            formulas[place] = hole.atom.index * factor + constant
    return holes, formulas


def _rank(column: tuple[int, ...], found: list[int], kinds: Sequence[str]) -> Any:
    """A sort key of columns, for the variable that others follow: small extents come first."""
    extent = any(kinds[place] == "extent" for place in found)
    return (not extent, abs(column[1] - column[0]) or _INT64[1], found[0])


def _line(base: tuple[int, ...], column: tuple[int, ...]) -> tuple[int, int] | None:
    """factor and constant, if a column is a linear function of another; else None."""
    pairs = list(zip(base, column, strict=True))
    (x, y), (other, value) = pairs[0], next(pair for pair in pairs if pair[0] != pairs[0][0])
    factor, rest = divmod(value - y, other - x)
    constant = y - factor * x
    if rest or not factor or constant % factor:  # factor · (it + a constant)
        return None
    return (factor, constant) if all(factor * a + constant == b for a, b in pairs) else None


def _hole(
    name: str, samples: Sequence[tuple[Cell, ...]], followers: Followers,
    kinds: Sequence[str], reach: tuple[int, int, float],
) -> Hole:  # fmt: skip
    """The variable for some cells, with the range in which none of them leaves its own range."""
    place = next(iter(followers))
    kind, seen = kinds[place], [sample[place] for sample in samples]
    if isinstance(seen[0], bytes):
        return Hole(Atom("var", name, *(_INT64 if kind == "float64" else _INT32)), place, kind)
    values = [value for value in seen if isinstance(value, int)]
    (low, high), usual = _INT64, 0
    for other, (factor, constant) in followers.items():
        least, most = _RANGES.get(kinds[other], _INT64)
        first, last = (least, most) if factor > 0 else (most, least)
        low = max(low, -((first - constant) // -factor))  # rounded up
        high = min(high, (last - constant) // factor)
    if any(kinds[other] in ("extent", "before", "after") for other in followers):
        high = min(high, max(reach[0] * max(values), reach[1]))
        low = max(low, int(reach[2] * min(values)))
        usual = 1 << (3 * max(values) // 2).bit_length() - 1  # a power of two: kernels are shared
    if not all(low <= value <= high for value in values):
        raise Special("a size of 0, or an offset below 0, varies")
    return Hole(Atom("var", name, low, high, usual=usual), place, kind)


def _remake(
    node: Node, src: tuple[Node, ...], arg: Any, cells: Iterator[Cell], cuts: Cuts
) -> Node:
    """A node with new sources and cells, by the constructors that check shapes."""
    op, device = node.op, node.device
    if op is Op.SHRINK or op is Op.PAD:
        flat: list[Any] = [next(cells) for _ in range(2 * node.ndim)]
        pairs = list(zip(flat[::2], flat[1::2], strict=True))
        if op is Op.SHRINK:
            _check_selection(node, pairs)
            pairs = [(start, start + length) for start, length in pairs]
        return build.rebuild(node, src, pairs)
    if op is Op.CHECK:
        return make(op, node.dtype, src[0].shape, src, arg.but(extent=next(cells)), device)
    if op is Op.VARIABLE:
        return make(op, node.dtype, (), (), next(cells), device)
    if op is Op.ASSIGN:
        if arg is None:
            _agree(zip(src[0].shape, src[1].shape, strict=True))
        row = None if arg is None else next(cells)
        return make(op, node.dtype, src[1].shape, src, row, device)
    if op in NUMBERED:
        shape: Any = tuple(next(cells) for _ in node.shape)
        if op is Op.CONST:
            return _constant(node, shape, cells)
        if op is Op.EXPAND or op is Op.RESHAPE:
            _agree(_kept(node, src[0].shape, shape))
            cut = op is Op.RESHAPE and cuts.reshaped(src[0], shape)
            return cut or build.rebuild(node, src, shape)
        return make(op, node.dtype, shape, src, arg, device)
    if not any(is_symbolic(source.shape) for source in src):
        return make(op, node.dtype, node.shape, src, arg, device)
    if op is Op.CAT and any(is_symbolic(source.shape[arg : arg + 1]) for source in src):
        return joined(src, arg)
    if (op is Op.SORT or op in SCANS) and is_symbolic((extent := src[0].shape[arg],)):
        if high(extent) > MOST_IN_TURN:
            raise Special(f"{op.value} of up to {high(extent)} elements")
    if op in ELEMENTWISE:
        for source in src:
            _agree(zip(src[0].shape, source.shape, strict=True))
    if op in FOLLOWING:
        return build.rebuild(node, src)
    raise Special(f"{op.value} of a varying size")


def _kept(node: Node, old: Shape, new: Shape) -> Iterator[tuple[Integer, Integer]]:
    """The old and new extents of dimensions that an EXPAND or RESHAPE keeps, 1s aside."""
    before = [(now, one) for now, one in zip(node.src[0].shape, old, strict=True) if one != 1]
    after = [(now, other) for now, other in zip(node.shape, new, strict=True) if other != 1]
    if node.op is Op.EXPAND:
        yield from ((one, other) for one, other in zip(old, new, strict=True) if one != 1)
    elif [now for now, _ in before] == [now for now, _ in after]:
        yield from ((one, other) for (_, one), (_, other) in zip(before, after, strict=True))


def _agree(pairs: Iterable[tuple[Integer, Integer]]) -> None:
    """Raise Special for the first pair of extents that should be equal, but are not."""
    for one, other in pairs:
        if one != other and is_symbolic((one, other)):
            raise Special(f"a size is {one} and {other}", one, other)


def _check_selection(node: Node, pairs: Sequence[tuple[Any, Any]]) -> None:
    """Raise Special for the first k elements of a sort, if k is small and differs.

    Such a program selects k elements, which takes much less time than sorting all.
    """
    source = node.src[0]
    if source.op is Op.SORT and isinstance(pairs[source.arg][1], Affine):
        count = node.shape[source.arg]
        if high(count) <= max(FEW, high(source.shape[source.arg]) // FEW):
            raise Special(f"the first {count} elements of a sort")


def _constant(node: Node, shape: Shape, cells: Iterator[Cell]) -> Node:
    """A constant, or a variable instead: an integer, or the bits of a float."""
    dtype, device = node.dtype, node.device
    value = int(node.arg) if dtype.is_bool else next(cells)
    if not isinstance(value, Affine):
        return make(Op.CONST, dtype, shape, (), node.arg, device)
    wide = dtype is dtypes.float64 or not dtype.is_float
    number = make(Op.VARIABLE, dtypes.int64 if wide else dtypes.int32, (), (), value, device)
    if dtype.is_float:
        number = build.bitcast(number, dtypes.float64 if wide else dtypes.float32)
    return spread(build.cast(number, dtype), shape)


def laid_out(graph: Graph) -> tuple[dict[int, Shape], dict[int, Shape]]:
    """The slots that are laid out at their bounds: those that are read, and those written.

    A dimension of these but the first varies (`minigrad/padded.py`), not only a user's variable.
    """
    read = [(x.arg, _in_memory(x)) for x in topological(graph.roots) if x.op is Op.BUFFER]
    written = zip(graph.outputs, map(_in_memory, graph.roots), strict=True)
    return ({slot: shape for slot, shape in read if inner(shape)},
            {slot: shape for slot, shape in written if inner(shape)})  # fmt: skip


def _in_memory(node: Node) -> Shape:
    """The shape for which a node is laid out by callers."""
    return tuple(map(with_room, node.shape))


def _check_layout(graph: Graph, tight: bool) -> bool:
    """Whether arrays have another layout inside.

    Raises Special if one has several shapes, or would be copied in too many blocks, or many rows
    would take too much memory.
    """
    reads, writes = laid_out(graph)
    stored: list[Shape] = []  # by one stage for another
    for node in topological(graph.roots):
        shape = _in_memory(node)
        if node.op is Op.BUFFER and reads.get(node.arg, shape) != shape:
            raise Special(f"an array is read with shapes {shape} and {reads[node.arg]}")
        if node.op is Op.COPY:
            stored += [one for one in (shape, _in_memory(node.src[0])) if inner(one)]
    for root, slot in zip(graph.roots, graph.outputs, strict=True):
        shape = _in_memory(root)
        if slot in reads and (root.op is Op.ASSIGN or shape != reads[slot]):
            raise Special(f"an array of shape {reads[slot]} is written with shape {shape}")
    for shape in (*reads.values(), *writes.values(), *stored):
        first, _, last = equally_apart(shape)
        if numel(shape[:first]) > MOST_BLOCKS:
            raise Special(f"an array of shape {shape} is copied in too many blocks")
        if numel(shape[:last]) > MOST_BLOCKS:
            reason = f"an array padded to {shape} is too large"
            _check_size(reason, 4 * _planned(shape), [shape], tight)
    _check_area(graph, tight)
    return bool(reads or writes or stored)


def _check_area(graph: Graph, tight: bool) -> None:
    """Raise Special if arrays with varying inner dimensions are too large, which have their bounds.

    Of sums the largest counts LIVE times: others take its place in memory. (What a row of attention
    weighs by is not counted: it is seldom stored.) So do arrays that may be stored, but only for
    TooLarge.
    """
    nodes = topological(graph.roots)
    images = any(node.op is Op.WINDOW for node in nodes)
    total = largest = perhaps = 0
    for node in nodes:
        varying = [extent for extent in node.shape if not isinstance(extent, int)]
        if len(set(varying)) > 1 or (images and len(varying) > 1) or (
            len(varying) == 1 and inner(node.shape)
        ):
            if node.op in REDUCTIONS:
                largest = max(largest, _planned(node.shape))
            elif node.op in (Op.BUFFER, Op.COPY):
                total += _planned(node.shape)
            elif node.src and node.op not in SELDOM_STORED:
                perhaps = max(perhaps, _planned(node.shape))
    perhaps, total = total + LIVE * max(largest, perhaps), total + LIVE * largest
    reason = f"arrays padded in several dimensions have {total} elements"
    _check_size(reason, total, [node.shape for node in nodes], tight, perhaps)


def _check_size(
    reason: str, elements: int, shapes: Sequence[Shape], tight: bool, perhaps: int = 0
) -> None:
    """Raise Special if padded arrays of these shapes have too many elements.

    Raise TooLarge if they have, or perhaps have, many and fewer if bounds are tight.
    """
    if max(elements, perhaps) > ROOMY:
        most = max(len({extent for extent in s if not isinstance(extent, int)}) for s in shapes)
        may = not tight and most <= MOST_TIGHT
        if may or elements > MOST_PADDED:
            raise (TooLarge if may else Special)(reason)


def _planned(shape: Shape) -> int:
    """Elements of an array with bounds; as many rows as usual: memory is planned for each size."""
    return typical(shape[0]) * numel(shape[1:])
