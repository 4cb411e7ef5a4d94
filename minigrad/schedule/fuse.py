"""Fusion: which stages share a kernel.

Every stored value starts as its own kernel. Going from inputs to outputs, a stage joins a kernel of
its producers, or of a sibling that reads the same memory, if both can be computed row by row and
only the row passes between them. The question asked of each read is whether it is *aligned*:
whether row r of the consumer reads only row r of the producer, for some number of rows.
"""

from __future__ import annotations

import threading
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from minigrad.graph.substitution import coefficient, is_dense, variables
from minigrad.graph.symbolic import Integer, ceildiv, high, low
from minigrad.schedule import expr
from minigrad.schedule.attention_fusion import Chains, Sink
from minigrad.schedule.axis import Axis, place_along, size_of
from minigrad.schedule.byte_dots import has_tiles, in_blocks, in_words
from minigrad.schedule.expr import Array
from minigrad.schedule.layout import Order
from minigrad.schedule.stage import ALONE, Stage
from minigrad.target import FEW_TASKS, Target

TINY = 4096  # evaluations, about a microsecond's: such kernels may lose their parallelism
ENOUGH_ROWS = 32  # rows that still keep every thread busy: a few for each
# Evaluations that take longer than starting another kernel (with vectors, some 10 µs).
SMALL = 1 << 15
# Arrays of a kernel above which no stage joins it: LLVM takes a second for a thousand, and forty
# for four thousand.
MOST_ARRAYS = 256
MOST_PARTS = 16  # of one array in a kernel: more of them share the code of one kernel instead
LEAST_PARALLEL = 8  # rows, one for each thread: with fewer, work above SMALL should stay parallel


class Watcher:
    """Called when a stage joins a kernel, or is refused by one: see `minigrad/explain/`.

    This one does nothing.
    """

    def refused(self, home: Cluster, why: str) -> None:
        """The stage that is settled next does not join this kernel, for this reason."""

    def settled(self, stage: Stage, home: Cluster) -> None:
        """A stage has joined a kernel, which may be its own."""


class _Watching(threading.local):
    """watcher: for the kernels that this thread plans."""

    watcher = Watcher()


watching = _Watching()


def _no(home: Cluster, why: str) -> frozenset[Integer]:
    """Report why a stage cannot join a kernel; returns no row counts."""
    watching.watcher.refused(home, why)
    return frozenset()


class Fit(NamedTuple):
    """How a stage joins a kernel.

    rows: the row counts that divide all stages then; parts: the stages that join, the stage itself
    last; pulled: as in Cluster; sums: whether the kernel's blocks add to the stage's array.
    """

    rows: frozenset[Integer]
    parts: Sequence[Stage]
    pulled: Mapping[tuple[Array, Order], Array] = {}
    sums: bool = False


class Cluster:
    """Stages that become one kernel.

    rows: the row counts that divide all of them; most_rows: the largest, or 0; kind: as in Kernel;
    needs: clusters whose arrays it reads; made: its stages by array; arrays: all that they read and
    make; work: evaluations of all bodies; largest: elements of the largest value. All are updated
    as stages join, because clusters may be long. The rest is for "block_rows" (see
    attention_fusion.py): extent: rows that may share a block; pulled: its own copies of arrays of
    chains; sums: arrays that its blocks add to.
    """

    def __init__(
        self, target: Target, rows: frozenset[Integer], kind: str, extent: int = 0
    ) -> None:
        self.target = target
        self.stages: list[Stage] = []
        self.rows, self.most_rows, self.kind, self.extent = rows, _most(rows), kind, extent
        self.needs: set[Cluster] = set()
        self.made: dict[Array, Stage] = {}
        self.arrays: set[Array] = set()
        self.work = self.largest = 0
        self._costs: dict[Integer, tuple[int, float, float]] = {}
        self.pulled: dict[tuple[Array, Order], Array] = {}
        self.sums: set[Array] = set()

    def add(self, fit: Fit) -> None:
        """Let a stage join, with the stages that it needs."""
        if fit.rows != self.rows:
            self.rows, self.most_rows = fit.rows, _most(fit.rows)
        self.pulled.update(fit.pulled)
        for stage in fit.parts:
            self.stages.append(stage)
            self.made[stage.array] = stage
            self.arrays.update(stage.reads, (stage.array,))
            self.work += stage.iterations
            self.largest = max(self.largest, stage.size)

    def costs(self, rows: Integer) -> tuple[float, float]:
        """Vector instructions per row of all stages: with vectors across rows, and along."""
        known, across, along = self._costs.get(rows, (0, 0.0, 0.0))
        for stage in self.stages[known:]:
            first, second = _vector_costs(stage, rows, self.made, self.target)
            across, along = across + first, along + second
        self._costs[rows] = (len(self.stages), across, along)
        return across, along


def _most(rows: Iterable[Integer]) -> Integer:
    return max(rows, key=high, default=0)


class Waits:
    """Which clusters need which others. Each has a level, above the levels of all that it needs.

    It is separate from the clusters, which would otherwise form reference cycles.
    """

    def __init__(self) -> None:
        self.levels: dict[Cluster, int] = {}
        self._users: dict[Cluster, list[Cluster]] = {}

    def add(self, member: Cluster, others: Iterable[Cluster]) -> None:
        """Let a cluster need others, which do not need it; raises the levels of its users."""
        levels, lifted = self.levels, [(member, 0)]
        for other in set(others) - member.needs:
            member.needs.add(other)
            self._users[other].append(member)
            lifted.append((member, levels[other] + 1))
        self._users.setdefault(member, [])
        while lifted:
            item, level = lifted.pop()
            if levels.get(item, -1) < level:
                levels[item] = level
                users = self._users[item]
                assert member not in users, "kernels that need each other have no order"
                lifted += [(user, level + 1) for user in users]

    def reaches(self, start: Iterable[Cluster], goal: Cluster) -> bool:
        """Whether a cluster of `start` is or needs `goal`, directly or not."""
        seen = set(start)
        if goal in seen:
            return True
        stack, levels, least = list(seen), self.levels, self.levels[goal]
        while stack:
            item = stack.pop()
            if levels[item] > least:  # else nothing that it needs has the goal's level
                if goal in item.needs:
                    return True
                stack += item.needs - seen
                seen |= item.needs
        return False


def cluster(
    chains: Chains, target: Target, fuse: bool, alone: frozenset[Array] = frozenset()
) -> tuple[list[Cluster], Waits]:
    """Assign stages to kernels; arrays in `alone` share none.

    Chains are computed in the kernels that read them. Few parts of one array share a kernel.
    """
    clusters, waits = dict[Cluster, int](), Waits()  # with their numbers
    maker: dict[Array, Cluster] = {}
    readers: dict[Array, list[Cluster]] = {}
    exchanged: set[Cluster] = set()  # the exchange before, which all ranks make first
    for stage in chains.stages:
        if stage.array in chains.members:
            continue
        # it begins with a kernel of its own, and then looks for one that it can join
        sink = chains.sinks.get(stage.array)
        if sink is None:
            own = home = _alone(stage, target)
            fit = Fit(own.rows, [stage])
        else:  # it reads values that are not stored, such as attention's scores: with these
            own = home = Cluster(target, frozenset((sink.count,)), "block_rows", sink.extent)
            fit = Fit(own.rows, *chains.pull(sink, {}, str(len(clusters))))
        read = list(dict.fromkeys(array for part in fit.parts for array in part.reads))
        producers = {maker[array] for array in read if array in maker}
        if fuse and stage.array not in alone:
            # (sharing a single number saves nothing beside much work, and adds arrays to its loops)
            shares = [a for a in read if a.size > 1 or stage.iterations <= TINY]
            siblings = [other for array in shares for other in readers.get(array, ())[-4:]]
            # the producer that is ready last comes first: the others would have to wait for it
            ready = {c: (waits.levels[c], high(c.most_rows), clusters[c]) for c in producers}
            near = sorted(producers, key=ready.__getitem__, reverse=True)
            for candidate in dict.fromkeys([*near, *siblings]):
                if candidate.stages[0].array in alone:
                    _no(candidate, "that one has its own kernel, because it writes a part in place")
                    continue
                if sink is None:
                    way = _by_rows(candidate, own, stage, candidate in producers)
                else:
                    most = len(fit.parts) - (candidate not in producers)  # a sibling shares some
                    way = _shared_blocks(candidate, chains, sink, most, str(clusters[candidate]))
                if way is not None and _may_join(candidate, stage, producers, waits):
                    home, fit = candidate, way
                    break
        watching.watcher.settled(stage, home)
        clusters.setdefault(home, len(clusters))
        home.add(fit)
        if fit.sums or not home.sums.isdisjoint(read):
            home.sums.add(stage.array)
        waits.add(home, producers - {home})
        if home.kind == "exchange":
            waits.add(home, exchanged)
            exchanged = {home}
        maker[stage.array] = home
        for array in read:
            if home not in (known := readers.setdefault(array, [])):
                known.append(home)
    return list(clusters), waits


def _may_join(
    candidate: Cluster, stage: Stage, producers: set[Cluster], waits: Waits
) -> bool:
    """Whether a stage, which shares rows with a cluster, can be in its kernel."""
    whole = stage.array.whole
    if whole and sum(a.whole == whole for a in candidate.made) >= MOST_PARTS:
        _no(candidate, f"it already has {MOST_PARTS} pieces of that array")
    elif candidate not in producers and _delays(candidate, producers, stage, waits):
        _no(candidate, "it would have to wait for values that it does not need")
    elif waits.reaches(producers - {candidate}, candidate):
        _no(candidate, "a kernel between the two needs the first, and is needed here")
    else:
        return True
    return False


def _delays(
    sibling: Cluster, producers: set[Cluster], stage: Stage, waits: Waits
) -> bool:
    """Whether a small stage, and its readers, would wait for inputs that only the sibling needs.

    (Such as the number of labels that count, in one kernel with the loss: the gradient, which needs
    it, could not be in the kernel of the loss's rows.)
    """
    return stage.iterations <= SMALL and any(
        not waits.reaches(producers, need) for need in sibling.needs
    )


def _alone(stage: Stage, target: Target) -> Cluster:
    if stage.op in ALONE:
        return Cluster(target, frozenset(), ALONE[stage.op])
    product, kind = stage.product, "rows"
    if target.byte_dots and has_tiles(stage, in_words(stage)):
        kind = "dots"
    elif product is not None and (
        target.matrices if product.of_bytes
        else target.vector_bytes or not product.shared and product.added is None
    ):
        return Cluster(target, frozenset(), "contraction")
    # (of two extents, as n and 8 - n, one may be small where the other is large)
    counts = [n for n, axes in stage.row_counts.items() if high(n) == size_of(stage.axes[:axes])]
    return Cluster(target, frozenset(counts), kind)


def _by_rows(home: Cluster, own: Cluster, stage: Stage, produces: bool) -> Fit | None:
    """How a stage may join a kernel by rows, if need be with one of its axes cut in two.

    (A group of channels is one row while it is normalized, and some channels of an image after.)
    """
    if shared := _shared_rows(home, own, stage, produces):
        return Fit(shared, [stage])
    rows = home.most_rows
    if not produces or home.kind != "rows" or not isinstance(rows, int):
        return None
    if (cut := stage.with_rows(rows)) is None:
        return None
    shared = _shared_rows(home, _alone(cut, home.target), cut, produces)
    return Fit(shared, [cut]) if shared else None


def _shared_rows(home: Cluster, own: Cluster, stage: Stage, produces: bool) -> frozenset[Integer]:
    """The row counts under which `stage` may join `home`; empty where it may not."""
    sums = home.kind == "dots" and len(home.stages) == 1 and in_blocks(home.stages[0], stage)
    if own.kind != "rows" and not sums:
        kind = "matrix product" if own.kind in ("contraction", "dots") else own.kind
        return _no(home, f"a {kind} begins its own kernel")
    if home.kind not in ("rows", "contraction", "dots", "block_rows"):
        return _no(home, f"nothing can join a {home.kind} kernel")
    if home.kind == "block_rows":
        fits = produces and stage.op is None and _follows_blocks(home, own, stage)
        return home.rows if fits else _no(home, "it does not fit those blocks of rows")
    if home.kind in ("contraction", "dots"):
        if produces and (sums or stage.op is None and _same_elements(home.stages, stage)):
            return frozenset((stage.size,))
        return _no(home, "it does not read each result of that product once, at its own position")
    if len(home.arrays) >= MOST_ARRAYS:
        return _no(home, f"that kernel already has {MOST_ARRAYS} arrays")
    rows, made = home.rows & own.rows, [home.made[a] for a in stage.reads if a in home.made]
    while rows and not all(aligned(stage, one, _most(rows)) for one in made):
        rows -= {_most(rows)}  # what is aligned for many rows, is for fewer, longer ones
    if not rows:
        return _no(home, "a row of it needs more than the same row there: all must be done first")
    best = _most(rows)
    count, most = high(best), (high(home.most_rows), high(own.most_rows))
    work = home.work + stage.iterations
    parallel = count >= min(*most, ENOUGH_ROWS)
    if not produces and count < max(most):
        return _no(home, "they only read the same values, and together they would have fewer rows")
    if not produces and not any(_reads_alike(member, stage, best) for member in home.stages):
        return _no(home, "they read the same values in different orders")
    if not (parallel or work <= TINY):
        return _no(home, f"together they have {count} rows, too few for all threads")
    for part, done in ((home, work), (own, stage.iterations)):  # what would not be parallel then
        if count < min(high(part.most_rows), LEAST_PARALLEL) and done > SMALL:
            return _no(home, f"together they have {count} rows, too few for all threads")
    if max(home.largest, stage.size) > home.target.row_values * count:
        return _no(home, "a row is too large for the cache")
    if produces and _leaves_l1(home, stage, count):
        return _no(home, "it sums columns of rows that stay in the first-level cache")
    if work > TINY and not _agrees(home, stage, best):
        return _no(home, "one is fast along rows, the other across them")
    return rows


def _leaves_l1(home: Cluster, stage: Stage, count: int) -> bool:
    """Whether sums of columns would make one long row of several that fit the first-level cache.

    (What passes between stages would be read from the second-level cache then. Sums of columns,
    which have as many results as a row has elements, read their terms once.)
    """
    most, values = high(home.most_rows), home.target.l1 // 16  # float32 in a quarter of it
    columns = stage.op is not None and stage.size * most >= home.largest * count
    fits = most < home.largest <= values * most  # (elements that pass one by one stay in registers)
    return columns and count < most and home.largest > values * count and fits


def _reads_alike(one: Stage, other: Stage, rows: Integer) -> bool:
    """Whether two stages have the same rows, or read an array that they share in row order.

    (If the elements of an image in its windows' order were computed along the image's own axes,
    they would be far apart, and each of their indices would take a dozen divisions.)
    """
    shared = set(one.reads) & set(other.reads)
    same = one.axes[: prefix_length(one, rows)] == other.axes[: prefix_length(other, rows)]
    in_order = (
        all(x.size == array.size and aligned(x, x, rows, array) for x in (one, other))
        for array in shared
    )
    return bool(shared) and (same or any(in_order))


def _agrees(home: Cluster, stage: Stage, rows: Integer) -> bool:
    """Whether one direction of vectors suits both, given the savings of passing values on."""
    lanes = home.target.row_lanes
    read = home.made.keys() & stage.reads
    ours, alone = home.costs(rows), _vector_costs(stage, rows, (), home.target)
    its = _vector_costs(stage, rows, home.made, home.target) if read else alone
    passed = sum(home.made[array].size for array in read) / high(rows) / lanes * _PASS
    together = min(ours[0] + its[0], ours[1] + its[1])
    return together <= min(ours) + min(alone) + passed


def _shared_blocks(home: Cluster, chains: Chains, sink: Sink, most: int, mark: str) -> Fit | None:
    """How a reader of chains may join `home`, adding at most `most` stages; None if it may not.

    mark: see `Chains.pull`.
    """
    summed = chains.sums.get(sink.stage.array) if home.target.group is None else None
    for way in (sink, summed):
        if way is None or way.count not in home.rows or way.extent != home.extent:
            _no(home, "it has different blocks of rows")
        elif way.sums and high(way.count) < FEW_TASKS * way.extent:
            _no(home, "one thread would have all its blocks")
        elif len({*chains.needed(way.reads)} - home.pulled.keys()) >= most:
            _no(home, "they share no value that would then be computed once")
        else:
            parts, known = chains.pull(way, home.pulled, mark)
            if not all(_goes_along(home, part, way, set(known.values())) for part in parts):
                _no(home, "a row of it needs more than the same row there")
            else:
                return Fit(home.rows, parts, known, way.sums)
    return None


def _goes_along(home: Cluster, part: Stage, way: Sink, pulled: Container[Array]) -> bool:
    """Whether a stage reads, of the arrays made in `home`, only the current block of rows."""
    read = set(part.reads)
    if not read.isdisjoint(home.sums):
        return False
    made = read & home.made.keys()
    if way.sums and part.array == way.stage.array:
        (row,) = part.reduced
        rows = replace(part, axes=(*part.axes[: way.rows - 1], row), reduced=())
        made = {array for array in made if array not in pulled}
        return all(aligned(rows, home.made[array], way.count) for array in made)
    return all(aligned(part, home.made[array], way.count) for array in made)


def _follows_blocks(home: Cluster, own: Cluster, stage: Stage) -> bool:
    """Whether an elementwise stage reads one value per row, or is an epilogue of a product."""
    rows = home.most_rows
    read = set(stage.reads)
    large = [home.made[a] for a in read if a in home.made and home.made[a].size != high(rows)]
    if any(made.reduced == () for made in large):
        return False
    if not read.isdisjoint(home.sums):  # computed when the sums are complete
        made = home.made.keys() & read
        return len(made) == 1 and stage.axes == large[0].axes and _same_elements(large, stage)
    if large and not (len(large) == 1 and _same_elements(large, stage)):
        return False
    if not large and stage.size != high(rows):
        return False
    if rows not in own.rows or stage.axes[prefix_length(stage, rows) - 1].extent != home.extent:
        return False
    return all(aligned(stage, home.made[a], rows) for a in read if a in home.made)


def _same_elements(stages: list[Stage], stage: Stage) -> bool:
    """Whether `stage` reads from these stages only the element at its own position."""
    if stage.count != stages[-1].count:
        return False
    made = {member.array: member for member in stages}
    return all(
        load.index == stage.place and not load.guard and made[load.array].row_major
        for load in expr.loads(stage.body)
        if load.array in made
    )


def aligned(consumer: Stage, producer: Stage, rows: Integer, array: Array | None = None) -> bool:
    """Whether row r of the consumer reads only row r of the producer.

    array: test the reads of this array instead, which has the producer's layout.
    """
    source = array or producer.array
    reads = [load for load in expr.loads(consumer.body) if load.array == source]
    if not producer.row_major:
        return False
    prefix = prefix_length(consumer, rows)
    leading = consumer.axes[:prefix]
    row = place_along(leading)
    inner = producer.size // high(rows)
    fixed = {axis.variable for axis in leading}
    for load in reads:
        rest = load.index - row * inner
        if low(rest) < 0 or high(rest) >= inner or not fixed.isdisjoint(variables(rest)):
            return False
    return True


def prefix_length(stage: Stage, rows: Integer) -> int:
    """How many leading axes of the stage make up `rows` rows."""
    return stage.row_counts.get(rows, len(stage.axes))


# Vector instructions: to gather a vector's lanes (three for each of 16); to load a vector across
# lines of memory, in a square (16 loads and 64 shuffles make 16, which seldom fit the registers);
# to store neighbouring rows; and those saved if a vector is passed on in the cache instead of in
# memory.
_GATHER, _TURN, _SPREAD, _PASS = 48, 6, 4, 20
_UNKNOWN = 1 << 40  # elements: more than there are
_MOST_NEAR = 7  # vectors of memory up to which shuffles pick a vector's elements from them


def runs_across_rows(stages: Sequence[Stage], rows: Integer, target: Target) -> bool:
    """Whether vectors should run across neighbouring rows rather than along each of them."""
    made = {stage.array for stage in stages}
    costs = [_vector_costs(stage, rows, made, target) for stage in stages]
    return sum(across for across, _ in costs) < sum(along for _, along in costs)


def worth_a_vector(lanes: int) -> int:
    """Neighbouring rows from which on they share vectors of `lanes`, though these are not full."""
    return ceildiv(3 * lanes, 4)


def axis_beside(stages: Sequence[Stage], rows: Integer, target: Target) -> int | None:
    """The axis along which vectors of single elements gather less than along the last one; or None.

    For example channels that a convolution stores last, if images are pooled. Results that lie
    along the last axis are stored in squares.
    """
    extents = [axis.extent for axis in stages[0].axes]
    if len(extents) < 2 or any(
        len(one.axes) != prefix_length(one, rows) or [axis.extent for axis in one.axes] != extents
        for one in stages
    ):
        return None
    lanes, made = target.row_lanes, {stage.array for stage in stages}

    def work(number: int) -> float:
        found = 0.0
        for stage in stages:
            axis, last = stage.axes[number], stage.axes[-1]
            windows = {one.variable for one in stage.reduced}  # each of their places is a load
            apart = [
                one for one in stage.loads if not windows.isdisjoint(one.variables)
                and coefficient(one.index, axis.variable) not in (0, 1)
            ]  # fmt: skip
            found += _accesses(stage, [axis], made, lanes, [] if apart else [last])
            found += _TURN * (coefficient(stage.position, axis.variable) != 1)
        return found

    some = worth_a_vector(lanes)
    wide = [n for n, one in enumerate(extents[:-1]) if isinstance(one, int) and one >= some]
    best = min(wide, key=work, default=None)
    return best if best is not None and work(best) < work(len(extents) - 1) - _GATHER else None


def _vector_costs(
    stage: Stage, rows: Integer, made: Container[Array], target: Target
) -> tuple[float, float]:
    """Vector instructions per row for accesses to memory: with vectors across rows, and along.

    Values `made` in the same kernel have the layout that the vectors need.
    """
    prefix, lanes = prefix_length(stage, rows), target.row_lanes
    inner = [*stage.axes[prefix:], *stage.reduced]
    if not inner:
        return 0.0, 0.0
    length = size_of(inner)
    along = min(_along(stage, axis, inner, length, made, lanes) for axis in inner)
    if not prefix:
        return float(_UNKNOWN), along
    spread = _SPREAD if stage.op is None else 0
    beside = target.vector_bytes > 0 and stage.axes[prefix - 1].most >= worth_a_vector(lanes)
    across = _accesses(stage, stage.axes[:prefix], made, lanes, inner if beside else [])
    return length * (across + spread) / lanes, along


def _along(
    stage: Stage, axis: Axis, inner: list[Axis], length: int, made: Container[Array], lanes: int
) -> float:
    extent = axis.most
    vectors = length // extent * ceildiv(extent, lanes)
    if axis in stage.reduced:
        kept = size_of(other for other in inner if other not in stage.reduced)
        fold = 2 * (min(extent, lanes) - 1).bit_length()
        return vectors * _accesses(stage, [axis], made, lanes) + kept * fold
    scattered = coefficient(stage.position, axis.variable) != 1
    return vectors * (_accesses(stage, [axis], made, lanes) + (_GATHER if scattered else 0))


def _accesses(
    stage: Stage, axes: Sequence[Axis], made: Container[Array], lanes: int,
    turned: Sequence[Axis] = (),
) -> float:
    """Vector instructions to load operands for `lanes` neighbours along axes, and to store them.

    turned: axes along which operands may be loaded instead, in squares.
    """
    work = 1.0
    for load in expr.loads(stage.body):
        span = 1 if load.array in made else _span(load.index, axes, lanes)
        vectors = ceildiv(span, lanes)  # of memory, from which elements that are near are picked
        if vectors <= _MOST_NEAR:
            work += vectors
            continue
        near = (axis.most for axis in turned if is_dense(load.index, axis.variable, lanes))
        length = next(near, 0) if span < _UNKNOWN else 0
        work += _TURN * _in_powers(length, lanes) / length if length else _GATHER
    return work


def _in_powers(length: int, lanes: int) -> int:
    """The rows of squares for so many: some with `lanes` rows, and a power of two."""
    whole = length // lanes * lanes
    return whole + (1 << (length - whole - 1).bit_length() if length > whole else 0)


def _span(index: Integer, axes: Sequence[Axis], lanes: int) -> int:
    """How many elements of memory `lanes` neighbours along axes lie in, or `_UNKNOWN`.

    For example windows in several rows of a small image.
    """
    span = 1
    for axis in reversed(axes):
        stride = coefficient(index, axis.variable)
        if stride is None:
            return _UNKNOWN
        span += abs(stride) * (min(axis.most, lanes) - 1)
        lanes = ceildiv(lanes, axis.most)
    return span
