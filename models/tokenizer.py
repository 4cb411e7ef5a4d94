"""Tokenizers: text to token ids and back."""

from __future__ import annotations

import codecs
import heapq
import json
import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from minigrad.models.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    Ids = np.ndarray[tuple[int], np.dtype[np.int32]]

Part = TypeVar("Part", int, str)
CONTROL, OWN = 3, 4  # kinds of tokens in a GGUF file: special ones, and the user's own


class Tokenizer(ABC):
    """What a language model needs of a tokenizer.

    special: ids by text that `encode` finds only where it is told to; always: ones that it finds in
    every text. first: the token that is put before each text. template: how messages of a chat are
    put together, in Jinja; names: what bos_token and the like are in it; ends: ids that end an
    answer.
    """

    special: Mapping[str, int] = {}
    always: Mapping[str, int] = {}
    first: int | None = None
    template: str | None = None
    names: Mapping[str, str] = {}
    ends: AbstractSet[int] = frozenset()

    @abstractmethod
    def __len__(self) -> int:
        """How many tokens there are."""

    def encode(self, text: str, special: bool = False) -> list[int]:
        """The ids of a text, behind the first token if there is one. special: names of special
        tokens in it mean those tokens.
        """
        return [*([] if self.first is None else [self.first]), *self.encode_bare(text, special)]

    def encode_bare(self, text: str, special: bool = False) -> list[int]:
        """`encode` without the first token."""
        known = {**self.always, **self.special} if special else self.always
        ids: list[int] = []
        for piece in cut(mended(text), known):
            if piece in known:
                ids.append(known[piece])
            elif piece:
                ids += self._ordinary(piece)
        return ids

    @abstractmethod
    def _ordinary(self, text: str) -> list[int]:
        """The ids of a text, whatever it names."""

    def encode_array(self, text: str) -> Ids:
        """`encode_bare` for long texts: int32, (tokens,)."""
        import numpy as np

        return np.array(self.encode_bare(text), np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; what is no UTF-8 becomes the replacement character."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def token_bytes(self, number: int) -> bytes:
        """The UTF-8 that one id stands for, which may be a part of a character; InputError where
        there is no such token.
        """
        try:
            number = operator.index(number)
        except TypeError:
            raise TypeError(f"a token is {number!r:.80}: expected a whole number") from None
        if number >= 0:
            with suppress(LookupError):
                return self._bytes_of(number)
        raise InputError(f"token {number} is outside the vocabulary of {len(self)}")

    @abstractmethod
    def _bytes_of(self, number: int) -> bytes:
        """What an id stands for, which is no less than 0; LookupError where it is none."""

    @abstractmethod
    def to_json(self) -> str:
        """What a checkpoint stores; `tokenizer_of` is the inverse."""


def cut(text: str, names: Iterable[str]) -> list[str]:
    """A text cut at names of tokens, which are pieces of their own; of several the longest."""
    found = sorted(map(re.escape, names), key=len, reverse=True)
    return re.split(f"({'|'.join(found)})", text) if found else [text]


def mended(text: str) -> str:
    """A text without halves of characters, as bytes of a command line that are no UTF-8 are read.

    Two that belong together are a character, others the replacement character (as in tiktoken).
    """
    if not isinstance(text, str):
        raise TypeError(f"a tokenizer's text is {text!r:.80}: expected a str")
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def merged(
    word: Sequence[Part], known: Callable[[Part, Part], tuple[float, Part] | None]
) -> list[Part]:
    """A word's parts, joined: always the neighbours of the lowest rank, of equals the first ones.

    known: rank and whole of two neighbours; None where they stay apart. n parts take n · log n.
    """
    parts: list[Part] = list(word)
    after, before = [*range(1, len(parts)), -1], [-1, *range(len(parts) - 1)]
    heap: list[tuple[float, int, int, Part]] = []

    def offer(left: int) -> None:
        right = after[left] if left >= 0 else -1
        found = known(parts[left], parts[right]) if right >= 0 else None
        if found is not None:
            heapq.heappush(heap, (found[0], left, right, found[1]))

    for place in range(len(parts)):
        offer(place)
    while heap:
        rank, left, right, whole = heapq.heappop(heap)
        if after[left] != right or known(parts[left], parts[right]) != (rank, whole):
            continue  # one of them was joined meanwhile
        parts[left] = whole
        after[left], after[right] = after[right], -1
        if after[left] >= 0:
            before[after[left]] = left
        offer(before[left])
        offer(left)
    found, place = list[Part](), 0 if parts else -1
    while place >= 0:
        found.append(parts[place])
        place = after[place]
    return found


def looks_special(name: str) -> bool:
    """Whether a token that a file calls its owner's own is one that nobody should just write.

    Files mark runs of spaces so, but old ones also `<|im_start|>`.
    """
    return name[:1] + name[-1:] in ("<>", "[]")


class Stream:
    """Text as its tokens come: a character is given when its last byte is there."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """What can be shown after one more token."""
        return self.decoder.decode(self.tokenizer.token_bytes(token))


class CharacterTokenizer(Tokenizer):
    """One token per character; ids follow the sorted order of the characters.

    tokenizer = CharacterTokenizer.of("hello")   # vocabulary "ehlo"
    tokenizer.encode("hole")                     # [1, 3, 2, 0]
    """

    def __init__(self, vocabulary: str) -> None:
        if sorted(set(vocabulary)) != list(vocabulary):
            raise ValueError("the characters of a vocabulary must be sorted and all different")
        self.vocabulary = vocabulary
        self._ids = {character: number for number, character in enumerate(vocabulary)}

    @classmethod
    def of(cls, text: str) -> CharacterTokenizer:
        """The tokenizer that knows exactly the characters of text."""
        return cls("".join(sorted(set(text))))

    def __len__(self) -> int:
        return len(self.vocabulary)

    def _ordinary(self, text: str) -> list[int]:
        """The id of every character; InputError names a character that is unknown."""
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            raise InputError(
                f"the character {error.args[0]!r} is not among the {len(self)} of the vocabulary"
            ) from None

    def encode_array(self, text: str) -> Ids:
        """`encode` for long texts: an int32 array of shape (len(text),)."""
        import numpy as np

        text = mended(text)
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        known = np.array([ord(character) for character in self.vocabulary], np.uint32)
        ids = np.searchsorted(known, points).astype(np.int32)
        wrong = np.flatnonzero((ids >= len(known)) | (known[ids % max(len(known), 1)] != points))
        if len(wrong):
            self.encode(text[wrong[0]])
        return ids

    def _bytes_of(self, number: int) -> bytes:
        return self.vocabulary[number].encode("utf-8", "surrogatepass")

    def to_json(self) -> str:
        """What a checkpoint stores."""
        return json.dumps({"kind": "character", "vocabulary": self.vocabulary})
