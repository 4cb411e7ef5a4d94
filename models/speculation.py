"""Several tokens of a greedy text by one pass: what it may go on with is guessed, then checked.

A pass over a few tokens costs little more than one over a single one, for weights are read once.
Every row of it has a step's sums, bit by bit, or it is not used: the text is the same as without.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from typing import Any

from minigrad import Tensor, jit
from minigrad.graph.symbolic import Integer
from minigrad.models.decode import Decoder
from minigrad.models.guesses import Guesses
from minigrad.models.slots import WARM, bound, likeliest_of_rows

# Tokens that guesses would have saved, before the pass that checks them is made: to make it takes
# as long as some hundreds of steps, for which a short talk would wait in vain.
WORTH = 400


class Speculation:
    """The greedy tokens of a Decoder's only row, of which at most `most` at a time are guessed.

    ends: tokens after which nothing is asked for. cost: steps that a check takes; infinite where it
    would not give what steps do, None as long as nobody knows.
    """

    def __init__(self, decoder: Decoder, most: int, ends: Collection[int] = ()) -> None:
        self.decoder, self.ends = decoder, ends
        self.guesses = Guesses(decoder.rows[0], most)
        self.width = 1 << most.bit_length()
        self.cost: float | None = None
        self.checks = self.accepted = 0  # passes, and the tokens that they saved
        self._pass = jit(self._rows)

    def draw(self, most: int) -> list[int]:
        """The next tokens, at least one and at most `most`; all are then to be appended."""
        for token in self.decoder.rows[0][len(self.guesses.text) :]:
            self.guesses.add(token)
        guess = self.guesses.next()[: most - 1]
        places = [place for place, token in enumerate(guess) if token in self.ends]
        guess = guess[: min(places, default=len(guess))]
        if guess and self._pays():
            return self._checked(guess)
        return self.decoder.draw()

    def _pays(self) -> bool:
        """Whether a check would probably be faster than steps, and fits into the context."""
        decoder = self.decoder
        context = decoder.model.config.context
        if len(decoder.window[0]) - decoder.used != 1 or decoder.used + self.width > context:
            return False
        if self.cost is None and self.guesses.right >= WORTH:
            self.cost = self._measured()
        return self.cost is not None and self.guesses.luck > self.cost - 1

    def _measured(self) -> float:
        """The cost. What it computes is overwritten before it is seen."""
        decoder = self.decoder
        token, first = decoder.window[0][-1], decoder.used
        steps, checks, wanted = list[float](), list[float](), dict[int, Any]()
        for place in [*range(first, first + self.width)] * WARM:
            position = bound("position", place, decoder.model.config.context)
            begun = time.perf_counter()
            with Tensor.no_grad():
                wanted[place] = decoder._step(Tensor([[token]]), position).numpy()[0]
            steps.append(time.perf_counter() - begun)
        for _ in range(WARM + 2):
            begun = time.perf_counter()
            rows = self._run([token] * self.width)[0].numpy()
            checks.append(time.perf_counter() - begun)
        same = all(bool((row == one).all()) for row, one in zip(rows, wanted.values(), strict=True))
        return min(checks) / min(steps) if same else math.inf

    def _checked(self, guess: Sequence[int]) -> list[int]:
        """The token after the last one, and after each guess that was right."""
        ids = [self.decoder.window[0][-1], *guess]
        found: list[int] = self._run(ids + [0] * (self.width - len(ids)))[1].tolist()
        right = 0
        while right < len(guess) and found[right] == guess[right]:
            right += 1
        self.checks += 1
        self.accepted += right
        self.decoder.used += 1 + right
        return found[: 1 + right]

    def _run(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Logits and likeliest tokens after each of `width` tokens, the first not yet read."""
        start, context = self.decoder.used, self.decoder.model.config.context
        places = range(start, start + self.width)
        with Tensor.no_grad():
            return self._pass(
                Tensor([[*ids], [*places]], dtype="int32"), Tensor([[start], [0]], dtype="int32"),
                [bound(f"place{row}", place, context) for row, place in enumerate(places)],
            )  # fmt: skip

    def _rows(
        self, rows: Tensor, by_slot: Tensor, places: list[Integer]
    ) -> tuple[Tensor, Tensor]:
        return likeliest_of_rows(
            self.decoder.model, self.decoder.caches, rows, by_slot, [0], places
        )
