"""Every exception that minigrad raises on purpose.

Each one derives from `MinigradError` and from the builtin that a caller would expect, so that
`except ValueError` keeps working. A message says what was given, what was expected, what to do.
"""

from __future__ import annotations

from typing import Any


class MinigradError(Exception):
    """Root of all errors raised by minigrad."""


class ShapeError(MinigradError, ValueError, RuntimeError):
    """Shapes or axes do not fit an operation; PyTorch raises a RuntimeError for that."""


def misfit(
    name: str, expected: str, *given: object, error: type[Exception] = ShapeError,
    **arguments: object,
) -> Exception:  # fmt: skip
    """The error to raise if something does not fit: "cdist of (2,) and (3,): expected matrices".

    given: tensors, whose shapes are shown, or words that say more about one. arguments: arguments
    of the function `name` that the error is about, as in "diff(n=-1): expected n ≥ 0".
    """
    shapes = " and ".join(str(getattr(one, "shape", one)) for one in given)
    shown = ", ".join(f"{word}={value!r}" for word, value in arguments.items())
    what = (f"{name}({shown})" if arguments else name) + (f" of {shapes}" if given else "")
    return error(f"{what}: expected {expected}")


def expect(holds: object, name: str, expected: str, *given: object, **options: Any) -> None:
    """Raise the error that `misfit` makes of the other arguments, unless a condition holds.

    The arguments are evaluated before the check. So functions that are called often, and whose
    message must be computed, use an if and raise `misfit` instead.
    """
    if not holds:
        raise misfit(name, expected, *given, **options)


class AxisError(ShapeError, IndexError):
    """A tensor does not have this axis; PyTorch raises an IndexError for that."""


class DTypeError(MinigradError, TypeError, RuntimeError):
    """A dtype does not fit an operation, or is not supported by a device."""


class RangeError(MinigradError, OverflowError):
    """A Python number is beyond what a dtype holds."""


class DeviceError(MinigradError, RuntimeError):
    """Tensors are on different devices, or a device is missing or has failed."""


class GradientError(MinigradError, RuntimeError):
    """A gradient was requested that does not exist."""


class StateError(MinigradError, KeyError, RuntimeError):
    """The names of a state are not those of a model; PyTorch raises a RuntimeError for that."""
    __str__ = Exception.__str__  # KeyError's puts quotes around the message


class SettingError(MinigradError, ValueError):
    """A setting has an invalid value."""


class CompileError(MinigradError, RuntimeError):
    """A kernel could not be lowered, rendered or compiled."""


class JitError(MinigradError, RuntimeError):
    """Replaying a captured step would silently give another result."""


class ScanError(MinigradError, RuntimeError):
    """`Tensor.scan` cannot repeat a function, or a value was read while it describes a step."""


class BoundsError(MinigradError, IndexError):
    """An index is out of range for its axis."""


class DomainError(BoundsError, ValueError, RuntimeError):
    """An operation does not accept a value; PyTorch raises a RuntimeError for that."""


class LostValueError(MinigradError, RuntimeError):
    """A value was read that does not exist, because the program that should write it failed."""
