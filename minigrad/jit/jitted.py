"""`@jit`: a step that is captured once and then replayed as one call of the device.

    @jit
    def step(x, y):
        loss = model(x).cross_entropy(y)
        loss.backward()
        optimizer.step()
        return loss.realize()

Call 1 runs normally (and compiles). Call 2 is captured: every program that it runs is recorded.
From call 3 on only these programs run, and none of the function's Python code. So whatever that
reads or leaves is followed, checked, set again, refused, or (see the end) fixed as in call 2.

**Followed**: tensor arguments; tensors from outside that are written in place (assign, +=,
set_data, an optimizer); `optimizer.lr`; random tensors. A leaf that is passed gets its own `.grad`.

**Checked** before each replay; JitError if it has changed:
- numbers, strings and objects that are arguments; dtype, device and dimensions of tensors;
- names of its closure and module, attributes of these, of `self`, of items in them, and of
  arguments that are objects (or objects in a list or dict); methods of a user's classes; contents
  of lists, dicts and sets (up to 256 items; of up to 2,048, which objects they are), of arrays up
  to 64 KiB;
- mode, device, numbers, hooks, layers and parameters of an `nn.Module` that it calls; an
  optimizer's options; `requires_grad` of what it differentiates or looks at; which `.grad` it
  finds, or none;
- whether a tensor that it reads still exists (`layer.weight = other` replaces one).

**Set again** in each replay: results, and the attributes, globals and items of dicts and lists that
it sets to a tensor, are new tensors; those in other containers, or in lists that it makes, and
gradients, are the same objects with new values. `optimizer.lr`, if it sets it.
Also numbers and texts at names and attributes; and modes, options and `requires_grad`, if it sets
them before it uses them. No gradient flows through a result (GradientError); a view in it is a
tensor.

**Refused** in call 2 (JitError), as a replay could not do it again: reading values (`.item()`, a
branch on a tensor); writing host data; numbers that it reads and changes (`self.t += 1`); tensors
that it reads and replaces or moves (`self.old = self.h`); tensors added to a list, containers that
change their size or are arguments; leaves that it is given and freezes; hooks that it adds;
iterators; draws of `random`, numpy, PyTorch or a generator of the user's; other data, or a number
in the result, than in call 1; an argument computed from leaves, if it differentiates; results of
other threads. In call 3, if calls computed with new numbers each time.

**Captured again**, beside what is there (two normal calls, one that is captured): other extents
(from the third size on nothing is compiled, see `graph/general.py` and `padded.py`; after 32
replays a size gets its own programs), leaves in place of other arguments, other threads and modes.
Instead of it: if a constant from outside (`Tensor.zeros(2)`) was written, or a number that only
some calls may set.

**Fixed**, so that a replay silently gives another result than the code would, if it changes later:
- a branch on something elsewhere: files, the environment, a clock, `uuid`, `secrets`, a log level,
  a lock, the context of `decimal`, the state of a file object or `SimpleQueue`;
- names that are computed: `getattr(x, f"w{i}")`, `globals()["x"]`, `eval`, `attrgetter`, formats;
- what only C code reads (a compared `SimpleNamespace`), longer containers, arrays of objects;
- attributes of arguments that are lists, dicts, numbers or strings; which class of dict one is;
  whether two arguments are one object; `requires_grad` that it sets for them;
- replaced code: `__code__`, `__defaults__`, `__class__`, `__bases__`, methods of Tensor, libraries;
- a name that did not exist (`NameError`), layers added to a container that is only counted;
- what it does besides: text that it prints, numbers that it adds to a list, Counter or file, writes
  by threads that it starts; a result kept in a list from an earlier call has the newest values.

`step.reset()` captures again. What decides should be an argument: a Tensor if it changes often.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from threading import get_ident
from types import FunctionType
from typing import Any, Generic, ParamSpec, TypeVar

from minigrad.device import Buffer, Call, watching
from minigrad.errors import JitError
from minigrad.graph.node import Node, Op
from minigrad.jit.capture import HostWatch, Recorded, Snapshot, copies
from minigrad.jit.host_random import generators, refuse_draws
from minigrad.jit.outside import Outdated, Outside
from minigrad.jit.replay import Capture, OtherInputs, ServedOften
from minigrad.jit.replay_codegen import Serve, straight
from minigrad.locks import new_rlock
from minigrad.padded import Padded
from minigrad.pieced import Pieced
from minigrad.program import recorded_calls, recording
from minigrad.programs import FREQUENT
from minigrad.settings import having, thread
from minigrad.tensor import Tensor, history, realization, views
from minigrad.tensor.live_tensors import all_holders, lazy_links, of_this_thread
from minigrad.tensor.observed import Observed, capturing
from minigrad.tensor.pytree import adds_to, flatten, objects, rebuild, show, signature, template

MOST_OTHERS = 16  # captures that are kept for other kinds of inputs

P = ParamSpec("P")
R = TypeVar("R")


def jit(function: Callable[P, R]) -> Jitted[P, R]:
    """Capture a function of tensors at its second call and replay it from the third on.

    function: gets and returns tensors, alone or in lists, tuples and dicts; it may change tensors
    in place, as an optimizer's step does. Its Python code runs in two calls only (three more for
    each new size), so it must do the same in each: JitError if a number or something else that it
    reads has changed since. The top of `minigrad/jit/jitted.py` lists what may change.
    """
    return Jitted(function)


class Jitted(Generic[P, R]):
    """A captured function. `reset()` forgets the capture; `captured` tells whether there is one.

    owner: for a method, its instance, kept alive by this object. The captures of an instance are
    shared by all objects that stand for its method, and do not keep it alive. explained: it is the
    step that `explain` runs, and other captured functions are parts of it. varies: whether programs
    for many sizes, padded or in pieces, may serve it.
    """

    __slots__ = ("owner", "__dict__", "__weakref__")
    explained = False

    def __init__(
        self, function: Callable[P, R], instance: Callable[[], Any] | None = None,
        varies: bool = False,
    ) -> None:  # fmt: skip
        if not callable(function):
            raise TypeError(f"jit: expected a function of tensors, got {function!r}")
        self.function, self.instance, self.owner, self.varies = function, instance, None, varies
        self._called: dict[int, _Called] = {}  # by thread key: the call before the capture
        self._replays: dict[int, Serve] = {}  # by thread key: the function that serves the capture
        # the same for other inputs, most recently used last; None: sizes that came once
        self._others: dict[tuple[Hashable, ...], Jitted[P, R] | None] = {}
        self._doubtful: dict[str, Any] = {}  # see `Outside.note_left`
        self._methods: dict[int, tuple[weakref.ref[Any], Jitted[..., R]]] = {}
        self._lock = new_rlock()
        functools.update_wrapper(self, function, updated=())
        if isinstance(function, FunctionType):
            self.__dict__ = {**vars(function), **self.__dict__}  # step.calls = 0, as decorators do

    def __reduce__(self) -> Any:
        """A copy has no captures; a copy of a method belongs to the copy of its object."""
        if self.owner is not None:
            return getattr, (self.owner, self.function.__name__)
        return Jitted, (self.function,)

    @property
    def name(self) -> str:
        """The name in messages."""
        return f"@jit {getattr(self.function, '__name__', 'function')}"

    @property
    def captured(self) -> bool:
        """Whether the next call, with the same modes and settings, is a replay."""
        return thread.key in self._replays

    def reset(self) -> None:
        """Forget all captures: the next call runs normally, the one after it is captured."""
        with self._lock:
            self._called.clear()
            self._replays.clear()
            self._others.clear()

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None or isinstance(self.function, staticmethod):
            return self
        known = self._methods.get(id(instance))
        if known is None:
            with self._lock:
                known = self._methods.setdefault(id(instance), self._method_of(instance))
        bound: Jitted[P, R] = object.__new__(Jitted)
        bound.__dict__, bound.owner = known[1].__dict__, instance
        return bound

    def _method_of(self, instance: Any) -> tuple[weakref.ref[Any], Jitted[..., R]]:
        """A captured function for one instance, without keeping the instance alive."""
        function: Any = self.function
        key, methods = id(instance), self._methods
        try:
            link = weakref.ref(instance, lambda _: methods.pop(key, None))
        except TypeError:
            name = type(instance).__name__
            raise JitError(
                f"{self.name} is a method of {name}, which has __slots__; add '__weakref__' to them"
            ) from None

        @functools.wraps(function)
        def method(*args: Any, **kwargs: Any) -> R:
            return function(link(), *args, **kwargs)

        return link, Jitted(method, link)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run, capture or replay the function."""
        serve = self._replays.get(thread.key)
        if serve is None:
            return self._prepare(args, kwargs)
        try:
            return serve(args, kwargs)
        except OtherInputs as other:
            run = self._for(*other.args)
        except Outdated as reason:
            self.varies &= not isinstance(reason, ServedOften)
            with self._lock:  # capture it again; without `varies`, for the sizes of that call
                self._called.pop(thread.key, None)
                self._replays.pop(thread.key, None)
            run = self
        return run(*args, **kwargs)

    def _for(self, inputs: tuple[Hashable, ...], sized: bool) -> Callable[P, R]:
        """The function for other inputs (see `OtherInputs`).

        With sizes that come for the first time, and perhaps never again, it is not captured.
        """
        with self._lock:
            repeats = inputs in self._others or not sized
            found = self._others.pop(inputs, None)
            if found is None and repeats:
                found = Jitted(self.function, self.instance, self.varies or sized)
            self._others[inputs] = found
            if len(self._others) > MOST_OTHERS:
                del self._others[next(iter(self._others))]
            return found or self._run

    def _run(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function; what it returns is then in memory, and no view."""
        before = dict(lazy_links)  # with all views; while it keeps them, no other gets their ids
        result = self.function(*args, **kwargs)
        tensors, _ = flatten(result)
        realization.realize(tensors)  # weights drawn in it are not part of a step
        for tensor in tensors:
            if id(tensor._link) not in before:
                views.leave(tensor)
        return result

    def _prepare(self, args: Any, kwargs: Any) -> R:
        """The first call, which runs normally, or the second, which is captured."""
        inside = recording.calls is not None or thread.values["EXPLAINED"]
        if inside and not self.explained:  # inside another step: become part of it
            return self.function(*args, **kwargs)
        key = thread.key
        with self._lock:
            if key in self._replays:
                pass
            elif key in self._called:
                return self._capture(key, args, kwargs)
            else:
                given = _given(args, kwargs)
                before = [(holder._link, holder.raw) for holder in all_holders()]
                known = Snapshot()
                with recorded_calls(self.varies) as calls, _noting() as noted:
                    result = self._run(*args, **kwargs)
                    _finish((), known)  # so that its numbers can be compared
                _give_memory(before)
                _, structure = flatten(result)
                self._called[key] = _Called(given, structure, calls, noted)
                return result
        return self(*args, **kwargs)

    def _capture(self, key: int, args: Any, kwargs: Any) -> R:
        values: dict[str, int] = {}
        tensors, structure = flatten((args, kwargs), values)
        named = self._objects(args, kwargs)
        called_with = _given(args, kwargs)
        self.varies |= called_with != self._called[key].given
        led_back = [history.leads_back(tensor) for tensor in tensors]
        _settle({*self._called[key].used}, tensors)
        given = copies(self.name, tensors)
        capture = Capture(self.name, structure, tuple(signature(t, values) for t in given))
        capture.keywords = self._keywords(kwargs)
        seen = self._called[key].noted
        outside = Outside(self.name, self.function, self.instance, named, seen)
        outside.refuse_given([own for own, new in zip(tensors, given, strict=True) if own is new])
        recorded, drawn = Recorded(capture, tensors, given), generators(outside.generators)
        watch = HostWatch(self.name, recorded.before)
        args, kwargs = rebuild((args, kwargs), iter(given).__next__)
        try:
            with (having(watching, watch=watch), recorded_calls(self.varies) as recorded.calls,
                  _noting() as noted):  # fmt: skip
                result = self.function(*args, **kwargs)
                results, found = flatten(result, dict(values))
                realization.realize([*results, *recorded.before.lazy_since()])
                watch.part(results, given)
                realization.settle_writes()
        except BaseException:
            recorded.copy_back()
            raise
        recorded.settle_inputs()
        self._refuse_filled(flatten((args, kwargs)), given, structure)
        del args, kwargs
        with _after_the_work():
            call = _Called(called_with, found, recorded.calls, noted)
            self._compare(self._called[key], call)
            refuse_draws(self.name, drawn, generators(outside.generators))
            capture.outside = Outside(self.name, self.function, self.instance, named, noted)
            recorded.take_gradients(noted)
            returned = recorded.sort(results, values)
            kept = [source.what for source in capture.sources if source.kind.startswith("kept")]
            capture.outside.refuse_changes(outside, capture.read, kept)
            capture.note_marks(tensors, led_back)
            capture.outside.note_left(outside, self._doubtful)
            del outside  # and the tensors it read
            capture.result = template(result)
            left = recorded.left_behind(results)
            del result, results[:], given[:]
            links = {id(link()): (link, its) for link, its in left if link() is not None}
            knows = recorded.before.knows
            old = {id(tensor) for tensor in all_holders() if knows(tensor)} - {*links}
            recorded.take_stores(capture.outside.take_stores(old, capture.written), links)
            capture.put_stores(tensors, returned)
            known = set(watch.fresh) | set(recorded.places) | {tensor.raw.arg for tensor in tensors}
            if not recorded.claim(known) or call.changed:  # perhaps once only
                self._called[key] = call
            else:
                serve: Serve = straight(capture) or capture.serve
                if any(isinstance(call.program, Padded | Pieced) for call in recorded.calls):
                    serve = partial(_for_now, serve, iter(range(FREQUENT)))
                self._replays[key] = serve
        return rebuild(capture.result, iter(returned).__next__, values)

    def _objects(self, args: Any, kwargs: Any) -> dict[str, Any]:
        """The arguments that are neither tensors, containers nor plain values, by name.

        Those in containers have the container's name and their number. JitError for arrays.
        """
        try:
            first = () if self.instance is None else (None,)
            bound = inspect.signature(self.function).bind(*first, *args, **kwargs).arguments
        except (TypeError, ValueError):  # the call itself raises a better error
            return {}
        found = {name if value is one else f"{name} {number}": one for name, value in bound.items()
                 for number, one in enumerate(objects(flatten(value)[1]))}  # fmt: skip
        for kind in (type(one).__name__ for one in found.values() if hasattr(one, "__array__")):
            raise JitError(
                f"{self.name}: an argument is a {kind}, and a replay would not see new values in "
                "it; pass Tensor(…)"
            )
        return found

    def _keywords(self, kwargs: Any) -> Sequence[str]:
        """Keyword arguments whose order does not matter: the function has a parameter for each."""
        code = getattr(inspect.unwrap(self.function), "__code__", None)
        takes_others = code is None or code.co_flags & inspect.CO_VARKEYWORDS
        return () if takes_others else tuple(kwargs)

    def _refuse_filled(
        self, left: tuple[Sequence[Tensor], Any], given: Sequence[Tensor], structure: Any
    ) -> None:
        """JitError if the step has put something new into lists and dicts that it was given."""
        tensors, now = left
        old, new = [*map(id, given)], [*map(id, tensors)]
        moved = new != old if len(new) == len(old) else not {*new} <= {*old}
        if moved or adds_to(structure, now):
            raise JitError(
                f"{self.name} changes a list or dict that it was given, but a replay would not; "
                "change a copy, as dict(x), or return the new contents"
            )

    def _compare(self, before: _Called, now: _Called) -> None:
        """JitError if a call returned other Python values, or used other data, than the one before.

        Or objects; or if its programs have other numbers now, and had others in the call before
        that.
        """
        for other in objects(now.result):
            raise JitError(
                f"{self.name} returns a {type(other).__name__}, which a replay cannot update; "
                "return tensors in lists, tuples and dicts"
            )
        if now.result != before.result and not objects(before.result):
            raise JitError(
                f"{self.name} returned {show(before.result)} in its first call and "
                f"{show(now.result)} in its second, but a replay would always return the latter; "
                "return tensors, and compute the rest outside"
            )
        if Counter(now.noted.data) - Counter(before.noted.data):
            raise JitError(
                f"{self.name} makes a tensor of host data (numbers, a list, an array) that differs "
                "from the first call's, but a replay would always use the same data; make the "
                "tensor outside and pass it as an argument"
            )
        old = dict(before.numbers - now.numbers) if now.given == before.given else {}
        new = [(part, its) for part, its in now.numbers - before.numbers if part in old]
        now.changed = bool(new)
        if new and before.changed:
            part, its = min(new)
            was, found = next(pair for pair in zip(old[part], its, strict=True) if len({*pair}) > 1)
            raise JitError(
                f"{self.name} computes with {found}, but with {was} in the call before, with the "
                "same arguments. A replay would neither repeat the Python code (a counter, a "
                "random number, a clock) nor use a new number; compute it outside and pass it as "
                "an argument: a Tensor, or a bound Variable if it is a size or position"
            )


def _for_now(serve: Serve, turns: Iterator[int], args: Any, kwargs: Any) -> Any:
    """Serve a capture whose programs are for many sizes, as often as there are turns."""
    if next(turns, None) is None:
        raise ServedOften
    return serve(args, kwargs)


def _settle(used: set[Buffer], tensors: Sequence[Tensor]) -> None:
    """Carry out waiting work before a capture, because it is not part of the step.

    used: memory of the call before. tensors: the arguments, of which the step gets copies.
    """
    realization.realize_readers()
    realization.settle_writes()  # also the state after random draws that were dropped
    realization.realize_before(frozenset(), used)
    realization.separate_all(used.difference(tensor.raw.arg for tensor in tensors))


class _Called:
    """A call that was not a replay.

    given: a hash of its arguments (`_given`). result: the structure of its result. used: memory.
    numbers: of its programs (`graph/canonical.py`). noted: what it read.

    changed: whether the numbers differed from those of the call before.
    """

    def __init__(self, given: int, result: Any, calls: Sequence[Call], noted: Observed) -> None:
        self.given, self.result, self.noted = given, result, noted
        self.changed = False
        self.used = weakref.WeakSet(buffer for call in calls for buffer in call.buffers)
        self.numbers = set[tuple[int, tuple[str, ...]]]().union(*(call.numbers for call in calls))


def _given(args: Any, kwargs: Any) -> int:
    """A hash of the arguments, except the values of tensors; tensors are realized."""
    values: dict[str, int] = {}
    tensors, structure = flatten((args, kwargs), values)
    realization.realize(tensors)
    return hash((structure, *(signature(tensor, values) for tensor in tensors)))


@contextmanager
def _after_the_work() -> Iterator[None]:
    """Let a JitError say that the call was not in vain: parameters, say, were updated."""
    try:
        yield
    except JitError as error:
        error.args = (f"{error}. (This call did its work, as without @jit)",)
        raise


@contextmanager
def _noting() -> Iterator[Observed]:
    """Note what code of this thread reads, and the data that the host gives to tensors."""
    capturing[get_ident()] = noted = Observed()
    try:
        with having(watching, log=noted.data):
            yield noted
    finally:
        capturing.pop(get_ident(), None)  # a child of a fork has none


def _finish(results: Sequence[Tensor], before: Snapshot) -> None:
    """Compute results, and what else the step has made or written since `before`."""
    realization.realize([*results, *before.lazy_since()])
    realization.settle_writes()


def _give_memory(before: Sequence[tuple[weakref.ref[Any], Node]]) -> None:
    """Realize tensors that were written without having memory, so that the next write is in place.
    """
    alive = [(link(), node) for link, node in before]
    realization.realize(of_this_thread(
        holder for holder, node in alive
        if holder is not None and holder.raw is not node and holder.raw.op is not Op.BUFFER
    ))  # fmt: skip
