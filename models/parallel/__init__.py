"""Training on many devices: transports, rings, data parallel, sequence parallel."""

from minigrad.collective import Transport
from minigrad.models.parallel.data_parallel import DataParallel
from minigrad.models.parallel.faults import RankError
from minigrad.models.parallel.group import RankGroup
from minigrad.models.parallel.launch import Rank, run
from minigrad.models.parallel.local import LocalTransport
from minigrad.models.parallel.mpi import MPITransport
from minigrad.models.parallel.operations import (
    all_gather,
    all_reduce,
    all_to_all,
    broadcast,
    permute,
    reduce_scatter,
)
from minigrad.models.parallel.ring import ring_all_reduce
from minigrad.models.parallel.sequence_parallel import SequenceParallel

__all__ = [
    "DataParallel", "LocalTransport", "MPITransport", "Rank", "RankError", "RankGroup",
    "SequenceParallel", "Transport", "all_gather", "all_reduce", "all_to_all", "broadcast",
    "permute", "reduce_scatter", "ring_all_reduce", "run",
]  # fmt: skip
