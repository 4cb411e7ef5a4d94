"""Quantization of matrices to GGUF's types.

Once a group's scale is known, rounding each element well is easy; so the scale is searched. About
20 scales around the one that just covers the group are tried. For each, the elements are rounded
and least squares give the best scale (and minimum) for these integers; the result with the smallest
error is kept. Errors of large elements count more, because they matter more in products.
"""

from __future__ import annotations

from minigrad.dtype import dtypes
from minigrad.errors import expect
from minigrad.linalg.decompositions import reciprocal
from minigrad.nn.gguf_blocks import KINDS, LAYOUTS, Parts, packed
from minigrad.nn.quantized import SUPER, Kind
from minigrad.tensor import Tensor

CHUNK = 1 << 22  # elements rounded by one program
MOST = 65504.0  # the largest float16
LEAST = 2.0**-25  # half of the smallest float16, so of the smallest scale: less is 0 in every type
ROUNDING = 1e-5  # relative difference of float32 sums that may be rounding

# Distances of the tried scales from the covering one, in integers at the end of the range.
STEPS = [step / 10 for step in range(-9, 10)]


def quantize(name: str, values: Tensor) -> bytes:
    """The blocks of a matrix (rows, columns) in a quantized type, row after row.

    name: one of `KINDS`. ShapeError unless rows are whole blocks; ValueError for a value that is
    not finite or beyond ±65504, which no float16 scale reaches.
    """
    kind = KINDS[name]
    rows, columns = values._known_shape()
    expect(not columns % kind.block, name, f"rows in multiples of {kind.block}", columns)
    with Tensor.no_grad():
        flat = within_reach(name, values)
        flat = (flat.abs() < LEAST).where(0, flat).realize()  # 1/scale stays finite
        pieces = []
        for start in range(0, rows * columns, CHUNK):
            some = flat[start : start + CHUNK].contiguous()
            pieces.append(bytes(packed(name, _parts(kind, some))._bytes()))
    return b"".join(pieces)


def within_reach(name: str, values: Tensor) -> Tensor:
    """values as flat float32; ValueError for one beyond the range of float16."""
    flat = values.float().reshape(-1).contiguous().realize()
    largest = flat.abs().max().item()
    if not largest <= MOST:
        raise ValueError(f"has values as large as {largest}; {name} holds at most {MOST:.0f}")
    return flat


def _parts(kind: Kind, flat: Tensor) -> Parts:
    """Parts for `packed`, as a single row."""
    low = -kind.zero  # the smallest and the largest integer of the type
    high = low + (1 << LAYOUTS[kind.name].bits) - 1
    x = flat.reshape(-1, kind.group).realize()
    if kind.minimum:
        found = list(affine(x, high, at_most_zero=kind.factors))
    elif kind.name == "Q8_0":
        found = [x.abs().max(1, keepdim=True) / high]
    else:
        found = [symmetric(x, low, high)]
    Tensor.realize(*found)
    codec = LAYOUTS[kind.name].codec
    if codec is not None:
        stored, (scale, *minima) = _factored(kind, codec.most, found)
    else:
        # least squares may want a slightly lower minimum
        stored = [part.clip(-MOST, MOST).half().reshape(1, -1, 1) for part in found]
        scale, *minima = [part.reshape(-1, 1).float() for part in stored]
    above = x - minima[0] if minima else x
    integers = (above * reciprocal(scale)).round().clip(low, high)
    return [(integers + kind.zero).cast(dtypes.uint8).reshape(1, -1, kind.block), *stored]


def _factored(kind: Kind, most: int, found: list[Tensor]) -> tuple[Parts, list[Tensor]]:
    """(parts without the integers, the scales and minima that they represent).

    most: the largest scale in units of its factor; without minima, scales are signed. found:
    scales, and perhaps minima ≤ 0, each (groups, 1).
    """
    integers, factors, meant = [], [], []
    for part, sign in zip(found, (1, -1), strict=False):
        each = part.reshape(-1, SUPER // kind.group) * sign
        if kind.minimum:
            least, factor = 0, each.max(1, keepdim=True) / most
        else:  # one more integer below 0 than above
            least, factor = -most - 1, _extreme(each) / (-most - 1)
        factor = factor.half().realize()
        number = (each * reciprocal(factor.float())).round().clip(least, most)
        integers.append(number.cast(dtypes.int8).reshape(1, -1, 1))
        factors.append((factor * sign).reshape(1, -1, 1))
        meant.append((number * factor.float() * sign).reshape(-1, 1))
    return [*integers, Tensor.cat(factors, dim=2)], meant


def symmetric(x: Tensor, low: int, high: int) -> Tensor:
    """Scales (groups, 1) for x (groups, elements) ≈ scale · q with integers q from low to high.

    The extreme element gets about the integer `low`, the one of largest magnitude, so a scale may
    be negative.
    """
    *_, both, squares = _tried(x, x, _extreme(x), low, (low, high))
    best = both * reciprocal(squares)
    return best.gather(1, (both * best).argmax(1, keepdim=True))


def affine(x: Tensor, high: int, at_most_zero: bool) -> tuple[Tensor, Tensor]:
    """Scales and minima (groups, 1) for x (groups, elements) ≈ scale · q + minimum, 0 ≤ q ≤ high.

    at_most_zero: minima must be ≤ 0.
    """
    least, largest = x.min(1, keepdim=True), x.max(1, keepdim=True)
    if at_most_zero:
        least, largest = least.minimum(0), largest.maximum(0)
    reach = largest - least
    scales, weight, q, sum_xq, sum_qq = _tried(x, x - least, reach, high, (0, high))
    one = weight.sum(2)
    sum_x, sum_q = (weight * x.unsqueeze(1)).sum(2), (weight * q).sum(2)
    spread = one * sum_qq - sum_q * sum_q
    alike = spread <= ROUNDING * one * sum_qq  # equal integers determine no scale
    divisor = reciprocal(spread)
    scale = alike.where(scales.squeeze(2), (one * sum_xq - sum_q * sum_x) * divisor)
    minimum = alike.where(least, (sum_qq * sum_x - sum_q * sum_xq) * divisor)
    if at_most_zero:
        above = minimum > 0
        scale = above.where(sum_xq * reciprocal(sum_qq), scale)
        minimum = above.where(0, minimum)
    # the squared error, without the part common to all scales
    error = (
        scale * scale * sum_qq + minimum * minimum * one
        + 2 * (scale * minimum * sum_q - scale * sum_xq - minimum * sum_x)
    )  # fmt: skip
    best = error.argmin(1, keepdim=True)
    return scale.gather(1, best).maximum(0), minimum.gather(1, best)


def _tried(
    x: Tensor, above: Tensor, reach: Tensor, end: int, limits: tuple[int, int]
) -> tuple[Tensor, ...]:
    """Scales around the one for which `reach` is the integer `end`: (groups, scales, 1).

    Also weights of the elements' errors, the integers q of `above` (x, perhaps minus something),
    and the weighted sums of x·q and q².
    """
    scales = reach.unsqueeze(1) / (end + Tensor(STEPS, device=x.device).reshape(1, -1, 1))
    weight = (x.abs() + (x * x).mean(1, keepdim=True).sqrt()).unsqueeze(1)
    q = (above.unsqueeze(1) * reciprocal(scales)).round().clip(*limits)
    return scales, weight, q, (weight * x.unsqueeze(1) * q).sum(2), (weight * q * q).sum(2)


def _extreme(x: Tensor) -> Tensor:
    """The element of largest magnitude, with its sign: (n, m) → (n, 1)."""
    return x.gather(1, x.abs().argmax(1, keepdim=True))
