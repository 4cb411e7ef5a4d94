"""From logits to the next token: temperature, top-k, top-p, on the host in float64."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Row = np.ndarray[tuple[int], np.dtype[Any]]


@dataclass(frozen=True)
class Sampling:
    """How to draw a token. ValueError where a setting makes no sense; says what does.

    temperature: divides the logits; 0 is greedy. top_k, top_p: see `probabilities`.
    repetition_penalty: divides a positive logit, and multiplies a negative one, of each token that
    was there before (Keskar et al., "CTRL", 2019); 1 changes nothing.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature is {self.temperature}: expected 0 (greedy) or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}: expected at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}: expected more than 0 and at most 1")
        if not self.repetition_penalty > 0:
            raise ValueError(f"repetition_penalty is {self.repetition_penalty}: expected above 0")

    def choose(
        self, logits: Row, generator: np.random.Generator, seen: Collection[int] = ()
    ) -> int:
        """One token id; `seen` are the tokens before it, for the penalty."""
        if self.repetition_penalty != 1:
            logits = penalized(logits, seen, self.repetition_penalty)
        return choose(logits, generator, self.temperature, self.top_k, self.top_p)


def penalized(logits: Row, seen: Collection[int], penalty: float) -> Row:
    """The logits with those of the tokens in `seen` made smaller."""
    import numpy as np

    result: Row = logits.astype(np.float64)
    places = np.unique(np.fromiter(seen, np.int64, len(seen)))
    chosen = result[places]
    result[places] = np.where(chosen > 0, chosen / penalty, chosen * penalty)
    return result


def probabilities(
    logits: Row, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Row:
    """The distribution over the vocabulary, float64, from which the next token is drawn.

    temperature divides the logits (above 0); top_k keeps the k likeliest tokens; top_p keeps the
    fewest likeliest tokens whose probabilities sum to at least p (Holtzman et al., "The Curious
    Case of Neural Text Degeneration").
    """
    import numpy as np

    scaled = logits.astype(np.float64)
    scaled = (scaled - scaled.max()) / temperature
    order = np.argsort(-scaled, kind="stable")
    weights = np.exp(scaled[order])
    if top_k is not None:
        weights[top_k:] = 0
    weights /= weights.sum()
    if top_p is not None:
        before = np.cumsum(weights) - weights
        weights[before >= top_p] = 0
        weights /= weights.sum()
    result: Row = np.empty_like(weights)
    result[order] = weights
    return result


def choose(
    logits: Row,
    generator: np.random.Generator,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> int:
    """One token id. Temperature 0 takes the likeliest (the first of equals)."""
    import numpy as np

    if temperature == 0:
        return int(np.argmax(logits))
    cumulative = np.cumsum(probabilities(logits, temperature, top_k, top_p))
    # The last cumulative sum may be a rounding error off 1; scaling keeps the draw inside.
    return int(np.searchsorted(cumulative, generator.random() * cumulative[-1], side="right"))
