"""What a training loop needs to know of being one rank among several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from minigrad import Tensor
from minigrad.models.parallel.data_parallel import DataParallel
from minigrad.models.parallel.launch import Rank
from minigrad.models.parallel.sequence_parallel import SequenceParallel

if TYPE_CHECKING:
    from minigrad.models.gpt import GPT


class Replica:
    """A model on one rank: its part of each batch, and what the ranks exchange.

    Every rank has all weights, so gradients and losses are summed over all of them, whichever part
    of the batch (dp) or of the sequence (sp) was theirs.
    """

    def __init__(self, rank: Rank, model: Any, sequence: SequenceParallel | None = None) -> None:
        self.rank, self.sequence = rank, sequence
        self.copies = DataParallel(model, rank.world)
        self.weight = 1 / rank.world.size  # of this rank's part in its batch

    @classmethod
    def of_gpt(cls, rank: Rank, model: GPT, length: int) -> Replica:
        """A GPT whose sequences of `length` tokens the ranks of "sp" share."""
        sequence = None
        if rank.sp.size > 1:
            sequence = SequenceParallel(rank.sp, length)
            sequence.attach(model)
        return cls(rank, model, sequence)

    def seed(self, seed: int) -> int:
        """The seed of this rank's own random numbers, once all have the same weights."""
        return (seed & 0xFFFFFFFF) | self.rank.number << 32

    def release(self, model: GPT) -> None:
        """Let the GPT see whole sequences again."""
        if self.sequence is not None:
            self.sequence.detach(model)

    def part(self, *arrays: Any) -> list[Any]:
        """This rank's rows (and columns, for sequences) of numpy arrays of a global batch.

        What follows (`mean`, `average_gradients`) is weighted by its share of that batch.
        """
        batch = len(arrays[0])
        first, stop = self.copies.share(batch, self.rank.dp)
        self.weight = (stop - first) / batch / self.rank.sp.size
        parts = [array[first:stop] for array in arrays]
        return parts if self.sequence is None else [self.sequence.take(part) for part in parts]

    def mean(self, loss: Tensor) -> Tensor:
        """The mean loss over the global batch from each rank's mean over its own part."""
        return self.copies.total(loss * self.weight)

    def share_gradients(self, loss: Tensor, params: Sequence[Tensor]) -> Tensor:
        """After `backward` of a loss that was multiplied by `weight`: give all ranks the sums.

        Those of the gradients replace them; gives that of the losses.
        """
        self.copies.average_gradients(params)
        return self.copies.total(loss)
