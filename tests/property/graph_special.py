"""Rules of random graphs that found bugs elsewhere: NaN behind masks, norms of zero rows,
deviations of equal numbers, and very long sums.
"""

from __future__ import annotations

from math import prod

from .graph_steps import Maker, reduced
from .leaves import LONG


def hidden(m: Maker) -> None:
    """NaN, infinities and 1e30, excluded by an index mask, causal attention, or a slice."""
    t, width = int(m.random.choice((5, 31, 33, 40))), int(m.random.choice((3, 8, 17)))
    if m.large:
        t = int(m.random.choice((129, 255, 300)))
    c = 1 + m.below(t - 1)
    x = m.hidden((t, width), c)
    row = f"Tensor.arange({t}).reshape({t}, 1)"
    kind = m.below(4)
    if kind == 0:
        m.add(f"({row} < {c}).where({x.name}, 0.25)", [x], x.shape, "float32", 4.0, True)
    elif kind == 1:
        m.add(f"{x.name}.masked_fill({row} >= {c}, -1).cumsum(0)[:{min(c, 20)}]", [x],
              (min(c, 20), width), "float32", 80.0)  # fmt: skip
    elif kind == 2:
        m.add(f"{x.name}[:{c}].softmax(0)", [x], (c, width), "float32", 1.0)
    else:
        q, k = m.leaf((c, width)), m.leaf((t, width))  # queries that do not see it
        keys = k if m.chance(0.5) else x
        code = f"{q.name}.scaled_dot_product_attention({keys.name}, {x.name}, is_causal=True)"
        m.add(code, [q, keys, x], (c, width), "float32", 4.0)


def special_points(m: Maker) -> None:
    """Norms of zero rows, deviations of equal numbers, and variances far from 0, of exact values
    whose mean is exact, too.
    """
    x = m.pick(lambda v: v.exact and v.dtype == "float32" and v.bound <= 8 and 0 not in v.shape
               and len(v.shape) > 0 and v.shape[-1] in (2, 4, 8, 16, 64, 128, 256))  # fmt: skip
    x = x or m.leaf((int(m.random.choice((1, 3, 9))), 8), "float32", 5, "rows")
    n = x.shape[-1]
    code, new, bound = [
        (f"{x.name}.normalize(axis=-1)", x.shape, 1.0),
        (f"{x.name}.std(-1, correction=0)", x.shape[:-1], x.bound),
        (f"({x.name} + 1000).var(-1)", x.shape[:-1], 2 * x.bound**2),
        (f"({x.name} * 0.5 + 100).std(-1, keepdim=True)", (*x.shape[:-1], 1), x.bound),
    ][m.below(4)]
    if n > 1:
        m.add(code, [x], new, "float32", bound)


def long(m: Maker) -> None:
    """Sums and running sums of many similar values, along either axis, scaled back."""
    n = int(m.random.choice(LONG))
    shape, axis = ((n,), 0) if m.chance(0.5) else (((2, n), 1) if m.chance(0.5) else ((n, 3), 0))
    x = m.leaf(shape, "float32", 5, str(m.one_of(("equal", "parts", "ties"))))
    scale = 1 / n
    code = str(m.one_of(("sum({a})", "mean({a}) * {n}", "cumsum({a})", "var({a}) * {n}")))
    new = shape if "cumsum" in code else reduced(shape, (axis,), False)
    made = m.add(f"({x.name}.{code.format(a=axis, n=n)} * {scale!r})", [x], new, "float32", 1.0)
    if "cumsum" in code:  # other statements read a short part of it
        kept = f"{made.name}[::-{n // 7}]" if axis == 0 else f"{made.name}[:, ::-{n // 7}]"
        rows = len(range(n)[:: -(n // 7)])
        m.add(kept, [made], (rows, *shape[1:]) if axis == 0 else (shape[0], rows), "float32", 1.0)
    for name in (x.name, made.name):  # other statements do not read large values
        if prod(m.values[name].shape) > m.most:
            del m.values[name]
            m.targets = [target for target in m.targets if target != name]
