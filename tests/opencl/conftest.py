"""The device of these tests: the first OpenCL device."""

from __future__ import annotations

import pytest
from devices import OPENCL, opened

from minigrad import Tensor, jit, nn
from minigrad.device import Device


@pytest.fixture(scope="session")
def first() -> str:
    """The first OpenCL device, if there is one."""
    return opened(OPENCL)


@pytest.fixture(scope="session")
def device(first: str) -> str:
    """The same, for tests here that work on any device."""
    return first


@pytest.fixture(scope="session")
def second(first: str) -> str:
    """The first device with a queue of its own, under a name that no real device has."""
    from minigrad.runtimes.opencl import OpenCL

    name = f"{OPENCL}:99"
    Device.opened[name] = OpenCL(name, Device[first].device)
    return name


@pytest.fixture
def small_training():
    """small_training(captured) → a step of a small training, step(x (…, 12), y (…, 5)) → its loss,
    and the weight that it trains, both on the default device.
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
