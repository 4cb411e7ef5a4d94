"""Train step of a GPT, minigrad against PyTorch, interleaved: `python -m tests.bench.gpt_step`.

Both do the same: forward, backward, clip at 1, AdamW with decay for matrices, the loss read at each
step. Rounds alternate, and the medians are printed with their ratio.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from minigrad import Tensor, nn
from minigrad.models.gpt import GPT, GPTConfig
from minigrad.models.train import MatrixAdamW, TrainingPlan, make_step

Step = Callable[[np.ndarray, np.ndarray], float]


def minigrad_step(config: GPTConfig) -> Step:
    """The captured step that models/gpt.py runs."""
    model = GPT(config)
    plan = TrainingPlan()
    step = make_step(model, MatrixAdamW(nn.state.get_parameters(model), plan), plan.clip)
    return lambda ids, targets: float(step(Tensor(ids), Tensor(targets)).item())


def torch_step(config: GPTConfig, threads: int) -> Step:
    """The same model with PyTorch's own attention, layer norm, cross-entropy and fused AdamW."""
    import torch
    from torch.nn import functional

    torch.set_num_threads(threads)

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            dim = config.dim
            self.ln_1, self.ln_2 = torch.nn.LayerNorm(dim), torch.nn.LayerNorm(dim)
            self.c_attn, self.proj = torch.nn.Linear(dim, 3 * dim), torch.nn.Linear(dim, dim)
            self.fc, self.out = torch.nn.Linear(dim, 4 * dim), torch.nn.Linear(4 * dim, dim)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            batch, length, dim = x.shape
            qkv = self.c_attn(self.ln_1(x)).view(batch, length, 3, config.heads, -1)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.proj(y.transpose(1, 2).reshape(batch, length, dim))
            return x + self.out(functional.gelu(self.fc(self.ln_2(x)), approximate="tanh"))

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wte = torch.nn.Embedding(config.vocabulary, config.dim)
            self.wpe = torch.nn.Embedding(config.context, config.dim)
            self.blocks = torch.nn.Sequential(*(Block() for _ in range(config.layers)))
            self.ln_f = torch.nn.LayerNorm(config.dim)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.wte(ids) + self.wpe.weight[: ids.shape[1]]
            return self.ln_f(self.blocks(x)) @ self.wte.weight.T

    model = Model()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.99), fused=True)

    def step(ids: np.ndarray, targets: np.ndarray) -> float:
        x, y = torch.from_numpy(ids).long(), torch.from_numpy(targets).long()
        optimizer.zero_grad(set_to_none=True)
        logits = model(x)
        loss = functional.cross_entropy(logits.flatten(0, 1), y.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss)

    return step


def main() -> None:
    """Parse the flags, run the rounds, print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("layers", 4), ("heads", 4), ("dim", 128), ("context", 64), ("batch", 12),
                        ("vocabulary", 65), ("rounds", 7), ("steps", 10), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    config = GPTConfig(
        layers=given.layers, heads=given.heads, dim=given.dim, context=given.context,
        vocabulary=given.vocabulary,
    )  # fmt: skip
    generator = np.random.default_rng(0)
    shape = (given.batch, given.context)
    ids = generator.integers(0, given.vocabulary, shape).astype(np.int32)
    targets = generator.integers(0, given.vocabulary, shape).astype(np.int32)
    peers = {"minigrad": minigrad_step(config)}
    try:
        peers["torch"] = torch_step(config, given.threads)
    except ImportError:
        print("PyTorch is not installed: nothing to compare with")
    times: dict[str, list[float]] = {name: [] for name in peers}
    for step in peers.values():
        for _ in range(4):
            step(ids, targets)
    for _ in range(given.rounds):
        for name, step in peers.items():
            start = time.perf_counter()
            for _ in range(given.steps):
                step(ids, targets)
            times[name].append((time.perf_counter() - start) / given.steps)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, seconds in medians.items():
        spread = f"{1e3 * min(times[name]):.2f} … {1e3 * max(times[name]):.2f}"
        print(f"{name:>10}: {1e3 * seconds:.2f} ms a step ({spread})")
    if "torch" in medians:
        print(f"torch / minigrad = {medians['torch'] / medians['minigrad']:.2f}")


if __name__ == "__main__":
    main()
