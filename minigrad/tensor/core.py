"""What a tensor is: a node, and a way to its value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from threading import get_ident
from typing import TYPE_CHECKING, Any, Never, Self

from minigrad.device import Buffer, Device, Zeros
from minigrad.dtype import BY_NAME, DType, check_holds, resolve
from minigrad.errors import GradientError, ScanError, expect, misfit
from minigrad.graph import build
from minigrad.graph.node import (
    ASSIGN,
    BUFFER,
    CONST,
    Node,
    Shape,
    device_of,
    form_of,
    own_node,
    target_of,
)
from minigrad.graph.shapes import numel
from minigrad.graph.sharding import Dims, mark, whole
from minigrad.graph.symbolic import Affine, Integer
from minigrad.graph.variable import evaluate
from minigrad.hints import present
from minigrad.mesh import mesh_of
from minigrad.settings import thread
from minigrad.tensor import history, hostdata, realization, views
from minigrad.tensor.broadcasting import (
    axis_of,
    broadcast_to,
    check_flag,
    product,
    show,
    stop,
)
from minigrad.tensor.live_tensors import (
    FROZEN,
    REPLAYED,
    Holder,
    Link,
    enter_alone,
    file,
    forget,
    holders,
    lock,
    wants_gradient,
)
from minigrad.tensor.modes import modes, no_grad, train
from minigrad.tensor.observed import (
    capturing,
    misses_gradient,
    moves,
    observe,
    sets_gradient,
)
from minigrad.tensor.realization import new_leaves


class _TensorType(type):
    """Makes `Tensor.training` a property of the class, per thread."""

    @property
    def training(cls) -> bool:
        """Whether layers such as dropout behave as in training; set by `Tensor.train()`."""
        return bool(thread.values["TRAINING"])

    @training.setter
    def training(cls, mode: bool) -> None:
        train(mode).__enter__()  # and never left

    def __dir__(cls) -> list[str]:
        return present("Tensor", super().__dir__())


class Core(Holder, metaclass=_TensorType):
    """The engine's part of `Tensor`: data in and out, realization, writes."""

    __slots__ = {
        "_grad": "See `grad`.",
        "made": "Whether the user made it of data or random numbers, so that it may be a leaf.",
    }
    _grad: Any  # a tensor of the same kind, or None
    train = train
    no_grad = no_grad

    def __init__(
        self, data: Any, *more: Never, dtype: DType | str | None = None,
        device: str | None = None, requires_grad: bool | None = None,
    ) -> None:  # fmt: skip
        """Copy `data`: a number, nested lists, an array (numpy, bfloat16 too), or a buffer.

        A bound `Variable` gives a 0-d int32 tensor of its value. Python ints give int32, or a wider
        integer dtype if they need it, and floats float32; arrays keep their dtype. `dtype`
        overrides this.
        """
        if more:
            given = ", ".join(map(repr, (data, *more)))
            raise TypeError(f"Tensor({given}): expected the data as one argument, as [1, 2]; "
                            f"Tensor.empty({given}) has a shape")  # fmt: skip
        wanted = None if dtype is None else resolve(dtype)
        is_new = False
        if isinstance(data, Core):
            node = data.node if device is None else build.copy(data.node, Device.canonical(device))
        elif isinstance(data, Affine):
            node = build.variable(data, Device.canonical(device))
        else:
            raw, shape, found = hostdata.read(data, wanted)
            node = stored(raw, found, shape, Device.canonical(device))
            is_new = wanted is None or wanted is found
        self._start(node if wanted is None else build.cast(node, wanted), is_new)
        self.made = not isinstance(data, Core)
        if requires_grad is not None:
            self._mark(requires_grad)

    @classmethod
    def from_bytes(
        cls, data: bytes | bytearray, shape: Sequence[int], dtype: DType,
        device: str | None = None,
    ) -> Self:  # fmt: skip
        """A tensor with a copy of row-major bytes of the host; ShapeError for a wrong number.

        >>> Tensor.from_bytes(bytes([1, 2]), (2,), Tensor([1], dtype="uint8").dtype).tolist()
        [1, 2]
        """
        dtype = resolve(dtype)
        size = numel(shape) * dtype.itemsize
        expect(len(data) == size, f"from_bytes of {show(shape)} {dtype.name}", f"{size} bytes",
               len(data))  # fmt: skip
        result = cls._of(stored(data, dtype, shape, Device.canonical(device)))
        result.made = True
        return result

    def set_data(self, data: Any) -> Self:
        """Overwrite the values with data of the host, at once and without running a program.

        ShapeError if shape or dtype differ. Lazy tensors created before still see the old values;
        captured programs see the new ones.

        >>> Tensor([1, 2]).set_data([3, 4]).tolist()
        [3, 4]
        """
        raw, shape, found = hostdata.read(data, self.dtype)
        self._check_alike("set_data", shape, found)
        self._fill(raw)
        return self

    def _check_alike(self, name: str, shape: Shape, dtype: DType) -> None:
        """ShapeError unless values that replace the tensor's have its shape and dtype."""
        if shape != self.shape or dtype is not self.dtype:
            new, own = f"{dtype.name} {show(shape)}", f"{self.dtype.name} {show(self.shape)}"
            raise misfit(name, f"the tensor's dtype and shape, {own}", new)

    def _fill(self, raw: bytes | bytearray) -> None:
        """Write bytes of the host into the tensor's memory, or into new memory if it has none."""
        self._check_own()
        target = target_of(self.raw)
        if target.op is BUFFER and not self._borrows(target) and views.writable(self) is None:
            realization.overwrite(self, target, raw)
            views.written(self)
            return
        known = [extent for extent in self.shape if isinstance(extent, int)]
        with no_grad():
            self._write(stored(raw, self.dtype, known, self.raw.device))

    def _start(self, node: Node, is_new: bool = False, origin: views.Origin | None = None) -> None:
        """Initialize as the tensor of a node; is_new: a BUFFER that nothing else refers to."""
        self._grad, self.made, self._origin, self._family = None, False, origin, None
        self._requires_grad, self.stopped = None, not thread.gradients
        if is_new:
            enter_alone(self, node)
            return
        self.raw = node
        self._link = link = Link(self, forget)
        link.thread = get_ident()
        with lock:
            file(self, node)

    @classmethod
    def _of(cls, node: Node) -> Self:
        """A new tensor that stands for a node."""
        result = cls.__new__(cls)
        result._start(node)
        return result

    def _new(self, node: Node) -> Self:
        result = self.__class__.__new__(self.__class__)
        result._start(node)
        return result

    def _view(self, step: Callable[[Node], Node], stops: bool = False) -> Self:
        """A view of this tensor: writing to it writes here. stops: no gradient flows through it."""
        result = self.__class__.__new__(self.__class__)
        origin = views.Origin(self, step, stops or not thread.gradients)
        result._start(step(self.raw if stops else self.node), origin=origin)
        origin.family.add(result)
        if stops or result.raw is self.raw:
            result.stopped = origin.stops or self.stopped
        return result

    # --- properties -------------------------------------------------------------------------------

    @property
    def node(self) -> Node:
        """The node to compute with, behind a barrier if no gradient may flow."""
        if new_leaves:
            realization.detach_readers()
        if not (self.stopped and thread.gradients):
            return self.raw
        if self.stopped == REPLAYED:  # from now on a gradient may be requested
            history.lose(self.raw)
            self.stopped = False
            return self.raw
        return stop(self.raw)

    @property
    def shape(self) -> Shape:
        """Extents; ints, or symbolic integers where a bound `Variable` was used.

        >>> Tensor([[1, 2]]).shape
        (1, 2)
        """
        return self.raw.shape

    @shape.setter
    def shape(self, given: Never) -> None:
        raise AttributeError("x.shape = …: a tensor keeps its shape; write x = x.reshape(…)")

    @property
    def ndim(self) -> int:
        """Number of dimensions.

        >>> Tensor([[1, 2]]).ndim
        2
        """
        return len(self.raw.shape)

    @property
    def dtype(self) -> DType:
        """Element type.

        >>> Tensor([1.0]).dtype.name
        'float32'
        """
        return self.raw.dtype

    @property
    def device(self) -> Any:
        """Name of the device that holds it or will compute it; on a mesh, a tuple of names."""
        name = self.raw.device
        return Device.meshes[name].devices if name in Device.meshes else name

    @property
    def grad(self) -> Any:
        """The gradient that `backward` accumulated, in this shape, dtype and device; or None."""
        if self._grad is None and capturing:
            misses_gradient(self)
        return self._grad

    @grad.setter
    def grad(self, given: Core | None) -> None:
        if given is not None:
            if not isinstance(given, Core):
                raise TypeError(f"x.grad: expected a tensor or None, got {type(given).__name__}")
            device_of("x.grad =", (self.raw, given.raw))
            self._check_alike("x.grad = …", given.shape, given.dtype)
        sets_gradient(self, overwrites=True)
        self._grad = given

    @property
    def requires_grad(self) -> bool | None:
        """True for a leaf that gets a gradient, False for one that gets none, None if not set."""
        if capturing:
            observe(self, "requires_grad")
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, wanted: bool | None) -> None:
        if capturing or wanted is not self._requires_grad:
            observe(self, "_requires_grad", written=True)
        self._mark(wanted)

    def _mark(self, wanted: bool | None) -> None:
        if wanted is not None:
            check_flag("requires_grad", "wanted", wanted)
        if wanted and not self.dtype.is_float:
            raise GradientError(
                f"cannot set requires_grad of {self.dtype.name}: only floats have "
                "gradients; cast it first, e.g. with .float()"
            )
        if wanted and not self._requires_grad:
            if self.stopped == FROZEN and self._origin is None:
                self.stopped = False
            else:
                self._become_leaf()
        elif self._requires_grad and not wanted:
            self.stopped = FROZEN
        self._requires_grad = wanted

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Set `requires_grad`; returns self.

        >>> Tensor([1.0]).requires_grad_().requires_grad
        True
        """
        self.requires_grad = requires_grad
        return self

    def _become_leaf(self) -> None:
        """Give the tensor its own node: equal nodes are one object, and would be one leaf."""
        if self._origin is not None:
            self._leave_memory()
            views.leave(self)
        if self.raw.op is ASSIGN and not self.made:
            realization.realize([self])
        node = self.raw
        if node.op is BUFFER and not history.has_history(node) and not self._borrows(node):
            realization.separate(node, {id(self._link)})
        elif not self.made or self._shares_node():
            self._own_memory()
            self.made = True  # so freezing and unfreezing it copies nothing again
        realization.detach_readers_of(self)  # no gradient comes from what was computed before
        if self.raw.op is BUFFER:
            self.raw.arg.owner = self._link
        self.stopped = False
        views.written(self)  # also views that were realized before it was a leaf

    def _leave_memory(self) -> None:
        """Tell captured steps, and disown, before it moves to other memory and stops being a view.
        """
        base = views.base_of(self)
        node = target_of((self if base is None else base).raw)
        if node.op is BUFFER:
            moves(node, self._link)
            if node.arg.owner is self._link:
                node.arg.owner = None

    def _shares_node(self) -> bool:
        return self.raw.op is CONST or len(holders(self.raw)) > 1

    def _own_memory(self) -> Self:
        """Move to memory that no other tensor stands for; constants are filled by the host.

        Zeros take no memory before they are read.
        """
        node = self.raw
        self._leave_memory()
        known = [extent for extent in node.shape if isinstance(extent, int)]
        if node.op is CONST and len(known) == node.ndim:
            raw = hostdata.pack([node.arg], node.dtype)
            if any(raw):
                self._point(stored(raw * numel(known), node.dtype, known, node.device))
            else:
                self._point(_buffer_node(Zeros(node.device, node.dtype, numel(known)), known))
        else:
            self._point(build.copy_of(stop(node)))
            realization.realize([self])
        return self

    def numel(self) -> Integer:
        """Number of elements.

        >>> Tensor([[1, 2]]).numel()
        2
        """
        return product(self.shape)

    def size(self, dim: int | None = None) -> Any:
        """The shape, or the extent of one dimension.

        >>> Tensor([[1, 2]]).size(1)
        2
        """
        if dim is None:
            return self.shape
        return self.shape[axis_of("size", dim, self.ndim, 0)]

    def nbytes(self) -> Integer:
        """Number of bytes of its elements.

        >>> Tensor([[1, 2]]).nbytes()
        8
        """
        return self.numel() * self.dtype.itemsize

    def __dir__(self) -> list[str]:
        return present("Tensor", super().__dir__())

    if TYPE_CHECKING:

        def _descends_from_leaves(self) -> bool: ...  # of `Backward`

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a 0-d tensor: expected at least one dimension")
        return evaluate(self.shape[0], {})

    # --- engine -----------------------------------------------------------------------------------

    def realize(self, *others: Core) -> Self:
        """Compute this tensor, and `others` in the same program; returns self.

        >>> (Tensor([1]) + 1).realize().is_realized()
        True
        """
        for other in others:
            if not isinstance(other, Core):
                raise TypeError(f"realize: expected tensors, got {type(other).__name__}")
        realization.realize((self, *others))
        return self

    def is_realized(self) -> bool:
        """Whether its value is in memory.

        >>> (Tensor([1]) + 1).is_realized()
        False
        """
        return self.raw.op is BUFFER

    def contiguous(self) -> Self:
        """The same values, stored in a buffer instead of being recomputed by every reader.

        >>> Tensor([[1, 2]]).T.contiguous().tolist()
        [[1], [2]]
        """
        return self._new(build.contiguous(self.node))

    def clone(self) -> Self:
        """A copy with its own memory; gradients flow through it.

        >>> Tensor([1, 2]).clone().tolist()
        [1, 2]
        """
        return self._new(build.copy_of(self.node))

    def detach(self) -> Self:
        """A view without history: no gradient flows through it.

        >>> Tensor([1.0], requires_grad=True).detach().requires_grad
        False
        """
        result = self._view(lambda node: node, stops=True)
        result._requires_grad = False
        return result

    def to(
        self, device: str | DType | Sequence[str] | Core | None = None,
        dtype: DType | str | None = None,
    ) -> Self:  # fmt: skip
        """A copy on another device, or the tensor itself where it is there already.

        Of a tuple of devices each has all of it. Of a dtype, or its name, it is `cast`, as with
        `dtype` given; of a tensor that one's device and dtype.

        >>> Tensor([1]).to("CPU").device
        'CPU'
        """
        if isinstance(device, Core):
            return self.to(device.device, dtype or device.dtype)
        if isinstance(device, (DType, type)) or str(device).removeprefix("torch.") in BY_NAME:
            wanted = resolve(device)
            return self if wanted is self.dtype else self._new(build.cast(self.node, wanted))
        if dtype is not None:
            return (self if device is None else self.to(device)).to(resolve(dtype))
        if isinstance(device, Sequence) and not isinstance(device, str):
            return self._placed(mesh_of(device).name, whole(self.ndim).dims)
        name = Device.canonical(device)
        return self if name == self.raw.device else self._new(build.copy(self.node, name))

    def cpu(self) -> Self:
        """`to("CPU")`: a copy on the CPU, or the tensor itself where it is there already.

        >>> Tensor([1]).cpu().device
        'CPU'
        """
        return self.to("CPU")

    def _placed(self, mesh: str, dims: Dims) -> Self:
        """The same values on a mesh, sharded along its axes as `dims` says."""
        node = self.node if mesh == self.raw.device else build.copy(self.node, mesh)
        return self._new(mark(node, dims))

    def assign(self, value: Any) -> Self:
        """Replace its values in place; `value` is broadcast and cast.

        Views of this tensor, and the tensors that it is a view of, show the new values; results
        computed before keep the old ones. Raises GradientError for a leaf with requires_grad,
        outside `no_grad`, and ShapeError for a view whose elements are not elements of its base
        (expand, unfold, a bitcast to another size).

        >>> Tensor([1, 2]).assign(5).tolist()
        [5, 5]
        """
        self._check_no_leaf()
        self._write(self._value_node(value))
        return self

    def _replace(self, value: Core) -> None:
        """Take a tensor's values; those that shared memory with self keep theirs."""
        if not isinstance(value, Core):
            raise TypeError(f"x.data = …: expected a tensor, got {type(value).__name__}")
        self._check_alike("x.data = …", value.shape, value.dtype)
        base = views.base_of(value)
        if base is self and value.raw is self.raw:  # x.data -= … has written already
            return
        leaf: Any = value if base is None else base
        if leaf._requires_grad and leaf is not self:
            raise GradientError(
                "x.data = y: y shares memory with a tensor that requires a gradient, but x will "
                "not; write x.data = y.clone(), or use that tensor itself in both places"
            )
        node = self._value_node(value)
        if self._origin is None:
            views.hand_over(self, self._of(self.raw))
        else:
            self._leave_memory()
            views.leave(self)
        with no_grad():
            self._write(node)

    def _check_no_leaf(self) -> None:
        """GradientError if an in-place write would change a leaf that requires a gradient."""
        base = views.base_of(self)
        if isinstance(base, Core) and not self._origin.stops:
            base._check_no_leaf()
        if self._requires_grad and thread.gradients:
            raise GradientError(
                f"cannot write in place to a leaf of shape {show(self.shape)} that requires a "
                "gradient; write inside `with Tensor.no_grad():`, or to a .clone()"
            )

    def _write(self, node: Node) -> None:
        """Replace the values, also those of all views, by the values of a node of equal form."""
        self._check_own()
        base: Any = None if self._origin is None else views.writable(self)
        if base is not None:
            # a detached view of a leaf may be written: gradients ignore the write
            with no_grad() if self._origin.stops else nullcontext():
                base.assign(base._new(views.write_through(base.node, self._origin, node)))
            return
        before = self.raw
        realization.write(self, node)
        if self._requires_grad and self._shares_node() and not same_memory(before, self.raw):
            self._own_memory()
        frozen = self.stopped == FROZEN and not (thread.gradients and history.flows(node))
        if not self._requires_grad and not frozen:
            now = self.raw  # a BUFFER may have a history, or be another tensor's leaf
            flows = now.op is not BUFFER or history.has_history(now) or wants_gradient(now)
            self.stopped = flows and not thread.gradients
        views.written(self)
        if self.raw.op is ASSIGN and self.raw.src[0].arg.lent:
            realization.realize([self])  # the host may read it at any time

    def _check_own(self) -> None:
        """ScanError if the step function of `Tensor.scan` writes to a tensor from outside."""
        start = modes.describing
        if start is not None and getattr(self._link, "filed", self.raw.age) < start:
            raise ScanError(
                "Tensor.scan: the step writes in place to a tensor from outside, which would "
                "happen only once, not in each step; make its values part of the carry"
            )

    def _value_node(self, value: Any) -> Node:
        """The node that `assign` writes: of a number, a tensor, or data."""
        check_holds("assign", self.dtype, value)
        if isinstance(value, (bool, int, float)) and self.numel() != 1:
            return build.const(value, self.dtype, self.shape, self.raw.device)
        # one number is data, not part of the program: a new learning rate compiles nothing
        tensor = self._data(value)
        device_of("assign", (self.raw, tensor.raw))
        return broadcast_to(build.cast(tensor.node, self.dtype), self.shape, "assign")

    def _data(self, value: Any) -> Core:
        """`value` itself if a tensor, else data in self's dtype, which must hold its ints."""
        if isinstance(value, Core):
            return value
        return self.__class__(value, dtype=self.dtype, device=self.raw.device)


def same_memory(one: Node, other: Node) -> bool:
    """Whether both are one BUFFER, perhaps with a write that waits."""
    memory = target_of(one)
    return memory is target_of(other) and memory.op is BUFFER


def stored(raw: bytes | bytearray, dtype: DType, shape: Sequence[int], device: str) -> Node:
    """A BUFFER node with a copy of the host's bytes."""
    memory = Buffer(device, dtype, numel(shape))
    memory.copy_in(raw)
    return _buffer_node(memory, shape)


def _buffer_node(memory: Buffer, shape: Sequence[int]) -> Node:
    """The node of a buffer that no other node refers to."""
    known, dtype, device = tuple(shape), memory.dtype, memory.device
    return own_node(BUFFER, dtype, known, (), memory, device, form_of(dtype, known, device))
