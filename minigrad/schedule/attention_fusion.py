"""Values that pass from a product to its readers a block of rows at a time, and never reach memory.

The scores of attention, and everything that is computed from them element by element, have as many
elements as queries times keys, while each costs only a short product. Such values form *chains*: a
product of little depth at the start, elementwise stages behind it. A chain is never stored. Each of
its readers ("sinks": row statistics, and products that consume it) pulls the stages that it needs
into its own kernel, where they are computed for a few rows at a time. Readers along the other axis
(the gradients of keys and values) are sums over the rows of another reader's kernel, or pull the
same stages with exchanged axes. So nothing of that size is stored, at the price of computing it
once per kernel; the statistics of the rows are stored. After "FlashAttention" (Dao et al. 2022),
with whole rows instead of the online softmax.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from minigrad.graph.operations import REDUCTIONS
from minigrad.graph.shapes import iterations, numel
from minigrad.graph.symbolic import Atom, Integer
from minigrad.schedule import expr
from minigrad.schedule.axis import Axis, size_of
from minigrad.schedule.contraction import Contraction
from minigrad.schedule.expr import Array
from minigrad.schedule.layout import Order, order_of, reading, relayout
from minigrad.schedule.stage import ALONE, Stage, before_readers

# Depth (multiply-adds per element) up to which a product is computed where it is read: in one
# kernel (the widest heads of attention in use have 256); in several, if what follows needs
# statistics of its rows first; in several otherwise, because each repeats it.
DEPTH, DEPTH_WITH_STATISTICS, DEPTH_AGAIN = 256, 128, 64
LEAST = 8  # rows and columns of a block, at least: fewer do not fill a vector of 256 bits
SMALLEST = 1 << 14  # elements of a value below which a cache can hold it: 64 KiB of float32
LARGE = 1 << 24  # elements of a value that should not be in memory: 64 MiB of float32
# The same for a value that is read along both axes, 4 MiB, if it is WIDE times its factors.
LARGE_BOTH_WAYS, WIDE = 1 << 20, 8
SERIAL = 1 << 16  # elements of a value that one thread may compute
PARALLEL = 256  # rows that keep every thread busy: 8 blocks of 32
# Elements of a row with which a block still fits the last-level cache: 8 MiB for 32 rows of
# float32.
LONGEST = 1 << 16


@dataclass(frozen=True)
class Sink:
    """A stage that reads chains. Its `rows` leading axes form `count` rows; the last has `extent`.

    order: the permutation of the stage's axes that put rows first. reads: for each array of a
    chain, the order in which its axes are needed. sums: whether the rows are those that the stage
    reduces.
    """

    stage: Stage
    order: Order
    rows: int
    count: Integer
    extent: int
    reads: tuple[tuple[Array, Order], ...]
    sums: bool = False


class Chains:
    """The chains of a program. stages: all stages, sinks laid out by their rows; sinks: by array.

    members: the stages of chains by array. sums: sinks as sums over the rows of others, if
    possible. look: whether to look for chains at all.
    """

    def __init__(self, stages: Iterable[Stage], slots: Iterable[Array], look: bool) -> None:
        self.stages = list(stages)
        fixed = frozenset(slots) | _fixed(self.stages)
        self.members: dict[Array, Stage] = {}
        self.sinks: dict[Array, Sink] = {}
        self.sums: dict[Array, Sink] = {}
        self._reads: dict[Array, dict[Array, Order]] = {}  # member → the members that it reads
        self._laid_out: dict[tuple[Array, Order], Stage] = {}  # members in the orders needed so far
        banned = set(fixed)
        while look:
            self._collect(banned)
            bad = self._unreadable(fixed) or self._too_deep()
            banned, look = banned | bad, bool(bad)

    def _collect(self, banned: Container[Array]) -> None:
        """Take all candidates as members, and elementwise values that only these read.

        (Such as the random bits of dropout.)
        """
        self.members = {}
        for stage in self.stages:
            if stage.array not in banned and self._may_belong(stage):
                self.members[stage.array] = stage
        sizes = {member.size for member in self.members.values()}
        inside, outside = set[Array](), set[Array]()  # what members and what others read
        for stage in reversed(self.stages):
            alone = stage.array in inside - outside and stage.array not in banned
            if stage.op is None and alone and stage.size in sizes and _plain(stage):
                self.members.setdefault(stage.array, stage)
            (inside if stage.array in self.members else outside).update(stage.reads)

    def _may_belong(self, stage: Stage) -> bool:
        """Whether a stage can start or continue a chain, judged by itself."""
        if not _plain(stage) or len(stage.axes) < 2 or stage.size < SMALLEST or not stage.row_major:
            return False
        if stage.op is None:
            return bool(self._orders(stage, stage.axes))
        parts = stage.contraction
        if parts is None or len(parts.m) != 1 or len(parts.n) != 1:
            return False
        m, n, depth = _sizes(parts)
        return min(m, n) >= LEAST and depth <= DEPTH and 2 * m * n >= (m + n) * depth

    def _orders(self, stage: Stage, axes: Sequence[Axis]) -> dict[Array, Order] | None:
        """For each member that a stage reads, the order of its axes that matches `axes`.

        None if a member has no such order, or several.
        """
        found: dict[Array, Order] = {}
        for load in stage.loads:
            if load.array in self.members:
                order = order_of(load, axes, self.members[load.array])
                if order is None or found.setdefault(load.array, order) != order:
                    return None
        return found

    def _unreadable(self, fixed: frozenset[Array]) -> set[Array]:
        """Members that some stage does not read row by row."""
        self.sinks, self._reads = {}, {}
        bad: set[Array] = set()
        for array, member in self.members.items():
            orders = self._orders(member, member.axes)
            if orders is None or orders and member.op is not None:
                bad.add(array)
            else:
                self._reads[array] = orders
        for stage in self.stages if not bad else ():
            if stage.array not in self.members and (read := self.members.keys() & stage.reads):
                sink = self._sink(stage, stage.array in fixed)
                if sink is None:
                    bad |= read
                else:
                    self.sinks[stage.array] = sink
        return bad

    def _too_deep(self) -> set[Array]:
        """Products that are better stored: small ones without row statistics, or deep ones."""
        orders: dict[Array, set[Order]] = {}
        for sink in self.sinks.values():
            for array, order in self.needed(sink.reads):
                orders.setdefault(array, set()).add(order)
        bad = set()
        for array, found in orders.items():
            member = self.members[array]
            parts = member.contraction
            if parts is None:
                continue
            m, n, depth = _sizes(parts)
            statistics, feedback = self._statistics(array)
            both_ways = len(found) > 1 and m * n >= WIDE * (m + n) * depth
            if not statistics and member.size < (LARGE_BOTH_WAYS if both_ways else LARGE):
                bad.add(array)
            elif len(found) > 1 and depth > (DEPTH_WITH_STATISTICS if feedback else DEPTH_AGAIN):
                bad.add(array)
        return bad

    def needed(self, reads: Iterable[tuple[Array, Order]]) -> list[tuple[Array, Order]]:
        """These members, and all that they are computed from, each in the order it needs."""
        found = dict.fromkeys(reads)
        stack = list(found)
        while stack:
            for below in self._below(*stack.pop()):
                if below not in found:
                    found[below] = None
                    stack.append(below)
        return list(found)

    def _below(self, array: Array, order: Order) -> list[tuple[Array, Order]]:
        """The members that a member reads, in the orders that follow from its own order."""
        reads = self._reads[array].items()
        return [(other, tuple(own[n] for n in order)) for other, own in reads]

    def _statistics(self, array: Array) -> tuple[bool, bool]:
        """Whether row statistics are computed from `array`, and whether a member needs them."""
        reached, statistics = {array}, set[Array]()
        for stage in self.stages:
            read = {*stage.reads}
            if stage.array in self.members and read & reached:
                if read & statistics:
                    return True, True
                reached.add(stage.array)
            elif read & (reached | statistics) and stage.contraction is None:
                statistics.add(stage.array)
        return bool(statistics), False

    def _sink(self, stage: Stage, fixed: bool) -> Sink | None:
        """How a stage outside of chains reads chains by rows, or None."""
        parts = stage.contraction
        inner: tuple[Atom, ...] = ()
        if parts is not None:
            inner = self._other_axes(parts)
            if not inner or size_of(a for a in stage.axes if a.variable in inner) > DEPTH:
                return None
        elif stage.op not in REDUCTIONS:
            return None
        outer = [axis for axis in stage.axes if axis.variable not in inner]
        order = [stage.axes.index(axis) for axis in outer]
        order += [n for n, axis in enumerate(stage.axes) if axis.variable in inner]
        if not outer or not _plain(stage):
            return None
        if order != sorted(order):
            if fixed or not stage.row_major:
                return None
            stage = relayout(stage, tuple(order), stage.array)
            outer = list(stage.axes[: len(outer)])
        last = outer[-1].extent
        if not isinstance(last, int) or last < LEAST or not _plain_behind(stage.axes):
            return None
        orders = self._orders(stage, (*outer, *stage.reduced))
        if orders is None or not self._have_rows(orders.items(), len(outer)):
            return None
        if parts is not None:
            changed = stage.contraction
            if changed is None or outer[-1] not in changed.m:
                return None
        count = iterations([axis.extent for axis in outer])
        return Sink(stage, tuple(order), len(outer), count, last, tuple(orders.items()))

    def _other_axes(self, parts: Contraction) -> tuple[Atom, ...]:
        """The axes that only the factor without chains has; () if both factors read chains."""
        left, right = (
            any(load.array in self.members for load in expr.loads(factor))
            for factor in (parts.left, parts.right)
        )
        return () if left and right else tuple(a.variable for a in (parts.n if left else parts.m))

    def _have_rows(self, reads: Iterable[tuple[Array, Order]], rows: int) -> bool:
        """Whether members, in these orders, and all below them can be computed by rows."""
        return all(_has_rows(self.members[a], order, rows) for a, order in self.needed(reads))

    def _summed(self, sink: Sink) -> Sink | None:
        """The sink as a sum over the rows of other sinks, block by block; None if it is not one.

        The gradients of keys and values are such sums over queries.
        """
        stage, place = sink.stage, sink.rows - 1
        if stage.contraction is None or len(stage.reduced) != 1 or stage.array.dtype.itemsize < 4:
            return None
        outer, (row,) = stage.axes[:place], stage.reduced
        reads = tuple((a, (*order[:place], *reversed(order[place:]))) for a, order in sink.reads)
        if row.count < LEAST or not self._have_rows(reads, sink.rows):
            return None
        count = iterations([axis.extent for axis in (*outer, row)])
        return replace(sink, count=count, extent=row.count, reads=reads, sums=True)

    def lay_out(self) -> None:
        """Rearrange the arrays of sinks so that rows come first, and change their readers."""
        if not self.sinks:
            return
        changed: dict[Array, tuple[Stage, Order]] = {}
        for number, stage in enumerate(self.stages):
            if (sink := self.sinks.get(stage.array)) is not None:
                if sink.stage is not stage:
                    changed[stage.array] = (stage, sink.order)
                stage = sink.stage
            self.stages[number] = stage = reading(stage, changed)
            if sink is not None:
                self.sinks[stage.array] = replace(sink, stage=stage)
            elif stage.array in self.members:
                self.members[stage.array] = stage
        # a possible sum over rows comes late, once the kernel that has those rows is known
        ways = ((array, self._summed(sink)) for array, sink in self.sinks.items())
        self.sums = {array: way for array, way in ways if way is not None}
        late = set(self.sums)
        for stage in self.stages:
            if stage.op is None and not late.isdisjoint(stage.reads):
                late.add(stage.array)
        self.stages = before_readers(self.stages, late)

    def pull(
        self, sink: Sink, pulled: Mapping[tuple[Array, Order], Array], mark: str
    ) -> tuple[list[Stage], dict[tuple[Array, Order], Array]]:
        """Copies of the members that the sink needs and that are not `pulled` yet, then the sink.

        Also returns all that is pulled then.

        mark: part of the names of the new arrays.
        """
        known = dict(pulled)
        made: list[Stage] = []

        def copied(stage: Stage, reads: Iterable[tuple[Array, Order]]) -> Stage:
            moved: dict[Array, tuple[Stage, Order]] = {}
            names: dict[Array, Array] = {}
            for array, order in reads:
                member, key = self.members[array], (array, order)
                if key not in known:
                    name = f"{array.name}_{mark}_{len(known)}"
                    if key not in self._laid_out:
                        self._laid_out[key] = relayout(member, order, array)
                    own = replace(self._laid_out[key], array=replace(array, name=name))
                    made.append(copied(own, self._below(array, order)))
                    known[key] = own.array
                moved[array], names[array] = (member, order), known[key]
            return reading(stage, moved, names)

        made.append(copied(sink.stage, sink.reads))
        return made, known


def _sizes(parts: Contraction) -> tuple[int, int, int]:
    """A product's rows, columns and depth."""
    m, n, k = (size_of(axes) for axes in (parts.m, parts.n, parts.k))
    return m, n, k


def _plain(stage: Stage) -> bool:
    """Whether only the first kept axis may have a symbolic extent."""
    fixed = all(isinstance(axis.extent, int) for axis in stage.reduced)
    return fixed and _plain_behind(stage.axes)


def _plain_behind(axes: Sequence[Axis]) -> bool:
    """Whether only the first axis may have a symbolic extent."""
    return all(isinstance(axis.extent, int) for axis in axes if axis != axes[0])


def _has_rows(member: Stage, order: Order, rows: int) -> bool:
    """Whether rows of the member can be computed block by block if its axes have this order."""
    axes = [member.axes[n] for n in order]
    outer, inner = ([axis.extent for axis in some] for some in (axes[:rows], axes[rows:]))
    if numel(outer) < PARALLEL and member.size > SERIAL:
        return False
    if not _plain_behind(axes) or numel(inner) > LONGEST:
        return False
    if member.op is None:
        return True
    parts = member.contraction
    assert parts is not None
    last = axes[rows - 1]
    across, along = (parts.m, parts.n) if last in parts.m else (parts.n, parts.m)
    return last in across and tuple(axes[rows:]) == along


def _fixed(stages: Iterable[Stage]) -> frozenset[Array]:
    """Arrays that scatters, scans, sorts and exchanges read: their layout must not change."""
    return frozenset(array for stage in stages if stage.op in ALONE for array in stage.reads)
