"""Which tests were skipped and why; a second run repeats those that lacked a package.

MINIGRAD_TEST_SKIPPED names a file into which pytest writes a line of JSON for each skipped test or
file, (node, reason). `python tests skipped` runs those that did not lack hardware, and fails if one
of them still lacks something else.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

VARIABLE = "MINIGRAD_TEST_SKIPPED"
# Phrases in reasons that mean that the machine, not what is installed on it, lacks something.
HARDWARE = (
    "the host has no ",  # an instruction set
    "this process may not use matrix registers",
    "needs an x86 processor",
    "only one processor is available",
    "the OpenCL device cannot be divided",
    "no network namespaces here: ",
    "the programs of others are missing",  # programs/README.md
)  # fmt: skip


def lacks_hardware(reason: str) -> bool:
    """Whether no package could make the test run."""
    return any(phrase in reason for phrase in HARDWARE)


def read(file: Path) -> list[tuple[str, str]]:
    """The (node, reason) of every test or file that a run skipped."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [(node, reason) for node, reason in map(json.loads, lines)]


class Recorder:
    """A pytest plugin that records skips as they happen."""

    def __init__(self, file: str) -> None:
        self.file = file

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail") and report.nodeid:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else "?"
            with open(self.file, "a", encoding="utf-8") as file:
                file.write(json.dumps([report.nodeid, reason.removeprefix("Skipped: ")]) + "\n")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called after a test's setup, call or teardown."""
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Called after a file was imported; one that lacks a package is skipped as a whole."""
        self._note(report)


def register(config: pytest.Config) -> None:
    """Record this run if the environment says so."""
    file = os.environ.get(VARIABLE)
    if file:
        config.pluginmanager.register(Recorder(file), "skips")
