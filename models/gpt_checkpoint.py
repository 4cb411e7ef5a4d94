"""The checkpoint of a GPT: the model, its tokenizer, and what an unfinished training needs.

One safetensors file: weights under GPT-2's names, the optimizer's tensors under `optimizer.…`, the
record of the steps as `history`; the rest is JSON in the metadata.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigrad import Tensor, dtypes, nn
from minigrad.errors import MinigradError
from minigrad.models import bpe, checkpoint
from minigrad.models.errors import InputError
from minigrad.models.gpt_config import GPTConfig
from minigrad.models.library_tokenizer import LibraryTokenizer
from minigrad.models.metrics import KEYS, Metrics
from minigrad.models.parallel.training import Alone
from minigrad.models.sentencepiece import SentencePieceTokenizer
from minigrad.models.sizing import parameters
from minigrad.models.tokenizer import CharacterTokenizer, Tokenizer
from minigrad.models.train import TrainingRun

if TYPE_CHECKING:
    from minigrad.models.gpt import GPT

OPTIMIZER, HISTORY = "optimizer.", "history"


@dataclass(frozen=True)
class Resumable:
    """What a checkpoint knows of the training that wrote it.

    flags: the command line, with absolute paths. digest: of the text. facts and optimizer: see
    `TrainingRun.restore`. history: a record of each step, as in `Metrics`.
    """

    flags: dict[str, Any]
    digest: str
    facts: dict[str, Any]
    optimizer: dict[str, Tensor]
    history: list[dict[str, Any]]


def save_checkpoint(
    path: Path, model: GPT, tokenizer: Tokenizer, run: TrainingRun | None = None,
    metrics: Metrics | None = None, flags: Mapping[str, Any] | None = None, digest: str = "",
) -> None:  # fmt: skip
    """Write the model and, if `run` is given, everything needed to continue it.

    All ranks that share a run call this.
    """
    tensors = nn.state.get_state_dict(model)
    metadata = {"config": json.dumps(asdict(model.config)), "tokenizer": tokenizer.to_json()}
    if run is not None:
        tensors |= {OPTIMIZER + name: tensor for name, tensor in run.tensors().items()}
        tensors[HISTORY] = _pack_history(metrics.history if metrics is not None else [])
        training = {"flags": dict(flags or {}), "digest": digest, "facts": run.facts()}
        metadata["training"] = json.dumps(training)
    shared = Alone(model) if run is None else run.division
    shared.save(path, tensors, metadata)


def load_checkpoint(kind: type[GPT], path: Path) -> tuple[GPT, Tokenizer]:
    """The model and its tokenizer; InputError if the file is damaged or something else."""
    return load_training(kind, path)[:2]


def load_training(kind: type[GPT], path: Path) -> tuple[GPT, Tokenizer, Resumable | None]:
    """What `save_checkpoint` wrote; InputError if the file is damaged or something else."""
    return training_of(kind, path, *checkpoint.load(path))


def training_of(
    kind: type[GPT], path: Path, found: Mapping[str, Any], metadata: Mapping[str, str]
) -> tuple[GPT, Tokenizer, Resumable | None]:
    """`load_training` for tensors and texts of the file that are already read."""
    tensors = dict(found)
    optimizer = _taken(tensors, OPTIMIZER)
    history = tensors.pop(HISTORY, None)
    try:
        config = _read_config(metadata["config"])
        tokenizer = tokenizer_of(metadata["tokenizer"])
        resumable = None
        if "training" in metadata and history is not None:
            training: Any = json.loads(metadata["training"])
            resumable = Resumable(
                dict(training["flags"]), str(training["digest"]), dict(training["facts"]),
                optimizer, _unpack_history(history),
            )  # fmt: skip
    except KeyError as error:
        raise InputError(f"{path} is not a checkpoint of models/gpt.py: no {error}") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a checkpoint of models/gpt.py: {error}") from None
    _check_sizes(path, config, tokenizer, tensors)
    model = kind(config, initialize=False)
    try:
        nn.state.load_state_dict(model, tensors)
    except (MinigradError, KeyError) as error:
        raise InputError(f"{path} does not match its own config: {error}") from None
    return model, tokenizer, resumable


def tokenizer_of(text: str) -> Tokenizer:
    """The tokenizer that a checkpoint stores; InputError if the text is not one."""
    try:
        stored: Any = json.loads(text)
        kind = stored["kind"]
        if kind == "gpt2":
            return bpe.GPT2Tokenizer()
        if kind == "bpe":
            return bpe.BytePairTokenizer.from_json(stored)
        if kind == "sentencepiece":
            return SentencePieceTokenizer.from_json(stored)
        if kind == "tokenizers":
            return LibraryTokenizer(stored["stored"])
        if kind == "character":
            return CharacterTokenizer(stored["vocabulary"])
        raise ValueError(f"unknown kind {kind!r}")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"the stored tokenizer is damaged: {error}") from None


def _taken(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names have a prefix, named without it; removed from `tensors`."""
    names = [name for name in tensors if name.startswith(prefix)]
    return {name[len(prefix) :]: tensors.pop(name) for name in names}


def _read_config(text: str) -> GPTConfig:
    values: Any = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError(f"its config is not a JSON object: {text[:40]}")
    factors = values.get("rotary_factors", ())  # JSON has no tuples
    return GPTConfig(**{**values, "rotary_factors": tuple(map(float, factors))})


def _check_sizes(
    path: Path, config: GPTConfig, tokenizer: Tokenizer, tensors: Mapping[str, Tensor]
) -> None:
    """InputError if a damaged config does not fit the tensors' sizes."""
    total = sum(math.prod(tensor._known_shape()) for tensor in tensors.values())
    if config.layers > len(tensors) or parameters(config).total != total:
        raise InputError(f"{path} does not match its own config: {config}")
    if len(tokenizer) != config.vocabulary:
        raise InputError(
            f"{path} is damaged: its tokenizer has {len(tokenizer)} tokens, but its model has a "
            f"vocabulary of {config.vocabulary}"
        )


def _pack_history(history: list[dict[str, Any]]) -> Tensor:
    """(steps, figures) float64; NaN for a figure that was not measured."""
    rows = [[math.nan if line[key] is None else line[key] for key in KEYS] for line in history]
    data = b"".join(struct.pack(f"={len(KEYS)}d", *row) for row in rows)
    return Tensor.from_bytes(data, [len(rows), len(KEYS)], dtypes.float64)


def _unpack_history(stored: Tensor) -> list[dict[str, Any]]:
    shape = stored._known_shape()
    if len(shape) != 2 or shape[1] != len(KEYS) or stored.dtype is not dtypes.float64:
        raise ValueError(f"its history has shape {shape} and dtype {stored.dtype.name}")
    lines: list[dict[str, Any]] = []
    for row in stored.tolist():
        taken = [None if value != value else value for value in row]
        lines.append({**dict(zip(KEYS, taken, strict=True)), "step": int(row[0])})
    return lines
