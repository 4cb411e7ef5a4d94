"""Random numbers from Python's and numpy's generators, which a replay would not draw again."""

from __future__ import annotations

import pickle
import random
import sys
import threading
import warnings
from collections.abc import Mapping
from typing import Any

from minigrad.errors import JitError

# Modules with a generator that all threads share, and the function that returns its state.
_DRAWING = {"random": "getstate", "numpy.random": "get_state", "torch.random": "get_rng_state"}


def is_generator(value: Any) -> bool:
    """Whether it is a random generator of Python or numpy, which has a state."""
    if isinstance(value, random.Random):
        return not isinstance(value, random.SystemRandom)
    return type(value).__module__.startswith("numpy.random")


def generators(known: Mapping[int, tuple[str, Any]]) -> dict[tuple[int, str], bytes]:
    """The states of known generators, and of those in the modules that were imported.

    Both are named: known has names by the generators' ids.
    """
    states: dict[tuple[int, str], Any] = {}
    for number, (name, generator) in known.items():
        is_pythons = isinstance(generator, random.Random)
        states[number, name] = generator.getstate() if is_pythons else generator
    for name, get in _DRAWING.items():
        if name in sys.modules:
            state = getattr(sys.modules[name], get)()
            states[0, name] = state.numpy() if hasattr(state, "numpy") else state
    return {key: pickle.dumps(state) for key, state in states.items()}


def refuse_draws(
    name: str, before: Mapping[tuple[int, str], bytes], now: Mapping[tuple[int, str], bytes]
) -> None:
    """JitError if the step `name` has drawn random numbers since `before`.

    Only a warning if it may have been another thread, by a module's generator.
    """
    drawn = [key for key, state in now.items() if state != before.get(key, state)]
    if drawn:
        sources = " and ".join(source for _, source in drawn)
        said = (
            f"{name} draws from {sources}, but a replay would always use the same numbers; draw "
            "outside and pass them as arguments, or use Tensor.rand"
        )
        running = (t for t in threading.enumerate() if not t.name.startswith("minigrad "))
        if any(number for number, _ in drawn) or set(running) <= {threading.current_thread()}:
            raise JitError(said)
        warnings.warn(f"{said} (ignore this if another thread drew them)", stacklevel=5)
