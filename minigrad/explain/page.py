"""The page: everything that was observed of a step, as one HTML file with its data."""

from __future__ import annotations

import base64
import html
import json
import os
import re
import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from minigrad.collective import Group
from minigrad.device import Buffer, Device
from minigrad.errors import MinigradError
from minigrad.explain import watch
from minigrad.explain.modules import Tree, models_of
from minigrad.explain.origins import Origin, Origins, Place
from minigrad.explain.story import Codes, Story
from minigrad.explain.values import First, Values
from minigrad.graph.canonical import Canonical
from minigrad.graph.node import Op
from minigrad.runtimes.cpu_limits import limits
from minigrad.runtimes.host import described
from minigrad.settings import flag, say
from minigrad.tensor import Tensor

HERE = Path(__file__).resolve().parent
AROUND = 2  # lines of a program shown before and after those that created something
MOST_HELD = 12  # largest items in memory at the peak that are listed
TEXTS = ("steps", "nest", "ir", "assembly")


def write(
    step: Any, args: Sequence[Any], out: Path | None, model: Any, rounds: int, values: bool,
    ranks: Group | None,
) -> Path | None:  # fmt: skip
    """See `minigrad.explain`."""
    if flag("GUARD"):
        raise MinigradError("explain: MINIGRAD_GUARD=1 changes the kernels' times; run it without")
    tree = Tree(models_of(step) if model is None else {"model": model})
    names = dict(tree.tensors)
    for number, argument in enumerate(args):
        if isinstance(argument, Tensor) and argument.realize().raw.op is Op.BUFFER:
            names.setdefault(argument.raw.arg, (f"argument {number}", ""))
    origins = Origins(tree.names, tree.classes)
    codes, told = Codes(), dict[int, Story]()  # by the id of a call; loops make calls again

    def tell(call: Canonical) -> Story:
        if id(call) not in told:
            told[id(call)] = Story(call, origins, names, codes)
        return told[id(call)]

    look = Values(tell) if values else None
    seen = watch.run(step, args, origins, rounds, ranks, look, speaks=out is not None)
    if out is None:
        return None
    stories = [tell(call) for call, _ in seen.calls]
    if abs(seen.apart) > watch.APART:
        say(f"explain: the page's times add up to {1 + seen.apart:.0%} of the step's time without "
            "measurement: kernels were measured one by one, or the machine was busy")  # fmt: skip
    what = "a tensor" if isinstance(step, Tensor) else type(step).__name__
    what = getattr(step, "__name__", what).replace("<lambda>", "a function")
    data = Data(what, seen, stories, codes, tree, look).as_json()
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    style, script = ((HERE / name).read_text("utf-8") for name in ("page.css", "page.js"))
    filled = {
        "title": html.escape(f"{what}, explained"), "style": style, "script": script,
        "data": text.replace("<", "\\u003c"),  # so that nothing ends the script
    }  # fmt: skip
    frame = (HERE / "page.html").read_text("utf-8")
    out.write_text(re.sub(r"\{\{(\w+)\}\}", lambda found: filled[found[1]], frame), "utf-8")
    return out


class Data:
    """The data of the page."""

    def __init__(
        self, what: str, seen: watch.Step, stories: Sequence[Story], codes: Codes, tree: Tree,
        look: Values | None,
    ) -> None:  # fmt: skip
        self.what, self.seen, self.stories, self.codes, self.tree = what, seen, stories, codes, tree
        self.look = look
        self.stacks: dict[tuple[Place, ...], int] = {}
        self.numbers = {story: place for place, story in enumerate(dict.fromkeys(stories))}

    def as_json(self) -> dict[str, Any]:
        """All of the data, for JSON."""
        kernels = [
            self._kernel(story, timed.parts[0], number, row)
            for story, (timed, rows) in zip(self.stories, self.seen.round.programs, strict=True)
            for number, row in enumerate(_checked(rows[0], story))
        ]  # fmt: skip
        firsts = [self._first(first) for first in self.look.firsts.values()] if self.look else []
        if self.look:
            for kernel, summaries in zip(kernels, self.look.kernels, strict=True):
                kernel["values"] = summaries
        files = sorted({place[0] for stack in self.stacks for place in stack})
        number = {name: place for place, name in enumerate(files)}
        return {
            "what": self.what, "when": time.strftime("%-d %B %Y, %H:%M"), "machine": described(),
            "steps": self.seen.steps, "seconds": self.seen.round.seconds,
            "plain": sorted(self.seen.plain), "apart": self.seen.apart, "kernels": kernels,
            "looked": self.look is not None, "firsts": firsts, "ranks": self._ranks(),
            "programs": [{"passes": story.passes} for story in self.numbers],
            "codes": [{name: _packed(code[name]) for name in TEXTS} for code in self.codes.all],
            "modules": self.tree.rows, "memory": _memory(self.stories),
            "stacks": [[[number[f], line, name] for f, line, name in s] for s in self.stacks],
            "files": [_source(name, {place[1] for stack in self.stacks for place in stack
                                     if place[0] == name}) for name in files],
        }  # fmt: skip

    def _ranks(self) -> list[dict[str, Any]]:
        """The kernels of each rank, if there are several: start and seconds.

        Also the labels, if they are not those of this rank's kernels.
        """
        if len(self.seen.ranks) < 2:
            return []
        own = [row[0] for row in self.seen.round.by_device()[0]]
        rows = []
        for rank in self.seen.ranks:
            same = [label for label, *_ in rank] == own
            rows.append({"same": same, "kernels": [
                [round(start, 7), round(stop - start, 7), *([] if same else [label])]
                for label, start, stop in rank
            ]})  # fmt: skip
        return rows

    def _first(self, first: First) -> dict[str, Any]:
        stacks = [self._stack(origin) for origin in first.origins]
        told = {"fault": first.fault, "kernel": first.kernel, "what": first.what}
        return {**told, "how": first.how, "node": first.node, "stacks": list(dict.fromkeys(stacks))}

    def _kernel(
        self, story: Story, program: Any, number: int, row: tuple[str, float, float]
    ) -> dict[str, Any]:
        told = story.kernels[number]
        _, start, stop = row
        seconds = stop - start
        code = self.codes.all[told["code"]] if told["code"] >= 0 else {}
        best = limits(program.pool.threads)
        computing = code.get("vectors", 0) / best.vectors
        moving = best.moving(code["traffic"]) if code.get("traffic") else 0.0
        shares = told["shares"]
        nodes = [[text, self._stack(at), at.module, at.phase] for text, at in told["nodes"]]
        same = ("label", "kind", "code", "plan", "why", "writes", "needs")
        return {
            **{name: told[name] for name in same}, "program": self.numbers[story], "number": number,
            "start": start, "seconds": seconds, "threads": program.threads_of(number),
            "operations": code.get("operations", 0), "bytes": code.get("traffic", told["bytes"]),
            "limit": max(computing, moving) / max(seconds, 1e-9),
            "bound": "arithmetic" if computing > moving else "memory",
            "modules": _shares(shares, lambda origin: origin.module),
            "phases": _shares(shares, lambda origin: origin.phase),
            "stacks": _shares(shares, self._stack),
            "nodes": _packed(json.dumps(nodes, ensure_ascii=False)),
        }  # fmt: skip

    def _stack(self, origin: Origin) -> int:
        return self.stacks.setdefault(origin.stack, len(self.stacks))


def _shares(weights: Mapping[Origin, int], key: Callable[[Origin], Any]) -> list[list[Any]]:
    """[key of origins, its share of all weights], largest first."""
    found: Counter[Any] = Counter()
    for origin, weight in weights.items():
        if weight:
            found[key(origin)] += weight
    return [[what, round(weight / found.total(), 4)] for what, weight in found.most_common()]


def _checked(rows: Sequence[tuple[str, float, float]], story: Story) -> Any:
    """The times of a program's kernels, which must be the kernels of its story."""
    expected = [kernel["label"] for kernel in story.kernels]
    assert [row[0] for row in rows] == expected, "the compiler took another way than explain"
    return rows


def _packed(text: str) -> str:
    """Compress text for `inflated` in page.js."""
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def _source(name: str, wanted: set[int]) -> dict[str, Any]:
    """The lines of a file that created something, and lines around them: [[first, lines], …]."""
    try:
        lines = Path(name).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    shown = sorted({line for w in wanted for line in range(w - AROUND, w + AROUND + 1)
                    if 1 <= line <= len(lines)})  # fmt: skip
    pieces: list[tuple[int, list[str]]] = []
    for line in shown:
        if not pieces or line != pieces[-1][0] + len(pieces[-1][1]):
            pieces.append((line, []))
        pieces[-1][1].append(lines[line - 1])
    short = os.path.relpath(name)
    return {"name": name if short.startswith("..") else short, "pieces": pieces}


def _bytes(buffer: Buffer) -> int:
    """The bytes of a buffer on one device."""
    return buffer.memory.parts[0].nbytes if buffer.device in Device.meshes else buffer.nbytes


def _memory(stories: Sequence[Story]) -> dict[str, Any]:
    """Bytes held at each kernel, and the owners at the peak.

    fixed: buffers with names. passed: other buffers, from the first program that uses them to the
    last. The rest is passed between kernels of one program.
    """
    starts = [*accumulate((len(story.kernels) for story in stories), initial=0)]
    steps = [0] * max(starts[-1], 1)
    held: list[dict[str, Any]] = []
    fixed: Counter[str] = Counter()
    known: dict[Buffer, list[int]] = {}
    for place, story in enumerate(stories):
        for one in story.held:
            held.append({**one, "first": starts[place] + one["first"],
                         "last": starts[place] + one["last"]})  # fmt: skip
        for buffer in story.call.inputs:
            known.setdefault(buffer, [place, place])[1] = place
    for buffer, (first, last) in known.items():
        name = stories[0].names.get(buffer)
        if name is not None:
            kind = name[0] if name[0].startswith("argument") else "model"
            fixed[kind if kind != "model" or name[1] else "optimizer"] += _bytes(buffer)
        else:
            held.append({"bytes": _bytes(buffer), "first": starts[first],
                         "last": max(starts[last + 1] - 1, starts[first]), "module": "",
                         "shape": f"{buffer.size} × {buffer.dtype.name}"})  # fmt: skip
    for one in held:
        for step in range(one["first"], one["last"] + 1):
            steps[step] += one["bytes"]
    peak = max(range(len(steps)), key=steps.__getitem__)
    there = [one for one in held if one["first"] <= peak <= one["last"]]
    there.sort(key=lambda one: -one["bytes"])
    return {"steps": steps, "fixed": dict(fixed), "peak": peak, "held": there[:MOST_HELD],
            "others": sum(one["bytes"] for one in there[MOST_HELD:])}  # fmt: skip
