"""The record of a training run: one line of JSON per step."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import IO, Any

from minigrad import nn
from minigrad.models.errors import InputError, failing_as

KEYS = ("step", "loss", "val_loss", "lr", "tokens_per_s", "elapsed_s")
ABSURD = 1e6  # nats; its exponential has no meaning


class Metrics:
    """Keeps every step's figures, and writes them to `path` if given.

    Each line is a JSON object with all of KEYS (null if a figure was not measured), and whatever
    else the script records. An existing file is replaced; for a run that continues after the steps
    of `history`, its lines for those stay. InputError if they are another run's, or if another
    process records to the file.
    """

    def __init__(self, path: str | None = None, history: Sequence[Mapping[str, Any]] = ()) -> None:
        self.history: list[dict[str, Any]] = [dict(line) for line in history]
        self.file: IO[str] | None = None
        self.path = path
        if path is not None:
            with self._writing():
                if history:
                    _cut(Path(path), {line["step"]: line["loss"] for line in history})
                self.file = Path(path).open("a", encoding="utf-8")  # noqa: SIM115
                if Path(path).is_file():  # not a pipe, or /dev/null
                    _claim(self.file, path)
                    if not history:
                        self.file.truncate(0)

    def _writing(self) -> AbstractContextManager[None]:
        return failing_as(f"cannot write --metrics {self.path}")

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self.file is not None:
            # retry what could not be written before
            with self._writing() if error is None else suppress(OSError):
                self.file.close()

    def record(self, **figures: Any) -> None:
        """Record the figures of one training step."""
        line = {**dict.fromkeys(KEYS), **figures}
        self.history.append(line)
        if self.file is not None:
            # JSON has no NaN; such a loss is written as text
            plain = {k: str(v) if v in _NO_NUMBERS or v != v else v for k, v in line.items()}
            with self._writing():
                self.file.write(json.dumps(plain, allow_nan=False) + "\n")
                self.file.flush()

    def curve(self, key: str) -> tuple[list[int], list[float]]:
        """(steps, values) for which the figure `key` was measured."""
        taken = [(line["step"], line[key]) for line in self.history if line[key] is not None]
        return [step for step, _ in taken], [value for _, value in taken]


def _claim(file: IO[str], path: str) -> None:
    """InputError if another process records to the same file; when it ends, the file is free."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InputError(f"another process writes --metrics {path}: give another file") from None
    except OSError:  # a file system without locks
        pass


def _cut(path: Path, losses: Mapping[int, float]) -> None:
    """Drop the lines after the known steps: their run ended before it could save."""
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()  # cut off in the middle
    try:
        steps: list[dict[str, Any]] = [json.loads(line) for line in lines]
        kept = [line for line, step in zip(lines, steps, strict=True) if step["step"] in losses]
        same = all(losses[step["step"]] == step["loss"] for step in steps if step["step"] in losses)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise InputError(f"--metrics {path} is not a record of training: not changed") from None
    if not same:
        raise InputError(
            f"--metrics {path} is the record of another training: not changed; give another file"
        )
    nn.state.write_atomically(path, lambda file: file.write(b"".join(kept)))


_NO_NUMBERS = (float("inf"), float("-inf"))


def shown(loss: float) -> str:
    """A loss as text: four digits after the point, or three in all if it is absurd."""
    return f"{loss:.4f}" if abs(loss) < ABSURD else f"{loss:.3g}"
