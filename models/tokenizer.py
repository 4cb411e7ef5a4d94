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
from typing import TypeVar

import numpy as np

from minigrad.errors import misfit
from minigrad.models.errors import InputError

Ids = np.ndarray[tuple[int], np.dtype[np.int32]]

Part = TypeVar("Part", int, str)
CONTROL, OWN = 3, 4  # kinds of tokens in a GGUF file: special ones, and user-defined ones


class Tokenizer(ABC):
    """Base class of tokenizers.

    special: ids by text that `encode` finds only if asked to. always: ids that it finds in every
    text. first: the token that is put before each text. template: a chat template in Jinja; names:
    the values of bos_token and the like in it. ends: ids that end an answer.
    """

    special: Mapping[str, int] = {}
    always: Mapping[str, int] = {}
    first: int | None = None
    template: str | None = None
    names: Mapping[str, str] = {}
    ends: AbstractSet[int] = frozenset()

    @abstractmethod
    def __len__(self) -> int:
        """The number of tokens."""

    def encode(self, text: str, special: bool = False) -> list[int]:
        """The ids of a text, after the first token if there is one.

        special: names of special tokens in the text mean those tokens.
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
        """The ids of a text in which no names of tokens are looked for."""

    def encode_array(self, text: str) -> Ids:
        """`encode_bare` for long texts: int32, (tokens,)."""
        return np.array(self.encode_bare(text), np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; invalid UTF-8 becomes the replacement character."""
        if not isinstance(ids, Iterable):
            raise misfit("decode", "several tokens, as [3]", repr(ids), error=TypeError)
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def token_bytes(self, number: int) -> bytes:
        """The UTF-8 bytes of one id, perhaps a part of a character; InputError for an unknown id.
        """
        try:
            number = operator.index(number)
        except TypeError:
            raise TypeError(f"token: expected an int, got {number!r:.80}") from None
        if number >= 0:
            with suppress(LookupError):
                return self._bytes_of(number)
        raise InputError(f"token {number} is outside the vocabulary of {len(self)}")

    @abstractmethod
    def _bytes_of(self, number: int) -> bytes:
        """The bytes of an id ≥ 0; LookupError if it is unknown."""

    @abstractmethod
    def to_json(self) -> str:
        """The JSON that a checkpoint stores; `tokenizer_of` is the inverse."""


def cut(text: str, names: Iterable[str]) -> list[str]:
    """A text cut at names of tokens, which become separate pieces; longer names first."""
    found = sorted(map(re.escape, names), key=len, reverse=True)
    return re.split(f"({'|'.join(found)})", text) if found else [text]


def mended(text: str) -> str:
    """A text without lone surrogates, which a command line that is not UTF-8 gives.

    Pairs become their character, others the replacement character (as in tiktoken).
    """
    if not isinstance(text, str):
        raise TypeError(f"text: expected a str, got {text!r:.80}")
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def merged(
    word: Sequence[Part], known: Callable[[Part, Part], tuple[float, Part] | None]
) -> list[Part]:
    """The parts of a word after merging: always the neighbours of lowest rank, first of equal ones.

    known: (rank, merged part) of two neighbours, or None. Takes n · log n for n parts.
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
            continue  # one of them was merged meanwhile
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
    """Whether a token that a file marks as user-defined is really a special one.

    Files mark runs of spaces so, but old ones also `<|im_start|>`.
    """
    return name[:1] + name[-1:] in ("<>", "[]")


class Stream:
    """Text from a stream of tokens: a character appears when its last byte has arrived."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """The text to show after one more token."""
        return self.decoder.decode(self.tokenizer.token_bytes(token))


class CharacterTokenizer(Tokenizer):
    """One token per character; ids are in the characters' sorted order.

    tokenizer = CharacterTokenizer.of("hello")   # vocabulary "ehlo"
    tokenizer.encode("hole")                     # [1, 3, 2, 0]
    """

    def __init__(self, vocabulary: str) -> None:
        if sorted(set(vocabulary)) != list(vocabulary):
            raise ValueError("the characters of a vocabulary must be sorted and distinct")
        self.vocabulary = vocabulary
        self._ids = {character: number for number, character in enumerate(vocabulary)}

    @classmethod
    def of(cls, text: str) -> CharacterTokenizer:
        """The tokenizer for exactly the characters of a text."""
        return cls("".join(sorted(set(text))))

    def __len__(self) -> int:
        return len(self.vocabulary)

    def _ordinary(self, text: str) -> list[int]:
        """The id of every character; InputError names an unknown one."""
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            raise InputError(
                f"the character {error.args[0]!r} is not in the vocabulary of {len(self)}"
            ) from None

    def encode_array(self, text: str) -> Ids:
        """`encode` for long texts: an int32 array of shape (len(text),)."""
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
        """The JSON that a checkpoint stores."""
        return json.dumps({"kind": "character", "vocabulary": self.vocabulary})
