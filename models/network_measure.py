"""Compare predictions with measured trainings: `python models/network.py measure`.

Creates two to four network namespaces on this machine (`network_link.py`; needs root), trains a
small GPT over MPI between them, in each layout, and sets the bandwidth and latency of their link.
The time of computation is that of a step over the unlimited link; the rest is predicted
(`network_model.py`) for the bandwidth that was set.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import FrameType

from minigrad.graph.buckets import BUCKET
from minigrad.models import console
from minigrad.models.errors import InputError
from minigrad.models.gpt_config import GPTConfig
from minigrad.models.interrupt import Interruption, Stopped
from minigrad.models.network_link import Link, NoLink
from minigrad.models.network_model import Cluster, Layout, Network, Work, predict
from minigrad.models.network_trial import started
from minigrad.models.parallel.schedules import SCHEDULES

FAST = Network("unshaped", 1e18, 0.0)
AT_ONCE = 1 << 17  # bytes of a message that MPICH sends without a handshake


def kinds(ranks: int, micro: int) -> dict[str, Layout]:
    """The layouts that can be measured, by their --kinds names."""
    found = {
        "dp": Layout(dp=ranks), "zero3": Layout(dp=ranks, zero=3), "sp": Layout(sp=ranks),
        "tp": Layout(tp=ranks), "tp+sp": Layout(tp=ranks, tokens=True),
    }  # fmt: skip
    for schedule in SCHEDULES:
        pieces = 2 if schedule == "interleaved" else 1
        found[schedule] = Layout(pp=ranks, schedule=schedule, micro=micro, pieces=pieces)
    found["ep"] = Layout(ep=ranks)
    if ranks == 4:
        found["dp×tp"] = Layout(dp=2, tp=2)
    return found


@dataclass(frozen=True)
class Row:
    """One kind over one link: seconds of a step, predicted and measured."""

    kind: str
    network: Network
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """The relative error of the prediction; positive if it is too high."""
        return self.predicted / self.measured - 1


def rows_of(
    kind: str, layout: Layout, config: GPTConfig, batch: int, link: Link,
    networks: Sequence[Network], count: int,
) -> Iterator[Row]:  # fmt: skip
    """Measure one kind over each network; the first row is the unshaped link.

    That one is measured before and after the others, because a machine's speed drifts.
    """
    work = Work(batch * config.context, config.context, 4)
    hosts = [link.command(number) for number in range(layout.devices)]
    with started(layout, config, batch, hosts) as job:
        found = []
        for network in (FAST, *networks, FAST):
            link.shape(None if network is FAST else network.bandwidth)
            if link.relayed:
                link.delay(network.latency)
            found.append(job.steps(count).seconds)
    base = (found[0] + found[-1]) / 2
    yield Row(kind, FAST, base, base)
    compute = base / predict(config, work, layout, Cluster(1.0, FAST), 1.0).total
    for network, measured in zip(networks, found[1:], strict=False):
        seen = replace(network, at_once=AT_ONCE)
        step = predict(config, work, layout, Cluster(1.0, seen, bucket=BUCKET), compute)
        yield Row(kind, network, step.total, measured)


class EndedBySignals(Interruption):
    """Ctrl-C and SIGTERM raise Stopped in the block, once, so that cleaning up is not interrupted.
    """

    def _notice(self, number: int, frame: FrameType | None) -> None:
        for one in self.signals:
            signal.signal(one, signal.SIG_IGN)
        raise Stopped(number, "stopped; processes and namespaces were removed")


def parser() -> argparse.ArgumentParser:
    """The flags of `measure`."""
    result = console.Parser(prog="network.py measure", description=__doc__)
    add, whole = result.add_argument, console.positive_int
    add("--ranks", type=int, choices=(2, 3, 4), default=2,
        help="network namespaces, with one rank each")  # fmt: skip
    add("--kinds", nargs="+", metavar="KIND", help="layouts: dp zero3 sp tp tp+sp gpipe 1f1b "
        "interleaved zb ep (and dp×tp with 4 ranks; default: dp sp tp 1f1b zb)")  # fmt: skip
    add("--bandwidth", nargs="*", type=console.amount("B/s", 1e5), default=[100e6, 50e6, 25e6],
        help="bandwidths of the link (default: 100MB/s 50MB/s 25MB/s)")  # fmt: skip
    add("--latency", nargs="*", type=console.natural_float, default=[],
        help="latencies in seconds, such as 0.005: a relay delays packets, at the first bandwidth")
    add("--steps", type=whole, default=5, help="steps per measurement; the median counts")
    add("--batch", type=whole, default=8, help="windows of text per step, on all ranks together")
    for name, number in (("layers", 4), ("heads", 4), ("dim", 256), ("context", 64),
                         ("micro", 4)):  # fmt: skip
        add(f"--{name}", type=whole, default=number,
            help="micro-batches of pipelines" if name == "micro" else f"{name} of the model")
    return result


def measured(flags: argparse.Namespace) -> Iterator[Row]:
    """All rows that the flags ask for; NoLink if this machine cannot make a link."""
    known = kinds(flags.ranks, flags.micro)
    chosen = flags.kinds or ["dp", "sp", "tp", "1f1b", "zb"]
    configs: dict[str, GPTConfig] = {}
    for kind in chosen:
        if kind not in known:
            raise InputError(f"--kinds: expected some of {' '.join(known)}, got {kind}")
        try:
            config = GPTConfig(flags.layers, flags.heads, flags.dim, flags.context, 65)
            routed = replace(config, experts=2 * flags.ranks)
            configs[kind] = routed if kind == "ep" else config
            known[kind].check(configs[kind])
        except ValueError as error:
            raise InputError(f"--kinds {kind}: {error}") from None
    shaped = [Network("", bandwidth, 0.0) for bandwidth in flags.bandwidth]
    late = [Network("", flags.bandwidth[0] if flags.bandwidth else 100e6, latency)
            for latency in flags.latency]  # fmt: skip
    for relayed, networks in ((False, shaped), (True, late)):
        if not networks:
            continue
        with Link(flags.ranks, relayed) as link:
            for kind in chosen:
                yield from rows_of(kind, known[kind], configs[kind], flags.batch, link, networks,
                                   flags.steps)  # fmt: skip


def show(row: Row) -> str:
    """A row as a line of the table."""
    network = row.network
    link = "unshaped" if network is FAST else f"{network.bandwidth / 1e6:g} MB/s"
    late = f"{1e3 * network.latency:g} ms" if network.latency else ""
    first = f"{row.kind:<12}{link:>12}{late:>9}"
    if network is FAST:
        return f"{first}{'':>12}{1e3 * row.measured:>9.1f} ms"
    return f"{first}{1e3 * row.predicted:>9.1f} ms{1e3 * row.measured:>9.1f} ms{row.error:>+9.0%}"


def main(arguments: Sequence[str]) -> None:
    """Measure, and print each line when it is known; status 2 if there can be no link."""
    flags = parser().parse_args(arguments)
    head = f"{'kind':<12}{'link':>12}{'late':>9}{'predicted':>12}{'measured':>12}{'error':>9}\n"
    try:
        with EndedBySignals():
            for row in measured(flags):
                print(f"{head}{show(row)}", flush=True)
                head = ""
    except NoLink as error:
        print(f"cannot connect network namespaces: {error}\n"
              "this needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN): try sudo",
              file=sys.stderr)  # fmt: skip
        sys.exit(2)

