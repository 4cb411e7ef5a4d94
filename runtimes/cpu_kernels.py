"""Where the machine code of a CPU program comes from: memory, the disk, or the compiler.

Two kinds of entries are looked up by the text of what they compute, before any work is done:

    graph   → how much memory, which kernels in which order, where their arguments come from
    kernel  → machine code, and how it is to be launched

With the first found, nothing is scheduled; with the second, nothing is lowered, rendered, compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any
from weakref import WeakValueDictionary

from minigrad.cache import Cache, Entry, digest, open_cache, source_digest
from minigrad.compile import Rendered, best_of_rounds, code_of, schedule_of
from minigrad.errors import CompileError
from minigrad.graph.canonical import Graph
from minigrad.graph.symbolic import Integer, high
from minigrad.graph.variable import as_data, of_data
from minigrad.locks import new_rlock
from minigrad.loops.assemble import chunks_worth
from minigrad.loops.nest import Nest
from minigrad.program import GlobalCounters
from minigrad.render.llvm import render, together
from minigrad.runtimes import cpu_memory, jit_compiler
from minigrad.runtimes.cpu_exchange import ExchangeCode, Exchanges
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

    beside: which kernels need not wait for the one before (see `schedule/groups.py`).
    """

    kernels: tuple[Kernel, ...]
    sources: tuple[tuple[Source, ...], ...]
    held: tuple[Held, ...]
    beside: tuple[bool, ...]


def is_exchange(step: Step) -> bool:
    """Whether a kernel is begin or end of an exchange between ranks, which is no code."""
    return step.kind in ("exchange", "wait")


def _sent_and_filled(step: Step) -> tuple[Array, ...]:
    """The arrays of the begin of an exchange; its end takes none."""
    stage = step.stages[0]
    assert stage.exchange is not None
    return (*stage.exchange.sent, stage.array) if step.kind == "exchange" else ()


def _exchange_of(step: Step) -> Kernel:
    """The begin or end of an exchange."""
    stage = step.stages[0]
    assert stage.exchange is not None
    counts = tuple(array.size for array in stage.exchange.sent)
    code = ExchangeCode(stage.exchange.collective, stage.array.dtype.name, counts, stage.size)
    return _exchange(asdict(code), step.kind, label(step))


def _exchange(exchange: dict[str, Any], kind: str, text: str) -> Kernel:
    """The same from what a stored plan says of it."""
    code = ExchangeCode.read(exchange)
    return Kernel(kind, KernelCode("", (), (), 0, 1, 1, 0, 0, 0, str(text)), 0, None, code)


def entry_address(kernel: Kernel, exchanges: Exchanges) -> int:
    """The address to which a launch of the kernel jumps."""
    if kernel.exchange is None:
        return kernel.address
    return exchanges.address(kernel.exchange, kernel.key == "exchange")


def _reference(kernel: Kernel) -> Any:
    """A kernel in a stored plan: its key, or all there is to know of an exchange."""
    if kernel.exchange is None:
        return kernel.key
    return {"exchange": asdict(kernel.exchange), "kind": kernel.key, "text": kernel.code.label}


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
            # a schedule that is to be shown must be made
            found = self._stored_plan(key) if flag("DEBUG") < 3 else None
            return found or self._new_plan(key, graph)

    def _cache(self) -> Cache | None:
        """The cache on disk; none where an edited compiler could not be told from another."""
        return open_cache() if self._source else None

    # ---- programs ----

    def _stored_plan(self, key: str) -> Plan | None:
        """The plan that the disk has, if it has all of the plan's kernels too."""
        cache = self._cache()
        entry = cache.read(key) if cache is not None else None
        if entry is None:
            return None
        try:
            about = entry[0]
            held = tuple(
                Held(of_data(nbytes), int(first), int(last))
                for nbytes, first, last in about["held"]
            )
            sources = tuple(
                tuple((str(kind), where) for kind, where in one) for one in about["sources"]
            )
            kernels = [
                self._stored_kernel(name) if isinstance(name, str) else _exchange(**name)
                for name in about["kernels"]
            ]
            joined = tuple(bool(one) for one in about["beside"])
        except (KeyError, TypeError, ValueError):
            return None
        whole = tuple(kernel for kernel in kernels if kernel is not None)
        if {len(whole), len(sources), len(joined)} != {len(kernels)}:
            return None
        GlobalCounters.cache_hits += 1
        return Plan(whole, sources, held, joined)

    def _new_plan(self, key: str, graph: Graph) -> Plan:
        """Schedule a graph, find or make its kernels, and keep the result."""
        made = schedule_of(graph, self.target, bool(flag("FUSE")))
        codes = iter(code_of([step for step in made.kernels if not is_exchange(step)], self))
        places = made.places()
        kernels, sources = [], []
        for step in made.kernels:
            if is_exchange(step):
                kernels.append(_exchange_of(step))
                sources.append(step.sources(places, _sent_and_filled(step), ()))
                continue
            kernel, arrays = next(codes)
            used = [arrays[number] for number in kernel.code.arguments]
            kernels.append(kernel)
            sources.append(step.sources(places, used, kernel.code.symbols))
        joined = beside(made.kernels, places, list(map(self._work, kernels)))
        held = in_groups(made.held, joined)
        result = Plan(tuple(kernels), tuple(sources), held, tuple(joined))
        cache = self._cache()
        if cache is not None:
            about = {
                "held": [(as_data(one.nbytes), one.first, one.last) for one in result.held],
                "kernels": [_reference(kernel) for kernel in kernels],
                "sources": sources,
                "beside": joined,
            }
            cache.write(key, about, b"")
        return result

    def _work(self, kernel: Kernel) -> int:
        """For how many threads a kernel has work."""
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
        return self._stored_kernel(self._key(key))

    def render(self, nest: Nest) -> str:
        """LLVM IR."""
        return render(nest)

    def build(self, kernels: Iterable[tuple[str, Rendered[str]]]) -> dict[str, Kernel]:
        """Machine code in memory, and on disk for the next process.

        LLVM works on some kernels while the next are lowered, and here on the last few.
        """
        made: dict[str, Kernel] = {}
        with ThreadPoolExecutor(MOST_THREADS) as threads:
            started: list[tuple[dict[str, Rendered[str]], dict[str, str], Callable[[], bytes]]] = []
            for batch, more in _batches(kernels):
                for one in batch.values():
                    report(5, lambda text=one.text: self.compiler.assembly(text))  # type: ignore[misc]
                GlobalCounters.kernels_compiled += len(batch)
                names = {key: _entry_name(self._key(key)) for key in batch}
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
        machine = _MachineCode(*self.compiler.load(data, list(names.values())))
        for key, one in batch.items():
            nest, own = one.nest, self._key(key)
            code = KernelCode(
                names[key], one.arguments, nest.symbols, nest.scratch_bytes, nest.total, nest.grain,
                nest.operations, nest.vectors, nest.traffic, nest.label,
            )  # fmt: skip
            made[key] = self._known[own] = _kernel(own, code, machine)
            if cache is not None:
                about = {**asdict(code), "total": as_data(code.total), "object": place}
                cache.write(own, about, b"" if place else data)
        return made

    def seconds(self, ways: Sequence[Rendered[str]], arrays: tuple[Array, ...]) -> list[float]:
        """How long each of several kernels takes on arrays of zeros: the best of rounds."""
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

    def _stored_kernel(self, key: str) -> Kernel | None:
        """The kernel that memory or the disk has."""
        known = self._known.get(key)
        cache = self._cache() if known is None else None
        entry = cache.read(key) if cache is not None else None
        if entry is None:
            return known
        loaded = self._loaded(key, entry)
        if loaded is not None:
            GlobalCounters.cache_hits += 1
        return loaded

    def _loaded(self, key: str, entry: Entry) -> Kernel | None:
        """An entry of the disk brought into memory."""
        try:
            about, data = entry
            place = about.pop("object")
            lists = {name: tuple(about[name]) for name in ("arguments", "symbols")}
            total = of_data(about["total"])
            code = KernelCode(**{**about, **lists, "total": total})
            machine = self._shared(place) if place else _MachineCode(
                *self.compiler.load(data, [code.entry])
            )  # fmt: skip
            kernel = self._known[key] = _kernel(key, code, machine)
        except (KeyError, TypeError, ValueError, CompileError):
            return None
        return kernel

    def _shared(self, place: str) -> _MachineCode:
        """An object file of several kernels that memory or the disk has; KeyError for neither."""
        known = self._objects.get(place)
        if known is None:
            cache = self._cache()
            entry = cache.read(place) if cache is not None else None
            if entry is None:
                raise KeyError(place)
            loaded = self.compiler.load(entry[1], entry[0]["functions"])
            known = self._objects[place] = _MachineCode(*loaded)
        return known


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


def _entry_name(key: str) -> str:
    """The name of a kernel's function, which no other has."""
    return f"kernel_{key[:32]}"


def _kernel(key: str, code: KernelCode, machine: _MachineCode) -> Kernel:
    return Kernel(key, code, machine.addresses[code.entry], machine)
