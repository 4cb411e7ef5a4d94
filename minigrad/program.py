"""Whole programs: from nodes whose values are wanted to buffers that hold these values.

`realize` is the only entry from lazy graphs to devices: it splits a graph at copies between devices
and at loops, finds or compiles the program of each part, and runs it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager

from minigrad.device import (
    Buffer,
    Call,
    Device,
    Program,
    poison,
    poisoned,
    refuse,
    renew,
    undecided,
)
from minigrad.dtype import dtypes, number_bytes
from minigrad.errors import BoundsError, MinigradError
from minigrad.failure import failure_of
from minigrad.graph.autobatch import MANY, MOST_BYTES, nbytes
from minigrad.graph.build import buffer, cast
from minigrad.graph.canonical import Canonical, Graph, canonicalize, numbers_of
from minigrad.graph.loop import STAGED, StepsInMemory, read_of, stages_of, written
from minigrad.graph.node import (
    ASSIGN,
    BUFFER,
    COLLECTIVE,
    CONST,
    RESHAPE,
    Node,
    Op,
    beneath,
    depending,
    form_of,
    is_symbolic,
    needed,
    needed_among,
    own_node,
    picked,
)
from minigrad.graph.rewrite import replaced
from minigrad.graph.shapes import numel
from minigrad.graph.sharding import meshes
from minigrad.interrupts import hold
from minigrad.programs import Programs
from minigrad.programs import programs as programs
from minigrad.settings import State, flag, having


class _Recording(threading.local):
    """The calls that `_launch` has made while this thread captures a step, else None.

    may_pad: whether programs may be padded, or in pieces.
    """

    calls: list[Call] | None = None
    may_pad = True


recording = _Recording()


@contextmanager
def recorded_calls(may_pad: bool = False) -> Iterator[list[Call]]:
    """Record the programs that this thread runs, in the list that it yields. Not to be nested.

    may_pad: whether these may be padded, or in pieces.
    """
    calls: list[Call] = []
    with having(recording, calls=calls, may_pad=may_pad), State(RECORDING=True):
        yield calls


class _Timeline(threading.local):
    """record: called with label, start and end of each kernel that this thread runs.

    Times are those of `time.perf_counter()`. With it, kernels run one by one.

    programs: where this thread looks up programs; None: in those of the process.
    """

    programs: Programs | None = None
    record: Callable[[str, float, float], None] | None = None


timeline = _Timeline()


class _Counters:
    """Totals so far: kernels, operations, bytes. `GlobalCounters.reset()` sets them to 0.

    global_ops and global_mem are the estimates of the loop nests (operations, bytes read and
    written). programs_scheduled, kernels_lowered, kernels_rendered and kernels_compiled count the
    steps from a graph to machine code; cache_hits the kernels and programs that were found on disk
    instead.
    """

    # An instance with slots: setting an attribute of a class is ten times as slow.
    __slots__ = (
        "kernel_count", "program_calls", "programs_compiled", "programs_scheduled",
        "kernels_lowered", "kernels_rendered", "kernels_compiled", "cache_hits",
        "global_ops", "global_mem", "mem_used", "mem_peak",
    )  # fmt: skip

    def __init__(self) -> None:
        self.mem_used = 0
        self.reset()

    def reset(self) -> None:
        """Set all counters to zero; mem_used stays, and mem_peak becomes mem_used."""
        self.kernel_count = self.program_calls = self.programs_compiled = 0
        self.programs_scheduled = self.kernels_lowered = self.kernels_rendered = 0
        self.kernels_compiled = self.cache_hits = 0
        self.global_ops = self.global_mem = 0
        self.mem_peak = self.mem_used

    def ran(self, kernels: int, operations: int, traffic: int) -> None:
        """Count the kernels, operations and bytes of a program that has run."""
        self.kernel_count += kernels
        self.global_ops += operations
        self.global_mem += traffic


GlobalCounters = _Counters()


_RESHAPE = frozenset({RESHAPE})
_PREPARED = STAGED | {Op.CAT, Op.CUSTOM, Op.CHECK}  # `realize` does something about these
_LOOPS = frozenset({Op.LOOP})


# A call, its program, and the values of its variables besides the call's.
Found = tuple[Canonical, Program, Mapping[str, int]]


def realize(
    roots: Sequence[Node], failures: list[MinigradError], order: Sequence[Node] | None = None,
    found: Found | None = None,
) -> list[Node]:  # fmt: skip
    """Compute nodes; returns, for each, the BUFFER node that holds its value.

    An ASSIGN root is written to its target's memory, after every read of the old value in this
    call. Nodes may be on several devices.

    If an index is out of range, a BoundsError is added to `failures`, and the affected nodes cannot
    be read. order: `topological(roots)`. found: their `known_program`.
    """
    if found is not None:
        return [*_run(*found, failures).values()]
    if order is None:
        order = needed(roots)
    operations = {node.op for node in order} & _PREPARED
    if operations:
        if Op.CAT in operations and recording.calls is None:  # no step is captured
            given, roots = list(roots), _with_joins(roots, order, failures)
            order = order if roots == given else needed(roots)
        if Op.CUSTOM in operations:
            order = needed_among(order, roots)
        if not STAGED.isdisjoint(operations) and _runs_in_stages(order, operations):
            return _in_stages(roots, failures)
    # one program for each device
    by_device: dict[str, dict[Node, None]] = {}
    for root in roots:
        if root.op is not BUFFER:
            by_device.setdefault(root.device, {})[root] = None
    checked = bool(operations) and Op.CHECK in operations and flag("BOUNDS") != 0
    made: dict[Node, Node] = {}
    for group in by_device.values():
        call = canonicalize([*group], checked, order if len(group) == len(roots) else None)
        made |= _run(call, *_program_of(call), failures)
    return [made.get(root, root) for root in roots]


def known_program(roots: Sequence[Node], order: Sequence[Node]) -> Found | None:
    """The program of distinct roots without a BUFFER, if it is known and computes all of them.

    order: `topological(roots)`.
    """
    operations, devices = {node.op for node in order}, {root.device for root in roots}
    if len(devices) > 1 or not devices.isdisjoint(meshes) or Op.COPY in operations:
        return None
    order = needed_among(order, roots) if Op.CUSTOM in operations else order
    call = canonicalize(roots, Op.CHECK in operations and flag("BOUNDS") != 0, order)
    found = programs.known(call)
    return found and (call, *found)


def _runs_in_stages(order: Sequence[Node], operations: Set[Op]) -> bool:
    """Whether no program computes a graph: it has COPYs, or LOOPs that cannot be part of one.

    Those that are captured or explained, or whose steps check indices. order: its nodes.
    """
    alone = recording.calls is not None or timeline.programs is not None
    return alone or Op.COPY in operations or any(one.arg.checks for one in picked(order, _LOOPS))


def _with_joins(
    roots: Sequence[Node], order: Sequence[Node], failures: list[MinigradError]
) -> list[Node]:
    """The roots with CATs of many small arrays joined in memory.

    As kernels, they would need another program for each number of pieces.
    order: the nodes that the roots need.
    """
    joined: dict[Node, Node] = {}
    cat = Op.CAT
    for node in order:
        if node.op is cat and len(node.src) > MANY and node.device not in meshes:
            made = _joined(node, joined, failures)
            if made is not None:
                joined[node] = made
    return replaced(roots, joined)


def _joined(
    node: Node, known: Mapping[Node, Node], failures: list[MinigradError]
) -> Node | None:
    """A CAT as a (perhaps cast) BUFFER, if its pieces are small and all in memory or all constants.

    Pieces may be casts. They are joined first and cast together if all have one dtype; else each is
    cast first, because a program that casts some of them would differ for each pattern. known:
    other CATs → their BUFFERs.
    """
    pieces = [known.get(x, x) for x in (beneath(x, _RESHAPE) for x in node.src)]
    apart = any(extent != 1 for extent in node.shape[: node.arg])
    if apart or is_symbolic(node.shape) or any(nbytes(x) > MOST_BYTES for x in pieces):
        return None
    given = [x.src[0] if x.op is Op.CAST else x for x in pieces]
    places = [one for x in given if (one := _in_memory(x)) is not None]
    if len(places) == len(pieces):
        if len({x.dtype for x in given}) > 1:
            given = [realize([x], failures)[0] for x in pieces]
            places = [(x, 0) for x in given]
        memory = Buffer(node.device, given[0].dtype, numel(node.shape))
        memory.join([(source.arg, start, numel(x.shape))
                     for (source, start), x in zip(places, given, strict=True)])  # fmt: skip
    elif all(x.op is CONST for x in pieces):
        memory = Buffer(node.device, node.dtype, numel(node.shape))
        memory.copy_in(b"".join(number_bytes(x.arg, x.dtype) * numel(x.shape) for x in pieces))
    else:
        return None
    return cast(buffer(memory, memory.dtype, node.shape, node.device), node.dtype)


def _in_memory(node: Node) -> tuple[Node, int] | None:
    """The BUFFER, and the position in it, where a node's elements are, one after the other."""
    begin = 0
    while node.op is not BUFFER:
        if node.op is Op.SHRINK:
            several, step = False, numel(node.src[0].shape)
            for (start, stop), extent in zip(node.arg, node.src[0].shape, strict=True):
                if not isinstance(start, int) or not isinstance(extent, int):
                    return None
                if several and stop - start != extent:
                    return None
                several, step = several or stop - start > 1, step // max(extent, 1)
                begin += start * step
        elif node.op is Op.BITCAST:  # as in `detach`
            if node.dtype.itemsize != node.src[0].dtype.itemsize:
                return None
        elif node.op is not Op.RESHAPE:
            return None
        node = node.src[0]
    return node, begin


def _run(
    call: Canonical, program: Program, values: Mapping[str, int], failures: list[MinigradError]
) -> dict[Node, Node]:
    """Run the program of a call; returns root → the BUFFER of its value.

    If it is known already that an index is out of range, the error is added to `failures`.
    """
    fresh: list[Buffer] = []
    made: dict[Node, Node] = {}
    for root in call.roots:
        if root.op is ASSIGN:  # written in place
            made[root] = root.src[0]
            continue
        form = form_of(root.dtype, root.shape, root.device)
        memory = Buffer(root.device, root.dtype, form.size)
        fresh.append(memory)
        made[root] = own_node(BUFFER, root.dtype, root.shape, (), memory, root.device, form)
    if len(fresh) < len(made) and COLLECTIVE not in [node.op for node in call.order]:
        hold()  # a write is made once
    _launch(call, program, fresh, [*made.values()], values, failures)
    return made


def _program_of(call: Canonical) -> tuple[Program, Mapping[str, int]]:
    """The program of a call, compiled if necessary, and the values of its own variables."""
    known = programs if timeline.programs is None else timeline.programs
    return known.find(call, _compiled, recording.may_pad)


def _compiled(graph: Graph) -> Program:
    program = Device[graph.device].compile(graph)
    GlobalCounters.programs_compiled += 1
    return program


def _launch(
    call: Canonical, program: Program, fresh: Sequence[Buffer], made: Sequence[Node],
    values: Mapping[str, int], failures: list[MinigradError], begun: Set[Buffer] = frozenset(),
) -> None:  # fmt: skip
    """Run a program, with `values` besides the call's own.

    made: the BUFFER of each root; the memory of those in `fresh` has no values yet. begun: buffers
    that it writes a part of, before anybody else has written any.
    """
    if poisoned:  # an earlier program failed: what it should have written cannot be read
        refuse(_read_by(call) - begun)
    values = {**call.values, **values} if call.values else values
    buffers: list[Buffer] = [*call.inputs, *fresh]
    if call.checks:  # one more result: whether all indices are in range
        buffers.append(Buffer(call.roots[0].device, dtypes.uint32, 1))
    GlobalCounters.program_calls += 1
    program.run(buffers, values)
    device = call.roots[0].device
    if poisoned:
        renew(node.arg for node in made)
    if device in undecided:  # it is not known yet whether its earlier programs succeeded
        Device[device].follow(_read_by(call), [node.arg for node in made])
    if call.checks:
        failures += _look(call, made, buffers[-1])
    if recording.calls is not None:  # a step is captured
        existing = buffers[: len(call.inputs)]
        new = (*(b for b in existing if b in begun), *buffers[len(existing) :])
        written = tuple(node.arg for node in made if node.arg not in new)
        recording.calls.append(Call(
            program, tuple(buffers), values, new, written, _read_by(call) - begun, call.checks,
            _doubtful(call, made), numbers_of(call),
        ))  # fmt: skip


def _look(call: Canonical, made: Sequence[Node], count: Buffer) -> list[MinigradError]:
    """A list of the error if an index was out of range and the device already knows it, or []."""

    def failure() -> BoundsError:
        written = frozenset(node.arg for node in made)
        return failure_of(call.checks, call.values, written, {}, _doubtful(call, made))

    try:
        Device[count.device].expect_zero(count.memory, failure)
    except BoundsError as error:
        return [error.with_traceback(None)]
    return []


def _doubtful(call: Canonical, made: Sequence[Node]) -> frozenset[Buffer]:
    """The results that depend on a CHECK."""
    depends = depending(call.order if call.checks else (), call.checks)
    pairs = zip(call.roots, made, strict=True)
    return frozenset(node.arg for root, node in pairs if root in depends)


def _read_by(call: Canonical) -> frozenset[Buffer]:
    """The buffers whose values a program reads, not those that it only overwrites."""
    skipped = {Op.ASSIGN: slice(1, None), Op.CUSTOM: slice(1)}
    sources = (node.src[skipped.get(node.op, slice(None))] for node in call.order)
    return frozenset(one.arg for some in sources for one in some if one.op is Op.BUFFER)


def _in_stages(roots: Sequence[Node], failures: list[MinigradError]) -> list[Node]:
    """Realize roots that depend on COPYs, or on LOOPs that are not part of a program.

    Compute what the first of these need, run them, replace them by their results, and repeat until
    none is left.

    In-place writes come last, so that nothing is written if something before them fails or is
    interrupted.
    """
    found: list[MinigradError] = []
    new: dict[Node, Node] = {}  # node → BUFFER of what is computed by now
    for needs, first in stages_of(roots):
        now = [node for node in dict.fromkeys(needs) if node not in new]
        new.update(zip(now, realize(replaced(now, new), found), strict=True))
        for node, results in first.items() if not found else ():
            read = {source: new[written(source)] for source in read_of(node)}
            if node.op is Op.COPY:
                (source,) = realize([read[node.src[0]]], found)  # a LOOP's last carry is a part
                memory = Buffer(node.device, node.dtype, numel(node.shape))
                memory.copy_from(source.arg)
                new[node] = buffer(memory, node.dtype, node.shape, node.device)
            else:
                new.update(_run_loop(node, read, results, found))
        if found:
            failures += found
            return [_lost(root, new.get(root), str(found[0])) for root in roots]
    return realize(replaced(roots, new), failures)


def _lost(root: Node, known: Node | None, reason: str) -> Node:
    """A BUFFER that raises when it is read, for a root that could not be computed."""
    if known is not None and known.op is Op.BUFFER:
        return known
    target = root.src[0] if root.op is Op.ASSIGN else buffer(
        Buffer(root.device, root.dtype, numel(root.shape)), root.dtype, root.shape, root.device
    )  # fmt: skip
    poison([target.arg], reason)
    return target


def _run_loop(
    node: Node, sources: Mapping[Node, Node], results: Sequence[Node],
    failures: list[MinigradError],
) -> dict[Node, Node]:  # fmt: skip
    """Run a LOOP step by step; returns RESULT → BUFFER. sources: the nodes it reads → BUFFERs."""

    def memory(like: Node, rows: int) -> Node:
        made = Buffer(like.device, like.dtype, rows * numel(like.shape))
        return buffer(made, like.dtype, (rows, *like.shape), like.device)

    steps = StepsInMemory(node, sources, results, memory)
    unwritten = frozenset(whole.arg for whole in steps.memory)
    for roots, every in ((steps.begin, [{}]), (steps.step, steps.values())):
        call = canonicalize(roots, flag("BOUNDS") != 0)
        program, values = _program_of(call)
        made = [root.src[0] for root in roots]
        first = unwritten & {one.arg for one in made}
        for number, own in enumerate(every):
            now = {**values, **own} if own else values
            _launch(call, program, (), made, now, failures, frozenset() if number else first)
            if failures:
                poison([whole.arg for whole in steps.memory], str(failures[0]))
                return steps.results
        unwritten -= first
    return steps.results
