"""Ranks that run a step together, each of which explains it: they meet, and show each other."""

from __future__ import annotations

import json
from typing import Any, cast

from minigrad.device import Device
from minigrad.dtype import dtypes
from minigrad.graph.collective import exchange
from minigrad.graph.conversions import group_name
from minigrad.tensor import Tensor


class Ranks:
    """A group of ranks, of which this thread or process is one; alone without a name.

    device: where it is in the group; the default device, if not given.
    """

    def __init__(self, name: str = "", size: int = 1, device: str | None = None) -> None:
        self.name, self.size, self.device = name, size, device

    @classmethod
    def of(cls, device: str) -> Ranks:
        """The processes that have the devices of a mesh: one, where they are threads of this."""
        mesh, runtime = Device.meshes.get(device), cast(Any, Device.opened.get(device))
        if mesh is None or len(runtime.local) == mesh.size:
            return cls()
        axes = [axis for axis, size in mesh.sizes.items() if size > 1]
        return cls(group_name(mesh.name, axes), mesh.size, runtime.local[0].device)

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.size > 1

    def meet(self) -> None:
        """Wait for all of them."""
        if self.several:
            self._together(Tensor([0], device=self.device))

    def gathered(self, what: Any) -> list[Any]:
        """What each of them gives: anything that JSON can hold."""
        if not self.several:
            return [what]
        data = json.dumps(what).encode()
        lengths = self._together(Tensor([len(data)], device=self.device)).tolist()
        most = max(lengths)
        own = Tensor(list(data.ljust(most)), dtype=dtypes.uint8, device=self.device)
        rows = bytes(self._together(own).tolist())
        return [json.loads(rows[most * rank : most * (rank + 1)]) for rank in range(self.size)]

    def _together(self, x: Tensor) -> Tensor:
        """(n,) → (n·size,): everybody's x."""
        return Tensor._of(exchange("all_gather", self.name, self.size, [x.node])).realize()
