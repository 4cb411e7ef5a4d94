"""The host machine: its processor, vectors, caches, and how many threads we may use.

All machine properties that recipes and renderers use come from here, so the same code performs well
on AVX2, AVX-512 and NEON.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from minigrad.errors import SettingError
from minigrad.settings import flag

# Cache sizes in bytes if the system does not report them: small enough for nearly every machine.
FALLBACK_L1, FALLBACK_L2, FALLBACK_L3 = 32 * 1024, 512 * 1024, 8 * 1024 * 1024
# An upper limit of the shared cache per core. A virtual machine is told the whole size of the
# machine's cache but shares it with others. (Measured with 2 cores of a machine with 480 MiB:
# beyond about 100 MiB, repeated reads come from memory.)
MOST_L3_OF_A_CORE = 32 * 1024 * 1024
# Threads that a pool may have on any machine; more than four per processor only wait.
MOST_THREADS = 64
_CPUS = Path("/sys/devices/system/cpu")
# The number of the system call, its function ARCH_REQ_XCOMP_PERM, and XFEATURE_XTILEDATA, from
# Linux's documentation (arch/x86/xstate.rst).
_ARCH_PRCTL, _REQUEST_PERMISSION, _MATRIX_DATA = 158, 0x1023, 18
_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Host:
    """One machine. Cache sizes in bytes: l1 and l2 of one core, l3 that several cores may share.

    architecture is "x86_64" or "aarch64", as `platform.machine()` says;
    features are LLVM's names ("avx512f", "neon") of what the processor has.
    """

    architecture: str
    name: str
    features: frozenset[str]
    vector_bytes: int
    vector_registers: int
    l1: int
    l2: int
    l3: int


def vector_shape(architecture: str, features: frozenset[str]) -> tuple[int, int]:
    """Bytes of a vector register and the number of registers."""
    if "avx512f" in features:
        return 64, 32
    if architecture == "x86_64":
        return (32 if "avx" in features else 16), 16
    return 16, 32


@cache
def host() -> Host:
    """The machine that this process runs on; found once."""
    import llvmlite.binding as llvm

    architecture = platform.machine()
    features = frozenset(name for name, has in llvm.get_host_cpu_features().items() if has)
    vector_bytes, vector_registers = vector_shape(architecture, features)
    sizes = cache_sizes(_CPUS / "cpu0" / "cache")
    l3 = min(sizes.get(3, FALLBACK_L3), (os.cpu_count() or 1) * MOST_L3_OF_A_CORE)
    return Host(
        architecture=architecture,
        name=llvm.get_host_cpu_name(),
        features=features,
        vector_bytes=vector_bytes,
        vector_registers=vector_registers,
        l1=sizes.get(1, FALLBACK_L1),
        l2=sizes.get(2, FALLBACK_L2),
        l3=l3,
    )


@cache
def may_use_matrices() -> bool:
    """Ask Linux for the matrix registers (AMX), which a process may only use with its permission.

    The permission also covers the process's threads and the processes that it forks. Linux refuses
    it, for instance, to a process with a signal stack that is too small for the registers.
    """
    if platform.machine() != "x86_64":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _MATRIX_DATA) == 0)


def cache_sizes(folder: Path) -> dict[int, int]:
    """Level → bytes of a core's data caches, as sysfs describes them.

    Levels that cannot be read are left out: containers sometimes hide them.
    """
    found: dict[int, int] = {}
    for index in sorted(folder.glob("index*")):
        kind = _read(index / "type")
        level = _read(index / "level")
        size = parse_size(_read(index / "size"))
        if kind in ("Data", "Unified") and level.isdecimal() and size:
            found[int(level)] = size
    return found


def parse_size(text: str) -> int:
    """Bytes of sysfs's "32K", "1M" or "1024"; 0 for anything else."""
    scale = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:].upper(), 0)
    digits = text[:-1] if scale else text
    return int(digits) * (scale or 1) if digits.isdecimal() else 0


def threads() -> int:
    """How many threads a pool gets: the THREADS setting, else what affinity and quota allow.

    Raises SettingError for far more than there are processors: starting them would take minutes.
    """
    wanted, processors = flag("THREADS"), os.cpu_count() or 1
    most = max(MOST_THREADS, 4 * processors)
    if not 0 <= wanted <= most:
        raise SettingError(
            f"MINIGRAD_THREADS={wanted}: expected 1 … {most} on this machine with {processors} "
            f"processor{'s' * (processors > 1)}, or 0 for the {usable_threads()} available ones"
        )
    return wanted or usable_threads()


@cache
def usable_threads() -> int:
    """The number of processors that affinity and quota let this process use, at least 1."""
    quota = cpu_quota(_CGROUPS, _read(Path("/proc/self/cgroup")))
    return max(1, min(len(processors()), quota))


def described() -> str:
    """The processor's name from its maker, or its architecture, and how many threads we may use."""
    found = re.search(r"^model name\s*: (.*)", _read(Path("/proc/cpuinfo")), re.MULTILINE)
    return f"{found[1] if found else platform.machine()}, {usable_threads()} threads"


def processors() -> list[int]:
    """Numbers of the processors on which the calling thread may run; all if that is not known."""
    if not hasattr(os, "sched_getaffinity"):
        return [*range(os.cpu_count() or 1)]
    return sorted(os.sched_getaffinity(0))


def cpu_quota(root: Path, membership: str) -> int:
    """Processors that the control groups in `membership` (/proc/self/cgroup) grant, rounded up.

    Both versions of control groups, and all parents of each group, count: the smallest limit wins.
    Without a quota the result is sys.maxsize.
    """
    limit = float(sys.maxsize)
    for folder in _control_groups(root, membership, "cpu"):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        limit = min(limit, _share(quota, period))
        quota = _read(folder / "cpu.cfs_quota_us")
        limit = min(limit, _share(quota, _read(folder / "cpu.cfs_period_us")))
    return math.ceil(limit) if limit < sys.maxsize else sys.maxsize


def _control_groups(root: Path, membership: str, controller: str) -> list[Path]:
    """The folders in which the groups in `membership` may have a controller, and their parents.

    A container may see a path of its host that does not exist here, so the root of the mount is
    always included.
    """
    found = []
    for line in membership.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        mounts = ["", "unified"] if number == "0" and not controllers else []
        if controller in controllers.split(","):
            mounts = [controller, controllers]
        names = [name for name in path.split("/") if name and name != ".."]
        found += [
            root.joinpath(mount, *names[:depth])
            for mount in mounts for depth in range(len(names), -1, -1)
        ]  # fmt: skip
    return found


def _share(quota: str, period: str) -> float:
    """Processors in a quota of microseconds per period; infinity if there is no quota."""
    if quota.isdecimal() and period.isdecimal() and int(quota) and int(period):
        return int(quota) / int(period)
    return float("inf")


def _read(path: Path) -> str:
    """The stripped text of a small file, empty if it cannot be read."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


@cache
def memory_bytes() -> int:
    """Memory that this process may use: the machine's, or less if its control groups limit it."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return memory_limit(_CGROUPS, _read(Path("/proc/self/cgroup")), total)


def memory_limit(root: Path, membership: str, total: int) -> int:
    """The smallest of `total` and the limits of the control groups in `membership`, in bytes."""
    for folder in _control_groups(root, membership, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _read(folder / name)
            if limit.isdecimal() and int(limit):
                total = min(total, int(limit))
    return total
