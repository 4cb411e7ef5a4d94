"""What a captured step did: its result, what it must not do, and what it left behind.

A `Snapshot` records the tensors that exist before the step. So afterwards, the tensors that the
step created, wrote, or gave gradients to can be distinguished from the others. `sort` turns the
recording into a replay: which buffers are inputs, outputs, or stay. The step is captured with
copies of its inputs, so that no other tensor can be mistaken for one of them.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Collection, Sequence

from minigrad.device import Buffer, Call, Device
from minigrad.errors import JitError
from minigrad.failure import CheckedReplay
from minigrad.graph import build
from minigrad.graph.node import Node, Op, depending, grouped, is_symbolic, topological
from minigrad.graph.shapes import numel
from minigrad.graph.sharding import meshes
from minigrad.graph.variable import is_own
from minigrad.jit.outside import Store
from minigrad.jit.replay import Capture, Output, Renewed, Source
from minigrad.program import recording
from minigrad.tensor import Tensor, history, realization, views
from minigrad.tensor.live_tensors import (
    REPLAYED,
    Holder,
    all_holders,
    holders,
    lazy_holders,
    of_this_thread,
)
from minigrad.tensor.modes import no_grad
from minigrad.tensor.observed import Observed
from minigrad.tensor.plan import described, pending
from minigrad.tensor.pytree import signature


class Snapshot:
    """The tensors that exist now, and which of them have a gradient."""

    def __init__(self) -> None:
        # by the id of their weak reference, which is kept so that the id is not reused
        self._links = {id(holder._link): holder._link for holder in all_holders()}
        self._grads: dict[int, tuple[object, Node]] = {
            number: (holder._grad._link, holder._grad.raw)
            for number, link in self._links.items()
            if isinstance(holder := link(), Tensor) and holder._grad is not None
        }

    def knows(self, holder: Holder) -> bool:
        """Whether the tensor existed then."""
        return id(holder._link) in self._links

    def gradient_of(self, holder: Holder) -> Node | None:
        """The node of its gradient then."""
        found = self._grads.get(id(holder._link))
        return None if found is None else found[1]

    def lazy_since(self) -> list[Holder]:
        """Lazy tensors that this thread has created since, and that depend on memory (`.grad`).
        """
        lazy = of_this_thread(lazy_holders())
        order = topological(holder.raw for holder in lazy)
        reads = depending(order, (node for node in order if node.op is Op.BUFFER))
        reads -= described(order)
        return [holder for holder in lazy if holder.raw in reads and not self.knows(holder)]

    def tensors_since(self) -> list[Tensor]:
        """Tensors that this thread has created since, and that somebody holds."""
        return [holder for holder in of_this_thread(all_holders())
                if isinstance(holder, Tensor) and not self.knows(holder)]  # fmt: skip

    def gradients(self, new: bool = True) -> list[tuple[Tensor, Tensor]]:
        """Tensors of then with a new `.grad`, set by this thread, and that gradient.

        Or those with the same one as then.
        """
        found = [(holder, holder._grad, self._grads.get(number, (None,))[0])
                 for number, link in self._links.items()
                 if isinstance(holder := link(), Tensor) and holder._grad is not None]  # fmt: skip
        return [(of, its) for of, its, then in found if new is (its._link is not then)
                and (not new or of_this_thread([its]))]  # fmt: skip


class HostWatch:
    """Refuses what a replay cannot repeat: the host reading or writing buffers."""

    def __init__(self, name: str, before: Snapshot) -> None:
        self.name, self.before = name, before
        self.fresh: weakref.WeakSet[Buffer] = weakref.WeakSet()

    def reads(self, buffer: Buffer) -> None:
        """`.item()`, `.numpy()`, a copy to another device: an error unless the value is the host's.

        That is the case for data that no program has written since, such as a list of indices.
        """
        calls = recording.calls or ()
        written = any(buffer in call.made or buffer in call.written for call in calls)
        if buffer in self.fresh and not written:
            return
        raise JitError(
            f"{self.name} reads a value during the step (.item(), .numpy(), .tolist(), print, a "
            "branch on a tensor, a size as in x[mask], nonzero or bincount, a scheduler's step, or "
            "a copy to another device), but a replay would not read it again; return the tensor "
            "and read it outside, or choose with .where()"
        )

    def writes(self, buffer: Buffer) -> None:
        """New tensors made of constants are recorded; writing to an existing buffer is an error."""
        if buffer.has_values:
            raise JitError(
                f"{self.name} writes host data into an existing tensor (set_data, load_state_dict, "
                "manual_seed), but a replay would not write it again; write it outside, or pass it "
                "as a Tensor and write with .assign()"
            )
        self.fresh.add(buffer)

    def makes(self, buffer: Buffer) -> None:
        """New tensors of zeros are constants, too."""
        self.fresh.add(buffer)

    def replaces(self, holder: Holder) -> None:
        """An in-place write to a tensor without memory: an error, as a replay could not do it."""
        if self.before.knows(holder):
            raise JitError(
                f"{self.name} writes to a tensor of shape {holder.raw.shape} that has no memory "
                "yet; call .realize() on it before the step is captured"
            )

    def part(self, results: Sequence[Tensor], given: Sequence[Tensor]) -> None:
        """Copy tensors that are data of the host, and gradients that no program computes.

        Code outside may have them, and write to them, but a replay would not fill them again. Also
        other tensors in memory of the results, inputs or gradients (`self.last = x.detach()`),
        which is new in each replay.
        """
        new = [grad for _, grad in self.before.gradients() if not self.before.knows(grad)]
        realization.realize(new)
        made = {memory for call in recording.calls or () for memory in call.made}
        lent = [grad for grad in new if grad.raw.arg not in made]
        for result in results:  # what it was a view of is gone then, if nobody else has it
            if not self.before.knows(result):
                views.leave(result)
        apart = {*map(id, results)}
        replaced = {one.raw.arg for one in (*results, *given) if one.raw.op is Op.BUFFER}
        for one in self.before.tensors_since():
            memories = [node.arg for node in topological([one.raw]) if node.op is Op.BUFFER]
            shares = not (id(one) in apart or replaced.isdisjoint(memories))
            if shares or one.raw.arg in self.fresh:
                lent.append(one)
            if any(views.base_of(one) is other for other in (*given, *results)):
                views.leave(one)
        for tensor in lent:
            tensor._own_memory()
            views.leave(tensor)

    def borrows(self, holder: Holder) -> bool:
        """For a tensor that the step created: whether its memory may not be written.

        An older tensor has the same memory, perhaps with a write that waits, or it holds data of
        the host, which a replay reads without filling it again.
        """
        known, node = self.before.knows, holder.raw
        link = pending.get(id(node))
        write = None if link is None else link()
        sharers = [*holders(node), *([] if write is None else holders(write))]
        return not known(holder) and (
            any(map(known, sharers)) or (node.op is Op.BUFFER and node.arg in self.fresh)
        )


def copies(name: str, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Inputs with their own memory, so that nothing else can be mistaken for them.

    Leaves that need a gradient are not copied.
    """
    given: list[Tensor] = []
    for number, tensor in enumerate(tensors):
        if tensor.requires_grad:
            if any(tensor.raw is other.raw for other in given):
                raise JitError(
                    f"{name}: the same tensor, which requires a gradient, is passed twice (again "
                    f"as input {number}); pass it once"
                )
            given.append(tensor)
            continue
        copy = tensor._new(_copy_of(tensor))
        copy.made, copy.stopped = tensor.made, tensor.stopped
        copy._requires_grad = tensor._requires_grad
        realization.realize([copy])  # one by one: two copies of one tensor would be the same node
        given.append(copy)
    return given


def _copy_of(tensor: Tensor) -> Node:
    """A copy, of memory without a program: one for all shapes would pad them."""
    node = tensor.raw
    plain = node.op is Op.BUFFER and node.device not in meshes and not is_symbolic(node.shape)
    if not plain or history.leads_back(tensor) or history.valid([node]):  # gradients may flow
        return build.copy_of(node)
    memory = Buffer(node.device, node.dtype, numel(node.shape))
    memory.join([(node.arg, 0, memory.size)])
    return build.buffer(memory, node.dtype, node.shape, node.device)


class Recorded:
    """A step that is recorded: its inputs, the copies of them that it gets, and its calls.

    before: what was there before it. places: memory of a copy → the number of the input.
    """

    def __init__(
        self, capture: Capture, tensors: Sequence[Tensor], given: Sequence[Tensor]
    ) -> None:
        self.capture, self.tensors, self.given = capture, tensors, given
        self.before = Snapshot()
        self.places = {tensor.raw.arg: number for number, tensor in enumerate(given)}
        self.calls: Sequence[Call] = ()

    def copy_back(self) -> None:
        """Copy back the inputs that the step updated, even if it then failed."""
        tensors, given = self.tensors, self.given
        memory = {memory for call in self.calls for memory in call.written}
        changed = [number for number, clone in enumerate(given) if clone is not tensors[number]
                   and (clone.raw.op is not Op.BUFFER or clone.raw.arg in memory)]  # fmt: skip
        for number in changed:
            with contextlib.nullcontext() if history.has_history(given[number].raw) else no_grad():
                tensors[number].assign(given[number])
        realization.realize([tensors[number] for number in changed])

    def settle_inputs(self) -> None:
        """Note what memory the step reads and writes, and copy back the inputs it has written."""
        capture, places = self.capture, self.places
        made = {memory for call in self.calls for memory in call.made}
        written = {memory for call in self.calls for memory in call.written} - made
        capture.read = frozenset(_read_first(self.calls) - set(places))
        capture.written = frozenset((made | written) - set(places))
        capture.written_inputs = frozenset(places[memory] for memory in written if memory in places)
        capture.derived_inputs = {
            number for number in capture.written_inputs
            if history.has_history(self.given[number].raw)
        }  # fmt: skip
        capture.check_memory(self.tensors)
        self.copy_back()
        for number, (own, clone) in enumerate(zip(self.tensors, self.given, strict=True)):
            if own is clone and not own._requires_grad:  # only leaves are not copied
                raise JitError(
                    f"{capture.name} freezes input {number} (requires_grad = False), but a replay "
                    "would not do it again; freeze it before the call"
                )

    def take_gradients(self, noted: Observed) -> None:
        """Record the gradients that the step set at its inputs and elsewhere, or removed.

        JitError where one was added to one from before that the step has not written.
        """
        capture, before, tensors = self.capture, self.before, self.tensors
        numbers = {id(clone): number for number, clone in enumerate(self.given)}
        capture.gradients = [
            (of, None, self._had(of, overwrote)) for link, overwrote in noted.graded.values()
            if (of := link()) is not None and of._grad is None and before.knows(of)
            and id(of) not in numbers
        ]  # fmt: skip
        capture.looked = [
            (of, None, None) for number, link in noted.without.items()
            if (of := link()) is not None and of._grad is None and before.knows(of)
            and number not in {*noted.graded, *numbers}
        ]  # fmt: skip
        for of, gradient in before.gradients():
            old = before.gradient_of(of)
            _, overwrote = noted.graded.get(id(of), (None, old is not None))
            had = self._had(of, overwrote)
            number = numbers.get(id(of), -1)
            if number < 0:
                capture.gradients.append((of, gradient, had))
                continue
            if of is not tensors[number] and tensors[number]._grad is not None:
                raise JitError(
                    f"{capture.name} adds to the existing gradient of input {number}; set its "
                    ".grad to None before the call"
                )
            capture.input_gradients.append(((number, gradient, had), gradient.raw))
            if gradient.raw.op is Op.BUFFER:  # or a constant
                gradient.raw.arg.owner = False

    def _had(self, of: Tensor, overwrote: bool) -> bool:
        """Whether a tensor, whose gradient the step overwrote or added to, may have one before.

        JitError if it was added to one that the step reads, but has not written.
        """
        old, capture = self.before.gradient_of(of), self.capture
        if old is not None and not overwrote and old.arg not in capture.written:
            # what was added to, and then removed, may never have been computed
            kept = of._grad is not None and of._grad.raw is old
            if kept or old.op is not Op.BUFFER or old.arg in capture.read:
                raise JitError(
                    f"{capture.name} adds a gradient, of shape {of.raw.shape}, to that of an "
                    "earlier call, but a replay would always add to the same one; call zero_grad() "
                    "inside the step; to add up those of several batches, loop over them inside it"
                )
        return old is not None or overwrote

    def sort(self, results: Sequence[Tensor], values: dict[str, int]) -> list[Tensor]:
        """Sort the buffers into inputs, outputs and kept ones; create the replay.

        Returns the result's tensors for the caller of this call.
        """
        capture, calls, tensors = self.capture, self.calls, self.tensors
        fresh = self._sources(results, values)
        devices = {memory.device for call in calls for memory in call.buffers} or {Device.DEFAULT}
        if len(devices) > 1:
            raise JitError(
                f"{capture.name} runs on several devices ({', '.join(sorted(devices))}); capture "
                "the part of each device separately"
            )
        arguments = [*self.places, *(node.arg for node in fresh)]
        capture.replay = Device[devices.pop()].compose(calls, arguments)
        if any(call.checks for call in calls):
            capture.replay = CheckedReplay(capture.replay, calls, arguments)
        variables = {name for call in calls for name in call.variables if not is_own(name)}
        if names := variables - set(values):
            raise JitError(
                f"{capture.name} uses the bound variable {', '.join(sorted(names))}, but no "
                "argument has it; pass the bound integer, or a tensor of that size"
            )
        capture.written -= {node.arg for node in fresh}
        _note_owners(capture)
        capture.give_gradients(tensors)
        returned = capture.results(tensors, fresh)
        for copy, tensor, source in zip(returned, results, capture.sources, strict=True):
            if source.kind == "fresh":
                copy.stopped, copy._requires_grad = tensor.stopped, tensor._requires_grad
        return returned

    def _sources(self, results: Sequence[Tensor], values: dict[str, int]) -> list[Node]:
        """Record where each tensor of the result comes from; returns the nodes of the outputs."""
        capture = self.capture
        made = {memory for call in self.calls for memory in call.made}
        fresh: dict[Node, int] = {}
        outputs: set[Buffer] = set()
        first: dict[int, int] = {}  # id of a tensor → its first position in the result
        for place, tensor in enumerate(results):
            node, memory = tensor.raw, tensor.raw.arg
            if first.setdefault(id(tensor), place) != place:
                source = Source("again", first[id(tensor)])
            elif memory in self.places:
                number = self.places[memory]
                source = Source("input" if tensor is self.given[number] else "input memory", number)
            elif self.before.knows(tensor):
                source = Source("kept", tensor)
            elif memory not in made:
                if not any(map(self.before.knows, holders(node))):
                    raise JitError(
                        f"{capture.name} returns a tensor that another thread has computed, which "
                        "a replay would not do again; compute it in the step's own thread"
                    )
                source = Source("kept memory", node)
            else:
                if node not in fresh:
                    if memory in outputs:
                        raise JitError(f"{capture.name} returns one piece of memory as two shapes")
                    outputs.add(memory)
                    fresh[node] = len(capture.outputs)
                    known, stopped = signature(tensor, dict(values)), tensor.stopped
                    if history.has_history(node):
                        stopped = stopped or REPLAYED
                    capture.outputs.append(Output(known, known.form, stopped))
                source = Source("fresh", fresh[node])
            capture.sources.append(source)
        return [*fresh]

    def take_stores(self, stores: Sequence[Store], links: dict[int, Renewed]) -> None:
        """Record what the step stores at places, and where a replay takes it from.

        links: by id, tensors that somebody keeps, in containers, say, and their sources. Those at
        places, and gradients, have successors from now on: a container may hold them, too, and is
        to find new values in them.
        """
        capture, results = self.capture, self.capture.sources
        sources = {key: source for key, (_, source) in links.items()}
        for (number, gradient, _), _ in capture.input_gradients:
            sources.setdefault(id(gradient), Source("input's gradient", number))
        for place, (of, gradient, had) in enumerate(capture.gradients):
            sources.setdefault(id(gradient), Source("gradient", of))
            if gradient is not None and not self.before.knows(gradient):
                of._grad = own = capture.successor(gradient)
                capture.gradients[place] = of, own, had
                if id(gradient) in links:
                    links[id(own)] = own._link, links[id(gradient)][1]
        for store in stores:
            source, its = sources.get(id(store.tensor)), store.tensor._grad
            new = capture.successor(store.tensor) if source is None else None
            old = [one._link for one in holders(store.tensor.raw) if self.before.knows(one)]
            if source is None and old:
                store = store._replace(shows=old[0])
            if source is not None and source.kind == "fresh":  # it is a result
                source = Source("again", results.index(source))
            capture.stores.append(store._replace(tensor=new, source=source, gradient=its))
        capture.renewed = [*links.values()]

    def left_behind(self, results: Sequence[Tensor]) -> list[Renewed]:
        """Tensors of the call that its caller may keep, and their sources in a replay.

        Weak references: tensors that nobody keeps are gone when the lists are empty.
        """
        pairs = zip(results, self.capture.sources, strict=True)
        links = [(tensor._link, source) for tensor, source in pairs if source.kind == "fresh"]
        links += [
            (clone._link, Source("input", number)) for number, clone in enumerate(self.given)
            if clone is not self.tensors[number]
        ]  # fmt: skip
        return links + [
            (one._link, Source("kept memory", one.raw)) for one in self.before.tensors_since()
            if all(one is not result for result in results)
            and all(node.op is not Op.BUFFER for node in topological([one.raw]))
        ]

    def claim(self, known: set[Buffer]) -> bool:
        """Record which tensor owns the memory that the step reads and writes besides `known` one.

        False if several older tensors stand for the same memory, so that the owner is uncertain.
        """
        certain, leaves = True, self._leaves(known)
        read = {sharers[0].raw for sharers in leaves}
        pairs = self.before.gradients(new=False)
        self.capture.looked += [(of, its._link, its.raw) for of, its in pairs if its.raw in read]
        for sharers in leaves:
            self.capture.outside.mourn(sharers)
            memory = sharers[0].raw.arg
            if memory.owner is not False:
                old = [one for one in sharers if self.before.knows(one) and one._origin is None]
                memory.owner = (old or sharers)[0]._link
                certain = certain and len(old) < 2
        return certain

    def _leaves(self, known: set[Buffer]) -> Collection[Sequence[Holder]]:
        """The tensors that calls read besides `known` memory, those of one BUFFER together.

        JitError if a BUFFER has none any more. The step has then put another tensor in place of one
        that it read (`self.x = self.x + 1`, or a gradient added to that of the step before): a
        replay would read the old one forever.
        """
        new = known.union(*(call.made for call in self.calls))
        reads = dict.fromkeys(b for call in self.calls for b in call.buffers if b not in new)
        found = grouped((holder.raw, holder) for holder in all_holders()
                        if holder.raw.op is Op.BUFFER and holder.raw.arg in reads)
        lazy = topological([holder.raw for holder in lazy_holders()])
        held = {node.arg for node in (*found, *lazy) if node.op is Op.BUFFER}
        held.update(*(call.written for call in self.calls))
        for buffer in reads:
            if buffer not in held:
                raise JitError(
                    f"{self.capture.name} reads a tensor of {buffer.size} × {buffer.dtype.name} "
                    "and replaces it with another (gradients that add up without zero_grad(), or "
                    "self.x = self.x + 1), but a replay would always read the old one; call "
                    "zero_grad() inside the step, or write with .assign()"
                )
        return found.values()


def _note_owners(capture: Capture) -> None:
    """Record which tensors own the memory that the step writes."""
    for holder in all_holders():
        if holder.raw.op is Op.BUFFER and holder.raw.arg in capture.written:
            if id(holder.raw) not in capture.owners:
                capture.owners[id(holder.raw)] = holder.raw, {}
                holder.raw.form = None  # as an input it takes the general path
                if history.has_history(holder.raw):
                    capture.derived.append(holder.raw)
            capture.owners[id(holder.raw)][1][id(holder._link)] = holder._link
    graphs = [one.node for one in [*history.recorded.values()]]
    order = topological([*(holder.raw for holder in lazy_holders()), *graphs])
    reads = any(node.op is Op.BUFFER and node.arg in capture.written for node in order)
    capture.shown = reads or bool(capture.owners)


def _read_first(calls: Sequence[Call]) -> set[Buffer]:
    """Buffers that the calls read before they write them."""
    found: set[Buffer] = set()
    filled: set[Buffer] = set()
    for call in calls:
        found |= call.read - filled
        filled.update(call.made, call.written)
    return found
