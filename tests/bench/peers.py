"""The libraries that rows compare with, each at its best; a missing one is named once."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np

from minigrad.cache import folder_name

Work = Callable[[], object]
PACKAGES = {"torch": "'.[compare]'", "jax": "'jax[cpu]'", "llama_cpp": "llama-cpp-python"}
ROOT = Path(__file__).resolve().parent.parent.parent

# PyTorch allocates its results with malloc, which by default returns large blocks to the system at
# once and gets new 4 KiB pages. That would make it a weak opponent; these settings make it a strong
# one.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "THP_MEM_ALLOC_ENABLE": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
# MKL asks this function of its own whether the processor is Intel's, and uses its AVX2 code if it
# is not. A library that is loaded before MKL replaces the function.
INTEL = "define i32 @mkl_serv_intel_cpu_true() { ret i32 1 }"


@functools.cache
def installed(name: str) -> bool:
    """Whether a library can be imported; if not, says once how to install it."""
    found = importlib.util.find_spec(name) is not None
    if not found:
        print(f"{name} is left out: pip install {PACKAGES[name]}", file=sys.stderr)
    return found


@functools.cache
def compiles() -> bool:
    """Whether torch.compile works: it needs a C++ compiler; if there is none, says so once."""
    compiler = os.environ.get("CXX", "g++")
    found = installed("torch") and shutil.which(compiler) is not None
    if installed("torch") and not found:
        print(f"torch.compile is left out: no C++ compiler {compiler} (or CXX=…)", file=sys.stderr)
    return found


def environment(threads: int) -> dict[str, str]:
    """The variables under which a PyTorch process is fastest here; prints how fast that is."""
    variables = dict(ALLOCATOR)
    cpu = Path("/proc/cpuinfo").read_text()
    if "AuthenticAMD" not in cpu or "avx512f" not in cpu or not installed("torch"):
        return variables
    plain = product_rate(threads, variables)
    try:
        variables["LD_PRELOAD"] = str(mkl_library())
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"PyTorch: MKL AVX2 only, {plain:.0f} GFLOP/s: {error}", flush=True)
        return variables
    fast = product_rate(threads, variables)
    print(f"PyTorch: MKL AVX-512 {fast:.0f} GFLOP/s, AVX2 {plain:.0f}", flush=True)
    return variables


def product_rate(threads: int, variables: dict[str, str]) -> float:
    """GFLOP/s of PyTorch's product of 1,024³ in a process with these variables, the best of 40."""
    program = (
        "import time, torch\n"
        f"torch.set_num_threads({threads})\n"
        "a, times = torch.ones(1024, 1024), []\n"
        "for _ in range(40):\n"
        "    start = time.perf_counter()\n"
        "    a @ a\n"
        "    times.append(time.perf_counter() - start)\n"
        "print(2 * 1024**3 / min(times) / 1e9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **variables}, check=True, text=True,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    return float(done.stdout)


def mkl_library() -> Path:
    """The shared library of INTEL, built once. OSError without a linker or a folder to write to."""
    path = Path(folder_name()) / "mkl_on_amd.so"
    if path.exists():
        return path
    linker = shutil.which("cc") or shutil.which("ld")
    if linker is None:
        raise OSError("no linker, neither cc nor ld")
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(reloc="pic")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        source, made = Path(folder, "intel.o"), Path(folder, "intel.so")
        source.write_bytes(machine.emit_object(llvm.parse_assembly(INTEL)))
        command = [linker, "-shared", "-nostdlib", "-o", str(made), str(source)]
        subprocess.run(command, check=True)
        made.replace(path)
    return path


def numpy_work(function: Callable[..., Any], *arrays: np.ndarray) -> dict[str, Work]:
    """`function` of numpy arrays."""
    return {"numpy": lambda: function(*arrays)}


def torch_work(
    function: Callable[..., Any], *arrays: np.ndarray, threads: int, compiled: bool = False,
    channels_last: bool = False,
) -> dict[str, Work]:  # fmt: skip
    """`function` of PyTorch tensors; with `compiled`, under torch.compile too.

    channels_last: also with images in that memory order, which oneDNN need not rearrange.
    """
    if not installed("torch"):
        return {}
    import torch

    torch.set_num_threads(threads)
    tensors = [torch.from_numpy(array) for array in arrays]
    works: dict[str, Work] = {"torch": lambda: function(*tensors)}
    if channels_last:
        images = [tensor.to(memory_format=torch.channels_last) for tensor in tensors]
        works["torch channels last"] = lambda: function(*images)
    if compiled and compiles():
        torch._dynamo.reset()  # otherwise variants compiled for one row count for the next
        fast = torch.compile(function, dynamic=False)
        works["torch.compile"] = lambda: fast(*tensors)
    return works


def jax_work(function: Callable[..., Any], *arrays: np.ndarray) -> dict[str, Work]:
    """`function` of JAX arrays under jax.jit; waits for the result."""
    if not installed("jax"):
        return {}
    import jax

    given = [jax.device_put(array) for array in arrays]
    fast = jax.jit(function)
    return {"jax": lambda: jax.block_until_ready(fast(*given))}
