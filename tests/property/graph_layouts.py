"""Rules of random graphs about memory layouts: images, copies in another order, concatenations,
sums of columns, and writes that read other elements of their target.
"""

from __future__ import annotations

from math import prod, sqrt

from .graph_steps import Maker, Value


def convolution(m: Maker) -> None:
    """A convolution or its transpose, with any stride, dilation, padding and groups."""
    images = m.pick(lambda v: v.dtype == "float32" and len(v.shape) == 4 and 0 not in v.shape)
    if images is None or m.chance(0.5):
        channels = int(str(m.one_of((1, 2, 3, 4, 6, 8, 16))))
        images = m.leaf((1 + m.below(3), channels, 3 + m.below(5), 4 + m.below(6)))
    channels, space = images.shape[1], images.shape[2:]
    groups = int(str(m.one_of([g for g in (1, 1, 2, 4, 8, channels) if channels % g == 0])))
    each = int(str(m.one_of((1, 1, 2, 3, 5, 8))))
    kernel, step, gap = (tuple(1 + m.below(most) for _ in space) for most in (4, 3, 2))
    zeros = tuple(m.below(min(k + 1, 3)) for k in kernel)
    transposed = m.chance(0.4)
    spans = [g * (k - 1) + 1 for k, g in zip(kernel, gap, strict=True)]
    found = tuple(
        (n - 1) * s + span - 2 * z if transposed else (n + 2 * z - span) // s + 1
        for n, s, span, z in zip(space, step, spans, zeros, strict=True)
    )
    out = each * groups
    new = (images.shape[0], out, *found)
    if min(found) < 1 or prod(new) > m.most:
        return
    first, second = (channels, each) if transposed else (out, channels // groups)
    weight, bias = m.leaf((first, second, *kernel)), m.leaf((out,)) if m.chance(0.5) else None
    terms = channels // groups * prod(kernel)
    name = "conv_transpose2d" if transposed else "conv2d"
    code = (f"{images.name}.{name}({weight.name} * {1 / sqrt(terms):.6g}, "
            f"{bias.name if bias else None}, stride={step}, padding={zeros}, dilation={gap}, "
            f"groups={groups})")  # fmt: skip
    reads = [images, weight, *([bias] if bias else [])]
    m.add(code, reads, new, "float32", sqrt(terms) * images.bound * weight.bound + 4)


def lying(m: Maker) -> None:
    """A value, or a product, copied into another order; perhaps with a second reader in it."""
    x = m.pick(lambda v: v.is_float and len(v.shape) > 1)
    if x is None:
        return
    if m.chance(0.4) and 0 not in x.shape and prod(x.shape[:-1]) * 16 <= m.most:
        weight = m.leaf((x.shape[-1], int(str(m.one_of((3, 8, 16))))), x.dtype)
        x = m.add(f"(({x.name} @ {weight.name}) * {1 / sqrt(x.shape[-1]):.6g})", [x, weight],
                  (*x.shape[:-1], weight.shape[1]), x.dtype,
                  sqrt(x.shape[-1]) * x.bound * weight.bound)  # fmt: skip
    order = tuple(int(a) for a in m.random.permutation(len(x.shape)))
    new = tuple(x.shape[axis] for axis in order)
    moved = f"{x.name}.permute({order})"
    lies = m.add(f"{moved}.contiguous()", [x], new, x.dtype, x.bound, True)
    if m.chance(0.5):
        m.add(f"({lies.name} * 0.5 + {moved})", [lies, x], new, x.dtype, 2 * x.bound)


def joined_products(m: Maker) -> None:
    """A value times several matrices; the results are concatenated along either axis."""
    x = m.pick(lambda v: v.dtype == "float32" and len(v.shape) == 2 and 0 not in v.shape)
    if x is None:
        return
    (rows, length), axis, width = x.shape, m.below(2), int(str(m.one_of((1, 4, 8, 17))))
    widths = [width if axis == 0 or m.chance(0.5) else 3 for _ in range(2 + m.below(4))]
    new = (rows * len(widths), width) if axis == 0 else (rows, sum(widths))
    if prod(new) > m.most:
        return
    weights = [m.leaf((length, some)) for some in widths]
    scale = 1 / sqrt(length)
    parts = ", ".join(f"({x.name} @ {weight.name}) * {scale:.6g}" for weight in weights)
    bound = sqrt(length) * x.bound * max(weight.bound for weight in weights)
    m.add(f"Tensor.cat({parts}, dim={axis})", [x, *weights], new, "float32", bound)


def columns(m: Maker) -> None:
    """Means of columns, and of values computed from these means."""
    x = m.pick(lambda v: v.dtype == "float32" and len(v.shape) > 1 and 0 not in v.shape)
    if x is None:
        return
    mean = m.add(f"{x.name}.mean(0)", [x], x.shape[1:], "float32", x.bound)
    apart = m.add(f"({x.name} - {mean.name})", [x, mean], x.shape, "float32", 2 * x.bound)
    spread = m.add(f"({apart.name}.tanh() * {x.name}).mean(0)", [apart, x], x.shape[1:],
                   "float32", x.bound)  # fmt: skip
    if m.chance(0.5):
        m.add(f"({apart.name} + {spread.name})", [apart, spread], x.shape, "float32", 3 * x.bound)


def shifted(m: Maker, target: Value, source: Value) -> None:
    """A write of values computed from other elements of the same memory."""
    most = max(target.bound, source.bound)
    reads, count = [source, target], target.shape[0]
    if m.chance(0.3) and len(target.shape) == 2 and count == target.shape[1]:
        code = f"{target.name}.assign({target.name}.T * 0.5 + {source.name} * 0.25)"
    elif count > 1 and m.chance(0.5):
        code = f"{target.name}[1:] = {target.name}[:-1] * 0.5 + {source.name}[1:] * 0.25"
    else:
        code = f"{target.name}.assign({target.name}.flip(0) * 0.5 + {source.name} * 0.5)"
    m.write(target, code, reads, most)
