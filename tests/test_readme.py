"""What the README shows runs, and its two commands are where `.ci/run` looks for them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parent.parent / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
EXAMPLES = [block for block in BLOCKS if block.startswith(("from ", "import "))]  # no excerpts
COMMANDS = dict(re.findall(r"<!-- command (\d) -->\n```sh\n(.*?)```", README, re.DOTALL))


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_runs(number: int, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-P", "-c", EXAMPLES[number]],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert not result.stderr
    right = re.search(r"^right: (\S+)$", result.stdout, re.MULTILINE)
    assert number > 0 or (right is not None and float(right[1]) > 0.9), result.stdout


def test_the_first_example_is_short() -> None:
    assert len([line for line in EXAMPLES[0].splitlines() if line.strip()]) <= 20


def test_the_commands() -> None:
    assert set(COMMANDS) == {"1", "2"}
    assert COMMANDS["1"].rstrip().endswith("python models/gpt.py")
    assert COMMANDS["2"].rstrip().endswith("python tests")
