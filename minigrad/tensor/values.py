"""Reading values: as numpy arrays, lists, numbers, text, and pickles."""

from __future__ import annotations

import warnings
from typing import Any

from minigrad.device import Device
from minigrad.dtype import named
from minigrad.errors import DeviceError, DTypeError, MinigradError, ShapeError, misfit
from minigrad.graph.node import Node, Op
from minigrad.graph.shapes import numel
from minigrad.graph.variable import evaluate
from minigrad.program import recording
from minigrad.settings import thread
from minigrad.tensor import access, hostdata
from minigrad.tensor.broadcasting import Scalar
from minigrad.tensor.core import Core, stored
from minigrad.tensor.methods import Methods
from minigrad.tensor.sharding import layout_of

MANY, EDGE = 1000, 3  # from so many elements on, repr shows so many at each end; numpy's defaults


def _read(node: Node) -> access.Touched:
    return frozenset(), {node.arg}


class Values(Methods):
    """Methods that read a tensor: each realizes it and waits for the values."""

    __slots__ = ()

    def _known_shape(self) -> tuple[int, ...]:
        return tuple(evaluate(extent, {}) for extent in self.shape)

    def _bytes(self) -> bytearray:
        self.realize()
        while (node := self.raw).op is not Op.BUFFER:  # another thread wrote it meanwhile
            self.realize()
        data = access.during((_read, node), node.arg.copy_out)
        return hostdata.crop(data, self.shape, self._known_shape(), self.dtype.itemsize)

    def numpy(self) -> Any:
        """A numpy array with a copy of the values (bfloat16 through `ml_dtypes`).

        >>> Tensor([1, 2]).numpy().sum().item()
        3
        """
        return hostdata.to_numpy(self._bytes(), self._known_shape(), self.dtype)

    def _memoryview(self) -> memoryview:
        """A memoryview, in this shape, of a copy of the values; not for bfloat16."""
        if not self.dtype.code:
            raise DTypeError(f"no memoryview of {self.dtype.name}; cast it first, e.g. .float()")
        return memoryview(self.numpy())

    def tolist(self) -> Any:
        """Nested lists of Python numbers; a number for a 0-d tensor.

        >>> Tensor([[1], [2]]).tolist()
        [[1], [2]]
        """
        return hostdata.nest(hostdata.unpack(self._bytes(), self.dtype), self._known_shape())

    def item(self) -> Scalar:
        """The only element as a Python number; ShapeError unless there is exactly one.

        >>> Tensor([7]).item()
        7
        """
        node = self.raw
        if node.op is Op.BUFFER and not node.shape:
            return node.arg.first()
        if self.numel() != 1 and numel(self._known_shape()) != 1:
            raise misfit("item()", "one element; use .tolist()", self)
        return hostdata.unpack(self._bytes(), self.dtype)[0]

    def __bool__(self) -> bool:
        if numel(self._known_shape()) != 1:
            raise ShapeError(
                f"the truth value of a tensor of shape {self.shape} is ambiguous; use .any() or "
                ".all()"
            )
        return bool(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __index__(self) -> int:
        if self.dtype.is_float:
            raise TypeError(f"cannot index with {self.dtype.name}; cast it, e.g. with .int()")
        return int(self.item())

    def __format__(self, specification: str) -> str:
        return format(self.item(), specification) if specification else repr(self)

    # numpy leaves mixed operations to our reflected operators
    __array_priority__ = 1000

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        if copy is False:
            raise ValueError(
                "__array__(copy=False): the values of a tensor must be copied; use np.from_dlpack "
                "to share them"
            )
        values = self.numpy()
        return values if dtype is None else values.astype(dtype)

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        floats = array.dtype.kind == "f"
        if context and floats and thread.gradients and self._descends_from_leaves():
            name = context[0].__name__
            warnings.warn(
                f"np.{name}(…) of a tensor gives an array without gradients; use the tensor's own "
                f"methods, as x.{name}(…), or write np.{name}(x.numpy(), …)", stacklevel=2
            )  # fmt: skip
        return array[()] if return_scalar else array

    def __repr__(self) -> str:
        """Shape, dtype, device and values, which are computed, except while a step is captured."""
        return f"<{self._described()}{self._content()[1]}>"

    def _repr_html_(self) -> str:
        """For notebooks: the repr, with sharding, and a picture of the distribution of the values.

        >>> "<svg" in Tensor([1.0, 2.0, 4.0])._repr_html_()
        True
        """
        from html import escape

        readable, text = self._content()
        picture = hostdata.histogram(self.numpy()) if readable else ""
        return (
            f"<div><code>{escape(self._described())}</code>{picture}"
            f"<pre>{escape(text.removeprefix(':').strip())}</pre></div>"
        )

    def _described(self) -> str:
        """Shape, dtype, device."""
        kind = f"{self.shape} {self.dtype.name}"
        if self.raw.device in Device.meshes:
            kind = self.sharding
        text = f"Tensor {kind} on {self.raw.device}"
        return text + (", requires_grad" if self._requires_grad else "")

    def _content(self) -> tuple[bool, str]:
        """Whether the values can be read, and they, or what is shown instead."""
        if recording.calls is not None and not self.is_realized():
            return False, ", lazy"
        try:
            return True, f":{self._shown()}"
        except MinigradError as error:  # a repr must not fail
            return False, f": unreadable, {error}"

    def _shown(self) -> str:
        """The values as numpy prints them; of many, the outermost of each dimension."""
        self.realize()
        x, many = self.detach(), numel(self._known_shape()) > MANY
        for axis, extent in enumerate(self._known_shape() if many else ()):
            if extent > 2 * EDGE + 1:  # one in the middle stands for all elements left out
                x = x._part(axis, 0, EDGE + 1).cat(x._part(axis, extent - EDGE, extent), dim=axis)
        wide = x.float() if x.dtype.itemsize == 2 and x.dtype.is_float else x
        return hostdata.text(wide.numpy(), EDGE if many else MANY)

    def __reduce__(self) -> Any:
        # without the gradient, as PyTorch pickles a tensor and copies a parameter
        data, where = bytes(self._bytes()), (self.raw.device, layout_of(self.raw))
        state = (data, self._known_shape(), self.dtype.name, *where)
        return _restore, (self.__class__, state, self._requires_grad)


def _restore(cls: type[Core], state: Any, requires_grad: bool | None) -> Any:
    """Called by pickle and deepcopy; a device that is missing becomes the default one."""
    raw, shape, dtype, device, layout = state
    try:
        node = stored(raw, named(dtype), shape, device)
    except (DeviceError, ImportError):
        node, layout = stored(raw, named(dtype), shape, Device.DEFAULT), None
    result: Any = cls._of(node)
    if layout is not None:
        result._move(device, layout)
    result.made, result._requires_grad = True, requires_grad
    return result


