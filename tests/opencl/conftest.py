"""The devices of these tests: OpenCL's first one, with the recipes of its type and with a GPU's."""

from __future__ import annotations

import pytest
from devices import OPENCL

from minigrad import Tensor, jit, nn
from minigrad.device import Device
from minigrad.errors import DeviceError

FIRST = OPENCL
AS_GPU = f"{OPENCL}:99"  # a name that no device of a machine has


def _opened(recipes: str) -> str:
    from minigrad.runtimes.opencl import OpenCL

    try:
        first = Device[FIRST]
    except DeviceError as error:
        pytest.skip(str(error))
    if not recipes:
        return FIRST
    if AS_GPU not in Device.opened:
        Device.opened[AS_GPU] = OpenCL(AS_GPU, first.device, recipes)
    return AS_GPU


@pytest.fixture(scope="session")
def first() -> str:
    """OpenCL's first device, as it is."""
    return _opened("")


@pytest.fixture(scope="session", params=["", "gpu"], ids=["own_recipes", "gpu_recipes"])
def device(request: pytest.FixtureRequest) -> str:
    """The first device with each kind of recipes."""
    return _opened(request.param)


@pytest.fixture
def small_training():
    """small_training(captured) → a step of a small training, step(x (…, 12), y (…, 5)) → its loss,
    and the weight that it learns, both on the default device.
    """

    def begin(captured: bool):
        Tensor.manual_seed(4)
        weight = Tensor.randn(12, 5, requires_grad=True)
        optimizer = nn.optim.AdamW([weight], lr=0.05)

        def step(x: Tensor, y: Tensor) -> Tensor:
            optimizer.zero_grad()
            loss = ((x @ weight - y) ** 2).mean()
            loss.backward()
            optimizer.step()
            return loss.realize()

        return jit(step) if captured else step, weight

    return begin


@pytest.fixture(scope="session")
def as_gpu() -> str:
    """The first device with the recipes of a GPU."""
    return _opened("gpu")
