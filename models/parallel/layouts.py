"""The division of a GPT and its optimizer among the devices of a mesh.

tp    columns of c_attn (by heads) and c_fc, rows of c_proj, so that a block is two sums over "tp"
      forward and two backward (Shoeybi et al., "Megatron-LM", 2019)
sp    the tokens between these matrices are divided over "tp", too: a sum becomes a reduce_scatter,
      and an all_gather comes before the next matrix, of as many bytes together (Korthikanti et al.,
      "Reducing Activation Recomputation in Large Transformer Models", 2022)
ep    experts of a mixture; of a batch, too, each device has a part, and each choice of an expert
      goes to the device that has it, by all_to_all, and its answer back (Lepikhin et al., "GShard",
      2020); no token is dropped
zero  what AdamW keeps (1), gradients too (2), parameters too (3) are divided over "dp" (Rajbhandari
      et al., "ZeRO", 2020)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

from minigrad import Blocks, Device, Mesh, P, Tensor, nn
from minigrad.graph.sharding import mark
from minigrad.models import console
from minigrad.models.errors import InputError
from minigrad.models.interrupt import EndedAtOnce, Stopped
from minigrad.models.parallel import mpi
from minigrad.models.parallel.launch import Rank, run, started_by_mpi
from minigrad.models.parallel.mesh_device import runtime_of
from minigrad.models.parallel.mpi import world
from minigrad.models.parallel.pieces import Piece
from minigrad.models.parallel.pipeline import Pipeline, of_rows
from minigrad.models.parallel.schedules import (
    Table,
    bubble,
    layers_of_pieces,
    make_table,
    picture,
    simulate,
)
from minigrad.models.parallel.tracing import traced
from minigrad.models.parallel.training import Alone, Divided, Replica
from minigrad.models.sizing import flops_per_token
from minigrad.settings import flag


def spec_of(name: str, config: Any, sizes: Mapping[str, int]) -> P:
    """The mesh axes that divide a parameter, by its name."""
    tp, ep = (axis if sizes.get(axis, 1) > 1 else None for axis in ("tp", "ep"))
    experts = (ep,) if config.experts and ".mlp.c_" in name else ()
    if tp is None:
        return P(*experts)
    if ".c_attn." in name:
        return P(Blocks(tp, 3))
    if ".mlp.c_fc." in name:
        return P(*experts, Blocks(tp, 2 if config.gated else 1))
    if name.endswith("c_proj.weight"):
        return P(*experts, None, tp)
    return P(*experts)


def check(config: Any, sizes: Any) -> None:
    """InputError if a model cannot be divided so."""
    tp, ep = sizes.get("tp", 1), sizes.get("ep", 1)
    if ep > 1 and (not config.experts or config.experts % ep):
        raise InputError(f"--ep {ep} with {config.experts} experts: give --experts a multiple of "
                         f"{ep}")  # fmt: skip
    if tp == 1:
        return
    if config.key_value_heads != config.heads:
        raise InputError(
            f"--key-heads {config.key_value_heads} with --tp: query and key heads cannot be split "
            "in the same way; leave --key-heads out"
        )
    if config.heads % tp:
        raise InputError(f"--tp {tp} with {config.heads} heads: give --tp a divisor of that")
    if config.hidden % tp:
        raise InputError(f"--tp {tp} with feed-forward width {config.hidden}: give a divisor")


def divide(
    model: Any, mesh: Mesh, zero: int = 0, optimizer: nn.optim.Optimizer | None = None,
    named: Mapping[str, Tensor] | None = None,
) -> None:  # fmt: skip
    """Put a GPT on a mesh; or its optimizer's state, if an optimizer is given.

    zero: 0 … 3, as above; over the axis "dp". named: some of its parameters instead of all.
    """
    stored = "dp" if mesh.sizes.get("dp", 1) > 1 else None
    specs = {}
    for name, parameter in (named or nn.state.get_state_dict(model)).items():
        specs[id(parameter)] = spec = spec_of(name, model.config, mesh.sizes)
        if optimizer is None:
            parameter.shard_(mesh, spec, stored=stored if zero == 3 else None)
    if optimizer is not None:
        for tensors in optimizer.moments.values():
            for parameter, tensor in zip(optimizer.params, tensors, strict=True):
                spec = specs[id(parameter)]
                tensor.shard_(mesh, spec, stored=stored if zero else None)


def divide_tokens(model: Any) -> None:
    """Make the devices of "tp" share the tokens between matrices, as above; the model is on a mesh.
    """
    for part in (model, *model.h):
        part.gather, part.scatter = _gather_tokens, _scatter_tokens


def divide_experts(model: Any, mesh: Mesh) -> None:
    """Make the devices share tokens, and those of "ep" experts; the model is on a mesh."""
    for block in model.h if model.config.experts else ():
        block.mlp.lead = tuple(mesh.sizes.get(name, 1) for name in ("dp", "ep"))
        block.mlp.place = _by_place


def _by_place(x: Tensor) -> Tensor:
    """Shard an array (groups, places, …) over the mesh."""
    mesh = Device.meshes[x.raw.device]
    return x.shard(mesh, P(*(axis if axis in mesh.sizes else None for axis in ("dp", "ep"))))


def _gather_tokens(x: Tensor) -> Tensor:
    mesh = Device.meshes[x.raw.device]
    return x.shard(mesh, _rows(x, mesh, "tp")).shard(mesh, _rows(x, mesh))


def _scatter_tokens(x: Tensor) -> Tensor:
    """For a sum that is still open; its gradient is gathered."""
    mesh = Device.meshes[x.raw.device]
    rows = _rows(x, mesh).dims(x.shape, mesh.sizes, mesh.name)
    return Tensor._of(mark(x.node, rows, is_open=True)).shard(mesh, _rows(x, mesh, "tp"))


def _rows(x: Any, mesh: Mesh, *tokens: str) -> P:
    """The division of an array whose first dimension is the batch."""
    shared = tuple(axis for axis in ("dp", "ep") if axis in mesh.sizes)
    return of_rows(P(shared, *tokens), x.shape[0])


def pipeline(
    model: Any, stages: int, axes: Mapping[str, int], schedule: str, micro: int,
    pieces: int, zero: int = 0, tokens: bool = False,
) -> Pipeline:  # fmt: skip
    """A GPT at stages of devices, each with `pieces` pieces of it; axes: "dp" and "tp".

    tokens: those between matrices are divided, too.
    """
    count, layers = stages * pieces, len(model.h)
    if layers < count:
        raise InputError(f"{layers} layers cannot be split into {count} pieces: give more "
                         "--layers, or a smaller --pp or --pieces")  # fmt: skip
    table = make_table(schedule, stages, micro, count)
    cut, sizes = cut_layers(table, model.config)
    named = nn.state.get_state_dict(model)
    if tokens:
        divide_tokens(model)
    ends = pairwise(accumulate(cut, initial=0))
    made = [_piece(model, named, *part, size) for part, size in zip(ends, sizes, strict=True)]
    spec = P("dp", "tp") if tokens else P("dp")

    def place(some: Mapping[str, Tensor], mesh: Mesh, optimizer: Any = None) -> None:
        divide(model, mesh, zero, optimizer, some)

    return Pipeline(named, made, table, axes, model.config.dim, spec, place)


def cut_layers(table: Table, config: Any) -> tuple[list[int], list[float]]:
    """Layers of each piece for a table, and the time of each piece in layers."""
    one, two = (flops_per_token(replace(config, layers=n, layer_kinds="")) for n in (1, 2))
    behind = one / (two - one) - 1  # the logits
    layers = layers_of_pieces(table, config.layers, behind)
    return layers, [*layers[:-1], layers[-1] + behind]


def _piece(model: Any, named: Mapping[str, Tensor], first: int, stop: int, size: float) -> Piece:
    """Layers first … stop − 1, with the embedding before the first and the loss after the last."""
    ends = stop == len(model.h)
    own = tuple(f"h.{number}." for number in range(first, stop))
    own += (() if first else ("wte.", "wpe.")) + (("ln_f.", "lm_head.") if ends else ())
    params = {name: tensor for name, tensor in named.items() if name.startswith(own)}
    shared: frozenset[str] = frozenset()
    if model.config.tied and (ends or not first):
        shared = frozenset(("wte.weight",))
    end = model
    if model.config.tied and ends:  # the loss uses the embedding's matrix, so it has a copy
        end = copy(model)
        end.wte = copy(model.wte)
        with Tensor.no_grad():
            end.wte.weight = model.wte.weight.clone().realize().requires_grad_(True)
        params["wte.weight"] = end.wte.weight

    def forward(x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        entry = y = x if first else model.embed(x)
        for block in model.h[first:stop]:
            y = block(y)
        if ends:
            y = end.unembed(end.ln_f(y)).cross_entropy(targets, axis=-1)
        return entry, y

    return Piece(forward, params, size, shared)


# --- how devices share a training, by the flags of `gpt.py` -------------------------------------


def is_divided(flags: Any) -> bool:
    """Whether the flags divide the model itself; otherwise each rank has all of it."""
    routed = flags.experts and flags.dp > 1  # their load balance is that of the whole batch
    return bool(flags.tp > 1 or flags.ep > 1 or flags.zero or flags.pp > 1 or routed)


def devices_of(flags: Any) -> int:
    """The number of devices."""
    return int(flags.dp * flags.ep * flags.pp * max(flags.sp, flags.tp))


def on_devices(
    flags: Any, function: Callable[[Rank | None], Any], trace: str | None = None
) -> Any:
    """Call function(rank); returns its result, or that of the first rank in this process.

    Ranks with a whole model each call it at once. Devices that divide a model need one call only,
    and a single device does: then `rank` is None.
    """
    if is_divided(flags):
        with ending_all(), traced(trace):
            return function(None)
        return None  # ranks but the first, if all agreed to stop
    if devices_of(flags) == 1 and not started_by_mpi():
        console.refuse_trace(trace, "--dp, --sp, --tp, --ep or --pp")
        return function(None)
    found = run(function, flags.dp, flags.sp, trace=trace)
    return next((one for one in found if one is not None), None)


def division_of(flags: Any, model: Any, length: int, rank: Rank | None = None) -> Alone:
    """How devices share a GPT that learns from windows of `length` tokens; rank: of `on_devices`.
    """
    if rank is not None:
        return Replica.of_gpt(rank, model, length)
    if not is_divided(flags):
        return Alone(model)
    axes = {"dp": flags.dp, "ep": flags.ep, "tp": flags.tp}
    if flags.ep == 1:
        del axes["ep"]
    if flags.pp == 1:
        return Division(model, Mesh(**axes), flags.zero, flags.sp > 1)
    made = pipeline(
        model, flags.pp, axes, flags.schedule, flags.micro, flags.pieces, flags.zero, flags.sp > 1
    )
    if is_first():
        rows = simulate(made.table, sizes=[piece.size for piece in made.pieces])
        print(f"{flags.schedule}, {flags.micro} micro-batches: {bubble(rows):.1%} of a step is "
              f"idle, if devices are equally fast\n{picture(rows)}")  # fmt: skip
    return made


def is_first() -> bool:
    """Whether this is the process that prints and writes files."""
    ranks = world()
    return ranks is None or ranks.rank == 0


class Division(Divided):
    """A GPT on a mesh for a training loop: its batches and gradients."""

    mesh: Mesh

    def __init__(self, model: Any, mesh: Mesh, zero: int, tokens: bool = False) -> None:
        super().__init__(model)
        self.mesh, self.zero = mesh, zero
        self.is_first = is_first()
        self.device = runtime_of(mesh).local[0].device
        self._like: dict[int, Tensor] = {}
        divide(model, mesh, zero)
        if tokens:
            divide_tokens(model)
        divide_experts(model, mesh)

    def batch(self, *arrays: Any) -> list[Tensor]:
        """numpy arrays (batch, …) as tensors, divided over "dp" and "ep"."""
        made = [Tensor(array, device=self.device).shard(self.mesh, _rows(array, self.mesh))
                for array in arrays]  # fmt: skip
        Tensor.realize(*made)
        return made

    def take(self, optimizer: nn.optim.Optimizer) -> None:
        """Divide the state of an optimizer."""
        divide(self.model, self.mesh, self.zero, optimizer)
        first = next(iter(optimizer.moments.values()), optimizer.params)
        self._like = {id(p): m for p, m in zip(optimizer.params, first, strict=True)}

    def divide_gradients(self, params: Sequence[Tensor]) -> None:
        """From ZeRO-2 on, no device has a whole gradient, not even between two parts of a batch."""
        for param in params if self.zero >= 2 else ():
            if param.grad is not None:
                like = self._like[id(param)]
                param.grad = param.grad.shard_like(like).requires_grad_(False)


@contextmanager
def ending_all() -> Iterator[None]:
    """Under MPI, an exception that ends this process in the block ends all, with a sentence.

    If all have agreed to stop, the first process says so, and the others go on behind the block.
    """
    try:
        yield
    except BaseException as error:
        library = mpi.library(float(flag("PATIENCE")))
        agreed_upon = isinstance(error, Stopped) and not isinstance(error, EndedAtOnce)
        if agreed_upon and not is_first():
            return  # the first process reports, and ends all
        if library is not None:
            mpi.abort(library, error)
        raise
