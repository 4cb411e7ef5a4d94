"""`python models/gpt.py quantize`: weights rounded to a few bits, in a GGUF file for llama.cpp.

The type of each tensor follows llama.cpp's mixtures (Q4_K_M, Q5_K_M, Q3_K_M, Q2_K), also the
substitute for a type whose blocks of 256 do not fit a row.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from minigrad import Tensor
from minigrad.models import architectures, bpe, console
from minigrad.models.architectures_gguf import metadata_of
from minigrad.models.architectures_hub import rope_scaling
from minigrad.models.errors import InputError, failing_as
from minigrad.models.gpt_config import GPTConfig
from minigrad.models.pretrained import hub_tokenizer
from minigrad.models.tokenizer import CONTROL
from minigrad.models.weights import (
    FACTORS,
    Source,
    Weight,
    about,
    checked_parts,
    config_of,
    oriented,
    read_source,
)
from minigrad.nn.gguf import PLAIN, Value
from minigrad.nn.gguf_blocks import KINDS, blocks_of
from minigrad.nn.gguf_quantize import quantize, within_reach
from minigrad.nn.gguf_write import NUMBERS, Entry, gguf_save, value_of
from minigrad.nn.quantized import Quantized

# type → llama.cpp's number for files with its mixture
FILE_TYPES = {"Q8_0": 7, "Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q6_K": 18, "Q5_K": 17,
              "Q4_K": 15, "Q3_K": 12, "Q2_K": 10}  # fmt: skip
# Types for rows that are not multiples of 256.
FALLBACKS = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
NORMAL, UNUSED = 1, 5  # kinds of tokens


def quantize_command(flags: argparse.Namespace) -> None:
    """`quantize`: write the file, and print the types of its matrices."""
    path, target = Path(flags.weights), Path(flags.target)
    console.check_apart({"IN": path}, {"OUT": target})
    console.check_writable(target)
    if target.exists() and not flags.overwrite:
        raise InputError(f"{target} already exists: --overwrite replaces it")
    said, size = quantize_file(path, target, flags.type.upper(), flags.pure)
    print("\n".join(said))
    print(f"saved {target}: {size / 1e6:,.1f} MB")


def quantize_file(path: Path, target: Path, kind: str, pure: bool = False) -> tuple[list[str], int]:
    """(report, size of the file in bytes); InputError says in a sentence what is wrong.

    path: as for `load_pretrained`, except checkpoints of models/gpt.py. kind: one of FILE_TYPES.
    pure: for all matrices; otherwise llama.cpp's mixture.
    """
    if kind not in FILE_TYPES:
        raise InputError(f"unknown type {kind!r}: expected {', '.join(FILE_TYPES)}")
    source = read_source(path)
    with failing_as(f"cannot write {target}"), about(path):
        if source.kind == "own":
            raise InputError("is a checkpoint of models/gpt.py: expected GGUF or HuggingFace files")
        config = config_of(source)
        if config.experts:
            raise InputError("has experts: quantizing these is not supported")
        parts = checked_parts(source, config)
        if source.kind == "gguf":
            metadata, tensors = source.typed, source.tensors
        else:
            folder = path if path.is_dir() else path.parent
            metadata = hub_metadata(config, folder, source.facts)
            tensors = hub_tensors(source, config, parts)
        return _write(target, metadata, tensors, config, kind, pure)


def _write(
    target: Path, metadata: Mapping[str, Value], tensors: Mapping[str, Weight], config: GPTConfig,
    kind: str, pure: bool,
) -> tuple[list[str], int]:  # fmt: skip
    kept = {key: value for key, value in metadata.items() if not key.startswith("split.")}
    kept["general.file_type"] = value_of(FILE_TYPES[kind])
    kept["general.quantization_version"] = value_of(2)
    tied = "output.weight" not in tensors
    entries, counts, fallen = [], Counter[str](), Counter[str]()
    for name, weight in tensors.items():
        shape = tuple(int(extent) for extent in weight.shape)  # type: ignore[arg-type]
        if not is_quantized(name, shape):
            entries.append(_plain_entry(name, shape, weight))
            continue
        wanted = kind if pure else mixture(name, kind, config, tied)
        chosen = fallback(wanted, shape[1])
        if chosen != wanted:
            fallen[f"row length {shape[1]} is not a multiple of 256: {chosen}, not {wanted}"] += 1
        counts[chosen] += math.prod(shape)
        make = partial(_bytes_of, name, weight, chosen)
        entries.append(Entry(name, shape, NUMBERS[chosen], make))
    size = gguf_save(target, kept, entries)
    said = [f"{what} ({count} {'matrix' if count == 1 else 'matrices'})"
            for what, count in fallen.items()]  # fmt: skip
    types = ", ".join(f"{name} {count:,}" for name, count in counts.most_common())
    return [*said, f"elements by type: {types}"], size


def is_quantized(name: str, shape: tuple[int, ...]) -> bool:
    """Whether llama.cpp quantizes a tensor: matrices except the table of positions."""
    others = ("_norm.weight", "position_embd.weight")
    return len(shape) == 2 and name.endswith(".weight") and not name.endswith(others)


def mixture(name: str, kind: str, config: GPTConfig, tied: bool) -> str:
    """The type of a matrix in a file of type `kind`: what matters most gets more bits."""
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        return "Q8_0" if kind == "Q8_0" else "Q6_K"
    words = name.split(".")
    if words[0] != "blk" or kind not in ("Q2_K", "Q3_K", "Q4_K", "Q5_K"):
        return kind
    layer, layers, what = int(words[1]), config.layers, words[2]
    values, down = what in ("attn_v", "attn_qkv"), what == "ffn_down"
    if kind in ("Q4_K", "Q5_K"):  # at both ends, and every third in between
        eighth = layers // 8
        more = layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
        return "Q6_K" if more and (values or down) else kind
    if kind == "Q3_K":
        if values or down:
            return "Q5_K" if layer < (2 if values else layers // 16) else "Q4_K"
        return "Q4_K" if what == "attn_output" else kind
    if values:
        return "Q4_K" if config.heads >= 4 * config.key_value_heads else "Q3_K"
    return "Q3_K" if down or what == "attn_output" else kind


def fallback(kind: str, columns: int) -> str:
    """The type, or its substitute if rows of `columns` are not whole blocks."""
    if columns % KINDS[kind].block:
        kind = FALLBACKS.get(kind, kind)
    return "F16" if columns % KINDS[kind].block else kind


def _plain_entry(name: str, shape: tuple[int, ...], weight: Weight) -> Entry:
    """The entry of a tensor that is not quantized: norms, biases, positions."""
    plain = weight.dequantized() if isinstance(weight, Quantized) else weight
    number = next((number for number, dtype in PLAIN.items() if dtype is plain.dtype), None)
    if number is None:
        raise InputError(f"{name} has dtype {plain.dtype.name}, which GGUF does not have")
    return Entry(name, shape, number, lambda: bytes(plain._bytes()))


def _bytes_of(name: str, weight: Weight, kind: str) -> bytes:
    """The blocks of a matrix in a type; if it has that type already, they are copied."""
    if isinstance(weight, Quantized):
        if weight.kind.name == kind:
            return blocks_of(weight)
        weight = weight.dequantized()
    with Tensor.no_grad():
        try:
            if kind == "F16":
                return bytes(within_reach(kind, weight).half()._bytes())
            return quantize(kind, weight)
        except ValueError as error:
            raise InputError(f"the tensor {name} {error}") from None


def hub_tensors(
    source: Source, config: GPTConfig, parts: list[architectures.Part]
) -> dict[str, Weight]:
    """Tensors of HuggingFace's files under llama.cpp's names, in its orientations, lazy."""
    kind = architecture_of(config, source.facts)
    theirs = {part.ours: part for part in architectures.gguf(kind, config)}
    found: dict[str, Weight] = {}
    for part in parts:
        other = theirs[part.ours]
        for name, new in zip(part.theirs, other.theirs, strict=True):
            with Tensor.no_grad():
                weight = oriented(source.tensors[name], name, part, config)
                assert isinstance(weight, Tensor)
                if new in other.paired:  # neighbouring rows are a pair there
                    rows = int(weight.shape[0])  # type: ignore[arg-type]
                    order = Tensor.arange(rows).reshape(-1, 2, config.width // 2).transpose(1, 2)
                    weight = weight[order.reshape(-1)]
                # norms and biases are float32 in llama.cpp's files
                found[new] = weight if is_quantized(new, weight.shape) else weight.float()  # type: ignore[arg-type]
    if config.rotary_factors and rope_scaling(source.facts)[0] == "llama3":
        found[FACTORS] = Tensor(config.rotary_factors)
    return found


def architecture_of(config: GPTConfig, facts: Mapping[str, Any]) -> str:
    """llama.cpp's name of the architecture in a config.json."""
    usual = "llama" if config.positions == "rotary" else "gpt2"
    return architectures.ARCHITECTURES[str(facts.get("model_type", usual))]


def hub_metadata(config: GPTConfig, folder: Path, facts: Mapping[str, Any]) -> dict[str, Value]:
    """The metadata in a GGUF file for a model and its tokenizer in a HuggingFace folder."""
    kind = architecture_of(config, facts)
    plain = {"general.architecture": kind, "general.type": "model",
             "general.name": folder.resolve().name, **metadata_of(config, kind, facts),
             **tokenizer_metadata(config, folder, facts)}  # fmt: skip
    return {key: value_of(value) for key, value in plain.items()}


def tokenizer_metadata(config: GPTConfig, folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a folder's tokenizer, as llama.cpp's "gpt2"; InputError for other kinds."""
    tokenizer = hub_tokenizer(folder, facts)
    if not isinstance(tokenizer, bpe.BytePairTokenizer):
        known = " and ".join(bpe.SPLITS)
        raise InputError(
            f"its tokenizer cannot be written as GGUF: expected BPE over bytes that splits words "
            f"like {known}"
        )
    if len(tokenizer) > config.vocabulary:
        raise InputError(
            f"its tokenizer has {len(tokenizer)} tokens, but its model has a vocabulary of "
            f"{config.vocabulary}"
        )
    shown = {byte: character for character, byte in bpe.visible_bytes().items()}
    tokens = ["".join(map(shown.__getitem__, token)) for token in tokenizer.tokens]
    kinds = [NORMAL] * len(tokens)
    for name, number in tokenizer.special.items():
        tokens[number], kinds[number] = name, CONTROL
    merges = [f"{tokens[left]} {tokens[right]}" for left, right, _ in tokenizer.merges]
    for number in range(len(tokens), config.vocabulary):
        tokens.append(f"[PAD{number}]")
        kinds.append(UNUSED)
    prefix = "tokenizer.ggml."
    more: dict[str, Any] = {}
    for name in ("bos_token_id", "eos_token_id"):
        told = facts.get(name)
        first = told[0] if isinstance(told, list) and told else told
        if type(first) is int and 0 <= first < len(tokens):
            more[prefix + name] = first
    if tokenizer.template is not None:
        more["tokenizer.chat_template"] = tokenizer.template
    more[prefix + "add_bos_token"] = tokenizer.first is not None  # else some models get one
    if tokenizer.first is not None:
        more[prefix + "bos_token_id"] = tokenizer.first
    split = next(name for name, split in bpe.NAMES.items() if split == tokenizer.split)
    return {prefix + "model": "gpt2", prefix + "pre": split,
            prefix + "tokens": tokens, prefix + "token_type": kinds, prefix + "merges": merges,
            **more}  # fmt: skip
