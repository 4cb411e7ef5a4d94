"""The schedule of a program: kernels in order, where each value lives, and when memory is free."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from minigrad.dtype import dtypes
from minigrad.graph.canonical import Graph
from minigrad.graph.node import Node, grouped, is_symbolic, make
from minigrad.graph.operations import ELEMENTWISE, REDUCTIONS, SCANS, SCATTERS, Op
from minigrad.graph.shapes import flatten, iterations, numel
from minigrad.graph.symbolic import Integer, ceildiv, high
from minigrad.schedule.attention_fusion import Chains
from minigrad.schedule.axis import place_along
from minigrad.schedule.expr import Array, Expr, Leaf, array_of
from minigrad.schedule.fuse import Cluster, aligned, cluster
from minigrad.schedule.joins import ROWS, Part, part_written, placed, with_parts, with_starts
from minigrad.schedule.layout import as_read, in_order_of, reading
from minigrad.schedule.lower import shown
from minigrad.schedule.materialize import MEMORY_COST
from minigrad.schedule.order import after_needs, freeing_early
from minigrad.schedule.stage import Stage, Stages
from minigrad.target import LINE, Target

_SHOWING = (Op.RESHAPE, Op.PERMUTE)  # movements that show each element of their source once
Source = tuple[str, Any]  # where an argument of a kernel comes from: kind, and which one


@dataclass(frozen=True)
class Kernel:
    """Stages that run under one parallel loop.

    kind: "rows" (row r of every stage after row r of its producers), "contraction" (a matrix
    product and elementwise stages on its result), "scatter", "scan", "distribute" or "block_rows"
    (like "rows", but with products, so that several rows are computed together); "exchange" starts
    a COLLECTIVE and "wait" waits for its end; neither generates code. rows: the number of rows.
    stored: the arrays that must reach memory; the others exist inside the kernel only. numbers: the
    program's own values for symbols (offsets of parts of a CAT), by name. sums: of "block_rows",
    the arrays that its blocks add to one after the other, and what is computed when they are
    complete.
    """

    kind: str
    stages: tuple[Stage, ...]
    rows: Integer
    stored: frozenset[Array]
    numbers: tuple[tuple[str, int], ...] = ()
    sums: frozenset[Array] = frozenset()

    def sources(
        self, places: Mapping[Array, Source], arrays: Iterable[Array], symbols: Iterable[str]
    ) -> tuple[Source, ...]:
        """Where the arguments of its code come from, arrays first; places: see `Schedule`.

        Symbols are ("symbol", name), or ("number", value) if the program itself has the value.
        """
        known = dict(self.numbers)
        values = (
            ("number", known[name]) if name in known else ("symbol", name) for name in symbols
        )
        return (*(places[array.whole or array] for array in arrays), *values)


@dataclass(frozen=True)
class Schedule:
    """kernels in order; slots: arrays that are buffers of the call; held: memory of the others.

    nodes: array → the node whose value it holds, without a kernel's private copies.
    """

    kernels: tuple[Kernel, ...]
    slots: dict[Array, int]
    held: tuple[LiveRange, ...] = ()
    nodes: dict[Array, Node] = field(default_factory=dict)

    @property
    def arena_bytes(self) -> int:
        """Bytes of the memory between kernels; symbolic sizes count with their maximum."""
        return place([(high(one.nbytes), one.first, one.last) for one in self.held])[1]

    def places(self) -> dict[Array, Source]:
        """array → where it is: ("slot", number) or ("held", number)."""
        held = {array: ("held", n) for n, one in enumerate(self.held) for array in one.arrays}
        return {**held, **{array: ("slot", slot) for array, slot in self.slots.items()}}


def schedule(graph: Graph, roots: Sequence[Node], target: Target, fuse: bool = True) -> Schedule:
    """Turn the roots of a graph, which earlier passes may have rewritten, into kernels.

    fuse: let stages share kernels. Which ones do depends on the target.

    A plan shows what is wrong with it, and then another one is made: values that are computed again
    for less than it takes to keep them in memory (unless there are more kernels then), and writes
    in place before which not all can be read (the value is computed elsewhere, and copied last).
    """
    distinct = _distinct_roots(roots)
    pairs = zip(distinct, roots, strict=True)
    asked = {found: root for found, root in pairs if root.op in _SHOWING}
    roots = with_parts(distinct)
    recomputed: frozenset[Node] = frozenset()
    better_kept: frozenset[Node] = frozenset()
    deferred: frozenset[int] = frozenset()
    stages = Stages()

    def planned() -> _Plan:
        return _Plan(graph, roots, recomputed, deferred, fuse, target, stages)

    plan = planned()
    while True:
        cheaper = plan.better_recomputed() - recomputed - better_kept
        if cheaper:
            before, recomputed = plan, recomputed | cheaper
            plan = planned()
            if len(plan.clusters) > len(before.clusters):  # a kernel that shared it was split
                plan, recomputed = before, recomputed - cheaper
                better_kept |= cheaper
            continue
        unsafe = plan.order_in_place_writes() - deferred
        if not unsafe:
            return plan.finish(asked)
        deferred |= unsafe
        plan = planned()


def _distinct_roots(roots: Sequence[Node]) -> list[Node]:
    """Make the roots distinct nodes and none of them a BUFFER, so that each has its own array.

    A root that only shows a reduction (or the like) in its memory order becomes that reduction.
    """
    result: list[Node] = []
    for root in roots:
        (*others, inner), places, index = shown(root, _SHOWING)
        own = inner.op in (*REDUCTIONS, *SCANS, *SCATTERS, Op.CAT)
        if own and not any(is_symbolic(node.shape) for node in (*others, inner)):
            alike = flatten(index, inner.shape) == flatten(places, root.shape)
            root = inner if alike else root
        while root.op is Op.BUFFER or root in result:
            root = make(Op.CONTIGUOUS, root.dtype, root.shape, (root,), None, root.device)
        result.append(root)
    return result


def _copied_last(root: Node) -> Node:
    """A copy of a root that is made when nobody needs the old value."""
    return make(Op.CONTIGUOUS, root.dtype, root.shape, (root,), "late", root.device)


class _Plan:
    """One attempt at a schedule."""

    def __init__(
        self,
        graph: Graph,
        roots: Sequence[Node],
        recomputed: frozenset[Node],
        deferred: frozenset[int],
        fuse: bool,
        target: Target,
        stages: Stages,
    ) -> None:
        # writes that need a copy: computed elsewhere, and copied into place last
        targets = [
            (_copied_last(root) if slot in deferred else root, slot)
            for root, slot in zip(roots, graph.outputs, strict=True)
        ]
        late = [root for root, slot in targets if slot in deferred]
        values = stages.values((*roots, *late))
        # which values get memory, and a stage for each of them
        kept, self.recomputable = values.choose(recomputed, fuse)
        self._name_arrays(values.order, targets, kept, stages)
        nodes = [node for node in kept if numel(node.shape)]  # nothing is computed without elements
        self.stages = self._needed({node: stages.of(node, self.arrays) for node in nodes})
        for node, stage in self.stages.items():
            if isinstance(node.arg, Part):
                self.stages[node] = placed(stage, node.arg)
        alone = self._cut_to_parts(root for root, _ in targets)
        alone |= {self.arrays[node] for node in late}
        self._order_results(target, fuse)
        # which stages share a kernel, and which kernels must wait for which
        self.chains = Chains(self.stages.values(), self.slots, fuse)
        self.chains.lay_out()
        self.clusters, self.waits = cluster(self.chains, target, fuse, alone)
        self.readers = grouped(
            (array, member) for member in self.clusters
            for array in dict.fromkeys([a for stage in member.stages for a in stage.reads])
        )  # fmt: skip
        self.maker = {stage.array: member for member in self.clusters for stage in member.stages}

    def _name_arrays(
        self, order: Sequence[Node], targets: Sequence[tuple[Node, int]], kept: Sequence[Node],
        stages: Stages,
    ) -> None:  # fmt: skip
        """An array for each BUFFER, root and kept node, and the slots of those of the call.

        inputs: those of BUFFERs by slot. rows: arrays where only some rows are written, and none is
        read.
        """
        self.arrays: dict[Node, Array] = {}
        self.slots: dict[Array, int] = {}
        self.inputs: dict[int, Array] = {}
        self.rows: set[Array] = set()
        for node in order:
            if node.op is Op.BUFFER:
                array = array_of(f"s{node.arg}", node.dtype, node.shape)
                self.arrays[node] = self.inputs[node.arg] = array
                self.slots[array] = node.arg
        for root, slot in targets:
            some = isinstance(root.arg, Part) and root.arg.cat == ROWS
            array = array_of(f"o{slot}", root.dtype, root.arg.shape if some else root.shape)
            self.arrays[root] = array
            if some:
                self.rows.add(array)
            self.slots[array] = slot
        for node in kept:
            if node not in self.arrays:
                self.arrays[node] = stages.array(node)
        for node in kept:
            if node.op is Op.CAT:
                whole = self.arrays[node]
                for place, piece in enumerate(node.src):
                    part = replace(whole, name=f"{whole.name}_{place}", whole=whole)
                    self.arrays[piece] = part
                    if whole in self.slots:
                        self.slots[part] = self.slots[whole]

    def _needed(self, stages: dict[Node, Stage]) -> dict[Node, Stage]:
        """The stages that are read in the end, without values that masks or constants exclude."""
        wanted = set(self.slots)
        for stage in reversed(stages.values()):
            if stage.array in wanted:
                wanted.update(stage.reads)
        return {node: stage for node, stage in stages.items() if stage.array in wanted}

    def _cut_to_parts(self, roots: Iterable[Node]) -> frozenset[Array]:
        """Let in-place writes of a part of a buffer store only that part; returns their arrays."""
        found = set()
        for root in roots:
            array = self.arrays[root]
            old = self.inputs.get(self.slots[array])
            if root in self.stages and old is not None:
                part = part_written(self.stages[root], old)
                if part is not None:
                    self.stages[root] = part
                    found.add(array)
        return frozenset(found)

    def _order_results(self, target: Target, in_blocks: bool) -> None:
        """Compute and store products in the axis order in which their results are needed.

        A copy of a whole result, or an elementwise stage on it that no other stage reads, takes the
        product's axes and becomes its epilogue. With vectors that may store columns as rows, but
        not if matrix registers or attention's blocks (in_blocks: there may be some) compute the
        product. A product that only products read is stored in the order in which they read it.
        """
        blocks = Chains(self.stages.values(), self.slots, in_blocks).sinks
        readers = grouped((a, node) for node, stage in self.stages.items() for a in stage.reads)
        for product in [stage for stage in self.stages.values() if stage.contraction is not None]:
            array, nodes = product.array, readers.get(product.array, ())
            found = [self.stages[node] for node in nodes]
            in_matrices = target.matrices and product.multiplies(dtypes.bfloat16)
            across = target.vector_bytes > 0 and not in_matrices and array not in blocks
            for node, stage in zip(nodes, found, strict=True):
                copied = node.op is Op.CONTIGUOUS or stage.array not in readers
                if stage.op is None and copied:
                    self.stages[node] = in_order_of(stage, product, across)
            products = all(stage.contraction is not None for stage in found)
            order = as_read(product, found) if products and array not in self.slots else None
            if order is not None and order != tuple(range(len(order))):
                for node, stage in zip(nodes, found, strict=True):
                    self.stages[node] = reading(stage, {array: (product, order)})
                own = next(node for node, stage in self.stages.items() if stage.array == array)
                place = place_along([product.axes[n] for n in order])
                self.stages[own] = replace(self.stages[own], position=place)

    def better_recomputed(self) -> frozenset[Node]:
        """Values kept to save operations that turned out to need a round trip to memory."""
        found: set[Node] = set()
        for node, saved in self.recomputable.items():
            array = self.arrays[node]
            home = self.maker.get(array)  # None: it never sees memory
            if home is not None and saved <= MEMORY_COST and self.readers.get(array) != [home]:
                found.add(node)
        stack = list(found)
        while stack:  # else their elementwise sources would be kept instead, for the same readers
            for source in stack.pop().src:
                if source.op in ELEMENTWISE and source not in self.arrays and source not in found:
                    found.add(source)
                    stack.append(source)
        return frozenset(found)

    def order_in_place_writes(self) -> frozenset[int]:
        """Make readers of an overwritten slot run first; returns the slots where that fails."""
        unsafe = set()
        for array, slot in self.slots.items():
            old = self.inputs.get(slot)
            if old is None or array not in self.maker or array in self.rows:
                continue
            writer = self.maker[array]
            for reader in self.readers.get(old, []):
                if reader is writer:
                    if not _safe_in_place(writer, writer.most_rows, array, old):
                        unsafe.add(slot)
                elif self.waits.reaches([reader], writer):
                    unsafe.add(slot)
                else:
                    self.waits.add(writer, (reader,))
        return frozenset(unsafe)

    def finish(self, asked: Mapping[Node, Node]) -> Schedule:
        """The kernels in order, and the arena. asked: a computed node → the root it stands for."""
        kernels = []
        stored = {member: self._stored(member) for member in self.clusters}
        for member in self._order(stored):
            if member.kind == "cat":
                continue
            rows = member.most_rows or 1
            stages, numbers = with_starts(member.stages)
            sums = frozenset(member.sums)
            kernels.append(Kernel(member.kind, stages, rows, stored[member], numbers, sums))
        slots = {array: s for array, s in self.slots.items() if array.whole is None}
        kernels = add_waits(kernels, slots)
        nodes = {array: asked.get(node, node) for node, array in self.arrays.items()}
        result = Schedule(tuple(kernels), slots, tuple(live_ranges(kernels, slots)), nodes)
        places = result.places()
        return replace(result, kernels=tuple(_begun_in_place(k, places) for k in kernels))

    def _stored(self, member: Cluster) -> frozenset[Array]:
        """The arrays of a kernel that must reach memory."""
        return frozenset(
            stage.array
            for stage in member.stages
            if stage.array in self.slots
            or any(reader is not member for reader in self.readers.get(stage.array, ()))
        )

    def _order(self, stored: dict[Cluster, frozenset[Array]]) -> list[Cluster]:
        """The kernels after those they need, exchanges early, and so that memory is freed early."""
        exchanges = [member for member in self.clusters if member.kind == "exchange"]
        filled = {
            member: [a for a in arrays if a not in self.slots and a.whole is None]
            for member, arrays in stored.items()
        }
        return freeing_early(after_needs([*exchanges, *self.clusters]), filled, self.readers)


def _safe_in_place(writer: Cluster | Kernel, rows: Integer, array: Array, old: Array) -> bool:
    """Whether a kernel reads `old` only before, or where, it overwrites it with `array`.

    rows: the largest number of rows into which it is divided.
    """
    place = next(i for i, stage in enumerate(writer.stages) if stage.array == array)
    target = writer.stages[place]
    if target.op in SCATTERS:
        return _begins_as(target, old)
    if writer.kind == "block_rows":
        return False
    in_turn = writer.kind != "contraction" and any(
        stage.op is not None or stage.size != target.size for stage in writer.stages
    )
    loads = (
        (position, stage, load)
        for position, stage in enumerate(writer.stages) if old in stage.reads
        for load in stage.loads if load.array == old
    )  # fmt: skip
    for position, stage, load in loads:
        same = _reads_where_written(stage, load, target)
        if writer.kind == "contraction" or high(rows) == target.size:
            # Stores come last, unless rows are loops: then each stage has its own.
            if not same or (in_turn and position > place):
                return False
        elif position > place or (position == place and not same):
            return False
        elif not same and not aligned(stage, target, rows, old):
            return False
    return True


def _reads_where_written(stage: Stage, load: Expr, target: Stage) -> bool:
    """Whether a stage loads, in each iteration, the element that `target` overwrites in it."""
    if stage.op is not None or stage.size != target.size:
        return False
    if stage.axes == target.axes:  # in any memory order
        return load.index == target.position
    return stage.row_major and target.row_major and load.index == stage.position


def _begins_as(scatter: Stage, old: Array) -> bool:
    """Whether a scatter reads `old` only as the initial values of its own positions."""
    others = replace(scatter, initial=None).reads
    return old not in others and all(
        load.index == scatter.initial_position
        for load in scatter.loads if load.array == old
    )  # fmt: skip


def _begun_in_place(kernel: Kernel, places: Mapping[Array, Source]) -> Kernel:
    """The kernel; a scatter is marked in_place if its memory has its initial values already."""
    if kernel.kind != "scatter":
        return kernel
    (stage,) = kernel.stages
    begin = stage.initial
    there = (
        begin is not None and begin.op is Leaf.LOAD and not begin.guard
        and begin.index == stage.initial_position
        and places[begin.array.whole or begin.array] == places[stage.array]
    )  # fmt: skip
    return replace(kernel, stages=(replace(stage, in_place=there),))


def add_waits(kernels: Sequence[Kernel], slots: dict[Array, int]) -> list[Kernel]:
    """Insert a "wait" for each exchange before the first kernel that needs it to have ended.

    That is a reader of its result, or a kernel that overwrites what it sends.
    """
    result: list[Kernel] = []
    running: dict[Array, Kernel] = {}  # by the array of the result
    for kernel in kernels:
        read = {array for stage in kernel.stages for array in stage.reads}
        written = {slots[array] for array in kernel.stored if array in slots}
        for array, begun in list(running.items()):
            (stage,) = begun.stages
            assert stage.exchange is not None
            sent = {slots[source] for source in stage.exchange.sent if source in slots}
            if array in read or sent & written:
                result.append(Kernel("wait", begun.stages, 1, frozenset()))
                del running[array]
        result.append(kernel)
        if kernel.kind == "exchange":
            running[kernel.stages[0].array] = kernel
    return result + [Kernel("wait", begun.stages, 1, frozenset()) for begun in running.values()]


@dataclass(frozen=True)
class LiveRange:
    """Memory between kernels: its bytes, and the first and the last step that need it.

    arrays: the arrays that use it one after the other, if a kernel may overwrite an input.
    """

    nbytes: Integer
    first: int
    last: int
    arrays: tuple[Array, ...] = ()


def live_ranges(kernels: Sequence[Kernel], slots: dict[Array, int]) -> list[LiveRange]:
    """The memory of stored arrays that are not slots, the largest first."""
    first: dict[Array, int] = {}
    last: dict[Array, int] = {}
    sizes: dict[Array, Integer] = {}
    for step, kernel in enumerate(kernels):
        for stage in kernel.stages:
            touched = [*stage.reads]
            made = stage.array.whole or stage.array
            if stage.array in kernel.stored or kernel.kind == "wait":
                touched.append(made)
            if stage.array in kernel.stored:
                size = iterations(stage.shape)  # perhaps of a part of the array
                sizes[made] = size if high(size) == made.size else made.size
            for array in touched:
                if array not in slots:
                    first.setdefault(array, step)
                    last[array] = step
    held: dict[Array, LiveRange] = {}  # by the last of its arrays
    ending: dict[int, list[Array]] = {}
    for array in first:  # in the order in which they are needed
        if array not in sizes:
            continue
        begin = first[array]
        one = LiveRange(sizes[array] * array.dtype.itemsize, begin, last[array], (array,))
        # arrays of equal size that are read last by the kernel that fills this one
        alike = [old for old in ending.get(begin, ()) if held[old].nbytes == one.nbytes]
        old = _written_over(kernels[begin], array, alike) if alike else None
        if old is not None:  # its memory is reused
            ending[begin].remove(old)
            before = held.pop(old)
            one = replace(one, first=before.first, arrays=(*before.arrays, array))
        held[array] = one
        ending.setdefault(one.last, []).append(array)
    return sorted(held.values(), key=lambda one: -one.arrays[0].nbytes)


def _written_over(kernel: Kernel, array: Array, dying: Sequence[Array]) -> Array | None:
    """One of the arrays, not needed after a kernel, that a result may overwrite, or None."""
    own = {stage.array for stage in kernel.stages}
    if array not in own:
        return None
    read = {source for stage in kernel.stages for source in stage.reads}
    for old in dying:
        fits = old in read and old.size == array.size
        if fits and _safe_in_place(kernel, kernel.rows, array, old):
            return old
    return None


def place(held: Iterable[tuple[int, int, int]]) -> tuple[tuple[int, ...], int]:
    """Offsets of memory blocks (bytes, first step, last step) by first fit; and the total bytes."""
    taken: list[tuple[int, int, int, int]] = []  # start, stop, first and last step, in order
    offsets: list[int] = []
    most = 0
    for nbytes, begin, end in held:
        size = ceildiv(nbytes, LINE) * LINE
        offset = 0
        for start, stop, first, last in taken:
            if first <= end and begin <= last:
                if offset + size <= start:
                    break
                offset = max(offset, stop)
        offsets.append(offset)
        insort(taken, (offset, offset + size, begin, end))
        most = max(most, offset + size)
    return tuple(offsets), most
