"""From a recording to a replay: which buffers are inputs, outputs, and what stays.

The step was captured with copies of its inputs, so that nothing else can be taken for them.
"""

from __future__ import annotations

from collections.abc import Sequence

from minigrad.device import Buffer, Call, Device
from minigrad.errors import JitError
from minigrad.failure import CheckedReplay
from minigrad.graph.node import Node, Op, form_of
from minigrad.graph.variable import is_own
from minigrad.jit.capture import Snapshot
from minigrad.jit.replay import (
    Capture,
    Output,
    Source,
    memory_of,
    written_both_ways,
    written_twice,
)
from minigrad.tensor import Tensor, realization, saved_graphs
from minigrad.tensor.live_tensors import Holder, all_holders
from minigrad.tensor.modes import no_grad
from minigrad.tensor.pytree import signature


def copies(name: str, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Inputs with memory of their own, so that nothing else can be taken for them.

    Leaves that want a gradient stay what they are.
    """
    given: list[Tensor] = []
    for number, tensor in enumerate(tensors):
        if tensor.requires_grad:
            if any(tensor.raw is other.raw for other in given):
                raise JitError(
                    f"{name} is given a tensor that requires a gradient twice (input "
                    f"{number}): pass it once"
                )
            given.append(tensor)
            continue
        copy = tensor.clone()
        copy.made, copy.stopped = tensor.made, tensor.stopped
        copy._requires_grad = tensor._requires_grad
        realization.realize([copy])  # one by one: two copies of one tensor would be one node
        given.append(copy)
    return given


def take_gradients(
    capture: Capture, before: Snapshot,
    tensors: Sequence[Tensor], given: Sequence[Tensor],
) -> None:  # fmt: skip
    """Note the gradients that the step left at its inputs and elsewhere."""
    places = {id(clone): number for number, clone in enumerate(given)}
    for of, gradient in before.new_gradients():
        number, had = places.get(id(of), -1), before.had_gradient(of)
        if number < 0 or had:
            capture.gradients.append((of, gradient, had))
            continue
        input = tensors[number]
        if of is not input and input.grad is not None:
            raise JitError(
                f"{capture.name} adds to the gradient of input {number}: "
                "set its .grad to None before the call"
            )
        leaf = input._link if of is input else None
        capture.input_gradients.append((number, gradient, leaf))
        capture.give_gradients(tensors)


def sort(
    capture: Capture, calls: Sequence[Call], places: dict[Buffer, int],
    before: Snapshot, results: Sequence[Tensor], values: dict[str, int],
    tensors: Sequence[Tensor], given: Sequence[Tensor],
) -> list[Tensor]:  # fmt: skip
    """Sort the buffers of a recording into inputs, outputs and what stays; make the replay.

    Gives the tensors of the result for the caller of this call.
    """
    made = {memory for call in calls for memory in call.made}
    written = {memory for call in calls for memory in call.written} - made
    used = {memory for call in calls for memory in call.buffers}
    _copy_back(capture, places, written, used, tensors, given)
    arguments = list(places)
    fresh: dict[Node, int] = {}
    outputs: dict[Buffer, Node] = {}
    returned: list[Tensor] = []
    first: dict[int, int] = {}  # id of a tensor → its first place in the result
    for place, tensor in enumerate(results):
        node, memory = tensor.raw, tensor.raw.arg
        if first.setdefault(id(tensor), place) != place:
            source = Source("again", first[id(tensor)])
            returned.append(returned[source.what])
        elif memory in places:
            number = places[memory]
            same = tensor is given[number]
            source = Source("input" if same else "input memory", number)
            returned.append(tensors[number] if same else Tensor._of(tensors[number].raw))
        elif before.knows(tensor) or memory not in made:
            known = before.knows(tensor)
            source = Source("kept", tensor) if known else Source("kept memory", node)
            returned.append(tensor if known else Tensor._of(node))
        else:
            if node not in fresh:
                if memory in outputs:
                    raise JitError(f"{capture.name} returns one piece of memory as two shapes")
                outputs[memory] = node
                fresh[node] = len(capture.outputs)
                capture.outputs.append(_output(tensor, values))
                arguments.append(memory)
            source = Source("fresh", fresh[node])
            copy = Tensor._of(node)
            copy.stopped, copy._requires_grad = tensor.stopped, tensor._requires_grad
            returned.append(copy)
        capture.sources.append(source)
    devices = {memory.device for memory in used} or {Device.DEFAULT}
    if len(devices) > 1:
        raise JitError(
            f"{capture.name} runs on several devices ({', '.join(sorted(devices))}): "
            "capture the part of each device on its own"
        )
    capture.replay = Device[devices.pop()].compose(calls, arguments)
    if any(call.checks for call in calls):
        capture.replay = CheckedReplay(capture.replay, calls, arguments)
    capture.read = frozenset(_read_first(calls) - set(arguments))
    variables = {name for call in calls for name in call.variables if not is_own(name)}
    names = variables - set(values)
    if names:
        raise JitError(
            f"{capture.name} uses the bound variable {', '.join(sorted(names))}, "
            "which no argument carries: pass the bound integer, or a tensor of that size"
        )
    capture.written = frozenset((made | written) - set(arguments))
    _note_owners(capture)
    return returned


def _note_owners(capture: Capture) -> None:
    """Who holds the memory that the step writes to."""
    for holder in all_holders():
        if holder.raw.op is Op.BUFFER and holder.raw.arg in capture.written:
            if id(holder.raw) not in capture.owners:
                capture.written_nodes.append(holder.raw)
                holder.raw.form = None  # as an input it needs a second look
            capture.owners.setdefault(id(holder.raw), set()).add(id(holder._link))


def _copy_back(
    capture: Capture, places: dict[Buffer, int], written: set[Buffer],
    used: set[Buffer], tensors: Sequence[Tensor], given: Sequence[Tensor],
) -> None:  # fmt: skip
    """Give the inputs that the step updated their new values; refuse what is ambiguous."""
    capture.written_inputs = frozenset(places[memory] for memory in written if memory in places)
    originals = [memory_of(tensor) for tensor in tensors]
    for number, memory in enumerate(originals):
        if memory in places:
            continue  # a leaf, which is its own copy
        if memory in written or (memory in used and number in capture.written_inputs):
            raise written_both_ways(capture.name, number)
    for number in capture.written_inputs:
        if originals.count(originals[number]) > 1:
            raise written_twice(capture.name, number)
    changed = [n for n in capture.written_inputs if given[n] is not tensors[n]]
    with no_grad():
        for number in changed:
            tensors[number].assign(given[number])
    realization.realize([tensors[number] for number in changed])


def leaves(calls: Sequence[Call], known: set[Buffer]) -> dict[Node, list[Holder]]:
    """The tensors that calls read besides `known` memory, by their node."""
    made = {memory for call in calls for memory in call.made}
    reads = {memory for call in calls for memory in call.buffers} - made - known
    found: dict[Node, list[Holder]] = {}
    for holder in all_holders():
        if holder.raw.op is Op.BUFFER and holder.raw.arg in reads:
            found.setdefault(holder.raw, []).append(holder)
    return found


def _output(tensor: Tensor, values: dict[str, int]) -> Output:
    """What a replay must know to make this tensor of the result anew."""
    known = signature(tensor, dict(values))
    memory: Buffer = tensor.raw.arg
    return Output(
        known.shape, known.dtype, known.device, memory.size, memory.nbytes,
        tensor.stopped or saved_graphs.has_history(tensor.raw),
        any(not isinstance(extent, int) for extent in known.shape),
        form_of(known.dtype, known.shape, known.device),
    )  # fmt: skip


def _read_first(calls: Sequence[Call]) -> set[Buffer]:
    """The buffers whose values from before the calls are used."""
    found: set[Buffer] = set()
    filled: set[Buffer] = set()
    for call in calls:
        found |= call.read - filled
        filled.update(call.made, call.written)
    return found
