"""A server under load: `python -m tests.bench.serving`, in the package's environment with `openai`.

Starts `models/gpt.py serve` (and with --beside llama-cpp-python's server on the same GGUF file),
asks each for many greedy continuations, some at once, and prints tokens per second, the time to the
first token, and whether each continuation is the one that the request gets alone.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minigrad.models.pretrained import smollm

WORDS = ["the", "of", "and", "to", "in", "is", "that", "it", "was", "for", "on", "are", "as",
         "with", "his", "they", "at", "be", "this", "from", "have", "or", "by"]  # fmt: skip


def prompts_of(count: int, length: int) -> list[str]:
    """Texts of about so many tokens, all different from their first words on."""
    draw = random.Random(3)
    return [" ".join(draw.choices(WORDS, k=length)) for _ in range(count)]


@contextmanager
def started(command: list[str], sign: str) -> Iterator[int]:
    """A server as a process; gives its id once a line of its output has the sign."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        seen = []
        for line in process.stdout:
            seen.append(line)
            if sign in line:
                break
        else:
            raise SystemExit("".join(seen[-20:]))
        yield process.pid
    finally:
        process.terminate()
        process.wait(60)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def resident(pid: int) -> float:
    """MB of memory that a process holds."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) / 1000


async def load(
    place: str, prompts: list[str], tokens: int, together: int
) -> tuple[float, list[float], list[str], int]:
    """(seconds, seconds to each first token, texts, tokens in all) of so many requests at once."""
    import openai

    client = openai.AsyncOpenAI(base_url=place, api_key="none", max_retries=0, timeout=600)
    model = (await client.models.list()).data[0].id
    gate = asyncio.Semaphore(together)
    firsts, texts = [0.0] * len(prompts), [""] * len(prompts)
    counts = [0] * len(prompts)

    async def ask(number: int) -> None:
        async with gate:
            begun = time.perf_counter()
            stream: Any = await client.completions.create(
                model=model, prompt=prompts[number], max_tokens=tokens, temperature=0, stream=True
            )
            async for part in stream:
                if part.choices and part.choices[0].text:
                    counts[number] += 1
                    firsts[number] = firsts[number] or time.perf_counter() - begun
                    texts[number] += part.choices[0].text

    begun = time.perf_counter()
    await asyncio.gather(*map(ask, range(len(prompts))))
    took = time.perf_counter() - begun
    await client.close()
    return took, sorted(firsts), texts, sum(counts)


def main() -> None:
    """Measure as the flags say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--checkpoint", help="a GGUF file; SmolLM2 if not given")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--at", default="1,4,8,16", help="how many at once")
    parser.add_argument("--prompt", type=int, default=32, help="words")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--beside", action="store_true", help="llama-cpp-python's server, too")
    flags = parser.parse_args()
    path, levels = flags.checkpoint or str(smollm()), [int(n) for n in flags.at.split(",")]
    slots = 1 << (max(levels) - 1).bit_length()
    prompts = prompts_of(flags.requests, flags.prompt)
    context = 64 * -(-(flags.prompt + flags.tokens + 64) // 64) * 2
    ports = free_port(), free_port()
    ours = [sys.executable, "-u", "-m", "minigrad.models.gpt", "serve", "--checkpoint", path,
            "--port", str(ports[0]), "--slots", str(slots), "--context", str(context)]  # fmt: skip
    theirs = [sys.executable, "-m", "llama_cpp.server", "--model", path, "--port", str(ports[1]),
              "--n_ctx", str(context), "--n_threads", str(os.cpu_count()), "--verbose", "False",
              "--interrupt_requests", "False"]  # fmt: skip
    servers = [("minigrad", ours, "serving ", ports[0])]
    if flags.beside:
        servers.append(("llama.cpp", theirs, "Uvicorn running", ports[1]))
    alone: dict[str, list[str]] = {}
    for together in levels:
        for name, command, sign, port in servers:
            begun = time.perf_counter()
            with started(command, sign) as pid:
                ready = time.perf_counter() - begun
                place, before = f"http://127.0.0.1:{port}/v1", resident(pid)
                took, firsts, texts, count = asyncio.run(
                    load(place, prompts, flags.tokens, together)
                )
                alone.setdefault(name, texts)
                same = sum(a == b for a, b in zip(texts, alone[name], strict=True))
                print(
                    f"{name:10} {together:2} at once: {count / took:7.1f} tokens/s, first token "
                    f"p50 {firsts[len(firsts) // 2] * 1e3:6.0f} ms, "
                    f"p95 {firsts[int(len(firsts) * 0.95)] * 1e3:6.0f} ms; {same} of {len(texts)} "
                    f"as {levels[0]} at once; {before:.0f} → {resident(pid):.0f} MB; "
                    f"ready after {ready:.0f} s", flush=True,
                )  # fmt: skip


if __name__ == "__main__":
    main()
