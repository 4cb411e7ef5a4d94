"""What a captured function reads besides its arguments, and whether that is still the same.

A replay runs no Python, so it must check that everything the function's code reads (`walk.py`) is
unchanged.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from io import IOBase
from typing import Any, NamedTuple

from minigrad.device import Buffer
from minigrad.errors import JitError
from minigrad.graph.node import Node, Op, grouped, topological
from minigrad.jit.walk import GONE, LONGEST, MISSING, PLAIN, Walk
from minigrad.tensor import Tensor, history
from minigrad.tensor.broadcasting import show as shape_of
from minigrad.tensor.live_tensors import Holder
from minigrad.tensor.observed import Observed, changes, readers
from minigrad.tensor.pytree import Same, flatten
from minigrad.tensor.random import states


class Outdated(Exception):
    """The step must be captured again.

    A constant that it reads has other values or memory now; or a number at a place that its code
    sets has changed, and the capture does not tell whether it is set in each call.
    """


class Store(NamedTuple):
    """A tensor that a step leaves at places. put: sets them; count: at how many of them it is."""

    tensor: Tensor
    put: Callable[[Tensor], None]
    count: Callable[[Any], int]


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
        # (attribute, its owner, its value) for each one that was noted
        self.noted = [
            (attribute, link, getattr(link(), attribute))
            for (_, attribute), link in noted.items()
            if link is not None and link() is not None
        ]
        modules = {link: was for attribute, link, was in self.noted if attribute == "_settings"}
        hooks = [hook for attribute, _, was in self.noted if attribute == "_hooks" for hook in was]
        walk = Walk(function, instance, given, modules, [hook.function for hook in hooks])
        self.names, self.read, self.grows = walk.names, walk.read, walk.grows
        self.stored, self.generators = walk.stored, walk.generators
        # whether the code looked at requires_grad of tensors; and whether none was True, in which
        # case None and False differ
        marks = [mark for attribute, _, mark in self.noted if attribute == "_requires_grad"]
        self.differentiates = bool(marks)
        self.unmarked = self.differentiates and not any(marks)
        self.gone: list[str] = []  # shapes of tensors that the step read and that are gone
        self.modules = [*modules]
        self.constants: list[tuple[weakref.ref[Tensor], Node]] = []  # see `_constants`
        # place → the number or text that the step leaves there, and what sets it again (see `_set`)
        self.left_plain: dict[str, tuple[Any, Callable[[Any], None] | None]] = {}
        self.doubtful: dict[str, Any] = {}
        # the same for modes and options that it writes before it reads them
        owners = {number: link for (number, _), link in noted.items() if link is not None}
        self.modes = [
            (attribute, owners[number], vars(owners[number]())[attribute])
            for (number, attribute), link in noted.items() if link is None and number in owners
            and attribute in getattr(owners[number](), "__dict__", ())
        ]  # fmt: skip
        self.drawn: Any = None  # the generators that the step draws from, of one thread
        self.left, self.seen = noted.left, changes[:]
        self.links: list[weakref.ref[Holder]] = []  # held, as else nobody would call them back
        self.differs = self._look()

    def _look(self) -> Callable[[], bool]:
        """Generate the check as code: it is a microsecond or two of every replay."""
        names = self.names
        names |= {"gone": self.gone, "changes": changes, "seen": self.seen, "MISSING": MISSING}
        names |= {"states": states, "drawn": self.drawn}
        tests = ["gone", *["changes != seen"][: len(self.noted)]]
        for number, (place, read) in enumerate(self.read.items()):
            names[f"value{number}"] = read.value
            tests.append(f"{read.near or place} {read.test} value{number}")
        for number, (place, (value, _)) in enumerate(self.left_plain.items()):
            names[f"left{number}"] = value
            tests.append(f"{place} is not left{number}")
        for number, (link, node) in enumerate(self.constants):
            names[f"link{number}"], names[f"node{number}"] = link, node
            tests.append(f"getattr(link{number}(), 'raw', node{number}) is not node{number}")
        tests += ["states() is not drawn"] if self.drawn is not None else []
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
        """JitError if a value has changed."""
        if not self.differs():
            return
        for shape in self.gone:
            raise JitError(
                f"{self.name} reads a tensor of shape {shape} that no longer exists (was it "
                "replaced, as in layer.weight = …, or was a computed tensor marked as a leaf?), "
                "but a replay would always read the old one; write with .assign(), or call .reset()"
            )
        for place, (before, label, part, *_) in self.read.items():
            now = self._now(place)
            if now is before or _equal(now, before):
                continue
            if part:
                whole, *_ = label.partition("[")
                raise JitError(
                    f"{self.name} reads {whole!r}, whose contents have changed since the capture, "
                    "but a replay would not see the change; pass it as a Tensor argument, or call "
                    ".reset()"
                )
            raise JitError(
                f"{self.name} reads {label!r}, which was {_show(before)} in the capture and is "
                f"{_show(now, True)} now, but a replay would not see the change; pass it as an "
                "argument (as a Tensor if it changes), write to a Tensor in place with .assign(), "
                "or call .reset()"
            )
        self._check_noted()
        self._set()
        for link, node in self.constants:
            constant = link()
            if constant is not None and constant.raw is not node:
                if constant.raw.op is Op.CONST and constant._origin is None:
                    constant._own_memory()  # the next write does not need another capture
                raise Outdated

    def _now(self, place: str) -> Any:
        """What is at a place."""
        try:
            return eval(place, self.names)
        except MISSING:
            return GONE

    def _set(self) -> None:
        """Set again what the step leaves at places besides tensors, if it is another now."""
        for place, (value, put) in self.left_plain.items():
            if self._now(place) is not value:
                if put is None:
                    self.doubtful[place] = value
                    raise Outdated
                put(value)
                changes[0] += 1
        for attribute, link, value in self.modes:
            owner = link()
            if owner is not None and vars(owner).get(attribute, GONE) != value:
                vars(owner)[attribute] = value
                changes[0] += 1
        self.seen[0] = changes[0]

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
        moved to another place, such as the result. kept: older tensors that it returns.
        """
        now = {**self.stored, **{place: read.value for place, read in self.read.items()}}
        moved = {*map(id, kept), *map(id, now.values())}
        if any(node.arg in memory for node in self.left):
            self._refuse_replaced("a tensor of a module that it calls")
        for place, (was, label, *_) in before.read.items():
            if isinstance(was, Iterator) and not isinstance(was, IOBase):
                raise JitError(
                    f"{self.name} reads the iterator {label!r}, but a replay would not advance it; "
                    "call next() outside, and pass the result"
                )
            new = self.read.get(place, before.read[place]).value
            is_read = isinstance(was, Tensor) and (was.raw.arg in memory or id(was) in moved)
            if isinstance(was, list):  # ids of keys: those of a new dict differ
                was, new = len(was), len(new)
            if is_read and was is not new or isinstance(was, PLAIN) and not _equal(was, new):
                self._refuse_replaced(repr(label))
        for attribute, link, was in before.noted:
            if link() is not None and getattr(link(), attribute) != was:
                self._refuse_replaced(f"{type(link()).__name__}'s {attribute.strip('_')}")
        for grown, items, label in before.grows:
            known = {*map(id, items)}
            added, _ = flatten([item for item in grown if id(item) not in known])
            if added and len(grown) > len(items):
                raise JitError(
                    f"{self.name} adds a tensor to {label!r}, but a replay would add nothing; "
                    "return the tensor, and add it outside"
                )

    def note_left(self, before: Outside, doubtful: dict[str, Any]) -> None:
        """Note the numbers and texts at places that the step sets.

        before: what was there before the call. doubtful: what former captures found at places where
        it has changed between calls: if the same is there again, the step has set it.
        """
        self.doubtful = doubtful
        for place, value in self.stored.items():
            sets = before.stored.get(place) is not value or doubtful.get(place, GONE) is value
            if isinstance(value, PLAIN) and (sets or place not in doubtful):
                self.left_plain[place] = value, self._setter([place])[0] if sets else None

    def take_stores(self, old: Container[int], written: Collection[Buffer]) -> list[Store]:
        """Tensors that the step itself leaves at places that it sets.

        A replay sets these places again, so they are not checked. old: ids of other tensors; those
        that are constants are checked from now on. written: memory that a replay writes.
        """
        tensors = {id(value): value for value in self.stored.values()
                   if isinstance(value, Tensor) and id(value) not in old}  # fmt: skip
        places = grouped((id(value), place) for place, value in self.stored.items())
        self.stored = {}
        self.read = {p: one for p, one in self.read.items() if id(one.value) not in tensors}
        self.constants = [(weakref.ref(tensor), tensor.raw) for tensor in self._constants()
                          if id(tensor) in old]  # fmt: skip
        self.noted = [note for note in self.noted
                      if note[0] != "requires_grad" or id(note[1]()) in old]  # fmt: skip
        if any(state.buffer.arg in written for state in states().values()):
            self.drawn = states()
        self.differs = self._look()
        return [Store(tensor, *self._setter(places[key])) for key, tensor in tensors.items()]

    def _constants(self) -> Iterator[Tensor]:
        """Tensors that the code reads, whose values are in the programs, as they have no memory."""
        values = [read.value for read in self.read.values()]
        for link in self.modules:
            values += vars(link()).values() if link() is not None else ()
        for tensor in {id(value): value for value in values if isinstance(value, Tensor)}.values():
            if all(node.op is not Op.BUFFER for node in topological([tensor.raw])):
                yield tensor

    def _setter(self, places: Sequence[str]) -> tuple[Callable[..., None], Callable[..., int]]:
        """Functions that set places to a tensor, and count at how many of them an object is."""
        text = "def put(value):\n" + "".join(f"    {place} = value\n" for place in places)
        text += "def count(value):\n    found = 0\n" + "".join(
            f"    try:\n        found += {place} is value\n    except MISSING:\n        pass\n"
            for place in places
        )
        exec(compile(f"{text}    return found\n", f"<what {self.name} sets>", "exec"), self.names)
        return self.names.pop("put"), self.names.pop("count")

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

    def _check_noted(self) -> None:
        """JitError if an attribute that was noted has another value now."""
        count = changes[0]
        for attribute, link, before in self.noted:
            owner = link()  # an owner that is gone cannot have changed
            now = before if owner is None else getattr(owner, attribute)
            if isinstance(owner, Tensor) and attribute == "_requires_grad":
                self.check_mark(owner, before)
            elif now != before:
                self._refuse_noted(type(owner).__name__, attribute.strip("_"), before, now)
        self.seen[0] = count

    def _refuse_noted(self, owner: str, name: str, before: Any, now: Any) -> None:
        if isinstance(before, dict):
            name = next(n for n in {**before, **now} if before.get(n) != now.get(n))
            before, now = before.get(name), now.get(name)
        raise JitError(
            f"{self.name} calls a {owner} whose {name} was {_show(before)} in the capture and is "
            f"{_show(now, True)} now, but a replay would not see the change; set it back, capture "
            "another function for it, or call .reset()"
        )


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
        return f"{'another' if is_new else 'one'} {type(whole).__name__}"
    if isinstance(value, Tensor):
        return "another Tensor" if is_new else "one Tensor"
    return repr(value)[:60]
