"""Tokenizers of HuggingFace's tokenizer.json, run by the package `tokenizers`, such as Llama's.

Two ways of writing tokens are known: GPT-2's, a visible character for each byte (Llama 3), and
SentencePiece's, with `▁` for a space and `<0x0A>` for a byte (Llama 2, Mistral, Mixtral; Kudo and
Richardson 2018).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from minigrad.models.bpe import bytes_of
from minigrad.models.console import require
from minigrad.models.tokenizer import Tokenizer, mended

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class LibraryTokenizer(Tokenizer):
    """stored: the content of tokenizer.json. special: ids by text, as for `BytePairTokenizer`.

    ValueError if its tokens are written in an unknown way.
    """

    def __init__(self, stored: Mapping[str, Any]) -> None:
        model = stored["model"]
        text = json.dumps(stored)
        self.shows_bytes = '"ByteLevel"' in text  # in its splitter or decoder
        if model.get("type") != "BPE" or not (self.shows_bytes or model.get("byte_fallback")):
            raise ValueError(f"expected BPE over bytes, got {model.get('type')} over characters")
        package: Any = require("tokenizers")
        try:
            # two, because encoding special tokens is a switch, and several threads may encode
            self.tokenizer, self.blind = (package.Tokenizer.from_str(text) for _ in range(2))
        except Exception as error:  # the package has no narrower class
            raise ValueError(str(error)) from None
        self.blind.encode_special_tokens = True  # encoded as plain text
        for one in (self.tokenizer, self.blind):  # a file may have settings for batches
            one.no_truncation()
            one.no_padding()
        added = stored.get("added_tokens", [])
        self.special = {
            str(token["content"]): int(token["id"]) for token in added if token.get("special")
        }
        # tokens that are written as they are, not byte by byte
        self._names = {int(token["id"]) for token in added
                       if self.shows_bytes or token.get("special")}  # fmt: skip

    def __len__(self) -> int:
        return int(self.tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, special: bool = False) -> list[int]:
        """The ids of a text, after those that the tokenizer puts before each text (`<s>`, if any).

        special: names of special tokens in the text mean those tokens.
        """
        return list((self.tokenizer if special else self.blind).encode(mended(text)).ids)

    def encode_bare(self, text: str, special: bool = False) -> list[int]:
        """`encode` without the ids before each text."""
        chosen = self.tokenizer if special else self.blind
        return list(chosen.encode(mended(text), add_special_tokens=False).ids)

    def _ordinary(self, text: str) -> list[int]:
        return self.encode_bare(text)

    def _bytes_of(self, number: int) -> bytes:
        token = self.tokenizer.id_to_token(number)
        if token is None:
            raise LookupError(number)
        if number in self._names:
            return str(token).encode()
        if self.shows_bytes:
            try:
                return bytes_of(token)
            except KeyError:  # a name not marked as special
                return str(token).encode()
        byte = BYTE.fullmatch(token)
        return bytes([int(byte[1], 16)]) if byte else str(token).replace("▁", " ").encode()

    def to_json(self) -> str:
        """The JSON that a checkpoint stores."""
        return json.dumps({"kind": "tokenizers", "stored": json.loads(self.tokenizer.to_str())})
