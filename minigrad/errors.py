"""Every exception that minigrad raises on purpose.

Each one derives from `MinigradError` and from the builtin that a caller would expect, so that
`except ValueError` keeps working. A message is one short sentence, in one of these forms:

- a wrong argument, shown as the call:  `diff(n=-1): expected n ≥ 0`
- wrong tensors, types or counts:       `trace: expected a matrix, got shape (2, 3, 4)`
- one of several words:                 `div(rounding_mode='up'): expected 'floor' or 'trunc'`
- an unknown name:                      `unknown setting 'DBUG': expected one of DEBUG, …`
- something impossible, and why:        `no gradient for int32: only floats have gradients`
- a file:                               `w.gguf: cannot read this GGUF file: version: expected …`

What to type instead comes last, after a semicolon: `…; write Adam([x])`. "got" names a shape, a
dtype or a type; "expected" says what fits, not what is wrong.
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
    """The error to raise if something does not fit: "trace: expected a matrix, got shape (2,)".

    expected: what would fit; after a semicolon, what to type instead. given: tensors, whose shapes
    are shown, or words that describe what was given. arguments: arguments of the function `name`
    that the error is about, as in "diff(n=-1): expected n ≥ 0".
    """
    call = ", ".join(f"{word}={value!r}" for word, value in arguments.items())
    shapes = " and ".join(str(getattr(one, "shape", one)) for one in given)
    if given and all(hasattr(one, "shape") for one in given):
        shapes = f"shape{'s' * (len(given) > 1)} {shapes}"
    fits, semicolon, instead = expected.partition("; ")
    got = f", got {shapes}" if given else ""
    return error(f"{name}{f'({call})' if call else ''}: expected {fits}{got}{semicolon}{instead}")


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
    """A Python number is outside the range of a dtype."""


class DeviceError(MinigradError, RuntimeError):
    """Tensors are on different devices, or a device is missing or has failed."""


class GradientError(MinigradError, RuntimeError):
    """A gradient was requested that does not exist."""


class StateError(MinigradError, KeyError, RuntimeError):
    """The names in a state do not match a model's; PyTorch raises a RuntimeError for that."""
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
