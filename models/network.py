"""How long data-parallel training takes over which network, and what that leaves of the devices.

    python models/network.py                     # GPT-3 on 1,024 H100s, network by network
    python models/network.py small --devices 8 --peak 1Tflop/s

A step computes for flops / (devices · peak · utilization) seconds, and averages its gradients by a
ring all-reduce: each device sends 2·(n − 1)/n of their bytes, in 2·(n − 1) messages, each of which
waits for the latency (Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms", 2009). A share
of that hides behind the backward pass, which is two thirds of the computation. Sequence parallelism
passes the keys and values of a sequence around a ring once per layer, forward, and twice backward
(Liu et al., "Ring Attention", 2023).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from minigrad.models import console
from minigrad.models.errors import InputError
from minigrad.models.gpt_config import GPTConfig
from minigrad.models.sizing import (
    ITEMSIZE,
    add_machine_flags,
    bytes_text,
    duration_text,
    flops_per_token,
    parameters,
    seconds_of_training,
)


@dataclass(frozen=True)
class Network:
    """bandwidth: bytes per second of each device in one direction; latency: seconds a message.

    most: how many devices it can join, where that is limited.
    """

    name: str
    bandwidth: float
    latency: float
    most: int | None = None

    def joins(self, devices: int) -> bool:
        """Whether there is such a network for so many devices."""
        return self.most is None or devices <= self.most


NETWORKS = (
    Network("NVLink 4 in one box of 8", 450e9, 2e-6, 8),
    Network("InfiniBand NDR 400 Gbit/s", 50e9, 2e-6),
    Network("Ethernet 400 Gbit/s, lossless", 50e9, 6e-6),
    Network("Ethernet 100 Gbit/s", 12.5e9, 10e-6),
    Network("Ethernet 10 Gbit/s", 1.25e9, 30e-6),
    Network("Ethernet 1 Gbit/s", 0.125e9, 50e-6),
    Network("internet 100 Mbit/s", 12.5e6, 20e-3),
)


FEW, TOKENS = 10, 1_000_000  # devices and tokens of a step that show how sensitive each way is


def ring_all_reduce(size: float, ranks: int, network: Network) -> float:
    """Seconds to sum `size` bytes over `ranks`: 2·(n − 1) messages of size/n."""
    if ranks < 2:
        return 0.0
    return 2 * (ranks - 1) * (network.latency + size / ranks / network.bandwidth)


def ring_attention(
    config: GPTConfig, tokens: int, ranks: int, itemsize: int, network: Network
) -> float:
    """Seconds to pass keys and values of a sequence around, in all layers, forward and backward.

    Each of n − 1 messages has the keys and values of tokens/n positions; backward they go around
    again, together with their gradients.
    """
    if ranks < 2:
        return 0.0
    block = 2 * tokens / ranks * config.key_value_heads * config.width * itemsize
    forward = (ranks - 1) * (network.latency + block / network.bandwidth)
    backward = (ranks - 1) * (network.latency + 2 * block / network.bandwidth)
    return config.layers * (forward + backward)


@dataclass(frozen=True)
class Step:
    """Seconds of one training step, by where they go."""

    compute: float
    data_parallel: float  # of the network, averaging gradients
    sequence_parallel: float  # of the network, keys and values
    exposed: float  # of both, what computation does not hide

    @property
    def total(self) -> float:
        """Seconds."""
        return self.compute + self.exposed

    @property
    def efficiency(self) -> float:
        """The share of the time in which devices compute."""
        return self.compute / self.total


@dataclass(frozen=True)
class Cluster:
    """devices in groups of `sequence`, which share sequences; the groups share the batch."""

    devices: int
    peak: float
    utilization: float = 0.4
    sequence: int = 1
    overlap: float = 1.0  # share of the backward pass behind which the network can hide

    def __post_init__(self) -> None:
        if self.devices % self.sequence:
            raise ValueError(
                f"{self.devices} devices cannot be cut into groups of {self.sequence} that share "
                "a sequence"
            )


def step_seconds(
    config: GPTConfig, batch_tokens: float, cluster: Cluster, network: Network, itemsize: int = 2
) -> Step:
    """A step of `batch_tokens` tokens on all devices; gradients in `itemsize` bytes.

    Devices that share a sequence hold the same weights too, so that gradients are averaged over all
    of them.
    """
    compute = seconds_of_training(
        config, batch_tokens, cluster.devices, cluster.peak, cluster.utilization
    )
    size = parameters(config).total * itemsize
    data = ring_all_reduce(size, cluster.devices, network)
    sequences = batch_tokens / config.context / (cluster.devices / cluster.sequence)
    turns = ring_attention(config, config.context, cluster.sequence, itemsize, network)
    sequence = turns * sequences
    hidden = compute * 2 / 3 * cluster.overlap
    return Step(compute, data, sequence, max(data - hidden, 0.0) + max(sequence - compute, 0.0))


@dataclass(frozen=True)
class Exposed:
    """Seconds of a step whose exchanges nothing hides: at work, a pipeline's gaps, the network.

    messages: that each device sends.
    """

    compute: float
    gaps: float
    network: float
    messages: int

    @property
    def idle(self) -> float:
        """The share of the step in which a device does nothing useful."""
        return (self.gaps + self.network) / (self.compute + self.gaps + self.network)


def exposed(
    config: GPTConfig, tokens: float, devices: int, network: Network, peak: float = 989e12,
    utilization: float = 0.4, itemsize: int = 2, parts: int = 40,
) -> dict[str, Exposed]:  # fmt: skip
    """A step of `tokens` tokens on some devices, cut in four ways: how sensitive is each?

    DP (a copy of the model each), TP (parts of each matrix) and PP (layers each, the batch in
    `parts`) read texts of the model's context, SP one text of all tokens. TP adds up activations
    twice in each block, forward and backward.
    """
    n = devices
    short, long = (flops_per_token(config, context) * tokens / (n * peak * utilization)
                   for context in (config.context, round(tokens)))  # fmt: skip
    activations = tokens * config.dim * itemsize
    hop = network.latency + activations / parts / network.bandwidth
    sums = ring_all_reduce(activations, n, network)
    gradients = ring_all_reduce(parameters(config).total * itemsize, n, network)
    ring = ring_attention(config, round(tokens), n, itemsize, network)
    layers = config.layers
    return {
        "DP": Exposed(short, 0.0, gradients, 2 * (n - 1)),
        "SP": Exposed(long, 0.0, ring, 2 * layers * (n - 1)),
        "TP": Exposed(short, 0.0, 4 * layers * sums, 8 * layers * (n - 1)),
        "PP": Exposed(short, short * (n - 1) / parts, 2 * (parts + n - 1) * hop, 2 * parts),
    }


def show_sensitivity(config: GPTConfig, networks: Sequence[Network], itemsize: int) -> None:
    """A table: which share of a step devices are idle, by network and by how work is shared."""
    print(f"\nhow sensitive each way is: share of a step that {FEW} devices are idle, with "
          f"{TOKENS:,} tokens\n(one text for SP) and nothing hidden behind computation"
          )  # fmt: skip
    print(f"{'network':<32}{'DP':>7}{'SP':>7}{'TP':>7}{'PP':>7}")
    for network in networks:
        if network.joins(FEW):
            ways = exposed(config, TOKENS, FEW, network, itemsize=itemsize)
            print(f"{network.name:<32}" + "".join(f"{way.idle:>7.0%}" for way in ways.values()))


def parser() -> argparse.ArgumentParser:
    """The flags of the script."""
    result = console.Parser(
        description="How long data-parallel training takes over which network.",
        formatter_class=console.Help,
    )
    add, number, whole = result.add_argument, console.positive_float, console.positive_int
    add_machine_flags(result)
    add("--devices", type=whole, default=1024, help="how many devices train together")
    add("--sequence", type=whole, default=1, help="devices that share a sequence")
    add("--batch-tokens", type=number, default=3.2e6, help="tokens of a step, on all devices")
    add("--overlap", type=console.natural_float, default=1.0,
        help="share of the backward pass behind which the network can hide")  # fmt: skip
    add("--bandwidth", type=console.amount("B/s", 1e3),
        help="of one more network, such as 50GB/s; with --latency")  # fmt: skip
    add("--latency", type=number, help="seconds a message of that one; 1e-5 if not given")
    return result


def main(arguments: Sequence[str]) -> None:
    """Print a table, a line per network."""
    flags = parser().parse_args(arguments)
    for name in ("utilization", "overlap"):
        if getattr(flags, name) > 1:
            raise InputError(f"--{name} is {getattr(flags, name)}: expected at most 1")
    try:
        config = GPTConfig.preset(flags.model)
        cluster = Cluster(
            flags.devices, flags.peak, flags.utilization, flags.sequence, flags.overlap
        )
    except ValueError as error:
        raise InputError(str(error)) from None
    networks = list(NETWORKS)
    if flags.bandwidth is not None:
        networks.append(Network("yours", flags.bandwidth, flags.latency or 1e-5))
    elif flags.latency is not None:
        raise InputError("--latency is that of one more network: give its --bandwidth as well")
    itemsize, steps = ITEMSIZE[flags.dtype], flags.tokens / flags.batch_tokens
    size = parameters(config).total * itemsize
    compute = step_seconds(config, flags.batch_tokens, cluster, networks[0], itemsize).compute
    print(f"{flags.model}: {parameters(config).total:,} parameters, {bytes_text(size)} of "
          f"gradients a step; {flags.devices:,} devices\n"
          f"a step of {flags.batch_tokens:,.0f} tokens: {flops_per_token(config):.3g} flops each, "
          f"{duration_text(compute)} of computation\n")  # fmt: skip
    print(f"{'network':<32}{'all-reduce':>14}{'ring of keys':>14}{'a step':>14}{'busy':>7}"
          f"   {steps:,.0f} steps")  # fmt: skip
    for network in networks:
        if not network.joins(flags.devices):
            print(f"{network.name:<32}joins at most {network.most} devices")
            continue
        step = step_seconds(config, flags.batch_tokens, cluster, network, itemsize)
        print(f"{network.name:<32}{duration_text(step.data_parallel):>14}"
              f"{duration_text(step.sequence_parallel):>14}{duration_text(step.total):>14}"
              f"{step.efficiency:>7.0%}   {duration_text(step.total * steps)}")  # fmt: skip
    show_sensitivity(config, networks, itemsize)


if __name__ == "__main__":
    sys.exit(console.run(main))
