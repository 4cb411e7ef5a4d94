"""When a device cannot hold the text, or the model: slices of sequences, matrices, layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from minigrad import Tensor
from minigrad.models.gpt import GPT, GPTConfig
from minigrad.models.lessons.page import Page, alone
from minigrad.models.lessons.shared import last_step, losses_of, traced
from minigrad.models.parallel import Rank, all_reduce, run
from minigrad.models.parallel.schedules import bubble, length, make_table, simulate
from minigrad.models.parallel.training import Replica
from minigrad.models.sizing import bytes_text, parameters

TITLE = "Slicing sequences and models"
SECTIONS = ("Sequence Parallelism (SP)",)
CONFIG = GPTConfig(layers=1, heads=2, dim=32, context=64, vocabulary=50)
STEPS = 3


def learn(ranks: int) -> tuple[list[float], int, str]:
    """(loss of each step, tokens of a window that each rank has, timeline of the last step)."""
    ids = np.random.default_rng(2).integers(0, CONFIG.vocabulary, (STEPS, 2, CONFIG.context + 1))
    ids = ids.astype(np.int32)

    def program(rank: Rank) -> tuple[list[float], int]:
        Tensor.manual_seed(1)
        model = GPT(CONFIG)
        replica = Replica.of_gpt(rank, model, CONFIG.context)
        batches = [(row[:, :-1].copy(), row[:, 1:].copy()) for row in ids]
        held = replica.part(*batches[0])[0].shape[1]
        return losses_of(replica, model, batches, lr=0.5), held

    results, done = traced(program, sp=ranks)
    return *results[0], last_step(done, STEPS)


def tensor_parallel(ranks: int) -> float:
    """The largest difference of a feed-forward network on several ranks from that on one."""
    generator = np.random.default_rng(3)
    x, up, down = (generator.normal(size=shape).astype(np.float32)
                   for shape in ((6, 16), (16, 64), (64, 16)))  # fmt: skip

    def program(rank: Rank) -> Any:
        width = up.shape[1] // ranks
        mine = slice(width * rank.number, width * (rank.number + 1))
        inner = (Tensor(x) @ Tensor(up[:, mine].copy())).gelu()  # some of the columns
        part = inner @ Tensor(down[mine].copy())  # and of the rows: a part of the sum
        return all_reduce(part, rank.world).numpy().copy()

    whole = ((Tensor(x) @ Tensor(up)).gelu() @ Tensor(down)).numpy()
    return max(float(np.abs(found - whole).max()) for found in run(program, ranks))


def lesson(page: Page) -> None:
    """The lesson."""
    page.say("""
        **Sequence parallelism**: “we slice one long example into several shorter pieces.” A genome
        or a million tokens of text do not fit into one device. Cut them into chunks, one for each.

        But attention lets each token look at all before it, also at those in other chunks. So keys
        and values must travel. They go around in a ring: each device attends to its own chunk, then
        to the one that comes from its neighbour, and so on, until it has seen all. This happens in
        **every layer**, forward and backward.
    """)
    found = {ranks: learn(ranks) for ranks in (1, 2)}
    page.table(["step", *(f"devices: {ranks}" for ranks in found)],
               [[n + 1, *(losses[n] for losses, _, _ in found.values())] for n in range(STEPS)],
               "loss of the same text")  # fmt: skip
    apart = max(abs(a - b) for a, b in zip(found[1][0], found[2][0], strict=True))
    page.check("two devices that share each sequence get the same losses as one", apart < 1e-4,
               f"they differ by at most {apart:.0e}")  # fmt: skip
    page.check("each of the two holds half of the tokens", found[2][1] * 2 == found[1][1],
               f"{found[2][1]} of {found[1][1]}")  # fmt: skip
    page.drawing("2 devices, the last step", found[2][2])

    page.say("""
        **Tensor parallelism** cuts the matrices. Of the first matrix of a feed-forward network each
        device has some columns, of the second the matching rows. Each computes its part. The
        results are partial sums, and an AllReduce adds them up, in every layer.
    """)
    differences = {ranks: tensor_parallel(ranks) for ranks in (2, 4)}
    page.check("a network cut into 2 and into 4 gives what the whole one gives",
               max(differences.values()) < 1e-3,
               ", ".join(f"{n} devices: {by:.0e}" for n, by in differences.items()))  # fmt: skip

    page.say("""
        **Pipeline parallelism** gives each device some of the layers, one stage each, as in a
        factory. Little is exchanged: the answers of one stage go to the next. But a stage waits
        until the first work arrives, and again at the end. So the batch is cut into small parts
        that follow one another; the more parts, the smaller the gap, the **bubble**.
    """)
    plays = []
    for stages, parts in ((2, 1), (4, 4), (4, 16), (8, 8)):
        # forward all the parts, then backward all of them, which takes twice as long
        rows = simulate(make_table("gpipe", stages, parts, stages))
        idle, formula = bubble(rows), (stages - 1) / (parts + stages - 1)
        plays.append(({"stages": stages, "parts": parts}, [idle, length(rows)], 1e-9))
        page.check(f"{stages} stages, {parts} parts: idle as (stages − 1) / (parts + stages − 1)",
                   abs(idle - formula) < 1e-9, f"{idle:.1%}")  # fmt: skip
    page.widget("pipeline", "Choose stages and parts, and watch the bubble shrink.", {}, plays)

    page.say("""
        Who holds what? The same GPT-3, on 8 devices, cut in four ways. Only tensor and pipeline
        parallelism make the model's share of a device smaller, only sequence parallelism the
        text's. Large trainings use all of them at once.
    """)
    n = parameters(GPTConfig.preset("gpt3")).total * 16
    page.table(["8 devices", "state of the model on each", "examples", "tokens of an example"], [
        ["data parallel", bytes_text(n), "an eighth", "all"],
        ["sequence parallel", bytes_text(n), "all", "an eighth"],
        ["tensor parallel", bytes_text(n / 8), "all", "all"],
        ["pipeline parallel", bytes_text(n / 8), "all, one part after the other", "all"],
    ])  # fmt: skip


if __name__ == "__main__":
    alone(lesson)
