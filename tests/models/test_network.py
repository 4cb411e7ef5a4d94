"""Time of a training step over a network: by formula, and measured between network namespaces."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minigrad.models import network, network_link, network_measure, sizing
from minigrad.models.errors import InputError
from minigrad.models.gpt_config import GPTConfig
from minigrad.models.interrupt import Stopped
from minigrad.models.network_model import (
    Cluster,
    Layout,
    Network,
    Step,
    Work,
    bandwidth_for,
    predict,
)
from minigrad.models.network_trial import Trial, with_trial
from minigrad.models.parallel import schedules

WIRE = Network("wire", 1e9, 1e-3)
CONFIG = GPTConfig(4, 2, 16, 64, 11)
WORK = Work(256.0, 64, 2)
GPT3 = GPTConfig.preset("gpt3")
TOTAL = sizing.parameters(CONFIG).total


def step(layout: Layout, overlap: float = 0.0, **changes: Any) -> Step:
    """A step of that work over the wire, with one second of computation."""
    cluster = Cluster(1.0, WIRE, overlap=overlap, **changes)
    return predict(CONFIG, WORK, layout, cluster, 1.0)


def messages(count: float, size: float) -> float:
    """Seconds for `count` messages of `size` bytes, one after the other."""
    return count * (1e-3 + size / 1e9)


def test_what_each_way_sends() -> None:
    gradients = messages(6, TOTAL * 2 / 4)
    assert step(Layout(dp=4)).network == pytest.approx(gradients)
    for zero in (1, 2):
        assert step(Layout(dp=4, zero=zero)).network == pytest.approx(gradients)
    by_layer = messages(9 * 4, TOTAL * 2 / 4 / 4)
    assert step(Layout(dp=4, zero=3)).network == pytest.approx(by_layer)
    block = 2 * 64 * 16 * 2  # keys and values of a quarter of the tokens
    ring = messages(4 * 4, block) + messages(4 * 3, 2 * block)  # gradients end on their owners
    assert step(Layout(sp=4)).network == pytest.approx(ring + gradients)
    sums = messages(4 * 4 * 6, 256 * 16 * 2 / 4)
    for layout in (Layout(tp=4), Layout(tp=4, tokens=True)):
        assert step(layout).network == pytest.approx(sums)
    half = messages(4 * 4 * 2, 128 * 16 * 2 / 2) + messages(2, TOTAL / 2 * 2 / 2)
    assert step(Layout(dp=2, tp=2)).network == pytest.approx(half)


@pytest.mark.parametrize("layout", [Layout(dp=2), Layout(sp=2), Layout(dp=2, sp=2)])
def test_a_training_sends_what_the_formula_says(layout: Layout) -> None:
    """Except for a few scalars: losses and norms."""
    config, batch = GPTConfig(2, 2, 32, 16, 65), 4

    def sent(trial: Trial) -> int:
        rank = trial.run.division.rank  # type: ignore[attr-defined]
        groups = [group.members for group in (rank.world, rank.sp, rank.dp)]
        before = sum(members.bytes_sent for members in groups)
        trial.step()
        return sum(members.bytes_sent for members in groups) - before

    formula = predict(config, Work(64.0, 16, 4), layout, Cluster(1.0, WIRE), 1.0).nbytes
    assert 0 <= with_trial(config, batch, layout, sent) - formula < 64


def test_long_messages_are_asked_for() -> None:
    wire = replace(WIRE, at_once=256 * 16 * 2 / 4 - 1)
    found = predict(CONFIG, WORK, Layout(tp=4), Cluster(1.0, wire), 1.0)
    assert found.network == pytest.approx(step(Layout(tp=4)).network + 4 * 4 * 6 * 2e-3)
    assert wire.late(wire.at_once) == 1e-3


def test_experts_meet_those_that_have_the_same() -> None:
    config = replace(CONFIG, experts=4, active=2)
    found = predict(config, WORK, Layout(dp=2, ep=2), Cluster(1.0, WIRE, overlap=0.0), 1.0)
    count = sizing.parameters(config)
    own = count.feed_forward / 2
    routed = 64 * 16 * 2 * 2 / 2  # each device's tokens, to two experts, half to the other device
    wanted = messages(6, (count.total - count.feed_forward) * 2 / 4) + messages(2, own * 2 / 2)
    assert found.network == pytest.approx(wanted + messages(4 * 4, routed))


def test_what_hides_behind_computation() -> None:
    slow = replace(WIRE, bandwidth=1e4)
    for layout, room in ((Layout(dp=4), 2 / 3), (Layout(dp=4, zero=3), 1.0)):
        found = predict(CONFIG, WORK, layout, Cluster(1.0, slow), 1.0)
        assert found.exposed == pytest.approx(found.network - room)
        assert step(layout, 1.0).exposed == 0 and step(layout).exposed == step(layout).network
    waited = predict(CONFIG, WORK, Layout(dp=4), Cluster(1.0, slow, bucket=TOTAL / 2), 1.0)
    assert waited.exposed == pytest.approx(waited.network - 2 / 3 * 3 / 4)
    (one,) = waited.exchanges
    assert (one.messages, one.nbytes) == (6 * 4, TOTAL * 2 / 4 / 4)
    # weights come in six runs, of 3/16 of all, gradients go in two; one run of each is never hidden
    runs = predict(CONFIG, WORK, Layout(dp=4, zero=3), Cluster(1.0, slow, bucket=TOTAL), 1.0)
    assert [(one.messages, round(one.nbytes * one.messages)) for one in runs.exchanges] == [
        (2 * 6 * 3, round(2 * 3 * TOTAL * 2 / 4)), (2 * 3, round(3 * TOTAL * 2 / 4))
    ]  # fmt: skip
    assert runs.exposed == pytest.approx(runs.network - 5 / 6)
    fast = predict(CONFIG, WORK, Layout(dp=4, zero=3), Cluster(1.0, WIRE, bucket=TOTAL), 1.0)
    assert fast.exposed == pytest.approx(fast.network / 3 * (1 / 6 + 1 / 2))
    flops = sizing.flops_per_token(CONFIG)
    attention = 6 * CONFIG.layers * 64 * 16 / flops
    ring = messages(16, 4096) + messages(12, 8192)
    alone = max(ring - attention * 3 / 4, 0)
    assert step(Layout(sp=4), 1.0).exposed == pytest.approx(alone + step(Layout(dp=4)).network)
    assert step(Layout(tp=4), 1.0).exposed == step(Layout(tp=4)).network  # nothing hides it
    found = step(Layout(dp=4))
    assert found.total == pytest.approx(1 + found.network)
    assert found.idle == pytest.approx(1 - 1 / found.total)


@pytest.mark.parametrize("schedule", schedules.SCHEDULES)
def test_gaps_of_a_pipeline_are_those_of_its_table(schedule: str) -> None:
    pieces = 2 if schedule == "interleaved" else 1
    layout = Layout(pp=2, schedule=schedule, micro=4, pieces=pieces)
    free = predict(CONFIG, WORK, layout, Cluster(1.0, Network("", 1e30, 0.0)), 1.0)
    table = schedules.make_table(schedule, 2, 4, 2 * pieces)
    assert free.idle == pytest.approx(schedules.bubble(schedules.simulate(table)))
    assert free.exposed == pytest.approx(0, abs=1e-9)
    hidden, shown = (step(layout, overlap) for overlap in (1.0, 0.0))
    assert 0 < hidden.exposed < shown.exposed  # some messages travel during computation
    assert hidden.gaps == pytest.approx(shown.gaps)


def test_messages_of_a_pipeline_follow_each_other() -> None:
    table = schedules.make_table("gpipe", 2, 2, 2)
    wire = schedules.Wire(3.0, 0.5)
    first, second = schedules.simulate(table, wire=wire)
    # forward 1 + 1, on the wire 1 … 4 … 7; the second stage then waits only for its own messages
    assert [one.start for one in second] == [4.5, 7.5, 8.5, 10.5]
    assert [one.stop for one in first] == [1, 2, 10.5 + 3.5 + 2, 10.5 + 3 + 3.5 + 2]
    alone = schedules.length(schedules.simulate(table))
    assert schedules.length(schedules.simulate(table, wire=schedules.NO_WIRE)) == alone


def test_neighbours_in_a_box_meet_over_its_own_network() -> None:
    inner = Network("inner", 1e30, 0.0)
    assert step(Layout(dp=2, tp=4), box=4, inner=inner).network == pytest.approx(
        messages(2, TOTAL / 4 * 2 / 2)
    )
    assert step(Layout(dp=2, tp=4), box=8, inner=inner).network == pytest.approx(0, abs=1e-12)
    assert step(Layout(tp=8), box=4, inner=inner).network == step(Layout(tp=8)).network


def test_the_article_is_right() -> None:
    """Data parallel is moderately sensitive, sequence and tensor parallel highly sensitive."""
    found = {name: network.unhidden(model, layout, network.NETWORKS[1])
             for name, (model, layout) in network.cases(GPT3).items()}  # fmt: skip
    words = {name: network.sensitivity(bandwidth_for(one)) for name, one in found.items()}
    assert words == {"DP": "medium", "ZeRO-3": "medium", "SP": "high", "TP": "high",
                     "EP": "medium", "PP": "low"}  # fmt: skip
    assert found["DP"].idle < found["SP"].idle < found["TP"].idle
    assert found["SP"].messages > 50 * found["DP"].messages
    for name, one in found.items():  # at the bandwidth that it needs, it waits a tenth of a step
        base = replace(network.NETWORKS[1], bandwidth=bandwidth_for(one))
        model, layout = network.cases(GPT3)[name]
        again = network.unhidden(model, layout, base)
        assert again.exposed / again.total == pytest.approx(0.1)
    late = replace(network.NETWORKS[1], latency=1.0)
    assert bandwidth_for(network.unhidden(GPT3, Layout(tp=10), late)) == (
        float("inf")
    )


def test_lost_packets_slow_a_network_down() -> None:
    """1,460 bytes in 2 ms, times √(3/2)/√loss: Mathis et al. (1997)."""
    lossy = Network("Ethernet, lossless", 1e9, 1e-3).lossy(0.0006)
    assert lossy.bandwidth == pytest.approx(730e3 * 50)
    assert lossy.name == "Ethernet, 1 packet in 1,667 lost*"
    assert Network("", 1e3, 1e-3).lossy(0.0006).bandwidth == 1e3


def test_the_tables(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    network.main(["--picture", str(tmp_path / "p.png")])
    said = capsys.readouterr().out
    for line in ("dp 1024 · ZeRO-3", "tp 8 · zb, 32 parts", "1 packet in 10,000 lost*",
                 "* predicted only, with the formula of Mathis"):  # fmt: skip
        assert line in said
    for kind, word in (("DP", "medium"), ("SP", "high"), ("TP", "high")):
        (line,) = [one for one in said.splitlines() if one.startswith(f"{kind:<8}")]
        assert line.endswith(f" {word}")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    network.main(["mixtral", "--devices", "16", "--ep", "8"])
    said = capsys.readouterr().out
    assert "16 devices: dp 2 · ep 8" in said and "dp 2 · sp 8" in said


@pytest.mark.parametrize(("devices", "there"), [(8, True), (9, False), (1024, False)])
def test_a_box_holds_few_devices(
    devices: int, there: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    network.main(["--devices", str(devices)])
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("NVLink"))
    assert ("connects at most 8 devices" in line) != there and ("%" in line) == there


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--devices", "9", "--tp", "2"], "--devices 9 cannot be copies × 2"),
        (["--devices", "8", "--dp", "2", "--tp", "2"], "--devices 8 cannot be 2 × 2"),
        (["--tp", "2", "--sp", "4"], "--sp 4 with --tp 2"),
        (["--ep", "2"], "0 experts cannot be split over ep 2"),
        (["small", "--pp", "64"], "layers cannot be split into 64"),
        (["--tp", "64"], "96 heads cannot be split over tp 64"),
        (["--pp", "2", "--schedule", "interleaved", "--pieces", "2", "--micro", "3"], "multiple"),
        (["--picture", "p.jpg"], "ending in .png"),
        (["measure", "--kinds", "up"], "--kinds: expected some of dp zero3 sp"),
        (["measure", "--kinds", "tp", "--heads", "3"], "dim 256 is not a multiple of heads 3"),
        (["measure", "--kinds", "tp", "--heads", "1"], "1 heads cannot be split over tp 2"),
    ],
)
def test_invalid_flags(flags: list[str], text: str) -> None:
    with pytest.raises(InputError, match=text.replace("(", r"\(")):
        network.main(flags)


def test_the_help_explains_itself() -> None:
    assert "devices in all" in network.parser().format_help()
    assert "(default: 100MB/s" in network_measure.parser().format_help()


# --- measured between namespaces ------------------------------------------------------------------


def leftovers() -> list[str]:
    """Leftover namespaces of ours, and leftover processes of a measurement."""
    found = [path.name for path in network_link.PLACE.glob(f"{network_link.PREFIX}-*")]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if any(word.startswith("minigrad.models.network_") for word in words):
            found.append(" ".join(words))
    return found


@pytest.fixture(scope="module")
def namespaces() -> None:
    """Skips the test if this machine does not let us make namespaces."""
    try:
        with network_link.Link(2):
            pass
    except network_link.NoLink as error:
        pytest.skip(f"no network namespaces here: {error}")


needs_root = pytest.mark.usefixtures("namespaces")
SMALL = ["--layers", "2", "--dim", "32", "--context", "16", "--steps", "1", "--batch", "4",
         "--micro", "2"]  # fmt: skip


def start(*flags: str, **variables: str) -> subprocess.Popen[str]:
    """Start `network.py measure` as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "minigrad.models.network", "measure", *flags],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **variables}, start_new_session=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("tools", "text"),
    [
        (["ip", "tc", "unshare"], "ip netns add minigrad-.*: Operation not permitted"),
        (["ip", "unshare"], "tc is missing: apt install iproute2"),
    ],
)
def test_missing_rights_are_reported(tools: list[str], text: str, tmp_path: Path) -> None:
    for tool in tools:
        path = tmp_path / tool
        path.write_text("#!/bin/sh\necho Operation not permitted >&2; exit 1\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    shutil.copy("/bin/sh", tmp_path / "sh")
    process = start("--kinds", "dp", PATH=str(tmp_path))
    out, errors = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, "")
    assert re.search(text, errors) and "this needs root" in errors and "Traceback" not in errors


def test_a_signal_cleans_up_once() -> None:
    """The first signal raises an exception; signals during the clean-up are ignored."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as caught, network_measure.EndedBySignals():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
    assert caught.value.number == signal.SIGTERM and signal.getsignal(signal.SIGTERM) == before


def test_a_row() -> None:
    row = network_measure.Row("tp", Network("", 5e7, 0.001), 0.9, 1.0)
    assert network_measure.show(row).split() == [
        "tp", "50", "MB/s", "1", "ms", "900.0", "ms", "1000.0", "ms", "-10%",
    ]  # fmt: skip


@needs_root
def test_the_namespaces_of_killed_processes_are_removed() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    name = f"{network_link.PREFIX}-{gone.pid}-0"
    subprocess.run(["ip", "netns", "add", name], check=True)
    own = f"{network_link.PREFIX}-{os.getpid()}-kept"
    subprocess.run(["ip", "netns", "add", own], check=True)
    try:
        assert network_link.remove_left() == [name]
    finally:
        subprocess.run(["ip", "netns", "del", own], check=True)


@needs_root
@pytest.mark.parametrize("relayed", [False, True])
def test_a_link_is_as_fast_and_as_late_as_it_is_told(relayed: bool) -> None:
    """A byte takes at least the latency, there and back; many take at least their transfer time."""
    server = (
        "import socket\ns = socket.create_server(('10.77.0.2', 5000))\nprint('up', flush=True)\n"
        "c, _ = s.accept()\nwhile c.recv(1 << 20): c.sendall(b'.')\n"
    )
    client = (
        "import socket, time\nc = socket.create_connection(('10.77.0.2', 5000))\n"
        "t = time.perf_counter(); c.sendall(b'x'); c.recv(1); print(time.perf_counter() - t)\n"
        "t = time.perf_counter(); c.sendall(bytes(1 << 20)); n = 0\n"
        "c.shutdown(socket.SHUT_WR)\nwhile c.recv(1 << 16): pass\n"
        "print(time.perf_counter() - t)\n"
    )
    with network_link.Link(2, relayed) as link:
        link.shape(5e6)
        if relayed:
            link.delay(0.02)
        words = [["ip", "netns", "exec", name, sys.executable, "-c", text]
                 for name, text in zip(link.nodes, (client, server), strict=True)]  # fmt: skip
        with subprocess.Popen(words[1], stdout=subprocess.PIPE, text=True) as listening:
            assert listening.stdout is not None and listening.stdout.readline() == "up\n"
            done = subprocess.run(words[0], capture_output=True, text=True, timeout=60)
            listening.kill()
        turn, many = map(float, done.stdout.split())
        assert turn > 0.04 * relayed
        assert many > (1 << 20) / 5e6 * 0.9  # a burst passes at once
    assert not [name for name in leftovers() if str(os.getpid()) in name]


@needs_root
def test_trainings_are_measured() -> None:
    process = start("--kinds", "dp", "1f1b", "--bandwidth", "2MB/s", *SMALL)
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    rows = [line.split() for line in out.splitlines()[1:]]
    assert [row[0] for row in rows] == ["dp", "dp", "1f1b", "1f1b"]
    assert [row[1] for row in rows] == ["unshaped", "2", "unshaped", "2"]
    assert float(rows[1][5]) > float(rows[0][2])  # the gradients took their time
    assert not [name for name in leftovers() if str(process.pid) in name]


@needs_root
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(number: int) -> None:
    process = start("--kinds", "dp", "--latency", "0.001", "--bandwidth", *SMALL, "--steps", "9999")
    own = f"{network_link.PREFIX}-{process.pid}-0"
    while not any(own in name and "mpi4py" in name for name in leftovers()):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number and "namespaces were removed" in errors
    assert not [name for name in leftovers() if f"-{process.pid}-" in name]
