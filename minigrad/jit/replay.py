"""The result of a capture, and its replay: the inputs' memory in, fresh memory out."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Sequence
from functools import partial
from sys import getrefcount
from typing import Any, NamedTuple

from minigrad.device import Buffer, Device, Replay, refuse, renew, spoiled, undecided
from minigrad.errors import BoundsError, JitError
from minigrad.failure import CheckedReplay
from minigrad.graph.node import Form, Node, Op, own_buffer
from minigrad.graph.variable import rebind
from minigrad.jit.outside import Outside
from minigrad.locks import new_lock
from minigrad.program import GlobalCounters
from minigrad.tensor import Tensor, no_grad, realization, saved_graphs, turns, views
from minigrad.tensor.live_tensors import clock, lazy_links, shared
from minigrad.tensor.modes import modes
from minigrad.tensor.pytree import Signature, flatten, rebuild, show, signature


class Output(NamedTuple):
    """A tensor of the result that gets a fresh buffer in every replay.

    stopped: as a tensor's: a replay keeps no history, so no gradient can flow through its results.
    """

    known: Signature
    form: Form
    stopped: bool | str


class Source(NamedTuple):
    """Where a tensor of the result comes from.

    kind and what: "fresh" and the number of an output, "input" and the number of an input,
    "input memory" and that number where another tensor shares the input's memory, "kept" and a
    tensor, "kept memory" and a node, "again" and the place in the result where it was before.
    """

    kind: str
    what: Any


class OtherInputs(Exception):
    """The inputs of a call have other extents than a capture's, or gradients would flow to others
    of them: they get a capture of their own. Its argument is what that is known by.
    """


class Capture:
    """What the second call left: the replay, and all that is needed to serve it."""

    def __init__(self, name: str, structure: Any, inputs: tuple[Signature, ...]) -> None:
        self.name, self.structure, self.inputs = name, structure, inputs
        self.keywords: Sequence[str] = ()  # in the order of the structure, which says nothing else
        self.lock = new_lock()
        self.settled = -1  # what the clock showed when lazy tensors were last looked at
        self.replay: Replay
        self.outside: Outside
        self.outputs: list[Output] = []
        self.sources: list[Source] = []  # of the result's tensors
        self.result: Any = None  # with TENSOR in the place of tensors
        self.written: frozenset[Buffer] = frozenset()
        self.read: frozenset[Buffer] = frozenset()  # what stays, and whose values it uses
        self.written_inputs: frozenset[int] = frozenset()
        self.written_leaves: frozenset[int] = frozenset()  # those of which no gradient knows
        self.owners: dict[int, set[int]] = {}  # id of a written node → tensors that stand for it
        self.written_nodes: list[Node] = []
        self.shown = True  # whether anybody knows what it writes, or a way back to it
        self.renewed: list[tuple[weakref.ref[Any], Source]] = []
        self.marks: list[bool | None] = []  # the inputs' requires_grad, where gradients may flow
        self.led_back: list[bool] = []  # whether they were computed from leaves
        self.derived: list[Node] = []  # what it writes that was computed from leaves
        self.derived_inputs: set[int] = set()  # the same of inputs
        self.gradients: list[tuple[Tensor, Tensor, bool]] = []  # of what, which, may there be one
        # the same of inputs, and their memory, which others have in turn and may write to
        self.input_gradients: list[tuple[int, Tensor, bool]] = []
        self.gradient_nodes: list[Node] = []
        self.forgotten: list[tuple[Tensor, bool]] = []  # who has none after it, may there be one

    def serve(self, args: Any, kwargs: Any) -> Any:
        """One replay."""
        with self.lock:
            return self.run(args, kwargs)

    def run(self, args: Any, kwargs: Any) -> Any:
        """One replay. The lock is held."""
        self.outside.check()
        kwargs = {name: kwargs[name] for name in self.keywords if name in kwargs} | kwargs
        lazies = bool(lazy_links) and clock.lazies != self.settled
        written = self.written_inputs or self.input_gradients
        if lazies or written or not shared.isdisjoint(self.owners):
            self._settle(args, kwargs)
        tensors, values = self._check(args, kwargs)
        self.check_memory(tensors)
        self.check_marks(tensors)
        self._check_gradients(tensors)
        for place in self.held():  # who then gets a copy
            of, gradient, had = self.gradients[place]
            own = Tensor._of(gradient.raw)
            own._requires_grad = False
            self.gradients[place] = of, own, had
            self.renewed = [(own._link if link is gradient._link else link, source)
                            for link, source in self.renewed]  # fmt: skip
            realization.separate(own.raw, {id(own._link)})
        nodes = [self.fresh(output, values) for output in self.outputs]
        given = [tensor.raw for tensor in tensors]
        try:
            turns.during((self.touched, given), partial(self._launch, given, nodes, values))
        except BoundsError:  # it has run: what was there before, nobody is to find
            self._renew(tensors, nodes)
            raise
        self._renew(tensors, nodes)
        for node in (*self.derived, *(tensors[number].raw for number in self.derived_inputs)):
            saved_graphs.lose(node)
        results = self.results(tensors, nodes)
        for number in self.written_inputs:
            tensor = tensors[number]
            if views.base_of(tensor) is not None:  # the replay has written the copy that it shows
                with no_grad():
                    tensor._write(tensor.raw)
        return rebuild(self.result, iter(results).__next__, values)

    def _launch(
        self, given: Sequence[Node], nodes: Sequence[Node], values: dict[str, int]
    ) -> None:
        """Let the device run it, and note what that has changed."""
        memories = [node.arg for node in (*given, *nodes)]
        self.replay.put(*(memory.memory for memory in memories))
        asked = spoiled or undecided or saved_graphs.recorded
        written, read = self.touched(given) if asked else (frozenset(), frozenset())
        if spoiled:
            refuse(read)
        GlobalCounters.program_calls += 1
        if spoiled:
            renew(written)
        if isinstance(self.replay, CheckedReplay):
            self.replay.present = memories
        if undecided:  # what it reads and fills may be wrong already: the device is told
            filled = [*written, *(node.arg for node in nodes)]
            for name in {buffer.device for buffer in filled} & undecided:
                Device[name].follow(read, filled)
        try:
            self.replay.run(values)
        finally:  # also where an index is out of range, or Ctrl-C comes: what it writes is written
            if saved_graphs.recorded:
                saved_graphs.replayed(written)

    def touched(self, given: Sequence[Node]) -> turns.Touched:
        """Memory that a replay writes and reads, which is given these nodes."""
        memories = [node.arg for node in given]
        written = self.written.union(memories[number] for number in self.written_inputs)
        return written, self.read.union(memories)

    def fresh(self, output: Output, values: dict[str, int] | None = None) -> Node:
        """A node with memory for an output."""
        (shape, dtype, device), form = output.known, output.form
        if values:
            shape = tuple(rebind(extent, values) for extent in shape)
        buffer = Buffer(device, dtype, form.size)
        buffer.handle = Device[device].allocate(buffer.nbytes)
        return own_buffer(buffer, dtype, shape, device, form)

    def results(self, tensors: Sequence[Tensor], nodes: Sequence[Node]) -> list[Tensor]:
        """The tensors of the result; nodes: of the outputs."""
        found: list[Tensor] = []
        for kind, what in self.sources:
            if kind == "again":
                found.append(found[what])
            elif kind == "input":
                found.append(tensors[what])
            elif kind == "kept":
                found.append(what)
            elif kind == "fresh":  # another may stand for the node: a result given twice
                found.append(Tensor._of(nodes[what]))
                found[-1].stopped = self.outputs[what].stopped
            else:
                found.append(Tensor._of(tensors[what].raw if kind == "input memory" else what))
        return found

    def _settle(self, args: Any, kwargs: Any) -> None:
        """Let everybody have its value who reads what is about to be overwritten."""
        tensors: list[Tensor] = []
        now = clock.lazies
        if self.written_inputs:
            flatten((args, kwargs), tensors, {})
            realization.realize(tensors)
            tensors = [t for n, t in enumerate(tensors) if n in self.written_inputs]
        if lazy_links:
            written = self.written if self.shown else frozenset()
            written = written.union(tensor.raw.arg for tensor in tensors)
            realization.settle_before(written, self.read)
        if not self.written_inputs:  # for these it is another matter each time
            self.settled = now
        for (_, gradient, _), node in zip(self.input_gradients, self.gradient_nodes, strict=True):
            gradient._point(node)
        held = [(node, self.owners[id(node)]) for node in self.written_nodes]
        held += [(tensor.raw, {id(tensor._link)}) for tensor in tensors]
        for node, owners in held:
            if id(node) in shared:
                realization.separate(node, owners)

    def _check(self, args: Any, kwargs: Any) -> tuple[list[Tensor], dict[str, int]]:
        """The input tensors, realized, and the variables' values; or JitError."""
        tensors: list[Tensor] = []
        values: dict[str, int] = {}
        structure = flatten((args, kwargs), tensors, values)
        if structure != self.structure:
            raise JitError(
                f"{self.name} was captured with arguments {show(self.structure)} and is called "
                f"with {show(structure)}: Python values and the number of tensors are fixed in a "
                "capture; pass tensors, or .reset()"
            )
        given = tuple(signature(tensor, values) for tensor in tensors)
        for number, (found, expected) in enumerate(zip(given, self.inputs, strict=True)):
            if not found.differs_in_extents(expected):
                raise JitError(
                    f"{self.name} was captured with input {number} of {expected} and is called "
                    f"with {found}; give it that, or .reset() before another kind of input"
                )
        if given != self.inputs:
            raise OtherInputs(given)
        if any(tensor.raw.op is not Op.BUFFER for tensor in tensors):
            realization.realize(tensors)
        return tensors, values

    def note_marks(self, tensors: Sequence[Tensor], led_back: list[bool]) -> None:
        """Note to which inputs gradients would flow, if they may through what it gives or writes;
        JitError where the step differentiates, and one was computed from leaves.
        """
        outputs = any(o.known.dtype.is_float and o.stopped is not True for o in self.outputs)
        passes = outputs or self.written_inputs or self.owners
        if self.outside.differentiates or (modes.gradients and passes):
            self.marks = [tensor._requires_grad for tensor in tensors]
            self.led_back = led_back
        if self.outside.differentiates:
            self.check_marks(tensors)

    def check_memory(self, tensors: Sequence[Tensor]) -> None:
        """JitError where the memory of an input that is written has another way to it, too;
        GradientError where it is a leaf's, and was none in the capture.
        """
        memories = [memory_of(tensor) for tensor in tensors]
        for number, memory in enumerate(memories):
            if memory in self.written or (number in self.written_inputs and memory in self.read):
                raise JitError(
                    f"{self.name} writes to a tensor that is given as input {number} and that it "
                    "also uses without being given it (or one is a view of the other): a replay "
                    "could not tell the two apart; pass a .clone(), or do not pass it"
                )
        times = Counter(memories) if self.written_inputs else {}
        for number in self.written_inputs:
            if number not in self.written_leaves:
                tensors[number]._check_no_leaf()
            if times[memories[number]] > 1:
                raise JitError(
                    f"{self.name} writes to input {number}, which is given twice in one call, "
                    "itself or as a view: a replay could not tell the two apart; pass a .clone() "
                    "of one"
                )

    def check_marks(self, tensors: Sequence[Tensor]) -> None:
        """JitError, or OtherInputs, where gradients would flow to others than in the capture."""
        if self.outside.differentiates:
            for tensor, mark in zip(tensors, self.marks, strict=True):
                self.outside.check_mark(tensor, mark)
        elif self.marks:
            marks = map(bool, (tensor._requires_grad for tensor in tensors))
            now = [*marks, *map(saved_graphs.leads_back, tensors)]
            if now != [*map(bool, self.marks), *self.led_back]:
                raise OtherInputs((*self.inputs, *now))

    def _check_gradients(self, tensors: Sequence[Tensor]) -> None:
        """JitError where a gradient would be added to."""
        given = [tensors[number].raw for number, *_ in self.input_gradients]
        if len({*given}.difference(of.raw for of, *_ in self.gradients)) < len(given):
            raise JitError(
                f"{self.name} is given a tensor that gets a gradient twice, or that it also uses "
                "without being given it: a replay would not add the two; pass a .clone()"
            )
        new = [of for of, _, had in self.gradients if not had]
        new += [of for of, had in self.forgotten if not had]
        new += [tensors[number] for number, *_, had in self.input_gradients if not had]
        if any(of.grad is not None for of in new):
            raise JitError(
                f"{self.name} was captured when its tensors had no gradient, and now they have: a "
                "replay would not add to it; call zero_grad() before each call, or inside the step"
            )

    def held(self) -> list[int]:
        """Which gradients of parameters somebody has kept, besides these and three who look."""
        return [place for place, (of, gradient, _) in enumerate(self.gradients)
                if getrefcount(gradient) > 3 + (of._grad is gradient)]  # fmt: skip

    def stale(self) -> list[Tensor]:
        """What has a gradient that the step forgets, or would add to."""
        return [of for of, _ in self.forgotten if of._grad is not None]

    def _renew(self, tensors: Sequence[Tensor], nodes: Sequence[Node]) -> None:
        """Point what the step left behind to its newest value."""
        for link, source in self.renewed:
            holder = link()
            if holder is not None:
                fresh = source.kind == "fresh"
                holder._point(nodes[source.what] if fresh else tensors[source.what].raw)
        for of, gradient, _ in self.gradients:
            of._grad = gradient
        for of, _ in self.forgotten:
            of._grad = None
        self.give_gradients(tensors)

    def give_gradients(self, tensors: Sequence[Tensor]) -> None:
        """Give inputs their gradients, which are the same memory in each call: where somebody still
        has one from before, he then gets a copy.
        """
        for number, gradient, _ in self.input_gradients:
            tensors[number]._grad = given = Tensor._of(gradient.raw)
            given._requires_grad = False


def memory_of(tensor: Tensor) -> Buffer:
    """The memory of a realized tensor; for a view that of its base, where that has some."""
    base = views.base_of(tensor)
    found: Buffer = (tensor if base is None or base.raw.op is not Op.BUFFER else base).raw.arg
    return found
