"""The limits of an OpenCL device: multiply-adds and bytes a second, by our own kernels.

    python -m tests.bench.opencl_limits

As in clpeak, every work-item runs some chains of fused multiply-adds, in vectors of several widths;
the best result is the limit. The bandwidth is that of a copy of buffers much larger than a cache.
On a GPU neighbouring work-items read neighbouring vectors. A CPU runs one work-item after the
other, each to its end: there each has a stretch of memory of its own. Otherwise it would read one
vector of each page, and the next work-item all of these pages again.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

from minigrad.device import Device
from minigrad.graph.symbolic import ceildiv
from minigrad.runtimes.opencl_devices import is_cpu
from minigrad.settings import getenv

CHAINS = (8, 12)  # independent ones
WIDTHS = (1, 4, 8, 16)
FORMS = ("fma(x, f, m)", "x * f + m")  # PoCL 3 turns the first into a function call
REPEATS = 5

FMA = """
__kernel void peak(__global T *out, const float a, const float b, const int rounds) {
    T f = (T)(a), m = (T)(b);
DECLARE
    for (int i = 0; i < rounds; i++) {
STEP
    }
    out[get_global_id(0)] = SUM;
}
"""
COPY = """
__kernel void copy(__global const T *from, __global T *to, int count, int chunk) {
    const int first = get_global_id(0) * (chunk ? chunk : 1);
    const int stop = chunk ? min(first + chunk, count) : count;
    const int step = chunk ? 1 : get_global_size(0);
    for (int i = first; i < stop; i += step) to[i] = from[i] * 1.5f;
}
"""


@dataclass(frozen=True)
class Limits:
    """flops: operations a second, a multiply-add counts as two. bandwidth: bytes a second."""

    flops: float
    bandwidth: float


def fma_text(width: int, chains: int, form: str) -> str:
    """The kernel with `chains` chains of vectors of `width`; form: the form of a multiply-add."""
    kind = f"float{width}" if width > 1 else "float"
    names = [f"x{n}" for n in range(chains)]
    declared = "\n".join(f"    T {x} = (T)(get_global_id(0) * 1e-9f + {x[1:]});" for x in names)
    step = "\n".join(f"        {x} = {form.replace('x', x)};" for x in names)
    text = FMA.replace("DECLARE", declared).replace("STEP", step)
    return text.replace("SUM", " + ".join(names)).replace("T ", f"{kind} ").replace(
        "(T)", f"({kind})"
    )


def _best(queue: Any, launch: Any) -> float:
    """Seconds on the device of the fastest of several runs."""
    times = []
    for _ in range(REPEATS):
        event = launch()
        queue.finish()
        times.append(1e-9 * (event.profile.end - event.profile.start))
    return min(times)


def peak_flops(runtime: Any, seconds: float = 0.02) -> float:
    """Operations a second of the best kernel."""
    import numpy as np
    import pyopencl as cl

    queue, best = runtime.timed_queue, 0.0
    on_cpu = is_cpu(runtime.device)
    items = runtime.device.max_compute_units * (64 if on_cpu else 2048)
    out = cl.Buffer(runtime.context, cl.mem_flags.READ_WRITE, items * 64)
    for width, chains, form in product(WIDTHS, CHAINS, FORMS):
        program = cl.Program(runtime.context, fma_text(width, chains, form)).build()
        kernel, rounds = cl.Kernel(program, "peak"), 16
        while True:
            kernel.set_args(out, np.float32(0.999), np.float32(1e-3), np.int32(rounds))
            took = _best(queue, lambda k=kernel: cl.enqueue_nd_range_kernel(
                queue, k, (items,), None
            ))  # fmt: skip
            if took >= seconds:
                break
            rounds *= max(2, min(16, int(seconds / max(took, 1e-6)) + 1))
        best = max(best, 2.0 * width * chains * rounds * items / took)
    return best


def peak_bandwidth(runtime: Any, nbytes: int) -> float:
    """Bytes a second of a copy; those read and those written both count."""
    import numpy as np
    import pyopencl as cl

    queue, on_cpu = runtime.timed_queue, is_cpu(runtime.device)
    buffers = [cl.Buffer(runtime.context, cl.mem_flags.READ_WRITE, nbytes) for _ in range(2)]
    for buffer in buffers:
        cl.enqueue_fill_buffer(queue, buffer, np.float32(1), 0, nbytes)
    width, group = (16, 1) if on_cpu else (4, 64)
    program = cl.Program(runtime.context, COPY.replace("T ", f"float{width} ")).build()
    kernel, count, best = cl.Kernel(program, "copy"), nbytes // (4 * width), 0.0
    for groups in (8, 32, 128):
        items = runtime.device.max_compute_units * groups * group
        kernel.set_args(*buffers, np.int32(count), np.int32(ceildiv(count, items) if on_cpu else 0))
        took = _best(queue, lambda n=items: cl.enqueue_nd_range_kernel(
            queue, kernel, (n,), (group,)
        ))  # fmt: skip
        best = max(best, 2.0 * nbytes / took)
    return best


def measure_limits(name: str, nbytes: int = 256 << 20) -> Limits:
    """The limits of a device."""
    runtime = Device[name]
    return Limits(peak_flops(runtime), peak_bandwidth(runtime, nbytes))


if __name__ == "__main__":
    device = str(getenv("DEVICE")) if str(getenv("DEVICE")).startswith("CL") else "CL"
    found = measure_limits(device)
    print(f"{Device[device].label}: {found.flops / 1e9:.1f} GFLOP/s, "  # type: ignore[attr-defined]
          f"{found.bandwidth / 1e9:.1f} GB/s")  # fmt: skip
