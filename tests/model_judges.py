"""Random weights with HuggingFace's names, transformers' logits for them, files of such weights.

Uses nothing of minigrad.
"""

from __future__ import annotations

import json
import math
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]


def logits_of(
    weights: Arrays, facts: dict[str, Any], ids: list[int], dtype: str = "float64"
) -> Any:
    """Logits (length, vocabulary), by transformers; facts: config.json."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.AutoConfig.for_model(**facts)
    model = transformers.AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype)).eval()
    missing, more = model.load_state_dict(
        {name: torch.tensor(value) for name, value in weights.items()}, strict=False
    )
    assert not more and (not missing or missing == ["lm_head.weight"]), (missing, more)
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def random_gpt2(generator: Any, layers: int, dim: int, context: int, vocabulary: int) -> Arrays:
    def some(*shape: int) -> Any:
        return (generator.standard_normal(shape) * 0.5 / math.sqrt(shape[0])).astype(np.float32)

    found = {"wte.weight": some(vocabulary, dim) * 4, "wpe.weight": some(context, dim)}
    for layer in range(layers):
        h = f"h.{layer}"
        for name, inputs, outputs in (
            ("attn.c_attn", dim, 3 * dim),
            ("attn.c_proj", dim, dim),
            ("mlp.c_fc", dim, 4 * dim),
            ("mlp.c_proj", 4 * dim, dim),
        ):
            found[f"{h}.{name}.weight"], found[f"{h}.{name}.bias"] = (
                some(inputs, outputs),
                some(outputs),
            )
        for name in ("ln_1", "ln_2"):
            found[f"{h}.{name}.weight"], found[f"{h}.{name}.bias"] = 1 + some(dim), some(dim)
    return found | {"ln_f.weight": 1 + some(dim), "ln_f.bias": some(dim)}


def gpt2_facts(layers: int, heads: int, dim: int, context: int, vocabulary: int) -> dict[str, Any]:
    return {"model_type": "gpt2", "n_layer": layers, "n_head": heads, "n_embd": dim,
            "n_positions": context, "vocab_size": vocabulary, "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5}  # fmt: skip


LLAMA: dict[str, Any] = {
    "model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64,
    "num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 32,
    "vocab_size": 37, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False,
    "rope_parameters": {"rope_theta": 1000.0, "rope_type": "default"},
}  # fmt: skip


def random_llama(generator: Any, facts: dict[str, Any]) -> Arrays:
    dim, hidden, table = facts["hidden_size"], facts["intermediate_size"], facts["vocab_size"]
    few = dim // facts["num_attention_heads"] * facts["num_key_value_heads"]

    def some(*shape: int) -> Any:
        return (generator.standard_normal(shape) / math.sqrt(shape[-1])).astype(np.float32)

    found = {"model.embed_tokens.weight": some(table, dim) * 4}
    for layer in range(facts["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        for which, rows in (("q", dim), ("k", few), ("v", few), ("o", dim)):
            found[f"{name}.self_attn.{which}_proj.weight"] = some(rows, dim)
        for which, *shape in (("gate", hidden, dim), ("up", hidden, dim), ("down", dim, hidden)):
            found[f"{name}.mlp.{which}_proj.weight"] = some(*shape)
        for which in ("input", "post_attention"):
            found[f"{name}.{which}_layernorm.weight"] = 1 + some(dim)
    found["model.norm.weight"] = 1 + some(dim)
    if not facts["tie_word_embeddings"]:
        found["lm_head.weight"] = some(table, dim)
    return found


# --- GGUF files -----------------------------------------------------------------------------------

def gguf_string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def gguf_file_of(
    weights: Arrays, facts: dict[str, Any], path: Path, dtype: str = "F32",
    changes: dict[str, Any] | None = None,
) -> Path:  # fmt: skip
    """A transformers model, written by the package gguf as llama.cpp's converter does.

    facts: its config.json; dtype: of matrices; changes: other values in the file's metadata.
    """
    gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install '.[test]'")
    kind = facts["model_type"]
    names = {"mistral": "llama", "mixtral": "llama", "gemma3_text": "gemma3", "gpt_neox": "gptneox",
             "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe"}  # fmt: skip
    name = names.get(kind, kind)
    numbers = {text: number for number, text in gguf.MODEL_ARCH_NAMES.items()}
    layers, heads = facts["num_hidden_layers"], facts["num_attention_heads"]
    table = gguf.get_tensor_name_map(numbers[name], layers)
    writer = gguf.GGUFWriter(path, name)
    few = facts["num_key_value_heads"]
    rope = facts["rope_parameters"]
    swa = rope.get("sliding_attention")
    rope = rope.get("full_attention", rope)
    width = facts.get("head_dim") or facts["hidden_size"] // heads
    turned = int(width * rope.get("partial_rotary_factor", 1.0))
    writer.add_vocab_size(facts["vocab_size"])
    writer.add_context_length(facts["max_position_embeddings"])
    writer.add_embedding_length(facts["hidden_size"])
    writer.add_block_count(layers)
    writer.add_feed_forward_length(facts["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads if kind == "gpt_neox" else few)
    if facts.get("head_dim"):
        writer.add_key_length(width)
        writer.add_value_length(width)
    writer.add_rope_dimension_count(turned)
    writer.add_rope_freq_base(rope["rope_theta"])
    if kind == "gpt_neox":
        writer.add_layer_norm_eps(facts["layer_norm_eps"])
        writer.add_parallel_residual(facts["use_parallel_residual"])
    else:
        writer.add_layer_norm_rms_eps(facts["rms_norm_eps"])
    if facts.get("sliding_window"):
        writer.add_sliding_window(facts["sliding_window"])
        if "layer_types" in facts:
            types = facts["layer_types"]
            writer.add_sliding_window_pattern([one == "sliding_attention" for one in types])
    if swa:
        writer.add_rope_freq_base_swa(swa["rope_theta"])
    if kind.startswith("gemma"):
        writer.add_attention_scale(facts["query_pre_attn_scalar"] ** -0.5)
        if kind == "gemma2":
            writer.add_attn_logit_softcapping(facts["attn_logit_softcapping"])
            writer.add_final_logit_softcapping(facts["final_logit_softcapping"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
        if rope["rope_type"] == "yarn":
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    experts = facts.get("num_experts", facts.get("num_local_experts"))
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(facts["num_experts_per_tok"])
        if "moe_intermediate_size" in facts:
            writer.add_expert_feed_forward_length(facts["moe_intermediate_size"])
        if "shared_expert_intermediate_size" in facts:
            size = facts["shared_expert_intermediate_size"]
            writer.add_expert_shared_feed_forward_length(size)
    if rope["rope_type"] == "llama3":
        speeds = rope["rope_theta"] ** (-np.arange(0, turned, 2) / turned)
        length = 2 * np.pi / speeds
        original, low, high = (rope[key] for key in (
            "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"))  # fmt: skip
        smooth = (original / length - low) / (high - low)
        middle = 1 / ((1 - smooth) / rope["factor"] + smooth)
        factors = np.where(length < original / high, 1.0,
                           np.where(length > original / low, rope["factor"], middle))  # fmt: skip
        writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))
    for key, value in (changes or {}).items():
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    for key, tensor in weights.items():
        value = tensor
        if key == "lm_head.weight" and facts["tie_word_embeddings"]:
            continue
        if kind.startswith("gemma") and key.endswith("norm.weight"):
            value = value + 1
        if name in ("llama", "smollm3") and ("q_proj" in key or "k_proj" in key):
            count = heads if "q_proj" in key else few
            value = value.reshape(count, 2, width // 2, *value.shape[1:])
            value = value.swapaxes(1, 2).reshape(tensor.shape)
        if "query_key_value" in key:
            value = value.reshape(heads, 3, width, *value.shape[1:]).swapaxes(0, 1)
            value = value.reshape(tensor.shape)
        parts = {key: value}
        if "experts.gate_up_proj" in key:  # (experts, 2·hidden, dim), separate in older files
            half = value.shape[1] // 2
            parts = {key.replace("gate_up_proj", "gate_proj"): value[:, :half],
                     key.replace("gate_up_proj", "up_proj"): value[:, half:]}  # fmt: skip
        for one, part in parts.items():
            part = part[None] if "shared_expert_gate" in one and part.ndim == 1 else part
            found = table.get_name(one, (".weight", ".bias"))
            assert found is not None, one
            found = found if found.endswith((".weight", ".bias")) else f"{found}.weight"
            used = gguf.GGMLQuantizationType["F32" if part.ndim == 1 else dtype]
            writer.add_tensor(found, gguf.quants.quantize(part, used), raw_dtype=used)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def save_folder(folder: Path, weights: Arrays, facts: dict[str, Any], shards: int = 1) -> None:
    """Write config.json and model.safetensors, or shards and their index."""
    from safetensors.numpy import save_file

    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(facts))
    if shards == 1:
        save_file(weights, folder / "model.safetensors")
        return
    table = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {name: weights[name] for name in sorted(weights)[number::shards]}
        save_file(part, folder / file)
        table |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": table}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
