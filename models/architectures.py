"""The names of a GPT's parameters in files of HuggingFace and llama.cpp, as tables.

A `Part` says which tensors of a file make up one of our parameters. We keep queries, keys and
values in one matrix, and so gate and up of a gated network; in a file they may be separate,
transposed, or in another order. The shape of a model is read by `architectures_hub.py` and
`architectures_gguf.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from minigrad.models.gpt_config import GPTConfig

Names = Mapping[str, str]  # our name: the file's name or names; {} is the number of an expert


@dataclass(frozen=True)
class Part:
    """One parameter: our name, the names in the file that make it up, and how.

    how: "stack" puts them one above the other; "transpose" transposes; "plus one" adds 1;
    "interleaved" holds the queries, keys and values of each head together; "experts" makes one
    matrix per `group` of theirs, "expert stacks" one from all of theirs, with all experts in
    each. paired: names whose rows llama.cpp has reordered, so that rotary pairs are neighbours.
    """

    ours: str
    theirs: tuple[str, ...]
    how: str = "stack"
    group: int = 1
    paired: tuple[str, ...] = ()


HUB_LLAMA = {
    "wte": "model.embed_tokens", "ln_f": "model.norm", "lm_head": "lm_head",
    "layer": "model.layers",
    "ln_1": "input_layernorm", "ln_2": "post_attention_layernorm",
    "attn.c_attn": "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
    "attn.q_norm": "self_attn.q_norm", "attn.k_norm": "self_attn.k_norm",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.c_fc": "mlp.gate_proj mlp.up_proj", "mlp.c_proj": "mlp.down_proj",
}  # fmt: skip
HUB_QWEN_MOE = {
    **HUB_LLAMA,
    "mlp.router": "mlp.gate", "mlp.c_fc": "mlp.experts.{}.gate_proj mlp.experts.{}.up_proj",
    "mlp.c_proj": "mlp.experts.{}.down_proj",
    "mlp.shared.c_fc": "mlp.shared_expert.gate_proj mlp.shared_expert.up_proj",
    "mlp.shared.c_proj": "mlp.shared_expert.down_proj",
    "mlp.shared_gate": "mlp.shared_expert_gate",
}  # fmt: skip
HUB_GEMMA = {
    **HUB_LLAMA, "after_1": "post_attention_layernorm", "ln_2": "pre_feedforward_layernorm",
    "after_2": "post_feedforward_layernorm",
}  # fmt: skip
_OF_GPT2 = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
# HuggingFace's names, by its model_type
HUB: dict[str, Names] = {
    # its matrices are (in, out)
    "gpt2": {name: name for name in ("wte", "wpe", "ln_f", "lm_head", *_OF_GPT2)} | {"layer": "h"},
    "llama": HUB_LLAMA, "mistral": HUB_LLAMA, "qwen2": HUB_LLAMA, "qwen3": HUB_LLAMA,
    "smollm3": HUB_LLAMA, "gemma2": HUB_GEMMA, "gemma3_text": HUB_GEMMA,
    "mixtral": {
        **HUB_LLAMA, "mlp.router": "block_sparse_moe.gate",
        "mlp.c_fc": "block_sparse_moe.experts.{}.w1 block_sparse_moe.experts.{}.w3",
        "mlp.c_proj": "block_sparse_moe.experts.{}.w2",
    },
    "qwen2_moe": HUB_QWEN_MOE, "qwen3_moe": HUB_QWEN_MOE,
    "olmo2": {**HUB_LLAMA, "after_1": "post_attention_layernorm",
              "after_2": "post_feedforward_layernorm"},
    "phi3": {**HUB_LLAMA, "attn.c_attn": "self_attn.qkv_proj", "mlp.c_fc": "mlp.gate_up_proj"},
    "gpt_neox": {
        "wte": "gpt_neox.embed_in", "ln_f": "gpt_neox.final_layer_norm", "lm_head": "embed_out",
        "layer": "gpt_neox.layers", "ln_1": "input_layernorm", "ln_2": "post_attention_layernorm",
        "attn.c_attn": "attention.query_key_value", "attn.c_proj": "attention.dense",
        "mlp.c_fc": "mlp.dense_h_to_4h", "mlp.c_proj": "mlp.dense_4h_to_h",
    },
}  # fmt: skip
# how some parameters of a family are stored, if not as "stack"
HUB_HOW: dict[str, dict[str, str]] = {
    "gpt2": {name: "transpose" for name in _OF_GPT2 if "c_" in name},
    "gemma2": dict.fromkeys(("ln_1", "ln_2", "after_1", "after_2", "ln_f"), "plus one"),
    "gpt_neox": {"attn.c_attn": "interleaved"},
}
HUB_HOW["gemma3_text"] = HUB_HOW["gemma2"] | dict.fromkeys(("attn.q_norm", "attn.k_norm"),
                                                           "plus one")  # fmt: skip

LLAMA_CPP = {
    "wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm", "lm_head": "output",
    "layer": "blk", "ln_1": "attn_norm", "after_1": "post_attention_norm", "ln_2": "ffn_norm",
    "after_2": "post_ffw_norm", "attn.c_attn": "attn_q attn_k attn_v",
    "attn.q_norm": "attn_q_norm", "attn.k_norm": "attn_k_norm", "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_gate ffn_up", "mlp.c_proj": "ffn_down",
}  # fmt: skip
LLAMA_CPP_MOE = {
    **LLAMA_CPP, "mlp.router": "ffn_gate_inp", "mlp.c_fc": "ffn_gate_exps ffn_up_exps",
    "mlp.c_proj": "ffn_down_exps", "mlp.shared.c_fc": "ffn_gate_shexp ffn_up_shexp",
    "mlp.shared.c_proj": "ffn_down_shexp", "mlp.shared_gate": "ffn_gate_inp_shexp",
}  # fmt: skip
LLAMA_CPP_JOINED = {**LLAMA_CPP, "attn.c_attn": "attn_qkv", "mlp.c_fc": "ffn_up"}
# llama.cpp's names, by its architecture, if they are not LLAMA_CPP
GGUF: dict[str, Names] = {
    "gpt2": LLAMA_CPP_JOINED, "phi3": LLAMA_CPP_JOINED, "gptneox": LLAMA_CPP_JOINED,
    "qwen2moe": LLAMA_CPP_MOE, "qwen3moe": LLAMA_CPP_MOE,
}  # fmt: skip
# HuggingFace's model_type → llama.cpp's architecture
ARCHITECTURES = {
    "gpt2": "gpt2", "llama": "llama", "mistral": "llama", "mixtral": "llama", "qwen2": "qwen2",
    "qwen3": "qwen3", "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "gemma2": "gemma2",
    "gemma3_text": "gemma3", "phi3": "phi3", "smollm3": "smollm3", "olmo2": "olmo2",
    "gpt_neox": "gptneox",
}  # fmt: skip
PAIRED = ("llama", "smollm3")  # their rotary pairs are neighbouring rows of queries and keys


def parameters(config: GPTConfig) -> Iterator[tuple[str, str]]:
    """(name in the tables, our name without "weight" or "bias") of each parameter of a model.

    The token embedding comes first.
    """
    yield "wte", "wte"
    if config.positions == "learned":
        yield "wpe", "wpe"
    inner = {
        "ln_1": config.norms != "after", "after_1": config.norms != "before", "attn.c_attn": True,
        "attn.q_norm": config.query_norm != "none", "attn.k_norm": config.query_norm != "none",
        "attn.c_proj": True, "ln_2": config.norms != "after", "after_2": config.norms != "before",
        "mlp.router": bool(config.experts), "mlp.c_fc": True, "mlp.c_proj": True,
        "mlp.shared.c_fc": bool(config.shared), "mlp.shared.c_proj": bool(config.shared),
        "mlp.shared_gate": bool(config.shared),
    }  # fmt: skip
    for layer in range(config.layers):
        for name, there in inner.items():
            if there:
                yield name, f"h.{layer}.{name}"
    yield "ln_f", "ln_f"
    if not config.tied:
        yield "lm_head", "lm_head"


def has_bias(config: GPTConfig, name: str) -> bool:
    """Whether the parameter with a name in the tables has a bias besides its weight."""
    if name in ("wte", "wpe", "lm_head", "attn.q_norm", "attn.k_norm", "mlp.router",
                "mlp.shared_gate"):  # fmt: skip
        return False
    if "c_" not in name:
        return config.bias and config.norm == "layer"
    own = {"attn.c_attn": config.query_bias, "attn.c_proj": config.output_bias}
    return config.bias or own.get(name, config.hidden_bias)


def parts(
    config: GPTConfig, names: Names, how: Names | None = None, prefix: str = "",
    paired: bool = False,
) -> Iterator[Part]:  # fmt: skip
    """How a model's parameters are made of tensors with the names of a table.

    how: by name in the table, if not "stack". prefix: of all names except lm_head's.
    """
    for name, ours in parameters(config):
        words = names[name].split()
        if ours.startswith("h."):
            words = [f"{names['layer']}.{ours.split('.')[1]}.{word}" for word in words]
        if name != "lm_head":
            words = [prefix + word for word in words]
        for kind in ("weight", "bias") if has_bias(config, name) else ("weight",):
            theirs = tuple(f"{word}.{kind}" for word in words)
            if "{}" in theirs[0]:
                every = [word.format(e) for e in range(config.experts) for word in theirs]
                yield Part(f"{ours}.{kind}", tuple(every), "experts", len(theirs))
                continue
            way = (how or {}).get(name, "stack")
            if kind == "bias" and way == "transpose":
                way = "stack"
            if config.experts and name in ("mlp.c_fc", "mlp.c_proj"):
                way = "expert stacks"
            turned = theirs[:2] if paired and name == "attn.c_attn" else ()
            yield Part(f"{ours}.{kind}", theirs, way, paired=turned)


def hub(kind: str, config: GPTConfig, prefix: str = "", transposed: bool = True) -> Iterator[Part]:
    """The parts in HuggingFace's files; transposed=False: GPT-2's matrices are (out, in)."""
    how = HUB_HOW.get(kind, {}) if transposed else {}
    return parts(config, HUB[kind], how, prefix)


def gguf(architecture: str, config: GPTConfig) -> Iterator[Part]:
    """The parts in llama.cpp's files."""
    names = GGUF.get(architecture, LLAMA_CPP_MOE if config.experts else LLAMA_CPP)
    return parts(config, names, paired=architecture in PAIRED)
