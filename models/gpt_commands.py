"""What `python models/gpt.py` can be told to do: train, sample."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from minigrad import Tensor, nn
from minigrad.errors import MinigradError
from minigrad.models import checkpoint, console
from minigrad.models.errors import InputError
from minigrad.models.gpt import GPT, GPTConfig
from minigrad.models.metrics import Metrics, save_curves
from minigrad.models.text import Windows, load_text, split
from minigrad.models.tokenizer import CharacterTokenizer
from minigrad.models.train import TrainingPlan, parameter_count, train_language_model


def save_checkpoint(path: Path, model: GPT, tokenizer: CharacterTokenizer) -> None:
    """Weights under GPT-2's names; config and tokenizer in the metadata of the same file."""
    metadata = {"config": json.dumps(asdict(model.config)), "tokenizer": tokenizer.to_json()}
    checkpoint.save(path, nn.state.get_state_dict(model), metadata)


def load_checkpoint(path: Path) -> tuple[GPT, CharacterTokenizer]:
    """What `save_checkpoint` wrote; InputError where the file is damaged or something else."""
    tensors, metadata = checkpoint.load(path)
    try:
        config = GPTConfig(**json.loads(metadata["config"]))
        tokenizer = CharacterTokenizer.from_json(metadata["tokenizer"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is no checkpoint of models/gpt.py: {error}") from None
    model = GPT(config)
    try:
        nn.state.load_state_dict(model, tensors)
    except (MinigradError, KeyError) as error:
        raise InputError(f"{path} does not fit its own config: {error}") from None
    return model, tokenizer


def parser() -> argparse.ArgumentParser:
    """The flags of the commands `train` (also when no command is given) and `sample`."""
    top = argparse.ArgumentParser(
        description="Train a GPT on text, or let one write. Without a command: train.",
        formatter_class=console.Help,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="{train,sample}")

    train = commands.add_parser(
        "train", help="learn from a text", description="Train a GPT on text.",
        formatter_class=console.Help,
    )  # fmt: skip
    add, whole, number = train.add_argument, console.positive_int, console.positive_float
    add("--text", metavar="FILE", help="UTF-8 text; Shakespeare's plays if not given")
    add("--tokenizer", choices=["character"], default="character", help="what a token is")
    add("--layers", type=whole, default=4, help="blocks")
    add("--heads", type=whole, default=4, help="heads per block")
    add("--dim", type=whole, default=128, help="width of the model")
    add("--context", type=whole, default=64, help="tokens it sees")
    add("--dropout", type=console.natural_float, default=0.0, help="share that is dropped")
    add("--steps", type=whole, default=2000, help="updates")
    add("--batch", type=whole, default=12, help="windows per step")
    add("--lr", type=number, default=3e-3, help="peak; 100 steps of warm-up, cosine to a tenth")
    add("--checkpoint", metavar="FILE", default="gpt.safetensors",
        help="where the trained model goes; its loss curves go beside it")  # fmt: skip
    add("--metrics", metavar="FILE", help="JSON lines, one per step")
    console.add_common_flags(train)

    sample = commands.add_parser(
        "sample", help="let a trained model write", description="Continue a prompt.",
        formatter_class=console.Help,
    )  # fmt: skip
    add = sample.add_argument
    add("--checkpoint", metavar="FILE", default="gpt.safetensors", help="what `train` wrote")
    add("--prompt", default="\n", help="text to continue; a new line if not given")
    add("--tokens", type=whole, default=500, help="how many")
    add("--temperature", type=console.natural_float, default=0.8,
        help="0: always the likeliest token; above 1: wilder")  # fmt: skip
    add("--top-k", type=whole, help="draw from the k likeliest")
    add("--top-p", type=number, help="draw from the likeliest that make up this share")
    console.add_common_flags(sample)
    return top


def train_command(flags: argparse.Namespace) -> None:
    """`train`: ends with validation loss, a sample, the checkpoint and the curves."""
    text = load_text(flags.text)
    tokenizer = CharacterTokenizer.of(text)
    training, validation = split(tokenizer.encode_array(text))
    try:
        config = GPTConfig(flags.layers, flags.heads, flags.dim, flags.context, len(tokenizer),
                           flags.dropout)  # fmt: skip
    except ValueError as error:
        raise InputError(str(error)) from None
    path = Path(flags.checkpoint)
    checkpoint.check_writable(path)
    Tensor.manual_seed(flags.seed)
    model = GPT(config)
    print(f"{len(text):,} characters, {len(tokenizer)} of them different")
    print(f"{parameter_count(model):,} parameters")
    plan = TrainingPlan(steps=flags.steps, batch=flags.batch, lr=flags.lr, seed=flags.seed)
    with Metrics(flags.metrics) as metrics:
        loss = train_language_model(
            model,
            Windows(training, config.context, "the training part"),
            Windows(validation, config.context, "the validation part (its last tenth)"),
            plan,
            metrics,
        )
    save_checkpoint(path, model, tokenizer)
    picture = path.with_suffix(".png")
    save_curves(metrics, picture, f"GPT: {config.layers} layers, {config.dim} dims")
    print(f"\nvalidation loss {loss:.4f} nats per character\n")
    write(model, tokenizer, "\n" if "\n" in tokenizer.vocabulary else text[0], 500, 0.8, flags.seed)
    print(f"\ncheckpoint {path}\nloss curves {picture}")


def write(
    model: GPT,
    tokenizer: CharacterTokenizer,
    prompt: str,
    tokens: int,
    temperature: float,
    seed: int,
    top_k: int | None = None,
    top_p: float | None = None,
) -> None:
    """Print a continuation, each token as soon as it is drawn."""
    ids = tokenizer.encode(prompt)
    for token in model.generate(ids, tokens, temperature, top_k, top_p, seed):
        print(tokenizer.decode([token]), end="", flush=True)
    print()


def sample_command(flags: argparse.Namespace) -> None:
    """`sample`: the prompt and its continuation on standard output."""
    if not flags.prompt:
        raise InputError("--prompt is empty: give at least one character")
    if flags.top_p is not None and flags.top_p > 1:
        raise InputError(f"--top-p is {flags.top_p}: expected more than 0 and at most 1")
    model, tokenizer = load_checkpoint(Path(flags.checkpoint))
    print(flags.prompt, end="")
    write(model, tokenizer, flags.prompt, flags.tokens, flags.temperature, flags.seed,
          flags.top_k, flags.top_p)  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    """Read the command line and do what it says."""
    known = ("train", "sample", "-h", "--help")
    given = list(arguments)
    if not given or given[0] not in known:
        given.insert(0, "train")
    flags = parser().parse_args(given)
    console.apply_common_flags(flags)
    {"train": train_command, "sample": sample_command}[flags.command](flags)
