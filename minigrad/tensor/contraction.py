"""Products: matmul, einsum, attention; and the layers that are made of products and sums."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cache
from typing import Any, Self

from minigrad.device import Device
from minigrad.dtype import DType, DTypeLike, dtypes, promote, resolve
from minigrad.errors import DTypeError, ShapeError, expect, misfit
from minigrad.graph import build
from minigrad.graph.node import Node, Op, Shape, device_of
from minigrad.tensor.broadcasting import Scalar, axes_of, broadcast_shape, broadcast_to
from minigrad.tensor.core import Core
from minigrad.tensor.methods import Methods
from minigrad.tensor.movement import tensors_in
from minigrad.tensor.templates import templated

WORTH = 16  # rows and columns of bytes from which packing them pays off: a register of words


class Contraction(Methods):
    """Sums of products. Half floats are multiplied and added in float32."""

    __slots__ = ()

    # --- matrix products --------------------------------------------------------------------------

    def matmul(self, other: Any, dtype: DTypeLike = None) -> Self:
        """Matrix product by numpy's rules: batch dimensions broadcast, vectors are rows or columns.

        (…, m, k) · (…, k, n) → (…, m, n) in the promoted dtype, or in `dtype`; ShapeError if k or
        the batch dimensions differ.

        >>> Tensor([[1, 2]]).matmul(Tensor([[3], [4]])).tolist()
        [[11]]
        """
        right = self._operand(other)
        if not self.ndim or not right.ndim or self.shape[-1] != right.shape[-min(right.ndim, 2)]:
            expected = f"(…, m, k) and (…, k, n) with equal k{_instead_of_product(self, right)}"
            raise misfit("matmul", expected, self, right)
        device_of("matmul", (self.raw, right.raw))
        result_dtype = promote(self.dtype, right.dtype) if dtype is None else resolve(dtype)
        wide = accumulator(result_dtype)
        if wide is dtypes.int32 and _are_bytes(self.raw, right.raw):
            return self._new(build.cast(_product_of_bytes(self, right).node, result_dtype))
        x, y = self.cast(wide), right.cast(wide)
        y = y.transpose(-1, -2) if y.ndim > 1 else y  # (…, n, k)
        # both with a dimension for m, n and k, so that a product of elements has all terms
        rows, columns = (one.shape[:-1] or (1,) for one in (x, y))  # a vector is a matrix of one
        left = x.reshape((*rows, 1, x.shape[-1]))  # (…, m, 1, k)
        lines = y.reshape((*columns[:-1], 1, columns[-1], y.shape[-1]))  # (…, 1, n, k)
        terms = left._binary(Op.MUL, "matmul", lines)
        *batch, m, n, _ = terms.shape
        total = build.reduce(Op.SUM, terms.node, [terms.ndim - 1])
        kept = (*batch, *(m,) * (self.ndim > 1), *(n,) * (right.ndim > 1))
        return self._new(build.cast(build.reshape(total, kept), result_dtype))

    __matmul__ = matmul

    def __rmatmul__(self, other: Any) -> Self:
        return self.__class__(other, device=self.raw.device).matmul(self)

    def __imatmul__(self, other: Any) -> Self:  # type: ignore[misc]
        return self._in_place("@", self.matmul(other))

    def linear(self, weight: Core, bias: Core | None = None) -> Self:
        """x·W + b for W of shape (in, out); for W of shape (in,), elementwise x·W.

        nn.Linear keeps PyTorch's weight (out, in), and passes it transposed.

        >>> Tensor([[1.0, 2.0]]).linear(Tensor([[3.0], [4.0]])).tolist()
        [[11.0]]
        """
        if weight.ndim not in (1, 2) or not self.ndim or self.shape[-1] != weight.shape[0]:
            raise misfit("linear", "(…, in) and a weight (in, out)", self, weight)
        factor = self._new(weight.node)
        product = self * factor if weight.ndim == 1 else self.matmul(factor)
        result = product if bias is None else product + bias
        if result.shape != product.shape:
            raise misfit("linear", f"a bias that broadcasts to {product.shape}", bias)
        return result

    @staticmethod
    def einsum(equation: str, *operands: Any) -> Any:
        """Sum of products by names of dimensions: "bij,bjk->bik"; "…" stands for batch dimensions.

        Without "->", the result has the names that occur once, in alphabetical order. ShapeError if
        names and dimensions do not fit.

        >>> Tensor.einsum("i,j->ij", Tensor([1, 2]), Tensor([3, 4])).tolist()
        [[3, 4], [6, 8]]
        """
        tensors = tensors_in("einsum", operands)
        inputs, output = _parse_einsum(equation, [tensor.ndim for tensor in tensors])
        extents: dict[str, Any] = {}
        aligned = []
        for names, tensor in zip(inputs, tensors, strict=True):
            names, tensor = _without_repeats(names, tensor)
            for name, extent in zip(names, tensor.shape, strict=True):
                if extents.setdefault(name, extent) != extent:
                    if extents[name] == 1:
                        extents[name] = extent
                    elif extent != 1:
                        what = f"einsum {equation!r}: dimension {name!r}"
                        raise misfit(what, "equal sizes", extents[name], extent)
            aligned.append((names, tensor))
        missing = [name for name in output if name not in extents]
        if missing:
            raise ShapeError(f"einsum {equation!r}: output {missing[0]!r} is in no operand")
        dtype = promote(*(tensor.dtype for tensor in tensors))
        wide = accumulator(dtype)
        rest = [(names, tensor.cast(wide)) for names, tensor in aligned]
        names, result = _summed(*rest.pop(0), output, rest)
        while rest:  # two at a time; names of neither the result nor a later operand are summed
            more, factor = _summed(*rest.pop(0), [*output, *names], rest)
            wanted = {*output, *(name for others, _ in rest for name in others)}
            every = dict.fromkeys([*output, *names, *more])
            kept = [n for n in every if n in wanted and (n in names or n in more)]
            order = kept + [n for n in every if n not in wanted]
            result = _align(names, result, order) * _align(more, factor, order)
            result = result.sum(tuple(range(len(kept), len(order))), dtype=wide)
            names = kept
        result = _align(names, result, output).expand([extents[name] for name in output])
        return result.cast(dtype)

    # --- attention --------------------------------------------------------------------------------

    def scaled_dot_product_attention(
        self, key: Self, value: Self, attn_mask: Core | None = None, dropout_p: Scalar = 0.0,
        is_causal: bool = False, scale: Scalar | None = None, enable_gqa: bool = False,
    ) -> Self:  # fmt: skip
        """softmax(q·kᵀ·scale + mask)·v over the last two dimensions (Vaswani et al. 2017).

        self: (…, queries, d), key: (…, keys, d), value: (…, keys, e) → (…, queries, e). attn_mask:
        bool (True: is attended to) or floats that are added to scores. is_causal: query i sees keys
        0 … i. scale: 1/√d unless given. enable_gqa: each head of key and value serves several heads
        of queries. Dropout acts in training only. If all three are bfloat16, weights are rounded to
        it, too, and so are the factors of gradients, as in PyTorch; sums are float32.

        Masked positions (the future, False, −∞) have no influence: even if a query, key, value or
        gradient of the result is NaN or infinite there, the result and all gradients are those of
        the other positions. A query that sees no key gives zeros.

        >>> q = Tensor.ones(1, 2)
        >>> q.scaled_dot_product_attention(Tensor.ones(3, 2), Tensor.ones(3, 1)).shape
        (1, 1)
        """
        if is_causal and attn_mask is not None:
            raise ValueError("scaled_dot_product_attention: pass is_causal or attn_mask, not both")
        if min(self.ndim, key.ndim, value.ndim) < 2 + enable_gqa:
            raise misfit("attention", f"at least {2 + enable_gqa} dimensions", self, key, value)
        if enable_gqa:
            key, value = (
                x.repeat_interleave(_ratio(self.shape[-3], x.shape[-3]), -3) for x in (key, value)
            )
        if self.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
            raise misfit("attention", "(…, n, d), (…, m, d) and (…, m, e)", self, key, value)
        given = (key, value, attn_mask, is_causal, scale)
        return self._attended(*given) if dropout_p == 0 else self._attention(*given, dropout_p)

    def _attention(
        self, key: Self, value: Self, attn_mask: Core | None, is_causal: bool,
        scale: Scalar | None, dropout_p: Scalar = 0.0,
    ) -> Self:  # fmt: skip
        """See `scaled_dot_product_attention`."""
        size: Any = self.shape[-1]
        if scale is None and not isinstance(size, int):
            raise ShapeError(f"attention: the head dimension {size} is symbolic; pass scale=")
        factor = 1 / math.sqrt(max(size, 1)) if scale is None else scale
        result_dtype = promote(self.dtype, value.dtype)
        wide = accumulator(result_dtype)
        all_half = {self.dtype, key.dtype, value.dtype} == {dtypes.bfloat16}
        half = dtypes.bfloat16 if all_half else None
        q, keys, values = self.cast(wide), key.cast(wide), value.cast(wide)
        seen, added = self._seen(key, attn_mask, is_causal)
        scores = scores_where(seen, q, keys.transpose(-1, -2), half) * factor
        scores = scores if added is None else scores + added
        # as `softmax`, but without computing what is not seen: its power is 0
        top = seen.where(scores, float("-inf"))._top(-1)
        powers = seen.where(scores - top, float("-inf")).exp()
        weights = powers * powers.sum(-1, True).reciprocal()
        result: Self = matmul_where(seen, weights.dropout(dropout_p), values, half)
        return result.cast(result_dtype)

    _attended = templated(_attention)

    def _seen(self, key: Core, attn_mask: Core | None, is_causal: bool) -> tuple[Self, Self | None]:
        """Which keys a query sees, as a mask (queries, keys) or broadcast; what is added to scores.
        """
        if attn_mask is None and not is_causal:
            return self._new(build.const(True, dtypes.bool, (1, 1), self.raw.device)), None
        if attn_mask is None:
            rows = self.arange(self.shape[-2], device=self.raw.device).unsqueeze(1)
            return self.arange(key.shape[-2], device=self.raw.device) <= rows, None
        mask = self._new(attn_mask.node)
        if mask.dtype.is_bool:
            return mask, None
        expect(mask.dtype.is_float, "attention",
               "a bool mask (True where a key is seen, as in mask != 0), or floats that are added",
               mask.dtype.name, error=DTypeError)  # fmt: skip
        return mask > float("-inf"), mask

    # --- normalization ----------------------------------------------------------------------------

    def layernorm(
        self, axis: int | Sequence[int] = -1, eps: Scalar = 1e-5, weight: Core | None = None,
        bias: Core | None = None,
    ) -> Self:  # fmt: skip
        """(x − mean)/√(variance + eps) over `axis` (Ba et al. 2016); then ·weight + bias if given.

        Computed in at least float32.

        >>> Tensor([[1.0, 1.0]]).layernorm().tolist()
        [[0.0, 0.0]]
        """
        axes_of("layernorm", axis, self.ndim)
        x = self._wide()
        away = x - x.mean(axis, True)
        result = away * ((away * away).mean(axis, True) + eps).rsqrt()
        return result._scaled(weight, bias).cast(self._float_dtype())

    def _scaled(self, weight: Core | None, bias: Core | None = None) -> Self:
        """self·weight + bias, as far as these are given."""
        result = self if weight is None else self * weight
        return result if bias is None else result + bias

    def rmsnorm(
        self, axis: int | Sequence[int] = -1, eps: Scalar = 1e-5, weight: Core | None = None
    ) -> Self:
        """x/√(mean of x² + eps) over `axis` (Zhang and Sennrich 2019); then ·weight if given.

        >>> Tensor([[2.0, 2.0]]).rmsnorm(eps=0).tolist()
        [[1.0, 1.0]]
        """
        x = self._wide()
        result = x * ((x * x).mean(axis, True) + eps).rsqrt()
        return result._scaled(weight).cast(self._float_dtype())

    def batchnorm(
        self, weight: Core | None, bias: Core | None, mean: Core, invstd: Core,
        axis: int | Sequence[int] = 1,
    ) -> Self:  # fmt: skip
        """(x − mean)·invstd·weight + bias; these four have one element per element of `axis`.

        >>> Tensor([[3.0]]).batchnorm(None, None, Tensor([1.0]), Tensor([0.5])).tolist()
        [[1.0]]
        """
        axes = axes_of("batchnorm", axis, self.ndim)
        shape = tuple(e if d in axes else 1 for d, e in enumerate(self.shape))
        away = self - self._new(mean.node).reshape(shape)
        result = away * self._new(invstd.node).reshape(shape)
        given = (x if x is None else self._new(x.node).reshape(shape) for x in (weight, bias))
        return result._scaled(*given)


def _instead_of_product(x: Core, y: Core) -> str:
    """What to write where `x @ y` does not fit."""
    if not x.ndim or not y.ndim:
        return "; write x * y"
    if min(x.ndim, y.ndim) > 1 and x.shape[-1] == y.shape[-1]:
        return "; write x @ y.mT"
    return "; write x.mT @ y" if x.ndim > 1 and x.shape[-2] == y.shape[-min(y.ndim, 2)] else ""


def matmul_where(seen: Any, x: Any, y: Any, half: DType | None = None) -> Any:
    """(…, m, k) · (…, k, n) → (…, m, n), summing only terms for which `seen` (…, m, k) is True.

    Other terms have no influence, not even NaN or infinities; the same holds for gradients. half:
    the dtype to which all factors are rounded, also those of gradients; None for no rounding.
    """
    seen, x, y = _aligned(seen, x, y, (x.shape[-2], x.shape[-1]))
    left, right = _rounded(x, half), _rounded(y, half)
    lines = right.transpose(-1, -2).unsqueeze(-3)  # (…, 1, n, k)
    terms = seen.unsqueeze(-2).where(left.unsqueeze(-2) * lines, 0.0)
    return seen._with_derivative(terms.sum(-1, dtype=x.dtype), _matmul_where_rule(half), x, y)


@cache
def _matmul_where_rule(half: DType | None) -> Any:
    @templated
    def rule(g: Any, value: Any, seen: Any, x: Any, y: Any) -> tuple[Any, ...]:
        dx = seen.where(scores_where(seen, g, y.transpose(-1, -2), half), 0.0)
        return None, dx, matmul_where(seen.transpose(-1, -2), x.transpose(-1, -2), g, half)

    return rule


def scores_where(seen: Any, x: Any, y: Any, half: DType | None = None) -> Any:
    """(…, m, k) · (…, k, n) → (…, m, n); only elements where `seen` (…, m, n) is True are valid.

    The others have any value; their gradients are ignored. half: as in `matmul_where`.
    """
    value = _rounded(x, half).matmul(_rounded(y, half))
    seen, x, y = _aligned(seen, x, y, (x.shape[-2], y.shape[-1]))
    return seen._with_derivative(value, _scores_where_rule(half), x, y)


@cache
def _scores_where_rule(half: DType | None) -> Any:
    @templated
    def rule(g: Any, value: Any, seen: Any, x: Any, y: Any) -> tuple[Any, ...]:
        dy = matmul_where(seen.transpose(-1, -2), g.transpose(-1, -2), x, half)
        return None, matmul_where(seen, g, y.transpose(-1, -2), half), dy.transpose(-1, -2)

    return rule


def _rounded(x: Any, half: DType | None) -> Any:
    return x if half is None else x.cast(half).cast(x.dtype)


def _aligned(seen: Any, x: Any, y: Any, shape: Shape) -> list[Any]:
    """All with the same batch dimensions, and `seen` with `shape` for its last two."""
    batch = broadcast_shape("attention", *(tensor.shape[:-2] for tensor in (seen, x, y)))
    pairs = zip((seen, x, y), (shape, x.shape[-2:], y.shape[-2:]), strict=True)
    return [tensor._new(broadcast_to(tensor.node, (*batch, *two))) for tensor, two in pairs]


def accumulator(dtype: DType) -> DType:
    """The dtype in which products of `dtype` are summed."""
    if dtype.itemsize >= 4:
        return dtype
    if dtype.is_float:
        return dtypes.float32
    return dtypes.uint32 if dtype.kind == "u" else dtypes.int32


def _are_bytes(x: Node, y: Node) -> bool:
    """Whether to pack: both are int8 matrices, large enough for packing one to pay off.

    Not if the device does that itself.
    """
    plain = all(one.ndim == 2 and one.dtype is dtypes.int8 for one in (x, y))
    if not plain or Device[x.device].byte_matrices:
        return False
    return all(isinstance(n, int) and n >= WORTH for n in (*x.shape, *y.shape))


def _product_of_bytes(x: Any, y: Any) -> Any:
    """(m, k) · (k, n) of int8 → (m, n) int32, with operands laid out for the byte dot instructions.

    These (see `schedule/byte_dots.py`) take unsigned bytes on one side: y + 128, with 16 columns
    side by side in words of 4 rows.
    """
    (k, n), more = y.shape, -y.shape[0] % 4
    unsigned = (y.bitcast(dtypes.uint8) ^ 128).pad(((0, more), (0, -n % 16)))
    tiles = unsigned.reshape((k + more) // 4, 4, -1, 16).permute(2, 0, 3, 1).contiguous()
    words = x.pad(((0, 0), (0, more))).reshape(x.shape[0], 1, -1, 1, 4)
    terms = words.cast(dtypes.int32) * tiles.cast(dtypes.int32)
    total = terms.sum((2, 4), dtype=dtypes.int32).reshape(x.shape[0], -1)[:, :n]
    return total - 128 * x.sum(1, keepdim=True, dtype=dtypes.int32)


def _ratio(many: Any, few: Any) -> int:
    if not isinstance(many, int) or not isinstance(few, int) or few == 0 or many % few:
        raise misfit("attention", "query heads in a multiple of the key heads", many, few)
    return many // few


def _parse_einsum(equation: str, ndims: Sequence[int]) -> tuple[list[list[str]], list[str]]:
    """The names of each operand's dimensions and of the result's; … gets names of its own."""
    left, arrow, right = equation.replace(" ", "").replace("...", "…").partition("->")
    parts = left.split(",")
    if len(parts) != len(ndims):
        raise ShapeError(f"einsum {equation!r}: expected {len(parts)} operands, got {len(ndims)}")
    batch = max((n - len(p) + 1 for p, n in zip(parts, ndims, strict=True) if "…" in p), default=0)
    dots = [f".{i}" for i in range(batch)]
    inputs: list[list[str]] = []
    for part, ndim in zip(parts, ndims, strict=True):
        spare = max(len(part) - 1 + batch - ndim, 0)  # batch dimensions of other operands
        names = [name for c in part for name in (dots[spare:] if c == "…" else c)]
        expect(re.fullmatch("[a-zA-Z]*…?[a-zA-Z]*", part) and len(names) == ndim,
               f"einsum {equation!r}: term {part.replace('…', '...')!r}",
               f"a letter for each of the operand's {ndim} dimensions")  # fmt: skip
        inputs.append(names)
    if not arrow:
        return inputs, dots + sorted(c for c in set(left) - {",", "…"} if left.count(c) == 1)
    output = [name for c in right for name in (dots if c == "…" else c)]
    if len(set(output)) != len(output):
        raise ShapeError(f"einsum {equation!r}: expected each name once in the output")
    return inputs, output


def _summed(
    names: list[str], tensor: Any, wanted: Sequence[str], others: Sequence[tuple[list[str], Any]]
) -> tuple[list[str], Any]:
    """An operand, summed over names that neither the result nor another operand has."""
    used = {*wanted, *(name for more, _ in others for name in more)}
    axes = tuple(axis for axis, name in enumerate(names) if name not in used)
    return [n for n in names if n in used], tensor.sum(axes, dtype=tensor.dtype)


def _without_repeats(names: list[str], tensor: Any) -> tuple[list[str], Any]:
    """An operand in which each name occurs once: "ii" reads a diagonal."""
    while len(set(names)) < len(names):
        name = next(n for n in names if names.count(n) > 1)
        first = names.index(name)
        second = names.index(name, first + 1)
        rows, columns = tensor.shape[first], f"{tensor.shape[second]} of one operand"
        if tensor.shape[first] != tensor.shape[second]:
            raise misfit(f"einsum: dimension {name!r}", "equal sizes", rows, columns)
        tensor = tensor.diagonal(0, first, second)
        names = [n for i, n in enumerate(names) if i not in (first, second)] + [name]
    return names, tensor


def _align(names: list[str], tensor: Any, order: list[str]) -> Any:
    """An operand with a dimension for every name in `order`, of extent 1 where it has none."""
    present = [name for name in order if name in names]
    moved = tensor.permute(*(names.index(name) for name in present))
    extents = iter(moved.shape)
    return moved.reshape(tuple(next(extents) if name in names else 1 for name in order))


