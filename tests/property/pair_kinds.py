"""The kinds of pairs: each function draws two programs that must agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod, sqrt

from .graph_steps import make_graph
from .graphs import Graph, Statement
from .leaves import LONG
from .pair_draw import Draw
from .pair_gradients import derivative, moved
from .pair_layers import layers
from .pair_oracles import Played, indices_beyond, python_ints
from .pairs import Pair, Program


def product(d: Draw) -> Pair:
    """A matrix product: of transposed operands, in pieces along any axis, as a sum, by einsum."""
    m, k, n = d.extent(2), d.extent(2), d.extent(2)
    batch = d.one_of(((), (), (2,), (3, 1)))
    a, b = d.operand((*batch, m, k)), d.operand((k, n))
    scale = f" * {1 / sqrt(k):.6g}"
    i, j, c = d.cut(k), d.cut(m), d.cut(n)
    ways = [
        f"({b}.T @ {a}.transpose(-1, -2)).transpose(-1, -2)",
        f"{a}[..., :{i}] @ {b}[:{i}] + {a}[..., {i}:] @ {b}[{i}:]",
        f"Tensor.cat({a}[..., :{j}, :] @ {b}, {a}[..., {j}:, :] @ {b}, dim=-2)",
        f"Tensor.cat({a} @ {b}[:, :{c}], {a} @ {b}[:, {c}:], dim=-1)",
        f"Tensor.einsum('...ij,jk->...ik', {a}, {b})",
        f"({a} @ {b}.contiguous())",
        f"{a}.linear({b})",
    ]
    if m * n * k * prod(batch) < 1 << 18:
        ways.append(f"({a}.unsqueeze(-1) * {b}).sum(-2)")
    return d.pair(f"({a} @ {b}){scale}", f"({d.one_of(ways)}){scale}")


# Code of x along an axis a, with a scale s; whether it removes the axis; whether it is smooth.
ALONG: list[tuple[str, bool, bool]] = [
    ("{x}.sum({a}) * {s}", True, True), ("{x}.mean({a})", True, True),
    ("{x}.max({a})", True, False), ("{x}.min({a})", True, False),
    ("{x}.var({a}, correction=0)", True, True),
    ("{x}.logsumexp({a})", True, True), ("({x}.square().sum({a}) + 0.1).sqrt()", True, True),
    ("{x}.softmax({a})", False, True), ("{x}.log_softmax({a})", False, True),
    ("{x}.layernorm({a}, eps=0.1)", False, True), ("{x}.cumsum({a}) * {s}", False, True),
    ("{x}.sort({a})[0]", False, False), ("{x}.cummax({a})[0]", False, False),
]  # fmt: skip


def permuted(d: Draw) -> Pair:
    """An operation along an axis, and along the same axis of a permuted or copied view."""
    shape = d.shape(3)
    x = d.operand(shape)
    axis = d.below(3)
    code, goes, smooth = d.one_of(ALONG)
    scale = f"{1 / sqrt(shape[axis]):.6g}"
    order = tuple(int(a) for a in d.random.permutation(3))
    there = order.index(axis)
    view = f"{x}.permute({order})" + (".contiguous()" if d.chance(0.3) else "")
    second = "(" + code.format(x=view, a=there, s=scale) + ")"
    left = [a for a in order if a != axis] if goes else list(order)
    ranks = sorted(left)
    back = tuple(left.index(a) for a in ranks)
    return d.pair(code.format(x=x, a=axis, s=scale), f"{second}.permute({back})", smooth=smooth)


def parted(d: Draw) -> Pair:
    """An operation along an axis, and the same from two parts, or by other operations."""
    shape = d.shape(2) if d.chance(0.8) else (d.one_of((1, 2, 3)), d.one_of(LONG))
    axis = 1 if shape[1] > 1 else 0
    if shape[axis] < 2:
        shape = (*shape[:axis], 2, *shape[axis + 1 :])
    x = d.operand(shape, "" if d.chance(0.6) else d.one_of(("equal", "parts")))
    n = shape[axis]
    c = d.cut(n)
    one, two = (f"{x}.shrink(({(0, shape[0])}, {part}))" if axis else
                f"{x}.shrink(({part}, {(0, shape[1])}))" for part in ((0, c), (c, n)))  # fmt: skip
    s = f"{1 / sqrt(n):.6g}"
    keep = f"({axis}, keepdim=True)"
    first = f"{one}.sum{keep}"
    choices = [
        (f"{x}.sum({axis}) * {s}", f"({one}.sum({axis}) + {two}.sum({axis})) * {s}", True),
        (f"{x}.mean({axis})",
         f"{one}.mean({axis}) * {c / n!r} + {two}.mean({axis}) * {(n - c) / n!r}", True),
        (f"{x}.max({axis})", f"{one}.max({axis}).maximum({two}.max({axis}))", False),
        (f"{x}.min({axis})", f"{one}.min({axis}).minimum({two}.min({axis}))", False),
        (f"{x}.logsumexp({axis})",
         f"Tensor.stack({one}.logsumexp({axis}), {two}.logsumexp({axis})).logsumexp(0)", True),
        (f"{x}.var({axis}, correction=0)", f"({x} - {x}.mean{keep}).square().mean({axis})", True),
        (f"{x}.softmax({axis})", f"({x} - {x}.logsumexp{keep}).exp()", True),
        (f"{x}.cumsum({axis}) * {s}",
         f"Tensor.cat({one}.cumsum({axis}), {two}.cumsum({axis}) + {first}, dim={axis}) * {s}",
         True),
        (f"{x}.sum({axis}) * {s}", f"{x}.flip({axis}).sum({axis}) * {s}", True),
        (f"{x}.sort({axis})[0]", f"{x}.flip({axis}).sort({axis}, descending=True)[0].flip({axis})",
         False),
        (f"{x}.cumsum({axis}) * {s}",
         f"({x}.sum{keep} - {x}.flip({axis}).cumsum({axis}).flip({axis}) + {x}) * {s}", True),
    ]  # fmt: skip
    if n < 600:
        ones = f"Tensor.ones({n}, {n}, dtype=float_of('float32', real)).tril()"
        other = f"{x} @ {ones}.T" if axis else f"{ones} @ {x}"
        choices.append((f"{x}.cumsum({axis}) * {s}", f"({other}) * {s}", True))
    first, second, smooth = d.one_of(choices)
    return d.pair(first, second, smooth=smooth)


def batch(d: Draw) -> Pair:
    """A batch of n, and n batches of 1 or two uneven batches, through a few layers."""
    n = 2 + d.below(3) if d.chance(0.8) else d.one_of((31, 32, 33, 65))
    d.large = d.chance(0.05)  # a dozen kernels per pair
    inner = (d.extent(2), d.extent(2))
    x = d.leaf((n, *inner))
    code = layers(d, inner)
    c = d.cut(n)
    pieces = [(i, i + 1) for i in range(n)] if n <= 3 else [(0, c), (c, n)]
    parts = ", ".join(f"({code.format(x=f'{x}[{a}:{b}]')})" for a, b in pieces)
    return d.pair(code.format(x=x), f"Tensor.cat({parts}, dim=0)")


def checkpointed(d: Draw) -> Pair:
    """A gradient, and the same with a detached middle and the first half computed again."""
    d.large = d.chance(0.05)
    shape = (2 + d.below(3), d.extent(2), d.extent(2))
    x = d.leaf(shape)
    f, g = layers(d, shape[1:], 1), layers(d, shape[1:], 1)
    start = f"({f.format(x=x)})"
    end = d.statement(f"({g.format(x=start)}).square().mean()")
    d.first.append(end)
    middle = d.statement(f"{start}.detach().contiguous()" + (".realize()" if d.chance(0.5) else ""))
    loss = d.statement(f"({g.format(x=middle.name)}).square().mean()")
    d.second += [middle, loss]
    d.smooth = False
    again = f"{start}.gradient({x}, gradient={loss.name}.gradient({middle.name})[0])[0]"
    return d.pair(f"{end.name}.gradient({x})[0]", again, tail=False)


def attention(d: Draw) -> Pair:
    """Attention: by its method, written out, for parts of the queries, and for each head."""
    d.large = d.chance(0.1)
    heads, width = 1 + d.below(3), d.one_of((1, 4, 8, 16, 17))
    t = d.one_of((2, 3, 8, 9, 17, 31, 32, 33)) if not d.large else d.one_of((129, 255, 257, 300))
    shape = (heads, t, width)
    q, k, v = d.operand(shape), d.operand(shape), d.operand(shape)
    mask = d.both(f"Tensor.arange({t}).reshape({t}, 1) >= Tensor.arange({t})")
    causal = d.chance(0.6)
    call = f"{q}.scaled_dot_product_attention({k}, {v}, is_causal={causal})"
    scores = f"({q} @ {k}.transpose(-1, -2)) * {1 / sqrt(width)!r}"
    hidden = f"{mask}.where({scores}, float('-inf'))" if causal else f"({scores})"
    c, given = d.cut(t), f", attn_mask={mask}[{{}}]" if causal else ""
    parts = [f"{q}[:, {s}].scaled_dot_product_attention({k}, {v}{given.format(s)})"
             for s in (f":{c}", f"{c}:")]  # fmt: skip
    single = [f"{q}[{h}].scaled_dot_product_attention({k}[{h}], {v}[{h}], is_causal={causal})"
              for h in range(heads)]  # fmt: skip
    other = d.one_of([
        f"{hidden}.softmax(-1) @ {v}",
        f"Tensor.cat({', '.join(parts)}, dim=1)",
        f"Tensor.stack({', '.join(single)})",
        f"({hidden} - ({hidden}).logsumexp(-1, keepdim=True)).exp() @ {v}",
    ])  # fmt: skip
    return d.pair(call, other)


def behind_mask(d: Draw) -> Pair:
    """Masked values do not affect results: NaN, infinities and 1e30 there, or ordinary numbers."""
    t = d.one_of((5, 31, 33, 40)) if not d.large else d.one_of((129, 160, 257, 300))
    c = d.cut(t)
    seed, width = d.seed * 1000, d.one_of((4, 8, 17))
    d.smooth = False
    wild, tame = (
        d.statement(f"leaf({seed}, {(t, width)}, 'float32', 5, device, real, {kind!r})")
        for kind in (f"poison:{c}", "eighths")
    )
    d.first.append(wild)
    d.second.append(tame)
    row = d.both(f"Tensor.arange({t}).reshape({t}, 1)")
    q, few, k = d.leaf((t, width)), d.leaf((c, width)), d.leaf((t, width))
    codes = [
        f"({row} < {c}).where({{x}}, 0).sum(0)",
        f"({row} < {c}).where({{x}}.exp(), 1).cumsum(0) * 0.1",
        f"{{x}}.masked_fill({row} >= {c}, -1).max(0)",
        f"({row} < {c}).where({{x}}, float('-inf')).softmax(0)",
        f"({row} < {c}).where({{x}}, 0).T @ {q}",
        "{x}[:" + str(c) + f"].sum(0) + {q}[0]",
    ]
    for operands in ("{x}, {x}", f"{q}, {{x}}", f"{{x}}, {q}"):
        codes.append(f"{q}.scaled_dot_product_attention({operands}, is_causal=True)[:{c}]")
        keys = f"(Tensor.arange({t}) < {c}).expand({t}, {t})"
        codes.append(f"{q}.scaled_dot_product_attention({operands}, attn_mask={keys})")
    for operands in ("{x}, {x}", f"{k}, {{x}}"):  # nor gradients by the queries
        seen = f"{few}.scaled_dot_product_attention({operands}, is_causal=True)"
        codes += [seen, f"({seen}).square().mean().gradient({few})[0]"]
    codes.append(f"{few}.scaled_dot_product_attention({k}, {{x}}, is_causal=True).square().mean()"
                 f".gradient({k})[0]")  # fmt: skip
    code = d.one_of(codes)
    return d.pair(code.format(x=wild.name), code.format(x=tame.name), smooth=False, tail=False)


def chosen(d: Draw) -> Pair:
    """Rows by index: from either end, by one_hot, by gather; and sums at indices."""
    n, width, count = d.extent(2), d.extent(), d.extent(2)
    x = d.operand((n, width))
    i = d.leaf((count,), "ends", "int32", n)
    hot = f"({i} % {n}).one_hot({n}).cast(float_of('float32', real))"
    column = f"({i} % {n}).reshape({count}, 1).expand({count}, {width})"
    y = d.leaf((count, width))
    taken = f"{x}[{i}]"
    first, second, smooth = d.one_of([
        (taken, f"{x}[{i} % {n}]", True),
        (taken, f"{hot} @ {x}", True),
        (taken, f"{x}.gather(0, {column})", True),
        (taken, f"({i} % {n}).embedding({x})", True),
        (f"{x}[:, 0].take({i})", f"{x}[{i}][:, 0]", True),
        (f"{x}.scatter_add(0, {column}, {y}) * 0.25", f"({x} + {hot}.T @ {y}) * 0.25", True),
        (f"{x}.scatter_reduce(0, {column}, {y}, 'amax')",
         f"{x}.maximum(({hot}.T.unsqueeze(-1) > 0).where({y}, -100).max(1))", False),
    ])  # fmt: skip
    return d.pair(first, second, smooth=smooth)


def convolution(d: Draw) -> Pair:
    """A convolution: from windows, from parts of the channels; and pooling as means."""
    n, c, o = 1 + d.below(3), 1 + d.below(5), d.one_of((1, 2, 5, 8, 17))
    height, width = d.one_of((4, 5, 8, 13, 16)), d.one_of((4, 6, 9, 16, 33))
    k, stride, padding = 1 + d.below(3), 1 + d.below(2), d.below(2)
    x, w = d.operand((n, c, height, width)), d.leaf((o, c, k, k))
    padded = f"{x}.pad(({padding}, {padding}, {padding}, {padding}))"
    windows = f"{padded}.unfold(2, {k}, {stride}).unfold(3, {k}, {stride})"
    extra = f"stride={stride}, padding={padding}"
    scale = f" * {1 / sqrt(c * k * k):.6g}"
    turned = "permute(0, 1, 3, 2)"
    choices = [f"Tensor.einsum('nchwij,ocij->nohw', {windows}, {w})",
               f"{x}.{turned}.conv2d({w}.{turned}, {extra}).{turned}",
               f"Tensor.cat(*[{x}[j:j + 1].conv2d({w}, {extra}) for j in range({n})])"]  # fmt: skip
    if c > 1:
        part = d.cut(c)
        choices.append(f"{x}[:, :{part}].conv2d({w}[:, :{part}], {extra}) + "
                       f"{x}[:, {part}:].conv2d({w}[:, {part}:], {extra})")  # fmt: skip
    if d.chance(0.3):
        windows = f"{x}.unfold(2, {k}, {stride}).unfold(3, {k}, {stride})"
        return d.pair(f"{x}.avg_pool2d({k}, {stride})", f"{windows}.mean((-1, -2))")
    return d.pair(f"{x}.conv2d({w}, {extra}){scale}", f"({d.one_of(choices)}){scale}")


def scaled(d: Draw) -> Pair:
    """Operands scaled by 2^±40, 2^±66 …, whose result is as large as without scaling.

    Half of them are so large that scores are not stored and are scaled late.
    """
    m, k, n = d.extent(2), d.extent(2), d.extent()
    if d.chance(0.5):
        m, k, n = d.one_of((129, 160, 257)), d.one_of((2, 8, 17)), d.one_of((129, 160, 257))
    a, b, v = d.leaf((m, k)), d.leaf((n, k)), d.leaf((n, 3 + d.below(6)), "parts")
    d.smooth = False
    weights = d.chance(0.4)  # else squares of sums stay below 2^128
    e = d.one_of((-80, -66, 66, 75) if weights else (-40, -33, 33, 40))
    big = d.both(f"{a} * {2.0**e!r}")
    down = repr(2.0**-e)
    s, t = (f"(({x} @ {b}.T).abs() + {y})" for x, y in ((big, repr(2.0**e)), (a, "1.0")))
    up, far = (repr(2.0 ** (60 if sign == (e > 0) else -60)) for sign in (True, False))
    keep = "(-1, keepdim=True)"
    shares = [
        (f"({s} * {s}.sum{keep}.reciprocal()) @ ({v} * {up}) * {far}",
         f"{t} / {t}.sum{keep} @ {v}"),
        (f"(({s} / {s}.max{keep}) @ ({v} * {up})) * {far}", f"({t} / {t}.max{keep}) @ {v}"),
        (f"({big} @ {b}.T) * {down} @ {v}", f"({a} @ {b}.T) @ {v}"),
    ]  # fmt: skip
    first, second = d.one_of(shares if weights else [
        (f"({s} * {s}.square().mean{keep}.rsqrt()) @ ({v} * {up}) * {far}",
         f"({t} * {t}.square().mean{keep}.rsqrt()) @ {v}"),
        (f"({big}.abs().sum(1) * {down})", f"{a}.abs().sum(1)"),
        (f"({big}.std(1, correction=0) * {down})", f"{a}.std(1, correction=0)"),
        (f"{big}.max(1) * {down}", f"{a}.max(1)"),
        (f"({big}.mean(0) * ({v}.sum() * {down}))", f"{a}.mean(0) * {v}.sum()"),
        (f"(({big} * {up}) * {far}).sum(0) * {down}", f"{a}.sum(0)"),
    ])  # fmt: skip
    return d.pair(f"({first})", f"({second})", smooth=False, tail=False)


def _has_gradient(graph: Graph) -> bool:
    return any(".gradient(" in s.code for s in graph.statements)


def _random_graph(seed: int) -> Graph:
    return make_graph(seed, most=14).needed()


def cut(seed: int) -> Program:
    """A random graph, fused, and with some of its values stored or computed early."""
    d, graph = Draw(seed), _random_graph(seed)
    # A stored value is not a view any more, and does not see later writes to its base.
    last = max((n for n, s in enumerate(graph.statements) if s.writes), default=-1)
    places = [n for n, s in enumerate(graph.statements) if n > last and "leaf(" not in s.code]
    chosen = set(d.random.permutation(places)[: 1 + d.below(3)].tolist())
    # A value computed early loses its leaves, unless they were marked.
    ending = ".contiguous()" if _has_gradient(graph) else d.one_of((".realize()", ".contiguous()"))
    statements = [replace(s, code=f"({s.code}){ending}") if n in chosen else s
                  for n, s in enumerate(graph.statements)]  # fmt: skip
    return Pair(graph, replace(graph, statements=tuple(statements)))


def in_another_way(seed: int) -> Program:
    """A random graph, run lazily and in another way: captured, step by step, or not fused."""
    graph = _random_graph(seed)
    ways = ("jit", "jit", "eager", "not fused")
    way = ways[Draw(seed).below(len(ways))]
    if way == "jit" and any(s.writes for s in graph.statements):
        way = "eager"  # leaves are inputs of a captured step, and each call has new ones
    if way == "eager" and _has_gradient(graph):
        way = "not fused"
    return Pair(graph, graph, way)


def views_of_larger(seed: int) -> Program:
    """A random graph whose leaves are transposed, sliced or flipped views of larger ones."""
    d, graph = Draw(seed), _random_graph(seed)
    written = {s.name for s in graph.statements if s.writes}
    statements: list[Statement] = []
    for s in graph.statements:
        if "leaf(" in s.code and s.name not in written and s.shape and 0 not in s.shape:
            axis = d.below(len(s.shape))
            border = tuple((1 + d.below(3), d.below(3)) for _ in s.shape)
            within = ", ".join(f"{a}:{a + n}" for n, (a, _) in zip(s.shape, border, strict=True))
            order = tuple(reversed(range(len(s.shape))))
            code = d.one_of((f"{s.code}.flip({axis}).contiguous().realize().flip({axis})",
                             f"{s.code}.permute({order}).contiguous().realize().permute({order})",
                             f"{s.code}.pad({border}).contiguous().realize()[{within}]"))
            statements.append(replace(s, code=code))
        else:
            statements.append(s)
    return Pair(graph, replace(graph, statements=tuple(statements)))


def _drawn(kind: Callable[[Draw], Pair]) -> Callable[[int], Program]:
    return lambda seed: kind(Draw(seed))


KINDS: dict[str, Callable[[int], Program]] = {
    **{kind.__name__: _drawn(kind) for kind in (
        product, permuted, parted, batch, checkpointed, attention, behind_mask, chosen, convolution,
        scaled, moved,
    )},
    "cut": cut, "in_another_way": in_another_way, "views_of_larger": views_of_larger,
    "derivative": derivative, "views_written": Played, "python_ints": python_ints,
    "indices_beyond": indices_beyond,
}  # fmt: skip
