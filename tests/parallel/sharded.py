"""Small GPTs on meshes: their losses, and the bytes of a step. Also run as a module, over MPI."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from minigrad import Device, Mesh, Tensor, jit, nn
from minigrad.models.gpt import GPT, GPTConfig
from minigrad.models.parallel import layouts, parts
from minigrad.models.parallel.layouts import Division
from minigrad.models.parallel.mpi import world

CONFIG = GPTConfig(vocabulary=64, context=16, layers=2, heads=4, dim=32)
MIXED = replace(CONFIG, experts=4, active=2)
BATCH, STEPS = 8, 5  # the third step is captured, the fourth replayed
# name → axes, ZeRO stage, whether "tp" also divides the tokens between matrices
LAYOUTS = {
    "zero 1": ({"dp": 4}, 1, False), "zero 2": ({"dp": 4}, 2, False),
    "zero 3": ({"dp": 4}, 3, False), "dp × tp": ({"dp": 2, "tp": 2}, 0, False),
    "zero 3 × tp": ({"dp": 2, "tp": 2}, 3, False), "sp": ({"dp": 1, "tp": 4}, 0, True),
    "dp × sp": ({"dp": 2, "tp": 2}, 0, True), "ep": ({"dp": 1, "ep": 4}, 0, False),
    "dp × ep": ({"dp": 2, "ep": 2}, 0, False), "zero 3 × ep": ({"dp": 2, "ep": 2}, 3, False),
    "ep × tp": ({"dp": 1, "ep": 2, "tp": 2}, 0, False),
}  # fmt: skip
MIXTURES = tuple(name for name in LAYOUTS if "ep" in name.split())


DEEP = GPTConfig(vocabulary=64, context=16, layers=4, heads=4, dim=32)
DEEPER = replace(DEEP, layers=8)  # for pipelines with more pieces
# name → stages, axes, schedule, micro-batches, pieces per stage, ZeRO stage, tokens divided
PIPELINES: dict[str, tuple[int, dict[str, int], str, int, int, int, bool]] = {
    "gpipe": (4, {"dp": 1}, "gpipe", 2, 1, 0, False),
    "1f1b": (4, {"dp": 1}, "1f1b", 8, 1, 0, False),
    "interleaved": (4, {"dp": 1}, "interleaved", 4, 2, 0, False),
    "zb": (4, {"dp": 1}, "zb", 8, 1, 0, False),
    "interleaved × dp": (2, {"dp": 2}, "interleaved", 4, 2, 0, False),
    "zb × tp": (2, {"dp": 1, "tp": 2}, "zb", 4, 1, 0, False),
    "1f1b × sp": (2, {"dp": 1, "tp": 2}, "1f1b", 4, 1, 0, True),
    "1f1b × zero 3": (2, {"dp": 2}, "1f1b", 2, 1, 3, False),
}  # fmt: skip
# Layouts run over MPI. Only the transport differs, so these are enough: they contain every kind of
# exchange (also dtype, size of group, one array or several) and of message between stages.
OVER_MPI = ("zero 3", "dp × sp", "zero 3 × tp", "ep", "ep × tp", "interleaved", "zb × tp")


def config_of(layout: str) -> GPTConfig:
    """The model for a layout."""
    if layout in PIPELINES:
        stages, *_, pieces, _, _ = PIPELINES[layout]
        return DEEP if stages * pieces <= DEEP.layers else DEEPER
    return MIXED if layout in MIXTURES else CONFIG


def optimizer_of(name: str, params: Any) -> Any:
    """The optimizer under test."""
    if name == "sgd":
        return nn.optim.SGD(params, lr=0.1, momentum=0.9)
    return nn.optim.AdamW(params, lr=1e-3)


def batches() -> Iterator[list[Any]]:
    """Tokens and targets of each step."""
    generator = np.random.default_rng(0)
    for _ in range(STEPS):
        tokens = generator.integers(0, 64, (BATCH, 17)).astype(np.int32)
        yield [tokens[:, :-1].copy(), tokens[:, 1:].copy()]


def staged(layout: str, optimizer: str) -> dict[str, Any]:
    """Losses of a pipeline's steps and of a validation; bytes between stages, sent and by formula.
    """
    Tensor.manual_seed(1)
    stages, axes, schedule, micro, pieces, zero, tokens = PIPELINES[layout]
    model = GPT(config_of(layout))
    made = layouts.pipeline(model, stages, axes, schedule, micro, pieces, zero, tokens)
    made.train_with(lambda params: optimizer_of(optimizer, params), 0)
    found = [made.step(*batch) for batch in batches()]
    sent = sum(stage.port.bytes_sent for stage in made.here)
    found.append(made.loss(*next(batches())))
    tp, dp = axes.get("tp", 1), axes["dp"]
    tied = 2 * 64 * DEEP.dim * 4 * tp * (1 if zero else dp)  # gradients of tied weights' copies
    inner = 2 * (stages * pieces - 1) * BATCH * 16 * DEEP.dim * 4 * (1 if tokens else tp)
    return {"losses": found, "sent": sent, "formula": STEPS * (tied + inner)}


def losses(
    layout: str | None, optimizer: str, config: GPTConfig = CONFIG
) -> dict[str, Any]:
    """Losses of some steps; bytes planned and sent, and the bytes of one step by formula."""
    Tensor.manual_seed(1)
    model = GPT(config if layout is None else config_of(layout))
    division = None
    if layout is not None:
        axes, zero, tokens = LAYOUTS[layout]
        division = Division(model, Mesh(**axes), zero, tokens)
    params = nn.state.get_parameters(model)
    rule = optimizer_of(optimizer, params)
    if division is not None:
        division.take(rule)

    @jit
    def step(ids: Tensor, targets: Tensor) -> Tensor:
        rule.zero_grad()
        loss = model.loss(ids, targets)
        loss.backward()
        rule.step(forget=True)
        return loss.realize()

    runtime: Any = None if division is None else Device[division.mesh.name]
    before = (0, 0) if runtime is None else (runtime.planned, runtime.bytes_sent)
    found, of_a_step = [], 0
    with Tensor.train():
        for batch in batches():
            pair = [*map(Tensor, batch)] if division is None else division.batch(*batch)
            planned = 0 if runtime is None else runtime.planned
            loss = step(*pair)
            of_a_step = 0 if runtime is None else runtime.planned - planned
            found.append(loss.item())
    with Tensor.no_grad():
        if division is None:
            found.append(model.loss(*map(Tensor, next(batches()))).item())
    result = {"losses": found}
    if division is not None:
        result |= {
            "planned": runtime.planned - before[0], "sent": runtime.bytes_sent - before[1],
            "step": of_a_step, "formula": formula(division, params, tokens),
        }  # fmt: skip
    return result


def formula(division: Division, params: list[Tensor], tokens: bool) -> float | None:
    """Bytes that all ranks together send in a step, except a few scalars."""
    sizes, zero = division.mesh.sizes, division.zero
    dp, tp, ep = (sizes.get(axis, 1) for axis in ("dp", "tp", "ep"))
    if ep > 1 and (tp > 1 or zero):
        return None
    if ep > 1:
        ranks, choices = dp * ep, BATCH * CONFIG.context * MIXED.active
        # rows there and back, forward and backward, and their experts; buffers for all choices
        rows = CONFIG.layers * (4 * CONFIG.dim + 1) * choices * (ep - 1) * 4
        alike = [p for p in params if "ep" not in p.sharding]
        own, whole = (sum(4 * int(p.numel()) for p in some) for some in (params, alike))
        return rows + 2 * (ranks - 1) * whole + 2 * (dp - 1) * (own - whole)
    own = sum(
        int(p.numel()) * 4 // (tp if "tp" in p.sharding else 1) for p in params
    )  # a rank's share of the weights if dp did not divide them  # fmt: skip
    weights = (3 if zero == 3 else 2) * (dp - 1) * own * tp
    # an all_reduce for each, or a reduce_scatter and an all_gather; one of either at both ends
    passes = 4 * CONFIG.layers + tokens
    activations = passes * BATCH * CONFIG.context * CONFIG.dim * 4 // dp
    if not tokens:  # the last one sends both tables' gradients, if these are smaller
        count = BATCH * CONFIG.context // dp
        tables = (CONFIG.vocabulary + CONFIG.context + 2) * CONFIG.dim + 2 * count  # and a norm's
        activations -= 4 * max(count * CONFIG.dim - tables, 0)
    return weights + 2 * (tp - 1) * activations * dp


def save_in_parts(folder: Path) -> None:
    """Save models as their ranks hold them, each twice: in parts, under the names of their layouts.
    """
    ranks = world()
    assert ranks is not None
    named = {}
    for name, config, axes, zero in (
        ("mixture", MIXED, {"dp": 1, "ep": 2, "tp": 2}, 0), ("zero", CONFIG, {"dp": 2, "tp": 2}, 3),
    ):  # fmt: skip
        Tensor.manual_seed(1)
        model = GPT(config)
        Division(model, Mesh(**axes), zero)
        named[name] = nn.state.get_state_dict(model)
    Tensor.manual_seed(1)
    stages, axes, *rest = PIPELINES["zb × tp"]
    made = layouts.pipeline(GPT(DEEP), stages, axes, *rest)
    made.train_with(lambda params: optimizer_of("adamw", params), 0)
    named["stages"] = {**made.named, **made.state_dict()}
    for name, tensors in named.items():
        for _ in range(2):
            parts.save(folder / name, tensors, {"name": name}, ranks)


def over_mpi(names: Iterable[str]) -> dict[str, Any]:
    """Results of some layouts on this rank; "sent" is the total of all ranks."""
    from mpi4py import MPI

    found = {}
    for layout in names:
        part = (staged if layout in PIPELINES else losses)(layout, "sgd")
        part["sent"] = MPI.COMM_WORLD.allreduce(part["sent"])
        found[layout] = part
    return found


if __name__ == "__main__":
    folder, *names = sys.argv[1:]
    save_in_parts(Path(folder))
    result = over_mpi(names)
    from mpi4py import MPI

    gathered = MPI.COMM_WORLD.gather(result)
    if gathered is not None:
        print(pickle.dumps(gathered).hex())
    sys.exit()
