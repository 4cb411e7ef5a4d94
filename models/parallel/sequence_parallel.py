"""Sequence parallel: each rank holds part of every sequence, and keys and values travel.

Ring attention (H. Liu, M. Zaharia, P. Abbeel, "Ring Attention with Blockwise Transformers for
Near-Infinite Context", 2023). A sequence of T tokens is cut into 2·N chunks, and rank r holds
chunks r and 2·N − 1 − r: under a causal mask an early chunk has little work and a late one much, so
all ranks have the same (zigzag order). The keys and values of each rank go once around the ring.
The result of a query so far is (output, log-sum-exp of its scores), and two such pairs merge
exactly. In the backward pass, keys and values go around once more, with their gradients, which end
at their owner; no rank ever keeps more than two ranks' keys.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from minigrad import Tensor
from minigrad.graph import build
from minigrad.graph.node import Node
from minigrad.models.errors import InputError
from minigrad.models.parallel.group import RankGroup
from minigrad.models.parallel.operations import together
from minigrad.tensor.contraction import matmul_where

if TYPE_CHECKING:
    from minigrad.models.gpt import GPT


Found = tuple[Tensor, Tensor]  # output, and log-sum-exp of the scores


class Rows(NamedTuple):
    """Values of some queries for the backward pass; delta is each one's sum of output·gradient."""

    queries: Tensor
    gradient: Tensor
    statistic: Tensor
    delta: Tensor


class SequenceParallel:
    """One rank's part of each sequence, and attention across the parts of all ranks in `group`.

    length: tokens of a whole sequence. InputError if it cannot be cut into 2·N chunks.
    """

    def __init__(self, group: RankGroup, length: int) -> None:
        self.group, self.length = group, length
        parts = 2 * group.size if group.size > 1 else 1
        if length % parts:
            raise InputError(
                f"{length} tokens cannot be split into {parts} equal chunks for {group.size} "
                f"ranks: use a --context that is a multiple of {parts}"
            )
        self.chunk = length // parts
        self.chunks = [group.rank, parts - 1 - group.rank] if group.size > 1 else [0]

    @property
    def spans(self) -> list[tuple[int, int]]:
        """(first, last + 1) of the positions on this rank, in its order."""
        return [(chunk * self.chunk, (chunk + 1) * self.chunk) for chunk in self.chunks]

    def take(self, array: Any) -> Any:
        """This rank's columns of a numpy array (batch, length)."""
        return np.concatenate([array[:, start:stop] for start, stop in self.spans], axis=1)

    def attach(self, model: GPT) -> None:
        """Make a GPT process parts of sequences, by replacing its positions and attention."""
        if model.config.dropout:
            raise InputError("--sp does not support dropout in attention: leave --dropout at 0")
        model.spans = self.spans

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # a method's object would
            return self.attention(q, k, v)  # be searched for parameters

        for block in model.h:
            block.attn.attend, block.attn.spans = attend, self.spans

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention; each (batch, heads, tokens of this rank, width), in this rank's order.

        If there are fewer heads of keys and values, each serves several query heads.
        """
        many, few = q._known_shape()[1], k._known_shape()[1]
        if many != few:
            k, v = (part.repeat_interleave(many // few, dim=1) for part in (k, v))
        return ring_attention(q, k, v, self.group)


def ring_attention(q: Tensor, k: Tensor, v: Tensor, group: RankGroup) -> Tensor:
    """Causal attention over sequences in zigzag order; see `SequenceParallel.attention`."""
    scale = 1 / math.sqrt(q._known_shape()[-1])
    # The rows of a head are apart in the product that makes them. Blocks read each row many times,
    # and rows a page apart cost half as much again as adjacent ones.
    q, k, v = (part.contiguous() for part in (q, k, v))
    halves = _forward(q.detach(), k.detach(), v.detach(), group, scale)
    output = Tensor.cat([found[0] for found in halves], dim=-2).cast(q.dtype)
    statistic = Tensor.cat([found[1] for found in halves], dim=-2).contiguous().detach()

    def rule(node: Node, g: Node) -> Sequence[Node | None]:
        with Tensor.no_grad():
            queries, keys, values, sums = [Tensor._of(source) for source in node.src[1:]]
            found = _backward(
                queries, keys, values, sums, Tensor._of(node), Tensor._of(g), group, scale
            )
            return [*(part.node for part in found), None]

    sources = (q.node, k.node, v.node, statistic.node)
    return Tensor._of(build.custom(output.contiguous().node, sources, rule))


def _forward(q: Tensor, k: Tensor, v: Tensor, group: RankGroup, scale: float) -> list[Found]:
    """The results of the two halves of the queries."""
    rank, size = group.rank, group.size
    if size == 1:
        return [_attend(q, k, v, scale, causal=True)]
    second, moved = _halves(q)[1], _rotate([k, v], group)
    low, high = _halves_of(_attend(q, k, v, scale, causal=True))
    for step in range(1, size):
        keys, values = moved
        if step + 1 < size:  # under way while this step computes, not earlier
            moved = _rotate([keys, values], group, after=[high[0]])
        if (rank - step) % size < rank:  # its early chunk is before both of ours, its late one not
            found = _attend(q, _halves(keys)[0], _halves(values)[0], scale)
            early, late = _halves_of(found)
            low, high = _merged(low, early), _merged(high, late)
        else:  # both of its chunks are between ours
            high = _merged(high, _attend(second, keys, values, scale))
    return [low, high]


def _backward(
    q: Tensor, k: Tensor, v: Tensor, statistic: Tensor, output: Tensor, g: Tensor,
    group: RankGroup, scale: float,
) -> list[Tensor]:  # fmt: skip
    """Gradients of q, k and v; keys and values go around again, with their gradients."""
    rank, size = group.rank, group.size
    wide, away = g.cast(statistic.dtype).contiguous(), output.cast(statistic.dtype)
    delta = (wide * away).sum(axis=-1, keepdim=True).contiguous()
    rows = Rows(q, wide, statistic, delta)
    late = Rows(*(_halves(tensor)[1] for tensor in rows))
    moved = _rotate([k, v], group) if size > 1 else []
    dq, *carried = _attend_backward(rows, k, v, scale, causal=True)
    for step in range(1, size):
        carried = _rotate(carried, group)
        keys, values = moved
        if step + 1 < size:
            moved = _rotate([keys, values], group)
        if (rank - step) % size < rank:
            more, dk, dv = _attend_backward(rows, _halves(keys)[0], _halves(values)[0], scale)
            dk, dv = (_at_half(part, 0) for part in (dk, dv))
        else:
            more, dk, dv = _attend_backward(late, keys, values, scale)
            more = _at_half(more, 1)
        dq, carried = dq + more, [dk + carried[0], dv + carried[1]]
    carried = _rotate(carried, group) if size > 1 else carried
    return [part.cast(of.dtype) for part, of in zip((dq, *carried), (q, k, v), strict=True)]


def _rotate(
    tensors: Sequence[Tensor], group: RankGroup, after: Sequence[Tensor] = ()
) -> list[Tensor]:
    return together("permute", tensors, group, place=1, after=after)


# --- attention of some queries to some keys ------------------------------------------------------


def _scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
    return q._wide().matmul(k._wide().transpose(-1, -2)) * scale


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool = False) -> Found:
    """Output and log-sum-exp of attention, both in at least float32."""
    scores, wide = _scores(q, k, scale), v._wide()
    seen = q._seen(k, None, is_causal=True)[0] if causal else None
    visible = scores if seen is None else seen.where(scores, -math.inf)
    largest = visible.max(axis=-1, keepdim=True)
    weights = _weights(scores - largest, seen)
    total = weights.sum(axis=-1, keepdim=True)
    output = weights.matmul(wide) if seen is None else matmul_where(seen, weights, wide)
    return output / total, total.log() + largest


def _weights(scores: Tensor, seen: Tensor | None) -> Tensor:
    return (scores if seen is None else seen.where(scores, -math.inf)).exp()


def _attend_backward(
    rows: Rows, k: Tensor, v: Tensor, scale: float, causal: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Contributions of these keys to the gradients of q, k and v.

    The weights are recomputed from the statistic of whole rows (T. Dao et al., "FlashAttention",
    2022).
    """
    q, g, statistic, delta = rows
    seen = q._seen(k, None, is_causal=True)[0] if causal else None
    weights = _weights(_scores(q, k, scale) - statistic, seen)
    towards = g.matmul(v._wide().transpose(-1, -2))
    slopes = weights * (towards - delta) * scale
    keys, queries = k._wide(), q._wide()
    if seen is None:
        dk, dv = (x.transpose(-1, -2).matmul(y) for x, y in ((slopes, queries), (weights, g)))
        return slopes.matmul(keys), dk, dv
    slopes, by = seen.where(slopes, 0.0), seen.transpose(-1, -2)
    dk, dv = (
        matmul_where(by, x.transpose(-1, -2), y) for x, y in ((slopes, queries), (weights, g))
    )
    return matmul_where(seen, slopes, keys), dk, dv


def _merged(found: Found, more: Found) -> Found:
    """The result over the keys of both."""
    (x, a), (y, b) = found, more
    largest = a.maximum(b)
    left, right = (a - largest).exp(), (b - largest).exp()
    total = left + right
    merged = (x * left + y * right) / total
    return merged.contiguous(), (total.log() + largest).contiguous()


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of this rank's early chunk, and of its late chunk."""
    middle = x._known_shape()[-2] // 2
    return x[..., :middle, :], x[..., middle:, :]


def _halves_of(found: Found) -> tuple[Found, Found]:
    early, late = zip(*map(_halves, found), strict=True)
    return early, late


def _at_half(x: Tensor, half: int) -> Tensor:
    """x as one half of twice as many rows, with zeros in the other."""
    rows = x._known_shape()[-2]
    return x.pad((0, 0, rows, 0) if half else (0, 0, 0, rows))
