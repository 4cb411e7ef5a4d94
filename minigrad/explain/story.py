"""One program, from nodes to machine code, with the origin of each kernel."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any

from minigrad.device import Buffer, Device
from minigrad.explain.origins import Origin, Origins
from minigrad.graph.canonical import Canonical, Graph
from minigrad.graph.node import Node, topological
from minigrad.graph.operations import MOVEMENT, REDUCTIONS, Op
from minigrad.graph.rewrite import Rule, rewrite
from minigrad.graph.shapes import numel
from minigrad.graph.simplify import RULES
from minigrad.graph.symbolic import high
from minigrad.loops import transforms
from minigrad.loops.nest import Statement, show_statements
from minigrad.loops.nest import show as show_nest
from minigrad.loops.recipes import lower
from minigrad.runtimes.cpu import host_kernels
from minigrad.schedule import fuse
from minigrad.schedule.expr import Array
from minigrad.schedule.fuse import Cluster
from minigrad.schedule.key import kernel_key
from minigrad.schedule.schedule import Kernel, Schedule, schedule
from minigrad.schedule.show import label, show
from minigrad.schedule.sort import expand_sorts
from minigrad.schedule.split import split_reductions
from minigrad.schedule.stage import Stage
from minigrad.settings import Context, flag, having

MOST = 4  # refusals that a sentence lists
NOWHERE = Origin()


class Decisions(fuse.Watcher):
    """A watcher of `fuse.cluster` that records why stages share no kernel: by a stage's array."""

    def __init__(self) -> None:
        self.by_array: dict[Array, list[tuple[Array, str]]] = {}
        self._refused: list[tuple[Array, str]] = []

    def refused(self, home: Cluster, why: str) -> None:
        """See `fuse.Watcher`."""
        if home.stages:
            self._refused.append((home.stages[0].array, why))

    def settled(self, stage: Stage, home: Cluster) -> None:
        """See `fuse.Watcher`."""
        self.by_array[stage.array], self._refused = self._refused, []


class Codes:
    """Loops, IR text and assembly of kernels; equal kernels share them."""

    def __init__(self) -> None:
        self.kernels = host_kernels()
        self.all: list[dict[str, str]] = []
        self._numbers: dict[str, int] = {}

    def of(self, kernel: Kernel) -> int:
        """The number of a kernel's code, generated when first needed."""
        key = kernel_key(kernel)[0]
        if key not in self._numbers:
            self._numbers[key] = len(self.all)
            self.all.append(self._made(kernel))
        return self._numbers[key]

    def _made(self, kernel: Kernel) -> dict[str, Any]:
        steps = list[str]()

        def see(step: str, body: tuple[Statement, ...]) -> None:
            steps.append(f"{step}\n{show_statements(body)}")

        with having(transforms.watching, see=see):
            nest = lower(kernel, self.kernels.target)
        text = self.kernels.render(nest)
        return {
            "label": nest.label, "operations": nest.operations, "traffic": nest.traffic,
            "vectors": nest.vectors, "steps": "\n\n".join(steps), "nest": show_nest(nest),
            "ir": text, "assembly": self.kernels.compiler.assembly(text),
        }  # fmt: skip


class Story:
    """One program of a step: its passes, its kernels, and the memory held between them.

    names: buffer → (name, module); others are called "input 0" and so on.
    """

    def __init__(
        self, call: Canonical, origins: Origins, names: Mapping[Buffer, tuple[str, str]],
        codes: Codes,
    ) -> None:  # fmt: skip
        self.call, self.names, self.codes = call, names, codes
        self.origins = Origins(origins.modules, origins.classes, origins)
        self.passes: list[dict[str, Any]] = []
        self.decisions = Decisions()
        target = codes.kernels.target
        with self.origins.recording():
            graph = self._divided(self._pass("canonicalize", call.roots, call.graph))
            simple = self._simplified(graph.roots)
            unsorted = self._pass("expand_sorts", simple, lambda: expand_sorts(simple))
            roots = self._pass("split_reductions", unsorted, lambda: split_reductions(unsorted))
            with having(fuse.watching, watcher=self.decisions):
                self.plan: Schedule = self._pass(
                    "schedule", roots, lambda: schedule(graph, roots, target, bool(flag("FUSE")))
                )
        self.nodes = {array.name: node for array, node in self.plan.nodes.items()}
        self.kept = frozenset(self.plan.nodes.values())
        self.home = {
            array: number
            for number, kernel in enumerate(self.plan.kernels)
            for stage in kernel.stages
            for array in (stage.array, stage.array.whole or stage.array)
        }
        self.kernels = [self._told(number) for number in range(len(self.plan.kernels))]
        self.held: list[dict[str, Any]] = []
        self.places = self.plan.places()
        for one in self.plan.held:
            node = self.nodes[one.arrays[0].name]
            self.held.append({
                "bytes": high(one.nbytes), "first": one.first, "last": one.last,
                "module": self.origin(node).module, "shape": _shape(node),
            })  # fmt: skip

    def _divided(self, graph: Graph) -> Graph:
        """The part of the graph for this process's first device, if on a mesh."""
        if graph.device not in Device.meshes:
            return graph
        runtime: Any = Device[graph.device]
        with Context(THREADS=runtime.local[0].threads):
            local: Graph = self._pass(
                "partition", graph.roots, lambda: runtime.divider(graph)(runtime.local[0])[1]
            )
        return local

    def _pass(self, name: str, before: Sequence[Node], run: Any) -> Any:
        start = time.perf_counter()
        made = run()
        seconds, roots = time.perf_counter() - start, getattr(made, "roots", made)
        after = made.kernels if isinstance(made, Schedule) else topological(roots)
        self.passes.append({
            "name": name, "before": len(topological(before)), "after": len(after),
            "seconds": seconds, "rules": {},
        })  # fmt: skip
        return made

    def _simplified(self, roots: Sequence[Node]) -> Sequence[Node]:
        """`simplify`, counting how often each rule applied."""
        applied: Counter[str] = Counter()

        def counted(rule: Rule) -> Rule:
            @wraps(rule)
            def apply(node: Node) -> Node | None:
                new = rule(node)
                applied[rule.__name__] += new is not None and new is not node
                return new

            return apply

        rules = {op: [counted(rule) for rule in several] for op, several in RULES.items()}
        simple: Sequence[Node] = self._pass("simplify", roots, lambda: rewrite(roots, rules))
        self.passes[-1]["rules"] = dict(applied.most_common())
        return simple

    # ---- kernels ----

    def _told(self, number: int) -> dict[str, Any]:
        kernel = self.plan.kernels[number]
        shares: Counter[Origin] = Counter()
        nodes = []
        for stage in kernel.stages:
            owner = self.written(stage)[1]
            for node, weight in self.members(stage):
                origin = self.origin(node)
                if not origin.module and owner and origin.phase == "update":
                    origin = replace(origin, module=owner)
                shares[origin] += weight
                nodes.append((repr(node)[1:-1], origin))
        code = -1 if kernel.kind in ("exchange", "wait") else self.codes.of(kernel)
        return {
            "label": label(kernel) if code < 0 else self.codes.all[code]["label"],
            "kind": kernel.kind, "code": code, "shares": shares,
            "nodes": nodes, "plan": self._formulas(kernel), "why": self._why(number),
            "writes": [name for s in kernel.stages if s.array in kernel.stored
                       for name in [self.written(s)[0]] if name],
            "needs": sorted({self.home[a] for a in self.read(number)
                             if self.home.get(a, number) < number}),
            "bytes": sum(a.size * a.dtype.itemsize for s in kernel.stages if s.exchange is not None
                         for a in s.exchange.sent),
        }  # fmt: skip

    def read(self, number: int) -> list[Array]:
        """The arrays that a kernel reads or sends."""
        return [array for stage in self.plan.kernels[number].stages for array in stage.reads]

    def _formulas(self, kernel: Kernel) -> str:
        one = Schedule((kernel,), self.plan.slots)
        return "\n".join(line.removeprefix("  ") for line in show(one).splitlines()[2:])

    def node(self, array: Array) -> Node | None:
        """The node of an array; a block's own copy has the original's name and a suffix."""
        return self.nodes.get(array.name) or self.nodes.get(array.name.partition("_")[0])

    def members(self, stage: Stage) -> list[tuple[Node, int]]:
        """The nodes that a stage computes, and how many elements each has."""
        top = self.node(stage.array)
        found: dict[Node, int] = {}
        stack = [top] if top is not None else []
        while stack:
            node = stack.pop()
            if node in found or (node in self.kept and node is not top):
                continue
            size = numel(node.shape)
            if node.op in REDUCTIONS:
                size = numel(node.src[0].shape)
            moves = node.op in MOVEMENT or node.op in (Op.BUFFER, Op.CONST)
            found[node] = 0 if moves else max(size, 1)
            stack.extend(node.src)
        if found and not any(found.values()) and top is not None:
            found[top] = numel(top.shape) or 1  # only a copy
        return list(found.items())

    def origin(self, node: Node) -> Origin:
        """The origin of a node, or NOWHERE."""
        return self.origins.of(node) or NOWHERE

    def written(self, stage: Stage) -> tuple[str, str]:
        """The name of the buffer that a stage fills, and the module that owns it."""
        slot = self.plan.slots.get(stage.array.whole or stage.array)
        if slot is None:
            return "", ""
        if slot >= len(self.call.inputs):
            return f"result {slot - len(self.call.inputs)}", ""
        return self.name_of(slot)

    def name_of(self, slot: int) -> tuple[str, str]:
        """The name of an input, and the module that owns it."""
        return self.names.get(self.call.inputs[slot], (f"input {slot}", ""))

    def _why(self, number: int) -> list[str]:
        """Why the stages form one kernel, separate from those before and after."""
        kernel = self.plan.kernels[number]
        if kernel.kind == "exchange":
            return ["It starts an exchange with other ranks; a later kernel waits for the result."]
        if kernel.kind == "wait":
            return ["It waits for what other ranks send, because the next kernels need it."]
        sentences = []
        for place, stage in enumerate(kernel.stages):
            node = self.node(stage.array)
            what = stage.array.name
            if node is not None and node.op in REDUCTIONS:
                reason = f"a {node.op.name} over {_shape(node.src[0])} is computed once, and stored"
            elif stage.array in self.plan.slots:
                reason = f"the program writes it to {self.written(stage)[0]}"
            else:
                reason = "several stages read it, and computing it again for each would take longer"
            sentences.append(f"{what} is a separate value: {reason}.")
            refused = self.decisions.by_array.get(stage.array, [])
            if place:
                sentences.append(f"{what} joined this kernel: each row needs only values of the "
                                 "same row, which need not go through memory.")  # fmt: skip
                continue
            if not refused:
                sentences.append("It begins a kernel: it reads only values that are already "
                                 "in memory.")  # fmt: skip
            reasons: dict[str, list[int]] = {}
            for array, why in refused:
                other = self.home.get(array, number)
                if other != number and other not in reasons.setdefault(why, []):
                    reasons[why].append(other)
            for why, others in reasons.items():
                if others:
                    numbers = ", ".join(map(str, others[:MOST]))
                    plural = "s" if len(others) > 1 else ""
                    sentences.append(f"It does not join kernel{plural} {numbers}: {why}.")
        return sentences


def _shape(node: Node) -> str:
    return "×".join(str(high(extent)) for extent in node.shape) or "one number"
