"""A selection of combinations: for any two axes, each pair of their choices is in one of them.

Failures depend on one choice, or on two that meet. For three axes of 8, 7 and 5 choices this gives
60 cases instead of 280.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations, product
from typing import Any


def pairwise(*axes: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Combinations of one choice per axis: each time the one with most pairs not covered yet."""
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
