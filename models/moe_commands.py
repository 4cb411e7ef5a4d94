"""`python models/moe.py`: train a small mixture of experts and show what each expert does."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from minigrad import Mesh, Tensor
from minigrad.models import console
from minigrad.models.errors import InputError
from minigrad.models.gpt import GPT, GPTConfig
from minigrad.models.gpt_flags import add_basics
from minigrad.models.moe import recording
from minigrad.models.parallel.launch import started_by_mpi
from minigrad.models.parallel.layouts import Division, check, ending_all, is_first
from minigrad.models.parallel.training import Alone
from minigrad.models.sizing import parameters, peak_bytes
from minigrad.models.text import Windows, load_text, split
from minigrad.models.tokenizer import CharacterTokenizer
from minigrad.models.train import TrainingPlan, TrainingRun, validate

Shares = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
COMPILING = 3  # steps
BARS = "·▁▂▃▄▅▆▇█"  # a blank would be invisible


def loads(model: GPT, windows: Windows, count: int, division: Alone) -> Shares:
    """The share of choices of each expert in each block on some windows: (blocks, experts)."""
    ids, _ = next(windows.spread(count, count))
    with Tensor.no_grad(), recording() as routes:
        (tokens,) = division.batch(ids)
        model.features(tokens).realize()
        return np.stack([route.load().numpy() for route in routes])


def show_loads(shares: Shares) -> str:
    """A bar per expert, block by block; full if an expert has twice its fair share.

    The lowest bar means that nobody chose the expert.
    """
    rows = []
    for row in shares:
        places = np.minimum(row * len(row) / 2 * (len(BARS) - 1), len(BARS) - 1).round().astype(int)
        places[row > 0] = np.maximum(places[row > 0], 1)
        rows.append("".join(BARS[place] for place in places))
    return " | ".join(rows)


def parser() -> argparse.ArgumentParser:
    """The flags of the script."""
    result = console.Parser(
        description="Train a GPT with a mixture of experts, print the share of tokens that each "
        "expert gets,\nand compare the time of a step with a dense model of the same active size."
    )
    add, whole = result.add_argument, console.positive_int
    add_basics(result, layers=2, steps=200)
    add("--experts", type=whole, default=8, help="experts per block")
    add("--active", type=whole, default=2, help="active experts per token")
    add("--balance", type=console.natural_float, default=0.01,
        help="weight of the load-balancing loss; 0: no balancing")  # fmt: skip
    add("--ep", type=whole, default=1, help="split the experts, and each batch, over N devices")
    console.add_explain(add)
    console.add_common_flags(result)
    return result


def train(model: GPT, windows: Windows, run: TrainingRun, watch: Windows | None) -> float:
    """Run all steps; prints losses and loads now and then.

    Returns the median seconds per step, without the first ones, which compile; 0 if there are no
    others.
    """
    times, steps = [], run.plan.steps
    while run.done < steps:
        start = time.perf_counter()
        loss, _ = run.advance(windows)
        times.append(time.perf_counter() - start)
        if watch is not None and (run.done == 1 or run.done % max(steps // 8, 1) == 0):
            bars = show_loads(loads(model, watch, 16, run.division))
            if is_first():
                print(f"step {run.done:>5}  loss {loss:.4f}  load {bars}", flush=True)
    times = sorted(times[COMPILING:])
    return times[len(times) // 2] if times else 0.0


def main(arguments: Sequence[str]) -> None:
    """Train, print, compare."""
    flags = parser().parse_args(arguments)
    console.apply_common_flags(flags)
    console.check_explain(flags, console.given_flags(parser(), arguments))
    console.check_device_of_ranks(flags.ep)
    with ending_all():
        compare(flags)


def plan_of(flags: argparse.Namespace, vocabulary: int) -> tuple[GPTConfig, TrainingPlan]:
    """The model and its training plan; InputError if they do not fit together."""
    config = GPTConfig(
        flags.layers, flags.heads, flags.dim, flags.context, vocabulary,
        experts=flags.experts, active=flags.active, balance=flags.balance,
    )  # fmt: skip
    check(config, {"ep": flags.ep})
    if flags.batch % flags.ep:
        raise InputError(f"--batch {flags.batch} is not a multiple of --ep {flags.ep}")
    console.check_fits(
        peak_bytes(config, flags.batch, 4), f"a step of --batch {flags.batch}",
        "use a smaller --batch or model",
    )  # fmt: skip
    return config, TrainingPlan(steps=flags.steps, batch=flags.batch, lr=flags.lr, seed=flags.seed)


def compare(flags: argparse.Namespace) -> None:
    """Train a mixture of experts, and a dense model for comparison."""
    say = console.speaker(is_first())
    text = load_text(flags.text)
    tokenizer = CharacterTokenizer.of(text)
    training, validation = split(tokenizer.encode_array(text))
    windows, held_out = (Windows(ids, flags.context) for ids in (training, validation))
    config, plan = plan_of(flags, len(tokenizer))
    sizes = parameters(config)
    say(f"{sizes.total:,} parameters, {sizes.active:,} of them active per token")
    Tensor.manual_seed(flags.seed)
    model = GPT(config)
    shared = flags.ep > 1 or started_by_mpi()
    division = Division(model, Mesh(dp=1, ep=flags.ep), 0) if shared else Alone(model)
    run = TrainingRun(model, plan, division)
    if flags.explain is not None:
        run.explain(windows, flags.explain, is_first(), flags.explain_values)
        return
    say(f"load of each of {flags.experts} experts, block by block: {BARS[4]} is an equal share, "
          f"{BARS[0]} none")  # fmt: skip
    seconds = train(model, windows, run, held_out)
    loss = validate(model, held_out, 480, 48, division)
    say(f"validation loss {loss:.4f} nats per character")
    for number, row in enumerate(loads(model, held_out, 64, division), 1):
        say(f"block {number}: " + "  ".join(f"{share:.1%}" for share in row))
    if not is_first():
        return
    if not seconds:
        print(f"no step was timed, as the first {COMPILING} also compile: give more --steps")
        return
    dense = replace(config, experts=0, feed_forward=config.hidden * config.active)
    Tensor.manual_seed(flags.seed)
    other = GPT(dense)
    plain = train(other, windows, TrainingRun(other, replace(plan, steps=12)), None)
    print(f"a step took {seconds * 1e3:.1f} ms; with a dense model of the same active size, "
          f"{plain * 1e3:.1f} ms ({seconds / plain:.2f}×)")  # fmt: skip
