"""A PoCL that is older than the processor builds nothing: another is used, or an error says so."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from child import said

from minigrad.device import Device
from minigrad.errors import DeviceError
from minigrad.runtimes import opencl_devices, opencl_pocl

pytest.importorskip("pyopencl")


class Platform:
    """A PoCL with one device of the given processor; width: float32 values in its vectors."""

    def __init__(self, processor: str, version: str, width: int = 16) -> None:
        self.name, self.version = opencl_pocl.POCL, f"OpenCL 3.0 PoCL {version}  Linux"
        kind = opencl_devices.opencl().device_type.CPU
        self.device = SimpleNamespace(
            platform=self, version=f"OpenCL 3.0 PoCL HSTR: pthread-x86_64-linux-{processor}",
            name="cpu", type=kind, native_vector_width_float=width,
        )  # fmt: skip

    def get_devices(self) -> list[SimpleNamespace]:
        """The list of its device."""
        return [self.device]


OLD, NEW = Platform("generic", "3.0-rc2"), Platform("znver4", "6.0")
KNOWING, MISTAKEN = Platform("znver3", "3.0-rc2", 8), Platform("znver3", "3.0-rc2")


@pytest.mark.parametrize(
    ("found", "order"),
    [
        ([OLD, NEW], [NEW, OLD]), ([NEW, OLD], [NEW, OLD]), ([NEW, KNOWING], [KNOWING, NEW]),
        ([MISTAKEN, NEW], [NEW, MISTAKEN]),
    ],
)
def test_one_that_knows_the_processor_comes_first(
    found: list[Platform], order: list[Platform], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opencl_devices, "chosen_platforms", lambda: found)
    assert opencl_devices.devices() == [platform.device for platform in order]


POWERS = """
from minigrad import Tensor
from minigrad.device import Device
def powers(x):
    y = (x.softmax(1) * x + 0.5) ** 0.75
    return ((y * 0.0625) ** -0.25 * 0.75 + (x ** 2 + 0.5) ** 0.75 * 0.06).sum(1)
x = [[0.1 * n for n in range(16)]]
wanted = powers(Tensor(x, device="REF")).item()
for name in ("CL", "CL:1"):  # told twice, LLVM would end the process, too
    assert abs(powers(Tensor(x, device=name)).item() - wanted) < 1e-4
"""


def test_llvm_does_not_end_the_process(first: str, tmp_path: Path) -> None:
    """With PoCL 6 and LLVM 18, these powers in a scalar loop did: found by fuzzing."""
    if Device[first].device.max_compute_units < 2:
        pytest.skip("the OpenCL device cannot be divided")
    said("-c", POWERS, POCL_CACHE_DIR=str(tmp_path), MINIGRAD_CL_SUBDEVICES="2")


@pytest.mark.parametrize("platform", [OLD, MISTAKEN], ids=["unknown", "taken for another"])
def test_alone_it_is_an_error(platform: Platform) -> None:
    with pytest.raises(DeviceError, match=r"PoCL 3.0-rc2 is older than this processor.*newer one"):
        opencl_pocl.check_pocl(platform.device)
    opencl_pocl.check_pocl(KNOWING.device)
