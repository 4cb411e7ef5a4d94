"""Everything about a GPU in one call of less than 10 minutes: `python -m tests.bench.gpu`.

It measures the device's limits by its own kernels (opencl_limits.py); then products, rows,
elementwise work and the train step of a GPT, against PyTorch if that sees a GPU. It trains the GPT
on the device and on the CPU and compares the losses. In the rest of the time it runs tests of the
operation table, spread evenly over all of it. Its output is a part of RESULTS.md.

`--device CL:1` uses another device, `--small` sizes for an OpenCL on a CPU. The whole table is
checked by `MINIGRAD_TEST_DEVICES=CL python -m pytest tests/property tests/jit`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minigrad import Context, Tensor, jit
from minigrad.device import Device
from minigrad.graph.symbolic import ceildiv
from minigrad.models.gpt import GPTConfig

from .gpt_step import minigrad_step, torch_step
from .measure import duration
from .opencl_limits import Limits, measure_limits

Work = Callable[[], object]
ROOT = Path(__file__).resolve().parent.parent.parent
TOTAL = 560  # seconds that a call may take
TABLE = ("tests/property/test_forward.py", "tests/property/test_gradient.py")
SHARE = 40  # tests of the table in one process
ROUNDS, ROUND_SECONDS = 5, 0.2
GPT_SIZES = {"small": (4, 128, 64, 65, 12), "large": (12, 768, 1024, 50257, 4)}


@dataclass(frozen=True)
class Piece:
    """A piece of work: ours, the same in PyTorch or None, its operations and bytes."""

    name: str
    ours: Work
    peer: Work | None
    flops: float
    nbytes: float
    goal: str


def cuda() -> Any:
    """The module torch if it can use a GPU, else None."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    torch.backends.cuda.matmul.allow_tf32 = False  # float32 means float32
    return torch


def pieces(name: str, small: bool) -> Iterator[Piece]:
    """Products, rows and elementwise work."""
    generator = np.random.default_rng(0)

    def made(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape).astype(np.float32)

    def piece(
        title: str, ours: Callable[..., Any], theirs: Callable[..., Any] | None,
        arrays: Sequence[np.ndarray], flops: float, nbytes: float, goal: str,
    ) -> Piece:  # fmt: skip
        tensors = [Tensor(array, device=name).realize() for array in arrays]
        step = jit(lambda *given: ours(*given).realize())
        peer, torch = None, cuda()
        if torch is not None and theirs is not None:
            given = [torch.from_numpy(array).cuda() for array in arrays]
            peer = lambda: theirs(torch, *given)  # noqa: E731
        return Piece(title, lambda: step(*tensors), peer, flops, nbytes, goal)

    for n in (256, 512, 1024) if small else (1024, 2048, 4096):
        yield piece(
            f"product of {n}²", lambda a, b: a @ b, lambda t, a, b: a @ b, [made(n, n), made(n, n)],
            2.0 * n**3, 12.0 * n * n, "60 %",
        )  # fmt: skip
    rows, length = (2048, 1024) if small else (16384, 4096)
    x, nbytes = made(rows, length), 4.0 * rows * length
    yield piece(f"softmax of {rows} × {length}", lambda x: x.softmax(-1),
                lambda t, x: x.softmax(-1), [x], 0, 2 * nbytes, "85 %")  # fmt: skip
    yield piece(f"layer norm of {rows} × {length}", lambda x: x.layernorm(),
                lambda t, x: t.nn.functional.layer_norm(x, x.shape[1:]), [x], 0, 2 * nbytes,
                "85 %")  # fmt: skip
    yield piece(f"row sums of {rows} × {length}", lambda x: x.sum(1), lambda t, x: x.sum(1), [x],
                0, nbytes, "85 %")  # fmt: skip
    yield piece(f"sum of {rows * length}", lambda x: x.sum(), lambda t, x: x.sum(), [x], 0,
                nbytes, "85 %")  # fmt: skip
    y = made(rows, length)
    yield piece(f"gelu(x·2 + y) of {rows * length}", lambda x, y: (x * 2 + y).gelu(),
                lambda t, x, y: t.nn.functional.gelu(x * 2 + y, approximate="tanh"), [x, y], 0,
                3 * nbytes, "85 %")  # fmt: skip
    heads, tokens, dim = (4, 256, 32) if small else (32, 2048, 64)
    given = [made(1, heads, tokens, dim) for _ in range(3)]
    yield piece(
        f"causal attention, {heads} heads, {tokens} tokens, {dim} dims",
        lambda q, k, v: q.scaled_dot_product_attention(k, v, is_causal=True),
        lambda t, q, k, v: t.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True),
        given, 2.0 * heads * tokens * tokens * dim, 16.0 * heads * tokens * dim, "–",
    )  # fmt: skip


def seconds_of(work: Work, wait: Work) -> float:
    """The median of rounds, each of enqueued work and the wait for it."""
    for _ in range(3):
        work()
    wait()
    start = time.perf_counter()
    work()
    wait()
    count = max(1, min(1000, round(ROUND_SECONDS / max(time.perf_counter() - start, 1e-6))))
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(count):
            work()
        wait()
        times.append((time.perf_counter() - start) / count)
    return statistics.median(times)


def line(piece: Piece, name: str, limits: Limits) -> str:
    """Measure a piece; returns a line of the table."""
    ours = seconds_of(piece.ours, Device[name].synchronize)
    limit = max(piece.flops / limits.flops, piece.nbytes / limits.bandwidth)
    peer, ratio = "–", "–"
    if piece.peer is not None:
        theirs = seconds_of(piece.peer, cuda().cuda.synchronize)
        peer, ratio = duration(theirs), f"{theirs / ours:.2f}"
    share = f"{100 * limit / ours:.0f} %"
    cells = [piece.name, duration(ours), peer, ratio, duration(limit), share, piece.goal]
    return "| " + " | ".join(cells) + " |"


def gpt(name: str, size: str) -> tuple[str, str]:
    """A train step as a line of the table, and its first losses against those of the device CPU."""
    layers, dim, length, vocabulary, batch = GPT_SIZES[size]
    config = GPTConfig(
        layers=layers, heads=layers, dim=dim, context=length, vocabulary=vocabulary
    )
    generator = np.random.default_rng(0)
    data = [
        [generator.integers(0, vocabulary, (batch, length)).astype(np.int32) for _ in range(2)]
        for _ in range(10)
    ]
    losses = []
    for place in (name, "CPU") if size == "small" else (name,):
        Tensor.manual_seed(0)
        with Context(DEVICE=place):
            step = minigrad_step(config)
            losses.append([step(*pair) for pair in data])
            if place == name:
                ours = seconds_of(lambda s=step: s(*data[0]), Device[name].synchronize)
    peer, ratio, torch = "–", "–", cuda()
    if torch is not None:
        work = torch_step(config, 2, "cuda")
        theirs = seconds_of(lambda: work(*data[0]), torch.cuda.synchronize)
        peer, ratio = duration(theirs), f"{theirs / ours:.2f}"
    title = f"GPT step, {layers} layers, {dim} dims, {batch} × {length} tokens"
    text = f"| {title} | {duration(ours)} | {peer} | {ratio} | – | – | – |"
    if len(losses) < 2:
        return text, ""
    worst = max(abs(a - b) for a, b in zip(*losses, strict=True))
    judgement = "as on the CPU" if worst < 1e-4 else "**not as on the CPU**"
    return text, f"First ten losses of the GPT: {judgement} (they differ by at most {worst:.1e})."


def table(name: str, seconds: float) -> str:
    """Run evenly chosen tests of the operation table for this time; returns a summary."""
    environment = {**os.environ, "MINIGRAD_TEST_DEVICES": name}
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    found = subprocess.run(
        [*pytest, "--collect-only", *TABLE], cwd=ROOT, env=environment, text=True,
        capture_output=True,
    ).stdout.split("\n")  # fmt: skip
    tests = [text for text in found if "::" in text and "random_shapes" not in text]
    count = ceildiv(len(tests), SHARE)
    shares = [tests[number::count] for number in range(count)]
    end, ran, failed = time.monotonic() + seconds, 0, 0
    for share in shares:
        left = end - time.monotonic()
        if left < 10:
            break
        try:
            done = subprocess.run(
                [*pytest, "-vv", *share], cwd=ROOT, env=environment, text=True, capture_output=True,
                timeout=left,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            break
        lines = done.stdout.split("\n")
        wrong = [text for text in lines if text.startswith(("FAILED", "ERROR"))]
        if done.returncode in (0, 1):
            ran += len(share)
        else:  # the driver has ended the process: without a summary, and without the other tests
            started = [text for text in lines if text.startswith("tests/") and "::" in text]
            ran += len(started)
            last = started[-1] if started else "the start"
            wrong = [*(text for text in started if "FAILED" in text),
                     f"ENDED with {done.returncode}: {last}"]  # fmt: skip
        failed += len(wrong)
        for text in wrong:
            print(text[:200], flush=True)
    return f"Operation table: {ran} of {len(tests)} tests ran, {failed} failed."


def main() -> None:
    """The command line; see the head of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.gpu", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--device", default="CL")
    parser.add_argument("--small", action="store_true", help="use sizes for OpenCL on a CPU")
    parser.add_argument("--seconds", type=float, default=TOTAL, help="time for all measurements")
    given = parser.parse_args()
    start, name = time.monotonic(), Device.canonical(given.device)
    runtime: Any = Device[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a driver's remarks on kernels
        limits = measure_limits(name, (64 if given.small else 1024) << 20)
    driver = f"{runtime.device.platform.version}, driver {runtime.device.driver_version}"
    torch = cuda()
    peer = f"PyTorch {torch.__version__} on {torch.cuda.get_device_name()}" if torch else "no peer"
    print(f"{runtime.device.name.strip()} ({driver}); {peer}.\n"
          f"Limits measured: {limits.flops / 1e9:,.0f} GFLOP/s in float32, "
          f"{limits.bandwidth / 1e9:,.0f} GB/s.\n")  # fmt: skip
    print("| work, float32 | minigrad | PyTorch | ratio | limit | share of it | goal |\n"
          "| --- | --- | --- | --- | --- | --- | --- |", flush=True)  # fmt: skip
    for piece in pieces(name, given.small):
        print(line(piece, name, limits), flush=True)
    remarks = []
    for size in ("small",) if given.small else ("small", "large"):
        text, remark = gpt(name, size)
        print(text, flush=True)
        remarks.append(remark)
    print("\n" + "\n".join(filter(None, remarks)), flush=True)
    print(table(name, given.seconds - (time.monotonic() - start)))
    print(f"All of it took {time.monotonic() - start:.0f} s.")


if __name__ == "__main__":
    main()
