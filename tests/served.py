"""A tiny model with large weights, and a server for it on loopback."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from minigrad import Tensor
from minigrad.models.bpe import BytePairTokenizer
from minigrad.models.engine import Engine
from minigrad.models.gpt import GPT
from minigrad.models.gpt_config import llama

SPECIAL = {"<|im_start|>": 256, "<|im_end|>": 257}
CONTEXT = 256


def tokenizer() -> BytePairTokenizer:
    tokens = [bytes([byte]) for byte in range(256)] + [name.encode() for name in SPECIAL]
    return BytePairTokenizer(tokens, [], special=SPECIAL)


def strong_model(context: int = CONTEXT, **more: Any) -> GPT:
    """A model with weights so large that every position matters."""
    Tensor.manual_seed(2)
    config = llama(2, 4, 32, context, 258, key_heads=2, feed_forward=64, tied=True, **more)
    model = GPT(config)
    with Tensor.no_grad():
        for block in model.h:
            for layer in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
                layer.weight.assign(layer.weight * 8).realize()
        model.wte.weight.assign(model.wte.weight * 20).realize()
    return model


@contextmanager
def serving(engine: Engine, key: str | None = None) -> Iterator[str]:
    """http://127.0.0.1:PORT of a started engine, which is not closed at the end."""
    pytest.importorskip("starlette", reason="starlette is not installed: pip install '.[serve]'")
    uvicorn: Any = pytest.importorskip(
        "uvicorn", reason="uvicorn is not installed: pip install '.[serve]'"
    )
    from minigrad.models.server import Limits, Server, hosts_of

    engine.close = lambda: None  # type: ignore[method-assign]  # others go on with it
    app = Server(engine, tokenizer(), "tiny", Limits(20_000, 100, key), hosts_of("127.0.0.1")).app
    config = uvicorn.Config(app, port=0, log_level="warning")
    listening = config.bind_socket()
    listening.listen()  # so that clients wait until the server has started
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        del engine.close
