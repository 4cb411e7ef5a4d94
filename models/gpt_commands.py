"""The commands of `python models/gpt.py`; here `train`, and the dispatch of the others."""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import sys
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minigrad import Tensor
from minigrad.errors import MinigradError
from minigrad.models import bpe, chat, console, inspection, weights_quantize
from minigrad.models.checkpoint import alone_at
from minigrad.models.errors import InputError
from minigrad.models.gpt import GPT, GPTConfig
from minigrad.models.gpt_checkpoint import (
    Resumable,
    load_checkpoint,
    load_training,
    save_checkpoint,
)
from minigrad.models.gpt_checks import (
    OF_A_MODEL,
    check_given,
    check_layout,
    check_memory,
    check_model,
    check_resumable,
    check_unchanged,
    micro_batches,
    place_of_checkpoint,
)
from minigrad.models.gpt_config import llama
from minigrad.models.gpt_flags import COMMANDS, FINE_TUNING_LR, NEW_LR, REMEMBERED, parser
from minigrad.models.interrupt import EndedAtOnce, Interruption, Stopped
from minigrad.models.metrics import Metrics, shown
from minigrad.models.parallel.launch import Rank, started_by_mpi
from minigrad.models.parallel.layouts import devices_of, division_of, is_first, on_devices
from minigrad.models.parallel.pipeline import Pipeline
from minigrad.models.parallel.training import Replica
from minigrad.models.pictures import save_curves
from minigrad.models.pretrained import load_model, write
from minigrad.models.sampling import Sampling
from minigrad.models.text import Windows, load_text, split
from minigrad.models.tokenizer import CharacterTokenizer, Tokenizer
from minigrad.models.train import TrainingPlan, TrainingRun, finish, parameter_count
from minigrad.models.utilization import utilization

Earlier = tuple[GPT, Tokenizer, Resumable | None]
SHOWN = 500  # tokens of the sample at the end of a training


def make_tokenizer(flags: argparse.Namespace, text: str) -> Tokenizer:
    """The tokenizer that --tokenizer names; it learns what repeats in the training part only."""
    if flags.tokenizer == "gpt2":
        return bpe.GPT2Tokenizer()
    if flags.tokenizer == "bpe":
        return bpe.learn(split(text)[0], flags.vocabulary)
    return CharacterTokenizer.of(text)


def make_config(flags: argparse.Namespace, vocabulary: int) -> GPTConfig:
    """The model's shape from the flags; InputError if they do not fit together."""
    more = {name: getattr(flags, name) for name in
            ("dropout", "key_heads", "experts", "active", "precision")}  # fmt: skip
    shape = (flags.layers, flags.heads, flags.dim, flags.context, vocabulary)
    if flags.architecture == "llama":  # SwiGLU has a third matrix: as many parameters as with 4·dim
        return llama(*shape, feed_forward=-(-8 * flags.dim // 3 // 32) * 32, tied=True, **more)
    return GPTConfig(*shape, **more)


def make_plan(flags: argparse.Namespace) -> TrainingPlan:
    """The training plan; pretrained weights are changed more carefully."""
    plan = TrainingPlan(steps=flags.steps, batch=flags.batch, lr=flags.lr, seed=flags.seed,
                        accumulate=flags.accumulate, recompute=flags.recompute)  # fmt: skip
    if flags.weights is None:
        return plan
    # fine-tuning takes few steps: with the usual warm-up, half of them would be that
    return replace(plan, warmup=min(plan.warmup, max(flags.steps // 10, 1)), first_windows=24)


@dataclass(frozen=True)
class Begun:
    """A training that is ready to start. history: of earlier steps, as in `Metrics`."""

    text: str
    digest: str
    tokens: int
    tokenizer: Tokenizer
    windows: tuple[Windows, Windows]
    run: TrainingRun
    history: list[dict[str, Any]]

    @property
    def model(self) -> GPT:
        """The model."""
        return self.run.model  # type: ignore[return-value]

    @property
    def unit(self) -> str:
        """The unit of a loss."""
        return "character" if isinstance(self.tokenizer, CharacterTokenizer) else "token"

    @property
    def context(self) -> int:
        """The length of a window in tokens."""
        return self.windows[0].context


def begin(
    flags: argparse.Namespace, earlier: Earlier | None, rank: Rank | None, speaks: bool
) -> Begun:
    """Read the text, create or load the model, and put it on its devices."""
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
    training, validation = map(tokenizer.encode_array, split(text))
    if model is not None and flags.weights is not None:
        config = model.config
        names = [name for name in OF_A_MODEL if name in flags.given]
        check_model(flags.weights, config, vars(flags), names)
        if "context" in flags.given and flags.context > config.context:
            raise InputError(f"--context is {flags.context}, but the model in {flags.weights} has "
                             f"{config.context}: give at most that")  # fmt: skip
    else:
        config = make_config(flags, len(tokenizer))
    context = min(flags.context, config.context)
    windows = (
        Windows(training, context, "the training part"),
        Windows(validation, context, "the validation part (its last tenth)"),
    )
    if speaks:
        check_files(flags)
    check_layout(flags, config)
    check_memory(flags, replace(config, context=context))
    model = model or GPT(config)
    division = division_of(flags, model, context, rank)
    if isinstance(division, Replica):
        Tensor.manual_seed(division.seed(flags.seed))
    run, history = TrainingRun(model, make_plan(flags), division), []
    if earlier is not None and earlier[2] is not None:
        go_on(flags, run, earlier[2], config)
        history = earlier[2].history
    tokens = len(training) + len(validation)
    return Begun(text, digest, tokens, tokenizer, windows, run, history)


def describe(flags: argparse.Namespace, begun: Begun, say: Callable[..., None]) -> None:
    """Print what is going to be done."""
    if begun.unit == "character":
        say(f"{len(begun.text):,} characters, {len(begun.tokenizer)} of them distinct")
    else:
        say(f"{len(begun.text):,} characters, {begun.tokens:,} tokens from a vocabulary of "
            f"{len(begun.tokenizer):,}")  # fmt: skip
    say(f"{parameter_count(begun.model):,} parameters")
    if flags.checkpoint != flags.wanted:
        wanted = flags.wanted
        why = f"{wanted} already exists" if Path(wanted).exists() else (
            f"another training writes {wanted}"
        )  # fmt: skip
        say(f"{why}: this model will be saved as {flags.checkpoint}")


def train_command(
    flags: argparse.Namespace, earlier: Earlier | None = None, rank: Rank | None = None
) -> None:
    """`train`: ends with the validation loss, a sample, the checkpoint and the curves.

    `earlier`: the content of --resume's checkpoint. Among several ranks, only rank 0 writes metrics
    and pictures, and prints.
    """
    speaks = is_first() if rank is None else rank.is_first
    say = console.speaker(speaks)
    begun = begin(flags, earlier, rank, speaks)
    model, run = begun.model, begun.run
    describe(flags, begun, say)
    if flags.gradient_norms and speaks:
        inspection.show_gradient_norms(model.config, begun.windows[0], run.plan)
    if flags.explain is not None:
        run.explain(begun.windows[0], flags.explain, speaks, flags.explain_values)
        return
    if run.done:
        say(f"resuming after step {run.done} of {run.plan.steps}")
    record = flags.metrics if speaks else None
    if record is not None and run.done:
        say(f"appending metrics to {record}")
    own = alone_at(Path(flags.checkpoint) if speaks and started_by_mpi() else None)
    with own, Metrics(record, begun.history) as metrics:
        learn(flags, begun, metrics, speaks)
    if speaks:
        path, config = Path(flags.checkpoint), model.config
        picture = path.with_suffix(".png")
        save_curves(metrics, picture, f"GPT: {config.layers} layers, {config.dim} dims")
        prompt = "\n" if "\n" in begun.text else begun.text[0]
        tokens = begun.tokenizer.encode(prompt)
        trained, _ = load_checkpoint(GPT, path)  # the whole model, however it was divided
        write(trained, begun.tokenizer, tokens, SHOWN, Sampling(0.8), flags.seed)
        print(f"\nsaved checkpoint {path}\nsaved loss curves {picture}")


def learn(flags: argparse.Namespace, begun: Begun, metrics: Metrics, speaks: bool) -> None:
    """Run all steps and save; if a signal ends them, Stopped says how to continue."""
    say, run, path = console.speaker(speaks), begun.run, Path(flags.checkpoint)
    division = run.division
    with Interruption() as interruption:

        def save() -> None:
            save_checkpoint(path, begun.model, begun.tokenizer, run, metrics, flags.remembered,
                            begun.digest)  # fmt: skip

        try:
            # rank 0 decides when to stop; all others end with it
            loss = finish(run, *begun.windows, metrics, save, interruption if speaks else None)
        except EndedAtOnce:
            raise
        except Stopped as stopped:
            if run.done == run.plan.steps:
                end = f"all steps are done, and {path} is saved; the last validation was skipped"
            else:
                end = f"{stopped}; to resume: {resuming(flags)}"
            raise Stopped(stopped.number, end) from None
        say(utilization(begun.model.config, begun.context, metrics, devices_of(flags)))
        if isinstance(division, Pipeline):
            say(f"stages were idle for {division.idle:.1%} of the last step")
        say(f"\nvalidation loss {shown(loss)} nats per {begun.unit}\n", flush=True)
        save()
        if interruption.number is not None and speaks:
            raise Stopped(interruption.number, f"all steps are done, and {path} is saved")


def what_is_remembered(flags: argparse.Namespace) -> dict[str, Any]:
    """The flags that a checkpoint keeps for --resume; files with absolute paths."""
    remembered = {name: getattr(flags, name) for name in REMEMBERED}
    for name in ("text", "weights", "metrics"):
        if getattr(flags, name) is not None:
            remembered[name] = os.path.realpath(getattr(flags, name))
    return remembered


def check_files(flags: argparse.Namespace) -> None:
    """InputError if an output cannot be written, or would replace an input."""
    path = Path(flags.checkpoint)
    console.require("safetensors")
    console.check_writable(path)
    picture = path.with_suffix(".png")
    console.check_writable(picture)
    read = {f"--{name}": getattr(flags, name) for name in ("text", "weights")}
    console.check_apart(read, {
        "--checkpoint": path, "its loss curves": picture, "--metrics": flags.metrics,
        "--trace": flags.trace, "--explain": flags.explain,
    })  # fmt: skip


def launch(flags: argparse.Namespace, given: Set[str], earlier: Earlier | None = None) -> None:
    """`train` on one device, or on as many as the flags (and MPI) say.

    given: the flags on the command line; the others are defaults, or remembered.
    """
    check_given(flags, given)
    console.check_explain(flags, given)
    flags.given = given
    if earlier is not None and earlier[2] is not None:
        check_unchanged(flags, earlier[2], given)
    flags.wanted = flags.checkpoint
    flags.checkpoint, alone = place_of_checkpoint(flags, given)
    if flags.lr is None:
        flags.lr = NEW_LR if flags.weights is None else FINE_TUNING_LR
    console.check_device_of_ranks(devices_of(flags))
    flags.remembered = what_is_remembered(flags)  # a resumed run chooses --micro for its layout
    if flags.pp > 1 and not flags.micro:
        flags.micro = micro_batches(flags)

    def train(rank: Rank | None) -> None:
        own = earlier
        if rank is not None and earlier is not None:
            # a checkpoint is read again: its tensors belong on this rank's device
            own = load_training(GPT, Path(flags.resume))
        train_command(flags, own, rank)

    with alone:
        on_devices(flags, train, flags.trace)


def resuming(flags: argparse.Namespace) -> str:
    """The command that continues this run."""
    words = ["python", sys.argv[0], "train", "--resume", flags.checkpoint]
    for name in ("metrics", "device"):
        if getattr(flags, name) is not None:
            words += [f"--{name}", getattr(flags, name)]
    return shlex.join(words)


def go_on(
    flags: argparse.Namespace, run: TrainingRun, resumable: Resumable, config: GPTConfig
) -> None:
    """Restore a run from a checkpoint; InputError if it cannot continue as the flags say."""
    path, has = flags.resume, run.model.config  # type: ignore[attr-defined]
    check_model(path, has, vars(config), vars(config))
    try:
        run.restore(resumable.optimizer, resumable.facts)
    except (MinigradError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error}") from None
    if run.done >= run.plan.steps:
        raise InputError(
            f"{path} has finished all its {run.done} steps: give a larger --steps, or use `sample`"
        )


def main(arguments: Sequence[str]) -> None:
    """Parse the command line and run the command."""
    given = list(arguments)
    if given and not given[0].startswith("-") and given[0] not in COMMANDS:
        *most, last = COMMANDS  # `train` takes only flags, so a word is meant as a command
        parser().error(f"unknown command {given[0]!r}: expected {', '.join(most)} or {last}")
    if not given or given[0] not in (*COMMANDS, "-h", "--help"):
        given.insert(0, "train")
    flags = parser().parse_args(given)
    console.apply_common_flags(flags)
    said = console.given_flags(parser(), given)
    if flags.command == "serve":
        from minigrad.models import server  # which needs what others do not

        server.serve_command(flags)
    elif flags.command != "train":
        others = {"sample": chat.sample_command, "chat": chat.chat_command,
                  "inspect": inspection.inspect_command,
                  "quantize": weights_quantize.quantize_command}  # fmt: skip
        others[flags.command](flags)
    elif flags.resume is None:
        launch(flags, said)
    else:
        earlier = load_training(GPT, Path(flags.resume))
        told = {} if earlier[2] is None else earlier[2].flags
        remembered = {name: told[name] for name in REMEMBERED if name in told}
        for name, value in remembered.items():
            if not isinstance(value, REMEMBERED[name]):
                raise InputError(f"{flags.resume} is damaged: its --{name} is {value!r}")
        known = {"checkpoint": flags.resume, **remembered}
        vars(flags).update((name, known[name]) for name in known.keys() - said)
        launch(flags, said, earlier)
