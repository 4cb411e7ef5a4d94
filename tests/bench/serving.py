"""A server under load: `python -m tests.bench.serving`, in the package's environment with `openai`.

Starts `models/gpt.py serve` (and with --beside llama-cpp-python's server on the same GGUF file),
asks each for many greedy continuations, some at once, and prints tokens per second, the time to the
first token, whether each continuation is the one that the request gets alone, and the server's
memory at the beginning and after each quarter of the requests (--requests 1000 --at 8: it stays).
--speculate 0,3 --again: a server for each, and prompts that have something to quote.
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
    place: str, prompts: list[str], tokens: int, together: int, pid: int
) -> tuple[float, list[float], list[str], int, list[float]]:
    """Of so many requests at once, to a process.

    (seconds, seconds to each first token, texts, tokens in all, MB after each quarter of them)
    """
    import openai

    client = openai.AsyncOpenAI(base_url=place, api_key="none", max_retries=0, timeout=600)
    model = (await client.models.list()).data[0].id
    gate = asyncio.Semaphore(together)
    firsts, texts = [0.0] * len(prompts), [""] * len(prompts)
    counts, done, held = [0] * len(prompts), 0, list[float]()

    async def ask(number: int) -> None:
        nonlocal done
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
        done += 1
        if done * 4 // len(prompts) > len(held):
            held.append(resident(pid))

    begun = time.perf_counter()
    await asyncio.gather(*map(ask, range(len(prompts))))
    took = time.perf_counter() - begun
    await client.close()
    return took, sorted(firsts), texts, sum(counts), held


def main() -> None:
    """Measure as the flags say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--checkpoint", help="a GGUF file; SmolLM2 if not given")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--at", default="1,4,8,16", help="how many at once")
    parser.add_argument("--slots", type=int, help="as many as at once at most if not given")
    parser.add_argument("--prompt", type=int, default=32, help="words")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--speculate", default="3", help="of the server, or of several")
    parser.add_argument("--again", action="store_true", help="each prompt's words twice")
    parser.add_argument("--beside", action="store_true", help="llama-cpp-python's server, too")
    flags = parser.parse_args()
    path, levels = flags.checkpoint or str(smollm()), [int(n) for n in flags.at.split(",")]
    slots = flags.slots or 1 << (max(levels) - 1).bit_length()
    prompts = prompts_of(flags.requests, flags.prompt)
    if flags.again:
        halves = prompts_of(flags.requests, flags.prompt // 2)
        prompts = [f"{half} {half}" for half in halves]
    context = 64 * -(-(flags.prompt + flags.tokens + 64) // 64) * 2
    ports = free_port(), free_port()
    ours = [sys.executable, "-u", "-m", "minigrad.models.gpt", "serve", "--checkpoint", path,
            "--port", str(ports[0]), "--slots", str(slots), "--context", str(context)]  # fmt: skip
    theirs = [sys.executable, "-m", "llama_cpp.server", "--model", path, "--port", str(ports[1]),
              "--n_ctx", str(context), "--n_threads", str(os.cpu_count()), "--verbose", "False",
              "--interrupt_requests", "False"]  # fmt: skip
    servers = [(f"minigrad {each}", [*ours, "--speculate", each], "serving ", ports[0])
               for each in flags.speculate.split(",")]  # fmt: skip
    if flags.beside:
        servers.append(("llama.cpp", theirs, "Uvicorn running", ports[1]))
    alone: dict[str, list[str]] = {}
    for together in levels:
        for name, command, sign, port in servers:
            begun = time.perf_counter()
            with started(command, sign) as pid:
                ready = time.perf_counter() - begun
                place, before = f"http://127.0.0.1:{port}/v1", resident(pid)
                took, firsts, texts, count, held = asyncio.run(
                    load(place, prompts, flags.tokens, together, pid)
                )
                first = alone.setdefault(name.split()[0], texts)
                memory = ", ".join(f"{size:.0f}" for size in (before, *held))
                same = sum(a == b for a, b in zip(texts, first, strict=True))
                print(
                    f"{name:10} {together:2} at once: {count / took:7.1f} tokens/s, first token "
                    f"p50 {firsts[len(firsts) // 2] * 1e3:6.0f} ms, "
                    f"p95 {firsts[int(len(firsts) * 0.95)] * 1e3:6.0f} ms; {same} of {len(texts)} "
                    f"as {levels[0]} at once; {memory} MB; "
                    f"ready after {ready:.0f} s", flush=True,
                )  # fmt: skip


if __name__ == "__main__":
    main()
