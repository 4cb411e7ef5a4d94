"""Movement by names of dimensions: "batch (h w) c -> batch c h w"."""

from __future__ import annotations

import re
from typing import Any, Self

from minigrad.errors import ShapeError
from minigrad.tensor.broadcasting import product, show
from minigrad.tensor.methods import Methods

Groups = list[list[str]]
_DOTS = "*"  # dots that stand for dimensions of their own; in brackets they stay "..."


class Rearrange(Methods):
    """Movement by names."""

    __slots__ = ()

    def rearrange(self, pattern: str, **sizes: int) -> Self:
        """Dimensions split, reordered and merged, as einops.rearrange does.

        pattern: names of self's dimensions, "->", the same names in the result's order. (a b) is
        one dimension made of two, of which one extent must be given in `sizes` unless it is 1;
        "..." stands for any number of dimensions, 1 and () for one of extent 1.

        >>> Tensor.zeros(2, 6).rearrange("b (h w) -> b w h", h=2).shape
        (2, 3, 2)
        """
        left, arrow, right = pattern.partition("->")
        if not arrow:
            raise ShapeError(f"rearrange {pattern!r}: expected 'before -> after'")
        before, after = _groups(pattern, left), _groups(pattern, right)
        before, after = self._dots(pattern, before, after)
        if len(before) != self.ndim:
            raise ShapeError(
                f"rearrange {pattern!r} of {show(self.shape)}: it names {len(before)} dimensions"
            )
        names = [name for group in before for name in group]
        wanted = [name for group in after for name in group]
        unknown = sorted(set(sizes) - set(names))
        if len(set(names)) < len(names) or sorted(names) != sorted(wanted) or unknown:
            raise ShapeError(
                f"rearrange {pattern!r} with {sizes}: expected the same names on both sides, each "
                "once, and sizes of these names"
            )
        extents: dict[str, Any] = dict(sizes)
        for group, extent in zip(before, self.shape, strict=True):
            self._measure(pattern, group, extent, extents)
        split = self.reshape(tuple(extents[name] for name in names))
        moved = split.permute(*(names.index(name) for name in wanted))
        return moved.reshape(tuple(product([extents[n] for n in group]) for group in after))

    def _dots(self, pattern: str, before: Groups, after: Groups) -> tuple[Groups, Groups]:
        """Both sides with names of their own in the place of "..."."""
        count = self.ndim - sum(group != [_DOTS] for group in before)
        if [_DOTS] not in before or count < 0:
            return before, after
        names = [f".{i}" for i in range(count)]
        sides: list[Groups] = []
        for side in (before, after):
            found: Groups = []
            for group in side:
                if group == [_DOTS]:
                    found += [[name] for name in names]
                elif "..." in group:
                    place = group.index("...")
                    found.append(group[:place] + names + group[place + 1 :])
                else:
                    found.append(group)
            sides.append(found)
        return sides[0], sides[1]

    def _measure(
        self, pattern: str, group: list[str], extent: Any, extents: dict[str, Any]
    ) -> None:
        """The extents of a group's names, one of which may follow from the whole."""
        if len(group) == 1 and group[0] not in extents:
            extents[group[0]] = extent
            return
        open_ = [name for name in group if name not in extents]
        known: Any = product([extents[name] for name in group if name in extents])
        if len(open_) == 1 and isinstance(extent, int) and known and extent % known == 0:
            extents[open_[0]] = extent // known
        elif open_ or known != extent:
            raise ShapeError(
                f"rearrange {pattern!r} of {show(self.shape)}: a dimension of {extent} is "
                f"({' '.join(group)}) with {extents}; expected extents whose product it is"
            )


def _groups(pattern: str, side: str) -> Groups:
    """The dimensions of one side: lists of names; a 1 has no name."""
    side = side.replace("…", "...")
    tokens = re.findall(r"\.\.\.|\w+|\(|\)|\S", side)
    groups: Groups = []
    inside = False
    for token in tokens:
        if token in "()":
            if (token == "(") == inside:
                raise ShapeError(f"rearrange {pattern!r}: brackets do not match")
            inside = token == "("
            if inside:
                groups.append([])
        elif token == "1":
            if not inside:
                groups.append([])
        elif token != "..." and not token.isidentifier():
            raise ShapeError(f"rearrange {pattern!r}: unexpected {token!r}")
        elif inside:
            groups[-1].append(token)
        else:
            groups.append([_DOTS if token == "..." else token])
    if inside:
        raise ShapeError(f"rearrange {pattern!r}: brackets do not match")
    return groups
