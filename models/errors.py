"""The one exception of the models: its message is a sentence for the person at the keyboard."""

from __future__ import annotations

from minigrad.errors import MinigradError


class InputError(MinigradError, ValueError):
    """A flag, a file or a missing package; says what is wrong and what to do."""
