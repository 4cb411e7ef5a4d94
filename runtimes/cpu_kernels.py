"""Where the machine code of a CPU program comes from: memory, the disk, or the compiler.

Two kinds of entries are looked up by the text of what they compute, before any work is done:

    graph   → how much memory, which kernels in which order, where their arguments come from
    kernel  → machine code, and how it is to be launched

If the first is found, nothing is scheduled; if the second is found, nothing is lowered, rendered or
compiled. The modules that do this work are imported only when needed: a process that finds
everything has its first result 40 ms sooner, of 290 (Emerald Rapids).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from minigrad.cache import Cache, Entry, digest, open_cache, source_digest
from minigrad.errors import CompileError
from minigrad.graph.canonical import Graph
from minigrad.graph.symbolic import Integer, ceildiv, high
from minigrad.graph.variable import as_data, of_data
from minigrad.locks import new_rlock
from minigrad.program import GlobalCounters
from minigrad.runtimes import cpu_memory, jit_compiler
from minigrad.runtimes.cpu_exchange import ExchangeCode
from minigrad.runtimes.cpu_pool import Table, pool_for
from minigrad.runtimes.jit_compiler import MOST_THREADS, Compiler
from minigrad.schedule.expr import Array
from minigrad.schedule.groups import ALONE, NEVER, SHARED, SHORT, beside, in_groups
from minigrad.schedule.key import graph_key
from minigrad.schedule.schedule import Held, Source
from minigrad.schedule.schedule import Kernel as Step
from minigrad.schedule.show import label
from minigrad.settings import flag, report
from minigrad.target import Target

if TYPE_CHECKING:
    from minigrad.compile import Rendered
    from minigrad.loops.nest import Nest

# The part of a chunk's work that another thread may as well do: to be told takes it about 1 µs.
LEAST_SHARED = 0.25
# Lines of LLVM IR that are compiled at once: to start LLVM's passes takes as long as 50 lines.
BATCH = 500


@dataclass(frozen=True)
class KernelCode:
    """How a kernel is launched.

    entry: the name of its function. arguments: which of the arrays of its text it takes, by number,
    in order; the values of `symbols` follow them, on which `total`, the iterations of its parallel
    loop, may depend. grain: iterations of a chunk. scratch_bytes: private memory of a thread.
    operations, vectors (instructions), traffic (bytes) and label are for reports.
    """

    entry: str
    arguments: tuple[int, ...]
    symbols: tuple[str, ...]
    scratch_bytes: int
    total: Integer
    grain: int
    operations: int
    vectors: int
    traffic: int
    label: str


@dataclass(frozen=True)
class Kernel:
    """Machine code in memory; `keep` holds what the memory belongs to.

    Begin and end of an exchange are kernels without code: they have an `exchange`, and its start
    has arguments.
    """

    key: str
    code: KernelCode
    address: int
    keep: object
    exchange: ExchangeCode | None = None


@dataclass(frozen=True)
class _MachineCode:
    """An object file in memory: addresses of its functions; `engine` owns the memory."""

    addresses: Mapping[str, int]
    engine: object


@dataclass(frozen=True)
class Plan:
    """A program: its kernels in order, the sources of each one's arguments, what these hold.

    beside: how each kernel follows the one before (see `schedule/groups.py`).
    """

    kernels: tuple[Kernel, ...]
    sources: tuple[tuple[Source, ...], ...]
    held: tuple[Held, ...]
    beside: tuple[int, ...]


def _is_exchange(step: Step) -> bool:
    """Whether a kernel is begin or end of an exchange between ranks, which is no code."""
    return step.kind in ("exchange", "wait")


def _exchange_of(step: Step) -> tuple[Kernel, tuple[Array, ...]]:
    """The begin or end of an exchange, and the arrays that it takes: the end takes none."""
    stage = step.stages[0]
    assert stage.exchange is not None
    sent = stage.exchange.sent
    counts = tuple(array.size for array in sent)
    code = ExchangeCode(stage.exchange.collective, stage.array.dtype.name, counts, stage.size)
    taken = (*sent, stage.array) if step.kind == "exchange" else ()
    return _exchange(step.kind, label(step), code), taken


def _exchange(kind: str, text: str, code: ExchangeCode) -> Kernel:
    return Kernel(kind, KernelCode("", (), (), 0, 1, 1, 0, 0, 0, text), 0, None, code)


# What an entry of the disk may give that is missing, or makes no sense.
MISSES = (KeyError, TypeError, ValueError, CompileError)


class Kernels:
    """Plans and kernels for one target and compiler; safe to use from several threads."""

    def __init__(self, target: Target, compiler: Compiler) -> None:
        self.target, self.compiler = target, compiler
        # A kernel stays in memory as long as a program holds it.
        self._known: WeakValueDictionary[str, Kernel] = WeakValueDictionary()
        self._objects: WeakValueDictionary[str, _MachineCode] = WeakValueDictionary()
        self._lock = new_rlock()
        try:
            source = source_digest(__file__, jit_compiler.__file__)
        except OSError:
            source = ""  # an edited compiler could not be told from another: nothing is kept
        self._source = source
        # All that code depends on besides what it computes.
        self._circumstances = digest(compiler.key, repr(target), source)

    def plan(self, graph: Graph) -> Plan:
        """The program of a graph, with all of its kernels in memory."""
        settings = f"FUSE={flag('FUSE')} GUARD={flag('GUARD')} TUNE={flag('TUNE')}"
        key = digest(self._circumstances, "program", settings, graph_key(graph))
        with self._lock:
            if flag("DEBUG") < 3:  # a schedule that is to be shown must be made
                with suppress(*MISSES):
                    return self._stored_plan(key)
            return self._new_plan(key, graph)

    def _cache(self) -> Cache | None:
        """The cache on disk; none where an edited compiler could not be told from another."""
        return open_cache() if self._source else None

    def _entry(self, key: str) -> Entry:
        """What the disk has. KeyError where that is nothing."""
        cache = self._cache()
        entry = cache.read(key) if cache is not None else None
        if entry is None:
            raise KeyError(key)
        return entry

    # ---- programs ----

    def _stored_plan(self, key: str) -> Plan:
        """The plan that the disk has. One of MISSES where it has not all of it and its kernels."""
        about, _ = self._entry(key)
        held = tuple(
            Held(of_data(nbytes), int(first), int(last)) for nbytes, first, last in about["held"]
        )
        sources = tuple(
            tuple((str(kind), where) for kind, where in one) for one in about["sources"]
        )
        kernels = tuple(
            self._stored_kernel(one) if isinstance(one, str)
            else _exchange(one[0], one[1], ExchangeCode.read(one[2]))
            for one in about["kernels"]
        )  # fmt: skip
        joined = tuple(int(one) for one in about["beside"])
        if {len(sources), len(joined)} != {len(kernels)}:
            raise ValueError("not of one program")
        GlobalCounters.cache_hits += 1
        return Plan(kernels, sources, held, joined)

    def _new_plan(self, key: str, graph: Graph) -> Plan:
        """Schedule a graph, find or make its kernels, and keep the result."""
        from minigrad.compile import code_of, schedule_of

        made = schedule_of(graph, self.target, bool(flag("FUSE")))
        codes = iter(code_of([step for step in made.kernels if not _is_exchange(step)], self))
        places = made.places()
        kernels, sources = [], []
        for step in made.kernels:
            if _is_exchange(step):
                kernel, used = _exchange_of(step)
            else:
                kernel, arrays = next(codes)
                used = tuple(arrays[number] for number in kernel.code.arguments)
            kernels.append(kernel)
            sources.append(step.sources(places, used, kernel.code.symbols))
        chunks = [
            ceildiv(code.total, code.grain) if isinstance(code.total, int) else 0
            for code in (kernel.code for kernel in kernels)
        ]
        joined = beside(made.kernels, places, list(map(self._work, kernels)), chunks)
        held = in_groups(made.held, joined)
        result = Plan(tuple(kernels), tuple(sources), held, tuple(joined))
        cache = self._cache()
        if cache is not None:
            about = {
                "held": [(as_data(one.nbytes), one.first, one.last) for one in result.held],
                "kernels": [
                    (one.key, one.code.label, asdict(one.exchange)) if one.exchange else one.key
                    for one in kernels
                ],
                "sources": sources,
                "beside": joined,
            }
            cache.write(key, about, b"")
        return result

    def _work(self, kernel: Kernel) -> int:
        """For how many threads a kernel has work."""
        from minigrad.loops.assemble import chunks_worth

        code = kernel.code
        if high(code.total) > code.grain:
            return SHARED
        if kernel.exchange is not None:
            return NEVER
        worth = chunks_worth(code.operations, code.traffic, self.target)
        return ALONE if worth >= LEAST_SHARED else SHORT

    # ---- kernels: see `compile.Backend` ----

    def _key(self, key: str) -> str:
        """A kernel's key in memory and on disk."""
        settings = f"GUARD={flag('GUARD')} TUNE={flag('TUNE')}"
        return digest(self._circumstances, "kernel", settings, key)

    def find(self, key: str) -> Kernel | None:
        """The kernel that memory or the disk has."""
        with suppress(*MISSES):
            return self._stored_kernel(self._key(key))
        return None

    def render(self, nest: Nest) -> str:
        """LLVM IR."""
        from minigrad.render.llvm import render

        return render(nest)

    def build(self, kernels: Iterable[tuple[str, Rendered[str]]]) -> dict[str, Kernel]:
        """Machine code in memory, and on disk for the next process.

        LLVM works on some kernels while the next are lowered, and here on the last few.
        """
        from concurrent.futures import ThreadPoolExecutor

        from minigrad.render.llvm import together

        made: dict[str, Kernel] = {}
        with ThreadPoolExecutor(MOST_THREADS) as threads:
            started: list[tuple[dict[str, Rendered[str]], dict[str, str], Callable[[], bytes]]] = []
            for batch, more in _batches(kernels):
                for one in batch.values():
                    report(5, lambda text=one.text: self.compiler.assembly(text))  # type: ignore[misc]
                GlobalCounters.kernels_compiled += len(batch)
                names = {key: f"kernel_{self._key(key)[:32]}" for key in batch}  # no two alike
                text = together({names[key]: one.text for key, one in batch.items()})
                generate = self.compiler.prepared(text)
                if more:
                    started.append((batch, names, threads.submit(generate).result))
                else:
                    started.insert(0, (batch, names, generate))
            for batch, names, code in started:
                made.update(self._kept(batch, names, code()))
        return made

    def _kept(
        self, batch: Mapping[str, Rendered[str]], names: Mapping[str, str], data: bytes
    ) -> dict[str, Kernel]:
        """Kernels that are functions of one object file, in memory and on disk.

        One that is alone there has it in its own entry of the disk.
        """
        cache, place = self._cache(), ""
        if len(batch) > 1:
            place = self._key(" ".join(names.values()))
            if cache is not None:
                cache.write(place, {"functions": list(names.values())}, data)
        made = {}
        machine = self._loaded(data, list(names.values()))
        for key, one in batch.items():
            nest, own = one.nest, self._key(key)
            code = KernelCode(
                names[key], one.arguments, nest.symbols, nest.scratch_bytes, nest.total, nest.grain,
                nest.operations, nest.vectors, nest.traffic, nest.label,
            )  # fmt: skip
            kernel = Kernel(own, code, machine.addresses[code.entry], machine)
            made[key] = self._known[own] = kernel
            if cache is not None:
                about = {**vars(code), "total": as_data(code.total), "object": place}
                cache.write(own, about, b"" if place else data)
        return made

    def seconds(self, ways: Sequence[Rendered[str]], arrays: tuple[Array, ...]) -> list[float]:
        """How long each of several kernels takes on arrays of zeros: the best of rounds."""
        from minigrad.compile import best_of_rounds

        pool, keep = pool_for("CPU"), list[object]()
        sizes = [array.size * array.dtype.itemsize for array in arrays]
        memories = [cpu_memory.allocate_zeros(size) for size in sizes]
        words, launches = list[int](), list[tuple[int, Integer, int, int, int]]()
        for one in ways:
            addresses, code = self.compiler.compile(one.text, [one.nest.name])
            keep.append(code)
            address = addresses[one.nest.name]
            launches.append((address, one.nest.total, one.nest.grain, len(words), 0))
            words += [memories[n] for n in one.arguments]
        table = Table(words, launches)

        def run(number: int) -> None:
            pool.run(table.place(number), 1, ways[number].nest.scratch_bytes)

        best = best_of_rounds(run, len(ways))
        for memory, size in zip(memories, sizes, strict=True):
            cpu_memory.free(memory, size)
        return best

    def _stored_kernel(self, key: str) -> Kernel:
        """The kernel that memory or the disk has. One of MISSES for neither."""
        known = self._known.get(key)
        if known is None:
            about, data = self._entry(key)
            place = about.pop("object")
            lists = {name: tuple(about[name]) for name in ("arguments", "symbols")}
            code = KernelCode(**{**about, **lists, "total": of_data(about["total"])})
            machine = self._shared(place) if place else self._loaded(data, [code.entry])
            known = Kernel(key, code, machine.addresses[code.entry], machine)
            self._known[key] = known
            GlobalCounters.cache_hits += 1
        return known

    def _shared(self, place: str) -> _MachineCode:
        """An object file of several kernels that memory or the disk has."""
        known = self._objects.get(place)
        if known is None:
            about, data = self._entry(place)
            known = self._objects[place] = self._loaded(data, about["functions"])
        return known

    def _loaded(self, data: bytes, names: Sequence[str]) -> _MachineCode:
        return _MachineCode(*self.compiler.load(data, names))


def _batches(
    kernels: Iterable[tuple[str, Rendered[str]]]
) -> Iterator[tuple[dict[str, Rendered[str]], bool]]:
    """Kernels by key, as many at once as make it worth while to start LLVM; are there more?"""
    batch: dict[str, Rendered[str]] = {}
    lines = 0
    for key, one in kernels:
        batch[key] = one
        lines += one.text.count("\n")
        if lines >= BATCH:
            yield batch, True
            batch, lines = {}, 0
    if batch:
        yield batch, False
