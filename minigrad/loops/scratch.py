"""Where a kernel of blocks keeps the values that pass between its stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from minigrad.dtype import DType
from minigrad.graph.symbolic import Integer, add, flatten, mul, numel
from minigrad.loops.build import inline_stages
from minigrad.loops.nest import Store
from minigrad.loops.regions import places_in
from minigrad.schedule import expr
from minigrad.schedule.contraction import contraction_of
from minigrad.schedule.expr import Array, Expr, Leaf, Local
from minigrad.schedule.schedule import Kernel
from minigrad.schedule.stage import Stage, index_of


def result_of(dtype: DType) -> Expr:
    """Stands for a product's result in its stores."""
    return expr.local(Local("product", dtype, 1))


class Scratch:
    """Places in scratch memory for values that stay inside the kernel, used again and again.

    stages: the kernel's with their rows fixed. A value has `width` rows side by side, this row's
    at `lane`. inlined: numbers of stages that the stores of a product before them compute.
    """

    def __init__(
        self, kernel: Kernel, stages: Sequence[Stage], width: int, lane: Integer
    ) -> None:
        self.kernel, self.stages, self.width, self.lane = kernel, stages, width, lane
        self.maker = {stage.array: stage for stage in stages}
        self._reads = [
            {load.payload[0] for load in expr.loads(stage.body)} & self.maker.keys()
            for stage in stages
        ]
        self._epilogues: dict[int, list[int]] = {}
        self.inlined: set[int] = set()
        for number, stage in enumerate(kernel.stages):
            if contraction_of(stage) is not None:
                self._epilogues[number] = self._epilogue(number)
                self.inlined |= set(self._epilogues[number])
        self.arrays: dict[Array, Array] = {}
        self._plan()

    def _epilogue(self, number: int) -> list[int]:
        """The stages after a product that only pass its elements on, if nobody else needs them."""
        product = self.kernel.stages[number]
        before = {stage.array for stage in self.kernel.stages[:number]}
        made = {product.array}
        found = []
        for later in range(number + 1, len(self.stages)):
            stage = self.kernel.stages[later]
            if stage.op is None and self._reads[later] & made:
                own = all(
                    load.payload[0] not in made
                    or load.payload[1] == stage.position and not load.payload[2]
                    for load in expr.loads(stage.body)
                )
                if own and stage.size == product.size and self._reads[later] <= made | before:
                    made.add(stage.array)
                    found.append(later)
        for later, read in enumerate(self._reads):
            if later not in found and read & (made - self.kernel.stored):
                return []
        return found

    def _plan(self) -> None:
        """Give every value that stays inside a place; one may take that of a value it replaces."""
        last: dict[Array, int] = {}
        for number, read in enumerate(self._reads):
            at = next((p for p, e in self._epilogues.items() if number in e), number)
            for array in read:
                last[array] = max(last.get(array, 0), at)
        free: list[Array] = []
        for number, stage in enumerate(self.stages):
            ending = [a for a in self._reads[number] if a in self.arrays and last[a] == number]
            ending.sort(key=lambda array: array.name)
            if number not in self.inlined and self._stays(number):
                size = max(numel([axis.extent for axis in stage.axes]) * self.width, 1)
                usable = [*self._replaceable(number, ending), *free]
                place = next(
                    (a for a in usable if a.size == size and a.dtype is stage.array.dtype), None
                )
                if place is None:
                    name = f"x{len(set(self.arrays.values()))}"
                    place = Array(name, stage.array.dtype, size, "scratch")
                elif place in free:
                    free.remove(place)
                self.arrays[stage.array] = place
            used = self.arrays.get(stage.array)
            free += [self.arrays[a] for a in ending if self.arrays[a] != used]

    def _stays(self, number: int) -> bool:
        """Whether a stage's value needs a place: it is not stored, or its product is inlined."""
        array = self.stages[number].array
        return array not in self.kernel.stored and not self._epilogues.get(number)

    def _replaceable(self, number: int, ending: Sequence[Array]) -> list[Array]:
        """Places that an elementwise stage reads for the last time, each before it writes there."""
        stage = self.kernel.stages[number]
        if stage.op is not None:
            return []
        reads = expr.loads(stage.body)
        return [
            self.arrays[array]
            for array in ending
            if all(
                load.payload[1] == stage.position and not load.payload[2]
                for load in reads
                if self.arrays.get(load.payload[0]) == self.arrays[array]
            )
        ]

    def reading(self, body: Expr) -> Expr:
        """The body with its loads of values that stay inside turned to their places."""

        def change(e: Expr) -> Expr | None:
            if e.op is not Leaf.LOAD or e.payload[0] not in self.arrays:
                return None
            array, _, guard = e.payload
            stage = self.maker[array]
            inner = flatten(places_in(e, stage), [axis.extent for axis in stage.axes])
            return expr.load(self.arrays[array], self._at(inner), guard)

        return expr.rebuild(body, change)

    def place(self, number: int) -> tuple[Array, Integer]:
        """Where a stage's element goes."""
        stage = self.stages[number]
        if stage.array not in self.arrays:
            return stage.array, stage.position
        inner = flatten(
            [index_of(axis.variable) for axis in stage.axes], [axis.extent for axis in stage.axes]
        )
        return self.arrays[stage.array], self._at(inner)

    def _at(self, inner: Integer) -> Integer:
        return add(mul(inner, self.width), self.lane)

    def stores(self, number: int) -> list[Store]:
        """The stores of a product, in terms of its own axes, its rows not fixed yet."""
        product = self.kernel.stages[number]
        result = result_of(product.body.dtype)
        if product.array in self.arrays:
            return [Store(*self.place(number), result)]
        marker = replace(product, op=None, reduced=(), body=result)
        followers = [self.kernel.stages[later] for later in self._epilogues[number]]
        epilogue = replace(self.kernel, stages=(marker, *followers))
        return [
            Store(s.array, s.index, self.reading(s.value))
            for s in inline_stages(epilogue, product.axes)
        ]
