"""The model of a network between threads, on a clock that only moves when somebody sleeps."""

from __future__ import annotations

import pytest
from devices import CPU

from minigrad import dtypes
from minigrad.device import Buffer
from minigrad.models.parallel import LocalTransport, Network, RankError, local

LATENCY, BANDWIDTH = 0.25, 1024.0  # seconds, bytes per second: all times below are exact


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(local, "time", made)
    return made


class Wires:
    """Three ranks in one thread, with a buffer of 4 KiB each."""

    def __init__(self, network: Network | None) -> None:
        exchange = local.Exchange(3, network)
        self.ends = [LocalTransport(rank, exchange) for rank in range(3)]
        self.memory = [Buffer(CPU, dtypes.uint8, 4096) for _ in self.ends]
        for rank, buffer in enumerate(self.memory):
            buffer.copy_in(bytes([rank + 1]) * 4096)

    def send(self, source: int, to: int, nbytes: int) -> local.Request:
        """Both ends of a message; gives the receiver's."""
        self.ends[source].isend(to, self.memory[source].memory, nbytes, 0)
        return self.ends[to].irecv(source, self.memory[to].memory, nbytes, 0)


def test_a_message_takes_latency_and_its_bytes(clock: Clock) -> None:
    wires = Wires(Network(LATENCY, BANDWIDTH))
    wires.ends[1].wait([wires.send(0, 1, 512)])
    assert clock.now == LATENCY + 512 / BANDWIDTH
    assert bytes(wires.memory[1].copy_out()) == bytes([1]) * 512 + bytes([2]) * 3584
    clock.now = 10.0
    wires.ends[1].wait([wires.send(0, 1, 0)])
    assert clock.now == 10.0 + LATENCY


def test_messages_of_a_link_follow_each_other_and_links_are_apart(clock: Clock) -> None:
    wires = Wires(Network(LATENCY, BANDWIDTH))
    on_one = [wires.send(0, 1, 1024) for _ in range(3)]
    on_another = wires.send(0, 2, 1024)
    back = wires.send(1, 0, 1024)
    for end, request in ((2, on_another), (0, back)):
        wires.ends[end].wait([request])
        assert clock.now == LATENCY + 1.0
    wires.ends[1].wait(on_one)
    assert clock.now == LATENCY + 3.0  # bytes queue, the latencies of messages overlap


def test_what_has_arrived_is_not_waited_for(clock: Clock) -> None:
    wires = Wires(Network(LATENCY, BANDWIDTH))
    request = wires.send(0, 1, 1024)
    clock.now = 5.0
    wires.ends[1].wait([request])
    assert clock.now == 5.0


def test_lost_messages_are_sent_again_and_the_seed_says_which(clock: Clock) -> None:
    def arrivals(seed: int) -> list[float]:
        clock.now, found = 0.0, []
        wires = Wires(Network(LATENCY, BANDWIDTH, loss=0.5, timeout=4.0, seed=seed))
        for _ in range(40):
            before = clock.now
            wires.ends[1].wait([wires.send(0, 1, 1024)])
            found.append(clock.now - before)
        return found

    first = arrivals(1)
    assert set(first) == {LATENCY + 1.0, LATENCY + 5.0}
    assert 5 < first.count(LATENCY + 5.0) < 35
    assert arrivals(1) == first and arrivals(2) != first


def test_no_network_takes_no_time(clock: Clock) -> None:
    wires = Wires(None)
    wires.ends[1].wait([wires.send(0, 1, 4096)])
    assert clock.now == 0.0


def test_a_rank_is_cut_off_after_its_number_of_messages(clock: Clock) -> None:
    wires = Wires(Network(fails={0: 2}))
    for to in (1, 2):
        wires.ends[to].wait([wires.send(0, to, 8)])
    wires.ends[0].wait([wires.send(1, 0, 8)])  # it still hears
    with pytest.raises(RankError, match="rank 0 is cut off") as caught:
        wires.send(0, 1, 8)
    assert caught.value.number == 0
