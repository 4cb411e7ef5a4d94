"""Random numbers from Python's and numpy's generators, which a replay would not draw again."""

from __future__ import annotations

import pickle
import sys
import threading
import warnings

from minigrad.errors import JitError

# Modules with a generator that all threads share, and the function that returns its state.
_DRAWING = {"random": "getstate", "numpy.random": "get_state"}


def generators() -> dict[str, bytes]:
    """The generators' states, for the modules that were imported."""
    loaded = {name: sys.modules[name] for name in _DRAWING if name in sys.modules}
    return {name: pickle.dumps(getattr(loaded[name], _DRAWING[name])()) for name in loaded}


def refuse_draws(name: str, before: dict[str, bytes]) -> None:
    """JitError if the step `name` has drawn random numbers since `before`.

    Only a warning if it may have been another thread.
    """
    drawn = [module for module, state in generators().items() if state != before.get(module, state)]
    if drawn:
        said = (
            f"{name} draws from {' and '.join(drawn)}, but a replay would always use the same "
            "numbers; draw outside and pass them as arguments, or use Tensor.rand"
        )
        running = (t for t in threading.enumerate() if not t.name.startswith("minigrad "))
        if set(running) <= {threading.current_thread()}:
            raise JitError(said)
        warnings.warn(f"{said} (ignore this if another thread drew them)", stacklevel=5)
