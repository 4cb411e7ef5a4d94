"""Rings and other exchanges: exact, equal on all ranks, and the same on both transports."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from devices import CPU, devices_of_ranks, exchanges

from minigrad import Tensor, dtypes
from minigrad.errors import DeviceError, DTypeError, GradientError, ShapeError
from minigrad.graph.collective import exchange
from minigrad.models.parallel import (
    Rank,
    RankError,
    all_reduce,
    reduce_scatter,
    run,
)
from minigrad.models.parallel.kernels import Kernels
from minigrad.runtimes import cpu, cpu_kernels
from minigrad.runtimes.jit_compiler import Compiler
from minigrad.settings import Context

from . import cases
from .ranks import LIMIT, alone, on_ranks, packed, start

KINDS = ("local", "mpi")


@pytest.mark.parametrize(
    ("kind", "size"), [*(("local", size) for size in (1, 2, 3, 5)), ("mpi", 2), ("mpi", 3)]
)
def test_ring_all_reduce(kind: str, size: int) -> None:
    digests = on_ranks(kind, cases.rings, size)
    assert len(digests) == size
    assert all(other == digests[0] for other in digests)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_ranks_round_alike(kind: str, size: int) -> None:
    first, *others = on_ranks(kind, cases.inexact, size)
    assert others == [first] * (size - 1)


def test_two_ranks_add_in_memory_that_they_share() -> None:
    """Each array takes one message, whatever its length; unread data is never overwritten."""
    seed = 11
    print("seed", seed)
    (first, sent, wrong), (second, others, also) = on_ranks("mpi", cases.shared, 2, seed)
    assert first == second and not wrong and not also
    assert sent == others == 3 * len(first)


def test_ranks_of_other_machines_share_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPIR_CVAR_NOLOCAL", "1")
    monkeypatch.setenv("UCX_LOG_LEVEL", "fatal")  # else UCX reports unread heartbeats
    (((first, sent, wrong), (second, _, also)),) = alone(2, (cases.shared, 11))
    assert first == second and not wrong and not also
    assert sent != 3 * len(first)


@pytest.mark.parametrize("how", ["sum", "mean", "max"])
def test_sums_stay_in_the_caches(
    how: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A sum is read or sent on at once, so addition kernels use no streaming stores."""
    texts: list[str] = []
    prepared = Compiler.prepared

    def kept(self: Compiler, text: str) -> Callable[[], bytes]:
        texts.append(text)
        return prepared(self, text)

    made = cpu_kernels.Kernels(cpu.host_target(), cpu.host_compiler())  # with no kernels yet
    monkeypatch.setattr(cpu, "host_kernels", lambda: made)
    monkeypatch.setattr(Compiler, "prepared", kept)
    mine, other = (np.arange(5.0) + start for start in (0, 10))
    with Context(CACHE=str(tmp_path)):
        kernels = Kernels(CPU)
        addition = kernels.addition(how, dtypes.float64)
        buffers = [cases.in_memory(array, dtypes.float64) for array in (mine, other)]
        kernels.combine("sum", dtypes.float64, *(one.memory for one in buffers), 5)
    assert any("fadd" in text or how == "max" for text in texts)
    assert not any("nontemporal" in text for text in texts)
    addresses = [buffer.memory for buffer in buffers]
    args = (ctypes.c_int64 * 4)(*addresses, addresses[1], 5)
    call = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(addition.kernel)
    call(0, 5, ctypes.addressof(args), 0)
    want = {"sum": mine + 2 * other, "mean": (mine + 2 * other) / 2, "max": mine + other}[how]
    assert np.array_equal(np.frombuffer(buffers[1].copy_out()), want)


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_agree_on_zeros_and_nan(kind: str) -> None:
    """For ±0 and NaN operands both ranks get the same bits."""
    first, second = on_ranks(kind, cases.odd, 2)
    assert first == second


@pytest.mark.parametrize("size", [1, 2, 3])
def test_operations_and_their_gradients(size: int, on_device: str) -> None:
    assert devices_of_ranks(on_device, size)
    if exchanges(on_device):
        check_operations(on_ranks("local", cases.operations, size))
        return
    with pytest.raises(DeviceError, match="parallel programs run on CPU and REF"):
        on_ranks("local", cases.operations, size)


def test_mpis_shared_memory_has_no_name() -> None:
    """Otherwise it stays when a rank is killed, until the machine restarts."""
    for files in on_ranks("mpi", cases.mapped, 2):
        assert files and all(file.endswith(" (deleted)") for file in files), files


def test_operations_over_mpi() -> None:
    check_operations(on_ranks("mpi", cases.operations, 3))


def check_operations(results: list[dict[str, list[np.ndarray]]]) -> None:
    """Values and gradients of Σ over ranks of Σ y·(0, 1, 2 … + rank)."""
    size = len(results)
    x = [np.arange(2 * size * 3.0).reshape(2 * size, 3) + 100 * rank for rank in range(size)]
    weights = [np.arange(2 * size * 3.0).reshape(2 * size, 3) + rank for rank in range(size)]
    many = [np.arange(2 * size * size * 3.0).reshape(-1, 3) + rank for rank in range(size)]
    few = [np.arange(6.0).reshape(2, 3) + rank for rank in range(size)]
    rows = [slice(2 * rank, 2 * rank + 2) for rank in range(size)]
    blocks = [slice(2 * size * rank, 2 * size * (rank + 1)) for rank in range(size)]
    for rank, found in enumerate(results):
        after, before = (rank + 1) % size, (rank - 1) % size
        last = sum(weights) if rank == size - 1 else 0 * x[0]
        want = {
            "sum": (sum(x), sum(weights)),
            "mean": (sum(x) / size, sum(weights) / size),
            "max": (x[-1], last),
            "scatter": (sum(x)[rows[rank]], np.concatenate(few)),
            "scatter mean": (sum(x)[rows[rank]] / size, np.concatenate(few) / size),
            "gather": (np.concatenate(x), sum(many)[blocks[rank]]),
            "all to all": (
                np.concatenate([other[rows[rank]] for other in x]),
                np.concatenate([other[rows[rank]] for other in weights]),
            ),
            "permute": (x[before], weights[after]),
            "back": (x[after], weights[before]),
            "broadcast": (x[-1], last),
        }
        assert set(found) == set(want)
        for name, pair in want.items():
            for mine, other in zip(found[name], pair, strict=True):
                np.testing.assert_allclose(mine, other, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_several_arrays_in_one_exchange(size: int) -> None:
    for found in on_ranks("local", cases.together_, size):
        assert len(found) == 4 and all(found.values()), found


def test_several_arrays_in_one_exchange_over_mpi() -> None:
    assert all(all(found.values()) for found in on_ranks("mpi", cases.together_, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_a_captured_step_exchanges(kind: str) -> None:
    for rank, values in enumerate(on_ranks(kind, cases.captured, 3)):
        before = (rank - 1) % 3
        for step, found in enumerate(values):
            total = [3.0 * step, 12.0, 9.0]
            assert found == [t - (t + before) for t in total]


def test_exchanges_under_guard() -> None:
    with Context(GUARD=1):
        assert on_ranks("local", cases.captured, 2)[0][0] == [-1.0, -1.0, -1.0]


def test_what_ranks_exchange_is_compared_every_time() -> None:
    """Only the seventh exchange differs; every rank gets the error."""
    heard: dict[int, str] = {}

    def uneven(rank: Rank) -> None:
        for _ in range(6):
            all_reduce(Tensor([1.0, 2.0, 3.0]), rank.world).realize()
        x = Tensor([1, 2, 3]) if rank.number == 1 else Tensor([1.0, 2.0, 3.0])
        try:
            all_reduce(x, rank.world).realize()
        except RankError as error:
            heard[rank.number] = str(error)
            raise

    sentence = "rank 0 all_reduces float32[3] (sum) as exchange 7, rank 1 int32[3] (sum): all"
    with pytest.raises(RankError) as caught:
        run(uneven, 2)
    assert str(caught.value).startswith(sentence)
    assert heard == {0: str(caught.value), 1: str(caught.value)}


@pytest.mark.parametrize("name", cases.DIFFERENT)
def test_different_exchanges_are_an_error(name: str) -> None:
    _, _, size, sentence = cases.DIFFERENT[name]
    with pytest.raises(RankError, match=re.escape(sentence)):
        run(lambda rank: cases.different(rank, name), size)


@pytest.mark.parametrize("name", ["dtype", "far"])
def test_different_exchanges_of_processes_end_all(name: str) -> None:
    _, _, size, sentence = cases.DIFFERENT[name]
    process = start(["-m", "parallel.ranks", packed(size, (cases.different, name))], size)
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 1 and sentence in errors, errors


def test_an_exchange_needs_a_group() -> None:
    kept = run(lambda rank: rank.world, 1)[0]
    with pytest.raises(DeviceError, match=r"inside minigrad\.models\.parallel\.run"):
        all_reduce(Tensor([1.0]), kept).realize()


def test_what_cannot_be_exchanged() -> None:
    def wrong(rank: object) -> None:
        world = rank.world  # type: ignore[attr-defined]
        with pytest.raises(DTypeError, match="mean of int32"):
            all_reduce(Tensor([1]), world, "mean")
        with pytest.raises(ShapeError, match="share evenly"):
            reduce_scatter(Tensor([1.0, 2.0, 3.0]), world)
        x = Tensor([1.0])
        joined = Tensor._of(exchange("permute", "world", 2, [x.node, (x + 1).node]))
        with pytest.raises(GradientError, match="one by one"):
            joined.sum().gradient(x)

    run(wrong, 2)


def test_groups() -> None:
    def groups(rank: Rank) -> dict[str, list[int]]:
        return {one.name: list(one.members.ranks) for one in (rank.world, rank.dp, rank.sp)}

    found = run(groups, dp=2, sp=3)
    assert found[4] == {"world": [0, 1, 2, 3, 4, 5], "dp": [1, 4], "sp": [3, 4, 5]}
    for wrong in ({"dp": 0, "sp": 2}, {"sp": -1}):
        with pytest.raises(ValueError, match="at least one rank along each axis, got dp="):
            run(groups, **wrong)
