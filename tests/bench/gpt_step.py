"""Train step of a GPT beside PyTorch and JAX, interleaved: `python -m tests.bench.gpt_step`.

All do the same: forward, backward, clip at 1, AdamW with decay for matrices, and read the loss in
each step. Each is a process of its own that does steps on request; rounds alternate, and medians
are compared. PyTorch has the environment that suits it best (peers.py), and runs a second time
under torch.compile.

`--size medium` and `--size gpt2` are larger models; `--layers` and similar flags change single
figures. `--precision bfloat16` multiplies in bfloat16, as PyTorch's autocast does.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from minigrad.models.gpt import GPTConfig
from minigrad.models.sizing import flops_per_token
from minigrad.runtimes.cpu_limits import measured_limits
from tests.bench.measure import CALM_SECONDS, HEADER, Result, Row, as_line, restart_tuned
from tests.bench.peers import compiles, installed

Step = Callable[[np.ndarray, np.ndarray], float]

FIGURES = ("layers", "heads", "dim", "context", "length", "batch", "vocabulary", "rounds", "steps")
SIZES = {
    "small": (4, 4, 128, 64, 64, 12, 65, 7, 10),
    "medium": (6, 6, 384, 256, 256, 4, 65, 7, 3),
    "gpt2": (12, 12, 768, 1024, 256, 1, 50257, 5, 1),
}
GOALS = {"small": 1.6, "medium": 1.25, "gpt2": 1.2}  # of the ratio in float32
WARMING = 4  # steps before the first round
PEERS = ("minigrad", "torch", "torch.compile", "jax")


def minigrad_step(config: GPTConfig) -> Step:
    """The captured step that models/gpt.py runs."""
    from minigrad import Tensor, nn
    from minigrad.models.gpt import GPT
    from minigrad.models.train import MatrixAdamW, TrainingPlan, make_step

    model = GPT(config)
    plan = TrainingPlan()
    step = make_step(model, MatrixAdamW(nn.state.get_parameters(model), plan), plan.clip)
    return lambda ids, targets: float(step(Tensor(ids), Tensor(targets)).item())


def torch_step(
    config: GPTConfig, threads: int, place: str = "cpu", compiled: bool = False
) -> Step:
    """The same model with PyTorch's own attention, layer norm, cross-entropy and fused AdamW.

    place: "cpu", or "cuda" for a GPU. The forward pass is computed under autocast if the precision
    is not float32.
    """
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
            torch.nn.init.normal_(self.wte.weight, std=0.02)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.wte(ids) + self.wpe.weight[: ids.shape[1]]
            return self.ln_f(self.blocks(x)) @ self.wte.weight.T

    model = Model().to(place)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.99), fused=True)
    forward: Callable[[torch.Tensor], torch.Tensor] = torch.compile(model) if compiled else model

    mixed = config.precision == "bfloat16"

    def step(ids: np.ndarray, targets: np.ndarray) -> float:
        x, y = (torch.from_numpy(array).to(place).long() for array in (ids, targets))
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(place, dtype=torch.bfloat16, enabled=mixed):
            logits = forward(x)
            loss = functional.cross_entropy(logits.flatten(0, 1), y.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    return step


def jax_step(config: GPTConfig) -> Step:
    """The same model in JAX: one compiled function of parameters and their moments."""
    import jax
    import jax.numpy as jnp

    dim, heads, rate, decay = config.dim, config.heads, 3e-3, 0.1
    dtype = jnp.dtype(config.precision)
    normal = np.random.default_rng(0).standard_normal

    def linear(inner: int, outer: int) -> list[Any]:
        return [0.02 * normal((inner, outer), np.float32), np.zeros(outer, np.float32)]

    def norm() -> list[Any]:
        return [np.ones(dim, np.float32), np.zeros(dim, np.float32)]

    layers = [
        [norm(), linear(dim, 3 * dim), linear(dim, dim), norm(), linear(dim, 4 * dim),
         linear(4 * dim, dim)]
        for _ in range(config.layers)
    ]  # fmt: skip
    embedding = linear(config.vocabulary, dim)[0], linear(config.context, dim)[0]
    parameters = jax.tree.map(jnp.asarray, (embedding, layers, norm()))
    moments = [jax.tree.map(jnp.zeros_like, parameters) for _ in range(2)]

    def normed(x: Any, weight: Any, bias: Any) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight + bias

    def times(x: Any, weight: Any) -> Any:
        product = jnp.matmul(x.astype(dtype), weight.astype(dtype))
        return product.astype(jnp.float32)

    def loss_of(parameters: Any, ids: Any, targets: Any) -> Any:
        (table, places), layers, last = parameters
        x = table[ids] + places[: ids.shape[1]]
        for first, qkv, out, second, up, down in layers:
            y = (times(normed(x, *first), qkv[0]) + qkv[1]).astype(dtype)
            q, k, v = jnp.moveaxis(y.reshape(*ids.shape, 3, heads, dim // heads), 2, 0)
            y = jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape)
            x = x + times(y, out[0]) + out[1]
            y = jax.nn.gelu(times(normed(x, *second), up[0]) + up[1], approximate=True)
            x = x + times(y, down[0]) + down[1]
        scores = jax.nn.log_softmax(times(normed(x, *last), table.T))
        return -jnp.take_along_axis(scores, targets[..., None], -1).mean()

    def update(number: Any, parameters: Any, first: Any, second: Any, *data: Any) -> Any:
        loss, found = jax.value_and_grad(loss_of)(parameters, *data)
        size = jnp.sqrt(sum((g**2).sum() for g in jax.tree.leaves(found)))
        found = jax.tree.map(lambda g: g * jnp.minimum(1.0, 1.0 / (size + 1e-6)), found)
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, found)
        second = jax.tree.map(lambda v, g: 0.99 * v + 0.01 * g * g, second, found)

        def moved(p: Any, m: Any, v: Any) -> Any:
            m, v = m / (1 - 0.9**number), v / (1 - 0.99**number)
            kept = p * (1 - rate * decay) if p.ndim > 1 else p
            return kept - rate * m / (jnp.sqrt(v) + 1e-8)

        return loss, jax.tree.map(moved, parameters, first, second), first, second

    compiled = jax.jit(update, donate_argnums=(1, 2, 3))
    state, number = (parameters, *moments), 0

    def step(ids: np.ndarray, targets: np.ndarray) -> float:
        nonlocal state, number
        number += 1
        loss, *rest = compiled(number, *state, ids, targets)
        state = (rest[0], rest[1], rest[2])
        return float(loss)

    return step


def serve(name: str, given: argparse.Namespace) -> None:
    """A peer: for each line of input do that many steps, and answer with seconds and loss."""
    config = config_of(given)
    generator = np.random.default_rng(0)
    shape = (given.batch, given.length)
    ids = generator.integers(0, given.vocabulary, shape).astype(np.int32)
    targets = generator.integers(0, given.vocabulary, shape).astype(np.int32)
    if name == "minigrad":
        step = minigrad_step(config)
    elif name == "jax":
        step = jax_step(config)
    else:
        step = torch_step(config, given.threads, compiled=name == "torch.compile")
    for line in sys.stdin:
        loss, start = 0.0, time.perf_counter()
        for _ in range(int(line)):
            loss = step(ids, targets)
        seconds = time.perf_counter() - start
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(seconds, loss, most, flush=True)


class Peer:
    """A peer's process."""

    def __init__(self, name: str, arguments: list[str]) -> None:
        command = [sys.executable, "-m", "tests.bench.gpt_step", "--serve", name, *arguments]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.times: list[float] = []
        self.loss = self.memory = 0.0  # MiB

    def run(self, steps: int) -> float:
        """Let it do some steps; returns the seconds of one."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(steps, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline().split()
        if len(answer) != 3:
            raise SystemExit("a peer has ended; see above")
        self.loss, self.memory = float(answer[1]), float(answer[2])
        return float(answer[0]) / steps

    def end(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def read_flags(arguments: list[str]) -> argparse.Namespace:
    """The flags; figures that are not given are those of the size."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.gpt_step", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", help="among: " + ", ".join(PEERS), default=",".join(PEERS))
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--busy", action="store_true", help="keep one core busy during the run")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    for name in FIGURES:
        parser.add_argument(f"--{name}", type=int)
    given = parser.parse_args(arguments)
    for name, value in zip(FIGURES, SIZES[given.size], strict=True):
        if getattr(given, name) is None:
            setattr(given, name, value)
    return given


def config_of(given: argparse.Namespace) -> GPTConfig:
    """The model of the flags."""
    return GPTConfig(
        layers=given.layers, heads=given.heads, dim=given.dim, context=given.context,
        vocabulary=given.vocabulary, precision=given.precision,
    )  # fmt: skip


def main() -> None:
    """Parse the flags, run the rounds, print medians."""
    arguments = sys.argv[1:]
    given = read_flags(arguments)
    if given.serve:
        serve(given.serve, given)
        return
    restart_tuned(given.threads)
    missing = {"torch": not installed("torch"), "torch.compile": not compiles(),
               "jax": not installed("jax")}  # fmt: skip
    names = dict.fromkeys(["minigrad", *given.peers.split(",")])
    peers = {name: Peer(name, arguments) for name in names if not missing.get(name)}
    for peer in peers.values():
        peer.run(WARMING)
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if given.busy else None
    for _ in range(given.rounds):
        for peer in peers.values():
            time.sleep(CALM_SECONDS)
            peer.times.append(peer.run(given.steps))
    if other is not None:
        other.kill()
    for name, peer in peers.items():
        print(f"{name:>13}: {1e3 * min(peer.times):8.2f} … {1e3 * max(peer.times):.2f} ms, "
              f"loss {peer.loss:.3f}, {peer.memory:.0f} MiB at most")  # fmt: skip
        peer.end()
    title = f"GPT step {given.layers} × {given.dim}, {given.batch} × {given.length} tokens"
    flops = given.batch * given.length * flops_per_token(config_of(given), given.length)
    single = given.precision == "float32"  # the limit counts multiply-adds of float32
    row = Row(
        f"{title}, {given.precision}", print, {}, flops if single else 0.0,
        goal=GOALS[given.size] if single else None,
    )  # fmt: skip
    times = {name: peer.times for name, peer in peers.items()}
    print(HEADER, as_line(Result(row, times, [measured_limits()])), sep="\n")


if __name__ == "__main__":
    main()
