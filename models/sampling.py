"""From logits to the next token: temperature, top-k, top-p, on the host in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Row = np.ndarray[tuple[int], np.dtype[Any]]


def check(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """ValueError where a setting makes no sense; says what does."""
    if not temperature >= 0:
        raise ValueError(f"temperature is {temperature}: expected 0 (greedy) or more")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}: expected at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}: expected more than 0 and at most 1")


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
