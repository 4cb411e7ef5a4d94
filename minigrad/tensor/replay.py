"""What a capture leaves, and how a replay is served: the inputs' memory in, fresh memory out."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minigrad.device import Buffer, Replay
from minigrad.dtype import DType
from minigrad.errors import JitError
from minigrad.graph.node import Node, Op, own_buffer
from minigrad.graph.symbolic import Integer, rebind
from minigrad.program import GlobalCounters
from minigrad.tensor import Tensor, engine, history
from minigrad.tensor.registry import lazy_links, shared
from minigrad.tensor.structure import TENSOR, Signature, flatten, rebuild, show, signature


@dataclass(frozen=True)
class Output:
    """A tensor of the result that gets a fresh buffer in every replay."""

    place: int  # among the replay's arguments
    shape: tuple[Integer, ...]
    dtype: DType
    device: str
    size: int
    nbytes: int
    stopped: bool  # a replay keeps no history: no gradient can flow through its results
    symbolic: bool


@dataclass(frozen=True)
class Source:
    """Where a tensor of the result comes from.

    kind and what: "fresh" and the number of an output, "input" and the number of an input,
    "input memory" and that number where another tensor shares the input's memory, "kept" and a
    tensor, "kept memory" and a node.
    """

    kind: str
    what: Any


NOBODY = object()  # is the node of no tensor
BUFFER = Op.BUFFER  # members of an Enum are slow to find


class Capture:
    """What the second call left: the replay, and all that is needed to serve it."""

    def __init__(self, name: str, structure: Any, inputs: tuple[Signature, ...]) -> None:
        self.name, self.structure, self.inputs = name, structure, inputs
        self.expected = [(known.shape, known.dtype, known.device) for known in inputs]
        self.lock = threading.Lock()
        # called with nothing but tensors, by position, of plain shapes
        _, ((_, positional), (_, by_name)) = structure
        self.plain = not by_name and all(item is TENSOR for item in positional) and all(
            isinstance(extent, int) for expected in inputs for extent in expected.shape
        )  # fmt: skip
        # Whose memory is in place already; what is not plain must be looked at each time.
        self.last: list[Any] = [NOBODY] * (len(inputs) if self.plain else 1)
        self.replay: Replay
        self.memories: Any
        self.outputs: list[Output] = []
        self.sources: list[Source] = []  # of the result's tensors
        self.result: Any = None  # with TENSOR in the place of tensors
        self.written: frozenset[Buffer] = frozenset()
        self.written_inputs: frozenset[int] = frozenset()
        self.owners: dict[int, set[int]] = {}  # id of a written node → tensors that stand for it
        self.written_nodes: list[Node] = []
        self.renewed: list[tuple[weakref.ref[Any], Source]] = []
        self.gradients: list[tuple[Tensor, Tensor, bool]] = []  # of what, which, may there be one
        self.input_gradients: list[tuple[int, Tensor]] = []
        self.special = False  # whether any of the last four needs attention
        self.simple = False  # whether the result is one new tensor that nobody else stands for

    def run(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """One replay. The lock is held."""
        if lazy_links or self.written_inputs or not shared.isdisjoint(self.owners):
            self._settle(args, kwargs)
        tensors: Sequence[Any] = args
        values: dict[str, int] = kwargs  # empty where nothing need be checked
        memories = self.memories
        if kwargs or [getattr(tensor, "raw", None) for tensor in args] != self.last:
            tensors, values = self._place(args, kwargs)
        if self.special:
            self._check_special(tensors)
        nodes = []
        for output in self.outputs:
            memory = self.replay.allocate(output.nbytes)
            memories[output.place] = memory
            shape, dtype, device = output.shape, output.dtype, output.device
            if output.symbolic:
                shape = tuple(rebind(extent, values) for extent in shape)
            buffer = Buffer(device, dtype, output.size, memory)
            nodes.append(own_buffer(buffer, dtype, shape, device))
        GlobalCounters.program_calls += 1
        self.replay.run(values)
        if history.recorded:
            history.replayed(self._all_written(tensors))
        if self.special:
            self._renew(tensors, nodes)
        if self.simple:
            return Tensor._alone(nodes[0], self.outputs[0].stopped)
        results = [self._tensor(source, tensors, nodes) for source in self.sources]
        if self.result is TENSOR:
            return results[0]
        return rebuild(self.result, iter(results).__next__, values)

    def _tensor(self, source: Source, tensors: Sequence[Tensor], nodes: Sequence[Node]) -> Tensor:
        """A tensor of the result."""
        kind, what = source.kind, source.what
        if kind == "fresh":
            node = nodes[what]
            made = Tensor._of(node)  # another may stand for it: a result given twice
            made.stopped = self.outputs[what].stopped
            return made
        if kind == "input":
            given: Tensor = tensors[what]
            return given
        if kind == "kept":
            kept: Tensor = what
            return kept
        shared_node: Node = tensors[what].raw if kind == "input memory" else what
        return Tensor._of(shared_node)

    def _settle(self, args: Any, kwargs: Any) -> None:
        """Let everybody have its value who reads what is about to be overwritten."""
        tensors: list[Tensor] = []
        if self.written_inputs:
            flatten((args, kwargs), tensors, {})
            engine.realize(tensors)
            tensors = [t for n, t in enumerate(tensors) if n in self.written_inputs]
        if lazy_links:
            engine.settle_before(self.written | {tensor.raw.arg for tensor in tensors})
        for node in self.written_nodes:
            if id(node) in shared:
                engine.separate(node, self.owners[id(node)])
        for tensor in tensors:
            if id(tensor.raw) in shared:
                engine.separate(tensor.raw, {id(tensor._link)})

    def _place(self, args: Any, kwargs: Any) -> tuple[Sequence[Tensor], dict[str, int]]:
        """The input tensors, their memory in place, and the variables' values; or JitError."""
        memories, last = self.memories, self.last
        if kwargs or not self.plain or len(args) != len(last):
            return self._check(args, kwargs)
        for number, tensor in enumerate(args):
            if type(tensor) is not Tensor:
                return self._check(args, kwargs)
            node = tensor.raw
            if node is not last[number]:
                shape, dtype, device = self.expected[number]
                if (
                    node.op is not BUFFER or node.shape != shape
                    or node.dtype is not dtype or node.device != device
                ):  # fmt: skip
                    return self._check(args, kwargs)
                memories[number] = node.arg.memory
                last[number] = node
        return args, {}

    def _check(self, args: Any, kwargs: Any) -> tuple[list[Tensor], dict[str, int]]:
        """The same for any arguments."""
        tensors: list[Tensor] = []
        values: dict[str, int] = {}
        structure = flatten((args, kwargs), tensors, values)
        if structure != self.structure:
            raise JitError(
                f"{self.name} was captured with arguments {show(self.structure)} and is called "
                f"with {show(structure)}: Python values and the number of tensors are fixed in a "
                "capture; pass tensors, or .reset()"
            )
        for number, (tensor, expected) in enumerate(zip(tensors, self.inputs, strict=True)):
            found = signature(tensor, values)
            if found != expected:
                raise JitError(
                    f"{self.name} was captured with input {number} of {expected} and is called "
                    f"with {found}; give it that, or .reset() before another shape"
                )
        if any(tensor.raw.op is not Op.BUFFER for tensor in tensors):
            engine.realize(tensors)
        for number, tensor in enumerate(tensors):
            self.memories[number] = tensor.raw.arg.memory
            if self.plain:
                self.last[number] = tensor.raw
        return tensors, values

    def _check_special(self, tensors: Sequence[Tensor]) -> None:
        """JitError where an input is written and given twice, or a gradient would be added to."""
        for number in self.written_inputs:
            memory = tensors[number].raw.arg
            if sum(tensor.raw.arg is memory for tensor in tensors) > 1:
                raise written_twice(self.name, number)
            if memory in self.written:
                raise written_both_ways(self.name, number)
        had = any(of.grad is not None for of, _, others in self.gradients if not others)
        if had or any(tensors[number].grad is not None for number, _ in self.input_gradients):
            raise JitError(
                f"{self.name} was captured when its tensors had no gradient, and now they have: a "
                "replay would not add to it; call zero_grad() before each call, or inside the step"
            )

    def _renew(self, tensors: Sequence[Tensor], nodes: Sequence[Node]) -> None:
        """Point what the step left behind to its newest value."""
        for link, source in self.renewed:
            holder = link()
            if holder is not None:
                fresh = source.kind == "fresh"
                holder._point(nodes[source.what] if fresh else tensors[source.what].raw)
        for of, gradient, _ in self.gradients:
            of.grad = gradient
        for number, gradient in self.input_gradients:
            tensors[number].grad = gradient

    def _all_written(self, tensors: Sequence[Tensor]) -> frozenset[Buffer]:
        return self.written | {tensors[number].raw.arg for number in self.written_inputs}


def written_twice(name: str, number: int) -> JitError:
    """The error where an input that the step updates has a twin."""
    return JitError(
        f"{name} writes to input {number}, which is given twice in one call: "
        "a replay could not tell the two apart; pass a .clone() of one"
    )


def written_both_ways(name: str, number: int) -> JitError:
    """The error where the step reaches an input's memory by itself, and one of the two writes."""
    return JitError(
        f"{name} writes to a tensor that is given as input {number} and that it also uses without "
        "being given it: a replay could not tell the two apart; pass a .clone(), or do not pass it"
    )
