"""GPT-2, Llama and Mixtral once more, in PyTorch's plainest functions, for weights under
HuggingFace's names; and files of such weights.

Written from the papers and the published descriptions; nothing of minigrad is used here.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]


def softmax_rows(torch: Any, scores: Any) -> Any:
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return weights / weights.sum(-1, keepdim=True)


def attend(torch: Any, q: Any, k: Any, v: Any) -> Any:
    """One head: (length, width) each, causal."""
    scores = q @ k.T / math.sqrt(q.shape[1])
    future = torch.ones(len(q), len(q)).triu(1).bool()
    return softmax_rows(torch, scores.masked_fill(future, -math.inf)) @ v


class TorchGPT2:
    """weights: names of HuggingFace's GPT-2; matrices are (in, out)."""

    def __init__(self, torch: Any, weights: Arrays, heads: int) -> None:
        self.torch, self.heads = torch, heads
        self.p = {name: torch.tensor(value).double() for name, value in weights.items()}
        self.layers = len({name.split(".")[1] for name in weights if name.startswith("h.")})

    def norm(self, x: Any, name: str) -> Any:
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
        return x * self.p[f"{name}.weight"] + self.p[f"{name}.bias"]

    def affine(self, x: Any, name: str) -> Any:
        return x @ self.p[f"{name}.weight"] + self.p[f"{name}.bias"]

    def logits(self, ids: list[int]) -> Any:
        """(length, vocabulary)."""
        x = self.p["wte.weight"][ids] + self.p["wpe.weight"][: len(ids)]
        for layer in range(self.layers):
            h = f"h.{layer}"
            q, k, v = self.affine(self.norm(x, f"{h}.ln_1"), f"{h}.attn.c_attn").chunk(3, -1)
            width = q.shape[1] // self.heads
            parts = [slice(i * width, (i + 1) * width) for i in range(self.heads)]
            y = [attend(self.torch, q[:, s], k[:, s], v[:, s]) for s in parts]
            x = x + self.affine(self.torch.cat(y, 1), f"{h}.attn.c_proj")
            y = self.affine(self.norm(x, f"{h}.ln_2"), f"{h}.mlp.c_fc")
            y = 0.5 * y * (1 + (math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)).tanh())
            x = x + self.affine(y, f"{h}.mlp.c_proj")
        return (self.norm(x, "ln_f") @ self.p["wte.weight"].T).numpy()


class TorchLlama:
    """weights: names of HuggingFace's Llama or Mixtral; facts: their config.json."""

    def __init__(self, torch: Any, weights: Arrays, facts: dict[str, Any], dtype: str = "float64"):
        self.torch, self.facts = torch, facts
        self.dtype = getattr(torch, dtype)
        self.p = {name: torch.tensor(value).to(self.dtype) for name, value in weights.items()}

    def norm(self, x: Any, name: str) -> Any:
        scale = (x.pow(2).mean(-1, keepdim=True) + self.facts["rms_norm_eps"]).rsqrt()
        return x * scale * self.p[f"{name}.weight"]

    def turn(self, x: Any) -> Any:
        """x (length, width) of one head: pairs (i, i + width/2) as complex numbers."""
        half = x.shape[1] // 2
        speed = self.facts["rope_theta"] ** (-np.arange(half) * 2 / x.shape[1])
        angle = self.torch.tensor(np.outer(np.arange(len(x)), speed))
        turned = self.torch.complex(x[:, :half].double(), x[:, half:].double())
        turned = turned * self.torch.polar(self.torch.ones_like(angle), angle)
        return self.torch.cat([turned.real, turned.imag], 1).to(self.dtype)

    def swiglu(self, x: Any, gate: str, up: str, down: str) -> Any:
        y = x @ self.p[f"{gate}.weight"].T
        return (y / (1 + (-y).exp()) * (x @ self.p[f"{up}.weight"].T)) @ self.p[f"{down}.weight"].T

    def feed_forward(self, x: Any, name: str) -> Any:
        if "num_local_experts" not in self.facts:
            return self.swiglu(x, *(f"{name}.mlp.{which}_proj" for which in ("gate", "up", "down")))
        moe, rows = f"{name}.block_sparse_moe", []
        for row in x:  # one token after the other
            chances = softmax_rows(self.torch, self.p[f"{moe}.gate.weight"] @ row)
            best = chances.argsort(descending=True)[: self.facts["num_experts_per_tok"]].tolist()
            total = sum(chances[i] for i in best)
            names = [[f"{moe}.experts.{i}.{w}" for w in ("w1", "w3", "w2")] for i in best]
            answers = [self.swiglu(row, *three) for three in names]
            rows.append(sum(chances[i] / total * y for i, y in zip(best, answers, strict=True)))
        return self.torch.stack(rows)

    def logits(self, ids: list[int]) -> Any:
        """(length, vocabulary)."""
        facts, table = self.facts, self.p["model.embed_tokens.weight"]
        heads, groups = facts["num_attention_heads"], facts["num_key_value_heads"]
        width = facts["hidden_size"] // heads
        x = table[ids]
        for layer in range(facts["num_hidden_layers"]):
            name = f"model.layers.{layer}"
            y = self.norm(x, f"{name}.input_layernorm")
            q, k, v = (y @ self.p[f"{name}.self_attn.{w}_proj.weight"].T for w in "qkv")
            outs = []
            for head in range(heads):
                mine = slice(head * width, (head + 1) * width)
                group = head // (heads // groups)
                theirs = slice(group * width, (group + 1) * width)
                turned = self.turn(q[:, mine]), self.turn(k[:, theirs])
                outs.append(attend(self.torch, *turned, v[:, theirs]))
            x = x + self.torch.cat(outs, 1) @ self.p[f"{name}.self_attn.o_proj.weight"].T
            x = x + self.feed_forward(self.norm(x, f"{name}.post_attention_layernorm"), name)
        last = self.p.get("lm_head.weight", table)
        return (self.norm(x, "model.norm") @ last.T).numpy()


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
    "vocab_size": 37, "rope_theta": 1000.0, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "tie_word_embeddings": False,
}  # fmt: skip
MIXTRAL = {**LLAMA, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}


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
        if "num_local_experts" in facts:
            found[f"{name}.block_sparse_moe.gate.weight"] = some(facts["num_local_experts"], dim)
            for number in range(facts["num_local_experts"]):
                expert = f"{name}.block_sparse_moe.experts.{number}"
                for which, shape in (
                    ("w1", (hidden, dim)),
                    ("w3", (hidden, dim)),
                    ("w2", (dim, hidden)),
                ):
                    found[f"{expert}.{which}.weight"] = some(*shape)
        else:
            for which, shape in (
                ("gate", (hidden, dim)),
                ("up", (hidden, dim)),
                ("down", (dim, hidden)),
            ):
                found[f"{name}.mlp.{which}_proj.weight"] = some(*shape)
        for which in ("input", "post_attention"):
            found[f"{name}.{which}_layernorm.weight"] = 1 + some(dim)
    found["model.norm.weight"] = 1 + some(dim)
    if not facts["tie_word_embeddings"]:
        found["lm_head.weight"] = some(table, dim)
    return found


# --- files of GGUF --------------------------------------------------------------------------------

GGUF_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8, "BF16": 30}


def packed(values: np.ndarray[Any, Any], kind: str) -> tuple[bytes, np.ndarray[Any, Any]]:
    """(bytes of a matrix in a GGUF type, what they stand for)."""
    if kind == "F32":
        return values.tobytes(), values
    if kind == "F16":
        half = values.astype(np.float16)
        return half.tobytes(), half.astype(np.float32)
    if kind == "BF16":
        words = (values.view(np.uint32) >> 16).astype(np.uint16)
        return words.tobytes(), (words.astype(np.uint32) << 16).view(np.float32)
    blocks = values.reshape(-1, 32)
    zero = np.zeros((len(blocks), 1), np.float16)
    if kind == "Q8_0":
        scale = (np.abs(blocks).max(1, keepdims=True) / 127).astype(np.float16)
        q = np.clip((blocks / scale).round(), -128, 127).astype(np.int8)
        raw = np.concatenate([scale.view(np.uint8), q.view(np.uint8)], 1)
        return raw.tobytes(), (q * scale.astype(np.float32)).reshape(values.shape)
    low = zero if kind == "Q4_0" else blocks.min(1, keepdims=True).astype(np.float16)
    if kind == "Q4_0":
        scale = (np.abs(blocks).max(1, keepdims=True) / 8).astype(np.float16)
        q = np.clip((blocks / scale + 8).round(), 0, 15).astype(np.uint8)
        value = (q.astype(np.float32) - 8) * scale.astype(np.float32)
        head = scale.view(np.uint8)
    else:
        scale = ((blocks.max(1, keepdims=True) - low) / 15).astype(np.float16)
        q = np.clip(((blocks - low) / scale).round(), 0, 15).astype(np.uint8)
        value = q * scale.astype(np.float32) + low.astype(np.float32)
        head = np.concatenate([scale.view(np.uint8), low.view(np.uint8)], 1)
    raw = np.concatenate([head, q[:, :16] | q[:, 16:] << 4], 1)
    return raw.tobytes(), value.reshape(values.shape)


def gguf_string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def gguf_value(value: Any) -> bytes:
    """Type and value."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + gguf_string(value)
    kind = 8 if isinstance(value[0], str) else 5
    items = b"".join(gguf_string(v) if kind == 8 else struct.pack("<i", v) for v in value)
    return struct.pack("<IIQ", 9, kind, len(value)) + items


def gguf_bytes(metadata: dict[str, Any], tensors: dict[str, tuple[str, Any]]) -> bytes:
    """A file of tensors, each (type, float32 array)."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        head += gguf_string(key) + gguf_value(value)
    data = b""
    for name, (kind, values) in tensors.items():
        data += b"\0" * (-len(data) % 32)
        head += gguf_string(name) + struct.pack("<I", values.ndim)
        head += b"".join(struct.pack("<Q", extent) for extent in reversed(values.shape))
        head += struct.pack("<IQ", GGUF_TYPES[kind], len(data))
        data += packed(values, kind)[0]
    return head + b"\0" * (-len(head) % 32) + data


def llama_metadata(facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "general.architecture": "llama", "llama.block_count": facts["num_hidden_layers"],
        "llama.context_length": facts["max_position_embeddings"],
        "llama.embedding_length": facts["hidden_size"],
        "llama.feed_forward_length": facts["intermediate_size"],
        "llama.attention.head_count": facts["num_attention_heads"],
        "llama.attention.head_count_kv": facts["num_key_value_heads"],
        "llama.rope.freq_base": facts["rope_theta"], "llama.vocab_size": facts["vocab_size"],
        "llama.attention.layer_norm_rms_epsilon": facts["rms_norm_eps"],
    }  # fmt: skip


GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "model.layers": "blk",
}  # fmt: skip


def gguf_llama(
    weights: Arrays, facts: dict[str, Any], kind: str, changes: dict[str, Any] | None = None
) -> tuple[bytes, Arrays]:
    """(a file as llama.cpp's converter would write it, the weights that it stands for).

    changes: other values in its metadata.
    """
    tensors, meant = {}, {}
    for name, value in weights.items():
        theirs = name
        for ours, short in GGUF_NAMES.items():
            theirs = theirs.replace(ours, short)
        used = "F32" if value.ndim == 1 else kind
        heads = {"q": "num_attention_heads", "k": "num_key_value_heads"}
        which = theirs.split(".")[2][5:] if "attn_" in theirs and value.ndim == 2 else ""
        if which in heads:  # neighbours in pairs
            count = facts[heads[which]]
            shape = (count, 2, len(value) // count // 2, -1)
            value = np.ascontiguousarray(value.reshape(shape).swapaxes(1, 2)).reshape(value.shape)
            plain = packed(value, used)[1].reshape(count, len(value) // count // 2, 2, -1)
            meant[name] = plain.swapaxes(1, 2).reshape(value.shape)
        else:
            meant[name] = packed(value, used)[1]
        tensors[theirs] = (used, value)
    return gguf_bytes({**llama_metadata(facts), **(changes or {})}, tensors), meant


def gguf_file_of(tensors: Any, facts: dict[str, Any], path: Path) -> Path:
    """A model of transformers as llama.cpp's converter writes it, by the package gguf: float32.

    tensors: its state; facts: its config.json.
    """
    import gguf

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
    for key, tensor in tensors.items():
        value = tensor.float().numpy()
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
        if "experts.gate_up_proj" in key:  # (experts, 2·hidden, dim), which files had apart
            half = value.shape[1] // 2
            parts = {key.replace("gate_up_proj", "gate_proj"): value[:, :half],
                     key.replace("gate_up_proj", "up_proj"): value[:, half:]}  # fmt: skip
        for one, part in parts.items():
            part = part[None] if "shared_expert_gate" in one and part.ndim == 1 else part
            found = table.get_name(one, (".weight", ".bias"))
            assert found is not None, one
            found = found if found.endswith((".weight", ".bias")) else f"{found}.weight"
            writer.add_tensor(found, np.ascontiguousarray(part))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def save_folder(folder: Path, weights: Arrays, facts: dict[str, Any], shards: int = 1) -> None:
    """config.json and model.safetensors, or shards and their index."""
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
