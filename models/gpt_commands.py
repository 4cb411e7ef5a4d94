"""What `python models/gpt.py` can be told to do: train, sample."""

from __future__ import annotations

import argparse
import hashlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minigrad import Tensor
from minigrad.errors import MinigradError
from minigrad.models import checkpoint, console
from minigrad.models.errors import InputError
from minigrad.models.gpt import GPT, GPTConfig
from minigrad.models.gpt_checkpoint import (
    Resumable,
    load_checkpoint,
    load_training,
    save_checkpoint,
)
from minigrad.models.interrupt import EndedAtOnce, Interruption, Stopped
from minigrad.models.metrics import Metrics, save_curves
from minigrad.models.text import Windows, load_text, split
from minigrad.models.tokenizer import CharacterTokenizer
from minigrad.models.train import TrainingPlan, TrainingRun, finish, parameter_count

# What a resumed run takes from its checkpoint where the command line does not say otherwise.
REMEMBERED: dict[str, type | tuple[type, ...]] = {
    "text": (str, type(None)), "tokenizer": str, "layers": int, "heads": int, "dim": int,
    "context": int, "dropout": float, "steps": int, "batch": int, "lr": float, "seed": int,
}  # fmt: skip


def parser(remembered: Mapping[str, Any] | None = None) -> argparse.ArgumentParser:
    """The flags of the commands `train` (also when no command is given) and `sample`.

    `remembered` replaces defaults of `train`: what an earlier run was told.
    """
    top = console.Parser(
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
    add("--resume", metavar="FILE",
        help="go on where this checkpoint was saved, with its flags, and save there")  # fmt: skip
    add("--metrics", metavar="FILE", help="JSON lines, one per step; appended to with --resume")
    console.add_common_flags(train)
    train.set_defaults(**(remembered or {}))

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


def train_command(
    flags: argparse.Namespace, earlier: tuple[GPT, Resumable | None] | None = None
) -> None:
    """`train`: ends with validation loss, a sample, the checkpoint and the curves.

    `earlier` is what the checkpoint of --resume holds.
    """
    text = load_text(flags.text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    tokenizer = CharacterTokenizer.of(text)
    training, validation = split(tokenizer.encode_array(text))
    try:
        config = GPTConfig(flags.layers, flags.heads, flags.dim, flags.context, len(tokenizer),
                           flags.dropout)  # fmt: skip
    except ValueError as error:
        raise InputError(str(error)) from None
    windows = (
        Windows(training, config.context, "the training part"),
        Windows(validation, config.context, "the validation part (its last tenth)"),
    )
    path = Path(flags.checkpoint)
    checkpoint.check_writable(path)
    Tensor.manual_seed(flags.seed)
    plan = TrainingPlan(steps=flags.steps, batch=flags.batch, lr=flags.lr, seed=flags.seed)
    history: list[dict[str, Any]] = []
    if earlier is None:
        model = GPT(config)
        run = TrainingRun(model, plan)
    else:
        model, resumable = earlier
        run = continued(flags, model, resumable, config, plan, digest)
        history = resumable.history if resumable is not None else []
    print(f"{len(text):,} characters, {len(tokenizer)} of them different")
    print(f"{parameter_count(model):,} parameters")
    if run.done:
        print(f"going on after step {run.done} of {plan.steps}")
    remembered = {name: getattr(flags, name) for name in REMEMBERED}
    if flags.text is not None:
        remembered["text"] = str(Path(flags.text).resolve())
    with Metrics(flags.metrics, run.done) as metrics, Interruption() as interruption:
        metrics.history += history

        def save() -> None:
            save_checkpoint(path, model, tokenizer, run, metrics, remembered, digest)

        try:
            loss = finish(run, *windows, metrics, save, interruption)
        except EndedAtOnce:
            raise
        except Stopped as stopped:
            raise Stopped(stopped.number, f"{stopped}; to go on: {resuming(flags)}") from None
        print(f"\nvalidation loss {loss:.4f} nats per character\n", flush=True)
        save()
        if interruption.number is not None:
            raise Stopped(interruption.number, f"all steps are done, and {path} is saved")
    picture = path.with_suffix(".png")
    save_curves(metrics, picture, f"GPT: {config.layers} layers, {config.dim} dims")
    write(model, tokenizer, "\n" if "\n" in tokenizer.vocabulary else text[0], 500, 0.8, flags.seed)
    print(f"\ncheckpoint {path}\nloss curves {picture}")


def resuming(flags: argparse.Namespace) -> str:
    """The command that continues this run."""
    words = ["python", sys.argv[0], "train", "--resume", flags.checkpoint]
    for name in ("metrics", "device"):
        if getattr(flags, name) is not None:
            words += [f"--{name}", getattr(flags, name)]
    return shlex.join(words)


def continued(
    flags: argparse.Namespace, model: GPT, resumable: Resumable | None, config: GPTConfig,
    plan: TrainingPlan, digest: str,
) -> TrainingRun:  # fmt: skip
    """The run of a checkpoint; InputError where it cannot go on as the flags say."""
    path = flags.resume
    if resumable is None:
        raise InputError(f"{path} holds a model, but no state of a training that could go on")
    if digest != resumable.digest:
        raise InputError(
            f"{path} was trained on another text than {flags.text or 'the plays'}: give --text "
            "the one it was trained on"
        )
    for name in ("layers", "heads", "dim", "context", "dropout"):
        wanted, has = getattr(config, name), getattr(model.config, name)
        if wanted != has:
            raise InputError(
                f"--{name} is {wanted}, but the model in {path} has {has}: leave the flag out"
            )
    run = TrainingRun(model, plan)
    try:
        run.restore(resumable.optimizer, resumable.facts)
    except (MinigradError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error}") from None
    if run.done >= plan.steps:
        raise InputError(
            f"{path} has done all its {run.done} steps: give more with --steps, or `sample` from it"
        )
    return run


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
    if flags.command == "sample":
        sample_command(flags)
    elif flags.resume is None:
        train_command(flags)
    else:
        model, _, resumable = load_training(Path(flags.resume))
        told = {} if resumable is None else resumable.flags
        remembered = {name: told[name] for name in REMEMBERED if name in told}
        for name, value in remembered.items():
            if not isinstance(value, REMEMBERED[name]):
                raise InputError(f"{flags.resume} is damaged: its --{name} was {value!r}")
        again = parser({"checkpoint": flags.resume, **remembered}).parse_args(given)
        train_command(again, (model, resumable))
