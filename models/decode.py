"""Decoding token by token: keys and values are kept, so each new token costs one position.

The prompt is read in one pass, and so are tokens that are added later. One captured step serves all
positions: the position is a bound variable, which says where the step writes its key and value, and
how far it attends. The same step draws the next token.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from minigrad import Tensor, Variable, jit
from minigrad.errors import BoundsError, expect
from minigrad.graph.node import grouped
from minigrad.graph.symbolic import Integer
from minigrad.models.sampling import Sampler, Sampling
from minigrad.tensor.broadcasting import check_ints

if TYPE_CHECKING:
    from minigrad.models.gpt import GPT, Attention
    from minigrad.models.gpt_config import GPTConfig

Prompt = Sequence[int]
Start = Integer | Tensor  # the first position; for a batch of single tokens, each row's: (batch,)
POLICIES = ("roll", "error")
FEW = 4  # up to so many new tokens are read one by one, by the step that is compiled anyway


class Cache(Protocol):
    """Storage for a layer's keys and values."""

    def attend(self, attention: Attention, q: Tensor, k: Tensor, v: Tensor, start: Start) -> Tensor:
        """Store keys and values from position `start`; returns the output of attention."""

    def settle(self, x: Tensor) -> None:
        """Compute a layer's result and the stored values before the next layer.

        So each layer is a separate program; as these are alike, few are compiled.
        """


class ContextFull(BoundsError):
    """More tokens than the model's context, and the policy forbids forgetting the oldest."""


class KeyValueCache:
    """Keys and values of one layer, each (batch, heads, context, head width)."""

    def __init__(self, keys: Tensor, values: Tensor, whole: KeyValueCache | None = None) -> None:
        self.keys, self.values, self.whole = keys, values, whole or self

    @classmethod
    def empty(cls, config: GPTConfig, batch: int, context: int) -> KeyValueCache:
        """An empty cache for `context` positions of each row."""
        shape = (batch, config.key_value_heads, context, config.width)
        keys, values = (Tensor.zeros(shape).contiguous().realize() for _ in range(2))
        return cls(keys, values)

    def attend(self, attention: Attention, q: Tensor, k: Tensor, v: Tensor, start: Start) -> Tensor:
        """Store keys and values of positions from `start`; returns attention over all so far."""
        assert not isinstance(start, Tensor)
        self.keep(k, v, start)
        return self.look(attention, q, start)

    def settle(self, x: Tensor) -> None:
        """Compute a layer's result, and the stored keys and values."""
        Tensor.realize(x, self.whole.keys, self.whole.values)

    def keep(self, k: Tensor, v: Tensor, start: Integer) -> None:
        """Store keys and values of positions from `start`, each (batch, heads, length, width)."""
        end = start + k.shape[2]
        self.keys[:, :, start:end] = k
        self.values[:, :, start:end] = v

    def look(self, attention: Attention, q: Tensor, start: Integer) -> Tensor:
        """Attention of queries at positions from `start` over all positions up to their own."""
        end = start + q.shape[2]
        keys, values = self.keys[:, :, :end], self.values[:, :, :end]
        return attention.mix(q, keys, values, seen(q, keys, start, attention))

    def of(self, row: Integer) -> KeyValueCache:
        """The same memory, for one row of the batch."""
        return KeyValueCache(self.keys[row : row + 1], self.values[row : row + 1], self)

    def nbytes(self) -> int:
        """Size in bytes."""
        return 2 * math.prod(self.keys._known_shape()) * self.keys.dtype.itemsize


def at(table: Tensor, start: Start, length: Integer) -> Tensor:
    """The rows of a table (context, …) at `length` positions from `start`: (length, …).

    If `start` is a Tensor, at the single position of each row of a batch: (batch, 1, 1, …).
    """
    if isinstance(start, Tensor):
        return table[start].unsqueeze(1).unsqueeze(1)
    return table[start : start + length]


def seen(q: Tensor, keys: Tensor, start: Integer, attention: Attention) -> Tensor | None:
    """The mask of queries at positions from `start` over keys from 0: (queries, keys), bool.

    None if each query sees itself and all before it. A window counts the query itself.
    """
    context, window, length = attention.config.context, attention.window, q.shape[2]
    narrow = 0 < window < context
    if not narrow and (length == 1 or start == 0):
        return None
    places = Tensor.arange(context, device=q.device)
    rows, columns = places[start : start + length].unsqueeze(1), places[: keys.shape[2]]
    return (columns <= rows) & (columns > rows - window) if narrow else columns <= rows


class Decoder:
    """The logits after some rows of tokens, all of equal length, to which tokens can be added.

    If the context is full and the policy is "roll", the first `keep` tokens and the later half of
    the context are read again, because keys cannot move to other positions. With "error",
    ContextFull is raised. `draw` needs a sampler with as many rows.
    """

    def __init__(
        self, model: GPT, rows: Sequence[Sequence[int]], policy: str = "roll", keep: int = 0,
        sampler: Sampler | None = None,
    ) -> None:  # fmt: skip
        config = model.config
        if policy not in POLICIES:
            raise ValueError(f"context_policy: expected {' or '.join(POLICIES)}, got {policy!r}")
        half = config.context // 2
        expect(0 <= keep <= half, "keep", f"0 … {half}, half of the model's context", keep,
               error=ValueError)  # fmt: skip
        self.model, self.policy, self.keep = model, policy, keep
        self.rows = [list(row) for row in rows]
        self.window = [list(row) for row in rows]  # the part of them in the context
        self.used = 0  # filled positions of the caches
        self.caches = [
            KeyValueCache.empty(config, len(rows), config.context) for _ in range(config.layers)
        ]
        self.sampler = sampler
        self._step = jit(self._one)
        if sampler is not None:
            sampler.see(self.rows)
            self._first, self._drawing = jit(sampler), jit(self._one_drawn)

    def nbytes(self) -> int:
        """Bytes of the caches; equal to `sizing.cache_bytes` for float32."""
        return sum(cache.nbytes() for cache in self.caches)

    def logits(self) -> Any:
        """The logits after the current rows, a numpy array (rows, vocabulary)."""
        return self._next(self._step, lambda logits: logits).numpy()

    def draw(self) -> list[int]:
        """The sampler's next token for each row; the rows are not changed.

        For a repetition penalty it counts as seen.
        """
        tokens: list[int] = self._next(self._drawing, self._first).tolist()
        return tokens

    def _next(
        self, last: Callable[[Tensor, Integer], Tensor], after_read: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """The result of `last` for the last token; or, after a full pass, of `after_read`."""
        context, length = self.model.config.context, len(self.window[0])
        self.used = min(self.used, length - 1)  # asked twice: the last token is read again
        if length > context:
            if self.policy == "error":
                raise ContextFull(
                    f"{length} tokens are more than the model's context of {context}: give fewer, "
                    "or use the context policy 'roll'"
                )
            self._cut(context if self.used == 0 else max(context // 2, 1))
        with Tensor.no_grad():
            if self.used == 0:
                return after_read(self._read())
            self._read_on()
            while True:
                position = Variable("position", 0, context - 1).bind(self.used)
                ids = Tensor([[row[self.used]] for row in self.window])
                self.used += 1
                if self.used == len(self.window[0]):
                    return last(ids, position)
                self._step(ids, position)

    def append(self, tokens: Sequence[int]) -> None:
        """Append a token to each row; with a repetition penalty, it must be the drawn one."""
        for rows in (self.rows, self.window):
            for row, token in zip(rows, tokens, strict=True):
                row.append(token)

    def extend(self, tokens: Sequence[int]) -> None:
        """Append several tokens, which were not drawn, to the only row."""
        for token in tokens:
            self.append([token])
        if self.sampler is not None:
            self.sampler.see([tokens])

    def _cut(self, most: int) -> None:
        """Forget the tokens between the first `keep` and the last ones."""
        tail = most - min(self.keep, most - 1)
        self.window = [row[: most - tail] + row[len(row) - tail :] for row in self.window]
        self.used = 0

    def _read(self) -> Tensor:
        """Read the whole window in one pass; returns the logits after it, (rows, vocabulary).

        It is padded at the right to a power of two, so that few different programs are compiled. No
        token sees the padding, and its keys are overwritten before one could.
        """
        length, context = len(self.window[0]), self.model.config.context
        width = min(1 << (length - 1).bit_length(), context)
        ids = Tensor([row + [0] * (width - length) for row in self.window])
        last = Tensor([[[length - 1]]]).expand(len(self.window), 1, self.model.config.dim)
        features = self.model.features(ids, self.caches).gather(1, last)
        logits: Tensor = self.model.unembed(features.squeeze(1))
        kept = [tensor for cache in self.caches for tensor in (cache.keys, cache.values)]
        Tensor.realize(logits, *kept)
        self.used = length
        return logits

    def _read_on(self) -> None:
        """Read all new tokens but the last, if they are several, in one pass.

        They are padded as in `_read`, if the context has room for that.
        """
        count, context = len(self.window[0]) - 1 - self.used, self.model.config.context
        width = 1 << max(count - 1, 0).bit_length()
        if count < FEW or self.used + width > context:
            return
        rows = [row[self.used : -1] + [0] * (width - count) for row in self.window]
        start = Variable("start", 0, context - width).bind(self.used)
        self.model.features(Tensor(rows), self.caches, start)
        Tensor.realize(*(t for cache in self.caches for t in (cache.keys, cache.values)))
        self.used += count

    def _one(self, ids: Tensor, position: Integer) -> Tensor:
        """(rows, 1) tokens at one position → logits (rows, vocabulary)."""
        return self._after(ids, position).realize()

    def _one_drawn(self, ids: Tensor, position: Integer) -> Tensor:
        """(rows, 1) tokens at one position → the next tokens (rows,)."""
        assert self.sampler is not None
        return self.sampler(self._after(ids, position))

    def _after(self, ids: Tensor, position: Integer) -> Tensor:
        features = self.model.features(ids, self.caches, position)
        logits: Tensor = self.model.unembed(features.squeeze(1))
        return logits


def generate(
    model: GPT, ids: Any, count: int, sampling: Sampling, seed: int, stop: Collection[int],
    policy: str, keep: int,
) -> Iterator[Any]:  # fmt: skip
    """New tokens; see `GPT.generate`. Arguments are checked here, before the first token.

    Prompts of equal length are read together.
    """
    count, seed, keep = check_ints("generate", max_new_tokens=count, seed=seed, keep=keep)
    if count < 0:
        raise ValueError(f"generate(max_new_tokens={count}): expected at least 0")
    if isinstance(stop, str) or not isinstance(stop, Collection):
        raise TypeError(f"generate(stop={stop!r}): expected a collection of tokens, such as {{2}}")
    given: Any = ids.tolist() if isinstance(ids, Tensor) else ids
    given = list(given) if isinstance(given, Iterable) else given
    single = not isinstance(given, list) or not given or not hasattr(given[0], "__len__")
    rows = [check_ids(row, model.config.vocabulary) for row in ([given] if single else given)]
    groups = grouped((len(row), number) for number, row in enumerate(rows))
    decoders = []
    for group in groups.values():
        sampler = Sampler([sampling] * len(group), model.config.vocabulary, seed, group)
        decoders.append(Decoder(model, [rows[i] for i in group], policy, keep, sampler))
    tokens = _draw(decoders, list(groups.values()), count, stop)
    return (new[0] for new in tokens) if single else tokens


def check_ids(given: Iterable[Any], vocabulary: int) -> list[int]:
    """A prompt's ids; ValueError if it is empty, or has ids that the model does not know."""
    try:
        row = [operator.index(token) for token in given]
    except TypeError:
        raise ValueError(
            f"prompt: expected token ids, such as tokenizer.encode(text), got {given!r:.80}"
        ) from None
    if not row:
        raise ValueError("prompt: expected at least one token, got none")
    if not 0 <= min(row) <= max(row) < vocabulary:
        wrong = next(token for token in row if not 0 <= token < vocabulary)
        raise ValueError(
            f"prompt: expected tokens of the model's vocabulary, 0 … {vocabulary - 1}, got {wrong}"
        )
    return row


def _draw(
    decoders: Sequence[Decoder], groups: Sequence[Sequence[int]], count: int, stop: Collection[int]
) -> Iterator[list[int | None]]:
    """Rows of new tokens; decoders[i] has the rows with the numbers in groups[i]."""
    size = sum(len(group) for group in groups)
    alive = [True] * size
    for _ in range(count):
        new: list[int | None] = [None] * size
        for decoder, group in zip(decoders, groups, strict=True):
            if not any(alive[number] for number in group):
                continue
            tokens = decoder.draw()
            decoder.append(tokens)  # rows that have ended continue, ignored
            for number, token in zip(group, tokens, strict=True):
                if alive[number]:
                    new[number] = token
                    alive[number] = token not in stop
        yield new
        if not any(alive):
            return
