"""The programs that ranks run in tests: on threads and, by name, in MPI processes."""

from __future__ import annotations

import hashlib
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
from devices import CPU

from minigrad import GlobalCounters, Tensor, dtypes, jit, nn
from minigrad.collective import Piece
from minigrad.device import Buffer
from minigrad.dtype import DType
from minigrad.models.parallel import (
    DataParallel,
    Rank,
    SequenceParallel,
    all_gather,
    all_reduce,
    all_to_all,
    broadcast,
    mpi,
    permute,
    reduce_scatter,
    ring,
)
from minigrad.models.parallel.operations import together
from minigrad.models.parallel.training import Replica
from minigrad.runtimes.reference import numpy_dtype

_ALL = [value for value in vars(dtypes).values() if isinstance(value, DType)]
DTYPES = list(dict.fromkeys(_ALL))
LONG = 10**6
LONG_DTYPES = (dtypes.float32, dtypes.bfloat16, dtypes.int64)


def lengths(size: int) -> list[int]:
    """Lengths: 0, 1, one less than the ranks, as many as ranks, a prime number, and LONG."""
    return sorted({0, 1, size - 1, size, 10007, LONG})


def given(rank: int, count: int, dtype: DType) -> Any:
    """A rank's array: small whole numbers, so that sums are exact in every dtype."""
    values = (np.arange(count) * 7 + rank * 13) % 31
    if dtype.is_bool:
        values = values % 2
    elif dtype.is_float or dtype.minimum < 0:
        values = values - 15
    return values.astype(numpy_dtype(dtype))


def expected(size: int, count: int, dtype: DType, how: str) -> Any:
    """The result on every rank."""
    all_given = [given(rank, count, dtype) for rank in range(size)]
    if how == "max":
        return np.maximum.reduce(all_given)
    if dtype.is_bool:
        return np.logical_or.reduce(all_given)
    total = np.add.reduce([part.astype(np.float64) for part in all_given])
    return (total / size if how == "mean" else total).astype(numpy_dtype(dtype))


def in_memory(array: Any, dtype: DType) -> Buffer:
    """A buffer with an array's contents, where transports can read them."""
    buffer = Buffer(CPU, dtype, array.size)
    buffer.copy_in(array.tobytes())
    return buffer


def rings(rank: Rank) -> list[str]:
    """Ring all-reduce over dtypes, reductions and lengths; returns digests of all results."""
    group, size, digests = rank.world, rank.world.size, []
    library = mpi.library(0.0)
    for dtype in DTYPES:
        for count in lengths(size):
            if count == LONG and dtype not in LONG_DTYPES:
                continue
            ways = ("sum", "max", "mean") if dtype.is_float else ("sum", "max")
            for how in ways if count < LONG else ways[:1]:
                mine = given(rank.number, count, dtype)
                buffer, before = in_memory(mine, dtype), group.members.bytes_sent
                pieces = [Piece(buffer.memory, count)]
                ring.all_reduce(group.members, pieces, buffer.memory, dtype, how, group.kernels)
                found = np.frombuffer(buffer.copy_out(), numpy_dtype(dtype))
                want = expected(size, count, dtype, how)
                if how == "mean":
                    close = {2: 1e-2, 4: 1e-6, 8: 1e-12}[dtype.itemsize]
                    np.testing.assert_allclose(
                        found.astype(float), want.astype(float), rtol=close, atol=close
                    )
                else:
                    assert (found == want).all(), (dtype, count, how)
                if library is not None and how != "mean" and dtype.kind in "iuf" and (
                    dtype.name not in ("float16", "bfloat16")
                ):  # fmt: skip
                    oracle = np.empty_like(mine)
                    operation = library.SUM if how == "sum" else library.MAX
                    library.COMM_WORLD.Allreduce(mine, oracle, operation)
                    assert (found == oracle).all(), (dtype, count, how)
                chunks = [stop - start for start, stop in ring.spans(count, size)]
                kept = chunks[rank.number] + chunks[(rank.number + 1) % size]
                sent = group.members.bytes_sent - before
                assert sent == ((2 * count - kept) * dtype.itemsize if size > 1 else 0)
                if count % size == 0:  # 2(N − 1)/N of the array
                    assert sent == 2 * (size - 1) * count // size * dtype.itemsize
                digests.append(hashlib.sha256(found.tobytes()).hexdigest())
    return digests


def inexact(rank: Rank) -> list[str]:
    """Sums that round: every rank must round alike."""
    digests = []
    for dtype in (dtypes.float16, dtypes.bfloat16, dtypes.float32, dtypes.float64):
        numbers = np.random.default_rng(rank.number).standard_normal(10007)
        buffer = in_memory(numbers.astype(numpy_dtype(dtype)), dtype)
        group = rank.world
        sent = [Piece(buffer.memory, 10007)]
        ring.all_reduce(group.members, sent, buffer.memory, dtype, "sum", group.kernels)
        digests.append(hashlib.sha256(bytes(buffer.copy_out())).hexdigest())
    return digests


def operations(rank: Rank) -> dict[str, list[Any]]:
    """Every exchange, on a small tensor, with the gradient of a weighted sum of the result."""
    group, size = rank.world, rank.world.size
    start = np.arange(2 * size * 3, dtype=np.float32).reshape(2 * size, 3) + 100 * rank.number
    made = {
        "sum": lambda x: all_reduce(x, group),
        "mean": lambda x: all_reduce(x, group, "mean"),
        "max": lambda x: all_reduce(x, group, "max"),
        "scatter": lambda x: reduce_scatter(x, group),
        "scatter mean": lambda x: reduce_scatter(x, group, "mean"),
        "gather": lambda x: all_gather(x, group),
        "all to all": lambda x: all_to_all(x, group),
        "permute": lambda x: permute(x, group, 1),
        "back": lambda x: permute(x, group, -1),
        "broadcast": lambda x: broadcast(x, group, size - 1),
    }
    found = {}
    for name, operation in made.items():
        x = Tensor(start)
        y = operation(x)
        weight = Tensor(np.arange(int(y.numel()), dtype=np.float32).reshape(y.shape) + rank.number)
        (slope,) = (y * weight).sum().gradient(x)
        Tensor.realize(y, slope)
        found[name] = [y.numpy(), slope.numpy()]
    return found


def together_(rank: Rank) -> dict[str, bool]:
    """Whether several arrays in one exchange give the same as each array in its own."""
    group, size = rank.world, rank.world.size
    arrays = [np.arange(rows * size * 3, dtype=np.float32).reshape(-1, 3) * (rank.number + 1)
              for rows in (1, 70_000, 0, 2)]  # fmt: skip
    found = {}
    for kind, how, one in (
        ("all_gather", "-", all_gather), ("reduce_scatter", "sum", reduce_scatter),
        ("all_reduce", "sum", all_reduce), ("broadcast", "-", broadcast),
    ):  # fmt: skip
        alone = [one(Tensor(array) * 2, group) for array in arrays]
        joined = together(kind, [Tensor(array) * 2 for array in arrays], group, how)
        Tensor.realize(*alone, *joined)
        found[kind] = all(np.array_equal(mine.numpy(), other.numpy())
                          for mine, other in zip(joined, alone, strict=True))  # fmt: skip
    return found


def captured(rank: Rank) -> list[list[float]]:
    """A step with exchanges, captured and replayed with a new input each time."""
    weight = Tensor([1.0, 2.0, 3.0])

    @jit
    def step(x: Tensor) -> Tensor:
        total = all_reduce(x * weight, rank.world)
        moved = permute(total + rank.number, rank.world)
        return (total - moved).realize()

    return [step(Tensor([1.0 * i, 2.0, rank.number])).tolist() for i in range(5)]


def attention(rank: Rank, length: int, seed: int) -> list[float]:
    """Largest errors of the output, dQ, dK and dV of ring attention, against one device's."""
    generator = np.random.default_rng(seed)
    arrays = [generator.standard_normal((2, 3, length, 8)).astype(np.float32) for _ in range(4)]
    q, k, v = (Tensor(array) for array in arrays[:3])
    whole = q.scaled_dot_product_attention(k, v, is_causal=True)
    wanted = [whole, *(whole * Tensor(arrays[3])).sum().gradient(q, k, v)]
    sequence = SequenceParallel(rank.world, length)

    def cut(array: Any) -> Any:
        return np.concatenate([array[:, :, start:stop] for start, stop in sequence.spans], axis=2)

    parts = [Tensor(cut(array)) for array in arrays]
    output = sequence.attention(*parts[:3])
    found = [output, *(output * parts[3]).sum().gradient(*parts[:3])]
    Tensor.realize(*wanted, *found)
    return [
        float(np.abs(mine.numpy() - cut(of.numpy())).max() / np.abs(of.numpy()).max())
        for mine, of in zip(found, wanted, strict=True)
    ]


def memory_of_attention(rank: Rank, length: int) -> int:
    """Peak bytes of ring attention with its gradients, beyond the process's memory before."""
    sequence = SequenceParallel(rank.world, length)
    shape = (1, 2, length // rank.world.size, 16)
    q, k, v = (Tensor.randn(*shape).realize() for _ in range(3))
    sequence.attention(q, k, v).sum().gradient(q, k, v)  # makes constants, for example
    GlobalCounters.reset()
    before = GlobalCounters.mem_used
    output = sequence.attention(q, k, v)
    Tensor.realize(output, *(output * output).sum().gradient(q, k, v))
    return GlobalCounters.mem_peak - before


def buckets(rank: Rank) -> list[Any]:
    """Gradients of uneven parts of a batch, averaged in buckets of several sizes."""
    results = []
    for size in (1, 300, 1 << 20):
        Tensor.manual_seed(rank.number)  # synchronize must make them equal
        layers = [nn.Linear(5, 7), nn.Linear(7, 3)]
        params = nn.state.get_parameters(layers)
        copies = DataParallel(layers, rank.world, bucket=size)
        first, stop = copies.share(11)
        x = Tensor(np.random.default_rng(3).standard_normal((11, 5)).astype(np.float32)[first:stop])
        loss = (layers[1](layers[0](x).tanh()) ** 2).mean()
        weight = (stop - first) / 11
        loss = loss * weight
        loss.backward()
        copies.average_gradients(params)
        total = copies.total(loss)
        Tensor.realize(total, *(param.grad for param in params))
        slopes = [param.grad.numpy() for param in params]
        results.append([total.item(), *slopes, *(param.numpy() for param in params)])
    return results


def synchronized(rank: Rank) -> list[Any]:
    """Weights that were still lazy when they were sent, the next random numbers, bytes sent."""
    Tensor.manual_seed(5 + rank.number)
    layers = [nn.Linear(6, 8), nn.BatchNorm(8), nn.Linear(8, 3)]
    if rank.world.size > 1:
        DataParallel(layers, rank.world)
    state = {name: tensor.numpy() for name, tensor in nn.state.get_state_dict(layers).items()}
    return [state, Tensor.rand(4).numpy(), rank.world.members.bytes_sent]


def lazily_exchanged(rank: Rank) -> list[Any]:
    """Random numbers exchanged while still lazy; one of the results is realized before the others.
    """
    Tensor.manual_seed(5)
    drawn = [Tensor.rand(4, requires_grad=True), Tensor.randn(3, 2), Tensor.uniform(5)]
    if rank.world.size > 1:
        moved = together("permute", drawn, rank.world, place=1)
        moved[1].realize()
        drawn = [moved[0], moved[1], all_reduce(moved[2], rank.world, "max")]
    return [*(tensor.numpy() for tensor in drawn), Tensor.rand(4).numpy()]


def normalized(rank: Rank, steps: int, batch: int) -> list[Any]:
    """Losses, weights and statistics of a network with BatchNorm."""
    Tensor.manual_seed(4)
    layers = [nn.Linear(6, 8), nn.BatchNorm(8), nn.Linear(8, 3)]
    replica = Replica(rank, layers)
    optimizer = nn.optim.SGD(nn.state.get_parameters(layers), lr=0.1, momentum=0.9)

    def step(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        hidden = layers[1](layers[0](x)).relu()
        loss = layers[2](hidden).cross_entropy(y) * replica.weight
        loss.backward()
        loss = replica.share_gradients(loss, optimizer.params)
        nn.optim.clip_grad_norm(optimizer.params, 1.0)
        optimizer.step()
        return loss.realize()

    step, losses = jit(step), []
    for number in range(steps):
        generator = np.random.default_rng(number)
        x = generator.standard_normal((batch, 6)).astype(np.float32)
        y = (x[:, 0] > 0).astype(np.int32) + (x[:, 1] > 0)
        with Tensor.train():
            losses.append(step(*map(Tensor, replica.part(x, y.astype(np.int32)))).item())
    state = nn.state.get_state_dict(layers)
    return [losses, {name: tensor.numpy() for name, tensor in state.items()}]


# name → the exchange of all ranks but the last, the last rank's, number of ranks, error message.
# Pairs of equal byte size once gave garbage without an error.
DIFFERENT: dict[str, tuple[Any, Any, int, str]] = {
    "dtype": (
        lambda g: all_reduce(Tensor([1.0, 2.0]), g), lambda g: all_reduce(Tensor([1, 2]), g), 3,
        "all_reduces float32[2] (sum) as exchange 2, rank 2 int32[2] (sum): all ranks must",
    ),
    "shape": (
        lambda g: all_reduce(Tensor.ones(2, 3), g), lambda g: all_reduce(Tensor.ones(3, 2), g), 2,
        "rank 0 all_reduces float32[2, 3] (sum) as exchange 2, rank 1 float32[3, 2] (sum)",
    ),
    "length": (
        lambda g: all_reduce(Tensor.ones(4), g), lambda g: all_reduce(Tensor.ones(5), g), 2,
        "rank 0 all_reduces float32[4] (sum) as exchange 2, rank 1 float32[5] (sum)",
    ),
    "reduction": (
        lambda g: all_reduce(Tensor.ones(4), g), lambda g: all_reduce(Tensor.ones(4), g, "max"), 2,
        "rank 0 all_reduces float32[4] (sum) as exchange 2, rank 1 float32[4] (max)",
    ),
    "kind": (
        lambda g: permute(Tensor.ones(4), g), lambda g: broadcast(Tensor.ones(4), g), 2,
        "rank 0 permutes float32[4] (1 on) as exchange 2, rank 1 broadcasts float32[4] (root 0)",
    ),
    "root": (
        lambda g: broadcast(Tensor.ones(4), g), lambda g: broadcast(Tensor.ones(4), g, 2), 3,
        "broadcasts float32[4] (root 0) as exchange 2, rank 2 float32[4] (root 2)",
    ),
    "far": (
        lambda g: permute(Tensor.ones(4), g, 2), lambda g: permute(Tensor.ones(4), g, 3), 4,
        "permutes float32[4] (2 on) as exchange 2, rank 3 float32[4] (3 on)",
    ),
    "all to all": (
        lambda g: all_to_all(Tensor.ones(6), g), lambda g: all_to_all(Tensor.ones(6).int(), g), 3,
        "all_to_alls float32[6] as exchange 2, rank 2 int32[6]",
    ),
    "gathered": (
        lambda g: all_gather(Tensor.ones(6), g), lambda g: reduce_scatter(Tensor.ones(6), g), 3,
        "all_gathers float32[6] as exchange 2, rank 2 reduce_scatters float32[6] (sum)",
    ),
    "together": (
        lambda g: together("all_reduce", [Tensor.ones(9)] * 50, g, "sum")[0],
        lambda g: together("all_reduce", [*[Tensor.ones(9)] * 49, Tensor.ones(3, 3)], g, "sum")[0],
        2, "rank 0 all_reduces 50 × float32[9] (sum) as exchange 2, rank 1 49 × float32[9], ",
    ),
    "many": (
        lambda g: together("all_reduce", [Tensor.ones(n) for n in range(1, 50)], g, "sum")[0],
        lambda g: together("all_reduce", [Tensor.ones(n) for n in range(1, 49)], g, "sum")[0],
        2, " … as exchange 2, rank 1 float32[1], float32[2], ",
    ),
}  # fmt: skip


def different(rank: Rank, name: str) -> None:
    """Two exchanges; the second one differs on the last rank."""
    all_reduce(Tensor([1.0]), rank.world).realize()
    most, last, _, _ = DIFFERENT[name]
    result = (last if rank.number == rank.world.size - 1 else most)(rank.world)
    if result is not None:
        result.realize()


def shared(rank: Rank, seed: int) -> list[Any]:
    """All-reduces of random lengths in a row; ranks are delayed at random.

    Returns digests of all results, the number of messages sent, and 1 for each wrong sum.
    """
    group, both, own = rank.world, random.Random(seed), random.Random(seed + 1 + rank.number)
    members, digests, wrong = group.members, [], 0
    for number in range(40):
        dtype = both.choice((dtypes.float32, dtypes.float64, dtypes.bfloat16, dtypes.int8))
        counts = [both.choice((0, 1, 63, both.randrange(200_000))) for _ in range(3)]
        how = both.choice(("sum", "max", "mean") if dtype.is_float else ("sum", "max"))
        arrays = [given(rank.number + number, count, dtype) for count in counts]
        buffers = [in_memory(array, dtype) for array in arrays]
        sent = [Piece(buffer.memory, array.size)
                for buffer, array in zip(buffers, arrays, strict=True)]  # fmt: skip
        target = in_memory(np.zeros(sum(counts), numpy_dtype(dtype)), dtype)
        for _ in range(own.choice((0, 0, 1, 30))):
            given(0, 10_000, dtype)  # the other rank waits
        ring.all_reduce(members, sent, target.memory, dtype, how, group.kernels)
        found = np.frombuffer(target.copy_out(), numpy_dtype(dtype))
        pairs = [[given(one + number, count, dtype).astype(float) for one in range(2)]
                 for count in counts]  # fmt: skip
        want = np.concatenate([np.maximum(*pair) if how == "max" else sum(pair) for pair in pairs])
        want = (want / 2 if how == "mean" else want).astype(numpy_dtype(dtype))
        wrong += not np.array_equal(found, want)
        digests.append(hashlib.sha256(found.tobytes()).hexdigest())
    return [digests, members.messages_sent, wrong]


def odd(rank: Rank) -> list[str]:
    """Reductions whose result depends on the order of operands (signed zeros, NaN payloads)."""
    bits = np.array([0x0000, 0x8000, 0x7FC1, 0x7FC2, 0xFFC3, 0x7F80], np.uint16)  # bfloat16
    numbers = (bits.astype(np.uint32) << 16).view(np.float32)
    mine = np.repeat(numbers, 6) if rank.number else np.tile(numbers, 6)
    found = []
    for how in ("sum", "max", "mean"):
        buffer = in_memory(mine, dtypes.float32)
        sent = [Piece(buffer.memory, mine.size)]
        group = rank.world
        ring.all_reduce(group.members, sent, buffer.memory, dtypes.float32, how, group.kernels)
        found.append(bytes(buffer.copy_out()).hex())
    return found


def mapped(rank: Rank) -> list[str]:
    """The shared memory of MPICH that this rank has mapped; " (deleted)" if it has no name."""
    return re.findall(r"/dev/shm/mpich_shm_.*", Path("/proc/self/maps").read_text("utf-8"))


# Number of ranks → (case, arguments …), run in one MPI job. Cases that measure memory come first,
# because the others leave some allocated.
OVER_MPI: dict[int, list[tuple[Any, ...]]] = {
    2: [(memory_of_attention, 2048), (rings,), (inexact,), (shared, 11), (odd,), (mapped,)],
    3: [(rings,), (inexact,), (operations,), (together_,), (captured,), (synchronized,),
        (normalized, 50, 12)],
    4: [(memory_of_attention, 4096), (attention, 48, 6)],
}  # fmt: skip
