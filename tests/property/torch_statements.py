"""The statements of `torch_programs`: templates whose holes are filled at random.

Two spaces or a new line separate templates. "[sin cos]{f}.$()" is one for each name, and \\n\\t
begins an indented line. Holes: x any tensor; f float; i signed int; n number but uint8; m bool; e
and h of values that are exact, any and float; l leaf; new a new name. d dimension, D dimensions,
c C scalars, k K small ints, s index, p shape, t dtype, B flag, q reduction. Equal holes ({x}, not
{x} and {x2}) are filled equally.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Group(NamedTuple):
    """weight: how often it is drawn. makes_value: expressions. captured: legal in `@jit`."""

    weight: float
    templates: list[str]
    makes_value: bool = True
    captured: bool = True


def templates(text: str) -> list[str]:
    found = []
    for part in re.split(r"\s{2,}|\n", re.sub(r"\\\n\s*", " ", text).strip()):
        names, form = re.fullmatch(r"(?:\[([^]{}]*)\](?=.*\$))?(.*)", part).groups()
        form = form.replace(r"\n", "\n").replace(r"\t", "    ")
        found += [form.replace("$", name) for name in names.split()] if names else [form]
    return found


EXACT = templates(r"""
    [abs neg relu square positive absolute negative]{n}.$()  [ceil floor trunc round fix]{h}.$()
    [isnan isinf isfinite isneginf isposinf signbit logical_not]{e}.$()
    [maximum minimum fmax fmin]{n}.$({n2})
    [eq ne lt le gt ge greater less not_equal greater_equal less_equal]{e}.$({e2})
    [== != < <= > >=]{e} $ {e2}  [== != < <= > >=]{e} $ {k}
    [logical_and logical_or logical_xor]{e}.$({e2})  [& | ^]{m} $ {m2}  [& | ^]{i} $ {i2}
    [& | ^]{i} $ 5  [bitwise_and bitwise_or bitwise_xor]{i}.$({i2})  [+ - *]{x} $ {x2}
    [+ *]{f} $ {c}  [sign_ sign]{i}.$()  [+ *]{n} $ {k}  [add multiply mul]{x}.$({x2})
    [sub subtract]{n}.$({n2})  [sum amax amin]{n}.$({D})  [sum amax amin]{n}.$({D}, keepdim={B})
    [all any]{e}.$({d}, keepdim={B})  [sum all any prod]{e}.$()  [max min]{n}.$()
    [argmax argmin]{e}.$({d}, keepdim={B}).long()
    [argmax argmin]{n}[...].clone().reshape(-1).$().long()  [cummax cummin]{e}.$({d})[{K}-1].long()
    [tril triu]{x}.$({k})  [unique]{e}.$()  {n} - {k}  {k} - {n}  {c} * {f}  {i} // {k}  {i} % {k}
    {i} // ({i2} * 2 + 1)  {i} % ({i2} * 2 + 1)  {h} // {C}  {h} % {C} + 0.0  {h}.fmod({C})
    {i}.fmod({K})  {i}.remainder({k})  {i} << {K}  {i} >> {K}  {i}.abs() << (({i2} % 5).abs())
    {i} >> (({i2} % 5).abs())  ~{m}  ~{i}  -{i}  {h}.floor_divide({C})  {i}.floor_divide(-{K})
    {e}.count_nonzero({d})  {e}.count_nonzero()  {i}.sum({d}, dtype=T.int64)  {m}.sum({d})
    {m}.sum()  {n}.clamp({k}, 3)  {n}.clamp(min={k})  {n}.clip(max={K})  {n}.clamp_min({k})
    {n}.clamp_max({k})  {h}.clamp({h2}, {h3})  {h}.clamp(-1.5, 0.5)  T.where({m}, {x}, {x2})
    T.where({m}, {n}, {k})  T.where({e} > {e2}, {e}, {e2})  {x}.masked_fill({m}, {k})
    {f}.masked_fill({m}, {c})  {f}.masked_fill({m}, -inf)  {e}.sort({d})[0]
    {e}.sort({d}, stable=True)[1].long()  {e}.sort({d}, descending=True, stable=True)[1].long()
    {e}.sort({d}, descending={B})[0]  {e}.argsort({d}, stable=True).long()
    {e}.argsort({d}, descending=True, stable=True).long()  {e}.topk({K}, {d})[0]
    {e}.topk({K}, {d}, largest=False)[0]  {e}.kthvalue({K}, {d})[0]  median({e}, {d})  {e}.median()
    pair({e}, {d}, {B})[0]  pair({e}, {d}, {B})[1].long()  {i}.cumsum({d})  {h}.cumsum({d})
    {m}.cumsum({d})  {i}.cumprod({d})  {e}.cummax({d})[0]  {e}.cummin({d})[0]  {x}.flip({d}).clone()
    T.flip({x}, (0, -1)).clone()  {x}.roll({k}, {d})  {x}.roll({k})  {x}.rot90({k}).clone()
    {x}.repeat({K}, 1, 2)  {x}.repeat(2, 1)  {x}.tile((2,))  {x}.repeat_interleave({K}, {d})
    {x}.repeat_interleave(2)  T.cat([{x}, {x2}], {d})  T.cat([{x}, {x}], {d})
    T.cat(({x}, {x2}, {x3}), dim={d})  T.stack([{x}, {x2}], {d})  T.stack([{x}, {x}, {x}], {d})
    T.hstack([{x}, {x2}])  T.vstack([{x}, {x2}])  {x}.gather({d}, idx({i}, 2)[...])
    {x}.gather({d}, idx(fit({i}, *{x}.shape), {x}.shape[{d}]))
    {x}.gather({d}, idx(fit({i}, *{x}.shape), {x}.shape[{d}])[..., :2])
    {x}.take_along_dim({e}.argsort({d}, stable=True).long(), {d})
    {x}.take_along_dim(idx({i}, {x}.shape[{d}]), {d})  {x}.take(idx({i}, {x}.numel()))
    {x}.index_select({d}, idx({i}.flatten(), {x}.shape[{d}]))  {x}[idx({i}, {x}.shape[0])].clone()
    {x}[:, idx({i}, {x}.shape[1])]
    {x}[idx(fit({i}, 3), {x}.shape[0]), idx(fit({i2}, 3), {x}.shape[1])]
    {x}[idx(fit({i}, 2, 1), {x}.shape[0]), idx(fit({i2}, 3), {x}.shape[1])]
    {x}[..., idx(fit({i}, 4), {x}.shape[-1])]  {x}[[0, -1]]  {x}[[-1, 0, -1], {k}]  {x}[{e} > {e}]
    {e}[{e} > {k}]  {x}[fit({m}, *{x}.shape)]  {x}[fit({m}, {x}.shape[0])]  {x}.masked_select({m})
    {x}[None, [0, 1]]  {x}[..., [1, 0]]  {x}.scatter({d}, idx(fit({i}, *{x}.shape), 1), {x})
    {n}.scatter({d}, idx(fit({i}, *{n}.shape), {n}.shape[{d}]).argsort({d},\
        stable=True).long(), {n})
    {n}.scatter({d}, idx(fit({i}, *{n}.shape), {n}.shape[{d}]), {k})
    {h}.scatter_add({d}, idx(fit({i}, *{h}.shape), {h}.shape[{d}]), {h})
    {i}.scatter_add({d}, idx(fit({i2}, *{i}.shape), {i}.shape[{d}]), {i})
    ({h} if {B} else {h}.detach()).scatter_reduce({d}, idx(fit({i}, *{h}.shape), {h}.shape[{d}]),\
        {h} if {B} else {h}.detach(), "amax", include_self={B})
    {h}.scatter_reduce({d}, idx(fit({i}, *{h}.shape), {h}.shape[{d}]), {h}, "sum", include_self={B})
    {i}.scatter_reduce({d}, idx(fit({i2}, *{i}.shape), {i}.shape[{d}]), {i}, "amin",\
        include_self={B})
    {i}.scatter_reduce({d}, idx(fit({i2}, *{i}.shape), {i}.shape[{d}]), {i}, "prod",\
        include_self={B})
    {n}.index_add({d}, idx(fit({i}, {n}.shape[{d}]), {n}.shape[{d}]), {n})
    {h}.index_add({d}, idx(fit({i}, {h}.shape[{d}]), {h}.shape[{d}]), {h}, alpha={k})
    {n}.index_fill({d}, idx(fit({i}, 2), {n}.shape[{d}]), {k})
    {x}.index_copy({d}, fit({e}, {x}.shape[{d}]).argsort(stable=True).long(), {x})
    {n}.index_put((idx(fit({i}, 3), {n}.shape[0]),), {n}[0], accumulate=True)
    {n}.masked_scatter(fit({m}, *{n}.shape), {n}.flatten())  {n}.diff(dim={d})  {n}.diff(n={K})
    {n}.trace()  {n}.diag({k}).clone()  {n}.diag_embed({k})  T.tril({x})
    T.outer({n}.flatten()[:4], {n}.flatten()[:3])
    T.kron({n}.flatten()[:2].clone(), {n}.flatten()[:3].clone())
    {n}.cross({n}, dim=-1)  {i} @ {i}  {h} @ {h2}  {n} @ {n2}  {n} @ {n2}.mT  {n}.matmul({n2})
    T.matmul({n}, {n2})  {n}.mm({n2})  {n}.mv({n2})  {n}.dot({n2})  {n}.bmm({n2})
    T.einsum("ij,kj->ik", {n}, {n2})  T.einsum("ij->ji", {n}).clone()
    T.einsum("...i,...i->...", {n}, {n2})  T.einsum("ij,ij->", {n}, {n2})
    T.einsum("ii->i", {n}).clone()  T.einsum("i,j->ij", {n}, {n2})
    T.einsum("bij,bjk->bik", {n}, {n2}.mT)  T.einsum("...ij->...j", {n})
    T.tensordot({n}, {n}.mT, dims=1)  T.tensordot({n}, {n}, dims=([0], [0]))  {n}.lerp({n2}, 0.5)
    {n}.addcmul({n2}, {n3}, value=2)  {n}.add({n2}, alpha=2)  {n}.sub({n2}, alpha=-3)
    {h}.nan_to_num()  {h}.nan_to_num(1.0, 2.0, -3.0)  {h}.copysign({h2})  {h}.copysign(-1.0)
    {e}.isin({e2})  T.isin({e}, {e2}.flatten()[:2])  {e}.isclose({e2})
    idx({i}.flatten(), 5).bincount(minlength=6)
    idx(fit({i}, 5), 5).bincount(fit({h}.double(), 5), minlength=6)
    T.searchsorted({e}.flatten().sort()[0], {e}).long()
    T.searchsorted({h}.flatten().sort()[0], {h2}, right={B}).long()  {e}.nonzero().long()
    {e}.argwhere().long()  {e}.nan_to_num().mode({d})[0]  {e}.unique(return_counts=True)[1].long()
    {e}.unique(return_inverse=True)[1].long()  {h}.histc(4, -2, 2)  F.one_hot(idx({i}, 3), 4).long()
    F.one_hot(idx({i}, 3)).long()  F.pad({x}, (1, 2))  F.pad({x}, (1, 0, 0, 2), value={k})
    F.pad({n}, (-1, 1))  F.pad(fit({h}, 1, 3, 4), (1, 2), mode="reflect")
    F.pad(fit({h}, 1, 3, 4), (2, 1), mode="circular")
    F.pad(fit({h}, 1, 3, 4, 3), (2, 1, 0, 3), mode="replicate")
    F.max_pool1d(fit({h}, 2, 2, 7), {K}, padding=0)
    F.max_pool2d(fit({h}, 1, 2, 5, 6), 3, stride=2, padding=1)
    F.max_pool2d(fit({h}, 2, 5, 6), 2, ceil_mode={B})
    F.max_pool2d(fit({h}, 1, 1, 6, 6), 2, stride=1, dilation=2)
    F.max_pool2d(fit({h}, 1, 2, 4, 4), 2, return_indices=True)[1].long()
    F.conv1d(fit({h}, 2, 3, 5), fit({h2}, 4, 3, 2))
    F.conv2d(fit({h}, 1, 2, 5, 4), fit({h2}, 4, 1, 2, 3), groups=2, padding=1, stride=2)
    F.conv2d(fit({h}, 2, 2, 6, 6), fit({h2}, 3, 2, 2, 2), fit({h3}, 3), dilation=2)
    F.conv2d(fit({h}, 1, 2, 5, 5), fit({h2}, 2, 2, 3, 3), padding="same")
    F.conv_transpose2d(fit({h}, 1, 2, 3, 3), fit({h2}, 2, 2, 3, 2), stride=2, padding=1,\
        output_padding=1)
    F.conv_transpose1d(fit({h}, 1, 2, 4), fit({h2}, 2, 3, 3), stride={K}, dilation=2)
    F.interpolate(fit({h}, 1, 2, 3, 4), size=(5, 3), mode="nearest")
    F.interpolate(fit({h}, 1, 2, 4), scale_factor=2)
    F.interpolate(fit({h}, 1, 2, 3, 4), scale_factor=1.5, mode="nearest-exact")
    F.pixel_shuffle(fit({x}, 1, 4, 2, 3), 2)  F.pixel_unshuffle(fit({x}, 1, 1, 4, 2), 2)
    F.embedding(idx({i}, 3), fit({h}, 3, 2))  F.relu6({h} * 4)  F.hardtanh({h})
    F.threshold({h}, 0.5, -2.0)  F.leaky_relu({h}, 0.25)  F.prelu(fit({h}, 2, 3, 2), fit({h2}, 3))
    F.hardshrink({h})  F.softshrink({h}, 0.25)  F.l1_loss({h}, {h}.flip(0), reduction="sum")
    F.mse_loss({h}, {h} * 2, reduction="none")
    F.huber_loss({h}, {h}.roll(1), delta=0.5, reduction="none")
    F.margin_ranking_loss({h}, {h}.roll(1), {h}.nan_to_num().sign(), margin=0.5, reduction="none")
    {i}.to(T.{t}).clone()  {h}.nan_to_num().clamp(0, 9).to(T.{t})  {h}.nan_to_num(0, 1, -1).int()
    {h}.nan_to_num(0, 1, -1).trunc().to(T.int16)  {m}.to(T.{t})  {m}.float()  {i}.double()
    {i}.float().clone()  {i}.bool()  {e}.bool()  {h}.half()  {i}.clamp(0, 100).to(T.uint8)
    {i}.to(T.uint8) + {i}.to(T.uint8)  ({i} * 100).to(T.int8)  ({i} * 40).to(T.int8) * {k}
    ({i} * 10000).to(T.int16) + 20000  {i}.int() * 1000000000  ({i} * 3000000000).int()
    {i}.type_as({x}) if {x}.is_floating_point() else {i}  {n}.new_zeros(2, 3)
    {n}.new_full((2,), {K})  {n}.new_ones(3)  {n}.new_tensor([1, 2])  {x}.clone()
    {x}.contiguous().clone()  T.zeros_like({x})  T.ones_like({x})  T.full_like({n}, {K})
    T.full_like({f}, {c}, dtype=T.float32)  T.zeros(2, 3, dtype=T.{t})  T.ones(3, dtype=T.{t})
    T.full((2, 2), 0.5)  T.full((), 2.5)  T.eye(3)  T.eye(2, 3, dtype=T.{t})
    T.arange(5, dtype=T.int64)  T.arange(1, 8, 2, dtype=T.float32)  T.arange(3.0)
    T.arange(5, -4, -3, dtype=T.int32)  T.linspace(0, 1, 5)  T.tril_indices(3, 3).long()
    T.block_diag({n}[..., :2].reshape(-1, 2)[:2], T.ones(1, 2)) if {f}.dtype == T.float32 else {f}
    T.meshgrid({x}.flatten()[:2], {x}.flatten()[:3], indexing="ij")[{K} % 2].clone()
    {x}.tensor_split({K}, 0)[-1]  {x}.aminmax(dim={d})[{K} % 2]
    {h}.quantile(0.5, {d}, interpolation="lower")  {f}.new_tensor([{c}, {C}])
    T.tensor([{c}, {C}, 1.5])  T.tensor([[True, False, True]])  T.tensor({c} * 1.0)
    T.atleast_2d({x})  sum([{n}, {n2}, {n}])  max({n}.amax(), {n}.amin())
    {x}[..., None, 0].clone()  {x}[()].clone()  {x}[(0,)].clone()  {x}[None, ..., None].clone()
    {x}[np.array([0, -1])]  {x}[np.int64(0)].clone()  {x}[T.tensor([0, -1])]  {x}[[0], :1]
    {x}[:, None, [0, 0]]  {x}[T.tensor([[0, 1], [1, 0]])]
    {x}[T.tensor([[0], [1]]), T.tensor([0, 1, 1])]
    {x}[..., T.tensor([True, False, True])]  {x}[[True, False]]  {x}[{m}, 0]  {x}[0, {m}]
    {x}[{m}, None]  {x}[:, {m}]
    {x}[-1, ...].clone()  {x}[slice(0, 1), -1].clone()  {x}[..., [0], None]  {x}[[0, 1], [0, -1]]
    {x}[np.array([True, False])]  {x}[idx({i}, {x}.shape[0]), None]  {x}[[0, 1], :, [0, -1]]
    {x}[:, [0, 1], :, [0]]  {x}[None, [0, 1], None]  {x}[[0, -1]][:, [0]]  {x}[{m}][{s}]
    {n} + np.float32(0.5)  {n}.nan_to_num(0, 1, -1).long() * np.int64(2)  {i} + np.int32(3)
    {h} - np.float64(0.25)
    {x} + True  ({m} + 1).long()  {m} * 2.5  {i} * 0.5  {i} + 0.25  True + {n}  {m} - {i}
    2 ** {i}.clamp(0, 5)
    {h}.bfloat16().float()  ({h}.bfloat16() + {h2}.bfloat16()).float()
    ({i} + {h}.bfloat16()).float()
    ({h}.bfloat16() + {h2}.half())  ({m} * {h}.bfloat16()).float()  {h}.bfloat16().sum({d}).float()
    T.tensor(np.arange(12.0).reshape(3, 4)[::2, 1:])
    T.tensor(np.arange(6, dtype=np.int32)[::-1].copy())
    T.tensor(np.float16([1, 2.5]))  T.tensor(np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    T.tensor(np.bool_(True))  T.tensor([np.float32(1.5), 2])  {x}.sum(np.int64(0))
    {n}.nan_to_num(0, 1, -1).long().clamp(np.int64(0), 2)
    T.where({m}, 1.5, {f})  T.where({m}, {x}, False)  T.where({e} > 0, 1.0, 0.0)  {n} * ({e} > {k})
    {x}.reshape(-1, 1, {x}.shape[-1]).squeeze(1)  {x}.unflatten(0, (1, -1)).clone()
    T.scatter(T.zeros(3, 4), 1, idx(fit({i}, 3, 2), 4), {K} + 0.5)  T.cat([{x}, {x2}, {x}], -1)
    T.zeros(4).scatter_add(0, idx(fit({i}, 5), 4), fit({h}.float(), 5))  T.stack([{x}, {x2}], -1)
    {x}.rot90({k}, (0, -1)).clone()  {x}.flip(0, 1).clone()  {x}.roll(({k}, {K}), (0, -1))
    {x}.tensor_split((1, 2), {d})[-1]  {x}.diag_embed({k}, 0, -1)  {x}.repeat_interleave(2, -1)
    {x}.take(idx({i}, {x}.numel()) - {x}.numel())  T.kron({n}, T.ones(1, 2, dtype={n}.dtype))
    {i}.sum({D}, dtype=T.float32)  {i}.prod({d}, keepdim={B}, dtype=T.float64)  {e}.all((0, -1))
    {n}.cumsum({d}, dtype=T.float64)  {m}.cumprod({d}, dtype=T.int32)  {e}.any((0, 1), keepdim={B})
    {n}.clamp(min={n2})  {n}.clamp(max={n2})  {n}.masked_fill({m}, {n2}.flatten()[0])
    {n}.scatter(-1, idx(fit({i}, *{n}.shape), {n}.shape[-1]), {n}, reduce="add")
    {h}.scatter_reduce({d}, idx(fit({i}, *{h}.shape), {h}.shape[{d}]), {h}, "mean",\
        include_self={B})
    T.addmm(fit({n}, 2), fit({n}, 2, 3), fit({n}, 3, 2), beta={k}, alpha={K})
    T.tensordot(fit({n}, 2, 3, 2), fit({n}, 2, 3), dims=([0, 1], [0, 1]))
    T.meshgrid({x}.flatten()[:2], {x}.flatten()[:3], indexing="xy")[{K} % 2].clone()
    {e}.flatten().sort(stable=True, descending={B})[1].long()  {e}.aminmax()[{K} % 2]
    T.searchsorted(fit({e}, 2, 3).sort()[0], fit({e2}.to({e}.dtype), 2, 4), right={B}).long()
    F.max_pool1d(fit({h}, 2, 7), 3, 2, 1, 1, {B})  F.pad(fit({x}, 2, 3, 4), (0, 1, -1, 2, 1, 0))
    F.pad(fit({h}, 1, 2, 3, 4), (1, 2, 2, 0), mode="reflect")  {x}[1:, None, ..., :1].clone()
""")

ROUGH_VALUES = templates(r"""
    [exp sin cos tanh sigmoid atan sinh cosh asinh erf expm1 tan exp2]{f}.clamp(-3, 3).$()
    [sqrt log rsqrt log2 log10 log1p lgamma digamma reciprocal acosh]({f}.abs() + 1.5).$()
    [sqrt log rsqrt log2 log10 log1p reciprocal asin acos atanh exp sin erf tanh]{h}.$()
    [exp sqrt sin cos log1p sigmoid tanh atan]{i}.$()  [softmax log_softmax logsumexp]{f}.$({d})
    [mean std var norm]{f}.$()  [mean logsumexp]{f}.$({D}, keepdim={B})
    [std var]{f}.$({D}, keepdim={B})  [std var]{f}.$({d}, unbiased=False)
    [prod]{f}.$({d}, keepdim={B})  [atan2 hypot logaddexp]{f}.$({f2})
    [elu selu silu gelu mish softplus logsigmoid hardswish hardsigmoid tanhshrink]F.$({f})
    {f} / ({f2}.abs() + 1)  {h} / {h2}  {i} / {K}  {i} / {i2}  {i}.div({K})
    {h}.div({h2}, rounding_mode=None)  1 / ({f}.abs() + 1)  {f} / {C}  {f}.true_divide({C})
    {f} * {C} + {C}  {f} ** 2  {n} ** {K}  ({f}.abs() + 1) ** {C}
    ({f}.abs() + 0.5).pow({f2}.clamp(-2, 2))  2 ** {f}.clamp(-4, 4)  {h}.pow({k})  {f}.cumsum({d})
    {f}.cumprod({d})  {f}.logsumexp({D})  {f}.norm(dim={d})  {f}.norm(1, {d})  {f}.norm(p=inf)
    {f}.norm(2, {d}, keepdim={B})  F.normalize({f}, dim={d})
    F.cosine_similarity({f}, {f2}, dim={d})  F.pairwise_distance({f}, {f2})
    T.cdist(fit({f}, 3, 2), fit({f2}, 4, 2))  {f}.cov()  {f}.lerp({f2}, 0.3)
    {f}.lerp({f2}, {f3}.sigmoid())  {f}.addcdiv({f2}, {f3}.abs() + 1, value=0.5)
    T.addcmul({f}, {f2}, {f3})  {f}.quantile(0.3, {d})  {f}.quantile(0.7)  {f}.sort({d})[0]
    {f}.topk({K}, {d})[0]  {f}.matrix_power({K})  {f} @ {f2}  {f} @ {f2}.mT  {f} + {f2}  {f} * {f2}
    {f} - {f2}  {f} * {f2} + {f3}  {f}.maximum({f2})  ({f} * {f2}).sum({d})  {f}.sum()
    {f}.sum({D}, keepdim=True) * {f}  {f} - {f}.mean({d}, keepdim=True)
    {f} - {f}.amax({d}, keepdim=True)  T.std_mean({f}.nan_to_num(0, 1, 2), {d})[{K} % 2]
    T.var_mean({f}.nan_to_num(0, 1, 2), dim={d}, keepdim={B})[{K} % 2]
    F.linear({f}, fit({f2}, 2, {f}.shape[-1]), fit({f3}, 2))
    T.addmm(fit({f}, 2, 2), fit({f2}, 2, 3), fit({f3}, 3, 2))  F.layer_norm({f}, {f}.shape[-1:])
    F.layer_norm(fit({f}, 2, 3, 4), (3, 4), fit({f2}, 3, 4), fit({f3}, 3, 4))
    F.rms_norm({f}, {f}.shape[-1:], eps=1e-5)  F.group_norm(fit({f}, 2, 4, 3), 2)
    F.instance_norm(fit({f}, 2, 3, 4))
    F.batch_norm(fit({f}, 4, 3), T.zeros(3), T.ones(3),\
        training=True) if {f}.dtype == T.float32 else {f}
    F.batch_norm(fit({f}, 4, 3), fit({f2}.detach(), 3), fit({f3}.detach(), 3).abs() + 1)
    F.cross_entropy(fit({f}, 4, 3), idx(fit({i}, 4), 3), reduction="{q}")
    F.cross_entropy(fit({f}, 4, 3), idx(fit({i}, 4), 3), label_smoothing=0.1)
    F.cross_entropy(fit({f}, 4, 3), idx(fit({i}, 4), 3), ignore_index=1, reduction="{q}")
    F.cross_entropy(fit({f}, 4, 3), idx(fit({i}, 4), 3), weight=fit({f2}.detach(),\
        3).abs() + 0.5, reduction="{q}")
    F.cross_entropy(fit({f}, 2, 3, 4), idx(fit({i}, 2, 4), 3), weight=fit({f2}.detach(),\
        3).abs() + 0.5, ignore_index=0, label_smoothing=0.2)
    F.cross_entropy(fit({f}, 4, 3), fit({f2}, 4, 3).softmax(1).to({f}.dtype),\
        reduction="{q}", label_smoothing=0.1)
    F.nll_loss(fit({f}, 4, 3).log_softmax(1), idx(fit({i}, 4), 3), reduction="{q}", ignore_index=2)
    F.nll_loss(fit({f}, 2, 3, 2), idx(fit({i}, 2, 2), 3), fit({f2}.detach(), 3), reduction="{q}")
    F.binary_cross_entropy_with_logits({f}, {f2}.detach().sigmoid().reshape({f}.shape)\
        .to({f}.dtype), reduction="{q}")
    F.binary_cross_entropy_with_logits(fit({f}, 2, 3), fit({f2}.detach().to({f}.dtype),\
        2, 3).sigmoid(), pos_weight=fit({f3}.detach().to({f}.dtype), 3).abs())
    F.binary_cross_entropy(fit({f}, 3).sigmoid(), fit({f2}.detach(), 3).sigmoid(), reduction="{q}")
    F.kl_div(fit({f}, 2, 3).log_softmax(-1), fit({f2}.detach(), 2, 3).softmax(-1),\
        reduction="batchmean")
    F.kl_div(fit({f}, 2, 3).log_softmax(-1), fit({f2}.detach(), 2, 3).log_softmax(-1),\
        log_target=True, reduction="{q}")
    F.smooth_l1_loss({f}, {f} * 0.5, beta=0.5, reduction="{q}")
    F.huber_loss({f}, {f} * 2, reduction="{q}")
    F.poisson_nll_loss(fit({f}, 3), fit({f2}.detach(), 3).abs())
    F.triplet_margin_loss(fit({f}, 2, 3), fit({f2}, 2, 3), fit({f3}, 2, 3), margin=2.0)
    F.avg_pool1d(fit({f}, 2, 2, 7), 3, stride=2, padding=1, count_include_pad={B})
    F.avg_pool2d(fit({f}, 1, 2, 5, 6), 2, stride=2, ceil_mode={B})
    F.avg_pool2d(fit({f}, 1, 2, 5, 6), (3, 2), stride=(2, 1), padding=(1, 0))
    F.avg_pool2d(fit({f}, 1, 2, 5, 6), 3, stride=2, padding=1, ceil_mode=True,\
        count_include_pad={B})
    F.adaptive_avg_pool2d(fit({f}, 1, 2, 5, 7), (3, 2))  F.adaptive_avg_pool1d(fit({f}, 1, 2, 7), 3)
    F.adaptive_max_pool2d(fit({f}, 1, 2, 5, 7), (3, 2))
    F.interpolate(fit({f}, 1, 2, 3, 4), size=(5, 3), mode="bilinear", align_corners={B})
    F.interpolate(fit({f}, 1, 2, 4), scale_factor=1.7, mode="linear")
    F.interpolate(fit({f}, 1, 1, 4, 4), scale_factor=1.5, mode="bicubic")
    F.interpolate(fit({f}, 1, 1, 6, 5), size=(4, 7), mode="area")
    F.conv1d(fit({f}, 2, 3, 6), fit({f2}, 3, 1, 3), fit({f3}, 3), groups=3, padding=2,\
        stride=2, dilation=2)
    F.conv2d(fit({f}, 1, 2, 5, 5), fit({f2}, 2, 2, 3, 3), padding=1)
    F.conv_transpose2d(fit({f}, 1, 4, 3, 3), fit({f2}, 4, 1, 2, 2), groups=2, stride=(2, 1))
    F.conv3d(fit({f}, 1, 1, 3, 3, 3), fit({f2}, 2, 1, 2, 2, 2), padding=(1, 0, 1))
    F.glu(fit({f}, 2, 4), dim={d})
    F.scaled_dot_product_attention(fit({f}, 1, 2, 3, 4), fit({f2}, 1, 2, 3, 4), fit({f3},\
        1, 2, 3, 4), is_causal={B})
    F.scaled_dot_product_attention(fit({f}, 2, 3, 4), fit({f2}, 2, 5, 4),\
        fit({f3}.nan_to_num(0, 1, 1), 2, 5, 4), attn_mask=fit({m}, 3, 5).logical_or(T.eye(3,\
        5, dtype=T.bool)))
    F.grid_sample(fit({f}, 1, 2, 3, 3), fit({f2}.nan_to_num(), 1, 2, 2, 2).tanh(),\
        align_corners={B})
    F.softmax({f}, dim={d})  F.gelu({f}, approximate="tanh")  F.softplus({f}, beta=2)
    F.elu({f}, alpha=0.5)  F.dropout({f}, 0.5, training=False)
    {f}.to(T.{t}) if T.{t} in (T.float32, T.float64) else {f}  {f}.half()  {f}.float().double()
    {f}.clamp(-1, 1)  {f}.detach() * 2  {f}.clone()  T.where({m}, {f}, {f2})  T.where({m}, {f}, 0.0)
    T.stack([{f}, {f2} * 2]).mean(0)  T.cat([{f}, {f2}], {d})
    F.cross_entropy(fit({f}, 3), idx(fit({i}, 1), 3)[0])
    F.cross_entropy(fit({f}, 4, 3), idx(fit({i}, 4), 3), weight=fit({f2}.detach(), 3).abs() + 0.25,\
        ignore_index={K}, label_smoothing=0.3, reduction="{q}")
    F.cross_entropy(fit({f}, 2, 3, 2, 2), idx(fit({i}, 2, 2, 2), 3), reduction="{q}")
    F.cross_entropy(fit({f}, 4, 3), T.ones(4, dtype=T.long), ignore_index=1, reduction="{q}")
    F.cross_entropy(fit({f}, 2, 3, 4), fit({f2}, 2, 3, 4).softmax(1).to({f}.dtype),\
        weight=fit({f3}.detach(), 3).abs().to({f}.dtype), reduction="{q}")
    F.binary_cross_entropy_with_logits(fit({f}, 2, 3), fit({f2}.detach().to({f}.dtype),\
        2, 3).sigmoid(), fit({f3}.detach().to({f}.dtype), 3).abs(),\
        pos_weight=fit({f3}.detach().to({f}.dtype), 2, 3).abs(), reduction="{q}")
    F.scaled_dot_product_attention(fit({f}, 2, 3, 4), fit({f2}, 2, 5, 4), fit({f3}, 2, 5, 4),\
        attn_mask=fit({f2}.nan_to_num(0, 1, 1), 3, 5), scale=0.5)
    F.scaled_dot_product_attention(fit({f}, 1, 4, 3, 4), fit({f2}, 1, 2, 3, 4), fit({f3}, 1, 2,\
        3, 4), is_causal={B}, enable_gqa=True)
    {f}.masked_fill({m}, -inf).softmax({d})  sum({f}) if {f}.dim() > 1 and len({f}) else {f}
    {f}.var({d}, correction=0, keepdim={B})  {f}.std(correction=0)  {i}.softmax(-1, dtype=T.float32)
    {f}.quantile(T.tensor([0.2, 0.9], dtype={f}.dtype), -1)  {f}.norm(3, {D}, {B})
    F.normalize({f}, p=1, dim={d}, eps=0.5)  T.cdist(fit({f}, 3, 2), fit({f2}, 4, 2), p=1)
    F.batch_norm(fit({f}, 4, 3, 2), None, None, fit({f2}, 3), training=True)
    F.layer_norm(fit({f}, 2, 3, 4), (4,), fit({f2}, 4), eps=0.5)
    F.grid_sample(fit({f}, 1, 2, 3, 3), fit({f2}.nan_to_num(), 1, 2, 2, 2).tanh() * 1.5,\
        padding_mode="border")
    F.avg_pool3d(fit({f}, 1, 2, 3, 4, 3), 2, 1, 1, {B}, {B})  {f}.logaddexp({f2} - 3)
    F.triplet_margin_loss(fit({f}, 2, 3), fit({f2}, 2, 3), fit({f3}, 2, 3), swap={B}, p=1)
    F.poisson_nll_loss(fit({f}, 3), fit({f2}.detach(), 3).abs(), full=True, reduction="{q}")
    F.conv_transpose3d(fit({f}, 1, 2, 2, 3, 2), fit({f2}, 2, 1, 2, 2, 2), stride=(1, 2, 1))
    {f}.lerp({f2}, {C})
""")

VIEWS = templates(r"""
    [T mT]{x}.$  {x}[{s}]  {x}[{s}][{s2}]  {x}.transpose({d}, {d2})  {x}.transpose(0, 1)  {x}.t()
    {x}.permute({d}, {d2}, {d3})  {x}.permute(1, 0)  {x}.permute(2, 0, 1)  {x}.movedim({d}, {d2})
    {x}.moveaxis({d}, {d2})  {x}.swapaxes({d}, {d2})  {x}.swapdims(0, -1)  {x}.unsqueeze({d})
    {x}.squeeze({d})  {x}.squeeze()  {x}.view({p})  {x}.view(-1)
    {x}.contiguous().clone().reshape({p})  {x}.contiguous().clone().flatten({k})
    {x}.expand({K}, *{x}.shape)  {x}.expand(*{x2}.shape)  {x}.expand_as({x2})
    {x}.broadcast_to({x2}.shape)  {x}.diagonal({k})  {x}.diagonal(dim1=0, dim2=-1)
    {x}.unfold({d}, 2, {K})  {x}.narrow({d}, 0, 1)  {x}.narrow({d}, 1, 2)  {x}.select({d}, {k})
    {x}.split({K}, {d})[-1]  {x}.split([1, 2], {d})[1]  {x}.chunk(2, {d})[{k}]  {x}.unbind({d})[-1]
    {x}.hsplit(2)[1]  {x}.vsplit(2)[0]  {x}.tensor_split(2, {d})[0]  {x}.unflatten({d}, (-1, {K}))
    {x}.view_as({x})  {x}.detach()  {x}.ravel().clone()  {x}.diag({k}).clone()  {x}[...]
    {x}.contiguous().clone()  {x}.data.clone()  {x}.flatten().clone()  {x}.reshape({p}).clone()
    list({x})[-1]  [row for row in {x}][0]
""")

WRITES = templates(r"""
    [+= -= *=]{n} $ {k}  [+= -= *=]{n} $ {n2}  [+= -= *=]{n}[{s}] $ {K}  [+= -= *=]{n}[{s}] $ {n2}
    [add_ sub_ mul_]{n}.$({n2})  [&= |= ^=]{m} $ {m2}  [&= |= ^= <<= >>= //= %=]{i} $ 3
    [abs_ neg_ relu_ square_ zero_]{n}.$()  [ceil_ floor_ trunc_ round_]{h}.$()
    [tril_ triu_]{x}.$({k})  {x}[{s}] = {x2}  {x}[{s}] = {x}.clone()  {n}[{s}] = {k}
    {x}[{s}] = {x}[{s2}].clone()
    {x}[{s}] = {x}[{s}].flip(0)  {x}[{s}][{s2}] = {K}  {x}[:] = {x2}  {x}[...] = {x2}
    {n}[{m}] = {k}  {n}[{e} > {k}] = 0  {e}[{e} > {k}] += 1 if {e}.dim() else 1  {n}[{m}] *= 2
    {x}[fit({m}, *{x}.shape)] = {x2}.flatten()[0]  {x}[fit({m}, {x}.shape[0])] = {x}[0]
    {n}[idx({i}, {n}.shape[0])] = {k}  {n}[idx(fit({i}, 1), {n}.shape[0])] += {K}
    {x}[[0, -1]] = {x}[[-1, 0]]  {x}[:, [1, 0]] = {x}[:, [0, 1]]  {x}.copy_({x2})
    {x}[{s}].copy_({x2})  {x}.T.copy_({x2})  {x}.diagonal().copy_({x2})  {n}.diagonal().add_({K})
    {n}.diagonal().fill_({k})  {n}.diagonal(1).zero_()  {n}.fill_({k})  {n}[{s}].fill_({k})
    {n}[{s}].zero_()  {n}.T.add_({n2})  {n}.view(-1)[::2] += {K}  {n}.view(-1)[1:].mul_({k})
    {n}.unbind({d})[0].add_({K})  {n}.chunk(2, {d})[-1].mul_({K})  {n}.split(1, {d})[0].sub_({n2})
    {n}.unsqueeze({d}).add_({n2})  {n}.squeeze().mul_(2)  {n}.select({d}, {k}).copy_({n2})
    {n}.narrow({d}, 0, 1).add_({K})  {n}.permute(1, 0)[{s}] = {k}  {n}.clamp_({k}, 3)
    {n}.clamp_(min={k})  {n}.clamp_max_({k})  {n}.masked_fill_({m}, {k})
    {n}.masked_fill_({e} > {k}, {K})  {n}[{s}].masked_fill_({m}, {k})
    {n}.masked_scatter_({m}, {n2}.clone())
    {n}.index_fill_({d}, idx(fit({i}, 2), {n}.shape[{d}]), {k})
    {n}.index_add_({d}, idx(fit({i}, {n}.shape[{d}]), {n}.shape[{d}]), {n}.clone())
    {x}.index_copy_({d}, fit({e}, {x}.shape[{d}]).argsort(stable=True).long(), {x}.clone())
    {n}.index_put_((idx(fit({i}, 3), {n}.shape[0]),), {n}[0].clone(), accumulate=True)
    {n}.index_put_((idx(fit({i}, 1), {n}.shape[0]), idx(fit({i2}, 1), {n}.shape[1])),\
        {n}.flatten()[-1].clone())
    {n}.scatter_({d}, idx(fit({i}, *{n}.shape), {n}.shape[{d}]), {k})
    {n}.scatter_add_({d}, idx(fit({i}, *{n}.shape), {n}.shape[{d}]), {n}.clone())
    {h}.scatter_reduce_({d}, idx(fit({i}, *{h}.shape), {h}.shape[{d}]), {h}.clone(), "amax")
    {h}.nan_to_num_()  {n}.addcmul_({n2}, {n3})  {n}.add_({n2}, alpha={k})  {n}.lerp_({n2}, 0.5)
    {n}.remainder_({K}).add_(0)  {i}.floor_divide_({K})  {h}.pow_(2)  {x}, {x2} = {x2}, {x}
    {new} = {x}
    {new} = {x}\n{new} += {n2}  {new} = {x}.clone(); {new}[{s}] = {x2}
    {new} = {n}[{s}]; {new} += {K}; {new} = {new} + {n2}
    {new} = T.zeros(3, 2); {new}[{s}] = {n}; {new}[{s2}] += 1
    {new} = {x}.detach(); {new}[{s}] = {K}  {new} = {n}[{s}].T; {new} *= 2
    {new} = T.zeros(4, dtype=T.{t}); {new}[{s}] = {n}
    {new} = T.tensor([1.0, 2.0, -1.0]); {new}[{s}] = {n}
    {new} = T.tensor([[1, 2], [3, 4]], dtype=T.{t}); {new} += {n}
    {new} = T.tensor(0.5); {new} += {h}.sum(); {new} *= 2
    {new} = T.tensor([[0.5], [2.0]]); {new} = {new} + {f}; {new}[{s}] -= 1
    {new} = {n}.new_tensor([1, 2, 3]); {new}[1:] *= {n2}
    {new} = T.zeros_like({n}); {new} += {n}; {new}[{s}] = {k}
    {new} = T.ones(2, 3); {new}[:, 1:] += {n}; {n2}[{s}] = {new}
    {n}[..., None] += {K}  {n}[None] *= 2  {x}[[0]] = {x2}  {n}[np.array([0])] = {k}
    {n}[0][0] = {k}  {n}[{m}, 0] = {k}  {n}[:, {m}] = {k}  {n}[{m}] = {n2}  {n}[{m}] += {n2}[{m}]
    {n}[:, 0], {n}[:, -1] = {n}[:, -1].clone(), {n}[:, 0].clone()  {n}[[0, 1], [0, -1]] = {k}
    {n}[[0, 1], [0, -1]] += {K}  {n}.T[{s}] = {k}  {n}.T[{s}] += {n2}  {n}[{s}].T[{s2}] += 1
    {n}.transpose(0, 1)[{s}] *= 2  {n}.movedim(0, -1)[..., 0] = {k}  {n}.diagonal()[{s}] = {k}
    {n}.unflatten(-1, (2, -1))[..., 0] = {k}  {x}.swapaxes(0, 1).copy_({x2})
    {n}.unfold(0, 2, 2)[..., 0] = {k}  {n}.unfold(-1, 2, 2).mul_({K})
    {n}.index_put_(({m},), {n}[{m}] * 2)
    for row in {n}:\n\trow += {K}  for k, row in enumerate({n}):\n\trow[...] = k
    for row in {n}.unbind(-1):\n\trow *= 2  {n}[[True, False]] = {k}
    {n}[..., [0, -1]] = {n}[..., [-1, 0]]  {n}[None, 0] = {n2}  {n}.squeeze()[{s}] = {n2}
    {n}.view(-1)[idx({i}, {n}.numel())] = {k}
    {x}[{s}], {x2}[{s}] = {x2}[{s}].clone(), {x}[{s}].clone()
    {new} = {n}.view(-1); {new}[0] = {K}; {n}.view(-1)[-1:] += {new}[0]
    {n}.masked_fill_({n} > {k}, 1)
    {new} = {n}.detach(); {new} += {K}; {n}[{s}] += {new}[{s}]  {n}[{s}].copy_({n}[{s}].flip(-1))
""")

ROUGH_WRITES = templates(r"""
    {f} /= {C}  {f} /= {f2}.abs() + 1  {f} **= 2  {f}[{s}] /= 2  {f}.sigmoid_()  {f}.tanh_()
    {f}[{s}].tanh_()  {f}.sin_()  {f}.cos_()  {f}.abs_().sqrt_()  {f}.div_({C})
    {f}.mul_({C}).add_({f2})  {f}.lerp_({f2}, 0.3)  {f}.addcdiv_({f2}, {f3}.abs() + 1)
    {f}[{s}] = {f2}  {f} += {f2}  {f} *= {f2}  {f}.copy_({f2})  {f}.clamp_(-1, 1)
    {f}.masked_fill_({m}, 0.5)  {f}[{s}] += {f2}  {f}[{s}] *= {f2}  {f}[fit({m}, *{f}.shape)] = {C}
    {f}.index_add_({d}, idx(fit({i}, {f}.shape[{d}]), {f}.shape[{d}]), {f}.clone())
""")

READS = templates(r"""
    {new} = {e}.flatten()[-1].item()  {new} = {e}.sum().item()  {new} = {e}.tolist()
    {new} = bool(({e} > {k}).any())  {new} = {e}.shape[0] * 1 + len({e})  {new} = tuple({x}.shape)
    {new} = {x}.is_floating_point()  {new} = {x}.numel() + {x}.dim() + {x}.element_size()
    {new} = {e}.equal({e2})  {new} = {h}.allclose({h2})  {new} = int({e}.flatten()[0])
    {new} = float({i}.sum())  {new} = [row.sum() for row in {n}]  {new} = list({x}.split(1))
    {new} = {x}.unbind({d})  if {e}.sum() > 0:\n\t{n} += 1  if ({e} > {k}).all():\n\t{n} = {n} * 2
    {new} = 0\nfor row in {e}:\n\t{new} += row.sum().item()
    {new} = {n}\nfor step in range({K}):\n\t{new} = {new} + {n2}
    {new} = {n}\nfor step in range({K}):\n\t{new} = {new}[{s}] - step
    while ({n}.sum() > 3).item() and {n}.sum() < 100:\n\t{n} -= 2
    {new} = T.zeros(3)\nfor k in range(3):\n\t{new}[k] = {e}.flatten()[k].item()
    {new} = T.zeros(4, 3)\nfor k in range(12):\n\t{new}[k * {K} % 4, k % 3] += {h}.sum() * k
    {new} = T.zeros(14)\nfor k in range(14):\n\t{new}[k * 5 % 14] = {f}.sum() * k
    {new} = {h}.sum() * T.ones(12, dtype={h}.dtype)\nfor k in range(11):\n\t\
        {new}[k + 1] = {new}[k] * 0.5 + k
    for k in range(10):\n\t{n}[k % {n}.shape[0]] = {n2}.flatten()[k // 2]
    for k in range(10):\n\t{n}[k % {n}.shape[0]] += {K}
    {new} = [{x}, {x2}]; {new}[0] = {new}[0][{s}]; {new} = T.cat([v.flatten() for v in {new}])
    {new} = {i}.flatten()[0].item(); {n} += {new}  {new} = sorted({e}.flatten().tolist())
    {new} = {i}.flatten()[0] in {i}  {new} = {i}.tolist()[0] if {i}.dim() else 0
    {new} = {n}; {new} = {new} + 1; {n}[{s}] = 0  {new} = (lambda a, b: (a + b, a - b))({n}, {n2})
    {new} = [{n}[k] for k in range(len({n}))]
    {new} = dict(a={n}); {new}["a"] += 1; {new} = {new}["a"]
    {new} = []\nfor step in range(3):\n\t{new}.append({n} * step)\n{new} = T.stack({new}).sum(0)
""")

GRADS = templates(r"""
    back({f}.sum())  back(({f} * {f2}).sum())  back({f}.float().square().mean())
    back({f}[{s}].sum())  {f}.sum().backward()  {f}.backward(T.ones_like({f}))
    {f}.backward(gradient={f2}.detach())  {l}.grad = None  {new} = {l}.grad
    {new} = {l}.grad.clone()  {new} = {l}.grad[{s}]  {l}.grad.zero_()  {l}.grad *= 0.5
    {l}.grad[{s}] = 1  {l}.grad.add_({f2}.detach())  {new} = grad_of({f}.sum(), {l})[0]
    {new} = grad_of(({f} * {f2}).sum(), {l})[0]  {new} = grad_of({f}.square().sum(), {f2})[0]
    {new} = grad_of(({f}.exp() * {C}).mean(), {l}, {l2})[1]  {new} = {f}.detach()
    {new} = {f}.detach().clone().requires_grad_()
    {new} = {f}.detach().clone().requires_grad_(); back(({new} * {f2}).sum()); {new} = {new}.grad
    {new} = {f} * {f2}.detach()  with T.no_grad():\n\t{l} -= 0.25  with T.no_grad():\n\t{l}[{s}] = 1
    with T.no_grad():\n\t{l}.mul_({C})  with T.no_grad():\n\t{l}.copy_({f})
    with T.no_grad():\n\t{l} -= 0.5 * {l}.grad  with T.no_grad():\n\t{new} = {f} * {f2}
    {l}.requires_grad_(False)  {l}.requires_grad_()
    {l}.data.mul_(0.5)\nwith T.no_grad():\n\t{l} += 0
    {l}.data[{s}] = 2\nwith T.no_grad():\n\t{l} += 0
    {new} = bool({l}.requires_grad)  {new} = {l}.grad is None
    {new} = {f} * 1; {new}[{s}] = {f2}; back({new}.sum())
    {new} = {f}.clone(); {new} += {f2}; {new}[{s}] *= 2; back(({new} * {f}).sum())
    {new} = T.zeros({f}.shape); {new}[{s}] = {f}; back(({new} * {C}).sum())
    {new} = {f}.clone(); {new}[{s}].zero_(); back({new}.square().sum())
    {new} = {f}.clone(); {new}.T.mul_({f2}); back({new}.sum())
    {new} = {f} * 2; {new}.view(-1)[::2] += {f2}.flatten()[0]; back({new}.square().sum())
    {new} = {f} * 2; {new}.diagonal().copy_({f2}); back({new}.square().sum())
    {new} = {f} * 2; {new}[{m}] = {f2}.flatten()[0]; back({new}.square().sum())
    {new} = {f} * 2; {new}.masked_fill_({m}, 1.0); back({new}.square().sum())
    {new} = {f} * 2; {new}.index_put_((idx(fit({i}, 2), {f}.shape[0]),), {f}[0],\
        accumulate=True); back({new}.square().sum())
    {new} = {f} * 2; {new}.unbind({d})[0].mul_({f2}); back({new}.sum())
    {new} = {f} * 2; {new}.chunk(2, {d})[1].add_({f2}); back({new}.square().sum())
    {new} = further(({f}.square() * {f2}).sum(), {l})[0]; back({new}.square().sum())
    {new} = further(({f} * {f}.tanh()).sum(), {l})[0]; {new} = grad_of(({new} * {f2}).sum(), {l})[0]
    {new} = further(further({f}.pow(3).sum(), {l})[0].sum(), {l})[0].detach()
    {new} = further({f}.exp().clamp(max=9).sum(), {l}, {l2})[1]; {l}.grad = None; back({new}.sum())
    {new} = further(F.cross_entropy(fit({f}, 2, 3), T.tensor([0, 2])), {l})[0]; back({new}.norm())
    {new} = {f} * 1; {new}[...] = {f2}; back({new}.square().sum())
    {l}.requires_grad_(False); {new} = {l} * 2; {l}.requires_grad_(); back(({new} * {l}).sum())
    {new} = {f}.clone(); {new}.zero_(); back({new}.sum())
    {new} = {f} * 2; {new}[{m}] += {f2}[{m}]; back({new}.square().sum())
    {new} = {f} * 2; {new}[..., None] *= {f2}.flatten()[0]; back({new}.square().sum())
    {new} = {f} * 2; {new}[[0, -1][:len({f})]] *= {f2}; back({new}.square().sum())
    {new} = {f}.detach().requires_grad_(); back((({new} * {f2}) ** 2).sum());\
        {new} = {new}.grad + {new}
""")

ROUGH = {*ROUGH_VALUES, *ROUGH_WRITES, *GRADS}
SHAPES = ((2, 3), (2, 3), (3,), (3, 2), (2, 3, 4), (4,), (1, 3), (3, 1), (2, 1, 3), (), (0, 3),
          (1,), (3, 3), (2, 2, 3), (6,), (5,), (1, 1), (2, 4), (2, 2, 4, 4))  # fmt: skip
GROUPS = (
    Group(5, EXACT), Group(2, ROUGH_VALUES), Group(3, VIEWS), Group(5, WRITES, makes_value=False),
    Group(1, ROUGH_WRITES, makes_value=False), Group(2, GRADS, makes_value=False),
    Group(1, READS, makes_value=False, captured=False),
)  # fmt: skip
# Templates that read a value, which a captured step may not do.
READING = (
    r"\[fit|\[\{m\}|> \{k\}\]|nonzero|argwhere|unique|one_hot|bincount|masked_select|isin|_indices"
    "|is None|requires_grad_"
)
# Templates without NaN and infinity: 0 * inf, and the order of operations, are not specified.
FINITE = (
    r"F\.(conv|grid|interp|scaled|adaptive|batch|avg|gelu|max|nll|cross|binary)|T\.(outer|kron|var_mean|std_mean)"
    r"|@|ein|mm|mv|dot|cdist|searchsorted|lerp|mode|fit\(\{h2"
)
# Templates that promote to another dtype themselves.
MIXING = r"bfloat16\(\) \+ .*half\(\)|= T\.tensor\(\[\["
# Errors of PyTorch for which minigrad has an answer.
ERRORS = (
    "ZeroDivision|a leaf Variable|modified by an inplace|not implemented for|does not require grad"
    "|view size is not compatible|combination of arguments|modified inplace|be cast to the desired"
    "|same dtype|did not match|1D tensors expected|expected dtype|but expected|result type"
    "|no attribute|single memory location|positional arguments|scalar type|Unsupported input type"
    "|rounding decides|must be either float or double"
)
# Errors of minigrad that say what to write instead, and documented differences.
HERE = (
    "write in place to a view|0-d mask|not depend on|since been overwritten|RangeError"
    "|the result is|ZeroDivisionError|AxisError|expected at least one|equal ndim|equal sizes"
    "|no parameter has a gradient|cannot set param_groups|bool .* instead of uint8"
    "|momentum > 0 when the optimizer is made"
    "|uint64 .* instead of int64|unexpected \\['momentum_buffer"
)
