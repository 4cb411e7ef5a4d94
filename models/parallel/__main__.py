"""Print a timeline as text: the last step, or the part between two times in ms.

python -m minigrad.models.parallel F.json
python -m minigrad.models.parallel F.json 250 900
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from minigrad.models import console
from minigrad.models.errors import InputError
from minigrad.models.parallel.timeline import as_text, last_step, read_trace


def main(arguments: Sequence[str]) -> None:
    """Print the content of a file."""
    command = console.Parser(prog="python -m minigrad.models.parallel", description=__doc__)
    command.add_argument("file", type=Path, help="file written by --trace")
    command.add_argument("first", type=float, nargs="?",
                         help="start, in milliseconds (default: the last step)")  # fmt: skip
    command.add_argument("last", type=float, nargs="?", help="end, in milliseconds")
    flags = command.parse_args(arguments)
    try:
        ranks = read_trace(flags.file)
    except OSError as error:
        raise InputError(f"cannot read {flags.file}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{flags.file} is not a timeline written by --trace: {error}") from None
    events = [event for _, found in ranks for event in found]
    if not events:
        raise InputError(f"{flags.file} has no events")
    least = min(event["start"] for event in events)
    most = max(event["stop"] for event in events)
    first, last = last_step(ranks) or (least, most)
    if flags.first is not None:
        first, last = flags.first / 1e3, most if flags.last is None else flags.last / 1e3
    if not first < last or first > most or last < least:
        raise InputError(
            f"nothing happened from {1e3 * first:g} to {1e3 * last:g} ms: {flags.file} covers "
            f"{1e3 * least:.0f} to {1e3 * most:.0f} ms"
        )
    print(as_text(ranks, first, last))


if __name__ == "__main__":
    sys.exit(console.run(main))
