"""Guesses of the next tokens, looked up in the text itself: answers often quote.

Saxena, "Prompt Lookup Decoding" (2023). A guess only affects the time.
"""

from __future__ import annotations

from collections.abc import Iterable

SHORTEST = 3  # tokens at the end that must have occurred before
LONGEST = 16  # up to so many matching tokens make a place more likely
PLACES = 8  # latest places that are compared
FADING = 0.25  # weight of the newest guess in `luck`
MOST = 15  # tokens guessed at once


class Guesses:
    """The tokens of one text, and guesses of at most `most` next tokens.

    luck: average number of right tokens in recent guesses, also in guesses that were not used.
    """

    def __init__(self, text: Iterable[int], most: int) -> None:
        self.text, self.most = list[int](), most
        self.luck = most / 2  # expensive checks wait until guesses turn out right
        self._after: dict[tuple[int, ...], list[int]] = {}  # last tokens → the places after them
        self._open: list[int] = []  # a guess to be compared with the next tokens
        self._right = 0
        for token in text:
            self.add(token)

    def add(self, token: int) -> None:
        """Append a token of the text."""
        if self._open:
            good = token == self._open[self._right]
            self._right += good
            if not good or self._right == len(self._open):
                self.luck += FADING * (self._right - self.luck)
                self._open = []
        self.text.append(token)
        if len(self.text) >= SHORTEST:
            places = self._after.setdefault(tuple(self.text[-SHORTEST:]), [])
            places.append(len(self.text))

    def next(self) -> list[int]:
        """The tokens that followed the longest end of the text that occurred before.

        Of equally long ones the latest; none if even the shortest end is new.
        """
        found = self._after.get(tuple(self.text[-SHORTEST:]), [])
        found = found[-1 - PLACES : -1]  # the last is the end itself
        best = max(found, key=lambda place: (self._alike(place), place), default=None)
        guess = [] if best is None else self.text[best : best + self.most]
        if not self._open:
            self._open, self._right = guess, 0
        return guess

    def _alike(self, place: int) -> int:
        """How many tokens before a place equal those at the end."""
        text, size = self.text, 0
        while size < min(place, LONGEST) and text[place - 1 - size] == text[-1 - size]:
            size += 1
        return size
