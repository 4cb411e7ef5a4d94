"""The one exception of the models; its message is a sentence for the user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from minigrad.errors import MinigradError


class InputError(MinigradError, ValueError):
    """A problem with a flag, a file or a package; says what is wrong and what to do."""


@contextmanager
def failing_as(what: str) -> Iterator[None]:
    """Turn an OSError in the block into an InputError: `what` ("cannot read x"), and the reason."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{what}: {error.strerror or error}") from None
