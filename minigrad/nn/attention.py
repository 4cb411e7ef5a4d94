"""Attention and the transformer's layer; names and shapes of parameters are PyTorch's."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

from minigrad.errors import DTypeError, expect, misfit
from minigrad.nn import functional as F
from minigrad.nn.containers import ModuleList
from minigrad.nn.layers import Dropout, Linear, uniform
from minigrad.nn.module import Layer, Parameter
from minigrad.nn.normalization import LayerNorm
from minigrad.tensor import Tensor
from minigrad.tensor.arguments import checked


class MultiheadAttention(Layer):
    """Attention with several heads (Vaswani et al. 2017).

    in_proj_weight (3·embed_dim, embed_dim) and in_proj_bias (3·embed_dim,): for queries, keys and
    values; out_proj: a Linear. batch_first: inputs are (batch, length, dim) instead of (length,
    batch, dim); the batch dimension may be missing.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, dropout: float = 0.0, bias: bool = True, *,
        batch_first: bool = False,
    ) -> None:  # fmt: skip
        expect(num_heads >= 1 and not embed_dim % num_heads, "MultiheadAttention",
               "embed_dim to be a multiple of num_heads", embed_dim=embed_dim,
               num_heads=num_heads)  # fmt: skip
        self.embed_dim, self.num_heads, self.dropout = embed_dim, num_heads, dropout
        self.batch_first = batch_first
        # Glorot's bound, √(6/(inputs + outputs)), of the three projections as one
        self.in_proj_weight = uniform((3 * embed_dim, embed_dim), 4 * embed_dim / 6)
        self.in_proj_bias = Parameter(Tensor.zeros(3 * embed_dim)) if bias else None
        self.out_proj = Linear(embed_dim, embed_dim, bias)
        self.out_proj.bias = Parameter(Tensor.zeros(embed_dim)) if bias else None

    @checked
    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
        need_weights: bool = True, attn_mask: Tensor | None = None,
        average_attn_weights: bool = True, is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """The result, in the query's shape, and the weights (batch, queries, keys) if needed.

        key_padding_mask (batch, keys), attn_mask (queries, keys) or (batch·heads, queries, keys):
        bool, True where a key is *not* seen (unlike in `scaled_dot_product_attention`), or floats
        that are added to the scores. is_causal: query i sees keys 0 … i, in addition to attn_mask.
        Without average_attn_weights, weights are per head: (batch, heads, queries, keys). They are
        lazy, and those before dropout.
        """
        batched = query.ndim == 3
        q, k, v = (x if batched else x.unsqueeze(0) for x in (query, key, value))
        if batched and not self.batch_first:
            q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        q, k, v = (self._heads(x) for x in self._projected(q, k, v))
        mask = self._mask(q, k, attn_mask, key_padding_mask, is_causal)
        mixed = q.scaled_dot_product_attention(k, v, mask, self.dropout)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        weights = self._weights(q, k, mask) if need_weights else None
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), weights

    def _projected(self, q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
        """Queries, keys and values for the heads, from inputs (batch, length, dim) each."""
        for x in (q, k, v):
            if x.ndim != 3 or x.shape[-1] != self.embed_dim:
                expected = f"(…, {self.embed_dim}) with 3 dimensions, or 2 without a batch"
                raise misfit("MultiheadAttention", expected, x)
        if not q.shape[0] == k.shape[0] == v.shape[0]:
            expected = f"equal batch sizes (batch_first={self.batch_first})"
            batches = (x.shape[0] for x in (q, k, v))
            raise misfit("MultiheadAttention", expected, *batches)
        weights, bias = self.in_proj_weight.chunk(3), self.in_proj_bias
        biases = (None, None, None) if bias is None else bias.chunk(3)
        return [F.linear(*each) for each in zip((q, k, v), weights, biases, strict=True)]

    def _heads(self, x: Tensor) -> Tensor:
        """(batch, length, dim) → (batch, heads, length, dim/heads)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _mask(
        self, q: Tensor, k: Tensor, attn_mask: Tensor | None, padding: Tensor | None,
        is_causal: bool,
    ) -> Tensor | None:  # fmt: skip
        """All masks as one: bool, True where a key is seen; or floats if one of them is."""
        queries, keys = int(q.size(-2)), int(k.size(-2))
        self._check_masks(int(q.size(0)), queries, keys, attn_mask, padding)
        masks: list[Tensor] = []
        if attn_mask is not None:
            whole = attn_mask.ndim == 3
            masks.append(attn_mask.unflatten(0, (-1, self.num_heads)) if whole else attn_mask)
        if is_causal:
            masks.append(Tensor.ones(queries, keys, dtype="bool", device=q.device).triu(1))
        if padding is not None:
            masks.append(padding.reshape(-1, 1, 1, keys))
        if all(mask.dtype.is_bool for mask in masks):
            seen = [mask.logical_not() for mask in masks]
            return functools.reduce(Tensor.bitwise_and, seen) if seen else None
        added = [mask.where(float("-inf"), 0.0) if mask.dtype.is_bool else mask for mask in masks]
        total: Tensor = functools.reduce(Tensor.add, added)
        return total

    def _check_masks(
        self, batch: int, queries: int, keys: int, attn_mask: Tensor | None, padding: Tensor | None
    ) -> None:
        """DTypeError or ShapeError for masks that would be added as integers, or broadcast."""
        whole = (batch * self.num_heads, queries, keys)
        alone = [(keys,)] if batch == 1 else []  # without a batch
        wanted = {
            "attn_mask": (attn_mask, [whole[1:], whole]),
            "key_padding_mask": (padding, [(batch, keys), *alone]),
        }
        for name, (mask, shapes) in wanted.items():
            if mask is not None and not (mask.dtype.is_bool or mask.dtype.is_float):
                raise DTypeError(
                    f"MultiheadAttention: expected {name} to be bool (True where a key is not "
                    f"seen, as in mask == 0) or floats that are added, got {mask.dtype.name}"
                )
            if mask is not None and mask.shape not in shapes:
                raise misfit(f"MultiheadAttention: {name}", str(shapes[0]), mask)

    def _weights(self, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        """The attention weights (batch, heads, queries, keys); 0 for a query that sees no key."""
        scores: Tensor = q @ k.transpose(-1, -2) * int(q.size(-1)) ** -0.5
        if mask is None:
            return scores.softmax(-1)
        lowest = float("-inf")
        scores = mask.where(scores, lowest) if mask.dtype.is_bool else scores + mask
        sees = scores.max(-1, keepdim=True).ne(lowest)
        return sees.where(sees.where(scores, 0).softmax(-1), 0)


class TransformerEncoderLayer(Layer):
    """Attention and a feed-forward network, each with residual and norm (Vaswani et al. 2017).

    activation: "relu", "gelu" (exact) or a function. norm_first: norms come before, instead of
    after.
    """

    def __init__(
        self, d_model: int, nhead: int, dim_feedforward: int = 2048, dropout: float = 0.1,
        activation: str | Callable[[Tensor], Tensor] = "relu", layer_norm_eps: float = 1e-5,
        batch_first: bool = False, norm_first: bool = False, bias: bool = True,
    ) -> None:  # fmt: skip
        known: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}
        chosen = known.get(activation) if isinstance(activation, str) else activation
        if not callable(chosen):
            raise misfit("TransformerEncoderLayer", "'relu', 'gelu' or a function of a tensor",
                         error=ValueError, activation=activation)  # fmt: skip
        self.self_attn = MultiheadAttention(d_model, nhead, dropout, bias, batch_first=batch_first)
        self.linear1 = Linear(d_model, dim_feedforward, bias)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(dim_feedforward, d_model, bias)
        self.norm1 = LayerNorm(d_model, layer_norm_eps, bias=bias)
        self.norm2 = LayerNorm(d_model, layer_norm_eps, bias=bias)
        self.dropout1, self.dropout2 = Dropout(dropout), Dropout(dropout)
        self.activation = chosen
        self.norm_first = norm_first

    @checked
    def __call__(
        self, src: Tensor, src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None, is_causal: bool = False,
    ) -> Tensor:  # fmt: skip
        """Same shape as src; masks as for `MultiheadAttention`."""

        def attend(x: Tensor) -> Tensor:
            mixed, _ = self.self_attn(
                x, x, x, src_key_padding_mask, False, src_mask, is_causal=is_causal
            )
            return self.dropout1(mixed)

        def feed(x: Tensor) -> Tensor:
            return self.dropout2(self.linear2(self.dropout(self.activation(self.linear1(x)))))

        if self.norm_first:
            x = src + attend(self.norm1(src))
            return x + feed(self.norm2(x))
        x = self.norm1(src + attend(src))
        return self.norm2(x + feed(x))


class TransformerEncoder(Layer):
    """Copies of an encoder layer (initially equal), applied one after the other; then a norm."""

    def __init__(
        self, encoder_layer: TransformerEncoderLayer, num_layers: int,
        norm: Callable[[Tensor], Tensor] | None = None,
    ) -> None:  # fmt: skip
        self.layers = ModuleList(copy.deepcopy(encoder_layer) for _ in range(num_layers))
        self.num_layers, self.norm = num_layers, norm

    @checked
    def __call__(
        self, src: Tensor, mask: Tensor | None = None, src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:  # fmt: skip
        """Same shape as src; masks as for `MultiheadAttention`."""
        x = src
        for layer in self.layers:
            x = layer(x, mask, src_key_padding_mask, is_causal)
        return x if self.norm is None else self.norm(x)
