"""Schedules as text."""

from __future__ import annotations

from minigrad.schedule.schedule import Kernel, Schedule


def label(kernel: Kernel) -> str:
    """A kernel in a few words: its operations and shapes."""
    parts = []
    exchange = kernel.stages[0].exchange
    if exchange is not None:
        arg = exchange.collective
        how = "" if arg.how == "-" else f" of the {arg.how}"
        return f"{kernel.kind}: {arg.kind}{how} in {arg.group}, {kernel.stages[0].size}"
    for stage in kernel.stages:
        shape = "×".join(str(axis.extent) for axis in stage.axes) or "1"
        reduced = "×".join(str(axis.extent) for axis in stage.reduced)
        what = f"{stage.op.value} {reduced} → {shape}" if stage.op is not None else shape
        parts.append(what)
    return f"{kernel.kind}: " + "; ".join(parts[:4]) + ("; …" if len(parts) > 4 else "")


def show(plan: Schedule) -> str:
    """All kernels, their stages, and where each value is."""
    lines = [f"schedule: {len(plan.kernels)} kernels, arena of {plan.arena_bytes:,} bytes"]
    for number, kernel in enumerate(plan.kernels):
        lines.append(f"kernel {number} ({kernel.kind}, {kernel.rows} rows)")
        for stage in kernel.stages:
            if stage.exchange is not None:
                sent = ", ".join(array.name for array in stage.exchange.sent)
                lines.append(f"  {stage.array.name} = {label(kernel)} of {sent}")
                continue
            place = "stored" if stage.array in kernel.stored else "inside the kernel"
            place = "in place" if stage.in_place else place
            axes = ", ".join(f"{a.variable!r}<{a.extent}" for a in stage.axes)
            over = ", ".join(f"{a.variable!r}<{a.extent}" for a in stage.reduced)
            head = f"{stage.op.value} over {over} of " if stage.op is not None else ""
            lines.append(f"  {stage.array.name}[{axes}] = {head}{stage.body!r}  ({place})")
    return "\n".join(lines)
