"""The schedule of a pipeline: which stage does what when. Tables, as data and as pictures.

A model is cut into pieces of layers, in order, and a batch into micro-batches; piece k is at stage
k mod p. A table lists the tasks of each stage in order. Dependencies follow from that: piece k of a
micro-batch needs piece k − 1, and its gradient that of piece k + 1.

gpipe        all forward, then all backward (Huang et al., "GPipe", 2019)
1f1b         one forward, one backward, so that stage s keeps p − s micro-batches at most
             (Narayanan et al., "PipeDream", 2019; the flush after each batch as in Megatron-LM)
interleaved  1f1b with v pieces at each stage, whose gaps are v times shorter (Narayanan et al.,
             "Efficient Large-Scale Language Model Training on GPU Clusters", 2021)
zb           1f1b in which gradients of weights, for which nobody waits, fill gaps (as ZB-H1: Qi et
             al., "Zero Bubble Pipeline Parallelism", 2023); apart only where that helps
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from minigrad.models.errors import InputError

# Tasks with a piece and a micro-batch, and their time in units of a forward pass. backward: both
# gradients, of the piece's input and of its weights.
FORWARD, BACKWARD, INPUT, WEIGHTS = "forward", "backward", "input", "weights"
COSTS: Mapping[str, float] = {FORWARD: 1, BACKWARD: 2, INPUT: 1, WEIGHTS: 1}
LETTERS = {FORWARD: "F", BACKWARD: "B", INPUT: "b", WEIGHTS: "w"}
SCHEDULES = ("gpipe", "1f1b", "interleaved", "zb")


class Task(NamedTuple):
    """An entry of a table."""

    kind: str
    piece: int
    micro: int


class Timed(NamedTuple):
    """A task, with the times of its start and end."""

    task: Task
    start: float
    stop: float


Table = list[list[Task]]
MOST_TASKS = 1 << 17  # forward tasks in a table: half a second, and 40 MB


def make_table(schedule: str, stages: int, micro: int, pieces: int) -> Table:
    """The tasks of each stage, in order, for so many micro-batches and pieces of the model.

    InputError if there is no such table.
    """
    if schedule not in SCHEDULES:
        raise InputError(f"unknown schedule {schedule!r}: expected {', '.join(SCHEDULES)}")
    if stages < 1 or micro < 1:
        raise InputError(f"{stages} stages, {micro} micro-batches: expected at least 1 of each")
    if pieces * micro > MOST_TASKS:
        raise InputError(f"{micro:,} micro-batches of {pieces:,} pieces: expected at most "
                         f"{MOST_TASKS:,} forward steps in all")  # fmt: skip
    if pieces % stages or (pieces != stages and schedule != "interleaved"):
        raise InputError(f"{schedule} with {pieces} pieces and {stages} stages: expected "
                         f"{'a multiple' if schedule == 'interleaved' else 'as many pieces'}")
    if schedule == "interleaved" and micro % stages:
        raise InputError(f"interleaved with {micro} micro-batches and {stages} stages: expected a "
                         "multiple")  # fmt: skip
    if schedule == "zb":
        return [_zero_bubble(stage, stages, micro) for stage in range(stages)]
    table = []
    for stage in range(stages):
        forward = [Task(FORWARD, piece, number)
                   for piece, number in _order(stage, stages, micro, pieces)]  # fmt: skip
        backward = [Task(BACKWARD, pieces - stages + 2 * stage - piece, number)
                    for _, piece, number in forward]  # fmt: skip
        if schedule == "gpipe":
            before = micro
        elif schedule == "1f1b":
            before = stages - 1 - stage
        else:
            before = 2 * (stages - 1 - stage) + pieces - stages
        before = min(before, len(forward))
        row = forward[:before]
        for pair in zip(forward[before:], backward, strict=False):
            row += pair
        table.append([*row, *backward[len(forward) - before :]])
    return table


def _order(stage: int, stages: int, micro: int, pieces: int) -> list[tuple[int, int]]:
    """(piece, micro-batch) of a stage: `stages` micro-batches for each piece in turn."""
    if pieces == stages:
        return [(stage, number) for number in range(micro)]
    return [
        (piece, first + number)
        for first in range(0, micro, stages)
        for piece in range(stage, pieces, stages)
        for number in range(stages)
    ]


def forward_table(stages: int, micro: int, pieces: int) -> Table:
    """A table with forward tasks only."""
    return [
        [Task(FORWARD, piece, number) for number in range(micro)
         for piece in range(stage, pieces, stages)]
        for stage in range(stages)
    ]  # fmt: skip


def _zero_bubble(stage: int, stages: int, micro: int) -> list[Task]:
    """1f1b with the first and last gradients split, which is as short as splitting all.

    The first ones, because others wait for them: their weights' gradients fill gaps at the end. And
    those after the last forward pass, because stages then have nothing else to do. Nobody waits for
    stage 0. So each stage keeps as many micro-batches as stage 0 of 1f1b, and few gradients pay for
    what is computed twice.
    """
    before = min(stages - 1 - stage, micro)
    row = [Task(FORWARD, stage, number) for number in range(before)]
    left: list[Task] = []  # gradients of weights
    for number in range(micro):
        if before + number < micro:
            row.append(Task(FORWARD, stage, before + number))
        is_late = number >= micro - stages + stage
        is_split = stage and (number < stage or is_late)
        row.append(Task(INPUT if is_split else BACKWARD, stage, number))
        if is_split:
            left.append(Task(WEIGHTS, stage, number))
        if is_late:
            row += left[:1]
            left = left[1:]
    return row + left


def needs(task: Task, pieces: int) -> list[Task]:
    """The tasks that must be done before a task; INPUT stands for BACKWARD, too."""
    kind, piece, number = task
    if kind == FORWARD:
        return [Task(FORWARD, piece - 1, number)] if piece else []
    if kind == WEIGHTS:
        return [Task(INPUT, piece, number)]
    above = [] if piece + 1 == pieces else [Task(INPUT, piece + 1, number)]
    return [Task(FORWARD, piece, number), *above]


class Wire(NamedTuple):
    """The connection between two stages: messages in one direction follow each other."""

    seconds: float  # that a message occupies it
    latency: float  # until a message arrives


NO_WIRE = Wire(0.0, 0.0)


def simulate(
    table: Table, costs: Mapping[str, float] = COSTS, wire: Wire = NO_WIRE,
    sizes: Sequence[float] = (),
) -> list[list[Timed]]:  # fmt: skip
    """The times of all tasks, if stages are equally fast, and messages take the wire's time.

    sizes: of pieces; they multiply the costs; by default 1. ValueError for a table in which stages
    wait for each other forever.
    """
    stages, pieces = len(table), pieces_of(table)
    sizes = sizes or (1,) * pieces
    done: dict[Task, float] = {}
    there: dict[Task, float] = {}  # when its result has arrived where it is needed
    free: dict[tuple[int, int], float] = {}
    result: list[list[Timed]] = [[] for _ in table]
    while any(len(times) < len(row) for times, row in zip(result, table, strict=True)):
        before = len(done)
        for times, row in zip(result, table, strict=True):
            while len(times) < len(row):
                task = row[len(times)]
                waits = needs(task, pieces)
                if any(other not in done for other in waits):
                    break
                ready = [(done if other.piece == task.piece else there)[other] for other in waits]
                start = max([times[-1].stop if times else 0.0, *ready])
                stop = start + costs[task.kind] * sizes[task.piece]
                times.append(Timed(task, start, stop))
                made = task._replace(kind=INPUT) if task.kind == BACKWARD else task
                done[made] = there[made] = stop
                after = task.piece + (1 if task.kind == FORWARD else -1)
                link = task.piece % stages, after % stages
                if task.kind != WEIGHTS and 0 <= after < pieces and link[0] != link[1]:
                    free[link] = max(stop, free.get(link, 0.0)) + wire.seconds
                    there[made] = free[link] + wire.latency
        if len(done) == before:
            stuck = [row[len(times)] for times, row in zip(result, table, strict=True)
                     if len(times) < len(row)]  # fmt: skip
            raise ValueError(f"in this table, stages wait forever for {stuck}")
    return result


def pieces_of(table: Table) -> int:
    """The number of pieces of a table."""
    return 1 + max(task.piece for row in table for task in row)


def layers_of_pieces(table: Table, layers: int, behind: float = 0.0) -> list[int]:
    """The number of layers for each piece, at least one, that makes a step as short as possible.

    behind: the work after the last layer, in layers. Starting from even parts, one layer at a time
    moves to a neighbour: the move that shortens the step most, as long as there is one.
    """
    count = pieces_of(table)
    best = [layers * (k + 1) // count - layers * k // count for k in range(count)]

    def took(sizes: Sequence[int]) -> float:
        return length(simulate(table, sizes=[*sizes[:-1], sizes[-1] + behind]))

    shortest = took(best)
    while True:
        moved = []
        for source, to in [pair for k in range(1, count) for pair in ((k - 1, k), (k, k - 1))]:
            sizes = [*best]
            sizes[source] -= 1
            sizes[to] += 1
            if sizes[source]:
                moved.append((took(sizes), sizes))
        now, sizes = min(moved, default=(shortest, best))
        if now >= shortest:
            return best
        best, shortest = sizes, now


def length(rows: Sequence[Sequence[Timed]]) -> float:
    """The time from the first task's start to the last one's end."""
    return max(row[-1].stop for row in rows) - min(row[0].start for row in rows)


def bubble(rows: Sequence[Sequence[Timed]]) -> float:
    """The share of a step in which stages have nothing to do."""
    busy = sum(one.stop - one.start for row in rows for one in row)
    return 1 - busy / (len(rows) * length(rows))


def picture(rows: Sequence[Sequence[Timed]], width: int = 96) -> str:
    """A line for each stage, with time from left to right: F1 is forward with micro-batch 1.

    B is backward; b and w are the gradients of inputs and of weights. After 9, micro-batches
    continue with capitals and small letters.
    """
    start, scale = min(row[0].start for row in rows), width / length(rows)
    return "\n".join(
        f"stage {number} |{line_of(row, start, scale, width)}|" for number, row in enumerate(rows)
    )


def line_of(row: Sequence[Timed], start: float, scale: float, width: int) -> str:
    """The tasks from `start` on, in `width` letters, `scale` letters per unit of time."""
    numerals = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    line = [" "] * width
    for one in row:
        first, last = (round((time - start) * scale) for time in (one.start, one.stop))
        word = LETTERS[one.task.kind] + numerals[one.task.micro % len(numerals)]
        filler = "=" if one.task.kind == FORWARD else "-"
        for place, letter in enumerate(word.ljust(last - 1 - first, filler), first):
            if 0 <= place < min(last - 1, width):
                line[place] = letter
    return "".join(line)
