"""Token after token: keys and values are kept, so that each new token costs one position.

The prompt is read in one pass. From then on one captured step serves all positions: the position is
a bound variable, where the step writes its key and value, and up to where it attends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from minigrad import Tensor, Variable, jit
from minigrad.graph.symbolic import Integer

if TYPE_CHECKING:
    from minigrad.models.gpt import GPT


class KeyValueCache:
    """Keys and values of one layer, each (batch, heads, context, width of a head)."""

    def __init__(self, batch: int, heads: int, context: int, width: int) -> None:
        self.keys = Tensor.zeros(batch, heads, context, width).contiguous().realize()
        self.values = Tensor.zeros(batch, heads, context, width).contiguous().realize()

    def extend(self, keys: Tensor, values: Tensor, start: Integer) -> tuple[Tensor, Tensor]:
        """Keep those of the positions from `start`; gives those of all positions up to the last."""
        end = start + keys.shape[2]
        self.keys[:, :, start:end] = keys
        self.values[:, :, start:end] = values
        return self.keys[:, :, :end], self.values[:, :, :end]


class Decoder:
    """The logits after some rows of tokens, all of one length, that grow by a token at a time.

    Where the context is full, the later half of it is read anew: positions are learned, so no key
    could move to another position.
    """

    def __init__(self, model: GPT, rows: Sequence[Sequence[int]]) -> None:
        self.model = model
        self.rows = [list(row) for row in rows]
        self.used = 0  # positions in the caches
        config = model.config
        self.caches = [
            KeyValueCache(len(rows), config.heads, config.context, config.dim // config.heads)
            for _ in range(config.layers)
        ]
        self._step = jit(self._one)

    def logits(self) -> Any:
        """After the rows as they are: a numpy array (rows, vocabulary)."""
        context = self.model.config.context
        with Tensor.no_grad():
            if self.used == 0:
                return self._read(context)
            if self.used == context:
                return self._read(max(context // 2, 1))
            position = Variable("position", 0, context - 1).bind(self.used)
            self.used += 1
            return self._step(Tensor([[row[-1]] for row in self.rows]), position).numpy()

    def append(self, tokens: Sequence[int]) -> None:
        """One more token for each row."""
        for row, token in zip(self.rows, tokens, strict=True):
            row.append(token)

    def _read(self, most: int) -> Any:
        """One pass over the last `most` tokens.

        They are padded at the right to a power of two, so that few different programs are
        compiled: no token sees the padding, and its keys are overwritten before one could.
        """
        windows = [row[-most:] for row in self.rows]
        length, context = len(windows[0]), self.model.config.context
        width = min(1 << (length - 1).bit_length(), context)
        ids = Tensor([window + [0] * (width - length) for window in windows])
        last = Tensor([[[length - 1]]]).expand(len(windows), 1, self.model.config.dim)
        features = self.model.features(ids, self.caches).gather(1, last)
        logits = self.model.unembed(features.squeeze(1))
        kept = [tensor for cache in self.caches for tensor in (cache.keys, cache.values)]
        Tensor.realize(logits, *kept)
        self.used = length
        return logits.numpy()

    def _one(self, ids: Tensor, position: Integer) -> Tensor:
        """(rows, 1) tokens at one position → logits (rows, vocabulary)."""
        features = self.model.features(ids, self.caches, position)
        logits: Tensor = self.model.unembed(features.squeeze(1)).realize()
        return logits
