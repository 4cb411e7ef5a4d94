"""A user's named int: bound to a value per call, unbound in what is compiled."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from numbers import Integral
from operator import index
from typing import SupportsIndex

from minigrad.errors import expect
from minigrad.graph.substitution import substitute, variables
from minigrad.graph.symbolic import Affine, Atom, Integer, high, var


class Variable:
    """A named int in minimum … maximum whose value is given per call.

    `Variable("pos", 0, 1023).bind(17)` is usable as a dimension or an offset; the compiled kernel
    serves every value, and its loops run only as far as the bound value.
    """

    def __init__(self, name: str, minimum: int, maximum: int) -> None:
        plain = isinstance(name, str) and name.isascii() and name.isidentifier()
        expect(plain and not name.startswith("_"), f"Variable({name!r})", "a name of "
               "letters a … z, A … Z, digits and _, not starting with a digit or _",
               error=ValueError)  # fmt: skip
        bounds = (minimum, maximum)
        expect(all(isinstance(end, Integral) for end in bounds) and 0 <= minimum <= maximum,
               f"Variable({name!r}, {minimum}, {maximum})",
               "ints with 0 <= minimum <= maximum", error=ValueError)  # fmt: skip
        self.name, self.minimum, self.maximum = name, minimum, maximum
        # variables of loops end in a digit (i0, k1: see schedule/axis.py), so a user's must not
        self._of_atom = f"{name}_" if name[-1] == "_" or name[-1].isdigit() else name

    def bind(self, value: SupportsIndex) -> Affine:
        """The variable with a value for this call: an int, or what is one to Python (numpy's)."""
        try:
            whole = index(value)
        except TypeError:
            raise TypeError(f"{self!r}.bind({value!r}): expected an int") from None
        expect(self.minimum <= whole <= self.maximum, f"{self!r}.bind({whole})",
               f"an int in {self.minimum} … {self.maximum}", error=ValueError)  # fmt: skip
        return Atom("var", self._of_atom, self.minimum, self.maximum, payload=whole).index

    def __repr__(self) -> str:
        return f"Variable({self.name!r}, {self.minimum}, {self.maximum})"


def is_own(name: str) -> bool:
    """Whether a variable is a program's own (`graph/general.py`): users cannot name one so."""
    return name.startswith("_")


def is_general(x: Integer) -> bool:
    """Whether x depends on a program's own variable."""
    return any(is_own(atom.name) for atom in variables(x))


def unbind(x: Integer, values: dict[str, int]) -> Integer:
    """x without the bound values, which are recorded in `values`.

    Raises ValueError if one variable has two values: a program runs with one.
    """
    if isinstance(x, int):
        return x
    free, bound = _unbound(x)
    for name, value in bound:
        if values.setdefault(name, value) != value:
            raise ValueError(
                f"the variable {name!r} is bound to {values[name]} and to {value} in the same "
                "program; realize the first tensor before you bind it again"
            )
    return free


@lru_cache(maxsize=1 << 14)  # a step that decodes has the same variables, and few values, each time
def _unbound(x: Affine) -> tuple[Integer, tuple[tuple[str, int], ...]]:
    """x without the bound values, and these by name."""
    bound = [atom for atom in variables(x) if isinstance(atom.payload, int)]
    free: dict[Atom, Integer] = {atom: var(atom.name, atom.low, atom.high) for atom in bound}
    return substitute(x, free), tuple((atom.name, atom.payload) for atom in bound)


def rebind(x: Integer, values: Mapping[str, int]) -> Integer:
    """x with its variables bound to values: the inverse of `unbind`."""
    bound: dict[Atom, Integer] = {}
    for atom in variables(x):
        if atom.name in values and atom.payload is None:
            value = Atom("var", atom.name, atom.low, atom.high, payload=values[atom.name])
            bound[atom] = value.index
    return substitute(x, bound)


def evaluate(x: Integer, values: Mapping[str, int]) -> int:
    """The number that x is when its variables have these values (unbound ones must be given)."""
    if isinstance(x, int):
        return x
    result = x.constant
    for atom, c in x.terms:
        if atom.kind == "div":
            result += c * (evaluate(atom.inner or 0, values) // atom.divisor)
        elif atom.kind == "mod":
            result += c * (evaluate(atom.inner or 0, values) % atom.divisor)
        elif isinstance(atom.payload, int):
            result += c * atom.payload
        else:
            result += c * values[atom.name]
    return result


def most(x: Integer, values: Mapping[str, int]) -> int:
    """The value of x if a program's own variables have these values.

    Users' variables count with their maximum, so that their next value needs no more memory.
    """
    return high(rest_of(x, values))


def rest_of(x: Integer, values: Mapping[str, int]) -> Integer:
    """x with a program's own variables replaced by values."""
    own: dict[Atom, Integer] = {a: values[a.name] for a in variables(x) if is_own(a.name)}
    return substitute(x, own) if own else x


def with_room(x: Integer) -> Integer:
    """x, in which users' variables have their maximum: arrays are laid out for it."""
    users = {atom: atom.high for atom in variables(x) if not is_own(atom.name)}
    return substitute(x, users)
