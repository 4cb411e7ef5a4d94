"""The way back: gradients of a tensor with respect to those that it was computed from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from functools import reduce
from itertools import chain
from typing import Any, Self

from minigrad.errors import GradientError, expect, misfit
from minigrad.gc_pause import gc_paused
from minigrad.graph import build
from minigrad.graph.autobatch import is_row, without_leaves
from minigrad.graph.gradient import gradient as node_gradient
from minigrad.graph.gradient import reached
from minigrad.graph.node import BUFFER, Node, Op, topological
from minigrad.graph.reroll import remember, with_loops
from minigrad.graph.rewrite import replaced
from minigrad.graph.template import Derived
from minigrad.hints import table
from minigrad.tensor import history, realization
from minigrad.tensor.basic import Composed
from minigrad.tensor.core import Core
from minigrad.tensor.live_tensors import Holder, held_among, holders
from minigrad.tensor.modes import no_grad
from minigrad.tensor.movement import tensors_in
from minigrad.tensor.observed import observe, sets_gradient
from minigrad.tensor.plan import by_itself, rewritten


class Backward(Composed):
    """`backward` and `gradient`."""

    __slots__ = ()

    def backward(self, gradient: Core | None = None, **unknown: Any) -> Self:
        """Add d(self)/d(leaf) to the `.grad` of every leaf.

        Leaves are the tensors with requires_grad=True; if self depends on none, all float leaves
        whose requires_grad is not False. self must have one element (GradientError), unless
        `gradient` (its own) is given.

        >>> x = Tensor(3.0)
        >>> _ = x.square().backward()
        >>> x.grad.item()
        6.0
        """
        for name in unknown:
            given = {"create_graph": "True", "inputs": "[x]"}.get(name, "True")
            how = table().get(f"loss.backward({name}={given})", "expected only gradient=")
            raise TypeError(f"backward({name}=…): {how}")
        seed = self._seed(gradient)
        node, order = self._settle_unmarked()
        (node,), order, older = _settle_leaves([self], [node], order)
        (output,), back = history.expand([node], order, older)
        if output is not node:
            order = topological([output])
            older = rewritten(order)
        for candidates in _may_be_leaves(order, back, older):
            with gc_paused():
                found = _gradients(output, seed, order, candidates.keys())
            if found:
                break
        else:
            raise GradientError(
                f"backward: the tensor of shape {self.shape} does not depend on a float leaf that "
                "takes a gradient. Was it detached, or computed inside no_grad? Was it read "
                "before, while no leaf had requires_grad=True? Is the leaf gone, as after w = w - "
                "lr * w.grad? Then write `with Tensor.no_grad(): w -= lr * w.grad`"
            )
        with no_grad():
            for leaf, node in zip(found, replaced(list(found.values()), back), strict=True):
                added = set[int]()  # tensors of one memory may share their gradient
                for tensor in candidates[leaf]:
                    if tensor._grad is None or id(tensor._grad) not in added:
                        _add_gradient(tensor, node)
                        added.add(id(tensor._grad))
        return self

    def gradient(self, *targets: Core, gradient: Core | None = None) -> list[Self]:
        """d(self)/d(target) for each target, differentiable again.

        A target may be any tensor that self was computed from. GradientError for one that self does
        not depend on.

        >>> (lambda x: x.square().gradient(x)[0].item())(Tensor(3.0))
        6.0
        """
        targets = tensors_in("gradient", targets)
        expect(targets, "gradient()", "at least one tensor to differentiate by", error=TypeError)
        seed = self._seed(gradient)
        roots = [self.node, *(target.node for target in targets)]
        roots, order, older = _settle_leaves([self, *targets], roots, topological(roots))
        nodes, back = history.expand(roots, order, older)
        output, known = with_loops(nodes[:1], kept=_and_below(nodes[1:]), copied=False)
        before: dict[int, list[Node]] = {id(target): [] for target in targets}
        for node, leaves in older.items():
            for leaf in leaves:
                before.get(id(leaf), []).append(node)
        wanted = list(dict.fromkeys((*nodes[1:], *chain(*before.values()))))
        found = dict(zip(wanted, node_gradient(output, [seed], wanted, known), strict=True))
        grads = []
        for target, node in zip(targets, nodes[1:], strict=True):
            values = (node, *before[id(target)])  # for a leaf also its values before writes
            parts = [part for one in values if (part := found[one]) is not None]
            if not parts:
                raise GradientError(
                    f"gradient: the tensor of shape {self.shape} does not depend on the "
                    f"target of shape {target.shape} {target.dtype.name}"
                )
            grads.append(reduce(Node.__add__, parts))
        return [self._new(node) for node in replaced(grads, back)]

    def _seed(self, gradient: Core | None) -> Node:
        if not self.dtype.is_float:
            raise GradientError(f"no gradient for {self.dtype.name}: only floats have gradients; "
                                "make the data floats, e.g. with .float()")  # fmt: skip
        if gradient is None:
            expect(self.numel() == 1, "backward", "one element; reduce it, e.g. with .sum(), or "
                   "pass gradient= of its shape", self, error=GradientError)  # fmt: skip
            return build.const(1.0, self.dtype, self.shape, self.raw.device)
        if gradient.shape != self.shape:
            raise misfit("gradient=", f"{self.shape}, the shape of the tensor", gradient)
        return build.cast(gradient.node, self.dtype)

    def _settle_unmarked(self) -> tuple[Node, Sequence[Node]]:
        """Carry out waiting writes to unmarked tensors, so that these are leaves.

        Returns self's node (another thread may realize it meanwhile) and its `topological` order.
        """
        node = self.node
        order = topological([node])
        tensors = [holder for node in held_among(order) for holder in holders(node)]
        if not any(t._requires_grad for t in tensors) and not any(
            history.has_history(node) for node in order
        ):
            waiting = [t for t in tensors if t.raw.op is Op.ASSIGN and t is not self]
            if waiting:
                realization.realize(waiting)
                node = self.node
                return node, topological([node])
        return node, order

    def _descends_from_leaves(self) -> bool:
        """Whether it was computed from tensors with requires_grad=True."""
        try:
            order = topological([self.node])
            roots, _ = history.expand([self.node], order, rewritten(order))
        except GradientError:  # they were overwritten since
            return True
        nodes = reached(roots, topological(roots))
        return any(holder._requires_grad for node in nodes for holder in holders(node))


def _settle_leaves(
    tensors: Sequence[Core], nodes: list[Node], order: Sequence[Node]
) -> tuple[list[Node], Sequence[Node], dict[Node, list[Holder]]]:
    """Carry out waiting writes to leaves that replace other waiting ones.

    Otherwise the graph of a training loop that reads nothing would grow with each update. If the
    first node is computed from an older value of a leaf, it still needs that value as it is.
    Returns the nodes of the tensors, their `topological` order, and what is `rewritten` in it.
    """
    older = rewritten(order)
    leaves = {id(h): h for old, some in older.items() if old.op is Op.ASSIGN for h in some}
    newest = [leaf.raw for leaf in leaves.values()]
    if not leaves or not by_itself() or nodes[0] in newest:
        return nodes, order, older
    if not older.keys().isdisjoint(topological(nodes[:1], newest)):
        return nodes, order, older
    realization.realize(leaves.values())
    nodes = [tensor.node for tensor in tensors]
    order = topological(nodes)
    return nodes, order, rewritten(order)


def _may_be_leaves(
    order: Sequence[Node], back: dict[Node, Node], before: dict[Node, list[Holder]]
) -> list[dict[Node, list[Core]]]:
    """Candidates for leaves, node → tensors: first marked ones, then those for when none is found.

    order: of a graph. back: its nodes that stand for others → these. before: nodes that were a
    leaf's value before a write to it that still waits.
    """
    marked: dict[Node, list[Core]] = {}
    others: dict[Node, list[Core]] = {}
    for node in dict.fromkeys((*(order if back else held_among(order)), *before)):
        same = holders(back[node]) if node in back else before.get(node, [])
        for holder in holders(node) + same:
            assert isinstance(holder, Core)
            observe(holder, "_requires_grad")
            if holder._requires_grad:
                marked.setdefault(node, []).append(holder)
            elif holder._requires_grad is None and node.dtype.is_float:
                if holder.made or (node.op is BUFFER and node is not order[-1]):
                    others.setdefault(node, []).append(holder)
    return [some for some in (marked, others) if some]


def _and_below(targets: Iterable[Node]) -> set[Node]:
    """Targets of a gradient, and what they are computed from: if that changed, so would they."""
    return {*targets, *without_leaves(topological(targets))}


_derived = Derived()  # an output without loops, the leaves, and their gradients


def _gradients(
    output: Node, seed: Node, order: Sequence[Node], candidates: Set[Node]
) -> dict[Node, Node]:
    """The candidates that an output depends on, and their gradients.

    order: `topological([output])`.
    """
    form = _derived.form(order, candidates) if seed.known() == 1 else None
    made = _derived.found(form, order)
    if made is not None:
        joined, *made = made
        if joined is not output:
            remember(output, joined, _and_below(candidates))
        half = len(made) // 2
        return dict(zip(made[:half], made[half:], strict=True))
    (joined,), left = with_loops([output], order, _and_below(candidates), copied=False)
    leaves = [node for node in reached([joined], left) if node in candidates]
    parts = zip(leaves, node_gradient([joined], [seed], leaves, left), strict=True)
    found = {leaf: part for leaf, part in parts if part is not None}
    lost = candidates - {*leaves} if joined is not output else frozenset()
    if not lost.isdisjoint(order):  # what was overwritten in a loop has a gradient, too: 0
        found |= {n: n.constant(0.0) for n in reached([output], order) if n in lost}
    # copies with tensors may be wanted after this, and are known as rows only to this very graph
    if form is not None and not any(map(is_row, held_among(order))):
        _derived.keep(form, order, [joined, *found, *found.values()])
    return found


def _add_gradient(leaf: Core, node: Node) -> None:
    own = sets_gradient(leaf, overwrites=False)
    if leaf.grad is not None:
        node = build.elementwise(Op.ADD, leaf.grad.raw, node)
        if own:  # in place: it may have other names
            leaf.grad._write(node)
            return
    leaf._grad = leaf._new(node)
    leaf._grad._requires_grad = False
