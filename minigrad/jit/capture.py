"""What a captured step did besides computing its result: what it may not, and what it left behind.

A `Snapshot` knows the tensors from before the step, so that afterwards those that it made, wrote,
and gave gradients can be told from the others.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable

from minigrad.device import Buffer, Call
from minigrad.errors import JitError
from minigrad.graph.node import Node, Op, depending, topological
from minigrad.tensor import Tensor
from minigrad.tensor.live_tensors import Holder, all_holders, lazy_holders, of_this_thread


class Snapshot:
    """The tensors that live now, and which of them have a gradient."""

    def __init__(self) -> None:
        # by the id of their weak reference, which is kept: an id could come back otherwise
        self._links = {id(holder._link): holder._link for holder in all_holders()}
        self._grads = {
            number: holder.grad._link
            for number, link in self._links.items()
            if isinstance(holder := link(), Tensor) and holder.grad is not None
        }

    def knows(self, holder: Holder) -> bool:
        """Whether the tensor lived then."""
        return id(holder._link) in self._links

    def had_gradient(self, holder: Holder) -> bool:
        """Whether it had a gradient then."""
        return id(holder._link) in self._grads

    def left_behind(self) -> list[Holder]:
        """Lazy tensors that this thread has made since and that depend on memory (`.grad`, what
        objects keep).
        """
        lazy = of_this_thread(lazy_holders())
        reads = readers_of_memory(holder.raw for holder in lazy)
        return [holder for holder in lazy if holder.raw in reads and not self.knows(holder)]

    def new_gradients(self) -> list[tuple[Tensor, Tensor]]:
        """Tensors from then whose `.grad` is another one now, from this thread, and that one."""
        return [
            (holder, holder.grad)
            for number, link in self._links.items()
            if isinstance(holder := link(), Tensor)
            and holder.grad is not None
            and holder.grad._link is not self._grads.get(number)
            and of_this_thread([holder.grad])
        ]


def readers_of_memory(roots: Iterable[Node]) -> set[Node]:
    """Those nodes below the roots whose value depends on a buffer, the buffers included."""
    order = topological(roots)
    return depending(order, (node for node in order if node.op is Op.BUFFER))


class HostWatch:
    """Objects to what a capture cannot repeat: the host reading or writing buffers."""

    def __init__(self, name: str, before: Snapshot) -> None:
        self.name, self.before = name, before
        self.fresh: weakref.WeakSet[Buffer] = weakref.WeakSet()

    def reads(self, buffer: Buffer) -> None:
        """`.item()`, `.numpy()`, a copy to another device."""
        raise JitError(
            f"{self.name} reads a value inside a captured step (.item(), .numpy(), .tolist(), "
            "print, a branch on a tensor, or a copy to another device): a replay would not; "
            "return the tensor and read it outside"
        )

    def writes(self, buffer: Buffer) -> None:
        """Constants that become tensors are kept; changing a buffer that exists is refused."""
        if buffer.has_values and buffer not in self.fresh:
            raise JitError(
                f"{self.name} writes data of the host into an existing tensor inside a captured "
                "step: a replay would not; write it outside, or pass it as an argument"
            )
        self.fresh.add(buffer)

    def makes(self, buffer: Buffer) -> None:
        """Zeros that become a tensor are such a constant."""
        self.fresh.add(buffer)

    def replaces(self, holder: Holder) -> None:
        """An in-place write to a tensor without memory: a replay would have nowhere to write."""
        if self.before.knows(holder):
            raise JitError(
                f"{self.name} writes to a tensor of shape {holder.raw.shape} that has no memory "
                "yet; call .realize() on it before the step is captured"
            )


def refuse_replaced(
    name: str, calls: Iterable[Call], written: set[Buffer], known: set[Buffer]
) -> None:
    """JitError where calls read a buffer that no tensor stands for any longer.

    The step has then put another tensor in the place of one that it read (`self.x = self.x + 1`, or
    a gradient added to that of the step before): a replay would read the old one for ever.
    known: buffers for which that is right.
    """
    held = {holder.raw.arg for holder in all_holders() if holder.raw.op is Op.BUFFER}
    lazy = topological([holder.raw for holder in lazy_holders()])
    held.update(node.arg for node in lazy if node.op is Op.BUFFER)
    for call in calls:
        for buffer in call.buffers:
            if buffer not in held and buffer not in known and buffer not in written:
                raise JitError(
                    f"{name} reads a tensor of {buffer.size} × {buffer.dtype.name} and puts "
                    "another in its place (gradients that add up without zero_grad(), or "
                    "self.x = self.x + 1): a replay would read the old one for ever; call "
                    "zero_grad() inside the step, or write with .assign()"
                )
