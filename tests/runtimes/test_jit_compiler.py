"""From IR text to running code: results, object code that loads again, and plain errors."""

from __future__ import annotations

import ctypes
import gc
import os
import struct
import threading

import llvmlite.binding as llvm
import pytest

from minigrad.errors import CompileError
from minigrad.runtimes.host import host
from minigrad.runtimes.jit_compiler import Compiler, host_compiler, undefined_symbols

# Doubles a float by a vector constant, so that code must find its data.
SCALE = """
define void @scale(i64 %begin, i64 %end, ptr %args, ptr %scratch) {
entry:
  %data = load ptr, ptr %args
  %at = getelementptr float, ptr %data, i64 %begin
  %old = load <8 x float>, ptr %at, align 4
  %new = fmul <8 x float> %old, <float 2.0, float 3.0, float 2.0, float 3.0, float 2.0, float 3.0,
    float 2.0, float 5.0>
  store <8 x float> %new, ptr %at, align 4
  ret void
}
"""
CALLS = """
define float @calls(ptr %at, i64 %n, float %x) {
  call void @llvm.memset.p0.i64(ptr %at, i8 7, i64 %n, i1 false)
  %pid = call i32 @getpid()
  store i32 %pid, ptr %at
  %rest = frem float %x, 3.0
  ret float %rest
}
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
declare i32 @getpid() nonlazybind
"""
NOBODY = """
define void @f() {
  call void @nobody_has_this()
  ret void
}
declare void @nobody_has_this() nonlazybind
"""
KERNEL = ctypes.CFUNCTYPE(
    None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p
)  # fmt: skip


def scaled(address: int) -> list[float]:
    data = (ctypes.c_float * 9)(*range(1, 10))
    args = (ctypes.c_void_p * 1)(ctypes.addressof(data))
    KERNEL(address)(1, 9, args, None)
    return list(data)


EXPECTED = [1, 4, 9, 8, 15, 12, 21, 16, 45]


def test_compiled_code_runs() -> None:
    addresses, code = host_compiler().compile(SCALE, ["scale"])
    assert scaled(addresses["scale"]) == EXPECTED
    del code


def test_object_code_loads_many_times() -> None:
    data = host_compiler().object_code(SCALE)
    assert data == host_compiler().object_code(SCALE)
    loaded = [Compiler().load(data, ["scale"]) for _ in range(20)]
    assert len({addresses["scale"] for addresses, _ in loaded}) == 20
    for addresses, _ in loaded:
        assert scaled(addresses["scale"]) == EXPECTED


def test_one_code_generator_serves_one_kernel_after_the_other(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler, made, new = Compiler(), list[object](), Compiler._new_target_machine

    def counted(one: Compiler) -> object:
        made.append(new(one))
        return made[-1]

    monkeypatch.setattr(Compiler, "_new_target_machine", counted)
    assert len({compiler.object_code(SCALE) for _ in range(5)}) == len(made) == 1


def test_functions_of_the_process_are_called() -> None:
    addresses, code = host_compiler().compile(CALLS, ["calls"])
    call = ctypes.CFUNCTYPE(ctypes.c_float, ctypes.c_void_p, ctypes.c_int64, ctypes.c_float)(
        addresses["calls"]
    )
    memory = (ctypes.c_uint8 * 8)()
    assert call(ctypes.addressof(memory), 6, 7.5) == 1.5
    assert struct.unpack("<I", bytes(memory[:4])) == (os.getpid(),)
    assert list(memory[4:]) == [7, 7, 0, 0]
    del code


@pytest.mark.parametrize("cpu", ["x86-64", "haswell", "znver4"])
def test_other_processors(cpu: str) -> None:
    if host().architecture != "x86_64":
        pytest.skip("needs an x86 processor")
    text = Compiler(cpu).assembly(SCALE)
    assert ("%ymm" in text) == (cpu != "x86-64")
    if cpu == "x86-64":
        addresses, code = Compiler(cpu).compile(SCALE, ["scale"])
        assert scaled(addresses["scale"]) == EXPECTED
        del code


def test_features_can_be_taken_away() -> None:
    if host().architecture != "x86_64":
        pytest.skip("needs an x86 processor")
    compiler = Compiler("x86-64", "+avx2")
    assert "%ymm" in compiler.assembly(SCALE)
    assert compiler.key != Compiler("x86-64").key


@pytest.mark.parametrize("text, message", [
    ("nonsense", "expected top-level entity"),
    ("define i32 @f() {\n ret i64 1\n}", "function result type"),
    (NOBODY, "nobody_has_this"),
    ("define void @g() {\n ret void\n}", r"no functions named \['f'\]"),
])  # fmt: skip
def test_errors_are_plain(text: str, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        host_compiler().compile(text, ["f"])


def test_what_is_no_object_file_is_refused() -> None:
    for data in (b"", b"no object at all" * 20):
        with pytest.raises(CompileError):
            host_compiler().load(data, ["scale"])


def test_undefined_symbols_are_found_and_damaged_tables_refused() -> None:
    data = host_compiler().object_code(CALLS)
    assert undefined_symbols(data) == ["memset", "getpid", "fmodf"]
    assert undefined_symbols(host_compiler().object_code(SCALE)) == []
    refused = 0
    for length in range(6, len(data), 7):
        try:
            undefined_symbols(data[:length])
        except CompileError:
            refused += 1
    assert refused > 50
    with pytest.raises(CompileError):
        undefined_symbols(data[:0x28] + b"\xff" * 8 + data[0x30:])  # sections beyond any memory


def test_many_threads_may_compile() -> None:
    results: list[list[float]] = []

    def work() -> None:
        for _ in range(5):
            addresses, code = host_compiler().compile(SCALE, ["scale"])
            results.append(scaled(addresses["scale"]))
            del code

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [EXPECTED] * 20


def test_code_goes_when_nobody_keeps_it() -> None:
    data = host_compiler().object_code(SCALE)

    def mappings() -> int:
        with open("/proc/self/maps") as file:
            return sum(1 for line in file if " r-xp " in line)

    if not os.path.exists("/proc/self/maps"):
        pytest.skip("/proc/self/maps does not exist")
    before = mappings()
    kept = [host_compiler().load(data, ["scale"]) for _ in range(50)]
    assert mappings() >= before + 25
    del kept
    gc.collect()
    assert mappings() <= before + 5


def test_the_key_names_what_code_depends_on() -> None:
    assert ".".join(map(str, llvm.llvm_version_info)) in host_compiler().key
    assert host().name in host_compiler().key
    assert Compiler(opt=1).key != Compiler(opt=2).key


def test_several_kernels_are_one_module() -> None:
    """Each keeps its instructions; what they all declare is declared once."""
    from minigrad.render.llvm import together

    text = """@zeros = private constant [64 x i8] zeroinitializer, align 64
declare float @llvm.sqrt.f32(float)
define void @kernel(i64 %begin, i64 %end, ptr %args, ptr %scratch) {{
entry:
  %at = load ptr, ptr %args
  %old = load float, ptr %at
  %new = call float @llvm.sqrt.f32(float %old)
  %more = fadd float %new, {addend}
  store float %more, ptr %at, align 4, !nontemporal !0
  ret void
}}
!0 = !{{i32 1}}
"""
    module = together({f"f{n}": text.format(addend=f"{n}.0") for n in range(3)})
    assert module.count("declare") == module.count("@zeros") == module.count("!{i32 1}") == 1
    addresses, code = host_compiler().compile(module, ["f0", "f1", "f2"])
    for n in range(3):
        data = (ctypes.c_float * 1)(9.0)
        KERNEL(addresses[f"f{n}"])(0, 1, (ctypes.c_void_p * 1)(ctypes.addressof(data)), None)
        assert data[0] == 3 + n
    del code


# Strength reduction gives this loop a second counter, which grows by 96 bytes.
STRIDED = """
define void @strided(ptr %x, i64 %n) {
entry:
  br label %loop
loop:
  %i = phi i64 [0, %entry], [%next, %loop]
  %j = mul i64 %i, 24
  %at = getelementptr i32, ptr %x, i64 %j
  %further = getelementptr i8, ptr %at, i64 %n
  store i32 1, ptr %at
  store i32 2, ptr %further
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %n
  br i1 %more, label %loop, label %done
done:
  ret void
}
"""


def test_loops_stay_as_they_are_and_others_keep_their_options() -> None:
    def as_others_do() -> str:
        target = llvm.Target.from_triple(llvm.get_process_triple())
        compiler = host_compiler()
        machine = target.create_target_machine(
            cpu=compiler.cpu, features=compiler.features, opt=2, jit=True, reloc="pic",
            codemodel="small",
        )  # fmt: skip
        return str(machine.emit_assembly(llvm.parse_assembly(STRIDED, llvm.create_context())))

    def instructions(text: str) -> list[str]:
        return [line.split("#")[0].strip() for line in text.splitlines() if line[:1] == "\t"]

    host_compiler().object_code(STRIDED)  # LLVM knows this machine
    theirs = as_others_do()
    ours = host_compiler().assembly(STRIDED)
    assert instructions(ours) != instructions(theirs)
    with pytest.raises(CompileError):
        host_compiler().object_code("define void @f() { ret i32 0 }")
    assert instructions(as_others_do()) == instructions(theirs)
