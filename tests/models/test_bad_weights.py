"""Weight files with false contents: one plain sentence, no crash, nothing read outside the file.

`PYTHONPATH=tests python tests/models/test_bad_weights.py 10000` mutates 10,000
headers of each kind.
"""

from __future__ import annotations

import json
import random
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_judges import (
    LLAMA,
    gguf_file_of,
    gguf_string,
    gpt2_facts,
    random_gpt2,
    random_llama,
    save_folder,
)  # fmt: skip

from minigrad.models.errors import InputError
from minigrad.models.gpt import GPT
from minigrad.nn.gguf import GGUFError, gguf_load

GPT2 = (1, 2, 32, 8, 11)
SMALL = {**LLAMA, "num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32,
         "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 7}  # fmt: skip


def small_gguf(path: Path, dtype: str, changes: dict[str, Any] | None = None) -> Path:
    return gguf_file_of(random_llama(np.random.default_rng(0), SMALL), SMALL, path, dtype, changes)


def small_folder(folder: Path) -> Path:
    layers, _, *rest = GPT2
    save_folder(folder, random_gpt2(np.random.default_rng(0), layers, *rest), gpt2_facts(*GPT2))
    return folder / "model.safetensors"


def header(entries: bytes, tensors: int = 0, pairs: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs) + entries


def entry(shape: tuple[int, ...], kind: int, offset: int, name: str = "x") -> bytes:
    extents = b"".join(struct.pack("<Q", extent) for extent in shape)
    rank, end = struct.pack("<I", len(shape)), struct.pack("<IQ", kind, offset)
    return gguf_string(name) + rank + extents + end


def pair(*value: bytes) -> bytes:
    """A header with one pair of metadata, under the key "a"."""
    return header(gguf_string("a") + b"".join(value), pairs=1)


def one(shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    """A header with one tensor, followed by 64 bytes."""
    return header(entry(shape, kind, offset) + bytes(64), tensors=1)


HUGE = 2**64 - 1
DEEP = struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9 + bytes(99)
GGUFS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the magic should have 4 bytes, but the file ends after 0"),
    "another file": (b"GGML" + bytes(50), "does not begin with GGUF"),
    "old": (header(b"", version=1), "version: expected 2 or 3, got 1"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version: expected 2 or 3"),
    "many tensors": (header(b"", tensors=HUGE), "more than fit"),
    "many pairs": (header(b"", pairs=2**40), "more than fit"),
    "a long key": (header(struct.pack("<Q", HUGE) + bytes(40), pairs=1), "a key should have"),
    "no type": (pair(struct.pack("<I", 99), bytes(9)), "unknown type 99"),
    "a long list": (pair(struct.pack("<IIQ", 9, 4, 2**62)), "more than fit"),
    "lists of lists": (pair(DEEP), "unknown type 9"),
    "no text": (pair(struct.pack("<IQ", 8, 1), b"\xff", bytes(9)), "not UTF-8"),
    "many dimensions": (
        header(gguf_string("x") + struct.pack("<I", 2**31) + bytes(60), 1), "dimensions"
    ),
    "outside": (one((4,), 0, 4096), "should begin at byte"),
    "behind everything": (one((4,), 0, HUGE), "should begin at byte"),
    "larger than the file": (one((2**20, 2**20), 0, 0), "should begin at byte"),
    "overflow": (one((2**63, 2**63, 2**63, 2), 0, 0), "should begin at byte"),
    "a product that overflows to 4": (one((2**62, 4), 0, 0), "should begin at byte"),
    "an unknown type": (one((32,), 23, 0), "type IQ4_XS, expected one of F32"),
    "no whole blocks of 256": (one((288,), 12, 0), "of whole blocks of 256 elements, as Q4_K"),
    "no whole blocks": (header(entry((30, 2), 8, 0) + bytes(99), 1), "whole blocks"),
    "twice": (header((entry((1,), 0, 0) + entry((1,), 0, 0)) + bytes(64), 2), "two tensors named"),
    "the same bytes": (
        header((entry((16,), 0, 0) + entry((16,), 0, 0, "y")) + bytes(99), 2), "overlaps"
    ),
    "alignment": (
        header(gguf_string("general.alignment") + struct.pack("<II", 4, 0), pairs=1),
        "general.alignment=0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GGUFS)
def test_gguf_headers(name: str, tmp_path: Path) -> None:
    raw, message = GGUFS[name]
    path = tmp_path / "f.gguf"
    path.write_bytes(raw)
    with pytest.raises(GGUFError) as raised:
        gguf_load(path)
    said = str(raised.value)
    assert message in said and said.startswith(str(path)) and "\n" not in said


def test_a_truncated_file(tmp_path: Path) -> None:
    path = small_gguf(tmp_path / "f.gguf", "Q4_1")
    raw = path.read_bytes()
    end = len(raw.rstrip(b"\0"))  # padding follows the last tensor
    for length in range(0, end, 97):
        path.write_bytes(raw[:length])
        with pytest.raises(InputError):
            GPT.from_pretrained(path)


def changed(**values: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Replaces values; None removes one."""
    return lambda facts: {k: v for k, v in {**facts, **values}.items() if v is not None}


CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "bert"}, "'bert' is not supported; supported: gemma2, gemma3_text, gpt2, "),
    ({"model_type": None}, "its architecture None is not supported"),
    ({"n_head": None}, "its n_head: expected an int, got nothing"),
    ({"n_head": "2"}, "its n_head: expected an int, got '2'"),
    ({"n_head": 0}, "heads: expected at least 1, got 0"),
    ({"n_head": 5}, "dim 32 is not a multiple of heads 5"),
    ({"n_layer": 10**9}, "the tensor h.1.ln_1.weight is missing"),
    ({"vocab_size": 10**12}, "wte.weight has shape (11, 32), but the config says"),
    ({"n_positions": 9}, "give wpe.weight the shape (8, 32), but the config says (9, 32)"),
    ({"n_inner": 10**9}, "give h.0.mlp.c_fc.weight the shape"),
    ({"n_embd": 64}, "wte.weight has shape"),
    ({"activation_function": "relu"}, "its activation_function 'relu' is not supported"),
    ({"n_layer": 10**40}, "is missing"),
    ({"n_layer": True}, "its n_layer: expected an int, got True"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "message"), CONFIGS)
def test_configs(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    small_folder(tmp_path)
    facts = changed(**values)(gpt2_facts(*GPT2))
    (tmp_path / "config.json").write_text(json.dumps(facts))
    with pytest.raises(InputError) as raised:
        GPT.from_pretrained(tmp_path)
    assert message in str(raised.value) and "\n" not in str(raised.value)


METADATA: list[tuple[dict[str, Any], str]] = [
    ({"general.architecture": "qwen9"}, "'qwen9' is not supported; supported: gemma2, gemma3, "),
    ({"llama.block_count": 2}, "the tensor blk.1.attn_norm.weight is missing"),
    ({"llama.block_count": "1"}, "its llama.block_count: expected an int, got '1'"),
    ({"llama.attention.head_count": 3}, "dim 32 is not a multiple of heads 3"),
    ({"llama.attention.head_count_kv": 2}, "but the config says"),
    ({"llama.vocab_size": 8}, "token_embd.weight has shape (7, 32), but the config says (8, 32)"),
    ({"llama.feed_forward_length": 64}, "give h.0.mlp.c_fc.weight the shape (64, 32)"),
    ({"llama.rope.freq_base": -1.0}, "rotary_base: expected a number above 0, got -1.0"),
    ({"llama.rope.scaling.type": "longrope"}, "'longrope' is not supported"),
    ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "epsilon: expected a number"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "message"), METADATA)
def test_metadata(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = small_gguf(tmp_path / "f.gguf", "F32", values)
    with pytest.raises(InputError) as raised:
        GPT.from_pretrained(path)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_tensors_that_do_not_fit(tmp_path: Path) -> None:
    layers, _, *rest = GPT2
    good = random_gpt2(np.random.default_rng(0), layers, *rest)
    for changes, message in (
        ({"h.0.mlp.c_fc.weight": None}, "the tensor h.0.mlp.c_fc.weight is missing"),
        ({"h.0.mlp.c_new.weight": good["wpe.weight"]}, "is not part of this architecture"),
        ({"ln_f.weight": good["wpe.weight"]}, "ln_f.weight give ln_f.weight the shape (8, 32)"),
        ({"h.0.attn.c_attn.weight": good["ln_f.weight"]}, "expected a plain matrix"),
        ({"wte.weight": good["ln_f.weight"]}, "wte.weight has shape (32,)"),
    ):  # fmt: skip
        save_folder(tmp_path, changed(**changes)(good), gpt2_facts(*GPT2))
        with pytest.raises(InputError) as raised:
            GPT.from_pretrained(tmp_path)
        assert message in str(raised.value) and "\n" not in str(raised.value)


INDEX = "model.safetensors.index.json"


def test_folders(tmp_path: Path) -> None:
    for files, message in (
        ({}, "has no model.safetensors, pytorch_model.bin, or index"),
        ({"config.json": "{"}, "is not valid JSON"),
        ({"config.json": "[1]"}, "is not a JSON object"),
        ({"config.json": "[" * 10**5}, "is not valid JSON"),
        ({"config.json": "{}"}, "has no model.safetensors, pytorch_model.bin, or index"),
        ({INDEX: '{"weight_map": {"a": "../x"}}'}, "expected a file in its folder"),
        ({INDEX: '{"weight_map": {"a": ""}}'}, "names '': expected a file in its folder"),
        ({INDEX: '{"weight_map": {"a": "x"}}'}, "cannot read"),
    ):  # fmt: skip
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        with pytest.raises(InputError) as raised:
            GPT.from_pretrained(tmp_path)
        assert message in str(raised.value) and "\n" not in str(raised.value)
        assert message != "cannot read" or "JSON" not in str(raised.value)
    (tmp_path / INDEX).write_text('{"weight_map": {"a": 3}}')
    with pytest.raises(InputError, match="names 3: expected a file in its folder"):
        GPT.from_pretrained(tmp_path)
    path = small_folder(tmp_path / "alone")
    (tmp_path / "alone" / "config.json").unlink()
    with pytest.raises(InputError, match=r"has no config\.json beside it"):
        GPT.from_pretrained(path)


INTERESTING = [0, 1, 2, 31, 127, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**62, 2**63, HUGE]


def mutated(raw: bytes, size: int, generator: random.Random) -> bytes:
    """Random changes to the first `size` bytes: other bytes, other numbers, more, fewer."""
    data = bytearray(raw)
    for _ in range(generator.choice([1, 1, 1, 2, 5])):
        place, kind = generator.randrange(min(size, len(data) - 8)), generator.randrange(6)
        if kind == 0:
            data[place] = generator.randrange(256)
        elif kind == 1:
            data[place] ^= 1 << generator.randrange(8)
        elif kind == 2:
            form = generator.choice(["<I", "<Q"])
            number = generator.choice(INTERESTING) % 2 ** (8 * struct.calcsize(form))
            struct.pack_into(form, data, place, number)
        elif kind == 3:
            del data[place : place + generator.randrange(1, 9)]
        elif kind == 4:
            data[place:place] = generator.randbytes(generator.randrange(1, 9))
        else:
            digits = [i for i in range(min(size, len(data))) if 48 <= data[i] < 58]
            if digits:
                data[generator.choice(digits)] = generator.randrange(48, 58)
    return bytes(data)


def mutate(count: int, folder: Path, seed: int = 0) -> dict[str, int]:
    """Load `count` mutated files of each kind; returns how they ended. Raises bugs."""
    generator = random.Random(seed)
    print("seed", seed)
    whole = small_folder(folder).read_bytes()
    files = {"model.safetensors": (whole, 8 + struct.unpack("<Q", whole[:8])[0])}
    small = small_gguf(folder / "f.gguf", "Q4_1").read_bytes()
    files["f.gguf"] = small, small.index(b"blk.0.ffn_down.weight") + 100
    ends = {"loaded": 0, "refused": 0}
    for name, (raw, size) in files.items():
        for _ in range(count):
            (folder / name).write_bytes(mutated(raw, size, generator))
            try:
                GPT.from_pretrained(folder / name)
                ends["loaded"] += 1
            except InputError as error:
                assert "\n" not in str(error)
                ends["refused"] += 1
    return ends


def test_mutated_headers(tmp_path: Path) -> None:
    ends = mutate(60, tmp_path)
    assert ends["refused"] > 60


def test_a_state_dict_that_is_inside_itself(tmp_path: Path) -> None:
    inside_itself = b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s."
    with zipfile.ZipFile(tmp_path / "m.bin", "w") as file:
        file.writestr("m/data.pkl", inside_itself)
    with pytest.raises(InputError, match="expected only tensors by name"):
        GPT.from_pretrained(tmp_path / "m.bin")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        print(mutate(int(sys.argv[1]), Path(place), int(sys.argv[2]) if sys.argv[2:] else 0))
