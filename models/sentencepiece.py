"""SentencePiece's tokens as in GGUF files: Llama 2, Mistral, Gemma, Phi-3.

Kudo and Richardson, "SentencePiece" (2018). A text's characters are merged: always the neighbours
whose merged token has the highest score. Parts without a token become their bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from minigrad.models.errors import InputError
from minigrad.models.tokenizer import CONTROL, OWN, Tokenizer, looks_special, merged

SPACE = "▁"
BYTE = 6  # the kind of byte tokens in a GGUF file


class SentencePieceTokenizer(Tokenizer):
    """tokens, with `▁` for a space, and each one's score and kind.

    prefix: a space is added before a text, also after each special token (as in llama.cpp). first:
    the token that is put before each text, or None.
    """

    def __init__(
        self, tokens: Sequence[str], scores: Sequence[float], kinds: Sequence[int],
        prefix: bool = True, first: int | None = None,
    ) -> None:  # fmt: skip
        self.tokens, self.scores, self.kinds = list(tokens), list(scores), list(kinds)
        self.prefix, self.first = prefix, first
        named = {
            token: number for number, token in enumerate(tokens) if kinds[number] in (CONTROL, OWN)
        }
        self.always = {token: number for token, number in named.items()
                       if kinds[number] == OWN and not looks_special(token)}  # fmt: skip
        self.special = {token: n for token, n in named.items() if token not in self.always}
        self._ids = {
            token: number for number, token in enumerate(tokens)
            if kinds[number] not in (CONTROL, OWN, BYTE)
        }  # fmt: skip
        self._bytes = {int(token[3:5], 16): number for number, token in enumerate(tokens)
                       if kinds[number] == BYTE}  # fmt: skip

    def __len__(self) -> int:
        return len(self.tokens)

    def _ordinary(self, text: str) -> list[int]:
        """Merge the highest scores first; of equal ones the first pair."""
        characters = (SPACE if self.prefix else "") + text.replace(" ", SPACE)

        def known(left: str, right: str) -> tuple[float, str] | None:
            number = self._ids.get(left + right)
            return None if number is None else (-self.scores[number], left + right)

        ids: list[int] = []
        for piece in merged(characters, known):
            if piece in self._ids:
                ids.append(self._ids[piece])
            else:
                ids += [self._bytes[byte] for byte in piece.encode() if byte in self._bytes]
        return ids

    def _bytes_of(self, number: int) -> bytes:
        token = self.tokens[number]
        if self.kinds[number] == BYTE:
            return bytes([int(token[3:5], 16)])
        return token.replace(SPACE, " ").encode("utf-8", "surrogatepass")

    def to_json(self) -> str:
        """The JSON that a checkpoint stores."""
        names = ("tokens", "scores", "kinds", "prefix", "first")
        values = {name: getattr(self, name) for name in names}
        return json.dumps({"kind": "sentencepiece", **values})

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> SentencePieceTokenizer:
        """A tokenizer from the parsed JSON of `to_json`; InputError if it is something else."""
        return _checked(stored["tokens"], stored["scores"], stored["kinds"],
                        stored["prefix"] is not False, stored["first"])  # fmt: skip


def _checked(
    tokens: Any, scores: Any, kinds: Any, prefix: bool, first: Any
) -> SentencePieceTokenizer:
    """The tokenizer of a file's lists; InputError if they do not fit together."""
    for values, kind in ((tokens, str), (scores, float), (kinds, int)):
        if not isinstance(values, list) or not all(type(value) is kind for value in values):
            raise InputError("its tokenizer lacks lists of tokens, scores and kinds")
    byte = re.compile("<0x[0-9A-Fa-f]{2}>")
    fits = len(tokens) == len(scores) == len(kinds) and all(
        byte.fullmatch(token) for token, kind in zip(tokens, kinds, strict=False) if kind == BYTE
    )
    if not fits:
        raise InputError("its tokenizer has different numbers of tokens, scores and kinds")
    known = type(first) is int and 0 <= first < len(tokens)
    return SentencePieceTokenizer(tokens, scores, kinds, prefix, first if known else None)


def of_gguf(metadata: Mapping[str, Any]) -> SentencePieceTokenizer:
    """The "llama" tokenizer in a GGUF file's metadata; InputError if there is none."""
    prefix = "tokenizer.ggml."
    wanted = metadata.get(prefix + "add_bos_token", True) is not False
    return _checked(
        metadata.get(prefix + "tokens"), metadata.get(prefix + "scores"),
        metadata.get(prefix + "token_type"),
        metadata.get(prefix + "add_space_prefix", True) is not False,
        metadata.get(prefix + "bos_token_id") if wanted else None,
    )  # fmt: skip
