"""Several requests in one compiled step: each has caches, a slot, and a position of its own.

A prompt is read in pieces that begin at multiples of their length, in the slot where it will go on;
then every slot that goes on gets one more token by each step. All arithmetic is row by row, and
programs with other sums than the others are left out: what a slot computes depends on its own
tokens only, bit by bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minigrad import Tensor, Variable, jit
from minigrad.graph.symbolic import Integer
from minigrad.models.decode import KeyValueCache, Start

if TYPE_CHECKING:
    from minigrad.models.gpt import GPT, Attention

PIECE = 64  # tokens of a prompt that are read at once: others wait for no more than these
WARM = 3  # calls until a program is captured and compiled


class RowCaches:
    """One layer's caches of several slots: row i of a step's batch is at position places[i]."""

    def __init__(self, caches: Sequence[KeyValueCache], places: Sequence[Integer]) -> None:
        self.caches, self.places = caches, places

    def attend(self, attention: Attention, q: Tensor, k: Tensor, v: Tensor, start: Start) -> Tensor:
        """Row by row, so that each costs its own positions."""
        rows = []
        for row, (cache, place) in enumerate(zip(self.caches, self.places, strict=True)):
            one = slice(row, row + 1)
            rows.append(cache.attend(attention, q[one], k[one], v[one], place))
        # kept apart: a product that had it inside would be another kernel, with other sums
        return rows[0].cat(*rows[1:], dim=0).contiguous()


class Slots:
    """The caches of `count` slots, a power of two, and the programs that fill and use them.

    context: positions of each, rounded down to whole pieces; the last is where slots write that
    wait.
    """

    def __init__(self, model: GPT, count: int, context: int) -> None:
        config = model.config
        self.piece = PIECE if context >= 4 * PIECE else max(context // 4, 1)
        self.context = context = context // self.piece * self.piece
        self.model, self.count = model, count
        # by slot keys and values of each layer
        self.kept: list[list[Tensor]] = [
            [tensor for cache in (KeyValueCache.empty(config, 1, context)
                                  for _ in range(config.layers))
             for tensor in (cache.keys, cache.values)]
            for _ in range(count)
        ]  # fmt: skip
        # how many rows a step may have; `warm` leaves out some
        self.widths = [1 << n for n in range(count.bit_length())]
        self._piece, self._copy = jit(self._read), jit(self._move)
        self._steps = {width: jit(self._advance) for width in self.widths}

    def warm(self) -> None:
        """Compile and capture all programs, in the thread that will call them.

        Products are tiled by their number of rows, so that steps of other widths may add up in
        another order. Only those are kept whose every row is that of the widest step.
        """
        tokens = [place % self.model.config.vocabulary for place in range(self.piece)]
        for _ in range(WARM):
            for slot in range(self.count):
                self.read(slot, tokens, 0)
            if self.count > 1:
                self.copy(0, 1, self.piece)
        wanted, kept = None, []
        for width in reversed(self.widths):
            for _ in range(WARM):
                rows = self._rows(dict.fromkeys(range(width), (tokens[-1], self.piece)), width)
            wanted = rows[0] if wanted is None else wanted
            if all(bool((row == wanted).all()) for row in rows):
                kept.append(width)
        self.widths = kept[::-1] or [1]  # one by one is right always

    def nbytes(self) -> int:
        """Bytes of the caches."""
        return sum(cache.nbytes() for kept in self.kept for cache in _caches(kept))

    def read(self, slot: int, tokens: Sequence[int], start: int) -> None:
        """Keys and values of at most `piece` tokens of a slot, from position `start` on."""
        ids = Tensor([[*tokens, *[0] * (self.piece - len(tokens))]], dtype="int32")
        with Tensor.no_grad():
            place = Variable("start", 0, self.context - self.piece).bind(start)
            self._piece(ids, self.kept[slot], place)

    def step(self, tokens: Mapping[int, tuple[int, int]]) -> dict[int, Any]:
        """One more token of some slots, (token, position) by slot → logits (vocabulary,) by slot.

        They are rows of numpy arrays.
        """
        slots, most = list(tokens), self.widths[-1]
        found: dict[int, Any] = {}
        for first in range(0, len(slots), most):
            some = {slot: tokens[slot] for slot in slots[first : first + most]}
            width = next(width for width in self.widths if width >= len(some))
            found |= dict(zip(some, self._rows(some, width), strict=False))
        return found

    def _rows(self, tokens: Mapping[int, tuple[int, int]], width: int) -> Any:
        """Logits of the given slots, then of some that wait: a numpy array (width, vocabulary)."""
        waiting = [slot for slot in range(self.count) if slot not in tokens]
        slots = [*tokens, *waiting[: width - len(tokens)]]
        rows = [tokens.get(slot, (0, self.context - 1)) for slot in slots]
        with Tensor.no_grad():
            logits: Tensor = self._steps[width](
                Tensor([[token] for token, _ in rows], dtype="int32"),
                Tensor([position for _, position in rows], dtype="int32"),
                [Variable(f"place{row}", 0, self.context - 1).bind(position)
                 for row, (_, position) in enumerate(rows)],
                [self.kept[slot] for slot in slots],
            )  # fmt: skip
            return logits.numpy()

    def copy(self, source: int, target: int, length: int) -> None:
        """What one slot knows of its first `length` tokens, at least one, to another."""
        with Tensor.no_grad():
            bound = Variable("length", 1, self.context).bind(length)
            self._copy(self.kept[source], self.kept[target], bound)

    def _read(self, ids: Tensor, kept: list[Tensor], start: Integer) -> None:
        self.model.features(ids, _caches(kept), start)
        Tensor.realize(*kept)

    def _advance(
        self, ids: Tensor, positions: Tensor, places: list[Integer], kept: list[list[Tensor]]
    ) -> Tensor:
        layers = zip(*map(_caches, kept), strict=True)
        caches = [RowCaches(rows, places) for rows in layers]
        features = self.model.features(ids, caches, positions)
        logits = self.model.unembed(features.squeeze(1))
        Tensor.realize(logits, *(tensor for row in kept for tensor in row))
        return logits

    def _move(self, source: list[Tensor], target: list[Tensor], length: Integer) -> None:
        for old, new in zip(source, target, strict=True):
            new[:, :, :length] = old[:, :, :length]
        Tensor.realize(*target)


def _caches(kept: Sequence[Tensor]) -> list[KeyValueCache]:
    """Of each layer, from keys and values in turn."""
    return [KeyValueCache(*pair) for pair in zip(kept[::2], kept[1::2], strict=True)]
