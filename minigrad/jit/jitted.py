"""`@jit`: a step that is captured once and then replayed as one call of the device.

    @jit
    def step(x, y):
        loss = model(x).cross_entropy(y)
        loss.backward()
        optimizer.step()
        return loss.realize()

The first call runs as it is (and compiles). The second is captured: every program that it runs is
recorded, with its buffers. From the third call on nothing of the function is run again: the
recorded programs are, on the call's inputs, and into fresh buffers for its outputs. Tensors that
the function updates in place stay in their memory; so do values that it leaves behind in objects
(a parameter's `.grad`), which each replay renews.

A replay runs no Python. What the function would do otherwise in a later call is seen, or fixed:

| what the function uses | what a replay does when it changes |
| --- | --- |
| a tensor that is passed | reads it; `JitError` for another shape or dtype |
| a number or a string that is passed | `JitError` |
| a tensor from outside, written in place (assign, +=, set_data, an optimizer) | reads it |
| a name of its closure or module, an attribute of that or of `self` | `JitError` |
| what is in a list, a dict or an array (up to 64 KiB) of such a name | `JitError` |
| `optimizer.lr` (`= x`, `set_lr`, a schedule) | takes the new one |
| a tensor made inside of numbers or an array | `JitError` in call 2 if call 1 had others; fixed |
| a number in the result | `JitError` in call 2 if call 1 had another; fixed |
| a tensor that it reads elsewhere, and that is gone (`layer.weight = other`) | `JitError` |
| numbers in layers that it calls, files, the clock, `random` of Python | fixed: `.reset()` |

Fixed: as it was in the second call. Views in a result are tensors of their own, from the first call
on.
"""

from __future__ import annotations

import functools
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, ParamSpec, TypeVar

from minigrad.device import Buffer, Call, Device, watching
from minigrad.errors import JitError
from minigrad.failure import CheckedReplay
from minigrad.graph.node import Node, Op, form_of
from minigrad.jit.capture import HostWatch, Snapshot, refuse_replaced
from minigrad.jit.outside import Outside
from minigrad.jit.pytree import flatten, objects, rebuild, show, signature, template
from minigrad.jit.replay import (
    Capture,
    Output,
    Source,
    memory_of,
    written_both_ways,
    written_twice,
)
from minigrad.jit.replay_codegen import Serve, straight
from minigrad.locks import new_rlock
from minigrad.program import recorded_calls, recording
from minigrad.settings import thread
from minigrad.tensor import Tensor, realization, saved_graphs, views
from minigrad.tensor.live_tensors import Holder, all_holders
from minigrad.tensor.modes import no_grad

P = ParamSpec("P")
R = TypeVar("R")


def jit(function: Callable[P, R]) -> Jitted[P, R]:
    """Capture a function of tensors at its second call and replay it from the third on."""
    return Jitted(function)


class Jitted(Generic[P, R]):
    """A captured function. `reset()` forgets the capture; `captured` tells whether there is one."""

    def __init__(
        self, function: Callable[P, R], instance: Callable[[], Any] | None = None
    ) -> None:
        self.function, self.instance = function, instance
        # by the thread's key: what the first call gave besides tensors, and took from the host
        self._called: dict[int, tuple[Any, list[int]]] = {}
        self._captures: dict[int, Capture] = {}  # by the thread's key
        self._replays: dict[int, Serve] = {}  # how each of them is served
        self._methods: dict[int, tuple[weakref.ref[Any], Jitted[..., R]]] = {}
        self._lock = new_rlock()
        functools.update_wrapper(self, function, updated=())  # whatever attributes it has

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"@jit {getattr(self.function, '__name__', 'function')}"

    @property
    def captured(self) -> bool:
        """Whether the next call, in the same modes and settings, is a replay."""
        return thread.key in self._replays

    def reset(self) -> None:
        """Forget everything: the next call runs as it is, the one after is captured."""
        with self._lock:
            self._called.clear()
            self._captures.clear()
            self._replays.clear()

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        known = self._methods.get(id(instance))
        if known is None:
            with self._lock:
                known = self._methods.setdefault(id(instance), self._method_of(instance))
        return Method(known[1], instance)

    def _method_of(self, instance: Any) -> tuple[weakref.ref[Any], Jitted[..., R]]:
        """A captured function of one instance, which must not keep the instance alive."""
        function: Any = self.function
        key, methods = id(instance), self._methods
        link = weakref.ref(instance, lambda _: methods.pop(key, None))

        @functools.wraps(function)
        def method(*args: Any, **kwargs: Any) -> R:
            result: R = function(link(), *args, **kwargs)
            return result

        return link, Jitted(method, link)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run it, capture it, or replay it."""
        serve = self._replays.get(thread.key)
        if serve is None:
            return self._prepare(args, kwargs)
        return serve(args, kwargs)  # type: ignore[no-any-return]

    def _prepare(self, args: Any, kwargs: Any) -> R:
        """The first call, which runs as it is, or the second."""
        if recording.calls is not None:  # inside another step: be part of it
            return self.function(*args, **kwargs)
        key = thread.key
        with self._lock:
            if key in self._replays:
                pass
            elif key in self._called:
                return self._capture(key, args, kwargs)
            else:
                before = [(holder._link, holder.raw) for holder in all_holders()]
                with recorded_calls(), _logged() as data:
                    result = self.function(*args, **kwargs)
                _give_memory(before)
                structure = _part(result, {id(link) for link, _ in before})
                self._called[key] = structure, data
                return result
        return self(*args, **kwargs)

    def _capture(self, key: int, args: Any, kwargs: Any) -> R:
        tensors: list[Tensor] = []
        values: dict[str, int] = {}
        structure = flatten((args, kwargs), tensors, values)
        arrays = [value for value in objects(structure) if hasattr(value, "__array__")]
        if arrays:
            raise JitError(
                f"{self.name} is given a {type(arrays[0]).__name__}: a replay would not see what "
                "is in it; pass Tensor(…)"
            )
        realization.realize(tensors)
        realization.settle_readers()
        # what waits from before, as a random state whose draws nobody kept, is no part of the step
        realization.settle_before(frozenset())
        given = self._copies(tensors)
        inputs = tuple(signature(tensor, values) for tensor in given)
        capture = Capture(self.name, structure, inputs)
        places = {tensor.raw.arg: number for number, tensor in enumerate(given)}
        before = Snapshot()
        watch = HostWatch(self.name, before)
        args, kwargs = rebuild((args, kwargs), iter(given).__next__)
        watching.watch = watch
        try:
            with recorded_calls() as calls, _logged() as data:
                result = self.function(*args, **kwargs)
                results: list[Tensor] = []
                found = flatten(result, results, dict(values))
                others = objects(found)
                realization.realize([*results, *before.left_behind()])
                realization.settle_before(frozenset())
        finally:
            watching.watch = None
        del args, kwargs
        if others:
            raise JitError(
                f"{self.name} returns a {type(others[0]).__name__}: a replay could not renew what "
                "is in it; return tensors in lists, tuples and dicts"
            )
        self._compare(key, found, data)
        capture.outside = Outside(self.name, self.function, self.instance)
        self._take_gradients(capture, before, tensors, given)
        returned = self._sort(capture, calls, places, before, results, values, tensors, given)
        capture.result = template(result)
        links = [
            (tensor._link, source)
            for tensor, source in zip(results, capture.sources, strict=True)
            if source.kind == "fresh"
        ]
        links += [
            (clone._link, Source("input", number))
            for number, clone in enumerate(given)
            if clone is not tensors[number]
        ]
        del result, results[:], given[:]
        capture.renewed = [(link, source) for link, source in links if link() is not None]
        known = set(watch.fresh) | set(places) | {tensor.raw.arg for tensor in tensors}
        refuse_replaced(self.name, calls, {b for c in calls for b in (*c.made, *c.written)}, known)
        for holders in _leaves(calls, known).values():
            capture.outside.mourn(holders)
        self._captures[key] = capture
        self._replays[key] = straight(capture) or capture.serve
        answer: R = rebuild(capture.result, iter(returned).__next__, values)
        return answer

    def _compare(self, key: int, found: Any, data: Sequence[int]) -> None:
        """JitError where this call gives other Python values, or data, than the first."""
        first, known = self._called[key]
        if found != first and not objects(first):
            raise JitError(
                f"{self.name} returned {show(first)} in its first call and {show(found)} in its "
                "second: a replay would give the latter for ever; return tensors, and compute the "
                "rest outside"
            )
        if Counter(data) - Counter(known):
            raise JitError(
                f"{self.name} makes a tensor of data of the host (numbers, a list, an array) that "
                "is not what it was in the first call: a replay would use it for ever; make the "
                "tensor outside and pass it as an argument"
            )

    def _copies(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Inputs with memory of their own, so that nothing else can be taken for them.

        Leaves that want a gradient stay what they are.
        """
        given: list[Tensor] = []
        for number, tensor in enumerate(tensors):
            if tensor.requires_grad:
                if any(tensor.raw is other.raw for other in given):
                    raise JitError(
                        f"{self.name} is given a tensor that requires a gradient twice (input "
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

    def _take_gradients(
        self, capture: Capture, before: Snapshot,
        tensors: Sequence[Tensor], given: Sequence[Tensor],
    ) -> None:  # fmt: skip
        """Note the gradients that the step left at its inputs and elsewhere."""
        places = {id(clone): number for number, clone in enumerate(given)}
        for of, gradient in before.new_gradients():
            number = places.get(id(of), -1)
            if number < 0 or of is tensors[number]:
                capture.gradients.append((of, gradient, before.had_gradient(of)))
                continue
            if tensors[number].grad is not None:
                raise JitError(
                    f"{self.name} adds to the gradient of input {number}: "
                    "set its .grad to None before the call"
                )
            tensors[number].grad = gradient
            capture.input_gradients.append((number, gradient))

    def _sort(
        self, capture: Capture, calls: Sequence[Call], places: dict[Buffer, int],
        before: Snapshot, results: Sequence[Tensor], values: dict[str, int],
        tensors: Sequence[Tensor], given: Sequence[Tensor],
    ) -> list[Tensor]:  # fmt: skip
        """Sort the buffers of a recording into inputs, outputs and what stays; make the replay.

        Gives the tensors of the result for the caller of this call.
        """
        made = {memory for call in calls for memory in call.made}
        written = {memory for call in calls for memory in call.written} - made
        used = {memory for call in calls for memory in call.buffers}
        self._copy_back(capture, places, written, used, tensors, given)
        arguments = list(places)
        fresh: dict[Node, int] = {}
        outputs: dict[Buffer, Node] = {}
        returned = []
        for tensor in results:
            node, memory = tensor.raw, tensor.raw.arg
            if memory in places:
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
                        raise JitError(f"{self.name} returns one piece of memory as two shapes")
                    outputs[memory] = node
                    fresh[node] = len(capture.outputs)
                    capture.outputs.append(_output(tensor, len(arguments), values))
                    arguments.append(memory)
                source = Source("fresh", fresh[node])
                copy = Tensor._of(node)
                copy.stopped, copy._requires_grad = tensor.stopped, tensor._requires_grad
                returned.append(copy)
            capture.sources.append(source)
        devices = {memory.device for memory in used} or {Device.DEFAULT}
        if len(devices) > 1:
            raise JitError(
                f"{self.name} runs on several devices ({', '.join(sorted(devices))}): "
                "capture the part of each device on its own"
            )
        capture.replay = Device[devices.pop()].compose(calls, arguments)
        if any(call.checks for call in calls):
            capture.replay = CheckedReplay(capture.replay, calls, arguments)
        capture.read = frozenset(_read_first(calls) - set(arguments))
        names = {name for call in calls for name in call.variables} - set(values)
        if names:
            raise JitError(
                f"{self.name} uses the bound variable {', '.join(sorted(names))}, "
                "which no argument carries: pass the bound integer, or a tensor of that size"
            )
        capture.written = frozenset((made | written) - set(arguments))
        for holder in all_holders():
            if holder.raw.op is Op.BUFFER and holder.raw.arg in capture.written:
                if id(holder.raw) not in capture.owners:
                    capture.written_nodes.append(holder.raw)
                    holder.raw.form = None  # as an input it needs a second look
                capture.owners.setdefault(id(holder.raw), set()).add(id(holder._link))
        return returned

    def _copy_back(
        self, capture: Capture, places: dict[Buffer, int], written: set[Buffer],
        used: set[Buffer], tensors: Sequence[Tensor], given: Sequence[Tensor],
    ) -> None:  # fmt: skip
        """Give the inputs that the step updated their new values; refuse what is ambiguous."""
        capture.written_inputs = frozenset(places[memory] for memory in written if memory in places)
        originals = [memory_of(tensor) for tensor in tensors]
        for number, memory in enumerate(originals):
            if memory in places:
                continue  # a leaf, which is its own copy
            if memory in written or (memory in used and number in capture.written_inputs):
                raise written_both_ways(self.name, number)
        for number in capture.written_inputs:
            if originals.count(originals[number]) > 1:
                raise written_twice(self.name, number)
        changed = [n for n in capture.written_inputs if given[n] is not tensors[n]]
        with no_grad():
            for number in changed:
                tensors[number].assign(given[number])
        realization.realize([tensors[number] for number in changed])


class Method(Generic[R]):
    """A captured function bound to an instance, which it keeps alive as long as itself lives."""

    __slots__ = ("jitted", "instance")

    def __init__(self, jitted: Jitted[..., R], instance: Any) -> None:
        self.jitted, self.instance = jitted, instance

    def __call__(self, *args: Any, **kwargs: Any) -> R:
        """Call it on the instance."""
        return self.jitted(*args, **kwargs)

    @property
    def captured(self) -> bool:
        """Whether the next call, in the same modes and settings, is a replay."""
        return self.jitted.captured

    def reset(self) -> None:
        """Forget everything: the next call runs as it is, the one after is captured."""
        self.jitted.reset()


def _leaves(calls: Sequence[Call], known: set[Buffer]) -> dict[Node, list[Holder]]:
    """The tensors that calls read besides `known` memory, by their node."""
    made = {memory for call in calls for memory in call.made}
    reads = {memory for call in calls for memory in call.buffers} - made - known
    found: dict[Node, list[Holder]] = {}
    for holder in all_holders():
        if holder.raw.op is Op.BUFFER and holder.raw.arg in reads:
            found.setdefault(holder.raw, []).append(holder)
    return found


def _output(tensor: Tensor, place: int, values: dict[str, int]) -> Output:
    """What a replay must know to make this tensor of the result anew."""
    known = signature(tensor, dict(values))
    memory: Buffer = tensor.raw.arg
    return Output(
        place, known.shape, known.dtype, known.device, memory.size, memory.nbytes,
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


@contextmanager
def _logged() -> Iterator[list[int]]:
    """Note what data the host gives to tensors."""
    log: list[int] = []
    before, watching.log = watching.log, log
    try:
        yield log
    finally:
        watching.log = before


def _part(result: Any, known: set[int]) -> Any:
    """Let the tensors of a result be no views, as those of a replay are none; its structure."""
    tensors: list[Tensor] = []
    structure = flatten(result, tensors, {})
    for tensor in tensors:
        if id(tensor._link) not in known:
            views.leave(tensor)
    return structure


def _give_memory(before: Sequence[tuple[weakref.ref[Any], Node]]) -> None:
    """Realize tensors without memory that were written: the next write is then in place."""
    alive = [(link(), node) for link, node in before]
    realization.realize([
        holder for holder, node in alive
        if holder is not None and holder.raw is not node and holder.raw.op is not Op.BUFFER
    ])  # fmt: skip
