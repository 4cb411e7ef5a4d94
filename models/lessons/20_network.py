"""How fast must the network be to keep a cluster busy?"""

from __future__ import annotations

from minigrad.models.gpt_config import GPTConfig
from minigrad.models.lessons.page import Page, alone
from minigrad.models.network import FEW, NETWORKS, PARTS, TOKENS, WAYS, unhidden
from minigrad.models.network_model import Network, Step
from minigrad.models.sizing import duration_text, parameters

TITLE = "The network"
SECTIONS = ("Parallelization: what it asks of the network",)
ITEM = 2  # bytes of a number


def costs(network: Network) -> dict[str, Step]:
    """A step of GPT-3, cut in four ways."""
    config = GPTConfig.preset("gpt3")
    return {name: unhidden(config, layout, network) for name, layout in WAYS.items()}


def lesson(page: Page) -> None:
    """The lesson."""
    page.say(f"""
        Devices that train together exchange data all the time, and a device that waits for the
        network computes nothing. How much time is lost depends on the network, and on **how** the
        work is divided: some ways exchange once a step, others in every layer.

        The article's example: GPT-3 on {FEW} devices, a million tokens in each step, a hundred
        thousand for each device. For data parallelism these are many short texts, for sequence
        parallelism one long one. We count what must be sent, and divide by the bandwidth; each
        message also waits for the latency. Nothing is hidden behind computation here.
    """)
    fast, slow = NETWORKS[1], NETWORKS[3]
    for_fast = costs(fast)
    names = {"DP": "data parallel", "SP": "sequence parallel", "TP": "tensor parallel",
             "PP": "pipeline parallel"}  # fmt: skip
    page.table(["method", "messages per step", "computing", "network", "idle"],
               [[names[way], round(cost.messages), duration_text(cost.compute),
                 duration_text(cost.network), f"{cost.idle:.0%}"]
                for way, cost in for_fast.items()], fast.name)  # fmt: skip

    page.say("""
        How sensitive each method is: the share of time that is lost, network by network.
    """)
    usable = [network for network in NETWORKS if network.joins(FEW)]
    page.table(["network", *names], [[network.name, *(f"{cost.idle:.0%}" for cost in
                                                      costs(network).values())]
                                     for network in usable], "idle share")  # fmt: skip
    bandwidths = [10 ** (8 + step / 8) for step in range(33)]
    page.chart("idle share by bandwidth, with 2 µs of latency", "bytes per second", "idle share",
               {names[way]: [(b, costs(Network("", b, 2e-6))[way].idle) for b in bandwidths]
                for way in names}, log="x")  # fmt: skip
    lost = {way: cost.network / cost.compute for way, cost in costs(slow).items()}
    page.check("sequence parallelism is more sensitive to bandwidth than data parallelism",
               lost["SP"] > 1.5 * lost["DP"],
               f"on {slow.name}, the network takes {lost['DP']:.1f} times the work for DP, "
               f"{lost['SP']:.1f} times for SP")  # fmt: skip
    page.check("it sends far more messages, one round in each layer",
               for_fast["SP"].messages > 50 * for_fast["DP"].messages,
               f"{for_fast['SP'].messages:,} per step against {for_fast['DP'].messages:,}")
    tenfold = {way: costs(Network("", fast.bandwidth, 2e-2))[way].network / cost.network
               for way, cost in for_fast.items()}  # fmt: skip
    page.check("with latencies of the internet, it also slows down more",
               tenfold["SP"] > tenfold["DP"],
               f"DP {tenfold['DP']:.2f} times, SP {tenfold['SP']:.2f} times the exchange")

    page.say("""
        So the article is right: data parallelism has a **medium** sensitivity, sequence parallelism
        a **high** one. (In practice both hide a part of the exchange behind computation; data
        parallelism can hide it behind the whole backward pass, sequence parallelism only behind
        the attention of one chunk, in one layer.) Tensor parallelism is the most sensitive: it
        stays inside one box, where the network is fastest.

        Set bandwidth and latency yourself.
    """)
    plays = []
    for network in usable:
        plays.append(({"bandwidth": network.bandwidth, "latency": network.latency},
                      [cost.idle for cost in costs(network).values()], 1e-6))  # fmt: skip
    c = GPTConfig.preset("gpt3")
    page.widget("network", "Move bandwidth and latency, and see who stands idle.",
                {"names": list(names.values()), "devices": FEW, "tokens": TOKENS,
                 "layers": c.layers, "dim": c.dim, "item": ITEM, "parts": PARTS,
                 "state": parameters(c).total * ITEM,
                 "compute": [cost.compute for cost in for_fast.values()]}, plays)  # fmt: skip

    page.say("""
        This is why the networks of training clusters cost a good part of what the devices cost: low
        latency, no losses, hundreds of gigabits a second. A training takes months; if a third of
        the time is waiting, a third of the cluster was bought for nothing.
    """)


if __name__ == "__main__":
    alone(lesson)
