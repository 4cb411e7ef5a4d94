"""The fast path of a replay: a Python function that is generated for one captured step.

Most steps take tensors of fixed shapes and bound variables, and return tensors of fixed shapes.
Serving such a call takes a microsecond of Python if every look-up is made once, when the step is
captured. So this module writes code for each argument and each result, line by line, with every
name bound. Any unusual call (a lazy tensor, another shape, a keyword) takes the general path,
`Capture.run`, which checks everything and has the error messages.

For small results the function keeps two nodes each: one that nobody else refers to any longer
stands for the next result, with its memory. Two, because a loop usually still holds one result when
it asks for the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from struct import error as NoNumber
from sys import getrefcount
from threading import get_ident
from typing import TYPE_CHECKING, Any

from minigrad.device import Device, poisoned, undecided
from minigrad.failure import CheckedReplay
from minigrad.graph.symbolic import Affine
from minigrad.graph.variable import unbind
from minigrad.program import GlobalCounters
from minigrad.tensor import Tensor, access, history, live_tensors
from minigrad.tensor.pytree import TENSOR, rebuild

if TYPE_CHECKING:
    from minigrad.jit.replay import Capture

Serve = Callable[[Any, Any], Any]

# Larger results free their memory at once, so that others can use it.
KEPT_BYTES = 1 << 16

_HEAD = """\
def serve(args, kwargs):
    with lock:
        if (
            kwargs
            or differs()
            or (lazy and clock.lazies != capture.settled)
            or (shared and not shared.isdisjoint(owners))
            or poisoned
            or undecided{asks}
        ):
            return general(args, kwargs)
"""
_KEPT = """\
        kept{n} = (
            first{n} if refcount(first{n}) == 2 == refcount(first{n}.arg) else
            second{n} if refcount(second{n}) == 2 == refcount(second{n}.arg) else None
        )
"""
_NODE = """\
        node{n} = fresh(output{n}) if kept{n} is None else kept{n}
"""
_ARGUMENTS = """\
        try:
            {arguments} = args
{nodes}
            values = {values}
            if {differs}:
                return general(args, kwargs)
            put({handles})
        except elsewhere:
            return general(args, kwargs)
        counters.program_calls += 1
        me = get_ident()
        try:
            under_way[me] = turn = touched, ({given})
            if len(under_way) > 1 or waiting:
                wait(turn)
                if poisoned:
                    return general(args, kwargs)
            try:
                run(values)
            finally:
                if histories:
                    replayed(written)
        finally:
            under_way.pop(me, None)
            if waiting:
                tell()
"""
_GRADIENTS = """\
        for of, gradient, _ in gradients:
            of._grad = gradient
"""
_RESULT = """\
        result{n} = new(Tensor)
        result{n}._grad = result{n}._origin = result{n}._family = result{n}._requires_grad = None
        result{n}.made, result{n}.stopped = False, {stopped!r}
        if kept{n} is None:
            enter_alone(result{n}, node{n})
        else:
            result{n}.raw = node{n}
            result{n}._link = link = Link(result{n})
            link.node_id, link.device = id(node{n}), {device!r}
            by_node[id(node{n})] = link
"""


def straight(capture: Capture) -> Serve | None:
    """The function that serves a capture, or None if only the general path can."""
    if not _is_plain(capture):
        return None
    names: dict[str, Any] = {
        "lock": capture.lock, "general": capture.run, "capture": capture, "owners": capture.owners,
        "lazy": live_tensors.lazy_links, "clock": live_tensors.clock,
        "shared": live_tensors.shared, "poisoned": poisoned, "undecided": undecided,
        "differs": capture.outside.differs,
        "refcount": getrefcount, "fresh": capture.fresh,
        "put": capture.replay.put, "run": capture.replay.run, "nothing": {}, "unbind": unbind,
        "elsewhere": (ValueError, AttributeError, TypeError, NoNumber),
        "counters": GlobalCounters, "get_ident": get_ident, "touched": capture.touched,
        "under_way": access.under_way, "waiting": access.waiting, "wait": access.wait,
        "tell": access.tell,
        "histories": history.recorded, "replayed": history.replayed,
        "has_history": history.has_history, "replayed_result": live_tensors.REPLAYED,
        "written": capture.written, "gradients": capture.gradients, "held": capture.held,
        "stale": capture.stale,
        "new": object.__new__, "Tensor": Tensor, "Link": live_tensors.Link,
        "by_node": live_tensors.by_node, "enter_alone": live_tensors.enter_alone,
        "rebuild": rebuild, "template": capture.result,
    }  # fmt: skip
    held = any(gradient is not None for _, gradient, _ in capture.gradients)
    stale = capture.looked or not all(had for *_, had in capture.gradients)
    asks = " or held()" * held + " or stale()" * bool(stale)
    text = [_HEAD.format(asks=asks)]
    filed = []
    for number, output in enumerate(capture.outputs):
        names[f"output{number}"] = output
        dtype, device = output.known.dtype, output.known.device
        kept = output.form.size * dtype.itemsize <= KEPT_BYTES
        text.append(((_KEPT if kept else "        kept{n} = None\n") + _NODE).format(n=number))
        for which in ("first", "second") if kept else ():
            names[f"{which}{number}"] = node = capture.fresh(output)
            live_tensors.stay_alone(node)
        filed.append(_RESULT.format(n=number, stopped=output.stopped, device=device))
    inputs = range(len(capture.inputs))
    for number, known in enumerate(capture.inputs):
        names[f"form{number}"] = known.form
    handles = [f"given{n}.arg.handle" for n in inputs]
    put = capture.replay.put
    if isinstance(put, partial):  # calling it costs more than it saves in writing
        names |= {"put": put.func, **{f"place{n}": place for n, place in enumerate(put.args)}}
        handles = [f"place{n}" for n in range(len(put.args))] + handles
    handles += [f"node{n}.arg.handle" for n in range(len(capture.outputs))]
    items, tensors = _positional(capture), iter(inputs)
    arguments = [f"tensor{next(tensors)}" if item is TENSOR else f"variable{place}"
                 for place, item in enumerate(items)]  # fmt: skip
    variables = [place for place, item in enumerate(items) if item is not TENSOR]
    names |= {f"unbound{place}": items[place] for place in variables}
    text.append(_ARGUMENTS.format(
        arguments="".join(f"{name}, " for name in arguments) or "()",
        values="{}" if variables else "nothing",
        nodes="\n".join(f"            given{n} = tensor{n}.raw" for n in inputs),
        given="".join(f"given{n}, " for n in inputs),
        differs=" or ".join([f"given{n}.form is not form{n}" for n in inputs] + [
            f"unbind(variable{place}, values) != unbound{place}" for place in variables
        ] + [
            f"tensor{n}.stopped is not replayed_result" if led_back else
            f"tensor{n}.stopped is replayed_result"
            f" or histories and not tensor{n}.stopped and has_history(given{n})"
            for n, led_back in enumerate(capture.led_back)
        ] + [
            f"tensor{n}._requires_grad is not {mark}" if capture.outside.unmarked else
            f"{'not ' * bool(mark)}tensor{n}._requires_grad"
            for n, mark in enumerate(capture.marks)
        ] + [
            f"shared and not shared.isdisjoint(({''.join(f'id(given{n}), ' for n in inputs)}))"
        ][: len(capture.marks)]) or "False",
        handles=", ".join(handles),
    ))  # fmt: skip
    if capture.gradients:
        text.append(_GRADIENTS)
    text += [*filed, f"        return {_result(capture)}\n"]
    exec(compile("".join(text), f"<replay of {capture.name}>", "exec"), names)
    return names.pop("serve")  # removed: otherwise it and `names` would form a cycle


def _is_plain(capture: Capture) -> bool:
    """Whether the step only takes fixed-shape tensors and variables, and returns new tensors.

    Gradients are allowed at tensors that are not arguments and had one before.
    """
    _, (_, (_, by_name)) = capture.structure
    known = [*capture.inputs, *(output.known for output in capture.outputs)]
    places = [source.what for source in capture.sources]
    return (
        not by_name
        and all(item is TENSOR or isinstance(item, Affine) for item in _positional(capture))
        and all(isinstance(extent, int) and extent for one in known for extent in one.shape)
        and all(source.kind == "fresh" for source in capture.sources)
        and len(set(places)) == len(places)
        and not (capture.renewed or capture.input_gradients or capture.written_inputs)
        and not (capture.stores or capture.derived)
        and all(had for _, gradient, had in capture.gradients if gradient is not None)
        # nor may results be returned before indices are checked
        and not (isinstance(capture.replay, CheckedReplay)
                 and any(Device[output.known.device].fails_late for output in capture.outputs))
    )  # fmt: skip


def _positional(capture: Capture) -> Sequence[Any]:
    """The item of each positional argument in the structure."""
    _, ((_, items), _) = capture.structure
    return items


def _result(capture: Capture) -> str:
    """The expression for the step's result."""
    results = [f"result{source.what}" for source in capture.sources]
    if capture.result is TENSOR:
        return results[0]
    if type(capture.result) is tuple and all(item is TENSOR for item in capture.result):
        return f"({''.join(f'{name}, ' for name in results)})"
    return f"rebuild(template, iter([{', '.join(results)}]).__next__, values)"
