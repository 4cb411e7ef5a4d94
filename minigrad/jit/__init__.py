"""`@jit`: capture what a step runs (`capture`), replay it (`replay`) as one call of the device.

`jitted` is the decorator.
"""

from minigrad.jit.jitted import Jitted, jit

__all__ = ["Jitted", "jit"]
