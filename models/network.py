"""How long training takes on many devices over which network, and what that leaves of the devices.

    python models/network.py                         # GPT-3 on 1,024 H100s, network by network
    python models/network.py --tp 8 --pp 8 --micro 32 --schedule zb
    python models/network.py small --devices 8 --peak 1Tflop/s
    python models/network.py --picture sensitivity.png
    python models/network.py measure                 # the formulas beside real trainings: --help

The formulas are those of `network_model.py`. Lines marked * are predictions only, from TCP's
behaviour with lost packets (Mathis et al., 1997): no lossy network was measured here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from minigrad.models import console
from minigrad.models.errors import InputError
from minigrad.models.gpt_config import GPTConfig
from minigrad.models.gpt_flags import add_layout
from minigrad.models.network_model import (
    Cluster,
    Layout,
    Network,
    Step,
    Work,
    bandwidth_for,
    predict,
)
from minigrad.models.parallel.schedules import SCHEDULES
from minigrad.models.pictures import check_picture, new_figure, save_figure
from minigrad.models.sizing import (
    ITEMSIZE,
    add_machine_flags,
    bytes_text,
    duration_text,
    flops_per_token,
    parameters,
    state_bytes_of_device,
)

NVLINK = Network("NVLink 4 in one box of 8", 450e9, 2e-6, 8)
NETWORKS = (
    NVLINK,
    Network("InfiniBand NDR 400 Gbit/s", 50e9, 2e-6),
    Network("Ethernet 400 Gbit/s, lossless", 50e9, 6e-6),
    Network("Ethernet 100 Gbit/s", 12.5e9, 10e-6),
    Network("Ethernet 10 Gbit/s", 1.25e9, 30e-6),
    Network("Ethernet 1 Gbit/s", 0.125e9, 50e-6),
    Network("internet 100 Mbit/s", 12.5e6, 20e-3),
)
LOSSES = (1e-4, 1e-3)  # shares of lost packets, for the lines below a lossless network
PORT = 50e9  # bytes per second: the fastest common link of a device to other boxes
SPEED = 0.4 * 989e12  # flop/s of an H100 in practice
FEW, TOKENS, PARTS = 10, 1_000_000, 40  # devices, tokens, micro-batches of the sensitivity table
# Each way of sharing a step's work, on its own.
WAYS = {"DP": Layout(dp=FEW), "SP": Layout(sp=FEW), "TP": Layout(tp=FEW),
        "PP": Layout(pp=FEW, micro=PARTS)}  # fmt: skip


def brief(seconds: float) -> str:
    """A time as a short text; a dash for 0."""
    if not seconds:
        return "–"
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if 1 <= seconds * factor < (120 if unit == "s" else 1000):
            return f"{seconds * factor:.3g} {unit}"
    return duration_text(seconds) if seconds > 1 else f"{seconds:.1g} s"


def with_lossy(networks: Sequence[Network]) -> list[Network]:
    """Networks; each lossless one is followed by its lossy versions."""
    found = []
    for network in networks:
        found.append(network)
        if network.name.endswith("lossless"):
            found += [network.lossy(loss) for loss in LOSSES]
    return found


# --- how sensitive each way is --------------------------------------------------------------------


def unhidden(
    config: GPTConfig, layout: Layout, network: Network, tokens: float = TOKENS, itemsize: int = 2,
    speed: float = SPEED,
) -> Step:  # fmt: skip
    """A step of `tokens` tokens in which no communication overlaps with computation.

    Texts have the model's context, or if devices share texts, there is a single one. speed: flop/s
    that a device reaches.
    """
    context = round(tokens) if layout.sp > 1 else config.context
    work = Work(tokens, context, itemsize)
    return predict(config, work, layout, Cluster(speed, network, 1.0, overlap=0.0))


def sensitivity(bandwidth: float) -> str:
    """Low, medium or high, by the bandwidth at which a device waits for a tenth of a step."""
    if bandwidth < PORT / 4:
        return "low"
    return "medium" if bandwidth <= PORT else "high"


def cases(config: GPTConfig) -> dict[str, tuple[GPTConfig, Layout]]:
    """The rows of the table of sensitivity; for experts, the model gets some if it has none."""
    found = {name: (config, layout) for name, layout in WAYS.items()}
    found["ZeRO-3"] = config, Layout(dp=FEW, zero=3)
    if not config.experts:
        config = replace(config, experts=FEW, active=2)
    if config.experts % FEW == 0:
        found["EP"] = config, Layout(ep=FEW)
    return {name: found[name] for name in ("DP", "ZeRO-3", "SP", "TP", "EP", "PP") if name in found}


def show_sensitivity(
    config: GPTConfig, networks: Sequence[Network], itemsize: int, speed: float
) -> None:
    """Print tables: the cost of a worse network for each way, and the share of idle time."""
    base = next(network for network in networks if network.joins(FEW))
    slow = replace(base, bandwidth=base.bandwidth / 2)
    late = replace(base, latency=base.latency * 2)
    known = cases(config)

    def step_of(name: str, network: Network) -> Step:
        model, layout = known[name]
        return unhidden(model, layout, network, itemsize=itemsize, speed=speed)

    print(f"\nsensitivity of each layout: {FEW} devices, {TOKENS:,} tokens (one text for SP), no "
          f"communication hidden,\nover {base.name}; needs: bandwidth per device for which a tenth "
          "of a step is waiting (EP: 2 of 10 experts)\n"
          f"{'':<8}{'sends':>9}{'messages':>10}{'idle':>7}{'half bandwidth':>16}"
          f"{'double latency':>16}{'needs':>13}  sensitivity")  # fmt: skip
    for name in known:
        step, slower, later = (step_of(name, network) for network in (base, slow, late))
        needs = bandwidth_for(step)
        print(f"{name:<8}{bytes_text(step.nbytes):>9}{step.messages:>10,.0f}{step.idle:>7.0%}"
              f"{slower.total / step.total - 1:>+16.1%}{later.total / step.total - 1:>+16.3%}"
              f"{bytes_text(needs) + '/s':>13}  {sensitivity(needs)}")  # fmt: skip
    print(f"\nshare of a step in which devices are idle, by network\n{'over':<46}"
          + "".join(f"{name:>8}" for name in known))  # fmt: skip
    for network in with_lossy(networks):
        if network.joins(FEW):
            print(f"{network.name:<46}"
                  + "".join(f"{step_of(name, network).idle:>8.0%}" for name in known))  # fmt: skip


def draw_sensitivity(config: GPTConfig, itemsize: int, speed: float, path: Path) -> None:
    """A picture: the idle share of each way, by bandwidth and by latency."""
    figure = new_figure(11, 4)
    axes = figure.subplots(1, 2, sharey=True)
    base = NETWORKS[1]
    faster = [replace(base, bandwidth=10 ** (8 + step / 8)) for step in range(33)]
    later = [replace(base, latency=10 ** (-6 + step / 8)) for step in range(33)]
    for name, (model, layout) in cases(config).items():
        for axis, networks, values in (
            (axes[0], faster, [network.bandwidth for network in faster]),
            (axes[1], later, [network.latency for network in later]),
        ):
            idle = [unhidden(model, layout, network, itemsize=itemsize, speed=speed).idle
                    for network in networks]  # fmt: skip
            axis.semilogx(values, idle, label=name)
    for network in NETWORKS[1:-1]:
        axes[0].axvline(network.bandwidth, color="0.8", zorder=0)
    axes[0].set(xlabel="bytes per second and device (grey: the networks of the table)",
                ylabel="idle share of a step")  # fmt: skip
    axes[1].set_xlabel("latency, seconds per message")
    axes[0].legend()
    figure.suptitle(f"{FEW} devices, {TOKENS:,} tokens per step, nothing hidden; {base.name}")
    save_figure(figure, path)
    print(f"\nsaved picture {path}")


# --- a cluster ------------------------------------------------------------------------------------


def layouts(devices: int, config: GPTConfig, micro: int, batch: float) -> list[Layout]:
    """The layouts of so many devices that fit the model.

    batch: texts per step; every copy needs one for each micro-batch.
    """
    box = min(8, devices)
    few = min(8, devices // box)
    found = [Layout(dp=devices, zero=zero) for zero in range(4)]
    found += [Layout(dp=devices // 8, sp=8), Layout(dp=devices // box, tp=box)]
    found += [Layout(dp=devices // box, tp=box, tokens=True, zero=int(devices > box))]
    found += [Layout(dp=devices // box, ep=box)]
    if few > 1:
        for schedule in SCHEDULES:
            pieces = 2 if schedule == "interleaved" else 1
            found.append(Layout(dp=devices // (box * few), tp=box, pp=few, schedule=schedule,
                                micro=micro, pieces=pieces))  # fmt: skip
        found.append(replace(found[-1], tokens=True, zero=int(found[-1].dp > 1)))
    return [one for one in found if one.devices == devices and _goes(one, config, batch)]


def _goes(layout: Layout, config: GPTConfig, batch: float) -> bool:
    """Whether a layout fits a model and a batch."""
    try:
        layout.check(config)
    except ValueError:
        return False
    return layout.batch * (layout.micro if layout.pp > 1 else 1) <= max(batch, 1)


def show_layouts(config: GPTConfig, work: Work, cluster: Cluster, devices: int, micro: int) -> None:
    """Print a table: a step of each layout over one network."""
    count = parameters(config)
    inner = "" if cluster.inner is None else f", {cluster.inner.name}"
    print(f"\na step by layout, over {cluster.network.name}{inner}\n{'layout':<52}"
          f"{'state':>9}{'compute':>13}{'gaps':>13}{'network':>13}{'exposed':>13}{'busy':>9}"
          )  # fmt: skip
    for layout in layouts(devices, config, micro, work.tokens / work.context):
        step = predict(config, work, layout, cluster)
        experts = count.feed_forward if config.experts else 0
        own = (count.total - experts + experts / layout.ep) / (layout.tp * layout.pp)
        state = state_bytes_of_device(own, layout.dp, layout.zero, work.itemsize)
        times = (step.compute, step.gaps, step.network, step.exposed)
        print(f"{layout!s:<52}{bytes_text(state):>9}"
              + "".join(f"{brief(time):>13}" for time in times)
              + f"{1 - step.idle:>9.0%}")  # fmt: skip


def show_networks(
    config: GPTConfig, work: Work, layout: Layout, cluster: Cluster,
    networks: Sequence[Network], steps: float,
) -> None:  # fmt: skip
    """Print a table: a step of one layout over each network."""
    print(f"{'over':<46}{'network':>13}{'exposed':>13}{'gaps':>13}{'a step':>13}{'busy':>9}"
          f"   {steps:,.0f} steps")  # fmt: skip
    for network in with_lossy(networks):
        if not network.joins(layout.devices):
            print(f"{network.name:<46}connects at most {network.most} devices")
            continue
        step = predict(config, work, layout, replace(cluster, network=network))
        times = (step.network, step.exposed, step.gaps, step.total)
        print(f"{network.name:<46}" + "".join(f"{brief(time):>13}" for time in times)
              + f"{1 - step.idle:>9.0%}   {duration_text(step.total * steps)}")  # fmt: skip
    print("* predicted only, with the formula of Mathis et al. (1997)")


def parser() -> argparse.ArgumentParser:
    """The flags of the script."""
    result = console.Parser(
        description="Predict how long a training step takes, by layout and network.\n\n"
        "`measure --help` explains how to compare predictions with real trainings."
    )
    add, number, whole = result.add_argument, console.positive_float, console.positive_int
    add_machine_flags(result)
    add("--devices", type=whole,
        help="devices in all (default: the product of the axes, or without --dp about 1024)")
    add("--dp", type=whole, help="copies of the model (default: --devices / the other axes)")
    add_layout(add)
    add("--micro", type=whole, default=32, help="micro-batches of a --pp pipeline")
    add("--box", type=whole, default=8, help="devices connected by NVLink")
    add("--batch-tokens", type=number, default=3.2e6, help="tokens per step, on all devices")
    add("--overlap", type=console.limited(float, 0.0, "a number of at least 0", 1.0), default=1.0,
        help="share of overlappable communication that does overlap")  # fmt: skip
    add("--bandwidth", type=console.amount("B/s", 1e3),
        help="add a network with this bandwidth, such as 50GB/s")  # fmt: skip
    add("--latency", type=number, help="latency of that network, in seconds (default: 1e-5)")
    add("--picture", metavar="F.png", help="draw idle time by bandwidth and by latency")
    return result


def layout_of(flags: argparse.Namespace) -> Layout:
    """The layout of the flags; InputError if they do not fit together."""
    tokens = flags.sp > 1 and flags.tp > 1
    if tokens and flags.sp != flags.tp:
        raise InputError(f"--sp {flags.sp} with --tp {flags.tp}: the same devices share the tokens "
                         "between matrices; give both the same number")  # fmt: skip
    others = flags.tp * (1 if tokens else flags.sp) * flags.pp * flags.ep
    devices = flags.devices or (flags.dp * others if flags.dp else max(1024 // others, 1) * others)
    if devices % others or flags.dp not in (None, devices // others):
        raise InputError(f"--devices {devices} cannot be {flags.dp or 'copies'} × {others}: "
                         "give the product of --dp, --tp, --sp, --pp and --ep")  # fmt: skip
    return Layout(
        devices // others, flags.tp, 1 if tokens else flags.sp, flags.pp, flags.ep, flags.zero,
        tokens, flags.schedule, flags.micro, flags.pieces,
    )  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    """Print the tables, or measure."""
    if arguments and arguments[0] == "measure":
        from minigrad.models import network_measure  # which needs what the tables do not

        network_measure.main(arguments[1:])
        return
    flags = parser().parse_args(arguments)
    check_picture(flags.picture)
    if flags.pp == 1:
        given = console.given_flags(parser(), arguments)
        console.refuse_idle(given & {"schedule", "pieces"}, "without --pp: also give --pp 2")
    layout = layout_of(flags)
    config = GPTConfig.preset(flags.model)
    layout.check(config)
    networks = list(NETWORKS)
    if flags.bandwidth is not None:
        networks.append(Network("yours", flags.bandwidth, flags.latency or 1e-5))
    elif flags.latency is not None:
        console.refuse_idle(["latency"], "without --bandwidth: also give --bandwidth")
    itemsize, steps = ITEMSIZE[flags.dtype], flags.tokens / flags.batch_tokens
    work = Work(flags.batch_tokens, config.context, itemsize)
    inner = NVLINK if flags.box > 1 else None
    cluster = Cluster(flags.peak, networks[1], flags.utilization, flags.box, inner, flags.overlap)
    step = predict(config, work, layout, cluster)
    print(f"{flags.model}: {parameters(config).total:,} parameters; {layout.devices:,} devices: "
          f"{layout}\na step of {flags.batch_tokens:,.0f} tokens: {flops_per_token(config):.3g} "
          f"flops each, {duration_text(step.compute)} of computation; each device sends "
          f"{bytes_text(step.nbytes)} in {step.messages:,.0f} messages\n")  # fmt: skip
    show_networks(config, work, layout, cluster, networks, steps)
    show_layouts(config, work, cluster, layout.devices, flags.micro)
    speed = flags.peak * flags.utilization
    show_sensitivity(config, networks[1:], itemsize, speed)
    if flags.picture is not None:
        draw_sensitivity(config, itemsize, speed, Path(flags.picture))


if __name__ == "__main__":
    sys.exit(console.run(main))
