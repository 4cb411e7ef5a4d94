"""`@jit`: capture what a step runs (`capture`), replay it (`replay`) as one call of the device."""

from minigrad.jit.jitted import Jitted, jit

__all__ = ["Jitted", "jit"]
