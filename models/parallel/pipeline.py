"""Pipeline parallel: pieces of a model at stages of devices, and the executor of any table.

Each stage is a mesh of its own (`dp`, `tp`): a thread of this process or, under MPI, some of its
ranks. It runs its row of a table (`schedules.py`); results of another stage arrive as messages from
the device at the same place there. The programs of a piece are captured steps, cut out of one graph
(`pieces.py`, `stage_graphs.py`).
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from math import prod
from typing import Any

import numpy as np

from minigrad import Context, Mesh, P, Tensor, jit, nn
from minigrad.device import Buffer, Device
from minigrad.dtype import DType, dtypes, resolve
from minigrad.graph import build
from minigrad.graph.sharding import Layout, whole
from minigrad.models.parallel.faults import Activity, Clock, RankError
from minigrad.models.parallel.group import Job, Progress
from minigrad.models.parallel.local import Exchange, LocalTransport
from minigrad.models.parallel.mesh_device import MeshMemory, MeshRuntime, Team, runtime_of
from minigrad.models.parallel.mpi import world
from minigrad.models.parallel.pieces import Piece, Programs
from minigrad.models.parallel.schedules import (
    BACKWARD,
    FORWARD,
    WEIGHTS,
    Table,
    Task,
    Timed,
    forward_table,
    needs,
)
from minigrad.models.parallel.training import Divided
from minigrad.runtimes.host import usable_threads
from minigrad.settings import having
from minigrad.tensor import live_tensors

NUMBERS, SHARED, DATA = 1, 2, 3  # tags of messages
ROWS = P("dp")  # the division of arrays whose first dimension is the batch


Shape = tuple[int, ...]
Make = Callable[[Sequence[Tensor]], nn.optim.Optimizer]


class Port:
    """One stage's end of the messages between stages."""

    def __init__(
        self, stage: int, stages: int, runtime: MeshRuntime, transports: Sequence[Any],
        activity: Activity, spec: P,
    ) -> None:  # fmt: skip
        self.stage, self.stages, self.runtime, self.spec = stage, stages, runtime, spec
        self.ends = list(zip(transports, (one.number for one in runtime.local), strict=True))
        self._outlets = [copy(one) for one in transports]  # threads that receive do not press sends
        self.places, self.activity = runtime.mesh.size, activity
        self._progress = Progress(activity, self._outlets)
        self._sent: list[tuple[Job, Tensor]] = []
        self.bytes_sent = 0

    def send(self, tensor: Tensor, to: int, tag: int) -> None:
        """Begin to send a realized tensor, which is kept until it has arrived.

        It does not wait for earlier messages, which may be for another stage, or needed later.
        """
        parts = tensor.raw.arg.memory.parts
        self.bytes_sent += sum(part.nbytes for part in parts)
        begun = [(end, end.isend(to * self.places + place, _address(part), part.nbytes, tag))
                 for end, (_, place), part in zip(self._outlets, self.ends, parts, strict=True)
                 ]  # fmt: skip

        def action() -> None:
            for end, request in begun:
                end.wait([request])

        job = Job(action)
        self._progress.submit(job)
        self._sent = [(one, kept) for one, kept in self._sent
                      if not one.done or one.error is not None]  # fmt: skip
        self._sent.append((job, tensor))

    def flush(self) -> None:
        """Wait until everything is sent."""
        for job, _ in self._sent:
            self._progress.finish(job)
        self._sent.clear()

    def blank(self, shape: Shape) -> Tensor:
        """Memory for float32 values that one piece passes to the next."""
        return self._blank(shape, self._layout(shape, self.spec))

    def like(self, tensor: Tensor) -> Tensor:
        """Memory for values divided like another tensor."""
        layout = tensor.raw.arg.memory.layout
        known = whole(tensor.ndim) if layout is None else Layout(layout.dims)
        return self._blank(tensor._known_shape(), known)

    def place(self, array: Any, spec: P) -> Tensor:
        """A numpy array, divided; without lazy tensors, which captured steps would look for.
        """
        made = self._blank(array.shape, self._layout(array.shape, spec), resolve(array.dtype))
        self.runtime.copy_in(made.raw.arg.memory, memoryview(array.tobytes()))
        return made

    def _layout(self, shape: Shape, spec: P) -> Layout:
        return Layout(of_rows(spec, shape[0]).dims(shape, self.runtime.mesh.sizes,
                                                   self.runtime.name))  # fmt: skip

    def _blank(self, shape: Shape, layout: Layout, dtype: DType = dtypes.float32) -> Tensor:
        memory, name = MeshMemory(), self.runtime.name
        self.runtime.fill(memory, layout, shape, dtype)
        buffer = Buffer(name, dtype, prod(shape), memory)
        return Tensor._of(build.buffer(buffer, dtype, shape, name))

    def expect(self, tensor: Tensor, source: int, tag: int) -> Any:
        """Begin to receive into a tensor's memory; returns the argument for `take`."""
        return tensor, [
            (end, end.irecv(source * self.places + place, _address(part), part.nbytes, tag))
            for (end, place), part in zip(self.ends, tensor.raw.arg.memory.parts, strict=True)
        ]

    def take(self, expected: Any) -> Tensor:
        """Wait for a message."""
        tensor, begun = expected
        self._wait(begun)
        return tensor

    def tell(self, numbers: Sequence[float]) -> list[list[float]]:
        """The numbers of all stages, by stage; all stages call it with equally many."""
        size = len(numbers)
        cells = [(ctypes.c_double * size)(*numbers) for _ in range(self.stages)]
        (end, place), *_ = self.ends
        begun = []
        for other in range(self.stages):
            if other != self.stage:
                rank, own = other * self.places + place, cells[self.stage]
                nbytes = ctypes.sizeof(own)
                begun.append((end, end.isend(rank, ctypes.addressof(own), nbytes, NUMBERS)))
                begun.append(
                    (end, end.irecv(rank, ctypes.addressof(cells[other]), nbytes, NUMBERS))
                )
        self._wait(begun)
        return [list(cell) for cell in cells]

    def _wait(self, begun: Sequence[tuple[Any, Any]]) -> None:
        self.activity.exchanges += 1
        self.activity.enter("waiting")
        try:
            for end, request in begun:
                end.pressing = True
                end.wait([request])
                end.pressing = False
        finally:
            self.activity.enter("computing")


def _address(part: Buffer) -> int:
    address = Device[part.device].host_address(part.memory)
    if address is None:
        raise RankError(-1, f"pipelines cannot exchange data that is on {part.device}: "
                        "use CPU devices")  # fmt: skip
    return address


class Stage:
    """The state of a stage: pieces of the model, sums of their gradients, an optimizer."""

    optimizer: nn.optim.Optimizer

    def __init__(self, number: int, mesh: Mesh, pieces: Mapping[int, Piece], port: Port) -> None:
        self.number, self.mesh, self.pieces, self.port = number, mesh, pieces, port
        self.params = {name: tensor for piece in pieces.values()
                       for name, tensor in piece.params.items()}  # fmt: skip
        self.times: list[Timed] = []  # of the last step
        self.worked, self.idle = (0.0, 0.0), 0.0  # seconds of tasks, of all; all stages' idle share
        self.sums: Mapping[str, Tensor] = {}
        self.programs: dict[Any, dict[int, Programs]] = {}
        self.device = port.runtime.local[0].device
        self.devices = frozenset((mesh.name, *(one.device for one in port.runtime.local)))

    def rows(self, array: Any) -> Tensor:
        """A numpy array with divided rows."""
        return self.port.place(array, ROWS)

    def train_with(self, make: Make, clip: float, place: Callable[..., None]) -> None:
        """See `Pipeline.train_with`."""
        self.optimizer = optimizer = make(list(self.params.values()))
        place(self.params, self.mesh, optimizer)
        like = next(iter(optimizer.moments.values()), optimizer.params)
        with Tensor.no_grad():
            self.sums = {
                name: Tensor.zeros(param.shape, device=self.mesh.name)._own_memory()
                .requires_grad_(False).shard_like_(of)
                for (name, param), of in zip(self.params.items(), like, strict=True)
            }  # fmt: skip
        shared = {name for piece in self.pieces.values() for name in piece.shared}
        twice = tuple(self.sums[name] for name in sorted(shared))
        # the norm counts shared parameters at the first stage only
        counted = [t for name, t in self.sums.items() if name not in shared or not self.number]
        params, totals = tuple(optimizer.params), tuple(self.sums.values())

        @jit
        def norm(others: list[Tensor]) -> Tensor:
            for total, other in zip(twice, others, strict=True):
                total.assign(total + other)
            squared = Tensor.stack([total.square().sum() for total in counted]).sum()
            Tensor.realize(squared, *totals)
            return squared

        @jit
        def update(factor: Tensor) -> None:
            for param, total in zip(params, totals, strict=True):
                param.grad = (total * factor).requires_grad_(False)
            optimizer.step(forget=True)
            for total in totals:
                total.assign(total * 0)
            Tensor.realize(*totals)

        self._shared, self._norm, self._update, self._clip = twice, norm, update, clip

    def update(self, loss: float) -> float:
        """Clip the whole model's gradients, and update the weights; returns the sum of all losses.
        """
        port, other = self.port, self.port.stages - 1 - self.number
        with Tensor.no_grad():
            coming = [port.expect(port.like(total), other, SHARED) for total in self._shared]
            for total in self._shared:
                port.send(total, other, SHARED)
            others = [port.take(each) for each in coming]
            port.flush()
            squares = self._norm(others).item()
            told = port.tell([loss, squares, *self.worked])
            norm = sum(one[1] for one in told) ** 0.5
            factor = min(self._clip / (norm + 1e-6), 1.0) if self._clip else 1.0
            self._update(port.place(np.array([factor], np.float32), P()))
        self.idle = 1 - sum(one[2] for one in told) / (max(one[3] for one in told) * len(told))
        return sum(one[0] for one in told)


class Pipeline(Divided):
    """Pieces of a model at stages, trained together.

    named: all parameters. table: the schedule of tasks (`schedules.py`). place: a function that
    puts parameters, by name, on a mesh, or an optimizer's state. width: of the values that pieces
    pass on, (rows, tokens, width) float32, divided as `spec` says. here: the stages of this
    process.
    """

    mesh: Mesh

    def __init__(
        self, named: Mapping[str, Tensor], pieces: Sequence[Piece], table: Table,
        axes: Mapping[str, int], width: int, spec: P, place: Callable[..., None],
    ) -> None:  # fmt: skip
        self.named, self.names = named, list(named)
        self.pieces, self.width, self.place = pieces, width, place
        self.table = table
        stages = self.stages = len(table)
        self.micro = 1 + max(task.micro for row in table for task in row)
        ranks, places = world(), prod(axes.values())
        kind = Device.DEFAULT.partition(":")[0]
        own = range(stages) if ranks is None else [ranks.rank // places]
        if ranks is not None and ranks.size != stages * places:
            raise RankError(-1, f"MPI started {ranks.size} ranks: use mpiexec -n "
                            f"{stages * places}")  # fmt: skip
        exchange = Exchange(stages * places)
        self._exchange, self._team = exchange, Team(len(own))
        self.here: list[Stage] = []
        threads = max(usable_threads() // (stages * places), 1)
        for number, piece in enumerate(pieces):
            for param in piece.params.values() if number % stages not in own else ():
                param._point(param.zeros_like().raw)  # another process has it
        for stage in own:
            numbers = range(stage * places, (stage + 1) * places)
            with Context(THREADS=threads if ranks is None else 0):
                mesh = Mesh([f"{kind}:{n}" if n else kind for n in numbers], **axes)
            ends: list[Any] = (
                [LocalTransport(number, exchange) for number in numbers]
                if ranks is None else [ranks.transport(range(ranks.size))]
            )  # fmt: skip
            activity = Activity(Clock()) if ranks is None else ranks.activity
            port = Port(stage, stages, runtime_of(mesh), ends, activity, spec)
            mine = {n: piece for n, piece in enumerate(pieces) if n % stages == stage}
            self.here.append(Stage(stage, mesh, mine, port))
            place(self.here[-1].params, mesh)
        self.mesh = self.here[0].mesh
        self.is_first = own[0] == 0 and self.here[0].port.ends[0][1] == 0
        self.device = runtime_of(self.mesh).local[0].device

    # --- training ---------------------------------------------------------------------------------

    def train_with(self, make: Make, clip: float) -> None:
        """Give each stage an optimizer for its parameters; clip: limit of the gradients' norm."""
        for stage in self.here:
            stage.train_with(make, clip, self.place)

    def step(self, ids: Any, targets: Any) -> float:
        """One update with numpy arrays (batch, tokens); returns the loss before it."""

        def action(stage: Stage) -> float:
            with Tensor.train():
                return stage.update(self._done(stage, self.table, ids, targets, self.micro))

        return self._on_all(action)

    def loss(self, ids: Any, targets: Any) -> float:
        """The mean loss of a batch, without training."""
        rows = len(ids)
        ways = next(n for n in range(min(self.micro, rows), 0, -1) if rows % n == 0)
        table = forward_table(self.stages, ways, len(self.pieces))

        def action(stage: Stage) -> float:
            with Tensor.no_grad():
                own = self._done(stage, table, ids, targets, ways)
                stage.port.flush()
                return sum(one for (one,) in stage.port.tell([own]))

        return self._on_all(action)

    @property
    def idle(self) -> float:
        """The share of the last step in which stages had nothing to do."""
        return self.here[0].idle

    def _on_all(self, action: Callable[[Stage], float]) -> float:
        """Run an action on the stages of this process at once; returns the sum, which all know.

        After an error some stages have updated sums or weights, others not: no step may follow.
        """
        if (failure := self._exchange.failure) is not None:
            raise RankError(-1, f"an earlier step of this pipeline stopped ({failure}): make the "
                            "pipeline again, and load its last checkpoint")  # fmt: skip
        found = [0.0] * len(self.here)

        def run(number: int) -> None:
            stage = self.here[number]
            with having(live_tensors.rank, devices=stage.devices):
                found[number] = action(stage)

        failed = self._team.run(run, self._exchange.fail)
        if failed is not None:
            raise failed
        return found[0]

    def _done(self, stage: Stage, table: Table, ids: Any, targets: Any, ways: int) -> float:
        """Run a stage's row of a table on a batch in `ways` parts; returns the sum of losses."""
        rows, tokens = len(ids) // ways, ids.shape[1]
        parts = [_cut_rows(array, rows) for array in (ids, targets)]
        row = table[stage.number]
        kinds = frozenset(task.kind for task in row)
        programs = stage.programs.get((ways, rows, tokens, kinds))
        if programs is None:
            shape = (rows, tokens, self.width)
            programs = stage.programs[ways, rows, tokens, kinds] = {
                number: self._programs(stage, row, number, parts, shape) for number in stage.pieces
            }
        return sum(loss.item() for loss in self._execute(stage, row, programs, parts))

    def _programs(
        self, stage: Stage, row: Sequence[Task], number: int, parts: Sequence[Sequence[Any]],
        shape: Shape,
    ) -> Programs:  # fmt: skip
        """The programs of a piece, built with placeholders for its arguments."""
        (ids, *_), (targets, *_) = parts
        is_last = number + 1 == len(self.pieces)
        given = [stage.rows(targets)] if is_last else []
        given.insert(0, stage.port.blank(shape) if number else stage.rows(ids))
        slope = None if is_last else stage.port.blank(shape)
        kinds = {task.kind for task in row if task.piece == number}
        return Programs(stage.pieces[number], given, slope, stage.sums, 1 / len(parts[0]), kinds,
                        stage.mesh, of_rows(stage.port.spec, shape[0]))  # fmt: skip

    def _execute(
        self, stage: Stage, row: Sequence[Task], programs: Mapping[int, Programs],
        parts: Sequence[Sequence[Any]],
    ) -> list[Tensor]:  # fmt: skip
        """Run a row of a table; returns the losses, if this stage has the last piece."""
        port, values, losses = stage.port, dict[Any, dict[Any, Tensor]](), list[Tensor]()
        last, tokens = len(self.pieces) - 1, parts[0][0].shape
        shape = (*tokens, self.width)
        coming: dict[Task, Any] = {}
        stage.times, begin = [], time.perf_counter()
        for place, task in enumerate(row):
            for soon in row[place : place + 2]:  # the next task's message travels meanwhile
                source = _source(soon, last)
                if source is not None and soon not in coming:
                    coming[soon] = port.expect(port.blank(shape), source % self.stages,
                                               self._tag(soon))  # fmt: skip
            arrived = port.take(coming[task]) if task in coming else None
            start = time.perf_counter()
            kind, number, micro = task
            own = programs[number]
            kept = values.setdefault((number, micro), {})
            if kind == FORWARD:
                given = [stage.rows(parts[0][micro]) if arrived is None else arrived]
                if number == last:
                    given.append(stage.rows(parts[1][micro]))
                kept.update(zip(own.inputs, given, strict=False))
            elif arrived is not None:
                kept[own.inputs[-1]] = arrived
            own.run(kind, kept)
            if kind == FORWARD and number == last:
                losses.append(kept[own.output])
            elif kind == FORWARD:
                port.send(kept.pop(own.output), (number + 1) % self.stages,
                          self._tag(Task(FORWARD, number + 1, micro)))  # fmt: skip
            elif kind != WEIGHTS and number:
                port.send(kept[own.gradient], (number - 1) % self.stages,
                          self._tag(Task(kind, number - 1, micro)))  # fmt: skip
            if kind in (BACKWARD, WEIGHTS):
                del values[number, micro]
            stage.times.append(Timed(task, start, time.perf_counter()))
            for device in port.runtime.local if Tensor.training else ():
                device.timeline.task(stage.times[-1])
        busy = sum(one.stop - one.start for one in stage.times)
        stage.worked = busy, time.perf_counter() - begin
        return losses

    def _tag(self, task: Task) -> int:
        """The tag of the message that a task waits for."""
        number = task.micro * len(self.pieces) + task.piece
        return DATA + 2 * number + (task.kind != FORWARD)

    # --- checkpoints ------------------------------------------------------------------------------

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of later steps."""
        for stage in self.here:
            stage.optimizer.set_lr(lr)

    def state_dict(self) -> dict[str, Tensor]:
        """As `Optimizer.state_dict`, for all parameters; zeros for those of other processes.

        Values that several stages have are taken from the first one.
        """
        first, *_ = self.here
        optimizer, zero = first.optimizer, Tensor.zeros((), device=self.device)
        numbers = {"lr": optimizer.lr, "step": optimizer.t}
        state = {name: zero.cast(number.dtype).reshape(number.shape) if first.number else number
                 for name, number in numbers.items()}  # fmt: skip
        for moment in optimizer.moments:
            for place, param in enumerate(self.named.values()):
                state[f"{moment}.{place}"] = Tensor.zeros(param.shape, device=self.device)
        for stage in self.here:
            others = {name for piece in stage.pieces.values() for name in piece.shared
                      if stage.number}  # fmt: skip
            for moment, tensors in stage.optimizer.moments.items():
                for name, tensor in zip(stage.params, tensors, strict=True):
                    if name not in others:
                        state[f"{moment}.{self.names.index(name)}"] = tensor
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state_dict` returned."""
        for stage in self.here:
            own = {name: state[name] for name in ("lr", "step")}
            for moment in stage.optimizer.moments:
                for place, name in enumerate(stage.params):
                    own[f"{moment}.{place}"] = state[f"{moment}.{self.names.index(name)}"]
            stage.optimizer.load_state_dict(own)


def of_rows(spec: P, rows: int) -> P:
    """The division of an array with so many rows: a single one is not divided."""
    return spec if rows != 1 else P(None, *spec[1:])


def _cut_rows(array: Any, rows: int) -> list[Any]:
    return [array[first : first + rows] for first in range(0, len(array), rows)]


def _source(task: Task, last: int) -> int | None:
    """The piece whose message a task waits for."""
    others = (one.piece for one in needs(task, last + 1) if one.piece != task.piece)
    return next(others, None)
