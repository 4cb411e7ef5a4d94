"""Hypothesis profiles of the property harness.

"ci" (the default): few examples, drawn anew in each run; a failure prints a blob that reproduces
it. "long": `--hypothesis-profile=long`, for a night.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings

COMMON: dict[str, Any] = {
    "deadline": None,  # the first call of a kernel compiles it
    "print_blob": True,
    "derandomize": False,
    # The fixture `device` is only a name, so all examples of a test may share it.
    "suppress_health_check": [
        HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture,
    ],
}  # fmt: skip
settings.register_profile("ci", max_examples=3, database=None, **COMMON)
settings.register_profile("long", max_examples=300, **COMMON)


def pytest_configure(config: pytest.Config) -> None:
    """Use the profile "ci" unless the command line names another."""
    if not config.getoption("--hypothesis-profile", default=None):
        settings.load_profile("ci")
