"""The child of a fork has no OpenCL threads, and must not wait for them."""

from __future__ import annotations

import os

import pytest
from child import said

SCRIPT = """
import os, signal, sys
from minigrad import Device, Tensor

name, host = sys.argv[1:]
x = Tensor([1.0, 2.0], device=name).realize()
lazy = x * 2 + 1
assert (x * 3).tolist() == [3.0, 6.0]
child = os.fork()
if child == 0:
    signal.alarm(60)  # ends a child that hangs
    refused = 0
    for use in (x.tolist, lazy.tolist, lambda: Tensor([1.0], device=name).realize(),
                lambda: Device[name + ":1"], lambda: (x.to(host) + 1).tolist()):
        try:
            use()
        except Exception as error:
            refused += "before this process was forked" in str(error)
    works = (Tensor([1.0, 2.0], device=host) + 1).tolist() == [2.0, 3.0]
    os._exit(10 * refused + works)
_, status = os.waitpid(child, 0)
assert lazy.tolist() == [3.0, 5.0]
print(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is not available")
def test_the_child_is_told_at_once(first: str, cpu: str) -> None:
    assert said("-c", SCRIPT, first, cpu) == "51\n"
