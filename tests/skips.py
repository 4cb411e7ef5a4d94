"""Which tests were skipped and why: a second run takes up what packages, then there, allow.

MINIGRAD_TEST_SKIPPED names a file into which pytest writes a line of JSON for each skipped test or
file, (node, reason). `python tests skipped` runs those that lacked no hardware, and fails where one
of them lacks anything else.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

VARIABLE = "MINIGRAD_TEST_SKIPPED"
# What reasons say where the machine, and not what is installed on it, lacks something.
HARDWARE = (
    "the host has no ",  # an instruction set
    "this process may not use matrix registers",
    "an x86 matter", "names of x86 ",
    "there is only one processor for us",
    "the OpenCL device cannot be divided",
    "no network namespaces here: ",
    "programs of others are not at hand",  # programs/README.md
)  # fmt: skip


def lacks_hardware(reason: str) -> bool:
    """Whether no package could have let the test run."""
    return any(phrase in reason for phrase in HARDWARE)


def read(file: Path) -> list[tuple[str, str]]:
    """The (node, reason) of every test or file that a run skipped."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [(node, reason) for node, reason in map(json.loads, lines)]


class Recorder:
    """A plugin of pytest that writes down what is skipped, as it happens."""

    def __init__(self, file: str) -> None:
        self.file = file

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail") and report.nodeid:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else "?"
            with open(self.file, "a", encoding="utf-8") as file:
                file.write(json.dumps([report.nodeid, reason.removeprefix("Skipped: ")]) + "\n")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test's setup, call or teardown has ended."""
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file has been imported; one that lacks a package is skipped whole."""
        self._note(report)


def register(config: pytest.Config) -> None:
    """Record this run where the environment says so."""
    file = os.environ.get(VARIABLE)
    if file:
        config.pluginmanager.register(Recorder(file), "skips")
