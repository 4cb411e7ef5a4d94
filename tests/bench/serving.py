"""A server under load: `python -m tests.bench.serving`.

Starts `models/gpt.py serve`, requests many greedy continuations, some at once, and prints tokens
per second, the time to the first token, whether each continuation is the one that the request gets
alone, and the server's memory at the beginning and after each quarter of the requests (--requests
1000 --at 8: it does not grow). --speculate 0,3 --again: one server for each value, and prompts that
contain text to quote.

Requests at once begin together, and their prompts are read one after the other: the last of n waits
for n prompts, whatever the server does. --steady: of n, n − 1 are long and keep running, and the
measured requests come one by one.

--goals: the server's promises, one line each and whether it is kept; status 1 if one is not (about
four minutes). With MINIGRAD_INT8=1 vectors' numbers have one byte, as in llama.cpp, instead of two.

--beside PYTHON: also llama.cpp's server, with as many slots and on the same file. PYTHON is an
interpreter that has the package `xllamacpp` (`python -m venv L && L/bin/pip install xllamacpp`,
then --beside L/bin/python); without it, the peer is left out, with a message. The servers get their
requests in turn, --rounds times; figures are medians of the rounds. --checkpoint: the file, best in
Q4_0, which llama.cpp rearranges for its fastest code.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from minigrad.models.pretrained import smollm
from minigrad.nn.gguf import gguf_load
from minigrad.runtimes.cpu_limits import measured_limits
from minigrad.runtimes.host import host
from minigrad.settings import flag

LONG = 100  # tokens of a request that only keeps a server busy
WORDS = ["the", "of", "and", "to", "in", "is", "that", "it", "was", "for", "on", "are", "as",
         "with", "his", "they", "at", "be", "this", "from", "have", "or", "by"]  # fmt: skip


LLAMA = """
import sys, threading
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.port, params.n_parallel, each, threads = map(int, sys.argv[2:])
params.n_ctx = each * params.n_parallel
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
params.cache_ram_mib = 0
server = xllamacpp.Server(params)
print("serving", server.listening_address, flush=True)
threading.Event().wait()
"""


@dataclass
class Round:
    """Results of a server's requests. took: seconds; firsts: seconds to each first token."""

    took: float
    firsts: list[float]
    texts: list[str]
    tokens: int
    held: list[float]  # MB after each quarter of the requests


@dataclass
class Server:
    """A running server. alone: the texts of its first round, at the lowest level."""

    name: str
    port: int
    pid: int
    alone: Sequence[str] = ()
    rounds: list[Round] = field(default_factory=list)


def prompts_of(count: int, length: int) -> list[str]:
    """Texts of about `length` tokens, all different from their first words on."""
    draw = random.Random(3)
    return [" ".join(draw.choices(WORDS, k=length)) for _ in range(count)]


@contextmanager
def started(command: list[str], sign: str) -> Iterator[int]:
    """A server process; yields its id once a line of its output contains `sign`."""
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


class Heard(asyncio.Protocol):
    """Collects what a server sends, with times, until the server says that this is all."""

    def __init__(self) -> None:
        self.parts = list[tuple[float, bytes]]()
        self.ended = asyncio.get_running_loop().create_future()
        self.tokens = 0  # the server's count, known after `pieces`

    def data_received(self, data: bytes) -> None:
        """Called by asyncio with a part of the answer."""
        self.parts.append((time.perf_counter(), data))
        if b"[DONE]" in data:
            self.connection_lost()

    def connection_lost(self, error: Exception | None = None) -> None:
        """Called by asyncio at the end."""
        if not self.ended.done():
            self.ended.set_result(None)

    def pieces(self) -> list[tuple[float, str]]:
        """The pieces of the text and their times; a piece may have several tokens."""
        if not self.parts or not self.parts[0][1].startswith(b"HTTP/1.1 200 "):
            raise SystemExit(b"".join(data for _, data in self.parts).decode() or "no answer")
        found, rest, whole = list[tuple[float, str]](), b"", False
        for when, data in self.parts:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if line.startswith(b"data: {"):
                    event = json.loads(line[6:])
                    found += [(when, one["text"]) for one in event["choices"] if one["text"]]
                    self.tokens = (event.get("usage") or {}).get("completion_tokens", 0)
                whole |= line.startswith(b"data: [DONE]")
        if not whole:
            raise SystemExit("a server has closed a connection before the end of its answer")
        return found


async def heard(port: int, prompt: str, tokens: int) -> Heard:
    """A greedy continuation, by a request of its own.

    The protocol is implemented here, and the answer is read when all is over, because the server
    shares its processors with the program that measures it. `openai`'s client would take 0.4 ms of
    a processor per token, asyncio's streams 0.09, this 0.05, reading included.
    """
    body = json.dumps({"prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True,
                       "stream_options": {"include_usage": True}})  # fmt: skip
    head = ("POST /v1/completions HTTP/1.1", "Host: 127.0.0.1", "Connection: close",
            "Content-Type: application/json", f"Content-Length: {len(body)}")  # fmt: skip
    transport, answer = await asyncio.get_running_loop().create_connection(
        Heard, "127.0.0.1", port
    )
    try:
        transport.write("\r\n".join([*head, "", body]).encode())
        await answer.ended
    finally:
        transport.close()
    return answer


async def load(
    server: Server, prompts: list[str], tokens: int, together: int, steady: bool = False
) -> Round:
    """A round of all prompts, `together` at once; steady: one at a time, beside others that go on.
    """
    gate = asyncio.Semaphore(1 if steady else together)
    answers, done, held = dict[int, tuple[float, Heard]](), 0, list[float]()

    async def keep_busy(number: int) -> None:
        while True:
            await heard(server.port, f"{number}", LONG)

    async def ask(number: int) -> None:
        nonlocal done
        async with gate:
            begun = time.perf_counter()
            answers[number] = begun, await heard(server.port, prompts[number], tokens)
        done += 1
        if done * 4 // len(prompts) > len(held):
            held.append(resident(server.pid))

    others = [asyncio.create_task(keep_busy(n)) for n in range(together - 1 if steady else 0)]
    begun = time.perf_counter()
    await asyncio.gather(*map(ask, range(len(prompts))))
    took = time.perf_counter() - begun
    for other in others:
        other.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    texts, firsts, count = list[str](), list[float](), 0
    for number in range(len(prompts)):
        asked, answer = answers[number]
        pieces = answer.pieces()
        texts.append("".join(text for _, text in pieces))
        firsts += [when - asked for when, _ in pieces[:1]]
        count += answer.tokens
    return Round(took, sorted(firsts), texts, count, held)


def has_llama(python: str) -> bool:
    """Whether an interpreter can start llama.cpp's server; says so if it cannot."""
    found = subprocess.run([python, "-c", "import xllamacpp"], capture_output=True).returncode == 0
    if not found:
        print(f"{python} has no xllamacpp: llama.cpp's server is left out")
    return found


def report(server: Server, together: int, lowest: int) -> None:
    """Print a line about the rounds of one level."""
    rates = [one.tokens / one.took for one in server.rounds]
    firsts = sorted(first for one in server.rounds for first in one.firsts)
    texts = server.rounds[-1].texts
    same = sum(a == b for a, b in zip(texts, server.alone, strict=True))
    spread = f" ({min(rates):.1f} … {max(rates):.1f})" if len(rates) > 1 else ""
    print(
        f"{server.name:10} {together:2} at once: {statistics.median(rates):7.1f} tokens/s{spread}, "
        f"first token p50 {firsts[len(firsts) // 2] * 1e3:6.0f} ms, "
        f"p95 {firsts[int(len(firsts) * 0.95)] * 1e3:6.0f} ms; {same} of {len(texts)} as {lowest} "
        f"at once; {', '.join(f'{size:.0f}' for size in server.rounds[-1].held)} MB", flush=True,
    )  # fmt: skip


def limit(path: str, prompt: int, tokens: int) -> float:
    """The machine's tokens a second, now, if it did nothing but the model's multiply-adds.

    Of a request, each token but the prompt's last goes through all matrices, the new ones also
    through the last matrix. A vector's number has two bytes, or one (`MINIGRAD_INT8=1`, as in
    llama.cpp; see `minigrad/nn/quantized.py`).
    """
    _, tensors = gguf_load(path)
    sizes = {name: math.prod(t.shape) for name, t in tensors.items() if len(t.shape) == 2}
    table = sizes.pop("token_embd.weight")
    last = sizes.pop("output.weight", table)
    count = (prompt - 1 + tokens) * sum(sizes.values()) + tokens * last
    lanes = host().vector_bytes  # bytes that one instruction multiplies by bytes of a vector
    return tokens * measured_limits().vectors * lanes / ((1 if flag("INT8") == 1 else 2) * count)


def goals(server: Server, path: str, tokens: int) -> bool:
    """Whether the server keeps its promises: 200 requests, 1,000 requests, long prompts."""
    kept = True

    def say(holds: bool, what: str) -> None:
        nonlocal kept
        kept &= holds
        print(f"{'reached' if holds else 'MISSED '} {what}", flush=True)

    def asked(prompts: list[str], together: int, steady: bool = False) -> Round:
        return asyncio.run(load(server, prompts, tokens, together, steady))

    several, rates, most = prompts_of(200, 32), dict[int, float](), list[float]()
    for together in (1, 4, 8, 16):
        most.append(limit(path, 32, tokens))
        one = asked(several, together)
        rates[together] = one.tokens / one.took
        server.alone = server.alone or one.texts
        same = sum(a == b for a, b in zip(one.texts, server.alone, strict=True))
        say(same == len(several), f"{together} at once: {same} of 200 answers as alone, "
            f"{rates[together]:.1f} tokens/s")  # fmt: skip
    fastest = max(most[2:])  # before and after 8 at once, as a virtual machine's clock varies
    say(rates[8] >= min(3 * rates[1], 0.6 * fastest), f"8 at once: {rates[8] / rates[1]:.2f} times "
        f"one's tokens (3), or {rates[8] / fastest:.0%} of the {fastest:.0f} tokens/s that "
        "multiply-adds alone would allow (60 %)")  # fmt: skip
    held = asked(prompts_of(1000, 32), 8).held
    say(held[-1] <= 1.02 * held[0], f"1,000 requests: {', '.join(f'{mb:.0f}' for mb in held)} MB "
        "after each quarter (1.02 times the first)")  # fmt: skip
    long = prompts_of(24, 256)
    late = [one.firsts[int(len(long) * 0.95)] for one in (asked(long, 1), asked(long, 8, True))]
    say(late[1] <= 2 * late[0], f"prompts of 256: first token p95 {late[0] * 1e3:.0f} ms, while 7 "
        f"others go on {late[1] * 1e3:.0f} ms, {late[1] / late[0]:.2f} times (2)")  # fmt: skip
    return kept


def main() -> None:
    """Measure as the flags say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--checkpoint", help="a GGUF file (default: SmolLM2)")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--at", default="1,4,8,16", help="numbers of concurrent requests")
    parser.add_argument("--slots", type=int, help="slots of the server (default: the largest --at)")
    parser.add_argument("--prompt", type=int, default=32, help="words per prompt")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--speculate", default="3", help="--speculate of the server, or of several")
    parser.add_argument("--again", action="store_true", help="repeat the words of each prompt")
    parser.add_argument("--steady", action="store_true", help="one at a time, beside long ones")
    parser.add_argument("--goals", action="store_true", help="check the performance goals")
    parser.add_argument("--beside", metavar="PYTHON",
                        help="also llama.cpp's server (see the top of this file)")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=1)
    flags = parser.parse_args()
    if flags.goals:
        flags.at, flags.prompt = "1,16", 256
    path, levels = flags.checkpoint or str(smollm()), [int(n) for n in flags.at.split(",")]
    slots = flags.slots or 1 << (max(levels) - 1).bit_length()
    prompts = prompts_of(flags.requests, flags.prompt)
    if flags.again:
        halves = prompts_of(flags.requests, flags.prompt // 2)
        prompts = [f"{half} {half}" for half in halves]
    context = 64 * -(-(flags.prompt + flags.tokens + 64) // 64) * 2
    commands = [
        (f"minigrad {each}", "-m", "minigrad.models.gpt", "serve", "--checkpoint", path, "--port",
         "PORT", "--slots", str(slots), "--context", str(context), "--speculate", each)
        for each in flags.speculate.split(",")
    ]  # fmt: skip
    programs = [sys.executable] * len(commands)
    if flags.beside and has_llama(flags.beside):
        threads = str(os.cpu_count())
        commands.append(("llama.cpp", "-c", LLAMA, path, "PORT", str(slots), str(context), threads))
        programs.append(flags.beside)
    with ExitStack() as stack:
        servers = []
        for program, (name, *command) in zip(programs, commands, strict=True):
            port, begun = free_port(), time.perf_counter()
            command = [str(port) if word == "PORT" else word for word in command]
            pid = stack.enter_context(started([program, "-u", *command], "serving "))
            servers.append(Server(name, port, pid))
            print(f"{name}: ready after {time.perf_counter() - begun:.0f} s, "
                  f"{resident(pid):.0f} MB", flush=True)  # fmt: skip
        if flags.goals:
            sys.exit(not all(goals(server, path, flags.tokens) for server in servers))
        for together in levels:
            for server in servers * flags.rounds:
                one = asyncio.run(load(server, prompts, flags.tokens, together, flags.steady))
                server.rounds.append(one)
                server.alone = server.alone or one.texts
            for server in servers:
                report(server, together, levels[0])
                server.rounds.clear()


if __name__ == "__main__":
    main()
