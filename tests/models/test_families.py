"""Every supported family of HuggingFace models, as random tiny models: logits and greedy text equal
those of transformers, also beyond their windows; from sharded float32 and bfloat16 files, and from
GGUF files that the package gguf has written with its own names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_judges import gguf_file_of

from minigrad import Tensor
from minigrad.models.architectures_gguf import config_of_gguf, metadata_of
from minigrad.models.architectures_hub import config_of_hub
from minigrad.models.decode import Decoder
from minigrad.models.gpt import GPT
from minigrad.models.weights_quantize import quantize_file

COUNT, CONTEXT, VOCABULARY, WINDOW = 24, 48, 61, 8
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT,
    "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 16}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0,
        "original_max_position_embeddings": 12}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"rope_parameters": LLAMA3, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", {"sliding_window": WINDOW, "head_dim": 24}),
    "mixtral": ("Mixtral", {"num_local_experts": 4}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True, "use_sliding_window": True,
                        "sliding_window": WINDOW, "max_window_layers": 1}),
    "qwen2 yarn": ("Qwen2", {"rope_parameters": YARN}),
    "qwen3": ("Qwen3", {"head_dim": 24}),
    "qwen2_moe": ("Qwen2Moe", {**EXPERTS, "shared_expert_intermediate_size": 48}),
    "qwen3_moe": ("Qwen3Moe", {**EXPERTS, "norm_topk_prob": True, "head_dim": 24}),
    "gemma2": ("Gemma2", {"head_dim": 24, "sliding_window": WINDOW, "layer_types": MIXED,
                          "attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0,
                          "query_pre_attn_scalar": 16}),
    "gemma3": ("Gemma3", {
        "head_dim": 24, "sliding_window": WINDOW, "layer_types": MIXED, "query_pre_attn_scalar": 16,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}}),
    "phi3": ("Phi3", {"sliding_window": WINDOW, "rope_parameters": {
        "rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}}),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 4}),
    "olmo2": ("Olmo2", {}),
    "gpt_neox": ("GPTNeoX", {}),
    "gpt_neox in series": ("GPTNeoX", {"use_parallel_residual": False, "rope_parameters": {
        "rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}}),
}  # fmt: skip
TOKENIZER = {
    "model": {"type": "BPE", "vocab": {chr(65 + number): number for number in range(32)},
              "merges": []},
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
}  # fmt: skip


@pytest.fixture(scope="module")
def transformers() -> Any:
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[compare]'")
    return pytest.importorskip(
        "transformers", reason="transformers is not installed: pip install transformers"
    )


def random_model(transformers: Any, name: str) -> Any:
    """A model whose every parameter matters; its matrices keep the norm of their operands."""
    import torch

    kind, more = FAMILIES[name]
    config = getattr(transformers, "Gemma3TextConfig" if kind == "Gemma3" else f"{kind}Config")
    model = getattr(transformers, f"{kind}ForCausalLM")(config(**{**SHAPE, **more})).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.add_(0.2 * noise)
            else:
                parameter.copy_(noise * 1.2 / parameter.shape[-1] ** 0.5)
    return model


def check(model: GPT, wanted: Any, ids: list[int]) -> None:
    scale = np.abs(wanted).max()
    assert scale > 0.5
    assert np.abs(model(Tensor([ids])).numpy()[0] - wanted).max() <= 2e-3 * scale


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family(name: str, transformers: Any, tmp_path: Path) -> None:
    import torch

    model = random_model(transformers, name)
    ids = np.random.default_rng(3).integers(1, VOCABULARY, COUNT).tolist()
    folder = tmp_path / "float32"
    model.save_pretrained(folder, max_shard_size="60KB")
    assert (folder / "model.safetensors.index.json").is_file()
    with torch.no_grad():
        wanted = model(torch.tensor([ids])).logits[0].numpy()
        text = model.generate(
            torch.tensor([ids]), max_new_tokens=8, do_sample=False, use_cache=False
        )[0, COUNT:].tolist()
    ours = GPT.from_pretrained(folder)
    check(ours, wanted, ids)
    assert list(ours.generate(ids, 8, temperature=0)) == text
    decoder = Decoder(ours, [ids[:10]])  # the rest token by token
    for place in range(10, COUNT):
        decoder.append([ids[place]])
    assert np.abs(decoder.logits()[0] - wanted[-1]).max() <= 2e-3 * np.abs(wanted).max()
    facts = json.loads((folder / "config.json").read_text())
    arrays = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    path = gguf_file_of(arrays, facts, tmp_path / "m.gguf")
    check(GPT.from_pretrained(path), wanted, ids)
    if "experts" not in str(list(model.state_dict())):
        (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
        quantize_file(folder, tmp_path / "q8.gguf", "Q8_0")
        got = GPT.from_pretrained(tmp_path / "q8.gguf")(Tensor([ids])).numpy()[0]
        assert np.sqrt(((got - wanted) ** 2).mean() / (wanted**2).mean()) <= 0.04
    # 16-bit weights have the same values in 32 bits
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    wide = type(model).from_pretrained(tmp_path / "half", dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = wide(torch.tensor([ids])).logits[0].numpy()
    check(GPT.from_pretrained(tmp_path / "half"), wanted, ids)


# config.json of published models, as written by versions before transformers 5
COMMON = {"num_hidden_layers": 7, "num_attention_heads": 4, "hidden_size": 64, "vocab_size": 61,
          "intermediate_size": 96, "max_position_embeddings": 8192}  # fmt: skip


@pytest.mark.parametrize(("facts", "wanted"), [
    ({"model_type": "gpt_neox", "rotary_pct": 0.25, "rotary_emb_base": 5000, "hidden_act": "gelu"},
     {"turned": 4, "rotary_base": 5000.0, "parallel": True, "norm": "layer", "tied": False}),
    ({"model_type": "gemma2", "head_dim": 32, "sliding_window": 4096, "query_pre_attn_scalar": 144,
      "attn_logit_softcapping": 50.0, "hidden_activation": "gelu_pytorch_tanh"},
     {"layer_kinds": "sfsfsfs", "window": 4096, "attention_scale": 1 / 12, "attention_cap": 50.0,
      "embedding_scale": 8.0, "tied": True, "width": 32, "activation": "geglu"}),
    ({"model_type": "gemma3_text", "rope_local_base_freq": 10000, "rope_theta": 1000000,
      "rope_scaling": None, "sliding_window": 512, "sliding_window_pattern": 6},
     {"layer_kinds": "sssssfs", "local_base": 10000.0, "rotary_base": 1e6, "query_norm": "head"}),
    ({"model_type": "llama", "rope_theta": 500000.0, "rope_scaling": {
        "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3"}},
     {"rotary_factors": (1.0, 1.0, 1.0, 1.0, 3.292, 32.0, 32.0, 32.0)}),
    ({"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 32768,
      "max_window_layers": 3, "rope_scaling": None},
     {"window": 0, "layer_kinds": "", "query_bias": True, "output_bias": False}),
    ({"model_type": "mistral"}, {"window": 4096, "layer_kinds": "sssssss"}),
    ({"model_type": "mistral", "sliding_window": None}, {"window": 0, "layer_kinds": ""}),
    ({"model_type": "smollm3", "no_rope_layers": [1, 1, 1, 0, 1, 1, 1]},
     {"layer_kinds": "fffnfff"}),
])  # fmt: skip
def test_published_shapes(facts: dict[str, Any], wanted: dict[str, Any]) -> None:
    config = config_of_hub({**COMMON, **facts})
    got = {name: getattr(config, name) for name in wanted}
    for name, value in wanted.items():
        assert got[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-3))


def test_a_factor_of_rotary_positions_is_linear_where_a_gguf_file_does_not_say() -> None:
    """As in llama.cpp, which also reads an older name of the factor."""
    plain = {"block_count": 1, "attention.head_count": 2, "embedding_length": 8, "vocab_size": 5,
             "context_length": 16, "feed_forward_length": 8}  # fmt: skip
    facts = {f"llama.{name}": value for name, value in plain.items()}
    facts["general.architecture"] = "llama"
    for more, wanted in (
        ({}, ()), ({"scaling.factor": 4.0}, (4.0, 4.0)), ({"scale_linear": 2.0}, (2.0, 2.0)),
        ({"scaling.factor": 4.0, "scaling.type": "none"}, ()), ({"scaling.factor": 0.0}, ()),
    ):  # fmt: skip
        told = {f"llama.rope.{name}": value for name, value in more.items()}
        assert config_of_gguf(facts | told, []).rotary_factors == wanted, more


def test_what_a_gguf_file_says_is_the_same_shape() -> None:
    sliding = ["sliding_attention"] * COMMON["num_hidden_layers"]
    facts = {**COMMON, "model_type": "gemma2", "sliding_window": 8, "layer_types": sliding}
    config = config_of_hub(facts)
    told = {"general.architecture": "gemma2", **metadata_of(config, "gemma2", facts)}
    assert config_of_gguf(told, []).layer_kinds == config.layer_kinds == "s" * len(sliding)
    facts = {**COMMON, "model_type": "llama", "rope_parameters": {**YARN, "truncate": False}}
    with pytest.raises(ValueError, match="its truncate 'False' is not supported"):
        metadata_of(config_of_hub(facts), "llama", facts)


@pytest.mark.parametrize(("facts", "message"), [
    ({"model_type": "phi3", "rope_scaling": {"type": "longrope"}}, "got 'longrope'"),
    ({"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2,
      "moe_intermediate_size": 8, "mlp_only_layers": [0]}, "its mlp_only_layers .* not supported"),
    ({"model_type": "gemma2", "use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ({"model_type": "gemma3"}, "its architecture 'gemma3' is not supported"),
    ({"model_type": "llama", "rope_scaling": {"type": "yarn", "factor": 0.0}}, "are invalid"),
    ({"model_type": "gpt_neox", "hidden_act": "relu"}, "its hidden_act 'relu' is not supported"),
    ({"model_type": "gpt2", "scale_attn_weights": False}, "its scale_attn_weights 'False' is not"),
    ({"model_type": "mistral", "sliding_window": 8, "layer_types": ["chunked"] * 7}, "'chunked'"),
])  # fmt: skip
def test_what_is_refused_by_name(facts: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of_hub({**COMMON, **facts})
