"""A timeline as text: `python -m minigrad.models.parallel F.json 250 900`, in milliseconds."""

from __future__ import annotations

import sys
from pathlib import Path

from minigrad.models.parallel.timeline import as_text, read_trace

if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: python -m minigrad.models.parallel F.json FROM TO (milliseconds)")
    first, last = (float(milliseconds) / 1e3 for milliseconds in sys.argv[2:])
    print(as_text(read_trace(Path(sys.argv[1])), first, last))
