"""Several machines on one: network namespaces, joined by a link of given bandwidth or latency.

    bridge    each namespace has a cable (veth) to a bridge in one more; what it sends is shaped by
              `tc … tbf`, which holds packets back but makes none of them late
    relay     each has a device (tun) from which a program takes packets, and hands them on later

The namespaces are named after this process; those left by killed processes are removed first.
"""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

PREFIX = "minigrad"
PLACE = Path("/run/netns")
DEVICE = "net0"  # the name of each namespace's only device
CABLE, RELAY = 9000, 65000  # bytes of a packet; large for the relay, so that there are few
QUEUE = "8mb"  # bytes that may be queued
TOOLS = {"ip": "iproute2", "tc": "iproute2", "unshare": "util-linux"}  # their Debian packages


class NoLink(Exception):
    """The reason why no link can be made here."""


def run(*words: str) -> None:
    """Run a tool; NoLink with its message if it fails."""
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    if done.returncode:
        raise NoLink(f"{' '.join(words[:4])} …: {done.stderr.strip() or done.returncode}")


def check_tools() -> None:
    """NoLink if a tool is missing."""
    for tool, package in TOOLS.items():
        if shutil.which(tool) is None:
            raise NoLink(f"{tool} is missing: apt install {package}")


def remove_left() -> list[str]:
    """Remove the namespaces of processes that have ended; returns their names."""
    left = []
    for path in PLACE.glob(f"{PREFIX}-*-*"):
        owner = path.name.split("-")[1]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            with suppress(NoLink):
                run("ip", "netns", "del", path.name)
                left.append(path.name)
    return left


class Link:
    """In a `with` block, a namespace for each node; NoLink if that fails.

    relayed: joined by a relay, whose `delay` can be set; otherwise by a bridge.
    """

    def __init__(self, nodes: int, relayed: bool = False) -> None:
        self.nodes = [f"{PREFIX}-{os.getpid()}-{number}" for number in range(nodes)]
        self.hub = f"{PREFIX}-{os.getpid()}-hub"
        self.relayed = relayed
        self._relay: subprocess.Popen[str] | None = None

    def __enter__(self) -> Link:
        check_tools()
        remove_left()
        try:
            for name in self.nodes if self.relayed else (*self.nodes, self.hub):
                run("ip", "netns", "add", name)
                run("ip", "-n", name, "link", "set", "lo", "up")
            if self.relayed:
                self._start_relay()
            else:
                self._plug_in()
            for number, name in enumerate(self.nodes, 1):
                run("ip", "-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", DEVICE)
                run("ip", "-n", name, "link", "set", DEVICE, "up")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _plug_in(self) -> None:
        run("ip", "-n", self.hub, "link", "add", "bridge", "type", "bridge")
        for number, name in enumerate(self.nodes):
            size = ("mtu", str(CABLE))
            run("ip", "-n", self.hub, "link", "add", f"port{number}", *size, "type", "veth",
                "peer", "name", DEVICE, *size, "netns", name)  # fmt: skip
            run("ip", "-n", self.hub, "link", "set", f"port{number}", "master", "bridge", "up")
        run("ip", "-n", self.hub, "link", "set", "bridge", "up")

    def _start_relay(self) -> None:
        self._relay = subprocess.Popen(
            [sys.executable, "-m", "minigrad.models.network_link", *self.nodes],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        assert self._relay.stdout is not None and self._relay.stderr is not None
        if not self._relay.stdout.readline():
            raise NoLink(f"no relay: {self._relay.stderr.read().strip()}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if self._relay is not None:
            self._relay.kill()
            self._relay.wait()
        for name in (*self.nodes, self.hub):
            if (PLACE / name).exists():
                run("ip", "netns", "del", name)

    def shape(self, bandwidth: float | None) -> None:
        """Limit each node to so many bytes per second; None: no limit."""
        for name in self.nodes:
            place = ("dev", DEVICE, "root")
            if bandwidth is not None:
                burst = 2 * (RELAY if self.relayed else CABLE)  # bytes that may be sent at once
                run("tc", "-n", name, "qdisc", "replace", *place, "tbf", "rate",
                    f"{8 * bandwidth:.0f}bit", "burst", str(burst), "limit", QUEUE)  # fmt: skip
            else:
                with suppress(NoLink):  # there is none
                    run("tc", "-n", name, "qdisc", "del", *place)

    def delay(self, seconds: float) -> None:
        """Delay each packet of a relayed link by so many seconds."""
        assert self._relay is not None and self._relay.stdin is not None
        self._relay.stdin.write(f"{seconds}\n")
        self._relay.stdin.flush()

    def command(self, number: int) -> list[str]:
        """The words before a program's command that run it on a node, with its own host name."""
        host = f"node{number}"
        return ["ip", "netns", "exec", self.nodes[number], "unshare", "--uts", "sh", "-c",
                'echo "$0" > /proc/sys/kernel/hostname; exec "$@"', host]  # fmt: skip


# --- the relay, a program of its own --------------------------------------------------------------

TUN, NO_HEADER, SET_NAME = 0x0001, 0x1000, 0x400454CA  # linux/if_tun.h


def open_tun(namespace: str) -> int:
    """A descriptor; each read returns a packet that a namespace sends."""
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    with (PLACE / namespace).open("rb") as place:
        if library.setns(place.fileno(), 0):
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
    found = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(found, SET_NAME, struct.pack("16sH22x", DEVICE.encode(), TUN | NO_HEADER))
    run("ip", "link", "set", DEVICE, "mtu", str(RELAY), "txqueuelen", "1000")
    return found


def relay(nodes: Sequence[int], orders: int) -> None:
    """Forward packets by the last number of their destination address, each after the delay.

    orders: a descriptor with lines of seconds; ends when it is closed.
    """
    delay, waiting = 0.0, deque[tuple[float, int, bytes]]()
    while True:
        patience = max(waiting[0][0] - time.monotonic(), 0.0) if waiting else None
        ready, _, _ = select.select([*nodes, orders], [], [], patience)
        if orders in ready:
            lines = os.read(orders, 4096)
            if not lines:
                return
            delay = float(lines.split()[-1])
        now = time.monotonic()
        for node in nodes:
            if node not in ready:
                continue
            with suppress(BlockingIOError):
                packet = os.read(node, RELAY + 100)
                to = packet[19] - 1  # last byte of an IPv4 header's address
                if packet[0] >> 4 == 4 and to < len(nodes):
                    waiting.append((now + delay, nodes[to], packet))
        while waiting and waiting[0][0] <= time.monotonic():
            _, node, packet = waiting.popleft()
            with suppress(BlockingIOError, OSError):  # a full queue drops it, as others do
                os.write(node, packet)


if __name__ == "__main__":
    descriptors = [open_tun(name) for name in sys.argv[1:]]
    print("ready", flush=True)
    relay(descriptors, sys.stdin.fileno())
