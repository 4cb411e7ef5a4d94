"""Whether what a step reads besides its arguments is still what it was when it was captured.

A replay runs no Python, so it looks at each value that the step's code read (`reading.py`): whether
it is the same object, or, of what a container has, whether these are.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from io import IOBase
from operator import is_not
from typing import Any

from minigrad.errors import JitError
from minigrad.jit.reading import PLAIN, Mark, Read, Walk, Watch
from minigrad.tensor import Tensor
from minigrad.tensor.broadcasting import show as shape_of
from minigrad.tensor.live_tensors import Holder
from minigrad.tensor.noted import Noted, changes
from minigrad.tensor.pytree import Same

_MISSING = (AttributeError, LookupError, ValueError)  # from an expression whose name is gone
_GONE = object()
_TESTS = {  # whether what an expression, the first, gives is another than a value, the second
    "is not": "{0} is not {1}",
    "!=": "{0} != {1}",
    "items": "len({0}) != len({1}) or any(map(is_not, {0}, {1}))",
    "pairs": (
        "len({0}) != len({1}) or any(map(is_not, {0}, {1})) "
        "or any(map(is_not, {0}.values(), {1}.values()))"
    ),
}


class Outside:
    """The values that a step reads from outside, as they are now.

    watch: saw what ran. noted: attributes that other code read on the way. differs: a quick look,
    in every call.
    """

    def __init__(self, name: str, watch: Watch, noted: Noted) -> None:
        self.name = name
        # an attribute that was noted, whose it is, what it was
        self.noted = [
            (attribute, link, getattr(link(), attribute))
            for (_, attribute), link in noted.items()
            if link is not None and link() is not None
        ]
        walk = Walk(watch.before.instance, elsewhere={
            id(link()): was for attribute, link, was in self.noted if attribute == "_settings"
        })  # fmt: skip
        for ran in watch.ran():
            walk.of(ran)
        if walk.refused:
            raise JitError(
                f"{name} reads {walk.refused[0]}: too much to look in every call whether it is the "
                "same; pass what it needs of it as an argument (a Tensor where it changes)"
            )
        self.names, self.read = walk.names, walk.read
        # whether it was looked at which tensors are to have a gradient; and whether None is another
        # than False for these, as nobody said True
        marks = [mark for attribute, _, mark in self.noted if attribute == "_requires_grad"]
        self.differentiates, self.unmarked = bool(marks), not any(marks)
        self.gone: list[str] = []  # shapes of tensors that the step read
        self.left, self.seen = noted.left, changes[:]
        self.links: list[weakref.ref[Holder]] = []
        self.differs = self._look()

    def _look(self) -> Callable[[], bool]:
        """Written out, as it costs a replay of a microsecond or two what it costs."""
        names = self.names
        names |= {"gone": self.gone, "changes": changes, "seen": self.seen, "MISSING": _MISSING,
                  "is_not": is_not}  # fmt: skip
        tests = ["gone", *["changes != seen"][: len(self.noted)]]
        for number, (place, read) in enumerate(self.read.items()):
            names[f"value{number}"] = read.value
            tests.append(_TESTS[read.test].format(place, f"value{number}"))
        text = (
            f"def differs():\n    try:\n        return {' or '.join(tests)}\n"
            "    except MISSING:\n        return True\n"
        )
        exec(compile(text, f"<what {self.name} reads>", "exec"), names)
        differs: Callable[[], bool] = names.pop("differs")
        return differs

    def mourn(self, tensors: Sequence[Holder]) -> None:
        """Note when the last of the tensors that stand for a BUFFER, which the step reads, is gone.

        The function can then read it no more: it would find another in its place.
        """
        gone, shape = self.gone, shape_of(tensors[0].raw.shape)
        links: list[weakref.ref[Holder]] = []

        def forget(link: weakref.ref[Holder]) -> None:
            if all(link() is None for link in links):
                gone.append(shape)

        links += [weakref.ref(tensor, forget) for tensor in tensors]
        self.links += links

    def check(self) -> None:
        """JitError where a value is another one."""
        if not self.differs():
            return
        for shape in self.gone:
            raise JitError(
                f"{self.name} reads a tensor of shape {shape} that is gone since it was captured "
                "(was another put in its place, as in layer.weight = …?): a replay would read the "
                "old one for ever; write with .assign(), or .reset()"
            )
        for place, (before, label, _, test) in self.read.items():
            try:
                now = eval(place, self.names)
                if test != "is not" and isinstance(before, list | dict):
                    now = type(before)(now)
            except _MISSING:
                now = _GONE
            if now is before or _equal(now, before):
                continue
            if test != "is not":
                whole, *_ = label.partition("[")
                raise JitError(
                    f"{self.name} reads {whole!r}, whose contents have changed since it was "
                    "captured: a replay would not see them; pass it as a Tensor argument, or "
                    ".reset()"
                )
            raise JitError(
                f"{self.name} reads {label!r}, which was {_show(before)} when it was captured "
                f"and is {_show(now, True)} now: a replay would not see it; pass it as an "
                "argument (a Tensor where it changes), write to a Tensor in place with "
                ".assign(), or .reset()"
            )
        self._check_noted()

    def refuse_given(self, leaves: Sequence[Tensor]) -> None:
        """JitError where an argument that gets a gradient is also a tensor of outside."""
        for read in self.read.values():
            if any(read.value is leaf for leaf in leaves):
                raise JitError(
                    f"{self.name} is given a tensor that it also reads as {read.label!r}: a replay "
                    "could not tell the two apart; pass a .clone(), or do not pass it"
                )

    def refuse_changes(self, before: Mapping[str, Read], memory: Collection[Any]) -> None:
        """JitError where the step has itself changed what it reads.

        before: that, as it was. memory: what a replay reads the values of; a tensor that it does
        not read may be replaced.
        """
        if any(node.arg in memory for node in self.left):
            self._refuse_replaced("a tensor of a module that it calls")
        moved: dict[str, str] = {}  # from objects to those that stand in their place
        for place, (was, label, owner, test) in before.items():
            if isinstance(was, Iterator) and not isinstance(was, IOBase):
                raise JitError(
                    f"{self.name} reads {label!r}, an iterator, of which a replay would take "
                    "nothing: call next() outside, and pass what it gives"
                )
            read = self.read.get(moved.get(owner, owner) + place[len(owner) :])
            if read is None:  # no longer, or it is looked at in another way
                continue
            now, pairs = read.value, []
            if test == "is not":
                pairs = [(was, now)]
            elif isinstance(was, list):
                pairs = [*zip(was, now, strict=False)]
            elif isinstance(was, dict):
                pairs = [(was[key], now[key]) for key in was if key in now]
            if isinstance(was, Mark):
                moved[f"at{was.number}"] = f"at{id(now)}"
            for old, new in pairs:
                tensor = old() if isinstance(old, weakref.ref) else None
                if tensor is not None and tensor is not new and tensor.raw.arg in memory:
                    self._refuse_replaced(repr(label))
                if isinstance(old, PLAIN) and old is not new and not _equal(old, new):
                    self._refuse_replaced(repr(label))

    def _refuse_replaced(self, what: str) -> None:
        raise JitError(
            f"{self.name} reads {what} and puts another in its place: a replay would do neither "
            "anew; write to a Tensor with .assign(), and change numbers outside"
        )

    def check_mark(self, tensor: Tensor, mark: bool | None) -> None:
        """JitError where a tensor is to have a gradient, and was not in the capture, or reversely.

        mark: its requires_grad then.
        """
        now = tensor._requires_grad
        if now is not mark and (self.unmarked or bool(now) is not bool(mark)):
            raise JitError(
                f"{self.name} was captured when the requires_grad of a tensor of shape "
                f"{shape_of(tensor.raw.shape)} was {mark}, and it is {now}: a replay would "
                "give the same tensors gradients as before; set it back, or .reset()"
            )

    def _check_noted(self) -> None:
        """JitError where code would now read something else than it noted."""
        count = changes[0]
        for attribute, link, before in self.noted:
            owner = link()  # one that is gone cannot have changed
            now = before if owner is None else getattr(owner, attribute)
            if isinstance(owner, Tensor):
                self.check_mark(owner, before)
            if isinstance(owner, Tensor) or now == before:
                continue
            name = attribute.strip("_")
            if isinstance(before, dict):
                name = next(n for n in {**before, **now} if before.get(n) != now.get(n))
                before, now = before.get(name), now.get(name)
            raise JitError(
                f"{self.name} calls a {type(owner).__name__} whose {name} was {_show(before)} when "
                f"it was captured and is {_show(now, True)} now: a replay would not see it; put it "
                "back, capture another function for it, or .reset()"
            )
        self.seen[0] = count


def _equal(one: Any, other: Any) -> bool:
    """Whether plain values, or containers of such, are the same."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return _equal([*one.items()], [*other.items()])
    if isinstance(one, list | tuple):
        pairs = list(zip(one, other, strict=False))
        alike = len(one) == len(other)
        return alike and all(a is b or _equal(a, b) for a, b in pairs)
    return isinstance(one, (*PLAIN, set)) and repr(one) == repr(other)  # 0.0 is not −0.0


def _show(value: Any, is_new: bool = False) -> str:
    if value is _GONE:
        return "gone"
    if isinstance(value, Same):
        whole = value.value() if isinstance(value.value, weakref.ref) else value.value
        return f"{'another' if is_new else 'one'} {type(whole).__name__}"
    if isinstance(value, Tensor):
        return "another Tensor" if is_new else "one Tensor"
    return repr(value)[:60]
