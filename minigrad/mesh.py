"""Meshes: devices in a grid with named axes, over which tensors are divided.

For the rest of minigrad a mesh is a device: graphs on it are graphs of whole arrays, and its
runtime divides them (see `graph/partition.py`). So a program is written once, and runs in threads,
or under `mpiexec`, where each rank runs the same script and has its own part.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod

from minigrad.device import Device
from minigrad.errors import DeviceError, expect
from minigrad.graph.sharding import Sizes, meshes
from minigrad.settings import Context


class Devices(tuple[str, ...]):
    """The `.device` of a tensor on a mesh: the names of its devices. mesh: the mesh's own name."""

    mesh: str

    def __new__(cls, names: Sequence[str], mesh: str) -> Devices:
        """See the class."""
        made = super().__new__(cls, names)
        made.mesh = mesh
        return made

    def __getnewargs__(self) -> tuple[tuple[str, ...], str]:
        return tuple(self), self.mesh


class Mesh(Context):
    """Devices along named axes: Mesh(dp=2, tp=2) has four, of the kind of the default device.

    The last axis varies fastest: CPU and CPU:1 are neighbours along "tp". devices: their names, if
    they are not the usual ones. Under MPI they are the ranks. `with mesh:` makes it the default
    device: new tensors are then on all of its devices as a whole.
    """

    def __init__(self, devices: Sequence[str] | None = None, /, **axes: int) -> None:
        if not axes:
            raise DeviceError("Mesh(): expected axes with their sizes; write e.g. Mesh(dp=2, tp=2)")
        for axis, size in axes.items():
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise DeviceError(f"Mesh({axis}={size!r}): expected an int ≥ 1")
        if devices is not None and not (isinstance(devices, (tuple, list)) and devices):
            raise DeviceError(f"Mesh({devices!r}): expected devices, as ('CPU', 'CPU:1')")
        self.sizes: Sizes = dict(axes)
        self.size = prod(axes.values())
        kind = Device.DEFAULT if devices is None else Device.canonical(devices[0])
        if kind in meshes:
            kind = Device.meshes[kind].devices[0]
        kind = kind.partition(":")[0]
        usual = [kind if number == 0 else f"{kind}:{number}" for number in range(self.size)]
        names = usual if devices is None else [Device.canonical(name) for name in devices]
        words = ", ".join(f"{axis}={size}" for axis, size in axes.items())
        where = kind if names == usual else ", ".join(names)
        self.name = f"Mesh({words}) of {where}"
        expect(len(set(names)) == self.size and len(names) == self.size,
               f"Mesh({words})", f"{self.size} different devices", ', '.join(names),
               error=DeviceError)  # fmt: skip
        self.devices = Devices(names, self.name)
        super().__init__(DEVICE=self.name)
        Device.add_mesh(self)

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[object, tuple[()]]:  # a copy must be known to Device, too
        return partial(Mesh, tuple(self.devices), **self.sizes), ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mesh) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def places(self, number: int) -> dict[str, int]:
        """A device's position along each axis."""
        found: dict[str, int] = {}
        for axis, size in reversed([*self.sizes.items()]):
            found[axis] = number % size
            number //= size
        return {axis: found[axis] for axis in self.sizes}


def mesh_of(devices: Mesh | Sequence[str]) -> Mesh:
    """A mesh itself, or one with a single axis for a tuple of device names."""
    if isinstance(devices, Mesh):
        return devices
    if isinstance(devices, Devices):
        return Device.meshes[devices.mesh]
    names = [Device.canonical(name) for name in devices]
    return Mesh(names, devices=len(names))
