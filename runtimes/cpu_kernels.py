"""The machine code of CPU programs: found in memory or on disk, or compiled.

Two kinds of entries are looked up by the text of what they compute, before any work is done:

    graph   → how much memory, which kernels in which order, where their arguments come from
    kernel  → machine code, and how it is to be launched

If the first is found, nothing is scheduled; if the second is found, nothing is lowered, rendered or
compiled. The modules that do this work are imported only when needed: a process that finds
everything has its first result 40 ms sooner, of 290 (Emerald Rapids).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from minigrad.cache import Cache, digest, open_cache, source_digest
from minigrad.errors import CompileError
from minigrad.graph.canonical import Graph
from minigrad.graph.collective import Collective
from minigrad.graph.symbolic import Integer, high
from minigrad.locks import new_rlock
from minigrad.program import GlobalCounters
from minigrad.runtimes import cpu_memory, jit_compiler
from minigrad.runtimes.cpu_pool import Entry, Table, pool_for
from minigrad.runtimes.jit_compiler import MOST_THREADS, Compiler
from minigrad.schedule.expr import Array
from minigrad.schedule.groups import ALONE, NEVER, SHARED, SHORT, beside, in_groups, launched
from minigrad.schedule.key import graph_key
from minigrad.schedule.schedule import Kernel as Step
from minigrad.schedule.schedule import LiveRange, Source
from minigrad.schedule.show import label
from minigrad.settings import flag, report
from minigrad.target import Target

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from minigrad.compile import Rendered
    from minigrad.loops.nest import Nest

# The fraction of a chunk's work that is worth another thread: telling it takes about 1 µs.
LEAST_SHARED = 0.25
# Lines of LLVM IR that are compiled together: starting LLVM's passes takes as long as 50 lines.
BATCH = 500


@dataclass(frozen=True)
class KernelCode:
    """How a kernel is launched.

    entry: the name of its function. arguments: the numbers, in its text, of the arrays that it
    takes, in order; the values of `symbols` follow them, on which `total`, the iterations of its
    parallel loop, may depend. grain: iterations of a chunk. shares: of each of `arguments` (see
    `loops/shares.py`). scratch_bytes: private memory of a thread. operations, vectors
    (instructions), traffic (bytes) and label are for reports.
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
    shares: tuple[tuple[int, tuple[str, ...]], ...] = ()


@dataclass(frozen=True)
class ExchangeCode:
    """An exchange as a plan stores it: see `minigrad.collective.Exchange`."""

    collective: Collective
    dtype: str
    counts: tuple[int, ...]
    size: int


@dataclass(frozen=True)
class Kernel:
    """Machine code in memory; `keep` keeps it alive.

    The start and end of an exchange are kernels without code: they have an `exchange`, and the
    start has arguments.
    """

    key: str
    code: KernelCode
    address: int
    keep: object
    exchange: ExchangeCode | None = None


@dataclass(frozen=True)
class _MachineCode:
    """An object file in memory: addresses of its functions; `engine` keeps it alive."""

    addresses: Mapping[str, int]
    engine: object


@dataclass(frozen=True)
class LaunchPlan:
    """A program: its kernels in order, the sources of their arguments, the memory between them.

    follows: how each kernel follows the one before, and its chunks, or 0 if its own code says how
    many (see `schedule/groups.py`).
    """

    kernels: tuple[Kernel, ...]
    sources: tuple[tuple[Source, ...], ...]
    held: tuple[LiveRange, ...]
    follows: tuple[tuple[int, int], ...]


def _is_exchange(step: Step) -> bool:
    """Whether a kernel is the start or end of an exchange between ranks, which has no code."""
    return step.kind in ("exchange", "wait")


def _exchange_of(step: Step) -> tuple[Kernel, tuple[Array, ...]]:
    """The start or end of an exchange, and the arrays that it takes: the end takes none."""
    stage = step.stages[0]
    assert stage.exchange is not None
    sent = stage.exchange.sent
    counts = tuple(array.size for array in sent)
    code = ExchangeCode(stage.exchange.collective, stage.array.dtype.name, counts, stage.size)
    taken = (*sent, stage.array) if step.kind == "exchange" else ()
    nothing = KernelCode("", (), (), 0, 1, 1, 0, 0, 0, label(step))
    return Kernel(step.kind, nothing, 0, None, code), taken


# Errors that a missing or malformed entry of the disk causes.
MISSES = (AttributeError, KeyError, TypeError, ValueError, CompileError)


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
            source = ""  # edits of the compiler would go unnoticed: nothing is cached
        self._source = source
        # All that code depends on, besides what it computes.
        self._circumstances = digest(compiler.key, repr(target), source)

    def plan(self, graph: Graph) -> LaunchPlan:
        """The program of a graph, with all of its kernels in memory."""
        settings = f"FUSE={flag('FUSE')} GUARD={flag('GUARD')} TUNE={flag('TUNE')}"
        key = digest(self._circumstances, "program", settings, graph_key(graph))
        with self._lock:
            if flag("DEBUG") < 3:  # a schedule that is to be shown must be made
                with suppress(*MISSES):
                    return self._stored_plan(key)
            return self._new_plan(key, graph)

    def _cache(self) -> Cache | None:
        """The cache on disk; None if edits of the compiler would go unnoticed."""
        return open_cache() if self._source else None

    def _entry(self, key: str) -> Any:
        """An entry of the disk; KeyError if there is none."""
        cache = self._cache()
        entry = cache.read(key) if cache is not None else None
        if entry is None:
            raise KeyError(key)
        return entry

    # ---- programs ----

    def _stored_plan(self, key: str) -> LaunchPlan:
        """A plan from the disk; raises one of MISSES if it or one of its kernels is incomplete."""
        plan: LaunchPlan = self._entry(key)
        kernels = tuple(
            self._stored_kernel(one) if isinstance(one, str) else one for one in plan.kernels
        )
        GlobalCounters.cache_hits += 1
        return replace(plan, kernels=kernels)

    def _new_plan(self, key: str, graph: Graph) -> LaunchPlan:
        """Schedule a graph, find or compile its kernels, and cache the result."""
        from minigrad.compile import code_of, schedule_of

        made = schedule_of(graph, self.target, bool(flag("FUSE")))
        codes = iter(code_of([step for step in made.kernels if not _is_exchange(step)], self))
        # for each kernel: where its arguments come from
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
        # which kernels need no barrier between them
        given = [
            launched(self._work(kernel), kernel.code, own, dict(step.numbers))
            for kernel, step, own in zip(kernels, made.kernels, sources, strict=True)
        ]
        follows = beside(made.kernels, places, given)
        hows = [how for how, _ in follows]
        held = [replace(one, arrays=()) for one in in_groups(made.held, hows)]
        result = LaunchPlan(tuple(kernels), tuple(sources), tuple(held), tuple(follows))
        cache = self._cache()
        if cache is not None:
            named: Any = tuple(kernel if kernel.exchange else kernel.key for kernel in kernels)
            cache.write(key, replace(result, kernels=named))
        return result

    def _work(self, kernel: Kernel) -> int:
        """For how many threads a kernel has work: see `groups.py`."""
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
        """The kernel in memory or on disk, or None."""
        with suppress(*MISSES):
            return self._stored_kernel(self._key(key))
        return None

    def render(self, nest: Nest) -> str:
        """The LLVM IR of a nest."""
        from minigrad.render.llvm import render

        return render(nest)

    def build(self, kernels: Iterable[tuple[str, Rendered[str]]]) -> dict[str, Kernel]:
        """Compile kernels, into memory and onto the disk for the next process.

        LLVM compiles some kernels while the next are lowered; the last few it compiles here.
        """
        from minigrad.render.llvm import together

        made: dict[str, Kernel] = {}
        threads: Executor | None = None  # importing its module takes as long as a small kernel
        with ExitStack() as stack:
            started: list[tuple[dict[str, Rendered[str]], list[str], Callable[[], bytes]]] = []
            for batch, more in _batches(kernels):
                for one in batch.values():
                    report(5, lambda text=one.text: self.compiler.assembly(text))  # type: ignore[misc]
                GlobalCounters.kernels_compiled += len(batch)
                own = [*map(self._key, batch)]
                named = zip(map(_entry, own), batch.values(), strict=True)
                text = together({name: one.text for name, one in named})
                generate = self.compiler.prepared(text)
                if more:
                    if threads is None:
                        from concurrent.futures import ThreadPoolExecutor

                        threads = stack.enter_context(ThreadPoolExecutor(MOST_THREADS))
                    started.append((batch, own, threads.submit(generate).result))
                else:
                    started.insert(0, (batch, own, generate))
            for batch, own, code in started:
                made.update(self._kept(batch, own, code()))
        return made

    def _kept(
        self, batch: Mapping[str, Rendered[str]], own: Sequence[str], data: bytes
    ) -> dict[str, Kernel]:
        """The kernels in one object file, kept in memory and on disk; own: their keys there.

        A kernel that is alone in its file has it in its own entry of the disk.
        """
        cache, place, names = self._cache(), "", [*map(_entry, own)]
        if len(batch) > 1:
            place = self._key(" ".join(names))
            if cache is not None:
                cache.write(place, (names, data))
        made = {}
        machine = self._loaded(data, names)
        for (key, one), there, name in zip(batch.items(), own, names, strict=True):
            nest = one.nest
            code = KernelCode(
                name, one.arguments, nest.symbols, nest.scratch_bytes, nest.total, nest.grain,
                nest.operations, nest.vectors, nest.traffic, nest.label, nest.shares,
            )  # fmt: skip
            kernel = Kernel(there, code, machine.addresses[name], machine)
            made[key] = self._known[there] = kernel
            if cache is not None:
                cache.write(there, (code, place, b"" if place else data))
        return made

    def seconds(self, ways: Sequence[Rendered[str]], arrays: tuple[Array, ...]) -> list[float]:
        """The least seconds that each of several kernels took on arrays of zeros."""
        from minigrad.compile import best_of_rounds

        pool, keep = pool_for("CPU"), list[object]()
        sizes = [array.size * array.dtype.itemsize for array in arrays]
        memories = [cpu_memory.allocate_zeros(size) for size in sizes]
        words, launches = list[int](), list[Entry]()
        for one in ways:
            addresses, code = self.compiler.compile(one.text, [one.nest.name])
            keep.append(code)
            address = addresses[one.nest.name]
            launches.append((address, one.nest.total, one.nest.grain, len(words), 0))
            words += [memories[n] for n in one.arguments]
        table, scratch = Table(words, launches), max(one.nest.scratch_bytes for one in ways)
        best = best_of_rounds(table.parts(pool.run, scratch, single=True))
        for memory, size in zip(memories, sizes, strict=True):
            cpu_memory.free(memory, size)
        return best

    def _stored_kernel(self, key: str) -> Kernel:
        """A kernel from memory or the disk; raises one of MISSES if neither has it."""
        known = self._known.get(key)
        if known is None:
            code, place, data = self._entry(key)
            machine = self._shared(place) if place else self._loaded(data, [code.entry])
            known = Kernel(key, code, machine.addresses[code.entry], machine)
            self._known[key] = known
            GlobalCounters.cache_hits += 1
        return known

    def _shared(self, place: str) -> _MachineCode:
        """An object file of several kernels, from memory or the disk."""
        known = self._objects.get(place)
        if known is None:
            names, data = self._entry(place)
            known = self._objects[place] = self._loaded(data, names)
        return known

    def _loaded(self, data: bytes, names: Sequence[str]) -> _MachineCode:
        return _MachineCode(*self.compiler.load(data, names))


def _entry(key: str) -> str:
    """The name of a kernel's function, of its key on disk."""
    return f"kernel_{key[:32]}"


def _batches(
    kernels: Iterable[tuple[str, Rendered[str]]]
) -> Iterator[tuple[dict[str, Rendered[str]], bool]]:
    """Batches of kernels by key, each worth starting LLVM for, and whether more follow."""
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
