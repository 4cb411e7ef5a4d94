"""The rewrite engine: tables of named rules, applied from the sources up until none applies.

    def double_negation(node: Node) -> Node | None:
        inner = node.src[0]
        return inner.src[0] if inner.op is Op.NEG else None

    (root,) = rewrite([root], {Op.NEG: [double_negation]})

A rule gets a node whose sources are in their final form. It returns a node with the same values,
shape and dtype, or None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from minigrad.errors import CompileError
from minigrad.graph.build import rebuild
from minigrad.graph.node import Node, Op, make, topological

Rule = Callable[[Node], Node | None]
Rules = Mapping[Op, Sequence[Rule]]


def rewrite(roots: Sequence[Node], rules: Rules) -> tuple[Node, ...]:
    """The roots after applying every rule to every node until nothing changes.

    Each node is visited once, also shared ones. Raises CompileError if a rule changes a shape,
    dtype or device, or if rules undo one another forever.
    """
    return tuple(_settled(roots, rules, {}))


Final = dict[Node, Node | None]  # node → its final form; None while that is being computed


def _settled(some: Iterable[Node], rules: Rules, final: Final) -> list[Node]:
    """The final forms of some nodes; also of the nodes that rules make, sources first."""
    for node in topological(some, (), lambda node: () if node in final else node.src):
        if node not in final:
            final[node] = None
            new = _step(node, _known(node.src, final), rules)
            final[node] = node if new is node else _settled([new], rules, final)[0]
    return _known(some, final)


def _known(some: Iterable[Node], final: Final) -> list[Node]:
    found = []
    for node in some:
        known = final[node]
        if known is None:
            raise CompileError(f"the rewrite rules do not terminate: {node!r} becomes itself again")
        found.append(known)
    return found


def _step(node: Node, sources: Sequence[Node], rules: Rules) -> Node:
    """The node on its final sources if they changed, else the result of the first matching rule."""
    rebuilt = rebuild(node, sources)
    if rebuilt is not node:
        return rebuilt
    for rule in rules.get(node.op, ()):
        new = rule(node)
        if new is None or new is node:
            continue
        if new.shape != node.shape or new.dtype is not node.dtype or new.device != node.device:
            raise CompileError(f"the rewrite rule {rule.__name__} turned {node!r} into {new!r}")
        return new
    return node


def remade(
    roots: Iterable[Node], remake: Callable[[Node, list[Node]], Node],
    by: Mapping[Node, Node] | None = None, oldest: int = -1,
) -> list[Node]:  # fmt: skip
    """The roots with all nodes that they need remade, sources before users.

    remake: gets a node and its remade sources. by: replacements, taken as they are; nodes that only
    replaced ones need are not visited. oldest: nodes of this age or older stay as they are.
    """
    new = dict(by or {})
    for node in topological(roots, new, lambda node: node.src if node.age > oldest else ()):
        is_old = node.age <= oldest
        new[node] = node if is_old else remake(node, [new[source] for source in node.src])
    return [new[root] for root in roots]


def replaced(roots: Sequence[Node], by: Mapping[Node, Node]) -> list[Node]:
    """The roots with some of the nodes they need replaced; replacements are taken as they are.

    Nodes older than all keys of `by` cannot depend on them and are not visited.
    """
    if not (by and roots):
        return list(roots)
    return remade(roots, rebuild, by, min([node.age for node in by]))


def without_rules(roots: Sequence[Node]) -> list[Node]:
    """The roots without gradient rules: each CUSTOM replaced by its value. Equal nodes become one.
    """

    def remake(node: Node, src: list[Node]) -> Node:
        if node.op is Op.CUSTOM:
            return src[0]
        new = rebuild(node, src)
        if new is not node or not src:
            return new
        return make(node.op, node.dtype, node.shape, node.src, node.arg, node.device)

    return remade(roots, remake)
