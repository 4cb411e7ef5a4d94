"""GUARD=1: an access outside a buffer ends the process.

Code that may end a process runs in a process of its own.
"""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
from child import ended, said

from minigrad import Context, Tensor
from minigrad.graph.symbolic import ceildiv

HOME = Path(__file__).parents[2]

# Reads an element of the first argument, or of scratch memory, and writes it to the second;
# the next element in turn, if there are several indices.
KERNEL = """
import ctypes, sys
from minigrad.runtimes import cpu_memory
from minigrad.runtimes.cpu_pool import Launch, pool_for
from minigrad.runtimes.jit_compiler import host_compiler

what, length, *indices = sys.argv[1], *map(int, sys.argv[2:])
read = "%scratch" if what == "scratch" else "%source"
for index in indices:
    text = f'''
define void @copy(i64 %begin, i64 %end, ptr %args, ptr %scratch) {{
  %source = load ptr, ptr %args
  %target.at = getelementptr ptr, ptr %args, i64 1
  %target = load ptr, ptr %target.at
  %from = getelementptr float, ptr {read}, i64 {index if what != "write" else 0}
  %value = load float, ptr %from, align 4
  %to = getelementptr float, ptr %target, i64 {index if what == "write" else 0}
  store float %value, ptr %to, align 4
  ret void
}}
'''
    source, target = (cpu_memory.allocate_guarded(4 * length) for _ in range(2))
    ctypes.memset(source, 0, 4 * length)
    args = (ctypes.c_int64 * 2)(source, target)
    addresses, keep = host_compiler().compile(text, ["copy"])
    table = (Launch * 1)(Launch(addresses["copy"], ctypes.addressof(args), 1, 1, 0))
    pool_for("CPU guarded").run_guarded(ctypes.addressof(table), 1, 4 * length)
    cpu_memory.free(source, 4 * length)
    cpu_memory.free(target, 4 * length)
    print("survived", index, flush=True)
"""


@pytest.mark.parametrize("length", [1, 3, 1024, 1027])
@pytest.mark.parametrize("what", ["read", "write", "scratch"])
def test_a_bad_kernel_ends_the_process(what: str, length: int) -> None:
    """The last element is fine; the next one is not mapped."""
    if what == "scratch":
        length = ceildiv(length, 16) * 16  # scratch memory is a multiple of 64 bytes
    bad = ended("-c", KERNEL, what, str(length), str(length - 1), str(length))
    assert bad.returncode == -signal.SIGSEGV, bad.stderr
    assert bad.stdout == f"survived {length - 1}\n"


def test_a_write_before_the_beginning_is_reported() -> None:
    """It changes the pattern before the block, which is checked when the block is freed."""
    bad = ended("-c", KERNEL, "write", "3", "-1")
    assert bad.returncode == 1 and "BoundsError: a kernel wrote before the start" in bad.stderr


@pytest.mark.parametrize("module, more", [("graphs", ["--no-shrink"]), ("general", [])])
def test_random_graphs_stay_inside(module: str, more: list[str], cpu: str) -> None:
    """Under GUARD, graphs and those whose sizes vary agree with REF, and the process ends well."""
    seed = str(np.random.default_rng().integers(1 << 30))
    done = ended("-X", "faulthandler", "-m", f"tests.property.{module}", "--count", "8", "--seed",
                 seed, "--device", cpu, *more, cwd=HOME, MINIGRAD_GUARD="1")  # fmt: skip
    assert done.returncode == 0, f"seed {seed}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}"


TABLE = """
import sys
from tests.property.operation import disagreement, evaluate, make_case
from tests.property.operations import BY_NAME
from tests.property.layouts import LAYOUTS
for name in sys.argv[1:]:
    operation = BY_NAME[name]
    layouts = list(LAYOUTS)
    cases = [make_case(operation, plan, operation.dtypes[0], n, layouts[n % len(layouts):])
             for n, plan in enumerate(operation.plans.edges)]
    results = evaluate(operation, cases, "CPU"), evaluate(operation, cases, "REF")
    for case, got, wanted in zip(cases, *results):
        problem = disagreement(operation, case, got, wanted)
        assert problem is None, problem
"""
SAMPLE = ("where", "matmul", "causal attention", "layernorm", "cross_entropy", "x[basic] = y",
          "scatter", "x[i] = y", "gather", "embedding", "cat", "stack", "clone")  # fmt: skip


def test_operations_stay_inside() -> None:
    """Edge shapes and views, for a sample of the operation table."""
    said("-X", "faulthandler", "-c", TABLE, *SAMPLE, cwd=HOME, MINIGRAD_GUARD="1")


def test_guarded_memory_is_given_back(cpu: str) -> None:
    """Programs with arrays between kernels and with scratch memory leave nothing mapped."""
    from minigrad.runtimes import cpu_memory

    counts = []
    with Context(GUARD=1, DEVICE=cpu):
        for _ in range(3):
            x = Tensor.randn(33, 17)
            assert (x @ x.T).softmax(1).sum(0).log_softmax(0).numpy().shape == (33,)
            assert len(cpu_memory._guarded) > 0
            del x
            counts.append(len(cpu_memory._guarded))  # the workers' scratch, the random state
    assert counts[0] == counts[1] == counts[2]
