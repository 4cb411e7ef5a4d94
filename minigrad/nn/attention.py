"""Attention and transformers; names and shapes of parameters are PyTorch's."""

from __future__ import annotations

import copy
import functools
from typing import ClassVar

from minigrad.errors import DTypeError, expect, misfit
from minigrad.nn import functional as F
from minigrad.nn.containers import Function, ModuleList
from minigrad.nn.init import xavier_uniform_
from minigrad.nn.layers import Dropout, Linear, uniform
from minigrad.nn.members import get_parameters
from minigrad.nn.module import Layer, Parameter
from minigrad.nn.normalization import LayerNorm
from minigrad.tensor import Tensor
from minigrad.tensor.arguments import checked
from minigrad.tensor.broadcasting import check_share


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
        check_share("MultiheadAttention", dropout=dropout)
        self.embed_dim, self.num_heads, self.dropout = embed_dim, num_heads, dropout
        self.batch_first, self.bias = batch_first, bias
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
            expect(x.ndim == 3 and x.shape[-1] == self.embed_dim, "MultiheadAttention",
                   f"(…, {self.embed_dim}) with 3 dimensions, or 2 without a batch", x)  # fmt: skip
        batches = [x.shape[0] for x in (q, k, v)]
        expect(len({*batches}) == 1, "MultiheadAttention",
               f"equal batch sizes (batch_first={self.batch_first})", *batches)  # fmt: skip
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
            masks.append(padding.reshape(q.size(0), 1, 1, keys))
        if all(mask.dtype.is_bool for mask in masks):
            seen = [mask.logical_not() for mask in masks]
            return functools.reduce(Tensor.bitwise_and, seen) if seen else None
        added = [mask.where(float("-inf"), 0.0) if mask.dtype.is_bool else mask for mask in masks]
        return functools.reduce(Tensor.add, added)

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
        if mask is None or not k.size(-2):
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

    attentions: ClassVar[tuple[str, ...]] = ("self_attn",)
    self_attn: MultiheadAttention
    norm1: LayerNorm
    norm2: LayerNorm
    dropout1: Dropout
    dropout2: Dropout

    def __init__(
        self, d_model: int, nhead: int, dim_feedforward: int = 2048, dropout: float = 0.1,
        activation: str | Function = "relu", layer_norm_eps: float = 1e-5,
        batch_first: bool = False, norm_first: bool = False, bias: bool = True,
    ) -> None:  # fmt: skip
        known: dict[str, Function] = {"relu": F.relu, "gelu": F.gelu}
        chosen = known.get(activation) if isinstance(activation, str) else activation
        if not callable(chosen):
            raise misfit("TransformerEncoderLayer", "'relu', 'gelu' or a function of a tensor",
                         error=ValueError, activation=activation)  # fmt: skip
        for name in self.attentions:
            options = d_model, nhead, dropout, bias
            setattr(self, name, MultiheadAttention(*options, batch_first=batch_first))
        self.linear1 = Linear(d_model, dim_feedforward, bias)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(dim_feedforward, d_model, bias)
        numbers = range(1, len(self.attentions) + 2)
        for number in numbers:
            setattr(self, f"norm{number}", LayerNorm(d_model, layer_norm_eps, bias=bias))
        for number in numbers:
            setattr(self, f"dropout{number}", Dropout(dropout))
        self.activation = chosen
        self.norm_first = norm_first

    @checked
    def __call__(
        self, src: Tensor, src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None, is_causal: bool = False,
    ) -> Tensor:  # fmt: skip
        """Same shape as src; masks as for `MultiheadAttention`."""
        x = self._attended(src, src_mask, src_key_padding_mask, is_causal)
        return self._added(x, lambda x: self.dropout2(self._feed(x)), self.norm2)

    def _attended(
        self, x: Tensor, mask: Tensor | None, padding: Tensor | None, is_causal: bool
    ) -> Tensor:
        """The block of attention to itself."""

        def attend(x: Tensor) -> Tensor:
            mixed, _ = self.self_attn(x, x, x, padding, False, mask, is_causal=is_causal)
            return self.dropout1(mixed)

        return self._added(x, attend, self.norm1)

    def _added(self, x: Tensor, block: Function, norm: Function) -> Tensor:
        """A residual block, with its norm before or after."""
        return x + block(norm(x)) if self.norm_first else norm(x + block(x))

    def _feed(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(self.activation(self.linear1(x))))


class TransformerDecoderLayer(TransformerEncoderLayer):
    """An encoder layer with attention to an encoder's results in between (Vaswani et al. 2017).

    Arguments as for `TransformerEncoderLayer`.
    """

    attentions = ("self_attn", "multihead_attn")
    multihead_attn: MultiheadAttention
    norm3: LayerNorm
    dropout3: Dropout

    @checked
    def __call__(
        self, tgt: Tensor, memory: Tensor, tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None, tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None, tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:  # fmt: skip
        """Same shape as tgt. memory: the encoder's results; masks as for `MultiheadAttention`."""

        def remember(x: Tensor) -> Tensor:
            masks = memory_key_padding_mask, False, memory_mask
            mixed, _ = self.multihead_attn(x, memory, memory, *masks, is_causal=memory_is_causal)
            return self.dropout2(mixed)

        x = self._attended(tgt, tgt_mask, tgt_key_padding_mask, tgt_is_causal)
        x = self._added(x, remember, self.norm2)
        return self._added(x, lambda x: self.dropout3(self._feed(x)), self.norm3)


class TransformerEncoder(Layer):
    """num_layers copies of an encoder layer (initially equal), one after the other; then a norm.

    norm: a layer, or None for none. Shapes and masks as for `TransformerEncoderLayer`.
    """

    def __init__(
        self, encoder_layer: TransformerEncoderLayer, num_layers: int, norm: Function | None = None
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


class TransformerDecoder(Layer):
    """num_layers copies of a decoder layer (initially equal), one after the other; then a norm.

    norm: a layer, or None for none. Shapes and masks as for `TransformerDecoderLayer`.
    """

    def __init__(
        self, decoder_layer: TransformerDecoderLayer, num_layers: int, norm: Function | None = None
    ) -> None:  # fmt: skip
        self.layers = ModuleList(copy.deepcopy(decoder_layer) for _ in range(num_layers))
        self.num_layers, self.norm = num_layers, norm

    @checked
    def __call__(
        self, tgt: Tensor, memory: Tensor, tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None, tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None, tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:  # fmt: skip
        """Same shape as tgt. memory: the encoder's results; masks as for `MultiheadAttention`."""
        masks = tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask
        for layer in self.layers:
            tgt = layer(tgt, memory, *masks, tgt_is_causal, memory_is_causal)
        return tgt if self.norm is None else self.norm(tgt)


class Transformer(Layer):
    """An encoder and a decoder, each with a final norm (Vaswani et al. 2017).

    Arguments as for `TransformerEncoderLayer`.
    """

    def __init__(
        self, d_model: int = 512, nhead: int = 8, num_encoder_layers: int = 6,
        num_decoder_layers: int = 6, dim_feedforward: int = 2048, dropout: float = 0.1,
        activation: str | Function = "relu", *, layer_norm_eps: float = 1e-5,
        batch_first: bool = False, norm_first: bool = False, bias: bool = True,
    ) -> None:  # fmt: skip
        options = (
            d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps, batch_first,
            norm_first, bias,
        )  # fmt: skip
        encoder, decoder = TransformerEncoderLayer(*options), TransformerDecoderLayer(*options)
        norms = [LayerNorm(d_model, layer_norm_eps, bias=bias) for _ in range(2)]
        self.encoder = TransformerEncoder(encoder, num_encoder_layers, norms[0])
        self.decoder = TransformerDecoder(decoder, num_decoder_layers, norms[1])
        self.d_model, self.nhead, self.batch_first = d_model, nhead, batch_first
        for weight in get_parameters(self):  # layers are copies: draw each one's weights
            if weight.ndim > 1:
                xavier_uniform_(weight)

    @checked
    def __call__(
        self, src: Tensor, tgt: Tensor, src_mask: Tensor | None = None,
        tgt_mask: Tensor | None = None, memory_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None, tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None, src_is_causal: bool = False,
        tgt_is_causal: bool = False, memory_is_causal: bool = False,
    ) -> Tensor:  # fmt: skip
        """Same shape as tgt; src and tgt are embedded; masks as for `MultiheadAttention`."""
        memory = self.encoder(src, src_mask, src_key_padding_mask, src_is_causal)
        return self.decoder(
            tgt, memory, tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask,
            tgt_is_causal, memory_is_causal,
        )  # fmt: skip

    @staticmethod
    def generate_square_subsequent_mask(sz: int) -> Tensor:
        """A causal mask (sz, sz): 0 where a key is seen, and −inf where not."""
        return Tensor.full((sz, sz), float("-inf")).triu(1)
