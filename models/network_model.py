"""The time of a training step on many devices: computation, a pipeline's gaps, the network.

A step computes for flops / (devices · peak · utilization) seconds. What devices exchange follows
from how they share its work, the axes of a `Layout`; each message takes latency + bytes/bandwidth:

dp, zero  gradients: a ring all-reduce, 2·(n − 1) messages of 1/n of them (Patarasuk and Yuan,
          "Bandwidth optimal all-reduce algorithms", 2009); with ZeRO-3 weights, too, which makes
          3·(n − 1) (Rajbhandari et al., "ZeRO", 2020). Hides behind the backward pass, which is two
          thirds of the computation, ZeRO-3 behind all of it; behind nothing where what others
          wait for goes over the same network
tp        a block's results, four all-reduces a layer, for which everybody waits (Shoeybi et al.,
          "Megatron-LM", 2019); with `tokens` as many bytes (Korthikanti et al., 2022). What hides
          behind gradients of weights is not counted
sp        keys and values, once around a ring in each layer, backward with their gradients (Liu et
          al., "Ring Attention", 2023). Hides behind attention to the part that was there before
ep        tokens to their experts and back, in each layer, forward and backward: four all-to-alls
pp        what a micro-batch is where layers meet, and its gradient. What hides is a matter of the
          schedule (`parallel/schedules.py`), whose table is played through
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from minigrad.graph.partition import GATHERED_PART
from minigrad.models.errors import InputError
from minigrad.models.gpt_config import GPTConfig
from minigrad.models.parallel.schedules import COSTS, Wire, length, make_table, simulate
from minigrad.models.sizing import flops_per_token, parameters

AXES = ("tp", "ep", "sp", "dp", "pp")  # nearest neighbours first: the axes with most communication
BACKWARD_SHARE = 2 / 3  # share of the computation


@dataclass(frozen=True)
class Network:
    """bandwidth: bytes per second of each device in one direction. latency: seconds per message.

    most: the number of devices it can join, if limited. at_once: bytes of a message that is sent
    immediately; a longer one is announced first and then requested: three trips.
    """

    name: str
    bandwidth: float
    latency: float
    most: int | None = None
    at_once: float = math.inf

    def late(self, nbytes: float) -> float:
        """The latency of a message of so many bytes, in seconds."""
        return self.latency * (1 if nbytes <= self.at_once else 3)

    def joins(self, devices: int) -> bool:
        """Whether the network can join so many devices."""
        return self.most is None or devices <= self.most

    def lossy(self, loss: float, segment: int = 1460) -> Network:
        """The network as TCP uses it if a share of packets is lost.

        At most segment / round trip · √(3/2) / √loss bytes per second (Mathis, Semke, Mahdavi and
        Ott, "The Macroscopic Behavior of the TCP Congestion Avoidance Algorithm", 1997).
        """
        most = segment / (2 * self.latency) * math.sqrt(1.5 / loss)
        name = f"{self.name.partition(',')[0]}, 1 packet in {1 / loss:,.0f} lost*"
        return replace(self, name=name, bandwidth=min(self.bandwidth, most))


@dataclass(frozen=True)
class Layout:
    """The axes along which devices share a step's work; their product is the number of devices.

    As the flags of `gpt.py`: dp copies of the model, with a stage of ZeRO; tp parts of each matrix
    (`tokens`: also of the tokens between matrices); sp parts of each text; ep parts of the experts,
    on devices that share the batch as copies do; pp stages, with a schedule.
    """

    dp: int = 1
    tp: int = 1
    sp: int = 1
    pp: int = 1
    ep: int = 1
    zero: int = 0
    tokens: bool = False
    schedule: str = "1f1b"
    micro: int = 1
    pieces: int = 1

    @property
    def devices(self) -> int:
        """The number of devices."""
        return math.prod(getattr(self, axis) for axis in AXES)

    @property
    def batch(self) -> int:
        """The number of parts of the batch, without micro-batches."""
        return self.dp * self.ep

    def span(self, *axes: str) -> int:
        """How many neighbouring devices a group along some axes spans."""
        outermost = max(AXES.index(axis) for axis in axes)
        return math.prod(getattr(self, axis) for axis in AXES[: outermost + 1])

    def __str__(self) -> str:
        words = [f"{axis} {getattr(self, axis)}" for axis in reversed(AXES)
                 if getattr(self, axis) > 1]  # fmt: skip
        if self.zero:
            words.append(f"ZeRO-{self.zero}")
        if self.tokens:
            words.append("tokens")
        if self.pp > 1:
            words.append(f"{self.schedule}, {self.micro} parts")
        return " · ".join(words) or "one device"

    def check(self, config: GPTConfig) -> None:
        """InputError if the layout does not fit a model."""
        if self.ep > 1 and (not config.experts or config.experts % self.ep):
            raise InputError(f"{config.experts} experts cannot be split over ep {self.ep}")
        if config.layers < self.pp * self.pieces:
            raise InputError(f"{config.layers} layers cannot be split into {self.pp * self.pieces}")
        if config.heads % self.tp:
            raise InputError(f"{config.heads} heads cannot be split over tp {self.tp}")
        if self.tokens and self.tp == 1:
            raise InputError("splitting the tokens between matrices needs tp above 1, got 1")
        if self.zero and self.dp == 1:
            raise InputError(f"ZeRO-{self.zero} has no effect on one copy: it needs dp above 1")
        if self.pp > 1:
            make_table(self.schedule, self.pp, self.micro, self.pp * self.pieces)


@dataclass(frozen=True)
class Cluster:
    """Devices of `peak` flop/s, in boxes with a network `inner` of their own.

    overlap: the share of communication that hides behind computation where it can; 0: none, nor a
    pipeline's messages. bucket: bytes of gradients (and weights) sent together; the first ones wait
    for each other. 0: all gradients hide, and weights are gathered layer by layer.
    """

    peak: float
    network: Network
    utilization: float = 0.4
    box: int = 1
    inner: Network | None = None
    overlap: float = 1.0
    bucket: float = 0.0

    def between(self, span: int) -> Network:
        """The network of a group that spans so many neighbouring devices."""
        return self.inner if self.inner is not None and span <= self.box else self.network


@dataclass(frozen=True)
class Work:
    """A step: tokens on all devices, in texts of `context`; numbers of `itemsize` bytes."""

    tokens: float
    context: int
    itemsize: int = 2


@dataclass(frozen=True)
class Exchange:
    """What a device sends along an axis in a step, message by message."""

    axis: str
    messages: float
    nbytes: float  # per message
    network: Network

    @property
    def seconds(self) -> float:
        """The time of all messages."""
        late = self.network.late(self.nbytes)
        return self.messages * (late + self.nbytes / self.network.bandwidth)


@dataclass(frozen=True)
class Step:
    """Seconds of a step, by cause. exposed: network time that is not hidden."""

    compute: float
    gaps: float
    exposed: float
    exchanges: tuple[Exchange, ...]

    @property
    def total(self) -> float:
        """The whole step."""
        return self.compute + self.gaps + self.exposed

    @property
    def idle(self) -> float:
        """The share of the step in which a device does no useful work."""
        return 1 - self.compute / self.total

    @property
    def network(self) -> float:
        """The time of the network, hidden or not."""
        return sum(one.seconds for one in self.exchanges)

    @property
    def messages(self) -> float:
        """Messages that a device sends."""
        return sum(one.messages for one in self.exchanges)

    @property
    def nbytes(self) -> float:
        """Bytes that a device sends."""
        return sum(one.messages * one.nbytes for one in self.exchanges)


def predict(
    config: GPTConfig, work: Work, layout: Layout, cluster: Cluster, compute: float | None = None
) -> Step:
    """The prediction for a step. compute: each device's seconds of computation, if known."""
    flops = flops_per_token(config, work.context)
    if compute is None:
        rate = layout.devices * cluster.peak * cluster.utilization
        compute = flops * work.tokens / rate
    attention = 6.0 * config.layers * work.context * config.heads * config.width / flops
    exchanges = tuple(_exchanges(config, work, layout, cluster))
    seconds = dict.fromkeys(AXES, 0.0)
    for one in exchanges:
        seconds[one.axis] += one.seconds
    turns = layout.micro if layout.pp > 1 else 1
    behind = compute / turns
    others = {one.network for one in exchanges if one.axis in ("tp", "ep", "sp")}
    if any(one.axis == "dp" and one.network in others for one in exchanges):
        behind = 0.0  # exchanges of a device are in order, also with those that everybody waits for
    size = parameters(config).total * work.itemsize / (layout.tp * layout.pp)
    least = 0.0
    if layout.zero < 3:
        behind *= BACKWARD_SHARE * max(1 - cluster.bucket / size, 0)
    elif cluster.bucket:
        # gathering the first weights and sending the last gradients overlaps with nothing;
        # computing them leaves the network idle
        runs = _runs(size, cluster.bucket)
        behind *= 1 - 1 / runs
        share = 1 / runs + 1 / math.ceil(size / cluster.bucket)
        least = seconds["dp"] * share / (2 * turns + 1)
    waits = max(seconds["dp"] - behind * cluster.overlap, least)
    room = compute * attention * (layout.sp - 1) / layout.sp * cluster.overlap
    inside = seconds["tp"] + seconds["ep"] + max(seconds["sp"] - room, 0)
    if layout.pp == 1:
        return Step(compute, 0.0, inside + waits, exchanges)
    gaps, exposed = _pipeline(layout, cluster, compute, inside, exchanges)
    return Step(compute, gaps, inside + waits + exposed, exchanges)


def _exchanges(
    config: GPTConfig, work: Work, layout: Layout, cluster: Cluster
) -> Iterator[Exchange]:
    """The exchanges of a device in a step."""
    turns = layout.micro if layout.pp > 1 else 1
    layers = config.layers / layout.pp

    def along(axis: str, messages: float, nbytes: float) -> Exchange:
        return Exchange(axis, messages, nbytes, cluster.between(layout.span(axis)))

    yield from _of_weights(config, work, layout, cluster, turns)
    tokens = work.tokens / (layout.batch * layout.sp)  # on all devices that share matrices
    activations = tokens * config.dim * work.itemsize / turns
    n = layout.tp
    if n > 1:
        yield along("tp", 4 * layers * turns * 2 * (n - 1), activations / n)
    n = layout.sp
    if n > 1:
        width = config.key_value_heads * config.width / layout.tp
        block = 2 * tokens / turns * width * work.itemsize
        # in the backward pass they go around again with their gradients, which then return
        yield along("sp", layers * turns * n, block)
        yield along("sp", layers * turns * (n - 1), 2 * block)
    n = layout.ep
    if n > 1:
        routed = activations * config.active / (layout.tp if layout.tokens else 1)
        yield along("ep", 4 * layers * turns * (n - 1), routed / n)
    if layout.pp > 1:
        boundary = activations / (layout.tp if layout.tokens else 1)
        count = 2 * (layout.micro * layout.pieces + layout.pp - 1)  # one after the other
        yield along("pp", count, boundary)


def _of_weights(
    config: GPTConfig, work: Work, layout: Layout, cluster: Cluster, turns: int
) -> Iterator[Exchange]:
    """Gradients and, for ZeRO-3, weights; those of experts among devices with the same ones."""
    counts = parameters(config)
    experts = counts.feed_forward if config.experts else 0
    parts = ((counts.total - experts, ("ep", "sp", "dp")),
             (experts / layout.ep, ("sp", "dp")))  # fmt: skip
    for count, axes in parts:
        n = math.prod(getattr(layout, axis) for axis in axes)
        size = count * work.itemsize / (layout.tp * layout.pp)
        if n == 1 or not count:
            continue
        network = cluster.between(layout.span(*(a for a in axes if getattr(layout, a) > 1)))
        if layout.zero == 3:  # layer by layer, or in runs; once per pass
            layers = config.layers / layout.pp
            runs = _runs(size, cluster.bucket) if cluster.bucket else layers
            yield Exchange("dp", 2 * turns * runs * (n - 1), size / runs / n, network)
            runs = math.ceil(size / cluster.bucket) if cluster.bucket else layers
            yield Exchange("dp", runs * (n - 1), size / runs / n, network)
        else:
            buckets = math.ceil(size / cluster.bucket) if cluster.bucket else 1
            yield Exchange("dp", 2 * (n - 1) * buckets, size / n / buckets, network)


def _runs(size: float, bucket: float) -> int:
    """The number of runs in which AdamW's weights are gathered; it stores three times as much."""
    return math.ceil(size / min(bucket, 3 * size * GATHERED_PART))


def _pipeline(
    layout: Layout, cluster: Cluster, compute: float, inside: float, exchanges: tuple[Exchange, ...]
) -> tuple[float, float]:
    """(a pipeline's gaps, time that its messages add to a step), in seconds.

    inside: the time of exchanges within a stage, which are not hidden.
    """
    (hop,) = (one for one in exchanges if one.axis == "pp")
    table = make_table(layout.schedule, layout.pp, layout.micro, layout.pp * layout.pieces)
    unit = (compute + inside) / (3 * layout.micro * layout.pieces)
    costs = {kind: unit * cost for kind, cost in COSTS.items()}
    alone = length(simulate(table, costs))
    gaps = alone - compute - inside
    if not cluster.overlap:
        return gaps, hop.seconds
    wire = Wire(hop.nbytes / hop.network.bandwidth, hop.network.late(hop.nbytes))
    return gaps, length(simulate(table, costs, wire)) - alone


def bandwidth_for(step: Step, waiting: float = 0.1) -> float:
    """Bytes per second at which devices wait for the network for `waiting` of a step.

    For exchanges that hide behind nothing, all over one network; inf if latency alone is more.
    """
    room = (step.compute + step.gaps) * waiting / (1 - waiting)
    room -= sum(one.messages * one.network.late(one.nbytes) for one in step.exchanges)
    return step.nbytes / room if room > 0 else math.inf
