"""The shape of a model in a GGUF file's metadata, read and written."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from minigrad.models.architectures import ARCHITECTURES
from minigrad.models.architectures_hub import FAMILIES, Facts, rope_scaling
from minigrad.models.gpt_config import GPTConfig, llama
from minigrad.models.rotary import Scaling, scaled

# llama.cpp's metadata for Qwen 2 MoE lacks that its experts' weights do not sum to 1
SWITCHES = {ARCHITECTURES[kind]: family.switches for kind, family in FAMILIES.items()} | {
    "qwen2moe": {"share": False}
}
SLIDING = {"gemma2": 2, "gemma3": 6}  # one of every so many layers attends to everything
WHOLE_STEP = 4  # every so many layers of SmolLM3 has no positions
# layers of Gemma's 27 B models, which divide scores by √(dim / heads)
LARGEST = {"gemma2": 46, "gemma3": 62}
CAPS = {"gemma2": (50.0, 30.0)}


def config_of_gguf(metadata: Mapping[str, Any], names: Collection[str]) -> GPTConfig:
    """The shape of a model from a GGUF file's metadata; names: of its tensors."""
    kind = str(metadata.get("general.architecture"))
    if kind not in ARCHITECTURES.values():
        known = ", ".join(sorted(set(ARCHITECTURES.values())))
        raise ValueError(f"its architecture {kind!r} is not supported; supported: {known}")
    facts = Facts(metadata, f"{kind}.")
    tied = "output.weight" not in names
    tokens = metadata.get("tokenizer.ggml.tokens")
    vocabulary = facts.get("vocab_size", int, len(tokens) if isinstance(tokens, list) else None)
    heads, dim = facts.get("attention.head_count", int), facts.get("embedding_length", int)
    layers = facts.get("block_count", int)
    shape = (layers, heads, dim, facts.get("context_length", int), vocabulary)
    hidden = facts.get("feed_forward_length", int, 0 if kind.endswith("moe") else None)
    if kind == "gpt2":
        epsilon = facts.get("attention.layer_norm_epsilon", float, 1e-5)
        return GPTConfig(*shape, feed_forward=hidden, epsilon=epsilon, tied=tied)
    own = facts.get("attention.key_length", int, 0)
    width = own or dim // max(heads, 1)
    facts.expect("attention.value_length", width)
    found: dict[str, Any] = {
        **SWITCHES[kind], "feed_forward": hidden, "head_width": own,
        "key_heads": facts.get("attention.head_count_kv", int, heads),
        "query_bias": "blk.0.attn_q.bias" in names, "hidden_bias": "blk.0.ffn_down.bias" in names,
        "output_bias": "blk.0.attn_output.bias" in names,
        **_experts(facts), **_layers(kind, facts, layers), **_rotary(kind, facts, width),
    }  # fmt: skip
    name = "layer_norm_epsilon" if kind == "gptneox" else "layer_norm_rms_epsilon"
    found["epsilon"] = facts.get(f"attention.{name}", float, 1e-5)
    if kind == "gptneox":
        found["parallel"] = facts.get("use_parallel_residual", bool, True)
    if kind.startswith("gemma"):
        usual = CAPS.get(kind, (0.0, 0.0))
        found["attention_cap"] = facts.get("attn_logit_softcapping", float, usual[0])
        found["logit_cap"] = facts.get("final_logit_softcapping", float, usual[1])
        found["embedding_scale"] = math.sqrt(dim)
        of = dim / max(heads, 1) if layers == LARGEST[kind] else width
        found["attention_scale"] = facts.get("attention.scale", float, max(of, 1) ** -0.5)
    return llama(*shape, tied=tied, **found)


def _experts(facts: Facts) -> dict[str, Any]:
    count = facts.get("expert_count", int, 0)
    if not count:
        return {}
    whole = facts.get("feed_forward_length", int, 0)
    found = {"experts": count, "active": facts.get("expert_used_count", int),
             "feed_forward": facts.get("expert_feed_forward_length", int, whole),
             "shared": facts.get("expert_shared_feed_forward_length", int, 0)}  # fmt: skip
    if facts.values.get(facts.prefix + "expert_weights_norm") is not None:
        found["share"] = facts.get("expert_weights_norm", bool)
    return found


def _layers(kind: str, facts: Facts, layers: int) -> dict[str, Any]:
    if not 0 < layers <= 10_000:
        raise ValueError(f"its {facts.prefix}block_count: expected 1 … 10000, got {layers}")
    if kind == "smollm3":
        letters = ["n" if (i + 1) % WHOLE_STEP == 0 else "f" for i in range(layers)]
        return {"layer_kinds": "".join(letters)}
    window = facts.get("attention.sliding_window", int, 0)
    if not window:
        return {}
    step: Any = facts.values.get(facts.prefix + "attention.sliding_window_pattern")
    step = SLIDING.get(kind, 0) if step is None else step
    if isinstance(step, list):
        kinds = "".join("s" if one else "f" for one in step)
    else:
        kinds = "".join("f" if step and (i + 1) % step == 0 else "s" for i in range(layers))
    return {"layer_kinds": kinds, "window": window}


def _rotary(kind: str, facts: Facts, width: int) -> dict[str, Any]:
    base = facts.get("rope.freq_base", float, 10000.0)
    turned = facts.get("rope.dimension_count", int, width)
    facts.expect("rope.scaling.type", "none", "linear", "yarn")
    factor = facts.get("rope.scaling.factor", float, facts.get("rope.scale_linear", float, 0.0))
    name = facts.get("rope.scaling.type", str, "linear" if factor else "none")  # as in llama.cpp
    found: dict[str, Any] = {"rotary_base": base, "rotary_share": turned / max(width, 1)}
    if kind == "gemma3":
        found["local_base"] = facts.get("rope.freq_base_swa", float, 10000.0)
    if name != "none":
        original = facts.get("rope.scaling.original_context_length", int, facts.get(
            "context_length", int))  # fmt: skip
        scaling = Scaling(
            name, factor, original,
            slow=facts.get("rope.scaling.yarn_beta_slow", float, 1.0),
            fast=facts.get("rope.scaling.yarn_beta_fast", float, 32.0),
        )  # fmt: skip
        try:
            found["rotary_factors"], gain = scaled(scaling, base, turned)
        except (ArithmeticError, ValueError):
            raise ValueError(f"its {facts.prefix}rope.scaling is invalid") from None
        more = facts.get("rope.scaling.attn_factor", float, 1.0)
        found["rotary_gain"] = gain * more if name == "yarn" else gain
    return found


def metadata_of(config: GPTConfig, kind: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a model in a GGUF file; facts: from HuggingFace's config.json.

    ValueError if the format cannot express something.
    """
    shape: dict[str, Any] = {
        "context_length": config.context, "embedding_length": config.dim,
        "block_count": config.layers, "feed_forward_length": config.hidden,
        "attention.head_count": config.heads, "vocab_size": config.vocabulary,
    }  # fmt: skip
    name = "layer_norm_rms_epsilon" if config.norm == "rms" else "layer_norm_epsilon"
    shape[f"attention.{name}"] = config.epsilon
    if config.positions == "rotary":
        shape |= {"attention.head_count_kv": config.key_value_heads,
                  "rope.freq_base": config.rotary_base, "rope.dimension_count": config.turned,
                  "attention.key_length": config.width,
                  "attention.value_length": config.width}  # fmt: skip
    if kind == "gptneox":
        shape["use_parallel_residual"] = config.parallel
    if "s" in config.layer_kinds:
        shape["attention.sliding_window"] = config.window
        if "f" in config.layer_kinds or kind in SLIDING:
            shape["attention.sliding_window_pattern"] = [one == "s" for one in config.layer_kinds]
    if kind.startswith("gemma"):
        shape |= {"attn_logit_softcapping": config.attention_cap,
                  "final_logit_softcapping": config.logit_cap,
                  "attention.scale": config.attention_scale}  # fmt: skip
    if config.local_base:
        shape["rope.freq_base_swa"] = config.local_base
    if config.layer_kinds and kind == "smollm3":
        kept = _layers(kind, Facts({}), config.layers)["layer_kinds"]
        if config.layer_kinds != kept:
            raise ValueError("its layers without positions are not every fourth one")
    return {f"{kind}.{name}": value for name, value in (shape | _scaling(config, facts)).items()}


def _scaling(config: GPTConfig, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The rope.scaling entries; Llama 3's scaling is a tensor instead, rope_freqs.weight."""
    kind, given = rope_scaling(facts)
    if not config.rotary_factors or kind == "llama3":
        return {}
    factor = float(given["factor"])
    found: dict[str, Any] = {"type": kind, "factor": factor}
    if kind == "yarn":
        Facts(given).expect("truncate", True)  # which the format lacks
        own = 1 + 0.1 * math.log(factor) if factor > 1 else 1.0
        found |= {
            "original_context_length": given.get("original_max_position_embeddings",
                                                 config.context),
            "attn_factor": config.rotary_gain / own,
            "yarn_beta_fast": float(given.get("beta_fast") or 32.0),
            "yarn_beta_slow": float(given.get("beta_slow") or 1.0),
        }  # fmt: skip
    return {f"rope.scaling.{name}": value for name, value in found.items()}
