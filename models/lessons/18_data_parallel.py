"""Many copies of a model learn from different examples, and stay the same."""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad import Tensor
from minigrad.models.lessons.page import Page, alone
from minigrad.models.lessons.shared import last_step, losses_of, traced
from minigrad.models.mlp import MLP
from minigrad.models.parallel import Rank, all_reduce
from minigrad.models.parallel.ring import spans
from minigrad.models.parallel.training import Replica

TITLE = "Data parallelism and AllReduce"
SECTIONS = ("Parallelization", "Data Parallelism (DP)")
SIZES, BATCH, STEPS = (16, 32, 4), 24, 4
LENGTH = 840  # numbers in a ring: every count of ranks from 2 to 8 divides it


def ring(ranks: int) -> tuple[list[float], int, int]:
    """(first numbers of the sum, bytes that rank 0 sent, messages of rank 0), from a trace."""
    def program(rank: Rank) -> list[float]:
        x = (Tensor.arange(LENGTH).float() + 1000.0 * rank.number).realize()
        total = all_reduce(x, rank.world)
        return [float(value) for value in total.tolist()[:3]]

    sums, done = traced(program, ranks)
    sent = [event["about"]["bytes"] for event in done[0][1] if event["name"] == "send"]
    assert all(values == sums[0] for values in sums)
    return sums[0], sum(sent), len(sent)


def learn(ranks: int) -> tuple[list[float], list[np.ndarray], str]:
    """(loss of each step, first weights of each copy, timeline) of the same training."""
    generator = np.random.default_rng(5)
    images = generator.normal(size=(STEPS, BATCH, SIZES[0])).astype(np.float32)
    labels = generator.integers(0, SIZES[-1], (STEPS, BATCH)).astype(np.int32)

    def program(rank: Rank) -> tuple[list[float], Any]:
        Tensor.manual_seed(1)
        model = MLP(SIZES)
        batches = zip(images, labels, strict=True)
        losses = losses_of(Replica(rank, model), model, batches, lr=0.1)
        return losses, model.layers[0].weight.numpy().copy()

    results, done = traced(program, ranks)
    return results[0][0], [weights for _, weights in results], last_step(done, STEPS)


def lesson(page: Page) -> None:
    """The lesson."""
    page.say(f"""
        **Data parallelism**: “we slice the batch of examples into smaller batches.” Every device
        has a whole copy of the model and learns from its own slice. Before the update they exchange
        their gradients, so that each has the **average**; then all take the same step, and the
        copies stay the same.

        We train with {BATCH} examples a step, on one device, on 2 and on 4. Here the devices are
        threads of this machine.
    """)
    found = {ranks: learn(ranks) for ranks in (1, 2, 4)}
    page.table(["step", *(f"devices: {ranks}" for ranks in found)],
               [[n + 1, *(losses[n] for losses, _, _ in found.values())] for n in range(STEPS)],
               "loss of the whole batch")  # fmt: skip
    apart = max(abs(a - b) for losses, _, _ in found.values()
                for a, b in zip(losses, found[1][0], strict=True))  # fmt: skip
    page.check("the losses are those of one device, up to rounding", apart < 1e-5, f"{apart:.0e}")
    alike = all((weights == copies[0]).all() for _, copies, _ in found.values()
                for weights in copies)  # fmt: skip
    page.check("afterwards, all copies have the same weights, bit by bit", alike,
               "2 of 2 and 4 of 4 copies")  # fmt: skip

    page.say("""
        The exchange is called **AllReduce**. The plain way, in which one device adds up what all
        others send, makes that device a bottleneck. The **ring** is better: each device talks only
        to its neighbour. The numbers are cut into as many parts as there are devices. Each device
        sends one part to the next, which adds its own and sends it on. After n − 1 steps each
        device has one part complete; n − 1 steps more carry the complete parts around. (The halves
        have names of their own, ReduceScatter and AllGather, for there are uses for either alone.
        Two devices with little data send each other all of it: as many bytes, in one message.)
    """)
    rows, plays = [], []
    for ranks in range(3, page.pick(9, 5)):
        sums, sent, messages = ring(ranks)
        formula = 2 * (ranks - 1) * (LENGTH // ranks) * 4
        expected = [ranks * i + 1000.0 * ranks * (ranks - 1) / 2 for i in range(3)]
        page.check(f"{ranks} devices: sum, messages and bytes are as the formula says",
                   sums == expected and sent == formula and messages == 2 * (ranks - 1),
                   f"{messages} messages, {sent:,} bytes")  # fmt: skip
        rows.append([ranks, messages, sent, sent / (LENGTH * 4)])
        plays.append(({"ranks": ranks}, [messages, sent / (LENGTH * 4)], 1e-6))
    assert all(stop - start == LENGTH // 8 for start, stop in spans(LENGTH, 8))
    page.table(["devices", "messages each", "bytes each", "times the data"], rows,
               f"AllReduce of {LENGTH * 4:,} bytes, counted in a trace of real exchanges")

    page.say("""
        See the last column: however many devices there are, each sends less than **twice** the
        gradients. But the number of messages grows, and each waits for the network: with thousands
        of devices the **latency** counts, which is why rings are kept within one rack if possible.
        Go through it step by step.
    """)
    page.widget("ring", "Choose the number of devices, and step through the ring.",
                {"ranks": 4}, plays)  # fmt: skip

    page.say("""
        And this is what 2 devices did in the last step above, from left to right: `#` are
        computations, `~` is waiting for messages, `.` is waiting with nothing else to do. Such a
        small model has little to compute and waits a lot; a large one hides the exchange behind the
        rest of the backward pass. (Some layers ask for more: BatchNorm normalises by the mean of
        the whole batch, so its statistics are exchanged in the forward pass, too.)
    """)
    page.drawing("2 devices, the last step", found[2][2])


if __name__ == "__main__":
    alone(lesson)
