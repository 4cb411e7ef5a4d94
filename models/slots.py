"""Several requests in one compiled step: each has a slot of the caches, and its own positions.

A prompt is read in pieces that begin at multiples of their length, in the slot where it will go on,
its end in as short a one as holds it. Then every slot that goes on gets one more token by each
step, or, where its next tokens have been guessed, several that are checked at once. All arithmetic
is row by row, and programs with other sums than the others are left out: what a slot computes
depends on its own tokens only, bit by bit.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from minigrad import Tensor, Variable, jit
from minigrad.graph.symbolic import Integer
from minigrad.models.decode import KeyValueCache, Start

if TYPE_CHECKING:
    from minigrad.models.gpt import GPT, Attention

PIECE = 64  # tokens of a prompt that are read at once: others wait for no more than these
PARTS = 4  # a prompt's end is read in so many of as many parts of a piece
WARM = 3  # calls until a program is captured and compiled
TIMED = 5  # steps of which the fastest says what one costs


@lru_cache(maxsize=1 << 14)
def bound(name: str, value: int, count: int) -> Integer:
    """A variable of 0 … count − 1 with a value; the same one each time, which is found quickly."""
    return Variable(name, 0, count - 1).bind(value)


class RowCaches:
    """One layer's caches of all slots, for a step of some rows: row i is at position places[i].

    As many rows for each of the slots, one after the other. written and index, (count, context):
    which positions of each slot the step fills, and which row each of these is.
    """

    def __init__(
        self, cache: KeyValueCache, slots: Sequence[Integer], places: Sequence[Integer],
        written: Tensor, index: Tensor,
    ) -> None:  # fmt: skip
        self.cache, self.slots, self.places = cache, slots, places
        self.written, self.index = written.unsqueeze(2).unsqueeze(1), index

    def attend(self, attention: Attention, q: Tensor, k: Tensor, v: Tensor, start: Start) -> Tensor:
        """All rows are kept at once; each then looks at its own positions, and costs no others."""
        for kept, new in ((self.cache.keys, k), (self.cache.values, v)):
            rows = new.squeeze(2)[self.index].transpose(1, 2)  # (count, heads, context, width)
            kept.assign(self.written.where(rows, kept))
        each = len(self.places) // len(self.slots)
        found = [
            self.cache.of(self.slots[row // each]).look(attention, q[row : row + 1], place)
            for row, place in enumerate(self.places)
        ]
        # kept apart: a product that had it inside would be another kernel, with other sums
        return found[0].cat(*found[1:], dim=0).contiguous()

    def settle(self, x: Tensor) -> None:
        """Compute a layer's result, and what is kept of it."""
        self.cache.settle(x)


class Results:
    """What a step computed: logits (rows, vocabulary), which reach the host if anybody asks."""

    def __init__(self, logits: Tensor) -> None:
        self.tensor = logits
        self._array: Any = None

    @property
    def logits(self) -> Any:
        """As a numpy array."""
        if self._array is None:
            self._array = self.tensor.numpy()
        return self._array


class Row:
    """One row of a step's results. likeliest: the first of the largest logits."""

    def __init__(self, results: Results, number: int, likeliest: int) -> None:
        self.results, self.number, self.likeliest = results, number, likeliest

    @property
    def logits(self) -> Any:
        """(vocabulary,), of numpy."""
        return self.results.logits[self.number]


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
        # how many rows a step may have; `warm` leaves out some
        self.widths = [1 << n for n in range(count.bit_length())]
        part = max(self.piece // PARTS, 1)
        sizes = [*range(part, self.piece, part), self.piece]
        self._pieces = {size: jit(self._read) for size in sizes}
        self._copy = jit(self._move)
        self.guesses = min(guesses, self.piece - 1)
        # how many slots a check may have, and how many times as long as a step it takes
        self.checks: dict[int, float] = {}
        self._each: dict[int, int] = {}  # rows of each of so many slots in a check
        self._steps: dict[tuple[int, int], Any] = {}  # by slots, and rows of each

    def warm(self) -> None:
        """Compile and capture all programs, in the thread that will call them.

        Products are tiled by their number of rows, so that steps of other widths may add up in
        another order. Only those are kept whose every row is that of the widest step.
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
        self.widths = kept[::-1] or [1]  # one by one is right always
        for width in (1 << n for n in range(self.count.bit_length() if self.guesses else 0)):
            self._warm_check(width, tokens[-1:])

    def _warm_check(self, width: int, token: Sequence[int]) -> None:
        """Where one of so many slots has a step's sums: with as few rows of each as can be."""
        least = 1 << self.guesses.bit_length()
        wanted = list[Any]()
        for each in (1 << n for n in range(self.piece.bit_length())):
            # more rows than all slots have are worth it for a single one
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
        """How many times as long as a step of some slots a check of them takes."""
        single = {slot: (some[0], place) for slot, (some, place) in tokens.items()}
        steps, checks = list[float](), list[float]()
        for _ in range(TIMED):
            begun = time.perf_counter()
            self.step(single)
            between = time.perf_counter()
            self.check(tokens)
            steps.append(between - begun)
            checks.append(time.perf_counter() - between)
        return min(checks) / min(steps)

    def size(self, unread: int) -> int:
        """Tokens that the next piece of a prompt has, with those at its end that mean nothing."""
        rest = min(unread, self.piece)
        return next(size for size in self._pieces if size >= rest) if rest else 0

    def read(self, slot: int, tokens: Sequence[int], start: int) -> None:
        """Keys and values of at most `piece` tokens of a slot, from position `start` on."""
        size = self.size(len(tokens))
        ids = Tensor([[*tokens, *[0] * (size - len(tokens))]], dtype="int32")
        with Tensor.no_grad():
            place = bound("start", start, self.context - size + 1)
            self._pieces[size](ids, bound("slot", slot, self.count), place)

    def step(self, tokens: Mapping[int, tuple[int, int]]) -> dict[int, Row]:
        """One more token of some slots: (token, position) by slot → what follows it, by slot."""
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
        """At most `guesses` + 1 more tokens of each of some slots, where `can_check`.

        (tokens, position of the first) by slot → what `step` would give for each, by slot.
        """
        each = self._each[len(tokens)]
        rows = iter(self._rows(tokens, len(tokens), each))
        return {slot: list(islice(rows, each))[: len(some)] for slot, (some, _) in tokens.items()}

    def _rows(
        self, tokens: Mapping[int, tuple[Sequence[int], int]], width: int, each: int = 1
    ) -> list[Row]:
        """Of the given slots, then some that mean nothing.

        A slot has `each` rows; what follows its tokens there is overwritten before it is seen.
        """
        slots = [*tokens, *[0] * (width - len(tokens))]
        firsts, order = [self.context] * self.count, [0] * self.count  # by slot; none: beyond all
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
            results = Results(logits)
            return [Row(results, row, token) for row, token in enumerate(likeliest.tolist())]

    def copy(self, source: int, target: int, length: int) -> None:
        """What one slot knows of its first `length` tokens, at least one, to another."""
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
        """What follows each row: logits (rows, vocabulary), and the likeliest token (rows,).

        As many rows for each of the slots, see `RowCaches`. numbers: the rows' tokens, then their
        positions; for each slot of the caches the first position, then whose rows of all it has.
        """
        each, own = len(places) // len(slots), 2 * len(places)
        ids, positions = numbers[:own].reshape(2, -1)
        first, order = numbers[own:].reshape(2, -1, 1)
        every = Tensor.arange(self.context)
        written = (first <= every) & (every - (each - 1) <= first)
        index = order * each + (every - first).clip(0, each - 1)
        index.realize()  # not `written`, of which the compiler makes bounds
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


def _alike(
    count: int, tokens: Sequence[int], place: int
) -> dict[int, tuple[Sequence[int], int]]:
    """The same tokens at the same position for each of the first slots."""
    return dict.fromkeys(range(count), (tokens, place))
