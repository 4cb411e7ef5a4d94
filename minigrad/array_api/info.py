"""What the namespace can do, for code that asks."""

from __future__ import annotations

from typing import Any

from minigrad.array_api import dtypes as kinds
from minigrad.device import Device
from minigrad.dtype import DType

_STANDARD = {
    dtype.name: dtype
    for dtype in (kinds.bool, *kinds.INTEGER, kinds.float32, kinds.float64)
}  # fmt: skip


class Info:
    """The inspection functions of the standard."""

    def capabilities(self) -> dict[str, Any]:
        """What is supported: boolean indexing and data-dependent shapes are; at most 64 axes."""
        return {"boolean indexing": True, "data-dependent shapes": True, "max dimensions": 64}

    def default_device(self) -> str:
        """Where arrays are made unless told otherwise."""
        return Device.DEFAULT

    def devices(self) -> list[str]:
        """Kinds of devices that this machine has."""
        return Device.available()

    def default_dtypes(self, *, device: str | None = None) -> dict[str, DType]:
        """The dtypes of Python numbers and of positions."""
        return {
            "real floating": kinds.DEFAULT_FLOAT, "complex floating": kinds.DEFAULT_FLOAT,
            "integral": kinds.DEFAULT_INTEGER, "indexing": kinds.DEFAULT_INTEGER,
        }  # fmt: skip

    def dtypes(self, *, device: str | None = None, kind: Any = None) -> dict[str, DType]:
        """The standard's dtypes, of a kind or of all."""
        return {
            name: dtype
            for name, dtype in _STANDARD.items()
            if kind is None or kinds.isdtype(dtype, kind)
        }


def __array_namespace_info__() -> Info:
    """An object whose methods say what the namespace can do."""
    return Info()
