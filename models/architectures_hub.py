"""The shape of a model from HuggingFace's config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from minigrad.models.architectures import HUB
from minigrad.models.gpt_config import GPTConfig, llama
from minigrad.models.rotary import KNOWN, Scaling, scaled

WORDS = {int: "an int", float: "a number", bool: "true or false", str: "a string",
         list: "a list"}  # fmt: skip


class Facts:
    """Values of a config by name; ValueError if one is missing or has another type."""

    def __init__(self, values: Mapping[str, Any], prefix: str = "") -> None:
        self.values, self.prefix = values, prefix

    def get(self, name: str, kind: type, default: Any = None) -> Any:
        """A value, or `default` if it is missing (None: it is required)."""
        value = self.values.get(self.prefix + name)
        if value is None:
            value = default
        if kind is float and type(value) is int:
            value = float(value)
        if value is None or type(value) is not kind:
            found = "nothing" if value is None else repr(value)[:40]
            raise ValueError(f"its {self.prefix}{name}: expected {WORDS[kind]}, got {found}")
        return value

    def expect(self, name: str, *known: Any) -> None:
        """ValueError unless a value is one of the known ones, or missing."""
        value = self.values.get(self.prefix + name)
        if value is not None and value not in known:
            raise ValueError(
                f"its {self.prefix}{name} {str(value)[:60]!r} is not supported "
                f"(supported: {', '.join(map(str, known)) or 'none'})"
            )


@dataclass(frozen=True)
class Family:
    """What all models of a model_type have in common.

    switches: of GPTConfig. read: fields of GPTConfig in the file, as (name there, type, default;
    None if required). known: by name, the values that are supported.
    """

    switches: Mapping[str, Any] = field(default_factory=dict)
    read: Mapping[str, tuple[str, type, Any]] = field(default_factory=dict)
    known: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


ATTENTION_BIAS = {"query_bias": ("attention_bias", bool, False),
                  "output_bias": ("attention_bias", bool, False)}  # fmt: skip
SILU = {"hidden_act": ("silu",)}
LLAMA = Family(
    read={**ATTENTION_BIAS, "hidden_bias": ("mlp_bias", bool, False)},
    known={**SILU, "sliding_window": ()},
)
DENSE_LAYERS = {"decoder_sparse_step": (1,), "mlp_only_layers": ([],)}
QWEN_MOE = {
    "experts": ("num_experts", int, None), "active": ("num_experts_per_tok", int, None),
    "feed_forward": ("moe_intermediate_size", int, None), "share": ("norm_topk_prob", bool, False),
}  # fmt: skip
GEMMA = Family(
    switches={"activation": "geglu", "norms": "both"},
    read={"tied": ("tie_word_embeddings", bool, True), "head_width": ("head_dim", int, 256),
          "attention_cap": ("attn_logit_softcapping", float, 0.0),
          "logit_cap": ("final_logit_softcapping", float, 0.0), **ATTENTION_BIAS},
    known={"hidden_activation": ("gelu_pytorch_tanh",), "use_bidirectional_attention": (False,)},
)  # fmt: skip
FAMILIES = {
    "llama": LLAMA,
    "mistral": Family(known=SILU),
    "mixtral": Family(
        read={"experts": ("num_local_experts", int, 8), "active": ("num_experts_per_tok", int, 2),
              "epsilon": ("rms_norm_eps", float, 1e-5)},
        known=SILU,
    ),
    "qwen2": Family(switches={"query_bias": True}, known=SILU),
    "qwen3": Family({"query_norm": "head"},
                    {**ATTENTION_BIAS, "head_width": ("head_dim", int, 128)}, SILU),
    "qwen2_moe": Family(
        read={**QWEN_MOE, "shared": ("shared_expert_intermediate_size", int, None),
              "query_bias": ("qkv_bias", bool, True)},
        known={**SILU, **DENSE_LAYERS},
    ),
    "qwen3_moe": Family({"query_norm": "head"}, {**QWEN_MOE, **ATTENTION_BIAS},
                        {**SILU, **DENSE_LAYERS}),
    "gemma2": GEMMA,
    "gemma3_text": Family({**GEMMA.switches, "query_norm": "head"}, GEMMA.read, GEMMA.known),
    "phi3": Family(read={"epsilon": ("rms_norm_eps", float, 1e-5)}, known=SILU),
    "smollm3": Family(
        read={**LLAMA.read, "tied": ("tie_word_embeddings", bool, True)},
        known={**SILU, "use_sliding_window": (False,)},
    ),
    "olmo2": Family({"norms": "after", "query_norm": "whole"},
                    {**ATTENTION_BIAS, "epsilon": ("rms_norm_eps", float, 1e-5)}, SILU),
    "gpt_neox": Family(
        {"activation": "gelu_exact", "norm": "layer", "bias": True, "key_heads": 0},
        {"parallel": ("use_parallel_residual", bool, True),
         "epsilon": ("layer_norm_eps", float, 1e-5)},
        {"hidden_act": ("gelu",), "attention_bias": (True,)},
    ),
}  # fmt: skip


def config_of_hub(values: Mapping[str, Any]) -> GPTConfig:
    """The shape in a HuggingFace config.json; ValueError for an unknown architecture."""
    facts, kind = Facts(values), values.get("model_type")
    if kind not in HUB:
        raise ValueError(
            f"its architecture {kind!r} is not supported; supported: {', '.join(sorted(HUB))}"
        )
    if kind == "gpt2":
        return _gpt2(facts)
    family = FAMILIES[str(kind)]
    for name, known in family.known.items():
        facts.expect(name, *known)
    heads, dim = facts.get("num_attention_heads", int), facts.get("hidden_size", int)
    reads: dict[str, tuple[str, type, Any]] = {
        "key_heads": ("num_key_value_heads", int, heads),
        "feed_forward": ("intermediate_size", int, None),
        "head_width": ("head_dim", int, 0),
        "epsilon": ("rms_norm_eps", float, 1e-6),
        "tied": ("tie_word_embeddings", bool, False), **family.read,
    }  # fmt: skip
    if kind == "qwen3_moe" and "num_experts" not in values:  # as transformers 5 writes it
        facts = Facts({**values, "num_experts": values.get("num_local_experts")})
    found = {ours: facts.get(*read) for ours, read in reads.items()} | dict(family.switches)
    layers = facts.get("num_hidden_layers", int)
    context = facts.get("max_position_embeddings", int, 2048)
    if str(kind).startswith("gemma"):
        found["embedding_scale"] = math.sqrt(dim)
        found["attention_scale"] = facts.get("query_pre_attn_scalar", float, 256.0) ** -0.5
    kinds, window = _layers(str(kind), facts, layers)
    return llama(
        layers, heads, dim, context, facts.get("vocab_size", int), layer_kinds=kinds, window=window,
        **found, **_rotary(str(kind), facts, found["head_width"] or dim // max(heads, 1), context),
    )  # fmt: skip


def _gpt2(facts: Facts) -> GPTConfig:
    facts.expect("activation_function", "gelu_new", "gelu_pytorch_tanh")
    facts.expect("scale_attn_by_inverse_layer_idx", False)
    facts.expect("scale_attn_weights", True)
    return GPTConfig(
        facts.get("n_layer", int), facts.get("n_head", int), facts.get("n_embd", int),
        facts.get("n_positions", int), facts.get("vocab_size", int),
        feed_forward=facts.get("n_inner", int, 0),
        epsilon=facts.get("layer_norm_epsilon", float, 1e-5),
        tied=facts.get("tie_word_embeddings", bool, True),
    )  # fmt: skip


def _layers(kind: str, facts: Facts, layers: int) -> tuple[str, int]:
    """(a letter per layer, the window); see GPTConfig.layer_kinds."""
    if layers > 10_000:
        raise ValueError(f"its num_hidden_layers: expected at most 10000, got {layers}")
    if kind == "smollm3":
        step = facts.get("no_rope_layer_interval", int, 4)
        turned = facts.get("no_rope_layers", list, [(i + 1) % max(step, 1) for i in range(layers)])
        return "".join("f" if one else "n" for one in turned), 0
    window = facts.values.get("sliding_window", 4096 if kind == "mistral" else None)
    if kind.startswith("qwen") and not facts.get("use_sliding_window", bool, False):
        window = None
    if window is None or kind in ("llama", "olmo2", "gpt_neox"):
        return "", 0
    types = facts.values.get("layer_types")
    if types is not None:
        named = {"full_attention": "f", "sliding_attention": "s"}
        unknown = [one for one in facts.get("layer_types", list) if one not in named]
        if unknown:
            raise ValueError(f"its layer_types: expected {', '.join(named)}, got {unknown[0]!r}")
        kinds = "".join(named[one] for one in types)
    elif kind in ("qwen2", "qwen3"):
        first = facts.get("max_window_layers", int, 28)
        kinds = "".join("s" if layer >= first else "f" for layer in range(layers))
    elif kind == "qwen2_moe":
        first = facts.get("max_window_layers", int, 28)
        kinds = "".join("fs"[layer % 2 == 0 and layer < first] for layer in range(layers))
    elif kind.startswith("gemma"):
        step = 2 if kind == "gemma2" else facts.get("sliding_window_pattern", int, 6)
        kinds = "".join("s" if (layer + 1) % max(step, 1) else "f" for layer in range(layers))
    else:
        kinds = "s" * layers
    return (kinds, facts.get("sliding_window", int, 4096)) if "s" in kinds else ("", 0)


def rope_scaling(facts: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The kind of scaling of rotary positions in a config.json, and its values."""
    given: Any = facts.get("rope_parameters") or facts.get("rope_scaling") or {}
    given = given.get("full_attention", given)
    return str(given.get("rope_type", given.get("type", "default"))), given


def _rotary(kind: str, facts: Facts, width: int, context: int) -> dict[str, Any]:
    """The rotary switches: in rope_parameters since transformers 5, before that separate."""
    given = facts.values.get("rope_parameters")
    if given is None:
        given = facts.values.get("rope_scaling") or {}
        if isinstance(given, Mapping):
            old = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
            for name in ("rope_theta", "partial_rotary_factor"):
                value = facts.values.get(name, facts.values.get(old[name]))
                given = given if value is None else {**given, name: value}
    if not isinstance(given, Mapping):
        raise ValueError(f"its rope_parameters: expected an object, got {str(given)[:40]!r}")
    found: dict[str, Any] = {}
    if kind == "gemma3_text":
        found["local_base"] = facts.get("rope_local_base_freq", float, 10000.0)
    if "full_attention" in given:
        local = Facts(given.get("sliding_attention") or {})
        local.expect("rope_type", "default")
        found["local_base"] = local.get("rope_theta", float, 10000.0)
        given = given["full_attention"]
    rope = Facts({f"rope_parameters.{key}": value for key, value in given.items()},
                 "rope_parameters.")  # fmt: skip
    if kind not in ("phi3", "gpt_neox"):
        rope.expect("partial_rotary_factor", 1.0)
    usual = {"gemma3_text": 1e6, "mixtral": 1e6, "smollm3": 2e6}.get(kind, 10000.0)
    base = rope.get("rope_theta", float, usual)
    share = rope.get("partial_rotary_factor", float, 0.25 if kind == "gpt_neox" else 1.0)
    name = given.get("rope_type", given.get("type", "default"))
    if name not in KNOWN:
        raise ValueError(f"its rope_type: expected {', '.join(KNOWN)}, got {str(name)[:40]!r}")
    scaling = Scaling(name)
    if name != "default":
        for one in ("mscale", "mscale_all_dim"):
            rope.expect(one)
        scaling = Scaling(
            name, rope.get("factor", float),
            rope.get("original_max_position_embeddings", int, context),
            rope.get("low_freq_factor", float, 1.0), rope.get("high_freq_factor", float, 4.0),
            rope.get("beta_slow", float, 1.0), rope.get("beta_fast", float, 32.0),
            rope.get("truncate", bool, True), rope.get("attention_factor", float, 0.0),
        )  # fmt: skip
    try:
        factors, gain = scaled(scaling, base, int(round(width * share, 6)))
    except (ArithmeticError, ValueError):
        raise ValueError(f"its rope_parameters are invalid: {str(dict(given))[:120]}") from None
    return {"rotary_base": base, "rotary_share": share, "rotary_factors": factors,
            "rotary_gain": gain, **found}  # fmt: skip
