"""Some of all combinations of choices: of any two axes, each pair of choices is in one of them.

What goes wrong depends on one choice, or on two that meet; of three axes of 8, 7 and 5 choices
these are 60 cases, not 280.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations, product
from typing import Any


def pairwise(*axes: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Combinations, one choice of each axis: always the one with most pairs that are left."""
    choices = [list(axis) for axis in axes]
    places = list(product(*(range(len(axis)) for axis in choices)))

    def pairs(place: tuple[int, ...]) -> set[Any]:
        return {*combinations(enumerate(place), 2)}

    left = set().union(*map(pairs, places))
    found = []
    while left:
        best = max(places, key=lambda place: len(pairs(place) & left))
        left -= pairs(best)
        found.append(tuple(axis[at] for axis, at in zip(choices, best, strict=True)))
    return found
