"""A training loop's view of how work is shared: not at all, among copies, or devices of meshes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigrad import Mesh, Tensor, nn
from minigrad.models import checkpoint
from minigrad.models.parallel import parts
from minigrad.models.parallel.data_parallel import DataParallel
from minigrad.models.parallel.group import RankGroup
from minigrad.models.parallel.launch import Rank
from minigrad.models.parallel.mpi import world
from minigrad.models.parallel.sequence_parallel import SequenceParallel

if TYPE_CHECKING:
    from minigrad.models.gpt import GPT


class Alone:
    """A model on one device; base class of the ways to share a training.

    is_first: this process prints and writes files. weight: of this part in the mean of a batch.
    rows: the number of ranks that share a batch's rows. group: the ranks that explain a step
    together.
    """

    is_first = True
    weight = 1.0
    rows = 1
    mesh: Mesh | None = None
    group: RankGroup | None = None

    def __init__(self, model: Any) -> None:
        self.model = model

    def batch(self, *arrays: Any) -> list[Tensor]:
        """numpy arrays (batch, …) of a whole batch as tensors, on the model's devices."""
        return [Tensor(array) for array in arrays]

    def loss(self, ids: Any, targets: Any) -> float:
        """The mean loss of a batch of numpy arrays."""
        return float(self.model.loss(*self.batch(ids, targets)).item())

    def take(self, optimizer: nn.optim.Optimizer) -> None:
        """Divide the state of an optimizer."""

    def divide_gradients(self, params: Sequence[Tensor]) -> None:
        """Divide gradients between two parts of a batch."""

    def share_gradients(self, loss: Tensor, params: Sequence[Tensor]) -> Tensor:
        """Sum gradients and loss over ranks, after `backward` of a loss multiplied by `weight`.

        Replaces the gradients; returns the sum of the losses.
        """
        return loss

    def agreed(self, wish: bool) -> bool:
        """A common decision of all processes that call this."""
        return wish

    def save(self, path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Write a checkpoint; all ranks call this."""
        if self.is_first:
            checkpoint.save(path, tensors, metadata)


class Divided(Alone):
    """A model that the devices of meshes share; under MPI each rank has parts of it.

    device: where whole tensors are gathered.
    """

    device: str

    def agreed(self, wish: bool) -> bool:
        """The first process's wish."""
        ranks = world()
        if ranks is None:
            return wish
        ranks.activity.enter("waiting")
        found = bool(ranks.library.COMM_WORLD.bcast(wish))
        ranks.activity.enter("computing")
        return found

    def save(self, path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Write a checkpoint; under MPI each rank writes its parts."""
        ranks = world()
        if ranks is None:
            checkpoint.save(path, self.gathered(tensors), metadata)
        else:
            parts.save(path, tensors, metadata, ranks)

    def gathered(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors, gathered on one device of this process, which has all parts."""
        return {name: tensor.to(self.device).realize() for name, tensor in tensors.items()}


class Replica(Alone):
    """A model on one rank: its part of each batch, and exchanges with the other ranks.

    Every rank has all weights, so gradients and losses are summed over all ranks, which have
    different parts of the batch (dp) or of the sequence (sp).
    """

    def __init__(self, rank: Rank, model: Any, sequence: SequenceParallel | None = None) -> None:
        super().__init__(model)
        self.rank, self.sequence = rank, sequence
        self.is_first, self.rows, self.group = rank.is_first, rank.dp.size, rank.world
        self.copies = DataParallel(model, rank.world)
        self.weight = 1 / rank.world.size  # of this rank's part in the batch

    @classmethod
    def of_gpt(cls, rank: Rank, model: GPT, length: int) -> Replica:
        """A GPT whose sequences of `length` tokens the ranks of "sp" share."""
        sequence = None
        if rank.sp.size > 1:
            sequence = SequenceParallel(rank.sp, length)
            sequence.attach(model)
        return cls(rank, model, sequence)

    def seed(self, seed: int) -> int:
        """The seed for this rank's own random numbers, after all have the same weights."""
        return (seed & 0xFFFFFFFF) | self.rank.number << 32

    def part(self, *arrays: Any) -> list[Any]:
        """This rank's rows (and columns, for sequences) of numpy arrays of a global batch.

        Sets the weight for the following `loss` and `share_gradients`: its share of that batch.
        """
        batch = len(arrays[0])
        first, stop = self.copies.share(batch, self.rank.dp)
        self.weight = (stop - first) / batch / self.rank.sp.size
        parts = [array[first:stop] for array in arrays]
        return parts if self.sequence is None else [self.sequence.take(part) for part in parts]

    def batch(self, *arrays: Any) -> list[Tensor]:
        """This rank's part of a batch."""
        return [Tensor(part) for part in self.part(*arrays)]

    def loss(self, ids: Any, targets: Any) -> float:
        """The mean over the batch, from each rank's mean over its part."""
        own = self.model.loss(*self.batch(ids, targets))
        return float(self.copies.total(own * self.weight).item())

    def share_gradients(self, loss: Tensor, params: Sequence[Tensor]) -> Tensor:
        """See `Alone`."""
        self.copies.average_gradients(params)
        return self.copies.total(loss)
