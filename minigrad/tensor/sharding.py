"""Tensors that the devices of a mesh share: `shard` and its like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

from minigrad.errors import DeviceError, expect
from minigrad.graph.node import Node, Op
from minigrad.graph.partition import LayoutPlan, without_barriers
from minigrad.graph.sharding import Dims, Layout, P, axes_of, meshes, show, whole
from minigrad.graph.sharding import stored as stored_dims
from minigrad.mesh import Mesh, mesh_of
from minigrad.tensor import views
from minigrad.tensor.broadcasting import Axis, axis_of
from minigrad.tensor.core import Core
from minigrad.tensor.methods import Methods
from minigrad.tensor.modes import no_grad


class Sharding(Methods):
    """Methods about which devices hold which parts of a tensor."""

    __slots__ = ()

    def shard(self, mesh: Mesh | Sequence[str], spec: P | None = None, axis: Axis = None) -> Self:
        """The same values, divided among the devices of a mesh; gradients flow through.

        spec: which axes of the mesh divide which dimension, such as P("dp", None); without it,
        every device has the whole tensor. For a tuple of devices, `axis` is the dimension that they
        divide. A dimension may be uneven: the last devices then have fewer elements, or none.

        >>> Tensor([[1.0, 2.0], [3.0, 4.0]]).shard(Mesh(("CPU", "CPU:1"), dp=2), P("dp")).sharding
        'float32[2@dp, 2]'
        """
        return self._placed(*self._divided("shard", mesh, spec, axis))

    def shard_(
        self, mesh: Mesh | Sequence[str], spec: P | None = None, axis: Axis = None,
        stored: str | None = None,
    ) -> Self:  # fmt: skip
        """Divide this tensor itself, at once, with its gradient: for parameters. See `shard`.

        Its views follow; a view becomes an independent tensor.

        stored: another mesh axis, which divides the stored parameter only. It is gathered for
        computations in which that axis divides something else (a batch: ZeRO and FSDP). The divided
        dimension is chosen; if none can be divided evenly, the parameter is not divided.

        >>> Tensor([1.0, 2.0]).shard_(Mesh(("CPU", "CPU:1"), dp=2), P("dp")).sharding
        'float32[2@dp]'
        """
        where, dims = self._divided("shard_", mesh, spec, axis)
        if stored is not None:
            sizes = meshes[where]
            expect(stored in sizes and stored not in axes_of(dims), "shard_",
                   f"an axis of {where} that is not in {spec!r}", stored=stored)  # fmt: skip
            dims = stored_dims(self.shape, dims, stored, sizes)
        return self._move(where, Layout(dims, stored=axes_of(dims) & {stored}))

    def _move(self, where: str, layout: Layout) -> Self:
        """Divide this tensor itself, and its gradient, in place."""
        with no_grad():
            for tensor in (self, self.grad):
                if tensor is not None:
                    made = tensor._placed(where, layout.dims).contiguous().realize()
                    memory = made.raw.arg.memory
                    if layout.stored and memory.layout is not None:
                        memory.layout = replace(memory.layout, stored=layout.stored)
                    tensor._leave_memory()
                    views.leave(tensor)
                    tensor._point(made.raw)
                    views.written(tensor)
        return self

    def shard_like(self, other: Core) -> Self:
        """The same values on the devices of another tensor of this shape, divided like it.

        >>> x = Tensor([1.0, 2.0]).shard(("CPU", "CPU:1"), axis=0)
        >>> Tensor([3.0, 4.0]).shard_like(x).device
        ('CPU', 'CPU:1')
        """
        layout = self._like("shard_like", other)
        if layout is None:
            return self.to(other.device)
        return self._placed(other.raw.device, layout.dims)

    def shard_like_(self, other: Core) -> Self:
        """`shard_like` in place (see `shard_`); no change if the other tensor is not on a mesh.

        >>> Tensor([3.0]).shard_like_(Tensor([1.0])).tolist()
        [3.0]
        """
        layout = self._like("shard_like_", other)
        return self if layout is None else self._move(other.raw.device, layout)

    @property
    def sharding(self) -> str:
        """Dtype, shape, and the mesh axes that divide it, as text: "float32[64@dp, 784]"."""
        return show(self.shape, layout_of(self.raw), self.dtype.name)

    def _like(self, name: str, other: Any) -> Layout | None:
        expect(other.shape == self.shape, name, "equal shapes", self, other)
        return layout_of(other.raw)

    def _divided(
        self, name: str, mesh: Mesh | Sequence[str], spec: P | None, axis: Axis
    ) -> tuple[str, Dims]:
        """The name of the mesh, and the mesh axes of each dimension."""
        expect(not isinstance(mesh, str) and isinstance(mesh, Mesh | Sequence), f"{name}({mesh!r})",
               "a Mesh, as Mesh(dp=2), or a tuple of devices", error=DeviceError)  # fmt: skip
        if isinstance(spec, int):  # as in tinygrad, whose second argument is the axis
            spec, axis = None, spec
        if spec is not None and not isinstance(spec, P):
            raise DeviceError(f'{name}(…, {spec!r}): expected P(…), as P("dp", None)')
        found = mesh_of(mesh)
        if axis is not None:
            if spec is not None or len(found.sizes) != 1:
                raise DeviceError(f"{name}(axis={axis}) on {found}: expected P(…) to name the axes")
            place = axis_of(name, axis, self.ndim)
            spec = P(*(next(iter(found.sizes)) if at == place else None for at in range(place + 1)))
        return found.name, (spec or P()).dims(self.shape, found.sizes, found.name)


def layout_of(node: Node) -> Layout | None:
    """The layout of a node on a mesh, planned if it is not computed yet; None on a single device.
    """
    if node.device not in meshes:
        return None
    if node.op is Op.BUFFER:
        return node.arg.memory.layout or whole(node.ndim)

    (root,) = without_barriers([node])
    plan = LayoutPlan([root], lambda buffer: getattr(buffer.memory, "layout", None), [None])
    return plan.choices[root].made
