"""The rules by which random graphs grow: one function per family of operations.

A rule draws its operands from a `Maker` and adds one or a few statements; none if no operand fits.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp, prod, sqrt

import numpy as np

from .compare import EPSILON
from .graph_layouts import columns, convolution, joined_products, lying, shifted
from .graph_special import hidden, long, special_points
from .graph_steps import Maker, Shape, Value, ancestors, reduced

# Code of one operand x → the bound of its result, from the bound of x. Smooth everywhere.
SMOOTH: list[tuple[str, Callable[[float], float]]] = [
    ("{x}.tanh()", lambda b: 1),
    ("{x}.sin()", lambda b: 1),
    ("{x}.cos()", lambda b: 1),
    ("{x}.sigmoid()", lambda b: 1),
    ("{x}.erf()", lambda b: 1),
    ("{x}.atan()", lambda b: 1.6),
    ("({x}.tanh() * 0.9).asin()", lambda b: 1.6),
    ("{x}.gelu()", lambda b: b),
    ("{x}.silu()", lambda b: b),
    ("(-{x})", lambda b: b),
    ("({x} * 0.5 + 1)", lambda b: b / 2 + 1),
    ("(2 - {x})", lambda b: b + 2),
    ("{x}.square()", lambda b: b * b),
    ("({x}.square() + 1).sqrt()", lambda b: b + 1),
    ("({x}.square() + 1).rsqrt()", lambda b: 1),
    ("({x}.square() + 1).log()", lambda b: 2 * b),
    ("(1 / ({x}.square() + 1))", lambda b: 1),
    ("({x}.tanh() * 2).exp()", lambda b: exp(2)),
    ("({x}.tanh() * 3).exp2()", lambda b: 8),
    ("({x}.square() + 0.5) ** 0.75", lambda b: (b * b + 1)),
    ("{x}.contiguous()", lambda b: b),
    ("{x}.softplus()", lambda b: b + 1),
    ("{x}.elu()", lambda b: b),
]
PERIODIC = ("{x}.sin()", "{x}.cos()")
# The same with kinks: continuous, but gradients through them are not tested.
KINKED: list[tuple[str, Callable[[float], float]]] = [
    ("{x}.abs()", lambda b: b),
    ("{x}.relu()", lambda b: b),
    ("{x}.selu()", lambda b: 2 * b),
    ("{x}.leaky_relu()", lambda b: b),
    ("{x}.clip(-1, 2)", lambda b: 2),
    ("{x}.maximum(0.25)", lambda b: max(b, 0.25)),
]


def unary(m: Maker) -> None:
    """A function of one operand."""
    x = m.number()
    table = SMOOTH if m.smooth or m.chance(0.75) else KINKED
    code, bound = table[m.below(len(table))]
    if code in PERIODIC and x.bound * EPSILON[m.noise] > 1 / 64:  # rounding is large for a period
        code = code.format(x=f"({{x}} * {4 / x.bound:.6g})")
    m.add(code.format(x=x.name), [x], x.shape, x.dtype, bound(x.bound), code in ("(-{x})",))


def binary(m: Maker) -> None:
    """Two operands that broadcast."""
    x = m.number()
    y = m.partner(x, lambda v: v.dtype == x.dtype)
    if y is None:
        return
    shape = np.broadcast_shapes(x.shape, y.shape)
    a, b = x.bound, y.bound
    choices: list[tuple[str, float]] = [
        ("{x} + {y}", a + b), ("{x} - {y}", a + b), ("{x} * {y}", a * b), ("{x} * {y}", a * b),
        ("{x} / ({y}.square() + 1)", a), ("{x} + {y} * {x}", a + a * b),
        ("{x}.lerp({y}, 0.25)", a + b),
    ]  # fmt: skip
    if not m.smooth:
        choices += [("{x}.maximum({y})", max(a, b)), ("{x}.minimum({y})", max(a, b))]
    code, bound = choices[m.below(len(choices))]
    exact = "imum" in code
    m.add(f"({code.format(x=x.name, y=y.name)})", [x, y], shape, x.dtype, bound, exact)


def reduction(m: Maker) -> None:
    """A sum, mean, extreme or variance over one axis or two, with or without keepdim."""
    x = m.deep()
    axis = m.below(len(x.shape))
    axes: Shape = (axis,) if len(x.shape) == 1 or m.chance(0.7) else (0, len(x.shape) - 1)
    axes = tuple(sorted(set(axes)))
    keepdim = m.chance(0.5)
    count = prod(x.shape[a] for a in axes)
    names = [("sum", x.bound * count), ("mean", x.bound), ("sum", x.bound * count)]
    if not m.smooth:
        names += [("max", x.bound), ("min", x.bound)]
    if count > 1:
        names.append(("var", 2 * x.bound**2))
    if len(axes) == 1:
        names.append(("logsumexp", x.bound + 4))
    name, bound = names[m.below(len(names))]
    given = axes[0] if len(axes) == 1 else axes
    m.add(f"{x.name}.{name}({given}, keepdim={keepdim})", [x], reduced(x.shape, axes, keepdim),
          x.dtype, bound, name in ("max", "min"))  # fmt: skip


def row_wise(m: Maker) -> None:
    """Softmax, layer norm and other operations that reduce and broadcast back."""
    x = m.deep()
    axis = m.below(len(x.shape))
    n = x.shape[axis]
    choices = [
        (f"{x.name}.softmax({axis})", 1.0),
        (f"{x.name}.log_softmax({axis})", 2 * x.bound + 4),
        (f"({x.name} - {x.name}.mean({axis}, keepdim=True))", 2 * x.bound),
        (f"{x.name} * ({x.name}.square().mean({axis}, keepdim=True) + 0.1).rsqrt()", sqrt(n)),
        (f"{x.name}.layernorm({axis}, eps=0.1)", sqrt(n)),
    ]
    if n <= 40:
        choices.append((f"{x.name}.cumsum({axis})", x.bound * n))
    code, bound = choices[m.below(len(choices))]
    m.add(code, [x], x.shape, x.dtype, bound)


def ordering(m: Maker) -> None:
    """Sorted values, running extremes, top k: exact, but not differentiable near equal elements."""
    x = m.deep()
    axis = m.below(len(x.shape))
    n = x.shape[axis]
    if m.smooth or not n:
        return
    k = 1 + m.below(min(n, 4))
    code, extent = [
        (f"sort({axis})", n), (f"sort({axis}, descending=True)", n), (f"cummax({axis})", n),
        (f"cummin({axis})", n), (f"topk({k}, {axis})", k),
    ][m.below(5)]  # fmt: skip
    new = (*x.shape[:axis], extent, *x.shape[axis + 1 :])
    m.add(f"{x.name}.{code}[0]", [x], new, x.dtype, x.bound, True)


def scattering(m: Maker) -> None:
    """Elements scattered to random positions, and combined there."""
    x = m.deep()
    if 0 in x.shape:
        return
    axis = m.below(len(x.shape))
    i = m.leaf(x.shape, "int32", x.shape[axis])
    n = x.shape[axis]
    choices = [("sum", x.bound * (n + 1)), ("mean", x.bound)]
    if not m.smooth:
        choices += [("amax", x.bound), ("amin", x.bound)]
    name, bound = choices[m.below(len(choices))]
    code = f"{x.name}.scatter_reduce({axis}, {i.name}, {x.name}, {name!r})"
    m.add(code, [x, i], x.shape, x.dtype, bound, name.startswith("a"))


def _factors(m: Maker, size: int) -> Shape:
    parts: list[int] = []
    while size > 1 and len(parts) < 3 and m.chance(0.7):
        parts.append(int(str(m.one_of([d for d in range(1, size + 1) if size % d == 0]))))
        size //= parts[-1]
    return (*parts, size)


def movement(m: Maker) -> None:
    """A view of any value, views included."""
    x = m.pick(lambda v: True) or m.leaf()
    shape, count = x.shape, len(x.shape)
    kind = m.below(9)
    if kind == 0:
        new = _factors(m, prod(shape))
        code = f"{x.name}.reshape({new})"
    elif count == 0:
        new, code = (3,), f"{x.name}.expand((3,))"
    elif kind == 1:
        order = tuple(int(a) for a in m.random.permutation(count))
        new, code = tuple(shape[a] for a in order), f"{x.name}.permute({order})"
    elif kind == 2:
        axis = m.below(count)
        new, code = shape, f"{x.name}.flip({axis})"
    elif kind == 3:
        starts = [m.below(min(n, 3) + 1) for n in shape]
        stops = [s + max(0, n - s - m.below(3)) for n, s in zip(shape, starts, strict=True)]
        ranges = tuple(zip(starts, stops, strict=True))
        if any(a == b for a, b in ranges) and not m.chance(0.1):
            return
        new, code = tuple(b - a for a, b in ranges), f"{x.name}.shrink({ranges})"
    elif kind == 4:
        amounts = tuple((m.below(3), m.below(3)) for _ in shape)
        new = tuple(n + a + b for n, (a, b) in zip(shape, amounts, strict=True))
        code = f"{x.name}.pad({amounts})"
    elif kind == 5:
        step = int(str(m.one_of((2, 3, -1, -2))))
        new, code = (len(range(shape[0])[::step]), *shape[1:]), f"{x.name}[::{step}]"
    elif kind == 6:
        repeat = 2 + m.below(3)
        new = (*shape[:-1], repeat, shape[-1])
        code = f"{x.name}.unsqueeze(-2).expand({new})"
    elif kind == 7:
        shift = m.below(shape[-1] + 1)
        new, code = shape, f"{x.name}.roll({shift}, {count - 1})"
    else:
        place = m.below(shape[0]) if shape[0] else None
        if place is None:
            return
        new, code = shape[1:], f"{x.name}[{place}]"
    if prod(new) <= m.most:
        m.add(code, [x], new, x.dtype, x.bound, True)


def joining(m: Maker) -> None:
    """Concatenation of two values of equal shape."""
    x = m.pick(lambda v: len(v.shape) > 0) or m.leaf()
    y = m.pick(lambda v: v.dtype == x.dtype and v.shape == x.shape) or x
    axis = m.below(len(x.shape))
    new = tuple(2 * n if a == axis else n for a, n in enumerate(x.shape))
    if prod(new) <= m.most:
        m.add(f"Tensor.cat({x.name}, {y.name}, dim={axis})", [x, y], new, x.dtype,
              max(x.bound, y.bound), True)  # fmt: skip


def product(m: Maker) -> None:
    """A matrix product, scaled by the root of its length; often with a transposed operand."""
    x = m.pick(lambda v: v.is_float and len(v.shape) >= 2 and 0 not in v.shape)
    if x is None:
        x = m.leaf((8, 17))
    k = x.shape[-1]
    y = m.pick(lambda v: v.dtype == x.dtype and len(v.shape) == 2 and k in v.shape)
    if y is None or m.chance(0.3):
        y = m.leaf((k, int(m.random.choice((1, 3, 8, 16, 33)))), x.dtype)
    right, n = (y.name, y.shape[1]) if y.shape[0] == k else (f"{y.name}.T", y.shape[0])
    new = (*x.shape[:-1], n)
    if prod(new) > m.most or prod(new) * k > 100 * m.most:
        return
    tail = ""
    if m.chance(0.3):
        bias = m.leaf((n,), x.dtype)
        tail = f" + {bias.name}"
    reads = [x, y] if not tail else [x, y, bias]
    left, scale = x.name, f"{1 / sqrt(k):.6g}"
    if m.chance(0.15) and x.dtype == "float32":  # values inside are far from 1
        power = float(2.0 ** int(str(m.one_of((-90, -40, 40, 90)))))
        left, scale = f"({left} * {power!r})", f"{1 / power!r} * {scale}"
    m.add(f"(({left} @ {right}) * {scale}{tail})", reads, new, x.dtype,
          sqrt(k) * x.bound * y.bound + 4)  # fmt: skip


def attention(m: Maker) -> None:
    """Causal attention, written out, over the last two dimensions."""
    x = m.pick(lambda v: v.is_float and len(v.shape) >= 2 and v.shape[-2] > 0 and v.shape[-1] > 0)
    if x is None or prod(x.shape[:-1]) * x.shape[-2] > m.most:
        return
    t = x.shape[-2]
    scores = m.add(f"(({x.name} @ {x.name}.transpose(-1, -2)) * {1 / sqrt(x.shape[-1]):.6g})"
                   ".tanh()", [x], (*x.shape[:-1], t), x.dtype, 1.0)  # fmt: skip
    code = f"(Tensor.arange({t}).reshape({t}, 1) >= Tensor.arange({t}))"
    mask = m.add(code, [], (t, t), "bool", 1.0)
    weights = m.add(f"{mask.name}.where({scores.name}, float('-inf')).softmax(-1)", [mask, scores],
                    scores.shape, x.dtype, 1.0)  # fmt: skip
    m.add(f"({weights.name} @ {x.name})", [weights, x], x.shape, x.dtype, x.bound)


def masking(m: Maker) -> None:
    """WHERE with a comparison of exact values, or with a random mask."""
    x = m.number()
    kind = m.below(3)
    if kind == 0 and 0 not in x.shape:
        condition = m.leaf(x.shape[-1:], "bool")
    else:
        source = m.partner(x, lambda v: v.exact and v.dtype != "bool")
        if source is None:
            return
        code = f"({source.name} {m.one_of(('<', '>=', '!=', '=='))} {m.below(3)})"
        condition = m.add(code, [source], source.shape, "bool", 1.0)
    other = m.partner(x, lambda v: v.dtype == x.dtype) if m.chance(0.5) else None
    shapes = [x.shape, condition.shape, *([other.shape] if other else [])]
    new = np.broadcast_shapes(*shapes) if _broadcast(shapes) else None
    if new is None or prod(new) > m.most:
        return
    second = other.name if other else "0"
    bound = max(x.bound, other.bound if other else 0)
    m.add(f"{condition.name}.where({x.name}, {second})",
          [condition, x, *([other] if other else [])], new, x.dtype, bound, True)  # fmt: skip


def _broadcast(shapes: list[Shape]) -> bool:
    try:
        np.broadcast_shapes(*shapes)
    except ValueError:
        return False
    return True


def gathering(m: Maker) -> None:
    """Rows at random indices: an embedding, an index, or a gather along an axis."""
    x = m.deep()
    n = x.shape[0]
    length = int(m.random.choice((1, 3, 8, 17)))
    if m.chance(0.5) or len(x.shape) == 1:
        i = m.leaf((length,), "int32", n, "ends" if m.chance(0.5) else "eighths")
        new: Shape = (length, *x.shape[1:])
        code = f"{x.name}[{i.name}]"
    else:
        axis = len(x.shape) - 1
        new = (*x.shape[:-1], length)
        if prod(new) > m.most:
            return
        i = m.leaf(new, "int32", x.shape[-1])
        code = f"{x.name}.gather({axis}, {i.name})"
    if prod(new) <= m.most:
        m.add(code, [x, i], new, x.dtype, x.bound, True)


def integers(m: Maker) -> None:
    """Arithmetic on int32, which is exact and wraps."""
    x = m.pick(lambda v: v.dtype == "int32") or m.leaf(None, "int32", 9)
    y = m.partner(x, lambda v: v.dtype == "int32") or x
    shape = np.broadcast_shapes(x.shape, y.shape)
    codes = [
        "{x} + {y}", "{x} * {y}", "{x} - {y} * 3", "{x} // ({y} + 1)", "{x} % 5", "{x} ^ {y}",
        "({x} & {y}) | 4", "{x} << 2", "{x} >> 1", "{x}.maximum({y})", "(-{x})", "~{x}",
    ]  # fmt: skip
    code = codes[m.below(len(codes))]
    new = shape if "{y}" in code else x.shape
    m.add(f"({code.format(x=x.name, y=y.name)})", [x, y], new, "int32", 2.0**31)


def integer_reduction(m: Maker) -> None:
    """A sum, an extreme or its position, of exact values."""
    x = m.pick(lambda v: v.exact and len(v.shape) > 0 and v.dtype != "bool" and 0 not in v.shape)
    if x is None:
        return
    axis = m.below(len(x.shape))
    new = reduced(x.shape, (axis,), False)
    if x.is_float or m.chance(0.4):
        m.add(f"{x.name}.{m.one_of(('argmax', 'argmin'))}({axis})", [x], new, "int32", 99.0)
    else:
        m.add(f"{x.name}.{m.one_of(('sum', 'max', 'min'))}({axis})", [x], new, "int32", 2.0**31)


def to_float(m: Maker) -> None:
    """Integers and masks as floats; large integers are first taken modulo 7."""
    x = m.pick(lambda v: not v.is_float)
    if x is None:
        return
    code = x.name if x.dtype == "bool" else f"({x.name} % 7)"
    m.add(f"{code}.cast(float_of('float32', real))", [x], x.shape, "float32", 7.0, True)


def to_half(m: Maker) -> None:
    """A detour through a half dtype: a few operations there, then back to float32."""
    if m.smooth:
        return
    x = m.pick(lambda v: v.dtype == "float32" and v.bound <= 8)
    if x is None:
        return
    dtype = str(m.one_of(("float16", "bfloat16")))
    # Without the multiplication, a cast to the same dtype (in the float64 run) would be an alias.
    half = m.add(f"({x.name} * 1).cast(float_of({dtype!r}, real))", [x], x.shape, dtype, x.bound)
    body = m.add(f"({half.name} * 0.5 + {half.name}).tanh()", [half], x.shape, dtype, 1.0)
    m.add(f"{body.name}.cast(float_of('float32', real))", [body], x.shape, "float32", 1.0)


def in_place(m: Maker) -> None:
    """An in-place write to a realized tensor or a part of it, which lazy values have read."""
    if m.smooth:
        return
    target = m.pick(lambda v: v.name in m.targets and len(v.shape) > 0 and 0 not in v.shape)
    if target is None:
        target = m.leaf()
        if 0 in target.shape:
            return
    if m.chance(0.5):
        m.add(f"({target.name} * 0.5 + 0.25)", [target], target.shape, "float32", target.bound + 1)
    source = m.pick(lambda v: v.dtype == "float32" and v.shape == target.shape) or target
    bound = max(target.bound, source.bound)
    kind = m.below(5)
    if kind == 4:
        shifted(m, target, source)
    elif kind == 0:
        m.write(target, f"{target.name}.assign({source.name}.flip(0))", [source], source.bound)
    elif kind == 1:
        m.write(target, f"{target.name}.assign({target.name} * 0.5 + {source.name} * 0.25)",
                [source], bound)  # fmt: skip
    elif kind == 2:
        stop = 1 + m.below(target.shape[0])
        m.write(target, f"{target.name}[:{stop}] = {source.name}[:{stop}] * 0.5", [source], bound)
    else:
        m.write(target, f"{target.name}[::2] = 0.5", [], max(target.bound, 0.5))


def new_leaf(m: Maker) -> None:
    """More data."""
    m.leaf(None, "float32" if m.chance(0.7) else "int32", 5)


RULES: list[tuple[float, Callable[[Maker], None]]] = [
    (7, unary), (7, binary), (5, reduction), (3, row_wise), (6, movement), (1.5, joining),
    (2.5, product), (0.7, attention), (2.5, masking), (2, gathering), (2, integers),
    (1, integer_reduction), (1.5, to_float), (0.7, to_half), (1.2, in_place), (1, new_leaf),
    (1, ordering), (0.7, scattering), (0.7, hidden), (0.7, special_points), (0.15, long),
    (1.2, convolution), (1, lying), (0.4, joined_products), (0.4, columns),
]  # fmt: skip


def end_with_gradient(m: Maker, outputs: list[str]) -> list[str]:
    """The mean square of the float outputs, and its gradient by all float leaves it depends on."""
    values: list[Value] = [m.values[name] for name in outputs]
    losses = [v for v in values if v.dtype == "float32" and 0 not in v.shape]
    if not losses:
        return []
    terms = " + ".join(f"{v.name}.square().mean()" for v in losses)
    loss = m.add(f"({terms})", losses, (), "float32", 1.0)
    read = ancestors(m, loss.name)
    names = [name for name in m.targets if name in read and 0 not in m.values[name].shape]
    found = [loss.name]
    for name in names[:4]:
        target = m.values[name]
        reads = [loss, target]
        found.append(m.add(f"{loss.name}.gradient({name})[0]", reads, target.shape, "float32",
                           1.0).name)  # fmt: skip
    return found
