"""`explain`: one page, offline, that leads from a user's own model to machine code and back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minigrad.collective import Group


def explain(
    step: Any, *args: Any, out: str | os.PathLike[str] | None = "explain.html", model: Any = None,
    rounds: int = 3, values: bool = False, ranks: Group | None = None,
) -> Path | None:  # fmt: skip
    """Run a step on CPU devices and write a page that explains it; gives the page's place.

    step: a function, captured (`@jit`) or not, called as step(*args), which does the same in every
    call, and computes what it gives (tensors, also in lists and dicts) or realizes; or a lazy
    Tensor, of whose nodes no lines are known. It is run 2·rounds + 3 times, or
    a few more (up to three times the rounds, as long as kernels' times add up to 5 % more or less
    than the step takes when nobody looks): a training goes on by so many steps. model: what the
    page calls modules, any object that holds tensors; those that the function reads, if not given.

    values: show what each kernel wrote, too (range, histogram, first numbers), and where a NaN or
    an infinite number first came from: one more step, which takes longer.

    Tensors may be on a mesh of CPU devices. Where several ranks run the step together, all of them
    call this with the same arguments but `out`, which is None for all but one, and `ranks`, the
    group they are in (`rank.world`; on a mesh it is known): the page has rows for all of them.

    The page has, for each kernel, the lines and the module that made it, its nodes, why it is one,
    its loops after each transformation, LLVM IR, assembly, time, and share of what the machine can
    do. Raises DeviceError where the step does not run on a CPU device, MinigradError where it runs
    other programs each time, or nothing.
    """
    from minigrad.explain import page  # who never asks need not load the compiler for it

    return page.write(step, args, None if out is None else Path(out), model, rounds, values, ranks)
