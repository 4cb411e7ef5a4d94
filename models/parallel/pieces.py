"""Pieces of a model, and their programs for a pipeline, cut out of one graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from minigrad import Mesh, P, Tensor, jit
from minigrad.graph import build
from minigrad.graph.node import Node, grouped, topological
from minigrad.graph.rewrite import without_rules
from minigrad.graph.simplify import simplify
from minigrad.models.parallel.schedules import BACKWARD, FORWARD, INPUT, WEIGHTS
from minigrad.models.parallel.stage_graphs import COMPUTED_AGAIN, Part, cut

BACK = (BACKWARD,), (INPUT, WEIGHTS)  # ways to go back: in one program, or in two
AFTER = {FORWARD: (BACKWARD, INPUT, WEIGHTS), INPUT: (WEIGHTS,), BACKWARD: (), WEIGHTS: ()}


@dataclass(frozen=True)
class Piece:
    """Some layers of a model.

    forward: (input, targets) → (the input of its first layer, its output). The first piece's input
    is tokens; the last piece's output is the loss. params: by their names in the whole model;
    `shared`: those that another piece has, too. size: its time in layers.
    """

    forward: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    params: Mapping[str, Tensor]
    size: float = 1.0
    shared: frozenset[str] = frozenset()


class Programs:
    """The programs of a piece, for micro-batches of one shape; gradients are accumulated.

    kinds: the tasks of its stage, with a program for each; forward only: no training.
    """

    def __init__(
        self, piece: Piece, given: Sequence[Tensor], slope: Tensor | None,
        sums: Mapping[str, Tensor], share: float, kinds: AbstractSet[str], mesh: Mesh, spec: P,
    ) -> None:  # fmt: skip
        entry, output = piece.forward(given[0], given[-1])
        output = output * share if slope is None else output.shard(mesh, spec).contiguous()
        self.inputs = [tensor.node for tensor in (*given, *([] if slope is None else [slope]))]
        wanted = [output]
        ways: list[tuple[str, ...]] = [some for some in BACK if not kinds.isdisjoint(some)]
        if ways:
            first, *weights = output.gradient(entry, *piece.params.values(), gradient=slope)
            wanted += [first.shard(mesh, spec).contiguous(), *weights]
        self.output, *made = simplify(without_rules([tensor.node for tensor in wanted]))
        self.gradient, nodes = next(iter(made), None), made[1:]
        totals = (sums[name] for name in piece.params)  # several if gradients are the same
        self._weights = grouped(zip(nodes, totals, strict=False))
        parts: dict[str, Part] = {}
        reads, writes = dict[Node, None](), dict[Node, None]()
        for some in ways or [()]:
            back = made[:1] if INPUT in some or given[0].dtype.is_float else []
            programs = {0: (), 1: ([*back, *nodes],), 2: (back, nodes)}[len(some)]
            forward, *others = cut([[self.output], *programs], frozenset(self.inputs))
            reads |= dict.fromkeys(forward.reads)
            writes |= dict.fromkeys(forward.writes)
            parts.update(zip(some, others, strict=True))
        parts[FORWARD] = Part(tuple(reads), tuple(writes))
        self._programs = {kind: (part, self._captured(part)) for kind, part in parts.items()}

    def _captured(self, part: Any) -> Callable[..., list[Tensor]]:
        reads, writes = part
        into = tuple((total, node) for node in writes for total in self._weights.get(node, ()))
        totals, slopes = tuple(total for total, _ in into), tuple(node for _, node in into)
        kept = tuple(node for node in writes if node not in self._weights)

        @jit
        def program(*values: Tensor) -> list[Tensor]:  # not a list: a replay is served faster
            now = dict(zip(reads, (value.node for value in values), strict=True))
            for node in topological([*kept, *slopes], now):
                now[node] = build.rebuild(node, [now[source] for source in node.src])
                if node in kept and node.op in COMPUTED_AGAIN:  # others read the stored one, too
                    now[node] = build.contiguous(now[node])
            for total, slope in into:
                total.assign(total + Tensor._of(now[slope]))
            made = [Tensor._of(now[node]).contiguous() for node in kept]
            Tensor.realize(*made, *totals)
            return made

        return program

    def run(self, kind: str, values: dict[Any, Tensor]) -> None:
        """Run a task with the stored values of a micro-batch, and store its results."""
        part, program = self._programs[kind]
        with Tensor.no_grad():
            made = program(*(values[node] for node in part.reads))
        kept = [node for node in part.writes if node not in self._weights]
        values.update(zip(kept, made, strict=True))
        later = [self._programs[other][0].reads for other in AFTER[kind] if other in self._programs]
        for node in part.reads:  # values without later readers can be dropped
            if not any(node in reads for reads in later):
                values.pop(node, None)
