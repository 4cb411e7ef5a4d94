"""Models run on compiled devices: REF's operations, layers, gradients and captured steps are tested
elsewhere, and a GPT on REF in test_gpt_torch.py.
"""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def device(compiled: str) -> str:
    """The compiled device."""
    return compiled
