"""The one exception of the models: its message is a sentence for the person at the keyboard."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from minigrad.errors import MinigradError


class InputError(MinigradError, ValueError):
    """A flag, a file or a missing package; says what is wrong and what to do."""


@contextmanager
def failing_as(what: str) -> Iterator[None]:
    """What the system refuses in the block is an InputError: `what` ("cannot read x"), and why."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{what}: {error.strerror or error}") from None
