"""What a captured function reads besides its arguments, and the values that it leaves behind.

A replay runs no Python. So before each one, everything that the function's code reads (`walk.py`)
or that other code has reported (`tensor/observed.py`) must be as it was in the capture: that is the
list `read`. Numbers, texts and modes that the function sets are set again: that is `left`. (Tensors
that it leaves at places are different in each replay, which sets them itself: see `Store`.)
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from io import IOBase
from types import CodeType
from typing import Any, NamedTuple

from minigrad.device import Buffer
from minigrad.errors import JitError
from minigrad.graph.node import Node, Op, grouped, topological
from minigrad.jit.walk import GONE, LONGEST, MISSING, PLAIN, Read, Walk
from minigrad.tensor import Tensor, history, views
from minigrad.tensor.broadcasting import show as shape_of
from minigrad.tensor.live_tensors import Holder
from minigrad.tensor.observed import Observed, changes, readers
from minigrad.tensor.pytree import Same, flatten
from minigrad.tensor.random import states

MARK = "_requires_grad"


class Outdated(Exception):
    """The step must be captured again.

    A constant that it reads has other values or memory now; or a number at a place that its code
    sets has changed, and the capture does not tell whether it is set in each call.
    """


class Left(NamedTuple):
    """A value that a step leaves at a place.

    put: sets it again; None if it may have been there before. noted: it is an attribute whose
    changes are counted.
    """

    value: Any
    put: Callable[[Any], None] | None
    noted: bool = False


class Store(NamedTuple):
    """A tensor that a step leaves at places.

    put: sets them; count: at how many of them it is. source: where a replay takes it from (see
    `Source`; tensor is None then); None if it is in the same memory each time. gradient: what the
    step leaves in its `.grad`. shows: the older tensor, if there is one, in whose memory it is.
    """

    tensor: Any
    put: Callable[[Tensor], None]
    count: Callable[[Any], int]
    source: Any = None
    gradient: Tensor | None = None
    shows: Callable[[], Holder | None] = lambda: None


class Outside:
    """The values that a function reads from outside, as they are now.

    instance: returns a method's `self`. given: arguments that are objects, by name. noted:
    attributes that other code has reported. differs: a quick check, made in every call.
    """

    def __init__(
        self, name: str, function: Any, instance: Callable[[], Any] | None,
        given: Mapping[str, Any], noted: Observed,
    ) -> None:  # fmt: skip
        self.name = name
        alive = [(attribute, link, written) for (_, attribute), (link, written) in noted.items()
                 if link() is not None]  # fmt: skip
        found = [(attribute, link, getattr(link(), attribute))
                 for attribute, link, written in alive if not written]  # fmt: skip
        modules = {link: was for attribute, link, was in found if attribute == "_settings"}
        hooks = [hook for attribute, _, was in found if attribute == "_hooks" for hook in was]
        walk = Walk(function, instance, given, modules, [hook.function for hook in hooks])
        self.names, self.read, self.grows = walk.names, walk.read, walk.grows
        self.stored, self.generators = walk.stored, walk.generators
        for attribute, link, was in found:
            self._note(Read(was, attribute, "noted", "!=", link=link))
        # whether the code looked at requires_grad of tensors; and whether none was True, in which
        # case None and False differ
        marks = [mark for attribute, _, mark in found if attribute == MARK]
        self.differentiates = bool(marks)
        self.unmarked = self.differentiates and not any(marks)
        self.gone: list[str] = []  # shapes of tensors that the step read and that are gone
        self.left: dict[str, Left] = {}
        for attribute, link, written in alive:
            if written and (attribute == MARK or attribute in getattr(link(), "__dict__", ())):
                own = "requires_grad" if attribute == MARK else f"__dict__[{attribute!r}]"
                place = f"{walk.names.of(link)}().{own}"
                self.left[place] = Left(self._now(place), self._setter([place]), noted=True)
        self.modules = [*modules]
        self.doubtful: dict[str, Any] = {}
        self.filled: set[int] = set()  # ids of lists and dicts of which the step sets items
        self.drawn: Any = None  # the generators that the step draws from, of one thread
        self.moved, self.seen = noted.left, changes[:]
        self.links: list[weakref.ref[Holder]] = []  # held, as else nobody would call them back
        self.differs = self._look()

    def _look(self) -> Callable[[], bool]:
        """Generate the check as code: it is a microsecond or two of every replay."""
        names = self.names
        names |= {"gone": self.gone, "changes": changes, "seen": self.seen, "MISSING": MISSING}
        names |= {"states": states, "drawn": self.drawn}
        found = [(read.near or place, read.test, read.value)
                 for place, read in self.read.items() if read.kind != "noted"]  # fmt: skip
        found += [(place, "is not", left.value)
                  for place, left in self.left.items() if not left.noted]  # fmt: skip
        any_noted = len(found) < len(self.read) + len(self.left)
        tests = ["gone", *["changes != seen"] * any_noted]
        found += [("states()", "is not", self.drawn)] * (self.drawn is not None)
        for number, (place, test, value) in enumerate(found):
            names[f"value{number}"] = value
            tests.append(f"{place} {test} value{number}")
        text = (
            f"def differs():\n    try:\n        return {' or '.join(tests)}\n"
            "    except MISSING:\n        return True\n"
        )
        exec(compile(text, f"<what {self.name} reads>", "exec"), names)
        return names.pop("differs")

    def lose(self, node: Node) -> None:
        """Record that a tensor that the step may have read has moved to other memory."""
        self.gone.append(shape_of(node.shape))

    def mourn(self, tensors: Sequence[Holder]) -> None:
        """Record when the last tensor of a BUFFER that the step reads is gone.

        The function would then find another tensor in its place.
        """
        gone, shape = self.gone, shape_of(tensors[0].raw.shape)
        links: list[weakref.ref[Holder]] = []

        def forget(link: weakref.ref[Holder]) -> None:
            if all(link() is None for link in links):
                gone.append(shape)

        links += [weakref.ref(tensor, forget) for tensor in tensors]
        self.links += links
        known = {id(tensor._link): tensor._link for tensor in tensors}
        for tensor in tensors:
            known |= tensor._family.views if tensor._family is not None else {}
        readers.setdefault(tensors[0].raw, weakref.WeakKeyDictionary())[self] = known

    def check(self) -> None:
        """JitError if a value has changed; set again what the step leaves."""
        if not self.differs():
            return
        for shape in self.gone:
            raise JitError(
                f"{self.name} reads a tensor of shape {shape} that no longer exists (was it "
                "replaced, as in layer.weight = …, or was a computed tensor marked as a leaf?), "
                "but a replay would always read the old one; write with .assign(), or call .reset()"
            )
        count = changes[0]
        for place, read in self.read.items():
            now = self._now(place)
            if isinstance(owner := read.link(), Tensor) and read.label == MARK:
                self.check_mark(owner, read.value)
            elif _differs(read, now) or (now is not read.value and id(read.value) in self.filled):
                self._refuse(read, now)
        for place, left in self.left.items():
            now = self._now(place)
            if now is not left.value and not (left.noted and now is GONE):
                if left.put is None:
                    self.doubtful[place] = left.value
                    raise Outdated
                left.put(left.value)
                changes[0] += 1
                count += 1
        self.seen[0] = count

    def _note(self, read: Read) -> None:
        """Check an attribute of an owner from now on; if the owner is gone, it is as it was."""
        link, was = self.names.of(read.link), self.names.of(read.value)
        self.read[f"getattr({link}(), {read.label!r}, {was})"] = read

    def _now(self, place: str | CodeType) -> Any:
        """What is at a place."""
        try:
            return eval(place, self.names)
        except MISSING:
            return GONE

    def _refuse(self, read: Read, now: Any) -> None:
        """JitError for a value that has changed; Outdated for a constant."""
        before, label, owner = read.value, read.label, read.link()
        if read.kind == "constant":
            if now.op is Op.CONST and owner._origin is None:
                owner._own_memory()  # the next write does not need another capture
            raise Outdated
        if read.kind == "part":
            whole, *_ = label.partition("[")
            raise JitError(
                f"{self.name} reads {whole!r}, whose contents have changed since the capture, but "
                "a replay would not see the change; pass it as a Tensor argument, or call .reset()"
            )
        if read.kind == "name":
            raise JitError(
                f"{self.name} reads {label!r}, which was {_show(before)} in the capture and is "
                f"{_show(now, True)} now, but a replay would not see the change; pass it as an "
                "argument (as a Tensor if it changes), write to a Tensor in place with .assign(), "
                "or call .reset()"
            )
        if isinstance(before, dict):
            label = next(n for n in {**before, **now} if before.get(n) != now.get(n))
            before, now = before.get(label), now.get(label)
        raise JitError(
            f"{self.name} calls a {type(owner).__name__} whose {label.strip('_')} was "
            f"{_show(before)} in the capture and is {_show(now, True)} now, but a replay would not "
            "see the change; set it back, capture another function for it, or call .reset()"
        )

    def refuse_given(self, leaves: Sequence[Tensor]) -> None:
        """JitError if an argument that gets a gradient is also read from outside."""
        for read in self.read.values():
            if any(read.value is leaf for leaf in leaves):
                raise JitError(
                    f"{self.name}: an argument is a tensor that the step also reads as "
                    f"{read.label!r}, and a replay could not tell them apart; pass a .clone(), or "
                    "do not pass it"
                )

    def refuse_changes(
        self, before: Outside, memory: Collection[Any], kept: Collection[Any]
    ) -> None:
        """JitError if the step itself has changed what it reads, since `before`.

        memory: buffers that a replay reads; tensors that it does not read may be replaced, but not
        moved to another place, such as the result; nor may a view of them. kept: older tensors, and
        nodes of such memory, that it returns.
        """
        then, now = before._values(), self._values()
        moved = {*map(id, kept), *map(id, now.values())}
        shown = {one.arg for one in kept if isinstance(one, Node)}
        shown |= {buffer for place, value in now.items() if then.get(place) is not value
                  and isinstance(value, Tensor) and isinstance(buffer := memory_of(value), Buffer)}
        if any(node.arg in memory for node in self.moved):
            self._refuse_replaced("a tensor of a module that it calls")
        for place, read in before.read.items():
            was, label = read.value, read.label
            if read.kind == "noted" and _differs(read, before._now(place)):
                self._refuse_replaced(f"{type(read.link()).__name__}'s {label.strip('_')}")
            if isinstance(was, Iterator) and not isinstance(was, IOBase):
                raise JitError(
                    f"{self.name} reads the iterator {label!r}, but a replay would not advance it; "
                    "call next() outside, and pass the result"
                )
            new = self.read.get(place, read).value
            own = memory_of(was) if isinstance(was, Tensor) else None
            is_read = own is not None and (own in memory or own in shown or id(was) in moved)
            if isinstance(was, list):  # ids of keys: those of a new dict differ
                was, new = len(was), len(new)
            if is_read and was is not new or isinstance(was, PLAIN) and not _equal(was, new):
                self._refuse_replaced(repr(label))
        for grown, items, label in before.grows:
            known = {*map(id, items)}
            added, _ = flatten([item for item in grown if id(item) not in known])
            if added and len(grown) > len(items):
                raise JitError(
                    f"{self.name} adds a tensor to {label!r}, but a replay would add nothing; "
                    "return the tensor, and add it outside"
                )

    def _values(self) -> dict[str, Any]:
        """The values at all places that the step reads or sets."""
        return {**self.stored, **{place: read.value for place, read in self.read.items()}}

    def note_left(self, before: Outside, doubtful: dict[str, Any]) -> None:
        """Note the numbers and texts at places that the step sets.

        before: what was there before the call. doubtful: what former captures found at places where
        it has changed between calls: if the same is there again, the step has set it.
        """
        self.doubtful = doubtful
        for place, value in self.stored.items():
            sets = before.stored.get(place) is not value or doubtful.get(place, GONE) is value
            if isinstance(value, PLAIN) and (sets or place not in doubtful):
                self.left[place] = Left(value, self._setter([place]) if sets else None)

    def take_stores(self, old: Container[int], written: Collection[Buffer]) -> list[Store]:
        """Tensors that the step itself leaves at places that it sets.

        A replay sets these places again, so they are not checked. old: ids of other tensors; those
        that are constants are checked from now on. written: memory that a replay writes.
        """
        tensors = {id(value): value for value in self.stored.values()
                   if isinstance(value, Tensor) and id(value) not in old}  # fmt: skip
        places = grouped((id(value), place) for place, value in self.stored.items())
        self.stored = {}
        self.read = {
            place: one for place, one in self.read.items() if id(one.value) not in tensors
            and (one.label != "requires_grad" or one.link() is None or id(one.link()) in old)
        }  # fmt: skip
        for constant in self._constants():
            if id(constant) in old:
                self._note(Read(constant.raw, "raw", "constant", link=constant._link))
        if any(state.buffer.arg in written for state in states().values()):
            self.drawn = states()
        names = {place.partition("[")[0] for key in tensors for place in places[key]}
        self.filled = {id(self.names.get(name, self)) for name in names}
        self.differs = self._look()
        return [Store(tensor, self._setter(places[key]), self._counter(places[key]))
                for key, tensor in tensors.items()]  # fmt: skip

    def _constants(self) -> Iterator[Tensor]:
        """Tensors that the code reads, whose values are in the programs, as they have no memory."""
        values = [read.value for read in self.read.values()]
        for link in self.modules:
            values += vars(link()).values() if link() is not None else ()
        for tensor in {id(value): value for value in values if isinstance(value, Tensor)}.values():
            if all(node.op is not Op.BUFFER for node in topological([tensor.raw])):
                yield tensor

    def _setter(self, places: Sequence[str]) -> Callable[[Any], None]:
        """A function that sets places to a value."""
        lines = "".join(f"    {place} = value\n" for place in places)
        exec(compile(f"def put(value):\n{lines}", f"<what {self.name} sets>", "exec"), self.names)
        return self.names.pop("put")

    def _counter(self, places: Sequence[str]) -> Callable[[Any], int]:
        """A function that counts at how many places a value is."""
        codes = [compile(place, f"<what {self.name} sets>", "eval") for place in places]
        return lambda value: sum(self._now(code) is value for code in codes)

    def _refuse_replaced(self, what: str) -> None:
        raise JitError(
            f"{self.name} reads {what} and replaces it, but a replay would do neither again; write "
            "to a Tensor with .assign(), and change numbers outside"
        )

    def check_mark(self, tensor: Tensor, mark: bool | None) -> None:
        """JitError if requires_grad of a tensor, `mark` in the capture, is different now.

        Also if the tensor was computed from leaves, because these would get no gradient.
        """
        if history.leads_back(tensor):
            raise JitError(
                f"{self.name} computes gradients, and an argument, of shape "
                f"{shape_of(tensor.raw.shape)}, was computed from leaves, which a replay would "
                "give no gradient; compute it inside the step, or pass .detach()"
            )
        now = tensor._requires_grad
        if now is not mark and (self.unmarked or bool(now) is not bool(mark)):
            raise JitError(
                f"{self.name}: requires_grad of a tensor of shape {shape_of(tensor.raw.shape)} was "
                f"{mark} in the capture and is {now} now, but a replay would compute the same "
                "gradients as before; set it back, or call .reset()"
            )


def memory_of(tensor: Tensor) -> Any:
    """The memory of a realized tensor; for a view, that of its base if it has some."""
    base = views.base_of(tensor)
    return (tensor if base is None or base.raw.op is not Op.BUFFER else base).raw.arg


def _differs(read: Read, now: Any) -> bool:
    """Whether something else is at a place now."""
    if read.test == "!=":
        return bool(now != read.value)
    return now is not read.value and not _equal(now, read.value)


def _equal(one: Any, other: Any) -> bool:
    """Whether plain values, or containers of plain values, are equal."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return _equal([*one.items()], [*other.items()])
    if isinstance(one, list | tuple):
        pairs = list(zip(one, other, strict=False))
        alike = len(one) == len(other) <= LONGEST
        return alike and all(a is b or _equal(a, b) for a, b in pairs)
    return isinstance(one, (*PLAIN, set)) and repr(one) == repr(other)  # 0.0 and −0.0 differ


def _show(value: Any, is_new: bool = False) -> str:
    if value is GONE:
        return "gone"
    if isinstance(value, Same):
        whole = value.value() if isinstance(value.value, weakref.ref) else value.value
        kind = type(whole).__name__ if whole is not None else "that is gone"
        return f"{'another' if is_new else 'one'} {kind}"
    if isinstance(value, Tensor):
        return "another Tensor" if is_new else "one Tensor"
    return repr(value)[:60]
