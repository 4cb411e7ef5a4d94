"""Canonical graphs: programs without the memory and the bound values that one call gives them.

Two training steps build two graphs that differ only in their buffers and in the values of their
variables. `canonicalize` numbers buffers by first use and lifts the values out, so that both steps
have one key, one compiled program, and different arguments.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from minigrad.graph.bounds import Check, any_outside
from minigrad.graph.node import Node, Op, make, topological
from minigrad.graph.symbolic import Affine
from minigrad.graph.variable import unbind


@dataclass(frozen=True)
class Graph:
    """What a program computes.

    roots[i] is the value to be stored in buffer slot outputs[i]. BUFFER nodes hold slots as `arg`;
    slots 0 … len(outputs) − 1 are not necessarily outputs: an in-place update reads and writes one
    slot. A program sees every input as it was before the program started.
    variables: names of the symbolic integers whose values are given per call.
    device: the device whose runtime computes it. Where indices are checked the last root is an
    uint32 scalar: 0 where all of them are in range.
    """

    roots: tuple[Node, ...]
    outputs: tuple[int, ...]
    slots: int
    variables: tuple[str, ...]
    device: str


@dataclass(frozen=True)
class Canonical:
    """A graph's key together with one call's arguments.

    key: hashable; equal keys mean equal programs. inputs: the memory of each slot that exists
    before the call; `targets[i]` is the slot of root i, at or beyond len(inputs) where it is new.
    checks: its CHECK nodes, sources before users; the slot of what they find is the last one.
    """

    key: Any
    order: tuple[Node, ...]
    roots: tuple[Node, ...]
    inputs: tuple[Any, ...]
    targets: tuple[int, ...]
    values: dict[str, int]
    checks: tuple[Node, ...]

    def graph(self) -> Graph:
        """The graph itself, rewritten onto slots (made only when a program must be compiled)."""
        slots = {memory: slot for slot, memory in enumerate(self.inputs)}
        new: dict[Node, Node] = {}
        unbound: dict[str, int] = {}
        numbers = exchange_numbers(self.order)
        checked: list[tuple[Node, Check]] = []
        for node in self.order:
            if node.op is Op.CHECK:
                new[node] = new[node.src[0]]
                if self.checks:
                    checked.append((new[node], _unbind_arg(node.arg, unbound)))
                continue
            shape = tuple(unbind(extent, unbound) for extent in node.shape)
            if node.op is Op.COLLECTIVE:
                arg = replace(node.arg, number=numbers[node.arg.number])
            else:
                arg = slots[node.arg] if node.op is Op.BUFFER else _unbind_arg(node.arg, unbound)
            src = tuple(new[source] for source in node.src)
            new[node] = make(node.op, node.dtype, shape, src, arg, node.device)
        roots = []
        for root in self.roots:
            value = new[root]
            if value.op is Op.BUFFER:  # a CHECK of one
                value = make(Op.CONTIGUOUS, value.dtype, value.shape, (value,), None, value.device)
            roots.append(value.src[1] if value.op is Op.ASSIGN else value)
        outputs = self.targets
        count = max((*outputs, len(self.inputs) - 1)) + 1
        if checked:
            roots.append(any_outside(checked))
            outputs, count = (*outputs, count), count + 1
        return Graph(
            roots=tuple(roots),
            outputs=outputs,
            slots=count,
            variables=tuple(sorted(self.values)),
            device=self.roots[0].device,
        )


def _unbind_arg(arg: Any, values: dict[str, int]) -> Any:
    """`arg` without bound values: pads and ranges hold pairs of integers, VARIABLE an Affine."""
    if isinstance(arg, Affine):
        return unbind(arg, values)
    if isinstance(arg, Check):
        return replace(arg, extent=unbind(arg.extent, values))
    if isinstance(arg, tuple) and arg and isinstance(arg[0], tuple):
        return tuple(tuple(unbind(x, values) for x in pair) for pair in arg)
    return arg


def exchange_numbers(order: Sequence[Node]) -> dict[int, int]:
    """New numbers of the COLLECTIVEs among some nodes: 0, 1, … in the order of the old ones."""
    found = sorted({node.arg.number for node in order if node.op is Op.COLLECTIVE})
    return {number: place for place, number in enumerate(found)}


def canonicalize(roots: Sequence[Node], checked: bool = False) -> Canonical:
    """Number the buffers of a graph whose roots are to be stored (ASSIGN roots: in place).

    checked: whether its CHECK nodes count; otherwise they are what they check.
    """
    order = topological(roots)
    number: dict[Node, int] = {}
    inputs: dict[Any, int] = {}
    values: dict[str, int] = {}
    rows: list[Any] = []
    numbers: dict[int, int] = {}  # of its exchanges
    checks: list[Node] = []
    for node in order:
        if node.op is Op.CHECK:
            if not checked:
                number[node] = number[node.src[0]]
                continue
            checks.append(node)
        number[node] = len(rows)
        op, arg, shape = node.op, node.arg, node.shape
        if op is Op.BUFFER:
            arg = inputs.setdefault(arg, len(inputs))
        elif op is Op.CONST:
            arg = struct.pack("<d", arg) if node.dtype.is_float else int(arg)
        elif op is Op.COLLECTIVE:
            numbers = numbers or exchange_numbers(order)
            arg = replace(arg, number=numbers[arg.number])
        elif arg is not None:
            arg = _unbind_arg(arg, values)
        for extent in shape:
            if extent.__class__ is not int:
                shape = tuple(unbind(e, values) for e in shape)
                break
        rows.append((op, node.dtype, shape, arg, *[number[source] for source in node.src]))
    targets = []
    new = len(inputs)
    for root in roots:
        if root.op is Op.ASSIGN:
            targets.append(inputs[root.src[0].arg])
        else:
            targets.append(new)
            new += 1
    key = (tuple(rows), tuple(number[root] for root in roots), tuple(targets), roots[0].device)
    return Canonical(
        key, tuple(order), tuple(roots), tuple(inputs), tuple(targets), values, tuple(checks)
    )
