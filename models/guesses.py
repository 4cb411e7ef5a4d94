"""What a text may go on with, looked up in the text itself: answers often quote.

Saxena, "Prompt Lookup Decoding" (2023). Nothing depends on a guess but the time that it saves.
"""

from __future__ import annotations

from collections.abc import Iterable

from minigrad.models.errors import InputError

SHORTEST = 3  # tokens at the end that must have been there before, in this order
LONGEST = 16  # of which more make an earlier place likelier
PLACES = 8  # the latest ones, that are compared
FADING = 0.25  # weight of the newest guess in `luck`
MOST = 15  # tokens that are guessed at once, at most


def check_most(speculate: int) -> None:
    """InputError where more are to be guessed than can be."""
    if speculate > MOST:
        raise InputError(f"--speculate is {speculate}: expected at most {MOST}")


class Guesses:
    """The tokens of one text, and guesses of the next, at most `most` of them at once.

    luck: how many tokens of a guess have lately been right, also of those nobody has used.
    """

    def __init__(self, text: Iterable[int], most: int) -> None:
        self.text, self.most = list[int](), most
        self.luck = most / 2  # checks that cost much wait for guesses to come true
        self._after: dict[tuple[int, ...], list[int]] = {}  # places after so many tokens
        self._open: list[int] = []  # a guess that is compared with what comes
        self._right = 0
        for token in text:
            self.add(token)

    def add(self, token: int) -> None:
        """One more token of the text."""
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
        """The tokens that followed the longest end of the text that was there before.

        Of equally long ones, the latest; none where even the shortest end is new.
        """
        found = self._after.get(tuple(self.text[-SHORTEST:]), [])
        found = found[-1 - PLACES : -1]  # the last is the end itself
        best = max(found, key=lambda place: (self._alike(place), place), default=None)
        guess = [] if best is None else self.text[best : best + self.most]
        if not self._open:
            self._open, self._right = guess, 0
        return guess

    def _alike(self, place: int) -> int:
        """How many tokens before a place are those at the end."""
        text, size = self.text, 0
        while size < min(place, LONGEST) and text[place - 1 - size] == text[-1 - size]:
            size += 1
        return size
