"""Skips are recorded, and only missing hardware remains a valid reason."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import skips

TESTS = """
import pytest

def test_that_runs():
    pass

@pytest.mark.skipif(True, reason="only one processor is available")
def test_of_two_processors():
    pass

@pytest.mark.parametrize("a", ["x y", "é"])
def test_beside_torch(a):
    pytest.skip("PyTorch is not installed")

@pytest.mark.xfail
def test_that_cannot_pass():
    raise AssertionError
"""


def test_skips_are_written_down_with_their_reasons(tmp_path: Path) -> None:
    """Recorded are a test, a parameter of one, and a whole file; tests that pass, or are expected
    to fail, are not.
    """
    (tmp_path / "conftest.py").write_text(
        "import skips\n\ndef pytest_configure(config):\n    skips.register(config)\n"
    )
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_whole.py").write_text(
        "import pytest\npytest.importorskip('no_such_package', reason='no such package')\n"
    )
    file = tmp_path / "skipped"
    environment = {**os.environ, skips.VARIABLE: str(file),
                   "PYTHONPATH": str(Path(skips.__file__).parent)}  # fmt: skip
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    found = {node.rpartition("::")[2]: reason for node, reason in skips.read(file)}
    assert found.pop("test_of_two_processors") == "only one processor is available"
    assert found.pop("test_whole.py") == "no such package"
    assert set(found.values()) == {"PyTorch is not installed"} and len(found) == 2


def test_only_hardware_may_be_missing() -> None:
    assert skips.lacks_hardware("the host has no amx-bf16: code for x does not run here")
    assert not skips.lacks_hardware("PyTorch is not installed")
    assert not skips.lacks_hardware("the package tokenizers is missing")


def test_a_file_that_no_run_has_written_is_empty(tmp_path: Path) -> None:
    assert skips.read(tmp_path / "none") == []
