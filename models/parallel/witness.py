"""Reports which rank was killed: MPI's launcher kills all others at once, and may name a wrong one.

    python witness.py WHO LAUNCHER RANKS SOCKET

A separate process that listens on SOCKET, a descriptor. Each rank connects, sends its number, and
gets an answer when all have done so. When a process ends, its connection is closed, and these
events arrive here in order. A rank that sends something more says that all is well, or that it has
reported an error itself. Nothing of minigrad is imported.
"""

from __future__ import annotations

import os
import select
import socket
import sys

BEGIN = 60.0  # seconds within which the first rank connects
LAST_WORD = 5.0  # seconds within which a program that ends normally says so


def first_to_end(listener: socket.socket, count: int) -> int | None:
    """The number of the rank whose process ended first; None if there is nothing to report."""
    events, links, numbers = select.epoll(), dict[int, socket.socket](), dict[int, int]()
    events.register(listener, select.EPOLLIN)
    ended: list[int] = []
    while len(ended) < count:
        happened = events.poll(LAST_WORD if ended else None if links else BEGIN)
        if not happened:
            break
        for descriptor, _ in happened:  # in the order in which they happened
            if descriptor == listener.fileno():
                link, _ = listener.accept()
                numbers[link.fileno()] = int.from_bytes(link.recv(4), "little")
                links[link.fileno()] = link
                events.register(link, select.EPOLLIN)
                for other in links.values() if len(links) == count else ():
                    other.send(b".")
            elif links[descriptor].recv(1):
                return None
            else:
                events.unregister(descriptor)
                ended.append(numbers[descriptor])
    return ended[0] if ended else None


def main() -> None:
    """Watch; report once, or not at all."""
    who, launcher, count, descriptor = sys.argv[1], *map(int, sys.argv[2:])
    launcher_end = os.pidfd_open(launcher)
    number = first_to_end(socket.socket(fileno=descriptor), count)
    if number is None:
        return
    text = f"rank {number} was killed or crashed: its process is gone"
    if select.select([launcher_end], [], [], 0)[0]:
        text = "MPI's launcher is gone"
    print(f"{who}: {text}; all {count} ranks are stopped", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
