"""`explain`: one page, offline, that leads from a user's own model to machine code and back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def explain(
    step: Any, *args: Any, out: str | os.PathLike[str] | None = "explain.html", model: Any = None,
    rounds: int = 3,
) -> Path | None:  # fmt: skip
    """Run a step on a CPU device and write a page that explains it; gives the page's place.

    step: a function, captured (`@jit`) or not, called as step(*args), which does the same in every
    call; or a lazy Tensor, of whose nodes no lines are known. It is run 2·rounds + 3 times, or one
    more: a training goes on by so many steps. model: what the page calls modules, any object that
    holds tensors; those that the function reads, if not given. out: None where another rank of a
    parallel step writes the page; then the step is only run as often as there.

    The page has, for each kernel, the lines and the module that made it, its nodes, why it is one,
    its loops after each transformation, LLVM IR, assembly, time, and share of what the machine can
    do. Raises DeviceError where the step does not run on a CPU device, MinigradError where it runs
    other programs each time.
    """
    from minigrad.explain import page, watch  # who never asks need not load the compiler for it

    if out is None:
        for _ in range(watch.steps(step, rounds)):
            step(*args)
        return None
    return page.write(step, args, Path(out), model, rounds)
