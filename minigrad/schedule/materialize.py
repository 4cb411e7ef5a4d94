"""Which values are stored, and which are recomputed wherever they are read.

A reduction is never recomputed. An elementwise value is recomputed unless that is costly: if it
would be evaluated more often than it has elements, at a cost that memory would save; if each of
several readers would read several arrays instead of one; or if a contraction reads it repeatedly.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from minigrad.graph.collective import exchanges_in_order
from minigrad.graph.node import Node, beneath, grouped, topological
from minigrad.graph.operations import ELEMENTWISE, MOVEMENT, REDUCTIONS, SCANS, SCATTERS, Op
from minigrad.graph.shapes import numel
from minigrad.graph.substitution import variables
from minigrad.graph.symbolic import Atom
from minigrad.schedule.expr import cost
from minigrad.schedule.lower import shown

CHEAP = 4  # operations that are always recomputed
SCRATCH_COST = 6  # operations saved per element that pay for a place in cache
MEMORY_COST = 44  # operations and loads saved per element that pay for a round trip to memory
OFTEN = 16  # reads per element that pay for a round trip to memory, whatever the operations cost
SLICE = 4096  # elements per index from which on the cost of a GATHER's index is not counted
SEGMENT = 256  # least number of elements per bound that a mask loads
COSTLY = 16  # operations shared with others that make it worth while to compute a value there
DEEPEST = 400  # nodes in a chain within one stage
MOST_USES = 8  # readers of one value that are counted separately
_ALWAYS = REDUCTIONS | SCANS.keys() | SCATTERS.keys() | {
    Op.CAT, Op.DISTRIBUTE, Op.CONTIGUOUS, Op.COLLECTIVE,
}  # fmt: skip
_LEAVES = _ALWAYS | {Op.BUFFER}
_SELECTING = MOVEMENT | {Op.WHERE, Op.MAXIMUM, Op.MINIMUM}
_ADDING = frozenset((Op.ADD, Op.SUB, Op.NEG))
MOVED = MOVEMENT - {Op.PAD} | {Op.CAST}  # not PAD: its zeros are not part of an expanded source


class Values:
    """The values that some roots need, in topological order, and what all plans ask of them.

    Of each value, if nothing on the way is stored: below: operations that it takes; again: those to
    compute it again, without those of what is expanded to many elements, which is kept for itself;
    loads: of elements, for that; leaves: large arrays that it reads; depth: nodes of its longest
    chain. size: its elements.
    """

    def __init__(self, roots: Sequence[Node]) -> None:
        self.roots = roots
        self.order = topological(exchanges_in_order(roots, topological(roots)))
        pairs = ((source, node) for node in self.order for source in dict.fromkeys(node.src))
        self.readers, self._operands = grouped(pairs), dict[Node, tuple[list[Node], set[Node]]]()
        self.size = {node: numel(node.shape) for node in self.order}
        self.below, self.again, self.depth = dict[Node, int](), dict[Node, int](), dict[Node, int]()
        self.loads = dict[Node, int]()
        reads: dict[Node, frozenset[Node]] = {}
        for node in self.order:
            self._measure(node, reads)
        self.leaves = {
            node: size > 1 and sum([2 * self.size[leaf] >= size for leaf in reads[node]])
            for node, size in self.size.items()
        }

    def _measure(self, node: Node, reads: dict[Node, frozenset[Node]]) -> None:
        """Set below, again and depth of a node, and the arrays that it reads."""
        below, again, depth, loads = self.below, self.again, self.depth, self.loads
        depth[node] = 1 + max(map(depth.__getitem__, node.src), default=0)
        if node.op in _LEAVES:
            below[node], again[node], loads[node] = 0, 0, 1
            reads[node] = frozenset((node,))
            if node.op is not Op.BUFFER:
                depth[node] = 0
            return
        if node.op is Op.GATHER and selects_slices(node):  # an index for many elements
            for measure in (below, again, loads):
                measure[node] = measure[node.src[0]]
            reads[node] = reads[node.src[0]]
            return
        own = 4 if node.op is Op.GATHER else cost(node.op) if node.op in ELEMENTWISE else 0
        below[node] = min(own + sum(map(below.__getitem__, node.src)), 1 << 20)
        again[node] = min(own + sum(map(again.__getitem__, node.src)), 1 << 20)
        loads[node] = min(sum(map(loads.__getitem__, node.src)), 1 << 20)
        if node.op is Op.EXPAND and self.size[node] >= OFTEN * self.size[node.src[0]]:
            again[node], loads[node] = 0 if below[node] > CHEAP else again[node], 0
        found: frozenset[Node] = frozenset()
        for source in node.src:
            if len(found) < 8:
                found |= reads[source]
        reads[node] = found

    def choose(
        self, recomputed: frozenset[Node], fuse: bool
    ) -> tuple[list[Node], dict[Node, int]]:
        """The nodes to store, in order.

        Also returns those that are stored only to save operations and could be recomputed, with the
        number of operations and loads per element. recomputed: nodes that are not to be stored for
        their cost.
        """
        kept = set(self.roots)
        recomputable: dict[Node, int] = {}
        seen_through: set[Node] = set()
        # node → evaluations, by the last kept value or movement on the way to the reader. Readers
        # behind the same one need the same elements at the same time and share the computation.
        uses: dict[Node, dict[Node, int]] = {node: {} for node in self.order}
        for node in reversed(self.order):  # users first, so that all uses of a node are known
            if node.op is Op.BUFFER:
                kept.discard(node)
                continue
            evaluations = sum(uses[node].values())
            if node.op in _ALWAYS or self.depth[node] % DEEPEST == 0:
                kept.add(node)
            elif not fuse and node.op not in MOVEMENT and node.src:
                kept.add(node)
            elif node not in kept and (node.op in ELEMENTWISE or node.op is Op.GATHER):
                size = self.size[node]
                extra = evaluations - size  # those that storing it would save
                stays, many_leaves = node in seen_through, self.leaves[node] > 1
                if many_leaves and node.op in ELEMENTWISE and not stays and 2 * extra >= size:
                    kept.add(node)  # each reader would read several arrays
                elif self.below[node] > CHEAP and extra * self.again[node] > SCRATCH_COST * size:
                    if node not in recomputed and not stays:
                        kept.add(node)
                        if evaluations < OFTEN * size:
                            recomputable[node] = self.again[node] + self.loads[node]
            if (compared := _compared_with_its_maximum(node)) is not None:
                kept.add(compared)
            # how often its sources are evaluated for it
            if node in kept:
                inner = node.src[0] if node.op in REDUCTIONS else node
                passed = {node: self.size[inner]}
            elif node.op in MOVEMENT:
                passed = {node: evaluations}
            else:
                passed = uses[node] if len(uses[node]) <= MOST_USES else {node: evaluations}
            for source in node.src:
                uses[source].update(passed)
            if node.op is Op.GATHER:  # its source is evaluated at other elements
                uses[node.src[0]].update({node: evaluations})
            if node.op is Op.COLLECTIVE:  # what it sends must be in memory, in any shape
                kept.update(in_memory(source) for source in node.src)
            if node.op is Op.SUM:
                bases, through = self._operands_in_memory(node)
                seen_through |= through
                kept.update(bases)
                for base in bases:
                    recomputable.pop(base, None)
        if fuse:
            plain = kept - recomputable.keys()
            kept.update(
                node
                for node in self.order
                if node.op in ELEMENTWISE
                and self.below[node] > MEMORY_COST
                and self.leaves[node] == 1
                and all(
                    reader.op in ELEMENTWISE and self.leaves[reader] > 1
                    for reader in self.readers.get(node, ())
                )
                and _belongs_to_its_source(node, plain, self.below, self.readers)
            )
        return [node for node in self.order if node in kept], recomputable

    def _operands_in_memory(self, node: Node) -> tuple[list[Node], set[Node]]:
        """Arrays that a matrix product reads repeatedly, and which are therefore stored.

        Also returns the masks and conversions through which it sees them.
        """
        if node not in self._operands:
            bases, through = self._operands[node] = list[Node](), set[Node]()
            for operand in contraction_operands(node):
                used = zip(varies(operand), operand.shape, strict=True)
                if all(uses or extent == 1 for uses, extent in used):
                    continue  # read once: a factor of a product along a shared last axis
                base = _below_movement(operand, through)
                if base.op in ELEMENTWISE or base.op is Op.GATHER:
                    bases.append(base)
        return self._operands[node]


def in_memory(node: Node) -> Node:
    """The node below reshapes, which shares its row-major array with `node`."""
    return beneath(node, (Op.RESHAPE,))


def _compared_with_its_maximum(node: Node) -> Node | None:
    """What an equality compares with its own maximum, as a maximum's gradient does, or None.

    It is stored if it may be rounded in two ways where it is computed twice (a product contracted
    or not, half precision kept in a wider register): else no element would equal the maximum.
    """
    if node.op is not Op.EQ or not node.src[0].dtype.is_float:
        return None
    for value, other in (node.src, node.src[::-1]):
        base, top = beneath(value, MOVEMENT), beneath(other, MOVEMENT)
        own = top.op is Op.MAX and beneath(top.src[0], MOVEMENT) is base
        if own and base.op in ELEMENTWISE and not _is_rounded_in_one_way(base):
            return base
    return None


def _is_rounded_in_one_way(node: Node) -> bool:
    """Whether a value only selects among stored numbers, as a ReLU does, or adds some."""
    seen, stack = set[Node](), [node]
    while stack:
        one = stack.pop()
        if one in seen or one.op in _LEAVES or one.op is Op.CONST:
            continue
        if one.op not in _SELECTING and (one.op not in _ADDING or one.dtype.itemsize < 4):
            return False
        seen.add(one)
        stack += one.src[one.op is Op.WHERE :]
    return True


def _below_movement(node: Node, seen_through: set[Node]) -> Node:
    """The node that a product should read from memory, below masks, slices and conversions.

    Those are computed as it reads, so that half precision is stored as such; masks and conversions
    are added to seen_through.
    """
    while (inner := _moved(node)) is not None or node.op is Op.CAST:
        if inner is None and _moved(node.src[0]) is None and node.src[0].op is not Op.CAST:
            return node if node.src[0].op in ELEMENTWISE else node.src[0]
        if node.op is Op.WHERE or node.op is Op.CAST:
            seen_through.add(node)
        node = node.src[0] if inner is None else inner
    return node


def _moved(node: Node) -> Node | None:
    """The source of a node that only shows parts of it, at no cost to a product; else None."""
    if node.op in MOVEMENT:
        return node.src[0]
    if node.op is Op.GATHER and selects_slices(node):
        return node.src[0]
    return node.src[1] if is_loaded_mask(node) else None


def selects_slices(node: Node) -> bool:
    """Whether a GATHER selects large slices, each by a single number."""
    slices = numel(node.shape) // max(numel((node.shape[node.arg],)), 1)
    uses = enumerate(zip(varies(node.src[1]), node.shape, strict=True))
    return slices >= SLICE and not any(
        used and extent != 1 for axis, (used, extent) in uses if axis != node.arg
    )


def is_loaded_mask(node: Node) -> bool:
    """where(conditions, x, 0) with conditions that compare an index with one of a few numbers.

    In a product such a mask becomes a bound of loops (`loops/product.py`).
    """
    return (
        node.op is Op.WHERE
        and is_zero(node.src[2])
        and _compares_index_with_few(node.src[0], numel(node.shape))
    )


def has_loaded_mask(operand: Node) -> bool:
    """Whether an operand of a product is seen through a mask (see `is_loaded_mask`)."""
    while (inner := _moved(operand)) is not None:
        if operand.op is Op.WHERE:
            return True
        operand = inner
    return False


def is_zero(node: Node) -> bool:
    """Whether a node is a constant 0, in any shape."""
    node = beneath(node, MOVEMENT)
    return node.op is Op.CONST and node.arg == 0


def _compares_index_with_few(test: Node, size: int) -> bool:
    test = beneath(test, MOVEMENT)
    if test.op is Op.AND:
        return all(_compares_index_with_few(part, size) for part in test.src)
    if test.op not in (Op.LT, Op.LE):
        return False
    sides = [beneath(side, MOVEMENT) for side in test.src]
    few = [side for side in sides if side.op is not Op.IOTA and side.dtype.is_int]
    return len(few) == 1 and numel(few[0].shape) * SEGMENT <= size


def _belongs_to_its_source(
    node: Node, kept: Container[Node], below: Mapping[Node, int],
    readers: Mapping[Node, Sequence[Node]],
) -> bool:  # fmt: skip
    """Whether a value computed from a reduction should be stored instead of the reduction.

    True if values that are computed together with the reduction share something costly with it, as
    the derivative of an activation function shares its exponential. Otherwise all of it would be
    computed again, much later, where the value is read. It takes no more memory than its source.
    """
    inside, sources = _as_large_below(node, kept)
    if len(inside) > DEEPEST or any(
        source.op is not Op.SUM and (source in kept or source.op not in (Op.EXPAND, Op.CONST))
        for source in sources
    ):
        return False
    return any(
        below[member] >= COSTLY and any(reader not in inside for reader in readers[member])
        for member in inside
        if member is not node
    )


def _as_large_below(node: Node, kept: Container[Node]) -> tuple[set[Node], set[Node]]:
    """The elementwise nodes of full size that a value is computed from; and their sources."""
    inside, sources, stack = {node}, set[Node](), [node]
    size = numel(node.shape)
    while stack and len(inside) <= DEEPEST:
        for source in stack.pop().src:
            if source in inside or numel(source.shape) < size:
                continue
            if source not in kept and (source.op in ELEMENTWISE or source.op is Op.RESHAPE):
                inside.add(source)
                stack.append(source)
            else:
                sources.add(source)
    return inside, sources


def contraction_operands(node: Node) -> tuple[Node, ...]:
    """The two factors of a SUM that is a product (however batched or permuted), or ().

    Either both have rows of their own, or one has, and both have the last axis (split.py).
    """
    product = _terms(node)
    if product.op is not Op.MUL:
        return ()
    left, right = product.src
    uses_left, uses_right = varies(left), varies(right)
    only_left = only_right = 1
    shared = False
    for axis, extent in enumerate(product.shape):
        if extent == 1:
            continue
        if axis in node.arg:
            if not (uses_left[axis] and uses_right[axis]):
                return ()
        elif uses_left[axis] and not uses_right[axis]:
            only_left *= numel((extent,))
        elif uses_right[axis] and not uses_left[axis]:
            only_right *= numel((extent,))
        if axis not in node.arg:
            shared = uses_left[axis] and uses_right[axis]
    least, most = sorted((only_left, only_right))
    return (left, right) if most > 1 and (least > 1 or shared) else ()


def _terms(node: Node) -> Node:
    """The terms that a SUM adds, without a mask and conversions around them."""
    terms = node.src[0]
    while terms.op is Op.CAST or terms.op is Op.WHERE and is_zero(terms.src[2]):
        terms = terms.src[terms.op is Op.WHERE]
    return terms


def is_product(node: Node) -> bool:
    """Whether a SUM adds products with a factor that is constant along a kept axis."""
    product = _terms(node)
    if product.op is not Op.MUL:
        return False
    kept = [a for a, extent in enumerate(product.shape) if extent != 1 and a not in node.arg]
    return any(not uses[a] for uses in map(varies, product.src) for a in kept)


def varies(node: Node) -> list[bool]:
    """For each axis, whether the value changes along it (False where it is expanded)."""
    if node.op not in MOVED:
        return [True] * node.ndim
    _, places, index = shown(node, MOVED)
    found = frozenset[Atom]().union(*map(variables, index))
    return [not found.isdisjoint(variables(place)) for place in places]
