"""Whatever the script is given: one plain sentence, a status other than 0, no traceback.

An earlier checkpoint is never damaged.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from child import ended

from minigrad import Tensor, nn
from minigrad.models import gpt_commands
from minigrad.models.errors import InputError
from minigrad.models.gpt import GPT, GPTConfig
from minigrad.models.gpt_checkpoint import load_checkpoint, save_checkpoint
from minigrad.models.parallel import tracing
from minigrad.models.tokenizer import CharacterTokenizer
from minigrad.models.train import TrainingPlan, TrainingRun

from .test_command_line import end_of

SCRIPT = Path(__file__).resolve().parents[2] / "models" / "gpt.py"
TINY = GPTConfig(layers=1, heads=2, dim=16, context=8, vocabulary=11)
WORDS = "to be, or not to be: that is the question.\n" * 50


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A complete checkpoint."""
    path = tmp_path_factory.mktemp("good") / "gpt.safetensors"
    tokenizer = CharacterTokenizer("abcdefghijk")
    model = GPT(TINY)
    save_checkpoint(path, model, tokenizer, TrainingRun(model, TrainingPlan()))
    return path.read_bytes()


COMMAND_LINES: list[tuple[list[str], int, str]] = [
    (["--unknown"], 2, "unrecognized arguments: --unknown (see"),
    (["--stepps", "9"], 2, "unrecognized arguments: --stepps 9; did you mean --steps? (see"),
    (["walk"], 2,
     "unknown command 'walk': expected train, sample, chat, inspect, quantize or serve"),
    (["--trace", "t.json"], 1,
     "--trace needs several devices: also give --dp, --sp, --tp, --ep or --pp"),
    (["sampel", "--tokens", "9"], 2, "unknown command 'sampel': expected train, sample, chat,"),
    (["sample", "--unknown", "3"], 2, "unrecognized arguments: --unknown 3"),
    (["--steps", "0"], 2, "argument --steps: expected at least 1, got 0"),
    (["--steps", "many"], 2, "argument --steps: invalid int value: 'many'"),
    (["--lr", "nan"], 2, "argument --lr: expected a number above 0, got nan"),
    (["--steps"], 2, "argument --steps: expected one argument"),
    (["sample", "--temperature", "-0.5"], 2, "expected a number of at least 0, got -0.5"),
    (["sample", "--temperature", "nan"], 2, "expected a number of at least 0, got nan"),
    (["sample", "--top-k", "0"], 2, "argument --top-k: expected at least 1, got 0"),
    (["sample", "--top-p", "1.5"], 2, "--top-p: expected at most 1, got 1.5"),
    (["sample", "--temperature", "1e36", "--checkpoint", "missing"], 1, "cannot read missing"),
    (["quantize", "missing", "no/x.gguf"], 1, "cannot write no/x.gguf: there is no folder"),
    (["quantize", "missing", "."], 1, "cannot write .: it is a folder"),
    (["sample", "--tokens", "-3"], 2, "argument --tokens: expected at least 1, got -3"),
    (["sample", "--prompt", ""], 2, "--prompt: expected at least one character, got ''"),
    (["sample", "--prompt", "xyz", "--tokens", "1"], 1, "'x' is not in the vocabulary of 11"),
    (["--text", "missing.txt"], 1, "cannot read missing.txt: No such file"),
    (["--text", "."], 1, "cannot read .: Is a directory"),
    (["--text", "empty.txt"], 1, "empty.txt contains no text"),
    (["--text", "binary.txt"], 1, "binary.txt is not UTF-8 text"),
    (["--text", "short.txt"], 1, "too few for a context of 64"),
    (["--text", "text.txt", "--context", "500"], 1, "too few for a context of 500"),
    (["--text", "text.txt", "--heads", "3"], 1, "dim 128 is not a multiple of heads 3"),
    (["--text", "text.txt", "--dropout", "1"], 1, "dropout: expected at least 0 and less"),
    (["--text", "text.txt", "--checkpoint", "no/where"], 1, "there is no folder"),
    (["--text", "text.txt", "--checkpoint", "."], 1, "it is a folder"),
    (["--text", "text.txt", "--metrics", "no/where"], 1, "cannot write --metrics no/where"),
    (["--text", "text.txt", "--metrics", "ring"], 1, "write --metrics ring: Too many levels"),
    (["quantize", "ring", "q.gguf"], 1, "cannot read ring: Too many levels of symbolic links"),
    (["--text", "ring"], 1, "cannot read ring: Too many levels of symbolic links"),
    (["--text", "text.txt", "--checkpoint", "ring"], 1, "its links form a ring"),
    (["--text", "text.txt", "--accumulate", "5"], 1, "12 is not a multiple of --accumulate 5"),
    (["--text", "text.txt", "--recompute", "--dropout", "0.5"], 1, "would drop different values"),
    (["--text", "text.txt", "--batch", "1", "--dp", "2"], 1, "--batch 1 is too small for --dp 2"),
    (["--text", "text.txt", "--tp", "2", "--key-heads", "1"], 1, "leave --key-heads out"),
    (["--text", "text.txt", "--tp", "3", "--heads", "3", "--dim", "96", "--architecture", "llama"],
     1, "--tp 3 with feed-forward width 256"),
    (["--text", "text.txt", "--sp", "2", "--dropout", "0.5"], 1, "leave --dropout at 0"),
    (["--text", "text.txt", "--explain-values"], 1, "has no effect without --explain"),
    (["--text", "text.txt", "--pp", "2", "--explain", "e.html"], 1, "leave out --pp"),
    (["--device", "TPU"], 1, "unknown device 'TPU'"),
    (["sample", "--checkpoint", "missing"], 1, "cannot read missing: No such file"),
    (["sample", "--checkpoint", "text.txt"], 1, "text.txt is damaged, or not a safetensors file"),
    (["sample", "--checkpoint", "foreign"], 1, "foreign is not a checkpoint of models/gpt.py"),
    (["--resume", "missing"], 1, "cannot read missing: No such file"),
    (["--resume", "text.txt"], 1, "text.txt is damaged, or not a safetensors file"),
    (["--resume", "foreign"], 1, "foreign is not a checkpoint of models/gpt.py"),
    (["--resume", "gpt.safetensors", "--text", "text.txt"], 1, "was trained on a different text"),
]


@pytest.mark.parametrize(("arguments", "status", "message"), COMMAND_LINES)
def test_a_command_line(
    arguments: list[str], status: int, message: str, good: bytes, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text(" \n")
    Path("short.txt").write_text("short")
    Path("text.txt").write_text(WORDS)
    Path("binary.txt").write_bytes(b"abc\xff\xfe")
    Path("ring").symlink_to("ring")
    Path("gpt.safetensors").write_bytes(good)
    nn.state.safe_save({"x": Tensor([1.0])}, Path("foreign"))
    found, _, said = end_of(gpt_commands, arguments, capsys)
    assert (found, said.count("\n")) == (status, 1)
    assert said.startswith("script" if status == 2 else "script: ")
    assert message in said
    assert Path("gpt.safetensors").read_bytes() == good


def header(raw: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def with_header(raw: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    entries, values = header(raw)
    change(entries["__metadata__"])
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + values


def config(**values: Any) -> Callable[[bytes], bytes]:
    """Another config, in a file without a checksum, as another program might write it."""

    def change(metadata: dict[str, Any]) -> None:
        metadata.pop("crc32")
        metadata["config"] = json.dumps({**json.loads(metadata["config"]), **values})

    return lambda raw: with_header(raw, change)


def flipped(place: float) -> Callable[[bytes], bytes]:
    def change(raw: bytes) -> bytes:
        where = int(len(raw) * place)
        return raw[:where] + bytes([raw[where] ^ 4]) + raw[where + 1 :]

    return change


def texts(**values: str) -> Callable[[bytes], bytes]:
    def change(metadata: dict[str, Any]) -> None:
        metadata.pop("crc32")
        metadata.update(values)

    return lambda raw: with_header(raw, change)


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda raw: b"", "or not a safetensors file"),
    "half": (lambda raw: raw[: len(raw) // 2], "or not a safetensors file"),
    "a byte short": (lambda raw: raw[:-1], "or not a safetensors file"),
    "a byte long": (lambda raw: raw + b"\0", "or not a safetensors file"),
    "zeros": (lambda raw: bytes(len(raw)), "or not a safetensors file"),
    "a flipped bit in the values": (flipped(0.9), "does not match its checksum"),
    "a flipped bit in the middle": (flipped(0.6), "does not match its checksum"),
    "huge": (config(dim=10**9, heads=1), "does not match its own config"),
    "more context": (config(context=10**12), "does not match its own config"),
    "more layers": (config(layers=10**9), "does not match its own config"),
    "a word": (config(layers="one"), "GPTConfig(layers='one')"),
    "negative": (config(dim=-16), "dim: expected at least 1, got -16"),
    "not finite": (config(dropout=float("nan")), "dropout: expected at least 0 and less tha"),
    "unknown": (config(colour=3), "colour"),
    "no object": (texts(config="[1]"), "its config is not a JSON object: [1]"),
    "no JSON": (texts(config="{"), "is not a checkpoint of models/gpt.py"),
    "deep": (texts(config="[" * 100_000), "is not a checkpoint of models/gpt.py"),
    "tokenizer": (texts(tokenizer="{}"), "the stored tokenizer is damaged"),
    "pieces": (
        texts(tokenizer=json.dumps({"kind": "sentencepiece", "tokens": ["a", 5], "prefix": True,
                                    "scores": [0.0, 0.0], "kinds": [1, 1], "first": None})),
        "the stored tokenizer is damaged: its tokenizer lacks lists of tokens",
    ),
    "fewer tokens": (
        texts(tokenizer=json.dumps({"kind": "character", "vocabulary": "abc"})),
        "its tokenizer has 3 tokens, but its model has a vocabulary of 11",
    ),
}


@pytest.mark.parametrize("command", ["sample", "resume"])
@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint(
    name: str, command: str, good: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, message = DAMAGES[name]
    path = tmp_path / "file"
    path.write_bytes(damage(good))
    flags = ["sample", "--checkpoint"] if command == "sample" else ["--resume"]
    status, _, said = end_of(gpt_commands, [*flags, str(path)], capsys)
    assert (status, said.count("\n")) == (1, 1), said
    assert said.startswith(f"script: {path} ") and message in said
    assert path.read_bytes() == damage(good)


DIGEST = hashlib.sha256(WORDS.encode()).hexdigest()
SHAPE = {"layers": 1, "heads": 2, "dim": 16, "context": 8}
FACTS = {"step": 3, "elapsed": 1.0, "random": [0, None]}
TRAININGS: dict[str, tuple[Any, str]] = {
    "nothing": (None, "is not a checkpoint of"),
    "a list": ([], "is not a checkpoint of"),
    "no facts": ({"flags": {}, "digest": ""}, "no 'facts'"),
    "flags": ({"flags": {"steps": 1.5}, "digest": "", "facts": {}}, "its --steps is 1.5"),
    "step": ({"flags": SHAPE, "digest": DIGEST, "facts": {**FACTS, "step": "x"}}, "is damaged"),
    "no step": ({"flags": SHAPE, "digest": DIGEST, "facts": {}}, "is damaged: 'step'"),
    "random": (
        {"flags": SHAPE, "digest": DIGEST, "facts": {**FACTS, "random": [0, [1, 2]]}},
        "its random state is [1, 2]",
    ),
}


@pytest.mark.parametrize("name", TRAININGS)
def test_a_damaged_training_state(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training, message = TRAININGS[name]
    path, text, tokenizer = tmp_path / "file", tmp_path / "text.txt", CharacterTokenizer.of(WORDS)
    model = GPT(replace(TINY, vocabulary=len(tokenizer)))
    save_checkpoint(path, model, tokenizer, TrainingRun(model, TrainingPlan()))
    path.write_bytes(texts(training=json.dumps(training))(path.read_bytes()))
    text.write_text(WORDS)
    flags = ["--resume", str(path), "--text", str(text)]
    status, _, said = end_of(gpt_commands, flags, capsys)
    assert (status, said.count("\n")) == (1, 1) and message in said, said


def limited(size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


SMALL = ("--text", "text.txt", "--layers", "1", "--heads", "2", "--dim", "64", "--context", "8",
         "--batch", "2", "--steps", "2")  # fmt: skip


def test_a_full_disk_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error named no file."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nn.state, "write_atomically", full)
    wanted = pytest.raises(InputError, match=r"cannot write --trace .*t.json: No space left")
    with wanted, tracing.traced(tmp_path / "t.json"):
        pass


@pytest.mark.parametrize(
    ("flags", "size", "message"),
    [((), 200_000, "cannot write gpt.safetensors: File too large"),
     (("--metrics", "m.jsonl"), 100, "cannot write --metrics m.jsonl: File too large")],
)  # fmt: skip
def test_a_full_disk(
    flags: tuple[str, ...], size: int, message: str, good: bytes, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text(WORDS)
    (tmp_path / "gpt.safetensors").write_bytes(good)
    result = ended(SCRIPT, *SMALL, "--overwrite", *flags, cwd=tmp_path, preexec_fn=limited(size))
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr == f"{SCRIPT}: {message}\n"
    assert (tmp_path / "gpt.safetensors").read_bytes() == good
    left = {path.name for path in tmp_path.iterdir()} - {"m.jsonl"}
    assert left == {"text.txt", "gpt.safetensors"}  # no temporary file is left
    load_checkpoint(GPT, tmp_path / "gpt.safetensors")


@pytest.mark.parametrize("script", [["sizing.py", "gpt3"], ["mlp.py", "--neuron"]])
def test_a_reader_that_closes_the_pipe(script: list[str]) -> None:
    """With `… | head` the script ends without a message."""
    reads, writes = os.pipe()
    os.close(reads)
    with open(writes, "wb") as pipe:
        result = subprocess.run(
            [sys.executable, SCRIPT.with_name(script[0]), *script[1:]], stdout=pipe,
            stderr=subprocess.PIPE, text=True, timeout=60,
        )  # fmt: skip
    assert (result.returncode, result.stderr) == (128 + signal.SIGPIPE, "")
