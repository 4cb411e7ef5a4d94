"""Several requests in one compiled step; each has a slot of the caches, and its own positions.

A prompt is read in pieces that begin at multiples of their length, directly in its slot; the end is
read in as short a piece as holds it. Then each step gives every active slot one more token, or, if
its next tokens were guessed, checks several at once. All arithmetic is row by row, and programs
that sum in another order are not used, so the result of a slot depends only on its own tokens, bit
by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from itertools import islice
from typing import Any, NamedTuple

from minigrad import Tensor, Variable, jit
from minigrad.compile import best_of_rounds
from minigrad.graph.symbolic import Integer
from minigrad.models.decode import KeyValueCache, Start
from minigrad.models.gpt import GPT, Attention

PIECE = 64  # tokens of a prompt read at once; others wait for no more than these
PARTS = 4  # of a piece: the end of a prompt is read in as few of them as hold it
WARM = 3  # calls until a program is captured and compiled


@lru_cache(maxsize=1 << 14)
def bound(name: str, value: int, count: int) -> Integer:
    """A bound variable in 0 … count − 1; equal calls give the same one, which is found quickly."""
    return Variable(name, 0, count - 1).bind(value)


class RowCaches:
    """One layer's caches of all slots, for a step with rows at positions `places`.

    Slots have equally many rows, one slot after the other. written and index, (count, context):
    which positions of each slot the step writes, and which row is written there.
    """

    def __init__(
        self, cache: KeyValueCache, slots: Sequence[Integer], places: Sequence[Integer],
        written: Tensor, index: Tensor,
    ) -> None:  # fmt: skip
        self.cache, self.slots, self.places = cache, slots, places
        self.written, self.index = written.unsqueeze(2).unsqueeze(1), index

    def attend(self, attention: Attention, q: Tensor, k: Tensor, v: Tensor, start: Start) -> Tensor:
        """Store all rows at once; then each row attends to its own positions only."""
        for kept, new in ((self.cache.keys, k), (self.cache.values, v)):
            rows = new.squeeze(2)[self.index].transpose(1, 2)  # (count, heads, context, width)
            kept.assign(self.written.where(rows, kept))
        each = len(self.places) // len(self.slots)
        found = [
            self.cache.of(self.slots[row // each]).look(attention, q[row : row + 1], place)
            for row, place in enumerate(self.places)
        ]
        # kept apart: a product with it inside would be another kernel, with sums in another order
        return Tensor.cat(found).contiguous()

    def settle(self, x: Tensor) -> None:
        """Compute a layer's result, and the stored keys and values."""
        self.cache.settle(x)


class Row(NamedTuple):
    """One row of a step's results.

    copied: returns the logits of all rows, (rows, vocabulary), copied to the host by the first
    call. likeliest: the first token with the largest logit.
    """

    copied: Callable[[], Any]
    number: int
    likeliest: int

    @property
    def logits(self) -> Any:
        """The logits (vocabulary,), a numpy array."""
        return self.copied()[self.number]


class Slots:
    """The caches of `count` slots, a power of two, and the programs that fill and use them.

    context: positions of each, rounded down to whole pieces. guesses: how many guessed tokens of a
    slot are checked at once, if any.
    """

    def __init__(self, model: GPT, count: int, context: int, guesses: int = 0) -> None:
        config = model.config
        self.piece = PIECE if context >= 4 * PIECE else max(context // 4, 1)
        self.context = context = context // self.piece * self.piece
        self.model, self.count = model, count
        self.caches = [KeyValueCache.empty(config, count, context) for _ in range(config.layers)]
        self.kept = [kept for one in self.caches for kept in (one.keys, one.values)]
        # numbers of rows that a step may have; `warm` removes some
        self.widths = [1 << n for n in range(count.bit_length())]
        part = max(self.piece // PARTS, 1)
        sizes = [*range(part, self.piece, part), self.piece]
        self._pieces = {size: jit(self._read) for size in sizes}
        self._copy = jit(self._move)
        self.guesses = min(guesses, self.piece - 1)
        # number of slots in a check → its time relative to a step
        self.checks: dict[int, float] = {}
        self._each: dict[int, int] = {}  # number of slots in a check → rows of each
        self._steps: dict[tuple[int, int], Any] = {}  # by slots, and rows of each

    def warm(self) -> None:
        """Compile and capture all programs, in the thread that will call them.

        Products are tiled by their number of rows, so steps of different widths may sum in
        different orders. Only widths are kept whose every row equals that of the widest step.
        """
        tokens = [place % self.model.config.vocabulary for place in range(self.piece)]
        for _ in range(WARM):
            for size in self._pieces:
                self.read(0, tokens[:size], 0)
            for slot in range(1, self.count):
                self.copy(0, slot, self.piece)
        wanted, kept = None, []
        for width in reversed(self.widths):
            for _ in range(WARM):
                rows = self._rows(_alike(width, tokens[-1:], self.piece), width)
            wanted = rows[0].logits if wanted is None else wanted
            if all(bool((row.logits == wanted).all()) for row in rows):
                kept.append(width)
        self.widths = kept[::-1] or [1]  # one by one is always right
        for width in (1 << n for n in range(self.count.bit_length() if self.guesses else 0)):
            self._warm_check(width, tokens[-1:])

    def _warm_check(self, width: int, token: Sequence[int]) -> None:
        """Keep a check of so many slots if its rows equal a step's; with the fewest rows."""
        least = 1 << self.guesses.bit_length()
        wanted = list[Any]()
        for each in (1 << n for n in range(self.piece.bit_length())):
            # for a single slot, more rows than all slots have pay off, too
            known = width * each in self.widths or (width == 1 and self.count < each == least)
            if each < least or not known:
                continue
            for place in range(self.piece + len(wanted), self.piece + each):
                wanted.append(self.step({0: (token[0], place)})[0].logits)
            same = _alike(width, [*token] * each, self.piece)
            for _ in range(WARM):
                rows = self._rows(same, width, each)
            if all(bool((row.logits == one).all())
                   for row, one in zip(rows, wanted * width, strict=True)):  # fmt: skip
                self._each[width] = each
                self.checks[width] = self._cost(same)
                return

    def _cost(self, tokens: Mapping[int, tuple[Sequence[int], int]]) -> float:
        """The time of a check of some slots, relative to a step of them."""
        single = {slot: (some[0], place) for slot, (some, place) in tokens.items()}
        step, check = best_of_rounds([lambda: self.step(single), lambda: self.check(tokens)])
        return check / step

    def size(self, unread: int) -> int:
        """The tokens of the next piece of a prompt, padding included."""
        rest = min(unread, self.piece)
        return next(size for size in self._pieces if size >= rest) if rest else 0

    def read(self, slot: int, tokens: Sequence[int], start: int) -> None:
        """Read at most `piece` tokens of a slot, from position `start`, into its cache."""
        size = self.size(len(tokens))
        ids = Tensor([[*tokens, *[0] * (size - len(tokens))]], dtype="int32")
        with Tensor.no_grad():
            place = bound("start", start, self.context - size + 1)
            self._pieces[size](ids, bound("slot", slot, self.count), place)

    def step(self, tokens: Mapping[int, tuple[int, int]]) -> dict[int, Row]:
        """Advance some slots: (token, position) by slot → the next row of results, by slot."""
        slots, most = list(tokens), self.widths[-1]
        found: dict[int, Row] = {}
        for first in range(0, len(slots), most):
            some = {slot: tokens[slot] for slot in slots[first : first + most]}
            width = next(width for width in self.widths if width >= len(some))
            rows = self._rows({slot: ([token], at) for slot, (token, at) in some.items()}, width)
            found |= dict(zip(some, rows, strict=False))
        return found

    def can_check(self, places: Sequence[int]) -> bool:
        """Whether `check` takes so many slots, at these positions."""
        count = len(places)
        return count in self.checks and max(places) + self._each[count] <= self.context

    def check(self, tokens: Mapping[int, tuple[Sequence[int], int]]) -> dict[int, list[Row]]:
        """Advance some slots by at most `guesses` + 1 tokens each, if `can_check`.

        (tokens, position of the first) by slot → the rows that `step` would give for each, by slot.
        """
        each = self._each[len(tokens)]
        rows = iter(self._rows(tokens, len(tokens), each))
        return {slot: list(islice(rows, each))[: len(some)] for slot, (some, _) in tokens.items()}

    def _rows(
        self, tokens: Mapping[int, tuple[Sequence[int], int]], width: int, each: int = 1
    ) -> list[Row]:
        """The rows of the given slots, then padding.

        A slot has `each` rows; those after its tokens are overwritten before they are seen.
        """
        slots = [*tokens, *[0] * (width - len(tokens))]
        firsts, order = [self.context] * self.count, [0] * self.count  # by slot; unused: beyond all
        ids, places = list[int](), list[int]()
        for number, (slot, (some, start)) in enumerate(tokens.items()):
            firsts[slot], order[slot] = start, number
            ids += (*some, *[0] * (each - len(some)))
            places += range(start, start + each)
        unread = [0] * (width * each - len(ids))
        ids, places = ids + unread, places + unread
        with Tensor.no_grad():
            if (width, each) not in self._steps:
                self._steps[width, each] = jit(self._advance)
            logits, likeliest = self._steps[width, each](
                Tensor([*ids, *places, *firsts, *order], dtype="int32"),
                [bound(f"slot{number}", slot, self.count) for number, slot in enumerate(slots)],
                [bound(f"place{row}", place, self.context) for row, place in enumerate(places)],
            )  # fmt: skip
            copied = cache(logits.numpy)
            return [Row(copied, row, token) for row, token in enumerate(likeliest.tolist())]

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` ≥ 1 positions of one slot to another."""
        with Tensor.no_grad():
            size = Variable("length", 1, self.context).bind(length)
            ends = bound("source", source, self.count), bound("target", target, self.count)
            self._copy(*ends, size)

    def _read(self, ids: Tensor, slot: Integer, start: Integer) -> None:
        self.model.features(ids, [cache.of(slot) for cache in self.caches], start)
        Tensor.realize(*self.kept)

    def _advance(
        self, numbers: Tensor, slots: list[Integer], places: list[Integer]
    ) -> tuple[Tensor, Tensor]:
        """The results after each row: logits (rows, vocabulary), and the likeliest token (rows,).

        Slots have equally many rows, see `RowCaches`. numbers: the rows' tokens, then their
        positions; for each slot of the caches the first position, then the number of its rows in
        the step.
        """
        each, own = len(places) // len(slots), 2 * len(places)
        ids, positions = numbers[:own].reshape(2, -1)
        first, order = numbers[own:].reshape(2, -1, 1)
        every = Tensor.arange(self.context)
        written = (first <= every) & (every - (each - 1) <= first)
        index = order * each + (every - first).clip(0, each - 1)
        index.realize()  # not `written`: the compiler turns it into bounds
        caches = [RowCaches(cache, slots, places, written, index) for cache in self.caches]
        features = self.model.features(ids.unsqueeze(1), caches, positions)
        logits = self.model.unembed(features.squeeze(1))
        likeliest = logits.argmax(-1)
        Tensor.realize(logits, likeliest, *self.kept)
        return logits, likeliest

    def _move(self, source: Integer, target: Integer, length: Integer) -> None:
        for kept in self.kept:
            old = kept[source : source + 1, :, :length].contiguous()
            kept[target : target + 1, :, :length] = old
        Tensor.realize(*self.kept)


def _alike(count: int, tokens: Sequence[int], place: int) -> dict[int, tuple[Sequence[int], int]]:
    """The same tokens at the same position for each of the first slots."""
    return dict.fromkeys(range(count), (tokens, place))
