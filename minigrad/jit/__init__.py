"""`@jit`: capture what a step runs (`capture`), replay it (`replay`) as one call of the device.

`jitted` is the decorator; `sorting` makes the replay of what was recorded.
"""

from minigrad.jit.jitted import Jitted, jit

__all__ = ["Jitted", "jit"]
