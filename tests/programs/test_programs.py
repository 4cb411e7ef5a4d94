"""Programs of others give the same losses and weights after a sed.

Their sources are not part of this project: MINIGRAD_TEST_PROGRAMS names the folder that has them.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from minigrad import Context

pytest.importorskip("torch", reason="PyTorch is not installed")

from .catalogue import PROGRAMS
from .run import STEPS, pair, sources

# Of a gradient that is rounding alone Adam makes a step of its learning rate, at most STEP: in the
# vae of one of 313,600 (1e-7, where the others are 1). So large a part of them may be off by that.
ROUNDED, STEP = 1e-5, 1e-3
FOLDER = Path(os.environ.get("MINIGRAD_TEST_PROGRAMS", "/nowhere"))


def at_hand(name: str) -> Path:
    """The folder of all programs; skips where it lacks this one."""
    program = PROGRAMS[name]
    if not (FOLDER / program.folder / program.main).exists():
        pytest.skip("programs of others are not at hand: MINIGRAD_TEST_PROGRAMS names no folder")
    if name == "reinforce":
        pytest.importorskip("gymnasium", reason="gymnasium is not installed")
    return FOLDER


@pytest.mark.parametrize("name", PROGRAMS)
def test_program(name: str, compiled: str) -> None:
    """Twenty steps: each loss, and the weights in the end."""
    folder = at_hand(name)
    with Context(DEVICE=compiled):
        original, port = pair(PROGRAMS[name], folder)
    assert len(original.losses) == STEPS
    np.testing.assert_allclose(port.losses, original.losses, rtol=1e-4)
    wanted, found = original.state(), port.state()
    assert list(found) == list(wanted)
    for key, value in wanted.items():
        atol = 1e-4 * max(1e-3, float(np.abs(value).max()))
        off = np.abs(found[key] - value)
        others = off > atol + 1e-3 * np.abs(value)
        assert others.sum() <= ROUNDED * value.size and off.max() <= STEP, (key, off.max())


@pytest.mark.parametrize("name", PROGRAMS)
def test_scripts_fit(name: str) -> None:
    """The marks are found, and what is said to be PyTorch's is left to it alone."""
    for text in (sources(PROGRAMS[name], at_hand(name), ported) for ported in (False, True)):
        whole = "\n".join(text.values())
        assert whole.count("given(") == 1 and whole.count("seen(") == 1
        assert "TORCH." not in whole
