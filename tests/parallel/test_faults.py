"""One rank's fault ends all ranks, with a sentence that names it, and leaves nothing running."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from devices import devices_of_ranks

from minigrad import Tensor
from minigrad.models.errors import InputError
from minigrad.models.interrupt import Stopped
from minigrad.models.parallel import Rank, RankError, all_reduce, faults, launch, layouts, run

from .cases import captured
from .faulty import program
from .ranks import LIMIT, start

FAULTY = str(Path(__file__).with_name("faulty.py"))
MODELS = Path(__file__).resolve().parents[2] / "models"


def threads_of_ranks() -> set[threading.Thread]:
    """The threads of parallel runs, also those left behind; not those of meshes."""
    names = ("minigrad rank", "minigrad exchanges", "minigrad watch")
    return {thread for thread in threading.enumerate() if thread.name.startswith(names)}


@pytest.mark.parametrize("faulty", [0, 2])
def test_a_thread_that_raises_ends_all(faulty: int) -> None:
    expected: type[Exception] = ValueError if faulty == 0 else RankError
    before = threads_of_ranks()
    with pytest.raises(expected, match="the well is dry") as caught:
        run(lambda rank: program(rank, "raise", faulty), 3)
    if faulty:
        assert "rank 2 failed: ValueError" in str(caught.value)
    assert threads_of_ranks() <= before
    assert run(lambda rank: program(rank, "raise", 9), 3) == [12.0] * 3  # the next run works


def test_an_error_of_all_ranks_is_that_of_rank_0() -> None:
    """Also if another rank raises it first."""
    raised = threading.Event()

    def program(rank: Rank) -> None:
        if rank.number == 0:
            assert raised.wait(60)
            with pytest.raises(RankError):
                all_reduce(Tensor([1.0]), rank.world).realize()
        try:
            raise InputError("--sp 3 does not divide 8")
        finally:
            raised.set()

    with pytest.raises(InputError, match="--sp 3 does not divide 8"):
        run(program, 2)


def test_what_a_failed_run_leaves_does_not_exchange() -> None:
    """Lazy exchanges that an exception's frames keep alive are not realized by a later capture."""
    kept: list[Tensor] = []

    def failing(rank: Rank) -> None:
        kept.append(all_reduce(Tensor([1.0 + rank.number]), rank.world))
        if rank.number == 1:
            raise ValueError("the well is dry")

    with pytest.raises(RankError):
        run(failing, 3)
    before = run(captured, 3)
    assert kept and run(captured, 3) == before


@pytest.mark.parametrize("faulty", [0, 1])
def test_a_thread_that_hangs_ends_all(faulty: int) -> None:
    before = threads_of_ranks()
    with pytest.raises(RankError, match=f"rank {faulty} hangs: it made 2 exchanges"):
        run(lambda rank: program(rank, "hang", faulty), 3, patience=0.5)
    assert threads_of_ranks() <= before


def test_a_thread_that_cannot_be_ended_does_not_disturb_the_next_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The thread sleeps outside of Python, and wakes up in the middle of the next run."""
    monkeypatch.setattr(launch, "GIVEN_UP", 0.1)
    asleep = threading.Lock()
    asleep.acquire()
    sleepers: list[threading.Thread] = []

    def hanging(rank: Rank) -> None:
        unfinished = all_reduce(Tensor([1.0]), rank.world)
        if rank.number == 1:
            sleepers.append(threading.current_thread())
            asleep.acquire()
        unfinished.realize()

    def waking(rank: Rank) -> float:
        kept = all_reduce(Tensor([2.0]), rank.world)  # the sleeper's end must not change it
        if rank.number == 1:
            asleep.release()
            sleepers[0].join()
        return kept.item() + all_reduce(Tensor([1.0]), rank.world).item()

    with pytest.raises(RankError, match="rank 1 hangs"):
        run(hanging, 3, patience=0.2)
    assert run(lambda rank: program(rank, "none", 9), 3) == [12.0] * 3
    assert run(waking, 3) == [9.0] * 3
    assert run(lambda rank: program(rank, "none", 9), 3) == [12.0] * 3


def test_a_rank_that_ends_too_early_is_named() -> None:
    def uneven(rank: Rank) -> None:
        for _ in range(1 + rank.number):
            all_reduce(Tensor([1.0]), rank.world).realize()

    with pytest.raises(RankError, match="rank 0 has ended: it made 1 exchanges"):
        run(uneven, 2, patience=0.5)


def test_ranks_that_wait_for_different_exchanges() -> None:
    """No rank hangs; exchanges of two groups with the same ranks are kept apart."""

    def in_order(rank: Rank, way: int = 1) -> None:
        for group in (rank.dp, rank.world)[::way]:
            all_reduce(Tensor([1.0]), group).realize()

    def crossed(rank: Rank) -> None:
        in_order(rank, 1 - 2 * rank.number)

    run(in_order, 2)  # compiles; a busy machine would take longer for that than the patience below
    sentence = r"waited for . s \(rank 0 after 1, rank 1 after 1 exchanges\): all ranks must"
    with pytest.raises(RankError, match=sentence):
        run(crossed, 2, patience=0.5)


def test_a_pause_of_all_ranks_blames_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """After Ctrl-Z and fg, or a suspended job, a late tick of the watch blames no rank."""

    class Time:
        now = 100.0

        def monotonic(self) -> float:
            return self.now

    time = Time()
    monkeypatch.setattr(faults, "time", time)
    clock = faults.Clock()
    waiting, busy = faults.Activity(clock), faults.Activity(clock)
    waiting.enter("waiting")

    def blamed_after(*pauses: float) -> str | None:
        for pause in pauses:
            time.now += pause
            clock.tick(0.5)
        signs = {0: waiting.sign(), 1: busy.sign()}
        return faults.culprit(signs, {0: clock.seconds}, patience=5.0)

    assert blamed_after(0.5, 3600.0, 0.5, 86400.0, 0.6, 0.4) is None
    assert clock.seconds == pytest.approx(4.0)
    assert "no sign of life for 6 s" in str(blamed_after(*[0.5] * 3))
    assert "rank 1 hangs" in str(faults.culprit({0: waiting.sign(), 1: busy.sign()}, {}, 5.0))


def test_a_users_mistake_is_not_blamed_on_a_rank() -> None:
    def program(rank: Rank) -> None:
        if rank.number == 1:
            raise InputError("--batch is 3: expected an even number")
        all_reduce(Tensor.ones(1), rank.world).realize()

    with pytest.raises(RankError, match=r"\A--batch is 3: expected an even number\Z"):
        run(program, 2)


def test_an_error_without_a_message_has_no_colon() -> None:
    def program(rank: Rank) -> None:
        if rank.number == 1:
            raise KeyboardInterrupt
        all_reduce(Tensor.ones(1), rank.world).realize()

    with pytest.raises(RankError, match=r"\Arank 1 failed: KeyboardInterrupt\Z"):
        run(program, 2)


def test_settings_and_devices_are_as_before(on_device: str) -> None:
    from minigrad import Device

    wanted, before = devices_of_ranks(on_device, 3), Device.DEFAULT
    places = run(lambda rank: (Device.DEFAULT, Tensor([1]).device), 3)
    assert [place[0] for place in places] == wanted
    assert all(a == b for a, b in places) and before == Device.DEFAULT


def processes_with(mark: str) -> list[int]:
    """The processes that have this mark in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            if mark.encode() in (folder / "environ").read_bytes() and state != "Z":
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def still_there(numbers: list[int]) -> list[int]:
    """Those processes that do not end soon; the launcher may end a moment before them."""
    left = []
    for number in numbers:
        try:
            descriptor = os.pidfd_open(number)
        except ProcessLookupError:
            continue
        if not select.select([descriptor], [], [], 10.0)[0]:
            left.append(number)
        os.close(descriptor)
    return left


def end_of(way: str, faulty: int, ranks: int = 3) -> tuple[int, str]:
    """(exit status, error output) of three processes, one of which fails; none may be left."""
    mark = uuid4().hex
    process = start([FAULTY, way, str(faulty)], ranks, {"MINIGRAD_TEST_MARK": mark})
    try:
        out, errors = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    finally:
        left = still_there(processes_with(mark))
        for number in left:
            os.kill(number, signal.SIGKILL)
    assert not left
    return process.returncode, out + errors


@pytest.mark.parametrize(
    ("way", "faulty", "sentence"),
    [
        ("raise", 2, r"rank 2 failed: ValueError: the well is dry; all 3 ranks are stopped"),
        ("exit", 0, r"rank 0 failed: SystemExit: 3; all 3 ranks are stopped"),
        ("hang", 1, r"rank 1 hangs: it made 2 exchanges"),
        ("stop", 0, r"rank 0 hangs: no sign of life"),
        ("stop", 2, r"rank 2 hangs"),
    ],
)
def test_a_process_that_fails_ends_all(way: str, faulty: int, sentence: str) -> None:
    status, said = end_of(way, faulty)
    assert status != 0
    assert re.search(sentence, said), said


@pytest.mark.parametrize("faulty", [0, 1, 2])
def test_a_process_that_is_killed_is_named(faulty: int) -> None:
    """Another rank names it: MPI's launcher kills all others at once, and often names one of those.
    """
    status, said = end_of("kill", faulty)
    ranks = dict(re.findall(r"(\d) is process (\d+) on", said))
    assert status != 0 and len(ranks) == 3, said
    assert re.findall(r"rank (\d) was killed or crashed", said) == [str(faulty)], said


def test_only_one_process_reports_a_failure() -> None:
    for way, faulty in (("raise", 2), ("none", 9)):
        _, said = end_of(way, faulty)
        assert "was killed" not in said
        assert said.count("ranks are stopped") == (way == "raise"), said


@pytest.mark.parametrize("faulty", [0, 2])
def test_a_process_that_is_stopped_before_mpi_joins_it_ends_all(faulty: int) -> None:
    """No rank can send it anything yet, and the others wait inside MPI."""
    status, said = end_of("stop early", faulty)
    assert status != 0
    assert re.search(rf"rank {faulty} hangs: its process was stopped before it started", said)


def test_all_ranks_end_after_the_step_if_one_is_told_to(tmp_path: Path) -> None:
    from . import kills  # imported here, as it imports this module

    said = kills.one("told to end", "--dp 2 --tp 2 --zero 3", 2, None, tmp_path)
    assert "stopped after step" in said and "checkpoint whole, 0 steps again" in said, said


def test_ranks_that_end_with_the_first_begin_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """They began another kind of run, whose error could come before what the first rank says."""

    def stop(rank: Any) -> None:
        raise Stopped(15, "stopped after step 5")

    monkeypatch.setattr(layouts, "is_first", lambda: False)
    monkeypatch.setattr(layouts, "run", lambda *_, **__: pytest.fail("a second run"))
    flags = SimpleNamespace(dp=2, sp=1, tp=2, ep=1, pp=1, zero=3, experts=0)
    assert layouts.on_devices(flags, stop) is None


def test_a_second_signal_ends_all_ranks() -> None:
    status, said = end_of("at once", 2)
    assert status != 0 and "stopped at once; all 3 ranks are stopped" in said, said


def test_data_that_ranks_have_differently_end_all() -> None:
    """Copies of one array that differ would train different models, without a word."""
    status, said = end_of("data", 1)
    assert status != 0, said
    assert re.search(r"rank . places 12 bytes .* as exchange 2, rank .* the same seed", said), said


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("way", ["none", "data"])
def test_a_wrong_number_of_processes(way: str, ranks: int) -> None:
    """Of the program's ranks, and of a mesh; with too few, MPI itself complained about the mesh."""
    status, said = end_of(way, 9, ranks)
    sentence = rf"MPI started {ranks} ranks, but .* 3: use mpiexec -n 3; all {ranks} ranks are"
    assert status != 0 and re.search(sentence, said), said
    assert "Invalid rank" not in said


@pytest.mark.parametrize("script", ["moe.py", "mlp.py", "gpt.py"])
def test_processes_without_a_flag_that_uses_them(script: str) -> None:
    """Each process of moe.py once trained a model of its own."""
    process = start([str(MODELS / script)], 2)
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode != 0 and "use mpiexec -n 1" in errors, errors


def test_fewer_ranks_resume_after_a_failure(tmp_path: Path) -> None:
    """Training resumes from the parts that each rank wrote, with the losses of the first run."""
    from . import kills  # imported here, as it imports this module

    said = kills.one("killed", "--experts 4 --dp 2 --ep 2", 2, None, tmp_path)
    steps = re.search(r"whole, (\d+) steps again", said)
    assert steps is not None and int(steps[1]) >= 5, said
    files = list((tmp_path / "gpt.safetensors.parts").iterdir())
    assert len(files) in (2, 4)  # the resumed ranks may have saved, too


def test_meshes_of_another_size() -> None:
    assert run(lambda rank: (rank.dp.rank, rank.sp.rank), 2, 2) == [
        (0, 0), (0, 1), (1, 0), (1, 1),
    ]  # fmt: skip
