"""Small exchanges are sent together if no result waits for them, in an order all ranks keep."""

from __future__ import annotations

import random

from minigrad.dtype import dtypes
from minigrad.graph import build
from minigrad.graph.buckets import BUCKET, COPIED, in_buckets
from minigrad.graph.collective import exchange
from minigrad.graph.conversions import Sent
from minigrad.graph.node import Node, Op, topological

DEVICE = "a device"


def leaf(slot: int, count: int = 8) -> Node:
    """A BUFFER node."""
    return build.buffer(slot, dtypes.float32, (count,), DEVICE)


def total(x: Node) -> Node:
    """The sum of all ranks' x."""
    return exchange("all_reduce", "g", 2, [x], "sum")


def after(x: Node, steps: int) -> Node:
    """A chain of `steps` operations on x."""
    for _ in range(steps):
        x = build.elementwise(Op.EXP, x)
    return x


def joined(*roots: Node) -> list[Node]:
    """The exchanges of the rewritten graph in order; each comes after those that it needs."""
    sent = {node: Sent(node.arg.kind, ("dp",), 4, "x")
            for node in topological(roots) if node.op is Op.COLLECTIVE}  # fmt: skip
    new, told = in_buckets(roots, sent)
    assert [(root.shape, root.dtype) for root in new] == [(r.shape, r.dtype) for r in roots]
    found = [node for node in topological(new) if node.op is Op.COLLECTIVE]
    found.sort(key=lambda node: node.arg.number)
    assert [node.arg.number for node in found] == list(range(len(told)))
    assert sum(one.nbytes for one in told) == sum(one.nbytes for one in sent.values())
    for node in found:
        needs = [n.arg.number for n in topological(node.src) if n.op is Op.COLLECTIVE]
        assert all(number < node.arg.number for number in needs)
    return found


def test_those_that_nobody_waits_for_go_together() -> None:
    """Exchanges of layers' gradients, whose results are only used at the end of a longer path."""
    x = leaf(0)
    root = after(x, 20)
    for steps in (5, 3, 1):
        root = build.elementwise(Op.ADD, root, total(after(x, steps)))
    (one,) = joined(root)
    assert (one.arg.payload, one.shape) == (3, (24,))


def test_who_waits_for_one_does_not_wait_for_another() -> None:
    """The first exchange's reader is on the longest path; the other exchange comes much later."""
    x, y = leaf(0), leaf(1)
    way = after(total(after(x, 1)), 20)
    late = total(after(y, 10))
    assert len(joined(after(build.elementwise(Op.ADD, way, late), 1))) == 2


def test_one_that_is_made_of_another_follows_it() -> None:
    first = total(leaf(0))
    (one, other) = joined(after(build.elementwise(Op.ADD, first, total(after(first, 1))), 30))
    assert one.arg.payload == other.arg.payload == 1


def test_kinds_large_ones_and_results_go_alone() -> None:
    x = leaf(0)
    other = exchange("all_reduce", "g", 2, [after(x, 1)], "max")
    assert len(joined(after(build.elementwise(Op.ADD, total(x), other), 9))) == 2
    large = [total(leaf(slot, BUCKET // 4)) for slot in range(2)]
    assert len(joined(after(build.elementwise(Op.ADD, *large), 9))) == 2
    # if joined, results would have to be copied from the joint array
    results = [total(leaf(slot, COPIED // 2)) for slot in range(2)]
    assert len(joined(*results)) == 2
    assert len(joined(*(total(leaf(slot)) for slot in range(2)))) == 1


def test_random_graphs_keep_an_order() -> None:
    """Exchanges that depend on each other in any pattern: no cycle, none before one it needs."""
    seed = random.SystemRandom().randrange(2**31)
    for number in range(200):
        random_ = random.Random(seed + number)
        nodes = [leaf(slot) for slot in range(3)]
        for _ in range(random_.randint(2, 40)):
            x, y = random_.choice(nodes), random_.choice(nodes)
            choice = random_.random()
            if choice < 0.25:
                nodes.append(exchange("all_reduce", "g", 2, [x], random_.choice(["sum", "max"])))
            elif choice < 0.35:
                moved = build.reshape(build.reshape(x, (2, 4)), (8,))
                nodes.append(exchange("permute", "g", 2, [moved], place=1))
            else:
                nodes.append(build.elementwise(random_.choice([Op.ADD, Op.MUL]), x, y))
        try:
            joined(*random_.sample(nodes[3:], min(len(nodes) - 3, 3)))
        except AssertionError as error:
            raise AssertionError(f"seed {seed + number}") from error
