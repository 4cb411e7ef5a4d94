"""Checks before a training starts: flags, files and memory that cannot work."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Mapping, Set
from contextlib import ExitStack
from itertools import count
from pathlib import Path

from minigrad.graph.symbolic import ceildiv
from minigrad.models import console
from minigrad.models.checkpoint import alone_at
from minigrad.models.errors import InputError
from minigrad.models.gpt import GPTConfig
from minigrad.models.gpt_checkpoint import Resumable
from minigrad.models.parallel import layouts
from minigrad.models.parallel.launch import started_by_mpi
from minigrad.models.sizing import ITEMSIZE, peak_bytes

CHECKPOINT = "gpt.safetensors"  # default path of a model
OF_A_MODEL = ("layers", "heads", "dim", "key_heads", "dropout", "experts", "active", "precision")
OF_A_NEW_ONE = ("tokenizer", "vocabulary", "architecture")
OF_A_BEGUN_ONE = (*OF_A_NEW_ONE, "weights")
OF_A_PIPELINE = {"micro", "schedule", "pieces"}
VOCABULARY, ACTIVE = 1024, 2  # defaults of --vocabulary and --active


def check_given(flags: argparse.Namespace, given: Set[str]) -> None:
    """InputError if a given flag has no effect together with the others."""
    if flags.pp == 1:
        console.refuse_idle(given & OF_A_PIPELINE, "without --pp: also give --pp 2")
    if flags.weights is not None and flags.resume is None:
        why = "with --weights: its model has its own; leave it out"
        console.refuse_idle(given & {*OF_A_NEW_ONE}, why)
    if flags.resume is not None or flags.weights is not None:
        return  # see `check_model`
    if "active" in given and not flags.experts:
        raise InputError(f"--active {flags.active} has no effect without --experts: add --experts")
    if "vocabulary" in given and flags.tokenizer != "bpe":
        raise InputError(
            f"--vocabulary {flags.vocabulary} has no effect with --tokenizer {flags.tokenizer}: "
            "only --tokenizer bpe learns a vocabulary"
        )


def check_model(
    path: str, has: GPTConfig, wanted: Mapping[str, object], names: Iterable[str]
) -> None:
    """InputError if a flag asks for another model than the one in a file."""
    for name in names:
        if wanted[name] != getattr(has, name):
            raise InputError(
                f"{_dashed(name)} is {wanted[name]}, but the model in {path} has "
                f"{getattr(has, name)}: leave the flag out"
            )


def check_unchanged(flags: argparse.Namespace, resumable: Resumable, given: Set[str]) -> None:
    """InputError if a flag contradicts the beginning of the training to resume."""
    for name in OF_A_BEGUN_ONE:
        wanted, was = getattr(flags, name), resumable.flags.get(name)
        if name == "weights" and wanted is not None:
            wanted = str(Path(wanted).resolve())
        if name in given and wanted != was:
            raise InputError(
                f"{_dashed(name)} is {wanted}, but the training in {flags.resume} began with {was}:"
                " leave the flag out"
            )


def _dashed(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def check_layout(flags: argparse.Namespace, config: GPTConfig) -> None:
    """InputError if a batch cannot be divided as the flags say, or flags exclude each other."""
    if flags.batch % flags.accumulate:
        raise InputError(
            f"--batch {flags.batch} is not a multiple of --accumulate {flags.accumulate}"
        )
    if flags.recompute and config.dropout:
        raise InputError("--recompute with --dropout would drop different values: leave one out")
    if flags.zero and flags.dp == 1:
        raise InputError(f"--zero {flags.zero} has no effect without --dp: also give --dp 2")
    ring = flags.sp > 1 and flags.tp == 1
    if config.experts and (ring or flags.pp > 1):
        raise InputError("--experts does not combine with --pp, or with --sp without --tp: use "
                         "--dp, --ep or --tp")  # fmt: skip
    if layouts.is_divided(flags):
        if flags.sp not in (1, flags.tp):
            raise InputError(f"--sp {flags.sp} with --tp {flags.tp}: expected the same number, as "
                             "the same devices share the tokens; without --tp, use only --dp")
        if flags.sp > 1 and min(flags.context, config.context) == 1:
            raise InputError(f"--context 1 with --sp {flags.sp}: a single token cannot be divided; "
                             "leave --sp out")  # fmt: skip
        layouts.check(config, {"dp": flags.dp, "ep": flags.ep, "tp": flags.tp})
    if flags.pp > 1:
        _check_pipeline(flags, config)
    if layouts.devices_of(flags) == 1:
        return
    if ring and (config.window or config.attention_cap or config.attention_scale):
        raise InputError("--sp does not support attention with windows, caps or scales: use --dp")
    ways = flags.dp * flags.ep
    if config.experts and not layouts.is_divided(flags):
        raise InputError(f"--dp {flags.dp} with a mixture of experts: also give --ep 2 or --zero 1")
    cut = flags.accumulate > 1 or config.experts
    if cut and flags.batch % (ways * flags.accumulate):
        raise InputError(
            f"--batch {flags.batch} cannot be split into {flags.accumulate} equal parts on each of "
            f"{ways} devices"
        )
    if flags.batch < flags.dp:
        raise InputError(f"--batch {flags.batch} is too small for --dp {flags.dp}: give more")


def _check_pipeline(flags: argparse.Namespace, config: GPTConfig) -> None:
    rows = flags.dp * flags.micro
    if flags.batch % rows:
        raise InputError(f"--batch {flags.batch} is not a multiple of --micro {flags.micro} × "
                         f"--dp {flags.dp}")  # fmt: skip
    if flags.pieces > 1 and flags.schedule != "interleaved":
        raise InputError(f"--pieces {flags.pieces} with --schedule {flags.schedule}: only "
                         "--schedule interleaved splits a stage's layers")  # fmt: skip
    for name in ("recompute", "dropout"):
        if getattr(flags, name) or getattr(config, name, 0):
            raise InputError(f"--{name} with --pp: leave one of them out")
    if flags.accumulate > 1:
        raise InputError(f"--accumulate {flags.accumulate} with --pp: use --micro instead")


def micro_batches(flags: argparse.Namespace) -> int:
    """The default number of micro-batches of a pipeline: at most 4 for each stage."""
    rows = max(flags.batch // flags.dp, 1)
    step = flags.pp if flags.schedule == "interleaved" else 1
    return max((n for n in range(step, 4 * flags.pp + 1, step) if rows % n == 0), default=1)


def check_memory(flags: argparse.Namespace, config: GPTConfig) -> None:
    """InputError if a step does not fit in the memory of this machine.

    Parameters, gradients and AdamW's moments are float32; activations may be narrower.
    """
    rows = ceildiv(flags.batch, flags.accumulate)
    inside = peak_bytes(config, rows, ITEMSIZE[config.precision], flags.recompute)
    batches = 4 * 8 * flags.batch * config.context  # indices, inputs and targets on the host
    console.check_fits(
        inside + batches, f"a step of --batch {flags.batch}",
        "use a smaller --batch or model, --accumulate or --recompute",
    )  # fmt: skip


def place_of_checkpoint(flags: argparse.Namespace, given: Set[str]) -> tuple[str, ExitStack]:
    """The path to save the model at; and what keeps other trainings here from it, until closed.

    InputError for an existing file that was named, without --overwrite or --resume. Without a name,
    one is chosen that no file has, nor another training. Ranks that MPI has started choose before
    the first one begins to train, which then keeps others away (`train_command`).
    """
    path, by_mpi = Path(flags.checkpoint), started_by_mpi()
    same = flags.resume is not None and os.path.realpath(path) == os.path.realpath(flags.resume)
    named = flags.overwrite or same or path.is_dir() or "checkpoint" in given
    if named and path.is_file() and not (flags.overwrite or same):
        raise InputError(
            f"{path} already exists: --overwrite replaces it, --resume {path} continues it; or "
            "give another --checkpoint"
        )
    for number in count(1):
        one, mark = path if number == 1 else numbered(path, number), ExitStack()
        try:
            if not named or not (by_mpi or flags.explain):
                mark.enter_context(alone_at(one))
        except InputError:  # another training here, perhaps one that began this moment
            if named:
                raise
            continue
        if named or not one.exists():
            break
        mark.close()
    if by_mpi:
        mark.close()
    return str(one), mark


def numbered(path: Path, number: int) -> Path:
    """gpt.safetensors → gpt-2.safetensors."""
    return path.with_stem(f"{path.stem}-{number}")


def newest_checkpoint() -> Path:
    """The newest checkpoint here with a default name."""
    first = Path(CHECKPOINT)
    found = [first, *first.parent.glob(f"{first.stem}-[0-9]*{first.suffix}")]
    here = [path for path in found if path.is_file()]
    return max(here, key=lambda path: path.stat().st_mtime, default=first)


def check_resumable(flags: argparse.Namespace, resumable: Resumable | None, digest: str) -> None:
    """InputError if a checkpoint has no training to resume, or one on another text."""
    if resumable is None:
        raise InputError(f"{flags.resume} has a model, but no training state: it cannot be resumed")
    if digest != resumable.digest:
        raise InputError(
            f"{flags.resume} was trained on a different text than {flags.text or 'the plays'}: "
            "give the original text with --text"
        )
