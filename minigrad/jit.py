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

A replay cannot see what the function would have decided in Python. Where that would silently give
another result, `JitError` says so instead.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar

from minigrad.device import Buffer, Call, Device, Replay, watching
from minigrad.dtype import DType
from minigrad.errors import JitError
from minigrad.graph import build
from minigrad.graph.node import Node, Op
from minigrad.graph.symbolic import Affine, numel, rebind, unbind
from minigrad.program import GlobalCounters, recording
from minigrad.tensor import Tensor, engine, history
from minigrad.tensor.modes import modes
from minigrad.tensor.registry import something_lazy

P = ParamSpec("P")
R = TypeVar("R")


def jit(function: Callable[P, R]) -> Jitted[P, R]:
    """Capture a function of tensors at its second call and replay it from the third on."""
    return Jitted(function)


class _Leaf:
    """The place of a tensor in a structure of lists, tuples and dicts."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "Tensor"


TENSOR = _Leaf()


def flatten(value: Any, tensors: list[Tensor], values: dict[str, int]) -> Any:
    """The structure of an argument or result, hashable; its tensors are appended to `tensors`.

    Bound variables go to `values`, and stand in the structure without them.
    """
    if isinstance(value, Tensor):
        tensors.append(value)
        return TENSOR
    if isinstance(value, list | tuple):
        inner = tuple(flatten(item, tensors, values) for item in value)
        return (type(value).__name__, inner)
    if isinstance(value, dict):
        items = tuple((key, flatten(item, tensors, values)) for key, item in value.items())
        return ("dict", items)
    if isinstance(value, Affine):
        return unbind(value, values)
    if isinstance(value, int | float | str | bytes | bool | None):
        return (type(value).__name__, value)
    return ("object", id(value))


def rebuild(value: Any, tensors: Callable[[], Tensor]) -> Any:
    """A value like `value`, with its tensors taken in order from `tensors`."""
    if isinstance(value, Tensor):
        return tensors()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(rebuild(item, tensors) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(rebuild(item, tensors) for item in value)
    if isinstance(value, dict):
        return {key: rebuild(item, tensors) for key, item in value.items()}
    return value


@dataclass(frozen=True)
class Signature:
    """What a replay takes for granted about an input or an output."""

    shape: tuple[Any, ...]
    dtype: DType
    device: str

    @property
    def size(self) -> int:
        """Elements to reserve."""
        return numel(self.shape)

    def __str__(self) -> str:
        shape = ", ".join(str(extent) for extent in self.shape)
        return f"({shape}) {self.dtype.name} on {self.device}"


def signature(tensor: Tensor, values: dict[str, int]) -> Signature:
    """The signature of a tensor; values of bound variables go to `values`."""
    shape = tuple(unbind(extent, values) for extent in tensor.shape)
    return Signature(shape, tensor.dtype, tensor.device)


class _Watch:
    """Objects to what a capture cannot repeat: the host reading or writing buffers."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.fresh: weakref.WeakSet[Buffer] = weakref.WeakSet()

    def reads(self, buffer: Buffer) -> None:
        """`.item()`, `.numpy()`, a copy to another device."""
        raise JitError(
            f"{self.name} reads a value inside a captured step (.item(), .numpy(), .tolist(), "
            "print, a branch on a tensor, or a copy to another device): a replay would not; "
            "return the tensor and read it outside"
        )

    def writes(self, buffer: Buffer) -> None:
        """Constants that become tensors are kept; changing a buffer that exists is refused."""
        if buffer.is_allocated and buffer not in self.fresh:
            raise JitError(
                f"{self.name} writes data of the host into an existing tensor inside a captured "
                "step: a replay would not; write it outside, or pass it as an argument"
            )
        self.fresh.add(buffer)


@dataclass
class _Capture:
    """What the second call left: the replay, and how to serve it."""

    structure: Any
    inputs: tuple[Signature, ...]
    names: frozenset[str]
    result: Any  # the captured result; its tensors are replaced
    outputs: tuple[Signature, ...]  # fresh buffers, in the order of the replay's arguments
    sources: tuple[tuple[str, Any], ...]  # each tensor of the result: fresh, input or kept
    written_inputs: frozenset[int]  # numbers of inputs that the step updates in place
    written: frozenset[Buffer]
    replay: Replay
    result_is_tensor: bool
    plain: bool  # called with nothing but tensors, by position, of plain shapes
    last: list[Node]  # what the last replay was given

    def known_memories(self, args: Sequence[Any]) -> list[Any] | None:
        """Memory of the inputs where they are plain tensors that obviously fit, else None."""
        if not self.plain or len(args) != len(self.inputs):
            return None
        memories = []
        for number, tensor in enumerate(args):
            if not isinstance(tensor, Tensor):
                return None
            node = tensor.raw
            if node is not self.last[number]:
                expected = self.inputs[number]
                if (
                    node.op is not Op.BUFFER
                    or node.shape != expected.shape
                    or node.dtype is not expected.dtype
                    or node.device != expected.device
                ):
                    return None
                self.last[number] = node
            memories.append(node.arg.memory)
        return memories


class Jitted(Generic[P, R]):
    """A captured function. `reset()` forgets the capture; `captured` tells whether there is one."""

    def __init__(self, function: Callable[P, R]) -> None:
        self.function = function
        self._calls: dict[bool, int] = {}
        self._captures: dict[bool, _Capture] = {}
        self._bound: weakref.WeakKeyDictionary[Any, Jitted[..., R]] = weakref.WeakKeyDictionary()
        self._lock = threading.RLock()
        functools.update_wrapper(self, function)

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"@jit {getattr(self.function, '__name__', 'function')}"

    @property
    def captured(self) -> bool:
        """Whether the next call (in the same training mode) is a replay."""
        return modes.training in self._captures

    def reset(self) -> None:
        """Forget everything: the next call runs as it is, the one after is captured."""
        with self._lock:
            self._calls.clear()
            self._captures.clear()

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        bound = self._bound.get(instance)
        if bound is None:
            method = self.function.__get__(instance)
            bound = self._bound[instance] = Jitted(method)
        return bound

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if watching.watch is not None:  # inside another capture: be part of it
            return self.function(*args, **kwargs)
        with self._lock:
            capture = self._captures.get(modes.training)
            if capture is not None:
                return self._replay(capture, args, kwargs)
            count = self._calls.get(modes.training, 0)
            self._calls[modes.training] = count + 1
            if count == 0:
                return self.function(*args, **kwargs)
            return self._capture(args, kwargs)

    # ---- capture ----

    def _capture(self, args: Any, kwargs: Any) -> R:
        tensors: list[Tensor] = []
        values: dict[str, int] = {}
        structure = flatten((args, kwargs), tensors, values)
        engine.realize(tensors)
        engine.settle_before(frozenset())
        given = self._separate(tensors)
        args, kwargs = rebuild((args, kwargs), iter(given).__next__)
        inputs = tuple(signature(tensor, values) for tensor in given)
        nodes = [tensor.raw for tensor in given]
        watch = _Watch(self.name)
        watching.watch, recording.calls = watch, []
        try:
            result = self.function(*args, **kwargs)
            results: list[Tensor] = []
            flatten(result, results, values)
            engine.realize(results)
            engine.settle_before(frozenset())
            calls = recording.calls
        finally:
            watching.watch, recording.calls = None, None
        capture = self._describe(structure, inputs, nodes, values, result, results, calls)
        for number in capture.written_inputs:
            if given[number] is not tensors[number]:
                raise JitError(
                    f"{self.name} writes to input {number}, which is given twice in one call: "
                    "a replay could not tell the two apart; pass a .clone() of one"
                )
        self._captures[modes.training] = capture
        return result

    def _separate(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The same tensors, with copies where a buffer is given twice: each input has its own."""
        seen: set[Buffer] = set()
        given = []
        for tensor in tensors:
            if tensor.raw.arg in seen:
                tensor = tensor.clone().realize()
            seen.add(tensor.raw.arg)
            given.append(tensor)
        twice = [buffer for buffer in seen if sum(t.raw.arg is buffer for t in tensors) > 1]
        for place, tensor in enumerate(tensors):  # the first of a pair is a copy as well
            if tensor.raw.arg in twice and given[place] is tensor:
                given[place] = tensor.clone().realize()
        return given

    def _describe(
        self,
        structure: Any,
        inputs: tuple[Signature, ...],
        nodes: Sequence[Node],
        values: dict[str, int],
        result: Any,
        results: Sequence[Tensor],
        calls: Sequence[Call],
    ) -> _Capture:
        """Sort the buffers of a recording into inputs, outputs and what stays."""
        place = {node.arg: number for number, node in enumerate(nodes)}
        made = {memory for call in calls for memory in call.made}
        written = {memory for call in calls for memory in call.written} - made
        arguments = list(place)
        fresh: dict[Buffer, int] = {}
        outputs: list[Signature] = []
        sources: list[tuple[str, Any]] = []
        for tensor in results:
            memory = tensor.raw.arg
            if memory in place:
                sources.append(("input", place[memory]))
            elif memory in made:
                if memory not in fresh:
                    fresh[memory] = len(outputs)
                    arguments.append(memory)
                    outputs.append(signature(tensor, dict(values)))
                sources.append(("fresh", fresh[memory]))
            else:
                sources.append(("kept", tensor.raw))
        devices = {memory.device for call in calls for memory in call.buffers} or {Device.DEFAULT}
        if len(devices) > 1:
            raise JitError(
                f"{self.name} runs on several devices ({', '.join(sorted(devices))}): "
                "capture the part of each device on its own"
            )
        replay = Device[devices.pop()].compose(calls, arguments)
        names = frozenset(values) | {name for call in calls for name in call.variables}
        if names - set(values):
            raise JitError(
                f"{self.name} uses the bound variable {', '.join(sorted(names - set(values)))}, "
                "which no argument carries: pass the bound integer, or a tensor of that size"
            )
        return _Capture(
            structure, inputs, names, result, tuple(outputs), tuple(sources),
            frozenset(place[memory] for memory in written if memory in place),
            frozenset(written - set(place)), replay, isinstance(result, Tensor),
            _is_plain(structure) and not values,
            list(nodes),
        )  # fmt: skip

    # ---- replay ----

    def _replay(self, capture: _Capture, args: Any, kwargs: Any) -> R:
        tensors: Sequence[Tensor] = args
        values: dict[str, int] = {}
        memories = None if kwargs else capture.known_memories(args)
        if memories is None:
            tensors, values = self._checked(capture, args, kwargs)
            memories = [tensor.raw.arg.memory for tensor in tensors]
        written = capture.written
        if capture.written_inputs:
            self._check_written(capture, tensors)
            written |= {tensors[number].raw.arg for number in capture.written_inputs}
        if something_lazy():
            engine.settle_before(written)
        buffers = []
        for output in capture.outputs:
            made = Buffer(output.device, output.dtype, output.size)
            buffers.append(made)
            memories.append(made.memory)
        GlobalCounters.program_calls += 1
        capture.replay.run(memories, values)
        if history.any_recorded():
            history.replayed(written)
        results = []
        for kind, source in capture.sources:
            if kind == "fresh":
                output = capture.outputs[source]
                shape = _bound(output.shape, values) if values else output.shape
                node = build.buffer(buffers[source], output.dtype, shape, output.device)
                results.append(Tensor._of(node))
            elif kind == "input":
                results.append(tensors[source])
            else:
                results.append(Tensor._of(source))
        if capture.result_is_tensor:
            return results[0]  # type: ignore[return-value]
        return rebuild(capture.result, iter(results).__next__)  # type: ignore[no-any-return]

    def _checked(
        self, capture: _Capture, args: Any, kwargs: Any
    ) -> tuple[list[Tensor], dict[str, int]]:
        """The input tensors, realized, and the variables' values, if they fit the capture."""
        tensors: list[Tensor] = []
        values: dict[str, int] = {}
        structure = flatten((args, kwargs), tensors, values)
        if structure != capture.structure:
            raise JitError(
                f"{self.name} was captured with arguments {_show(capture.structure)} and is called "
                f"with {_show(structure)}: Python values and the number of tensors are fixed in a "
                "capture; pass tensors, or .reset()"
            )
        for number, (tensor, expected) in enumerate(zip(tensors, capture.inputs, strict=True)):
            found = signature(tensor, values)
            if found != expected:
                raise JitError(
                    f"{self.name} was captured with input {number} of {expected} and is called "
                    f"with {found}; give it that, or .reset() before another shape"
                )
        if any(tensor.raw.op is not Op.BUFFER for tensor in tensors):
            engine.realize(tensors)
        return tensors, values

    def _check_written(self, capture: _Capture, tensors: Sequence[Tensor]) -> None:
        for number in capture.written_inputs:
            memory = tensors[number].raw.arg
            if sum(tensor.raw.arg is memory for tensor in tensors) > 1:
                raise JitError(
                    f"{self.name} writes to input {number}, which is given twice in this call: "
                    "pass a .clone() of one"
                )


def _is_plain(structure: Any) -> bool:
    """Whether the arguments are tensors by position and nothing else."""
    _, ((_, positional), (_, by_name)) = structure
    return not by_name and all(item is TENSOR for item in positional)


def _show(structure: Any) -> str:
    """An argument structure for people."""
    if isinstance(structure, tuple) and len(structure) == 2:
        kind, inner = structure
        if kind in ("tuple", "list"):
            return f"({', '.join(map(_show, inner))})"
        if kind == "dict":
            return f"{{{', '.join(f'{key}: {_show(item)}' for key, item in inner)}}}"
        return repr(inner) if kind != "object" else "an object"
    return repr(structure)


def _bound(shape: tuple[Any, ...], values: dict[str, int]) -> tuple[Any, ...]:
    return tuple(rebind(extent, values) for extent in shape)
