"""From the text of LLVM IR to machine code in memory.

The renderer emits vectors, unrolling and registers itself, so LLVM only generates code. Object code
is what is cached on disk: `compile` is nothing but `object_code` followed by `load`. Several
threads may generate code at once.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, partial
from queue import SimpleQueue
from typing import Any

import llvmlite.binding as llvm

from minigrad.errors import CompileError
from minigrad.graph.interned import kept
from minigrad.locks import Block, held_over_forks
from minigrad.runtimes.host import host, processors

# Code addresses its constants relative to the instruction, without loading an address. That reaches
# only 2 GiB, so code and data of an object must be in one block of memory.
_CODE_MODEL: dict[str, Any] = {"reloc": "pic", "codemodel": "small"}

# Calls of functions that LLVM introduces (memset, …) use the table of addresses (GOT), and so do
# calls of functions that a text declares `nonlazybind`: the size of that block is computed without
# the stubs of another table (PLT).
_CALLS_BY_TABLE = """
!llvm.module.flags = !{!999999}
!999999 = !{i32 7, !"RtLibUseGOT", i32 1}
"""

# The compiler's own library, which a process may not have loaded. LLVM calls its functions for
# conversions to float16 if an x86 has no instructions for them (F16C); GCC has them from 12 on.
_OF_COMPILERS = "libgcc_s.so.1"

_SYMBOL_TABLE = 2  # SHT_SYMTAB of the ELF specification
_SYMBOL_BYTES = 24  # sizeof(Elf64_Sym)

# llvmlite locks each call of LLVM, but compiling takes several calls on one module. Both locks are
# held over a fork, so that a child does not inherit LLVM in the middle of something: the garbage
# collector calls LLVM, too, to free modules.
_lock = held_over_forks()
held_over_forks(llvm.ffi.lib._lock._lock)
# Generating code takes most of the time, and nothing else uses the module meanwhile. So it is done
# without llvmlite's lock, by as many threads as there are processors, and by the thread that waits
# for them. Each holds one of these locks, for forks.
MOST_THREADS = min(len(processors()), 8)
_FREE: SimpleQueue[Any] = SimpleQueue()
for _ in range(MOST_THREADS + 1):
    _FREE.put(held_over_forks())


@cache
def _target() -> Any:
    """The host's code generator, with the parser that inline assembly needs."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()
    return llvm.Target.from_triple(llvm.get_process_triple())


@cache
def _no_code() -> Any:
    """An empty module."""
    return llvm.parse_assembly("", llvm.create_context())


class Compiler:
    """Compiles LLVM IR for one kind of processor.

    cpu and features are LLVM's names; the host's if both are empty. `opt` is the effort of the
    code generator (0 to 3). At 0 it takes half as long, which is a fifth of a small program's first
    call; but products then run 3 to 6 times as long, and some sums of products round differently.
    """

    def __init__(self, cpu: str = "", features: str = "", opt: int = 2) -> None:
        if not cpu and not features:
            cpu, features = host().name, llvm.get_host_cpu_features().flatten()
        self.cpu, self.features, self.opt = cpu, features, opt
        # Code generators that no thread uses. Making one takes as long as a small kernel.
        self._idle: list[Any] = []

    @property
    def key(self) -> str:
        """All that the object code depends on besides the IR, as text."""
        version = ".".join(map(str, llvm.llvm_version_info))
        return f"LLVM {version} {self.cpu} {self.features} O{self.opt}"

    def compile(self, ir_text: str, names: Sequence[str]) -> tuple[dict[str, int], object]:
        """Machine code for a module: addresses of the functions `names`, and a keep-alive object.

        The code lives as long as the second value does. CompileError quotes what LLVM found.
        """
        return self.load(self.object_code(ir_text), names)

    def object_code(self, ir_text: str) -> bytes:
        """The module as a relocatable object file, which `load` takes."""
        return self.prepared(ir_text)()

    def prepared(self, ir_text: str) -> Callable[[], bytes]:
        """Check a module now; returns a function that generates its code, on any thread."""
        with _lock:
            module = self._checked(ir_text)
        return partial(self._generated, module)

    def _generated(self, module: Any) -> bytes:
        """The object file of a module."""
        lock = _FREE.get()
        try:
            with lock:
                try:
                    machine = self._idle.pop()
                except IndexError:
                    machine = self._new_target_machine()
                with _fewer_passes():
                    data = _object_of(machine, module)
                self._idle.append(machine)
                return data
        finally:
            _FREE.put(lock)

    def assembly(self, ir_text: str) -> str:
        """The module as assembly text, for people."""
        with _lock, _fewer_passes():
            module = self._checked(ir_text)
            return str(self._new_target_machine().emit_assembly(module))

    def load(self, object_bytes: bytes, names: Sequence[str]) -> tuple[dict[str, int], object]:
        """Load object code into memory; returns addresses of `names`, and a keep-alive object.

        The bytes must come undamaged from `object_code`: LLVM does not survive every damaged file.
        """
        wanted = undefined_symbols(object_bytes)
        with _lock:
            # An engine takes ownership of its target machine and needs a module to start with.
            machine = _target().create_target_machine(jit=True, **_CODE_MODEL)
            # The last argument puts code and data of an object side by side.
            engine = llvm.create_mcjit_compiler(_no_code(), machine, True)
            # Generating no code from an empty module would take longer than all the rest.
            engine.remove_module(_no_code())
            if not all(map(llvm.address_of_symbol, wanted)):
                with suppress(RuntimeError):  # the check below says what is missing
                    llvm.load_library_permanently(_OF_COMPILERS)
            # LLVM would end the process because of an undefined symbol.
            lacking = [name for name in wanted if not llvm.address_of_symbol(name)]
            if lacking:
                raise CompileError(f"the code calls {lacking}, which this process does not provide")
            file = llvm.ObjectFileRef.from_data(object_bytes)
            if not file._ptr:
                raise CompileError("an object file of another machine; compile the kernel again")
            engine.add_object_file(file)
            # The engine owns the object now; llvmlite would free it a second time.
            file.detach()
            engine.finalize_object()
            addresses = {name: int(engine.get_function_address(name)) for name in names}
        missing = [name for name, address in addresses.items() if not address]
        if missing:
            raise CompileError(f"the object file has no functions named {missing}")
        return addresses, engine

    def _checked(self, ir_text: str) -> Any:
        """Parse and check a module, in an LLVM context of its own."""
        text = f"{self._target_text}{ir_text}{_CALLS_BY_TABLE}"
        try:
            module = llvm.parse_assembly(text, llvm.create_context())
            module.verify()
        except RuntimeError as error:
            raise CompileError(f"LLVM rejected the IR of a kernel: {error}") from None
        return module

    @kept
    def _target_text(self) -> str:
        """The data layout and target triple of modules."""
        machine = self._new_target_machine()
        self._idle.append(machine)
        return (
            f'target datalayout = "{machine.target_data}"\ntarget triple = "{machine.triple}"\n'
        )

    def _new_target_machine(self) -> Any:
        return _target().create_target_machine(
            cpu=self.cpu, features=self.features, opt=self.opt, jit=True, **_CODE_MODEL
        )


def _leave_out(value: bytes) -> None:
    """Whether to leave out two of LLVM's passes: a quarter faster, with equal results.

    Strength reduction of loops: the renderer has moved invariant computations out of loops.
    Scheduling after register allocation: processors with vectors reorder instructions themselves.
    These are options of the whole process, in which others may use LLVM too: they are set no longer
    than needed.
    """
    for option in (b"-disable-lsr=", b"-disable-post-ra="):
        _library("LLVMPY_SetCommandLine", False)(b"minigrad", option + value)


_fewer_passes = Block(partial(_leave_out, b"true"), partial(_leave_out, b"false"))


@cache
def _library(name: str, waits: bool) -> Any:
    """A function of llvmlite's library without its lock. waits: release the GIL during the call.

    A thread that releases it may get it back only after some milliseconds, if others use Python.
    """
    locked = getattr(llvm.ffi.lib, name)
    function = getattr((ctypes.CDLL if waits else ctypes.PyDLL)(llvm.ffi.lib._name), name)
    function.argtypes, function.restype = locked.argtypes, locked.restype
    return function


def _object_of(machine: Any, module: Any) -> bytes:
    """A module's object file, as `machine.emit_object(module)` gives it."""
    error = ctypes.c_char_p()
    place = ctypes.byref(error)
    buffer = _library("LLVMPY_TargetMachineEmitToMemory", True)(machine, module, 1, place)
    if not buffer:
        reason = (error.value or b"").decode(errors="replace")
        _library("LLVMPY_DisposeString", False)(error)
        raise CompileError(f"LLVM generated no code for a kernel: {reason}")
    try:
        start = _library("LLVMPY_GetBufferStart", False)(buffer)
        return ctypes.string_at(start, _library("LLVMPY_GetBufferSize", False)(buffer))
    finally:
        _library("LLVMPY_DisposeMemoryBuffer", False)(buffer)


def undefined_symbols(object_bytes: bytes) -> list[str]:
    """Names that an ELF object (64 bits, little-endian) expects to find elsewhere.

    CompileError for a file that is cut off or makes no sense.
    """
    try:
        (sections_at,) = struct.unpack_from("<Q", object_bytes, 0x28)
        section_size, count = struct.unpack_from("<HH", object_bytes, 0x3A)
        # For each section header: type, offset, size, index of the section that has its names.
        headers = [
            struct.unpack_from("<4xI16xQQI", object_bytes, sections_at + index * section_size)
            for index in range(count)
        ]
        names = []
        for kind, offset, size, link in headers:
            if kind == _SYMBOL_TABLE:
                for entry in range(offset + _SYMBOL_BYTES, offset + size, _SYMBOL_BYTES):
                    name, section = struct.unpack_from("<I2xH", object_bytes, entry)
                    if section == 0:
                        begin = headers[link][1] + name
                        end = object_bytes.index(b"\0", begin)
                        names.append(object_bytes[begin:end].decode())
    except (struct.error, IndexError, OverflowError, ValueError):
        raise CompileError("the object file is damaged; compile the kernel again") from None
    return names


@cache
def host_compiler() -> Compiler:
    """The compiler for this machine."""
    return Compiler()
