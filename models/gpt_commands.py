"""What `python models/gpt.py` can be told to do; here: train, and who does the rest."""

from __future__ import annotations

import argparse
import hashlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minigrad import Tensor
from minigrad.errors import MinigradError
from minigrad.models import bpe, chat, checkpoint, console, look_inside
from minigrad.models.errors import InputError
from minigrad.models.gpt import GPT, GPTConfig
from minigrad.models.gpt_checkpoint import Resumable, load_training, save_checkpoint
from minigrad.models.gpt_config import llama
from minigrad.models.gpt_flags import COMMANDS, REMEMBERED, parser
from minigrad.models.interrupt import EndedAtOnce, Interruption, Stopped
from minigrad.models.metrics import Metrics, save_curves
from minigrad.models.pretrained import load_model, write
from minigrad.models.sampling import Sampling
from minigrad.models.text import Windows, load_text, split
from minigrad.models.tokenizer import CharacterTokenizer, Tokenizer
from minigrad.models.train import TrainingPlan, TrainingRun, finish, parameter_count
from minigrad.models.utilization import utilization

Earlier = tuple[GPT, Tokenizer, Resumable | None]


def make_tokenizer(flags: argparse.Namespace, text: str) -> Tokenizer:
    """The tokenizer that --tokenizer names."""
    if flags.tokenizer == "gpt2":
        return bpe.GPT2Tokenizer()
    if flags.tokenizer == "bpe":
        return bpe.learn(text, flags.vocabulary)
    return CharacterTokenizer.of(text)


def make_config(flags: argparse.Namespace, vocabulary: int) -> GPTConfig:
    """The shape that the flags tell; InputError where they do not fit one another."""
    more = {name: getattr(flags, name) for name in
            ("dropout", "key_heads", "experts", "active", "precision")}  # fmt: skip
    shape = (flags.layers, flags.heads, flags.dim, flags.context, vocabulary)
    try:
        if flags.architecture == "llama":  # SwiGLU has a third matrix: as many parameters as 4·dim
            return llama(*shape, feed_forward=-(-8 * flags.dim // 3 // 32) * 32, tied=True, **more)
        return GPTConfig(*shape, **more)
    except ValueError as error:
        raise InputError(str(error)) from None


def train_command(flags: argparse.Namespace, earlier: Earlier | None = None) -> None:
    """`train`: ends with validation loss, a sample, the checkpoint and the curves.

    `earlier` is what the checkpoint of --resume holds.
    """
    text = load_text(flags.text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    Tensor.manual_seed(flags.seed)
    model: GPT | None = None
    if earlier is not None:
        model, tokenizer, resumable = earlier
        check_resumable(flags, resumable, digest)
    elif flags.weights is not None:
        model, tokenizer = load_model(Path(flags.weights), "float32", flags.context)
    else:
        tokenizer = make_tokenizer(flags, text)
    text_ids = tokenizer.encode_array(text)
    training, validation = split(text_ids)
    if model is not None and flags.weights is not None:
        config = model.config
    else:
        config = make_config(flags, len(tokenizer))
    context = min(flags.context, config.context)
    windows = (
        Windows(training, context, "the training part"),
        Windows(validation, context, "the validation part (its last tenth)"),
    )
    path = Path(flags.checkpoint)
    checkpoint.check_writable(path)
    if flags.batch % flags.accumulate:
        raise InputError(f"--batch {flags.batch} cannot be cut into {flags.accumulate} equal parts")
    if flags.recompute and config.dropout:
        raise InputError("--recompute would drop other values than before: leave --dropout at 0")
    plan = TrainingPlan(steps=flags.steps, batch=flags.batch, lr=flags.lr, seed=flags.seed,
                        accumulate=flags.accumulate, recompute=flags.recompute)  # fmt: skip
    history: list[dict[str, Any]] = []
    if earlier is not None:
        run = continued(flags, earlier, config, plan)
        model, history = earlier[0], earlier[2].history if earlier[2] is not None else []
    else:
        model = GPT(config) if model is None else model
        run = TrainingRun(model, plan)
    unit = "character" if isinstance(tokenizer, CharacterTokenizer) else "token"
    if unit == "character":
        print(f"{len(text):,} characters, {len(tokenizer)} of them different")
    else:
        print(f"{len(text):,} characters are {len(text_ids):,} tokens of {len(tokenizer):,}")
    print(f"{parameter_count(model):,} parameters")
    if flags.gradient_norms:
        look_inside.show_gradient_norms(config, windows[0], plan)
    if run.done:
        print(f"going on after step {run.done} of {plan.steps}")
    remembered = {name: getattr(flags, name) for name in REMEMBERED}
    for name in ("text", "weights"):
        if getattr(flags, name) is not None:
            remembered[name] = str(Path(getattr(flags, name)).resolve())
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
        print(utilization(config, context, metrics))
        print(f"\nvalidation loss {loss:.4f} nats per {unit}\n", flush=True)
        save()
        if interruption.number is not None:
            raise Stopped(interruption.number, f"all steps are done, and {path} is saved")
    picture = path.with_suffix(".png")
    save_curves(metrics, picture, f"GPT: {config.layers} layers, {config.dim} dims")
    prompt = "\n" if "\n" in text else text[0]
    write(model, tokenizer, tokenizer.encode(prompt), 500, Sampling(0.8), flags.seed)
    print(f"\ncheckpoint {path}\nloss curves {picture}")


def resuming(flags: argparse.Namespace) -> str:
    """The command that continues this run."""
    words = ["python", sys.argv[0], "train", "--resume", flags.checkpoint]
    for name in ("metrics", "device"):
        if getattr(flags, name) is not None:
            words += [f"--{name}", getattr(flags, name)]
    return shlex.join(words)


def check_resumable(flags: argparse.Namespace, resumable: Resumable | None, digest: str) -> None:
    """InputError where a checkpoint has no training to go on with, or one on another text."""
    if resumable is None:
        raise InputError(
            f"{flags.resume} holds a model, but no state of a training that could go on"
        )
    if digest != resumable.digest:
        raise InputError(
            f"{flags.resume} was trained on another text than {flags.text or 'the plays'}: give "
            "--text the one it was trained on"
        )


def continued(
    flags: argparse.Namespace, earlier: Earlier, config: GPTConfig, plan: TrainingPlan
) -> TrainingRun:
    """The run of a checkpoint; InputError where it cannot go on as the flags say."""
    path, (model, _, resumable) = flags.resume, earlier
    assert resumable is not None
    for name in vars(config):
        wanted, has = getattr(config, name), getattr(model.config, name)
        if wanted != has:
            raise InputError(
                f"--{name.replace('_', '-')} is {wanted}, but the model in {path} has {has}: "
                "leave the flag out"
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


def main(arguments: Sequence[str]) -> None:
    """Read the command line and do what it says."""
    given = list(arguments)
    if not given or given[0] not in (*COMMANDS, "-h", "--help"):
        given.insert(0, "train")
    flags = parser().parse_args(given)
    console.apply_common_flags(flags)
    if flags.command == "sample":
        chat.sample_command(flags)
    elif flags.command == "chat":
        chat.chat_command(flags)
    elif flags.command == "inspect":
        look_inside.inspect_command(flags)
    elif flags.resume is None:
        train_command(flags)
    else:
        earlier = load_training(Path(flags.resume))
        told = {} if earlier[2] is None else earlier[2].flags
        remembered = {name: told[name] for name in REMEMBERED if name in told}
        for name, value in remembered.items():
            if not isinstance(value, REMEMBERED[name]):
                raise InputError(f"{flags.resume} is damaged: its --{name} was {value!r}")
        again = parser({"checkpoint": flags.resume, **remembered}).parse_args(given)
        train_command(again, earlier)
