"""Loop nests of a few programs, as text: schedule/golden.py rewrites the files."""

from __future__ import annotations

import pytest
from schedule.golden import mismatch, path_of
from schedule.programs import PRINTED


@pytest.mark.parametrize("name", PRINTED)
def test_loops(name: str) -> None:
    assert mismatch("loops", name) is None, mismatch("loops", name)


def test_no_file_is_left_over() -> None:
    names = {path.stem for path in path_of("loops", "x").parent.glob("*")}
    assert names == set(PRINTED)
