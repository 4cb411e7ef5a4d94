"""Tokenizers: text to token ids and back."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

from minigrad.models.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    Ids = np.ndarray[tuple[int], np.dtype[np.int32]]


class Tokenizer(Protocol):
    """What a language model needs of a tokenizer."""

    def __len__(self) -> int:
        """How many tokens there are."""
        ...

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        ...

    def encode_array(self, text: str) -> Ids:
        """`encode` for long texts: int32."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids."""
        ...

    def token_bytes(self, number: int) -> bytes:
        """The UTF-8 that one id stands for, which may be a part of a character."""
        ...

    def to_json(self) -> str:
        """What a checkpoint stores; `tokenizer_of` is the inverse."""
        ...


def tokenizer_of(text: str) -> Tokenizer:
    """The tokenizer that a checkpoint stores; InputError where text is something else."""
    from minigrad.models import bpe
    from minigrad.models.library_tokenizer import LibraryTokenizer
    from minigrad.models.sentencepiece import SentencePieceTokenizer

    try:
        stored: Any = json.loads(text)
        kind = stored["kind"]
        if kind == "gpt2":
            return bpe.GPT2Tokenizer()
        if kind == "bpe":
            return bpe.BytePairTokenizer.from_json(stored)
        if kind == "sentencepiece":
            return SentencePieceTokenizer.from_json(stored)
        if kind == "tokenizers":
            return LibraryTokenizer(stored["stored"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"the stored tokenizer is damaged: {error}") from None
    return CharacterTokenizer.from_json(text)


class Stream:
    """Text as its tokens come: a character is given when its last byte is there."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """What can be shown after one more token."""
        return self.decoder.decode(self.tokenizer.token_bytes(token))


class CharacterTokenizer:
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

    def encode(self, text: str) -> list[int]:
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

        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        known = np.array([ord(character) for character in self.vocabulary], np.uint32)
        ids = np.searchsorted(known, points).astype(np.int32)
        wrong = np.flatnonzero((ids >= len(known)) | (known[ids % max(len(known), 1)] != points))
        if len(wrong):
            self.encode(text[wrong[0]])
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; InputError where one is outside the vocabulary."""
        characters = []
        for number in ids:
            if not 0 <= number < len(self):
                raise InputError(f"token {number} is outside the vocabulary of {len(self)}")
            characters.append(self.vocabulary[number])
        return "".join(characters)

    def token_bytes(self, number: int) -> bytes:
        """The UTF-8 of one id; InputError where it is outside the vocabulary."""
        return self.decode([number]).encode("utf-8", "surrogatepass")

    def to_json(self) -> str:
        """What a checkpoint stores."""
        return json.dumps({"kind": "character", "vocabulary": self.vocabulary})

    @classmethod
    def from_json(cls, text: str) -> CharacterTokenizer:
        """The inverse of `to_json`; InputError where text is something else."""
        try:
            stored: Any = json.loads(text)
            if stored["kind"] != "character":
                raise InputError(f"unknown kind of tokenizer: {stored['kind']!r}")
            return cls(stored["vocabulary"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError(f"the stored tokenizer is damaged: {error}") from None
