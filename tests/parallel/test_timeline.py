"""Timelines of ranks: a file for trace viewers, and lines of text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from child import ended, said

from minigrad import program
from minigrad.models import gpt_commands
from minigrad.models.parallel import Rank, run, timeline

from . import cases
from .ranks import LIMIT, start

pytestmark = pytest.mark.usefixtures("brief")
TRACED = """
import sys
from minigrad.models.parallel import run
from parallel import cases
run(cases.captured, 2, trace=sys.argv[1])
"""


def traced(kind: str, path: Path) -> list[dict[str, Any]]:
    """The events of a run of two ranks."""
    if kind == "local":
        run(cases.captured, 2, trace=path)
    else:
        script = path.with_name("traced.py")
        script.write_text(TRACED, "utf-8")
        process = start([str(script), str(path)], 2)
        out, errors = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, out + errors
    trace = json.loads(path.read_text("utf-8"))
    assert trace["displayTimeUnit"] == "ms"
    events: list[dict[str, Any]] = trace["traceEvents"]
    return events


@pytest.mark.parametrize("kind", ["local", "mpi"])
def test_every_rank_has_sends_additions_and_kernels(kind: str, tmp_path: Path) -> None:
    events = traced(kind, tmp_path / "trace.json")
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    for rank in range(2):
        own = [e for e in events if e["pid"] == rank and e["ph"] != "M"]
        rows = {e["name"]: names[rank, e["tid"]] for e in own}
        expected = {"send": "exchanges", "add": "exchanges", "wait": "exchanges",
                    "all_reduce": "exchanges", "permute": "exchanges"}  # fmt: skip
        # a thread that waits for an exchange may carry it out, in the program's own row
        assert expected.keys() <= rows.keys()
        assert all(rows[name] == expected[name] for name in ("send", "add", "wait"))
        kernels = [e for e in own if e["args"].get("kind") == "kernel"]
        assert kernels and all(names[rank, e["tid"]] == "program" for e in kernels)
        # 5 steps; a ring of two sends half of 3 numbers twice, a permutation sends all 3
        assert sum(e["args"]["bytes"] for e in own if e["name"] == "send") == 5 * (12 + 12)
        assert all(e["ts"] >= 0 and e.get("dur", 1) > 0 for e in own)
        assert {e["ph"] for e in own} == {"X", "i"}


TRAINING = ("train --layers 2 --heads 2 --dim 16 --context 8 --batch 4 --steps 3 --seed 1 "
            "--overwrite --checkpoint g.st --text text.txt --trace trace.json")  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "flags"),
    [("local", "--tp 2 --dp 2"), ("mpi", "--pp 2 --schedule zb --micro 2")],
)  # fmt: skip
def test_meshes_and_pipelines_are_traced(
    kind: str, flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("To be, or not to be, that is the question. " * 20, "utf-8")
    words = [*TRAINING.split(), *flags.split()]
    size = 4 if "--dp" in flags else 2
    if kind == "local":
        gpt_commands.main(words)
        assert timeline.of_rank(0).zero is None  # later events are not recorded
    else:
        process = start(["-m", "minigrad.models.gpt", *words], size)
        out, errors = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, out + errors
    ranks = timeline.read_trace(Path("trace.json"))
    assert [rank for rank, _ in ranks] == list(range(size))
    first, last = timeline.last_step(ranks) or (0.0, 0.0)
    for rank, events in ranks:
        steps = [event for event in events if event["name"] == "step"]
        assert len(steps) == 3 and steps[-1]["stop"] <= last
        kinds = {event["about"].get("kind", event["name"]) for event in events
                 if first <= event["start"] < last}  # fmt: skip
        assert kinds >= ({"kernel", "blocked", "all_reduce", "wait"} if "--tp" in flags
                         else {"kernel", "task"})  # fmt: skip
        tasks = [event["name"] for event in events
                 if "task" in event["about"] and steps[-1]["start"] <= event["start"] < last]
        if "--pp" in flags:
            back = ["b0", "b1", "w0", "w1"] if rank else ["B0", "B1"]
            assert sorted(tasks) == sorted([*back, "F0", "F1"])
    shown, *lines = said("-m", "minigrad.models.parallel", "trace.json").splitlines()
    assert shown.strip().startswith(f"{1e3 * first:.1f} … {1e3 * last:.1f} ms")
    assert len(lines) == (2 * size if "--tp" in flags else size)


def test_a_pipeline_as_text() -> None:
    """The last step that all ranks have done, with its tasks; tasks that began earlier are clipped.
    """
    def event(name: str, start: float, stop: float, *task: Any) -> dict[str, Any]:
        about = {"kind": "task", "task": task} if task else {}
        return {"name": name, "row": "program", "start": start, "stop": stop, "about": about}

    ranks = [
        (0, [event("step", 0.0, 1.0), event("step", 1.0, 2.0), event("step", 2.0, 3.0),
             event("F0", 0.0, 0.5, "forward", 0, 0), event("F0", 0.9, 1.5, "forward", 0, 0),
             event("b1", 1.5, 2.0, "input", 0, 1)]),
        (1, [event("step", 0.0, 1.0), event("step", 1.1, 2.1),
             event("w11", 1.6, 2.1, "weights", 1, 11)]),
    ]  # fmt: skip
    assert timeline.last_step(ranks) == (1.0, 2.1)
    assert timeline.last_step([*ranks, (2, [])]) is None
    _, first, second = timeline.as_text(ranks, 1.0, 2.1, 22).splitlines()
    assert first == "rank 0  ========= b1-------   "
    assert second == "rank 1  " + " " * 12 + "wB------- "


def test_nothing_is_recorded_unless_asked() -> None:
    def events(rank: Rank) -> int:
        cases.captured(rank)
        return len(rank.timeline.events)

    assert run(events, 2) == [0, 0]
    assert program.timeline.record is None


def test_a_timeline_as_text(tmp_path: Path) -> None:
    def event(row: str, name: str, start: float, stop: float, **about: str) -> dict[str, Any]:
        return {"name": name, "row": row, "start": start, "stop": stop, "about": about}

    ranks = [
        (0, [event("program", "gelu", 0.0, 0.5, kind="kernel"),
             event("program", "blocked", 0.5, 1.0),
             event("exchanges", "wait", 0.5, 0.7), event("exchanges", "add", 0.7, 1.0),
             event("exchanges", "send", 0.7, 0.7)]),
        (1, [event("program", "gelu", 0.2, 1.0, kind="kernel")]),
    ]  # fmt: skip
    path = tmp_path / "trace.json"
    timeline.write_trace(path, ranks)
    text = [
        "rank 0  #####.....",
        "             ~~+++",
        "rank 1    ########",
        "                  ",
    ]
    first, *lines = timeline.as_text(timeline.read_trace(path), 0.0, 1.0, 10).splitlines()
    assert lines == text and "100 ms a column" in first
    command = ["-m", "minigrad.models.parallel", str(path)]
    for times in (["0", "1000"], []):
        done = ended(*command, *times)
        assert done.stdout.splitlines()[1].startswith("rank 0  " + "#" * 40)
        assert (done.returncode, done.stderr) == (0, "")
    for times in (["2000", "3000"], ["500", "400"]):
        done = ended(*command, *times)
        assert done.returncode == 1 and "covers 0 to 1000 ms" in done.stderr
        assert "Traceback" not in done.stderr
    path.write_text("[]")
    done = ended(*command)
    assert done.returncode == 1 and "not a timeline written by --trace" in done.stderr
    path.unlink()
    done = ended(*command)
    assert done.returncode == 1 and f"cannot read {path}: No such file" in done.stderr
