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
    """Run a step on CPU devices and write a page that explains it; returns the path of the page.

    step: a function, captured (`@jit`) or not, called as step(*args). It must do the same in every
    call, and return (tensors, also in lists and dicts) or realize what it computes. Or a lazy
    Tensor; the lines that created its nodes are then unknown. A function runs 2·rounds + 3 times,
    or up to three times as many rounds while the sum of the kernels' times differs by more than 5 %
    from the step's normal time: training continues by that many steps. model: the object that holds
    the tensors, for names of modules; by default those that the function reads. values: also show
    what each kernel wrote (range, histogram, first numbers), and where a NaN or infinite number
    first came from; this takes one more, slower step.

    Tensors may be on a mesh of CPU devices. If several ranks run the step together, all of them
    call this with the same arguments, except `out`, which is None for all but one, and with
    `ranks`, their group (`rank.world`; on a mesh it is known). The page then has rows for all of
    them.

    For each kernel, the page has the lines and the module that created it, its nodes, why it is one
    kernel, its loops after each transformation, LLVM IR, assembly, time, and share of the machine's
    limit. Raises DeviceError if the step does not run on a CPU device, MinigradError if it runs
    other programs each time, or none.
    """
    from minigrad.explain import page  # who never asks need not load the compiler for it

    return page.write(step, args, None if out is None else Path(out), model, rounds, values, ranks)
