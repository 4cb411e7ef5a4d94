"""What files of HuggingFace and llama.cpp call a GPT's parameters, and where they tell its shape.

A `Part` says of which tensors one of ours is made. Ours has queries, keys and values in one
matrix, and so gate and up of a SwiGLU; theirs may be apart, transposed, or in another order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from minigrad.models.gpt_config import GPTConfig, llama


@dataclass(frozen=True)
class Part:
    """One parameter: ours, the names in the file that make it up, and how.

    how: "stack" puts them one above the other, "transpose" and "experts" (one matrix of ours from
    each `group` of theirs) do what they say. paired: names whose rows come as llama.cpp turns them,
    neighbours in pairs.
    """

    ours: str
    theirs: tuple[str, ...]
    how: str = "stack"
    group: int = 1
    paired: tuple[str, ...] = ()


# HuggingFace's GPT-2 has our names, but its matrices are (in, out).
def hub_gpt2(config: GPTConfig, prefix: str = "", transposed: bool = True) -> Iterator[Part]:
    """GPT-2; transposed=False for files whose matrices are (out, in), as PyTorch's Linear has."""
    yield Part("wte.weight", (f"{prefix}wte.weight",))
    yield Part("wpe.weight", (f"{prefix}wpe.weight",))
    for layer in range(config.layers):
        for inner in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"):
            name = f"h.{layer}.{inner}"
            turned = transposed and not inner.startswith("ln")
            how = "transpose" if turned else "stack"
            yield Part(f"{name}.weight", (f"{prefix}{name}.weight",), how)
            if config.bias:
                yield Part(f"{name}.bias", (f"{prefix}{name}.bias",))
    yield Part("ln_f.weight", (f"{prefix}ln_f.weight",))
    if config.bias:
        yield Part("ln_f.bias", (f"{prefix}ln_f.bias",))
    if not config.tied:
        yield Part("lm_head.weight", ("lm_head.weight",))


def hub_llama(config: GPTConfig) -> Iterator[Part]:
    """Llama and Mixtral."""
    yield Part("wte.weight", ("model.embed_tokens.weight",))
    for layer in range(config.layers):
        ours, theirs = f"h.{layer}", f"model.layers.{layer}"
        attention = f"{theirs}.self_attn"
        yield Part(f"{ours}.ln_1.weight", (f"{theirs}.input_layernorm.weight",))
        rows = tuple(f"{attention}.{which}_proj.weight" for which in "qkv")
        yield Part(f"{ours}.attn.c_attn.weight", rows)
        yield Part(f"{ours}.attn.c_proj.weight", (f"{attention}.o_proj.weight",))
        yield Part(f"{ours}.ln_2.weight", (f"{theirs}.post_attention_layernorm.weight",))
        if config.experts:
            moe = f"{theirs}.block_sparse_moe"
            yield Part(f"{ours}.mlp.router.weight", (f"{moe}.gate.weight",))
            experts = [f"{moe}.experts.{number}" for number in range(config.experts)]
            fc = tuple(f"{expert}.{which}.weight" for expert in experts for which in ("w1", "w3"))
            yield Part(f"{ours}.mlp.c_fc.weight", fc, "experts", 2)
            proj = tuple(f"{expert}.w2.weight" for expert in experts)
            yield Part(f"{ours}.mlp.c_proj.weight", proj, "experts", 1)
        else:
            fc = tuple(f"{theirs}.mlp.{which}_proj.weight" for which in ("gate", "up"))
            yield Part(f"{ours}.mlp.c_fc.weight", fc)
            yield Part(f"{ours}.mlp.c_proj.weight", (f"{theirs}.mlp.down_proj.weight",))
    yield Part("ln_f.weight", ("model.norm.weight",))
    if not config.tied:
        yield Part("lm_head.weight", ("lm_head.weight",))


def gguf(config: GPTConfig) -> Iterator[Part]:
    """llama.cpp's names, for its architectures gpt2 and llama."""
    learned = config.positions == "learned"
    yield Part("wte.weight", ("token_embd.weight",))
    if learned:
        yield Part("wpe.weight", ("position_embd.weight",))
    kinds = ("weight", "bias") if config.bias else ("weight",)
    for layer in range(config.layers):
        ours, theirs = f"h.{layer}", f"blk.{layer}"
        for kind in kinds:
            yield Part(f"{ours}.ln_1.{kind}", (f"{theirs}.attn_norm.{kind}",))
            if learned:
                yield Part(f"{ours}.attn.c_attn.{kind}", (f"{theirs}.attn_qkv.{kind}",))
                yield Part(f"{ours}.mlp.c_fc.{kind}", (f"{theirs}.ffn_up.{kind}",))
            else:
                rows = tuple(f"{theirs}.attn_{which}.{kind}" for which in "qkv")
                yield Part(f"{ours}.attn.c_attn.{kind}", rows, paired=rows[:2])
                fc = (f"{theirs}.ffn_gate.{kind}", f"{theirs}.ffn_up.{kind}")
                yield Part(f"{ours}.mlp.c_fc.{kind}", fc)
            yield Part(f"{ours}.attn.c_proj.{kind}", (f"{theirs}.attn_output.{kind}",))
            yield Part(f"{ours}.ln_2.{kind}", (f"{theirs}.ffn_norm.{kind}",))
            yield Part(f"{ours}.mlp.c_proj.{kind}", (f"{theirs}.ffn_down.{kind}",))
    for kind in kinds:
        yield Part(f"ln_f.{kind}", (f"output_norm.{kind}",))
    if not config.tied:
        yield Part("lm_head.weight", ("output.weight",))


WORDS = {int: "a whole number", float: "a number", bool: "true or false"}


class _Facts:
    """Values of a config by name; ValueError where one is missing or of another type."""

    def __init__(self, values: Mapping[str, Any], prefix: str = "") -> None:
        self.values, self.prefix = values, prefix

    def get(self, name: str, kind: type, default: Any = None) -> Any:
        """A value; `default` where there is none (None: there must be one)."""
        value = self.values.get(self.prefix + name)
        if value is None:
            value = default
        if kind is float and type(value) is int:
            value = float(value)
        if value is None or type(value) is not kind:
            found = "nothing" if value is None else repr(value)[:40]
            raise ValueError(f"its {self.prefix}{name} is {found}: expected {WORDS[kind]}")
        return value

    def expect(self, name: str, *known: Any) -> None:
        """ValueError where a value is none of the known ones; it may be missing."""
        value = self.values.get(self.prefix + name)
        if value is not None and value not in known:
            raise ValueError(
                f"its {self.prefix}{name} is {str(value)[:60]!r}, which is not known here "
                f"(known: {', '.join(map(str, known)) or 'none'})"
            )


def config_of_hub(values: Mapping[str, Any]) -> GPTConfig:
    """The shape that HuggingFace's config.json tells; ValueError for an architecture not known."""
    facts = _Facts(values)
    kind = values.get("model_type")
    if kind == "gpt2":
        facts.expect("activation_function", "gelu_new", "gelu_pytorch_tanh")
        facts.expect("scale_attn_by_inverse_layer_idx", False)
        return GPTConfig(
            facts.get("n_layer", int), facts.get("n_head", int), facts.get("n_embd", int),
            facts.get("n_positions", int), facts.get("vocab_size", int),
            feed_forward=facts.get("n_inner", int, 0),
            epsilon=facts.get("layer_norm_epsilon", float, 1e-5),
            tied=facts.get("tie_word_embeddings", bool, True),
        )  # fmt: skip
    if kind not in ("llama", "mistral", "mixtral"):
        raise ValueError(f"its architecture is {kind!r}; known: gpt2, llama, mistral, mixtral")
    facts.expect("hidden_act", "silu")
    facts.expect("rope_scaling")
    rotary = values.get("rope_parameters") or {}  # where transformers has them since version 5
    if not isinstance(rotary, Mapping):
        raise ValueError(f"its rope_parameters are {str(rotary)[:40]!r}: expected names and values")
    rope = _Facts(rotary)
    rope.expect("rope_type", "default")
    rope.expect("partial_rotary_factor", 1.0)
    facts.expect("sliding_window")
    for name in ("attention_bias", "mlp_bias"):
        facts.expect(name, False)
    heads, dim = facts.get("num_attention_heads", int), facts.get("hidden_size", int)
    facts.expect("head_dim", dim // max(heads, 1))
    experts = {}
    if kind == "mixtral":
        experts = {"experts": facts.get("num_local_experts", int, 8),
                   "active": facts.get("num_experts_per_tok", int, 2)}  # fmt: skip
    return llama(
        facts.get("num_hidden_layers", int), heads, dim,
        facts.get("max_position_embeddings", int, 2048), facts.get("vocab_size", int),
        key_heads=facts.get("num_key_value_heads", int, heads),
        feed_forward=facts.get("intermediate_size", int),
        rotary_base=rope.get("rope_theta", float, facts.get("rope_theta", float, 10000.0)),
        epsilon=facts.get("rms_norm_eps", float, 1e-6),
        tied=facts.get("tie_word_embeddings", bool, False), **experts,
    )  # fmt: skip


def config_of_gguf(metadata: Mapping[str, Any], tied: bool) -> GPTConfig:
    """The shape that a GGUF file tells; tied: whether it has no matrix of the output."""
    kind = metadata.get("general.architecture")
    if kind not in ("gpt2", "llama"):
        raise ValueError(f"its architecture is {kind!r}; known: gpt2, llama")
    facts = _Facts(metadata, f"{kind}.")
    tokens = metadata.get("tokenizer.ggml.tokens")
    vocabulary = facts.get("vocab_size", int, len(tokens) if isinstance(tokens, list) else None)
    heads, dim = facts.get("attention.head_count", int), facts.get("embedding_length", int)
    shape = (facts.get("block_count", int), heads, dim, facts.get("context_length", int),
             vocabulary)  # fmt: skip
    hidden = facts.get("feed_forward_length", int)
    if kind == "gpt2":
        epsilon = facts.get("attention.layer_norm_epsilon", float, 1e-5)
        return GPTConfig(*shape, feed_forward=hidden, epsilon=epsilon, tied=tied)
    facts.expect("rope.dimension_count", dim // max(heads, 1))
    facts.expect("attention.key_length", dim // max(heads, 1))
    facts.expect("expert_count", 0)
    facts.expect("rope.scaling.type", "none")
    return llama(
        *shape, feed_forward=hidden, tied=tied,
        key_heads=facts.get("attention.head_count_kv", int, heads),
        rotary_base=facts.get("rope.freq_base", float, 10000.0),
        epsilon=facts.get("attention.layer_norm_rms_epsilon", float, 1e-5),
    )  # fmt: skip
