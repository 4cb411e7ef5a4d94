"""Pretrained weights: HuggingFace's (GPT-2, Llama and their kin), and GGUF files.

`load_pretrained` recognizes the kind of a file or folder, translates names and orientations into
those of `GPT`, and checks that no tensor is missing, left over, or of another shape.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigrad import Tensor, nn
from minigrad.dtype import DType, dtypes, named
from minigrad.errors import MinigradError
from minigrad.models import architectures, checkpoint
from minigrad.models.architectures import Part
from minigrad.models.architectures_gguf import config_of_gguf
from minigrad.models.architectures_hub import config_of_hub
from minigrad.models.data import read_json
from minigrad.models.errors import InputError
from minigrad.models.gpt_config import GPTConfig
from minigrad.nn.gguf import Value, gguf_read, parts_of
from minigrad.nn.quantized import (
    Quantized,
    QuantizedEmbedding,
    QuantizedLinear,
    QuantizedStack,
)
from minigrad.nn.state import parts_of_index

if TYPE_CHECKING:
    from minigrad.models.gpt import GPT

Weight = Tensor | Quantized
PACKED = (Quantized, QuantizedStack)
# Other tensors in files: masks of old GPT-2 files, frequencies of old Llama files.
IGNORED = re.compile(
    r"(\.attn\.(masked_)?bias|\.attention\.(masked_)?bias|rotary_emb\.inv_freq"
    r"|^rope_freqs\.weight)$"
)
FACTORS = "rope_freqs.weight"  # in GGUF files: divisors of the angles of pairs
PICKLED = (".bin", ".pt", ".pth")


@dataclass(frozen=True)
class Source:
    """The content of a path: kind "gguf", "hub" or "own"; tensors by their names in the file."""

    kind: str
    tensors: dict[str, Weight]
    facts: Mapping[str, Any]  # a GGUF file's metadata, or HuggingFace's config.json
    typed: Mapping[str, Value] = field(default_factory=dict)  # the metadata with their types


def load_pretrained(
    kind: type[GPT], path: str | os.PathLike[str], config: GPTConfig | None = None,
    dtype: str | None = None, context: int | None = None,
) -> GPT:  # fmt: skip
    """The GPT (kind) with the weights in `path`; InputError says in a sentence what is wrong.

    path: a GGUF file (in the types of `gguf_load`); a safetensors file or PyTorch state dict (.bin,
    .pt, .pth) with HuggingFace's config.json beside it, unless `config` is given; a folder of these
    (model.safetensors, or shards and their index); or a checkpoint of models/gpt.py. dtype
    ("float32") converts all weights, which also dequantizes; otherwise they stay as in the file, or
    nearly as small (`quantized.py`). context: fewer positions than the file allows, because keys
    and values take memory for all of them. Checkpoints of models/gpt.py take no such arguments.
    """
    source = read_source(Path(path))
    if source.kind == "own":
        from minigrad.models.gpt_checkpoint import training_of

        given = {"config": config, "dtype": dtype, "context": context}
        if names := [name for name, value in given.items() if value is not None]:
            raise InputError(f"{path} was saved by models/gpt.py: expected no {', '.join(names)}")
        return training_of(kind, Path(path), source.tensors, source.facts)[0]
    return model_of(kind, source, path, config, dtype, context)


def model_of(
    kind: type[GPT], source: Source, path: str | os.PathLike[str],
    config: GPTConfig | None = None, dtype: str | None = None, context: int | None = None,
) -> GPT:  # fmt: skip
    """The model of a Source, whose tensors are removed from it; see `load_pretrained`."""
    with about(path):
        found = config or config_of(source)
        positions = found.context if context is None else min(context, found.context)
        return _build(kind, source, found, None if dtype is None else named(dtype), positions)


@contextmanager
def about(path: str | os.PathLike[str]) -> Iterator[None]:
    """A ValueError in the block becomes an InputError that begins with the path."""
    try:
        yield
    except ValueError as error:
        colon = "" if str(error).startswith(("is ", "has ")) else ":"
        raise InputError(f"{path}{colon} {error}") from None


def read_source(path: Path) -> Source:
    """Open a file or folder of weights; InputError if it is damaged or something else."""
    try:
        if path.is_dir():
            return _read_folder(path)
        with path.open("rb") as file:
            start = file.read(4)
        if start == b"GGUF":
            metadata, weights = gguf_read(path)
            facts = {key: value.plain for key, value in metadata.items()}
            return Source("gguf", dict(weights), facts, metadata)
        tensors, text = _read_tensors(path)
        if "config" in text and "tokenizer" in text:
            return Source("own", tensors, text)
        return Source("hub", tensors, read_json(path.parent / "config.json"))
    except ValueError as error:  # of a GGUF file, or an index
        raise InputError(str(error)) from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None


def _read_folder(folder: Path) -> Source:
    """Read a folder: one file of weights, or several with an index, and config.json; or GGUF files.
    """
    facts = read_json(folder / "config.json")
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        whole, index = folder / f"{stem}.{suffix}", folder / f"{stem}.{suffix}.index.json"
        if whole.is_file():
            return Source("hub", _read_tensors(whole)[0], facts)
        if index.is_file():
            tensors: dict[str, Weight] = {}
            for file, names in parts_of_index(index).items():
                found = _read_tensors(file)[0]
                lost = [name for name in names if name not in found]
                if lost:
                    raise InputError(f"{index} lists {lost[0]}, which {file.name} does not have")
                tensors |= {name: found[name] for name in names}
            return Source("hub", tensors, facts)
    files = sorted(folder.glob("*.gguf"))
    if files and parts_of(files[0]) == files:
        return read_source(files[0])
    raise InputError(f"{folder} has no model.safetensors, pytorch_model.bin, or index of shards")


def _read_tensors(path: Path) -> tuple[dict[str, Weight], dict[str, str]]:
    """(tensors, text beside them) of a safetensors file or a PyTorch state dict."""
    if path.suffix in PICKLED and not _is_safetensors(path):
        try:
            found: Any = nn.state.torch_load(path)
        except MinigradError as error:
            raise InputError(f"{path} is not a PyTorch state dict: {error}") from None
        for _ in range(2):  # a model in a training's state; twice at most, as it may contain itself
            if not isinstance(found, dict) or not set(found) & {"model", "state_dict"}:
                break
            found = found.get("state_dict", found.get("model"))  # with an optimizer beside it
        if not isinstance(found, dict) or not all(isinstance(t, Tensor) for t in found.values()):
            raise InputError(f"{path} is not a PyTorch state dict: expected only tensors by name")
        return dict(found), {}
    tensors, text = checkpoint.load(path)
    return dict(tensors), text


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins like one, whatever its name: a length, then JSON."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def config_of(source: Source) -> GPTConfig:
    """The shape of the model in a file; ValueError if it is not supported."""
    if source.kind == "gguf":
        config = config_of_gguf(source.facts, source.tensors)
        factors = source.tensors.get(FACTORS)
        if isinstance(factors, Tensor) and config.positions == "rotary":
            told = tuple(float(factor) for factor in factors.reshape(-1).tolist())
            config = replace(config, rotary_factors=told)
        return config
    if not source.facts:
        raise InputError(
            "is not a checkpoint of models/gpt.py, and has no config.json beside it; give a file "
            "that `train` saved, a GGUF file, or a HuggingFace folder"
        )
    return config_of_hub(source.facts)


def _parts(source: Source, config: GPTConfig) -> Iterable[Part]:
    """How the parameters of a model with this config are made of a file's tensors."""
    if source.kind == "gguf":
        return architectures.gguf(str(source.facts.get("general.architecture")), config)
    usual = "llama" if config.positions == "rotary" else "gpt2"
    kind = str(source.facts.get("model_type", usual))
    if kind != "gpt2":
        return architectures.hub(kind, config)
    prefix = "transformer." if "transformer.wte.weight" in source.tensors else ""
    first = source.tensors.get(f"{prefix}h.0.attn.c_attn.weight")
    transposed = first is None or tuple(first.shape) != (3 * config.dim, config.dim)
    return architectures.hub(kind, config, prefix, transposed)


def _build(
    kind: type[GPT], source: Source, config: GPTConfig, dtype: DType | None, positions: int
) -> GPT:
    """A model with so many positions, made of a file's tensors.

    Nothing is built before all names are known to be there.
    """
    parts = checked_parts(source, config)
    model = kind(replace(config, context=positions), initialize=False)
    wanted = {name: t._known_shape() for name, t in nn.state.get_state_dict(model).items()}
    if "wpe.weight" in wanted:
        wanted["wpe.weight"] = config.context, config.dim
    for part in parts:
        weights = [oriented(source.tensors.pop(name), name, part, config) for name in part.theirs]
        weight = _joined(weights, part, config.experts)
        if tuple(weight.shape) != wanted[part.ours]:
            theirs = " and ".join(part.theirs[:3])
            raise InputError(
                f"{theirs} give {part.ours} the shape {tuple(weight.shape)}, but the config says "
                f"{wanted[part.ours]}"
            )
        weight = _converted(weight, part, dtype)
        if isinstance(weight, Tensor) and part.ours == "wpe.weight":
            weight = weight[:positions].clone().realize() if positions < len(weight) else weight
        _place(model, part.ours, weight)
    return model


def checked_parts(source: Source, config: GPTConfig) -> list[Part]:
    """The parts of a model; InputError if a tensor is missing or left over."""
    parts = []
    for part in _parts(source, config):  # stops at the first missing one: counts may be wrong
        lost = [name for name in part.theirs if name not in source.tensors]
        if lost:
            raise InputError(f"the tensor {lost[0]} is missing")
        parts.append(part)
    used = {name for part in parts for name in part.theirs}
    rest = [name for name in source.tensors if name not in used and not IGNORED.search(name)]
    if config.tied:
        heads = ("lm_head.weight", "embed_out.weight", "output.weight")
        rest = [name for name in rest if name not in heads]
    if rest:
        raise InputError(f"the tensor {rest[0]} is not part of this architecture")
    _check_table(source, parts[0], config)
    return parts


def _check_table(source: Source, table: Part, config: GPTConfig) -> None:
    """InputError unless the token embedding has the sizes in the config, the largest in it."""
    shape = tuple(source.tensors[table.theirs[0]].shape)
    if shape != (config.vocabulary, config.dim):
        raise InputError(
            f"{table.theirs[0]} has shape {shape}, but the config says "
            f"{(config.vocabulary, config.dim)}"
        )


def oriented(weight: Weight, name: str, part: Part, config: GPTConfig) -> Weight:
    """A weight transposed, or with rows in our order: i and i + width/2 of a head are a pair."""
    if part.how == "transpose":
        if isinstance(weight, Quantized) or weight.ndim != 2:
            raise InputError(f"{name}: expected a plain matrix, got shape {tuple(weight.shape)}")
        return weight.transpose().contiguous()
    if part.how == "plus one":
        plain = weight.dequantized() if isinstance(weight, Quantized) else weight
        return plain.float() + 1
    if part.how == "interleaved":
        order = (config.heads, 3, config.width)
    elif name in part.paired:
        order = (-1, config.width // 2, 2)
    else:
        return weight
    rows = int(weight.shape[0]) if weight.shape else 1  # type: ignore[arg-type]
    heads = 3 * config.width if part.how == "interleaved" else config.width
    if rows % heads or (part.how == "interleaved" and rows != math.prod(order)):
        raise InputError(f"{name} has {rows} rows: expected whole heads of {config.width}")
    numbers = Tensor.arange(rows).reshape(order)
    axes = (0, 1) if part.how == "interleaved" else (1, 2)
    numbers = numbers.transpose(*axes).reshape(-1).realize()
    return weight.select(numbers) if isinstance(weight, Quantized) else weight[numbers].contiguous()


def _joined(weights: list[Weight], part: Part, experts: int) -> Weight | QuantizedStack:
    """Several weights as one; those that cannot stay packed together are dequantized."""
    if len({weight.shape[1:] for weight in weights}) > 1:
        shapes = " and ".join(str(tuple(weight.shape)) for weight in weights[:3])
        raise InputError(
            f"{' and '.join(part.theirs[:3])} have shapes {shapes}: expected equal row lengths"
        )
    of_experts = part.how in ("experts", "expert stacks")
    if len(weights) == 1 and not of_experts:
        return weights[0]
    packed = [weight for weight in weights if isinstance(weight, Quantized)]
    if len(packed) == len(weights) and not of_experts:
        return Quantized.stack(packed)
    plain = [w.dequantized() if isinstance(w, Quantized) else w for w in weights]
    if part.how == "expert stacks":
        stacks = [weight.reshape(experts, -1, weight.shape[-1]) for weight in plain]
        return Tensor.cat(stacks, dim=1).contiguous()
    if part.how == "experts":
        groups = [plain[i : i + part.group] for i in range(0, len(plain), part.group)]
        if len({tuple(w.shape for w in group) for group in groups}) > 1:
            raise InputError(f"the experts of {part.ours} have different shapes")
        return Tensor.stack([*map(Tensor.cat, groups)]).contiguous()
    return Tensor.cat(plain).contiguous()


def _converted(
    weight: Weight | QuantizedStack, part: Part, dtype: DType | None
) -> Weight | QuantizedStack:
    """A weight in the wanted dtype; if it is not a matrix, in at least float32, as norms are."""
    if isinstance(weight, PACKED):
        # only matrices of products can stay packed
        others = ("bias", "wpe.weight", "router.weight", "shared_gate.weight")
        multiplies = not part.ours.endswith(others)
        if dtype is None and multiplies and len(weight.shape) == 2:
            return weight
        weight = weight.dequantized()
    small = weight.ndim < 2 or part.ours == "wpe.weight" or ".router." in part.ours
    small = small or part.ours.endswith("shared_gate.weight")
    if dtype is not None:
        weight = weight.cast(dtype)
    elif not weight.dtype.is_float or (small and weight.dtype.itemsize < 4):
        weight = weight.cast(dtypes.float32)
    return weight.contiguous().realize()


def _place(model: GPT, name: str, weight: Weight | QuantizedStack) -> None:
    """Put a weight under its name; for a quantized one, replace the layer that multiplies by it."""
    *path, last = name.split(".")
    parent: Any = None
    place: Any = model
    for step in path:
        parent = place
        place = place[int(step)] if step.isdecimal() else getattr(place, step)
    if not isinstance(weight, PACKED):
        setattr(place, last, weight.requires_grad_(True))
    elif isinstance(place, nn.Embedding):
        assert isinstance(weight, Quantized)  # a table comes from one tensor
        setattr(parent, path[-1], QuantizedEmbedding(weight))
    else:
        setattr(parent, path[-1], QuantizedLinear(weight, place.bias))
