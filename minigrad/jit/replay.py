"""The result of a capture, and its replay: the inputs' memory in, fresh memory out."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Sequence
from functools import partial
from sys import getrefcount
from typing import Any, NamedTuple

from minigrad.device import Buffer, Device, Replay, poisoned, refuse, renew, undecided
from minigrad.errors import BoundsError, JitError
from minigrad.failure import CheckedReplay
from minigrad.graph.node import BUFFER, Form, Node, Op, own_node
from minigrad.graph.variable import rebind
from minigrad.jit.outside import Outdated, Outside, Store, memory_of
from minigrad.locks import new_lock
from minigrad.program import GlobalCounters
from minigrad.settings import thread
from minigrad.tensor import Tensor, access, history, no_grad, realization, views
from minigrad.tensor.broadcasting import show as shape_of
from minigrad.tensor.live_tensors import clock, lazy_links, shared
from minigrad.tensor.pytree import Same, Signature, flatten, rebuild, show, signature
from minigrad.tensor.random import states


class Output(NamedTuple):
    """A tensor of the result that gets a fresh buffer in every replay.

    stopped: as for tensors. A replay keeps no history, so no gradient can flow through its results.
    """

    known: Signature
    form: Form
    stopped: bool | str


class Source(NamedTuple):
    """Where a replay takes a tensor from that the step returns or leaves somewhere.

    kind and what: "fresh" and the number of an output; "input" and the number of an input; "input
    memory" and that number if another tensor has the input's memory; "kept" and a tensor; "kept
    memory" and a node; "again" and an earlier position in the result; "gradient" and the tensor of
    which it is one; "input's gradient" and the number of an input.
    """

    kind: str
    what: Any


Renewed = tuple[weakref.ref[Any], Source]  # a tensor that somebody keeps, and its newest value


# A tensor (or the number of an input), the gradient that a step leaves there (None if it removes
# it), and whether it may have had one before. No named tuple: unpacking those is slower.
Graded = tuple[Any, Any, bool]


class OtherInputs(Exception):
    """The inputs have other extents than in a capture, or gradients would flow to others of them.

    Or another thread calls a step that draws random numbers. Such inputs get their own capture. The
    arguments are the key of that capture, and whether it is for other extents.
    """


class ServedOften(Outdated):
    """A capture for many sizes has served its inputs often: it is time to compile for their own."""


class Capture:
    """The result of the second call: the replay, and everything needed to serve it."""

    def __init__(self, name: str, structure: Any, inputs: tuple[Signature, ...]) -> None:
        self.name, self.structure, self.inputs = name, structure, inputs
        self.keywords: Sequence[str] = ()  # in the structure's order; their order means nothing
        self.lock = new_lock()
        self.settled = -1  # the clock when lazy tensors were last checked
        self.replay: Replay
        self.outside: Outside
        self.outputs: list[Output] = []
        self.sources: list[Source] = []  # of the result's tensors
        self.result: Any = None  # with TENSOR instead of tensors
        self.written: frozenset[Buffer] = frozenset()
        self.read: frozenset[Buffer] = frozenset()  # kept memory whose values it uses
        self.written_inputs: frozenset[int] = frozenset()
        # id of a written node → that node, and the links of the tensors that stand for it, by id
        self.owners: dict[int, tuple[Node, dict[int, weakref.ref[Any]]]] = {}
        self.shown = True  # whether anybody knows what it writes, or a way back to it
        self.renewed: list[Renewed] = []  # tensors left in containers
        self.stores: list[Store] = []
        self.marks: list[bool | None] = []  # the inputs' requires_grad, if gradients may flow
        self.led_back: list[bool] = []  # whether inputs were computed from leaves
        self.derived: list[Node] = []  # written memory that was computed from leaves
        self.derived_inputs: set[int] = set()  # the same for inputs
        self.gradients: list[Graded] = []
        # those of inputs, and their nodes: several tensors have them in turn, and may write to them
        self.input_gradients: list[tuple[Graded, Node]] = []
        # (tensor, the gradient that the step found there, and its node; None if it had none)
        self.looked: list[tuple[Tensor, weakref.ref[Any] | None, Node | None]] = []

    def serve(self, args: Any, kwargs: Any) -> Any:
        """Run one replay."""
        with self.lock:
            return self.run(args, kwargs)

    def run(self, args: Any, kwargs: Any) -> Any:
        """Run one replay. The caller holds the lock."""
        if self.outside.drawn is not None and self.outside.drawn is not states():
            raise OtherInputs((*self.inputs, Same(states())), False)
        self._check_looked()
        self.outside.check()
        kwargs = {name: kwargs[name] for name in self.keywords if name in kwargs} | kwargs
        lazies = bool(lazy_links) and clock.lazies != self.settled
        written = self.written_inputs or self.input_gradients
        if lazies or written or not shared.isdisjoint(self.owners):
            self._settle(args, kwargs)
        tensors, values = self._check(args, kwargs)
        self.check_marks(tensors)
        self.check_memory(tensors)
        self._check_gradients(tensors)
        for place in self.held():
            of, old, had = self.gradients[place]
            own = self.successor(old, apart=True)
            self.gradients[place] = of, own, had
            self.renewed = [(own._link if link() is old else link, source)
                            for link, source in self.renewed]  # fmt: skip
        for place, store in enumerate(self.stores):
            shown = store.shows()
            if shown is not None and shown.raw is not store.tensor.raw:  # it has been parted
                own = self.successor(store.tensor, shown.raw)
                self.stores[place] = store._replace(tensor=own)
            elif store.source is None and getrefcount(store.tensor) > 2 + store.count(store.tensor):
                own = self.successor(store.tensor, apart=True)
                self.stores[place] = store._replace(tensor=own)
        nodes = [self.fresh(output, values) for output in self.outputs]
        given = [tensor.raw for tensor in tensors]
        try:
            access.during((self.touched, given), partial(self._launch, given, nodes, values))
        except BoundsError:  # it has run: what was there before, nobody is to find
            self._renew(tensors, nodes)
            raise
        self._renew(tensors, nodes)
        for node in (*self.derived, *(tensors[number].raw for number in self.derived_inputs)):
            history.lose(node)
        results = self.results(tensors, nodes)
        self.put_stores(tensors, results)
        for number in self.written_inputs:
            tensor = tensors[number]
            if views.base_of(tensor) is not None:  # it shows the copy that the replay has written
                with no_grad():
                    tensor._write(tensor.raw)
        return rebuild(self.result, iter(results).__next__, values)

    def _launch(self, given: Sequence[Node], nodes: Sequence[Node], values: dict[str, int]) -> None:
        """Run the replay on the device, and record what it has changed."""
        memories = [node.arg for node in (*given, *nodes)]
        self.replay.put(*(memory.memory for memory in memories))
        asked = poisoned or undecided or history.recorded
        written, read = self.touched(given) if asked else (frozenset(), frozenset())
        if poisoned:
            refuse(read)
            renew(written)
        GlobalCounters.program_calls += 1
        if isinstance(self.replay, CheckedReplay):
            self.replay.present = memories
        if undecided:  # what it reads and fills may be wrong already: tell the device
            filled = [*written, *(node.arg for node in nodes)]
            for name in {buffer.device for buffer in filled} & undecided:
                Device[name].follow(read, filled)
        try:
            self.replay.run(values)
        finally:  # also where an index is out of range, or Ctrl-C comes: what it writes is written
            if history.recorded:
                history.replayed(written)

    def touched(self, given: Sequence[Node]) -> access.Touched:
        """Memory that a replay with these inputs writes and reads."""
        memories = [node.arg for node in given]
        written = self.written.union(memories[number] for number in self.written_inputs)
        return written, self.read.union(memories)

    def fresh(self, output: Output, values: dict[str, int] | None = None) -> Node:
        """A node with new memory for an output."""
        (shape, dtype, device), form = output.known, output.form
        if values:
            shape = tuple(rebind(extent, values) for extent in shape)
        buffer = Buffer(device, dtype, form.size)
        buffer.handle = Device[device].allocate(buffer.nbytes)
        return own_node(BUFFER, dtype, shape, (), buffer, device, form)

    def results(self, tensors: Sequence[Tensor], nodes: Sequence[Node]) -> list[Tensor]:
        """The tensors of the result; nodes: of the outputs."""
        found: list[Tensor] = []
        for source in self.sources:
            found.append(self._find(source, tensors, nodes, found))
        return found

    def put_stores(self, tensors: Sequence[Tensor], results: Sequence[Tensor]) -> None:
        """Set the places at which the step leaves tensors. results: of this call."""
        for store in self.stores:
            new = store.source and self._find(store.source, tensors, (), results)
            if new is None:  # a leaf has no gradient yet, or that of the step
                new, new._grad = store.tensor, store.gradient
            store.put(new)

    def successor(
        self, tensor: Tensor, node: Node | None = None, apart: bool = False
    ) -> Tensor:
        """Another tensor with the same memory, or that of a node. apart: the former, which other
        code holds, gets a copy; others that the step left in that memory stay there.
        """
        own = Tensor._of(tensor.raw if node is None else node)
        own.stopped, own._requires_grad = tensor.stopped, tensor._requires_grad
        own._grad = tensor._grad
        _, owners = self.owners.get(id(own.raw), (None, {}))
        owners[id(own._link)] = own._link
        if apart:
            owners.pop(id(tensor._link), None)
            realization.separate(own.raw, owners)
        return own

    def _find(
        self, source: Source, tensors: Sequence[Tensor], nodes: Sequence[Node],
        results: Sequence[Tensor],
    ) -> Any:  # fmt: skip
        """The tensor that a source describes. results: those before it."""
        kind, what = source
        if kind in ("input", "kept"):
            return tensors[what] if kind == "input" else what
        if kind == "again":
            return results[what]
        if kind in ("gradient", "input's gradient"):
            return (what if kind == "gradient" else tensors[what])._grad
        found = Tensor._of(_node(source, tensors, nodes))
        if kind == "fresh":
            found.stopped = self.outputs[what].stopped
        return found

    def _settle(self, args: Any, kwargs: Any) -> None:
        """Realize everything that reads memory which is about to be overwritten."""
        now = clock.lazies
        tensors, _ = flatten((args, kwargs)) if self.written_inputs else ([], None)
        realization.realize(tensors)
        tensors = [tensors[number] for number in self.written_inputs]
        if lazy_links:
            written = self.written if self.shown else frozenset()
            written = written.union(tensor.raw.arg for tensor in tensors)
            realization.realize_before(written, self.read)
        if not self.written_inputs:  # these differ in each call
            self.settled = now
        for (_, gradient, _), node in self.input_gradients:
            gradient._point(node)
        written_inputs = [(tensor.raw, {id(tensor._link): tensor._link}) for tensor in tensors]
        for node, owners in (*self.owners.values(), *written_inputs):
            if id(node) in shared:
                realization.separate(node, owners)

    def _check(self, args: Any, kwargs: Any) -> tuple[list[Tensor], dict[str, int]]:
        """The input tensors, realized, and the values of variables; JitError if they do not fit."""
        values: dict[str, int] = {}
        tensors, structure = flatten((args, kwargs), values)
        if structure != self.structure:
            was, now = show(self.structure), show(structure)
            now = now if now != was else "other objects of the same kinds"
            raise JitError(
                f"{self.name} was captured with arguments {was} and is called with {now}, but the "
                "Python values and the number of tensors are fixed in a capture; pass tensors, "
                "capture another function for other objects, or call .reset()"
            )
        given = tuple(signature(tensor, values) for tensor in tensors)
        for number, (found, expected) in enumerate(zip(given, self.inputs, strict=True)):
            if not found.differs_in_extents(expected):
                raise JitError(
                    f"{self.name} was captured with input {number} of {expected} and is called "
                    f"with {found}; pass the same kind of input, or call .reset() first"
                )
        if given != self.inputs:
            raise OtherInputs(given, True)
        if any(tensor.raw.op is not Op.BUFFER for tensor in tensors):
            realization.realize(tensors)
        return tensors, values

    def note_marks(self, tensors: Sequence[Tensor], led_back: list[bool]) -> None:
        """Record to which inputs gradients would flow, if they may flow through results or writes.

        JitError if the step differentiates and an input was computed from leaves.
        """
        outputs = any(o.known.dtype.is_float and o.stopped is not True for o in self.outputs)
        passes = outputs or self.written_inputs or self.owners
        if self.outside.differentiates or (thread.gradients and passes):
            self.marks = [tensor._requires_grad for tensor in tensors]
            self.led_back = led_back
        if self.outside.differentiates:
            self.check_marks(tensors)

    def check_memory(self, tensors: Sequence[Tensor]) -> None:
        """JitError if the memory of a written input can also be reached in another way."""
        memories = [memory_of(tensor) for tensor in tensors]
        times = Counter(memories) if self.written_inputs else {}
        for number, memory in enumerate(memories):
            is_written = number in self.written_inputs
            twice = is_written and times[memory] > 1
            if twice or memory in self.written or (is_written and memory in self.read):
                how = "is passed twice" if twice else "the step also uses from outside"
                raise JitError(
                    f"{self.name} writes to input {number}, which {how} (or one is a view of the "
                    "other), and a replay could not tell them apart; pass a .clone() of one"
                )

    def check_marks(self, tensors: Sequence[Tensor]) -> None:
        """JitError, or OtherInputs, if gradients would flow to other inputs than in the capture."""
        if self.outside.differentiates:
            for tensor, mark in zip(tensors, self.marks, strict=True):
                self.outside.check_mark(tensor, mark)
        elif self.marks:
            marks = map(bool, (tensor._requires_grad for tensor in tensors))
            now = [*marks, *map(history.leads_back, tensors)]
            if now != [*map(bool, self.marks), *self.led_back]:
                raise OtherInputs((*self.inputs, *now), False)

    def _check_looked(self) -> None:
        """JitError if a tensor has another gradient than the one that the step has found."""
        for of, link in self._regraded():
            raise JitError(
                f"{self.name} looks at the gradient of a tensor of shape {shape_of(of.shape)}, "
                f"which {'had none' if link is None else 'was another'} in the capture, but a "
                "replay would not see the new one; call backward() inside the step, write with "
                ".grad.assign(), or call .reset()"
            )

    def _check_gradients(self, tensors: Sequence[Tensor]) -> None:
        """JitError if a gradient would have to be added to an existing one."""
        own = [(tensors[number], its, had) for (number, its, had), _ in self.input_gradients]
        known = {of.raw for of, *_ in self.gradients}
        if len({of.raw for of, *_ in own} - known) < len(own):
            raise JitError(
                f"{self.name}: an argument that gets a gradient is passed twice, or also used from "
                "outside, and a replay would not add the two gradients; pass a .clone()"
            )
        if any(not had and of._grad is not None for of, _, had in (*self.gradients, *own)):
            raise JitError(
                f"{self.name} was captured when its tensors had no gradient, but they have one "
                "now, to which a replay would not add; call zero_grad() before each call, or "
                "inside the step"
            )

    def held(self) -> list[int]:
        """Positions of gradients of parameters that other code holds, too: that gets a copy.

        Three references are ours.
        """
        return [place for place, (of, gradient, _) in enumerate(self.gradients)
                if gradient is not None
                and getrefcount(gradient) > 3 + (of._grad is gradient)]  # fmt: skip

    def stale(self) -> list[Tensor]:
        """Tensors with a gradient that they must not have, or with another than the step saw."""
        return [of for of, _ in self._regraded()] + [
            of for of, _, had in self.gradients if not had and of._grad is not None]  # fmt: skip

    def _regraded(self) -> list[tuple[Tensor, weakref.ref[Any] | None]]:
        """Tensors with another gradient than the one that the step has found, and the latter."""
        return [
            (of, link) for of, link, node in self.looked if (now := of._grad) is not None
            and (link is None or (now is not link() and now.raw is not node))
        ]  # fmt: skip

    def _renew(self, tensors: Sequence[Tensor], nodes: Sequence[Node]) -> None:
        """Point tensors that the step left behind to their newest values."""
        for link, source in self.renewed:
            if (holder := link()) is not None:
                holder._point(_node(source, tensors, nodes))
        for of, gradient, _ in self.gradients:
            of._grad = gradient
        self.give_gradients(tensors)

    def give_gradients(self, tensors: Sequence[Tensor]) -> None:
        """Set the gradients of inputs, in the same memory in each call.

        If other code still holds one of an earlier call, that gets a copy.
        """
        for (number, gradient, _), _ in self.input_gradients:
            tensors[number]._grad = given = Tensor._of(gradient.raw)
            given._requires_grad = False


def _node(source: Source, tensors: Sequence[Tensor], nodes: Sequence[Node]) -> Node:
    """The node of a source: an output, an input, or kept memory."""
    kind, what = source
    return nodes[what] if kind == "fresh" else what if kind == "kept memory" else tensors[what].raw
