"""The program that type checkers check as a user's runs, too; pyright, if installed, accepts it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import user_program


def test_it_runs() -> None:
    user_program.main()


def test_pyright_accepts_it() -> None:
    """In strict mode."""
    pytest.importorskip("pyright", reason="pyright is not installed")
    found = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", sys.executable,
         str(Path(user_program.__file__))], capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout
