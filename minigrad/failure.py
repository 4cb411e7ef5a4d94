"""Programs whose indices were out of range: which index it was, and which values are now invalid.

A program with CHECKs only reports that some index is wrong. Only then do we search for it: separate
programs compute the indices again, unless the failed program has overwritten their inputs. The
arrays that the program should have written must not be read before they are written again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from functools import partial
from typing import Any

from minigrad.device import Buffer, Call, Device, Replay, poison
from minigrad.errors import BoundsError
from minigrad.graph.bounds import Check
from minigrad.graph.canonical import canonicalize
from minigrad.graph.node import Node, Op, topological
from minigrad.graph.shapes import numel, unflatten
from minigrad.graph.symbolic import high
from minigrad.graph.variable import evaluate
from minigrad.programs import programs


def failure_of(
    checks: Sequence[Node], variables: Mapping[str, int], lost: Set[Buffer],
    given: Mapping[Buffer, Buffer], spoils: Iterable[Buffer],
) -> BoundsError:  # fmt: skip
    """The error of a program in which one of `checks` failed; `spoils` cannot be read after it.

    lost: memory that has been written since it was read. given: what replaces the buffers that the
    nodes name.
    """
    error, wrong = _search(checks, variables, lost, given)
    poison(spoils, str(error))
    vars(error)["checks"] = wrong  # for `tensor/realization.py`, which removes it
    return error


def _search(
    checks: Sequence[Node], variables: Mapping[str, int], lost: Set[Buffer],
    given: Mapping[Buffer, Buffer],
) -> tuple[BoundsError, Sequence[Node]]:  # fmt: skip
    """The error, and the CHECKs that failed, as far as is known."""
    unknown: list[Node] = []
    for node in checks:
        check: Check = node.arg
        extent = evaluate(check.extent, variables)
        if _is_lost(node, lost):
            unknown.append(node)
            continue
        found = _first_outside(node, extent, variables, given)
        if found is not None:
            position = f" at position {found[1]}" if node.shape else ""
            return check.error(f"{check.noun} {found[0]}{position}", extent), [node]
    # if all the others are in range now, a later program has overwritten the wrong index's inputs
    suspects = unknown or checks
    check = suspects[0].arg
    which = f"{'an' if check.noun == 'index' else 'a'} {check.noun}"
    which += "" if len(suspects) == 1 else " (of this or another operation)"
    error = check.error(which, evaluate(check.extent, variables), (
        "; which one is unknown, because its inputs have been overwritten"
    ))  # fmt: skip
    return error, suspects


def _is_lost(node: Node, lost: Set[Buffer]) -> bool:
    """Whether an index cannot be computed again: its inputs are overwritten, or on other ranks."""
    return any(
        other.op is Op.COLLECTIVE or (other.op is Op.BUFFER and other.arg in lost)
        for other in topological([node])
    )


def _first_outside(
    node: Node, extent: int, variables: Mapping[str, int], given: Mapping[Buffer, Buffer]
) -> tuple[int, tuple[int, ...]] | None:
    """The first element of a CHECK's index that is out of range, and its position."""
    (index,) = node.src
    shape = [evaluate(length, variables) for length in index.shape]
    room = [high(length) for length in index.shape]
    data = _values(index, variables, given)
    numbers: Any = memoryview(data).cast(index.dtype.code)  # type: ignore[call-overload]
    check: Check = node.arg
    for place, value in enumerate(numbers):
        if not check.allows(value, extent):
            position = tuple(int(i) for i in unflatten(place, room))  # type: ignore[arg-type]
            if all(i < length for i, length in zip(position, shape, strict=True)):
                return value, position
    return None


def _values(index: Node, variables: Mapping[str, int], given: Mapping[Buffer, Buffer]) -> bytearray:
    """The bytes of an index, computed by a separate program that is not recorded."""
    runtime = Device[index.device]
    size = numel(index.shape)
    if index.op is Op.BUFFER:
        memory = given.get(index.arg, index.arg)
    else:
        memory = Buffer(index.device, index.dtype, size)
        call = canonicalize([index])
        buffers = [given.get(buffer, buffer) for buffer in call.inputs]
        program, values = programs.find(call, runtime.compile, False)
        program.run([*buffers, memory], {**call.values, **values, **variables})
    data = bytearray(size * index.dtype.itemsize)
    if data:
        runtime.copy_out(memory.memory, memoryview(data))
    return data


class CheckedReplay:
    """A replay that looks at the results of its calls' checks each time.

    present: the buffers that are used as the arguments' memory, to be spoiled if a check fails.
    """

    def __init__(self, replay: Replay, calls: Sequence[Call], arguments: Sequence[Buffer]) -> None:
        self._put, self._run = replay.put, replay.run
        self.arguments = tuple(arguments)
        self.memories: tuple[Any, ...] = ()
        self.present: Sequence[Buffer] = ()
        self._looks: list[tuple[Callable[..., None], Any, partial[BoundsError]]] = []
        for number, call in enumerate(calls):
            if call.checks:
                count, later = call.buffers[-1], calls[number:]
                lost = frozenset(buffer for one in later for buffer in one.written)
                # not a method: a reference cycle would keep the replay's memory until it is
                # collected
                failure = partial(_failure, self.arguments, call, lost, _spread(later))
                self._looks.append((Device[count.device].expect_zero, count.memory, failure))

    def put(self, *memories: Any) -> None:
        """Use `memories` as the arguments' memory."""
        self._put(*memories)
        self.memories = memories

    def run(self, variables: Mapping[str, int]) -> None:
        """Make the calls; BoundsError if an index was out of range."""
        present, self.present = self.present, ()
        self._run(variables)
        failures: list[BoundsError] = []
        for expect, count, failure in self._looks:  # all: of each that failed something is lost
            try:
                expect(count, partial(failure, self.memories, present, variables))
            except BoundsError as error:
                failures.append(error)
        if failures:
            raise failures.pop(0)  # nor may this frame keep it, which it keeps


def _failure(
    arguments: Sequence[Buffer], call: Call, lost: frozenset[Buffer], doubtful: frozenset[Buffer],
    memories: Sequence[Any], present: Sequence[Buffer], variables: Mapping[str, int],
) -> BoundsError:  # fmt: skip
    """The error of a call of a replay, whose arguments were at `memories`."""
    given = {
        buffer: Buffer.borrow(buffer, memory)
        for buffer, memory in zip(arguments, memories, strict=True)
    }
    spoils = set(doubtful - given.keys())
    spoils |= {b for old, b in zip(arguments, present, strict=False) if old in doubtful}
    values = {**call.variables, **variables}
    return failure_of(call.checks, values, lost, given, spoils)


def _spread(calls: Sequence[Call]) -> frozenset[Buffer]:
    """The buffers that are wrong after these calls if the first one failed."""
    found = set(calls[0].doubtful)
    for call in calls[1:]:
        if not found.isdisjoint(call.read):
            found.update(call.made, call.written)
    return frozenset(found)
