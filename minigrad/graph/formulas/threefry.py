"""Threefry-2x32 with 20 rounds: two random words of a key and a counter, of two words each.

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011. It takes
additions, rotations and exclusive ors of 32-bit integers only, so all devices give the same bits.
"""

from __future__ import annotations

from typing import Any

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def words(first: Any, second: Any, low: Any, high: Any) -> tuple[Any, Any]:
    """Of a key and a counter: what they are made of has the operators of 32-bit integers."""
    keys = (first, second, first ^ second ^ _PARITY)
    x, y = low + first, high + second
    for group in range(5):
        for by in _ROTATIONS[group % 2]:
            x = x + y
            y = (y << by | y >> 32 - by) ^ x
        x = x + keys[(group + 1) % 3]
        y = y + keys[(group + 2) % 3] + (group + 1)
    return x, y
