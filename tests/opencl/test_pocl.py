"""A PoCL that is older than the processor builds nothing: another one is taken, or it is said."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from minigrad.errors import DeviceError
from minigrad.runtimes import opencl_devices, opencl_pocl

pytest.importorskip("pyopencl")


class Platform:
    """A PoCL with one device, whose processor it calls by a name."""

    def __init__(self, processor: str, version: str) -> None:
        self.name, self.version = opencl_pocl.POCL, f"OpenCL 3.0 PoCL {version}  Linux"
        kind = opencl_devices.opencl().device_type.CPU
        self.device = SimpleNamespace(
            platform=self, version=f"OpenCL 3.0 PoCL HSTR: pthread-x86_64-linux-{processor}",
            name="cpu", type=kind,
        )  # fmt: skip

    def get_devices(self) -> list[SimpleNamespace]:
        """Its device."""
        return [self.device]


OLD, NEW = Platform("generic", "3.0-rc2"), Platform("znver4", "6.0")
KNOWING = Platform("haswell", "3.0-rc2")


@pytest.mark.parametrize(
    ("found", "order"),
    [([OLD, NEW], [NEW, OLD]), ([NEW, OLD], [NEW, OLD]), ([NEW, KNOWING], [KNOWING, NEW])],
)
def test_one_that_knows_the_processor_comes_first(
    found: list[Platform], order: list[Platform], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opencl_devices, "chosen_platforms", lambda: found)
    assert opencl_devices.devices() == [platform.device for platform in order]


def test_alone_it_is_an_error() -> None:
    with pytest.raises(DeviceError, match=r"PoCL 3.0-rc2 is older than this processor.*newer one"):
        opencl_pocl.check_pocl(OLD.device)
    opencl_pocl.check_pocl(KNOWING.device)
