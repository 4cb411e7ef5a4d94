"""Python in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

LIMIT = 300  # seconds after which it counts as stuck; on an idle machine none takes a tenth of that


def environment(**changes: str | None) -> dict[str, str]:
    """This process's environment with some changes; None removes a variable."""
    return {k: v for k, v in {**os.environ, **changes}.items() if v is not None}


def ended(
    *arguments: str | Path, cwd: Path | None = None, preexec_fn: Callable[[], object] | None = None,
    **changes: str | None,
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """Run the interpreter with these arguments to its end: its status and what it printed.

    changes: of the environment; None removes a variable.
    """
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment(**changes), preexec_fn=preexec_fn,
        capture_output=True, text=True, timeout=LIMIT,
    )  # fmt: skip


def said(*arguments: str | Path, cwd: Path | None = None, **changes: str | None) -> str:
    """What such a process printed; its status must be 0."""
    done = ended(*arguments, cwd=cwd, **changes)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
