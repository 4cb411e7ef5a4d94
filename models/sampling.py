"""From logits to the next token, on their device and in the program that computes them.

Nothing is sorted. A token's rank is the distance of its logit from the largest: a float ≥ 0, whose
bits as an integer have the same order. So the cutoff of top-k or top-p is found bit by bit: 31
times, the tokens below a distance are counted, or their weights are summed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from minigrad import Tensor
from minigrad.tensor.arguments import check_fields
from minigrad.tensor.random import threefry

NEVER = 1e-30  # lower temperatures make the likeliest token certain
EVERY = 2**31 - 1  # larger than any token's distance
BLOCK = 256  # weights that are first looked at as one sum when a token is drawn


@dataclass(frozen=True)
class Sampling:
    """How to draw a token. ValueError for invalid settings.

    repetition_penalty: divides a positive logit, and multiplies a negative one, of each token that
    occurred before (Keskar et al., "CTRL", 2019); 1 has no effect. temperature: then divides the
    logits; 0 is greedy. top_k keeps the k likeliest tokens; top_p, of these, the fewest likeliest
    whose probabilities sum to at least p (Holtzman et al., "The Curious Case of Neural Text
    Degeneration", 2019). Of equally likely tokens the first are kept. Logits are equal if their
    float32 distances from the largest are.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.temperature >= 0:
            raise ValueError(f"temperature: expected 0 (greedy) or more, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k: expected at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected above 0, at most 1, got {self.top_p}")
        if not self.repetition_penalty > 0:
            raise ValueError(f"repetition_penalty: expected above 0, got {self.repetition_penalty}")

    @property
    def steps(self) -> frozenset[str]:
        """The computations needed: some of "draw", "top_k", "top_p", "penalty"."""
        asked = {
            "penalty": self.repetition_penalty != 1,
            "draw": self.temperature > 0,
            "top_k": self.temperature > 0 and self.top_k is not None,
            "top_p": self.temperature > 0 and self.top_p is not None and self.top_p < 1,
        }
        return frozenset(step for step, wanted in asked.items() if wanted)


def _numbers_of(settings: Sampling, vocabulary: int) -> list[float]:
    """Temperature, k, p and penalty as float32, which can hold ids of 16 million tokens."""
    if settings.temperature == 0:  # the likeliest token, the first of equal ones
        return [1.0, 1, 1.0, settings.repetition_penalty]
    temperature = min(max(settings.temperature, NEVER), 1 / NEVER)  # ∞/∞ would be NaN
    return [temperature, settings.top_k or vocabulary + 1,
            settings.top_p or 1.0, settings.repetition_penalty]  # fmt: skip


class Sampler:
    """Draws a token for each row of logits: `sampler(logits)`, also within `@jit`.

    Each row has its own settings and random numbers, in tensors that the program reads. Draw number
    c of a row is Threefry's hash of (number, c) under the key `seed`, independent of the other
    rows. settings: for each row. vocabulary: logits per row. numbers: for each row, below 2³²; by
    default 0, 1, ….
    """

    def __init__(
        self, settings: Sequence[Sampling], vocabulary: int, seed: int = 0,
        numbers: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        rows = len(settings)
        self.steps = frozenset[str]().union(*(each.steps for each in settings))
        if "draw" in self.steps and any(each.temperature == 0 for each in settings):
            self.steps |= {"top_k"}  # a greedy row beside others draws from one token
        words = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
        self._settings = Tensor([_numbers_of(each, vocabulary) for each in settings]).realize()
        self._counters = Tensor(
            [[*words, number, 0] for number in numbers or range(rows)], dtype="uint32"
        ).realize()
        self._seen = Tensor.zeros(
            rows, vocabulary if "penalty" in self.steps else 0, dtype="bool"
        ).contiguous().realize()  # fmt: skip

    def see(self, rows: Sequence[Iterable[int]]) -> None:
        """Count tokens of each row as seen, in addition to drawn ones."""
        if "penalty" in self.steps:
            seen = self._seen.numpy().copy()
            for row, tokens in zip(seen, rows, strict=True):
                row[list(tokens)] = True
            self._seen.set_data(seen)

    @property
    def state(self) -> tuple[Tensor, Tensor, Tensor]:
        """The arguments of `draw` after the logits: settings, counters, and seen tokens."""
        return self._settings, self._counters, self._seen

    def __call__(self, logits: Tensor) -> Tensor:
        """(rows, vocabulary) of floats → (rows,) int32, computed."""
        return draw(self.steps, logits, *self.state)


def draw(
    steps: frozenset[str], logits: Tensor, settings: Tensor, counters: Tensor, seen: Tensor
) -> Tensor:
    """(rows, vocabulary) of floats → (rows,) int32, computed; updates a sampler's state in place.

    A captured function of it serves all samplers with equally many rows and the same steps.
    """
    tokens = _tokens(steps, logits.detach().float(), settings, counters, seen)
    kept = []
    if "penalty" in steps:
        ids = Tensor.arange(seen.shape[1], device=logits.device)
        seen.assign(seen | ids.eq(tokens.unsqueeze(1)))
        kept.append(seen)
    if "draw" in steps:
        counters.assign(counters + Tensor([0, 0, 0, 1], dtype="uint32", device=logits.device))
        kept.append(counters)
    Tensor.realize(tokens, *kept)
    return tokens


def _tokens(
    steps: frozenset[str], logits: Tensor, settings: Tensor, counters: Tensor, seen: Tensor
) -> Tensor:
    temperature, k, p, penalty = settings.split(1, 1)
    if "penalty" in steps:
        smaller = (logits > 0).where(logits / penalty, logits * penalty)
        logits = seen.where(smaller, logits)
    if "draw" not in steps:
        return logits.argmax(-1)
    # (of zeros the largest may be −0.0, and −0.0 − 0.0 has the sign bit)
    distance = (logits.max(-1, keepdim=True) - logits).abs().contiguous()
    weights = (-distance / temperature).exp().contiguous()
    share = _share(counters)
    if not steps & {"top_k", "top_p"}:
        return first_beyond(weights, share)
    near = distance.bitcast("int32")
    last = cutoff(near, 1.0, k) if "top_k" in steps else k.full_like(EVERY, dtype="int32")
    whole, equals = within(near, last, weights, k)
    if "top_p" in steps:
        mass = whole + equals * weight_at(near, last, weights)
        wanted = (p < 1).where(p * mass, float("inf"))
        last = last.minimum(cutoff(near, weights, wanted))
        whole, equals = within(near, last, weights, k, wanted)
    return drawn(near, last, weights, whole, equals, share)


def _share(counters: Tensor) -> Tensor:
    """A random number in 0 … 1 for each row, (rows, 1) float64, with 53 bits."""
    low, high, number, count = (word.node for word in counters.split(1, 1))
    first, second = threefry((low, high), (number, count))
    return counters._unit(first, second)


def cutoff(near: Tensor, weights: Tensor | float, wanted: Tensor) -> Tensor:
    """The smallest distance up to which the weights of a row sum to at least `wanted`.

    near: (rows, tokens), int32 ≥ 0. weights: float32 of that shape, or one number. wanted: (rows,
    1). The result is (rows, 1), int32; EVERY if the sum is never reached.
    """
    low = Tensor.zeros(*wanted.shape, dtype="int32", device=near.device)
    for bit in reversed(range(31)):
        tried = low + (1 << bit)
        low = (total(near < tried, weights) >= wanted).where(low, tried)
    return low


def total(chosen: Tensor, weights: Tensor | float = 1.0) -> Tensor:
    """The sum of the chosen weights in each row, (rows, 1); also for counts a float: faster."""
    return chosen.where(weights, 0.0).sum(-1, keepdim=True)


def weight_at(near: Tensor, last: Tensor, weights: Tensor) -> Tensor:
    """The weight that all tokens at one distance have, (rows, 1)."""
    return near.eq(last).where(weights, 0).max(-1, keepdim=True)


def within(
    near: Tensor, last: Tensor, weights: Tensor, k: Tensor, wanted: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The sum of the weights nearer than `last`, and how many tokens at `last` are kept; (rows, 1).

    At most k tokens in all, and no more than are needed for the wanted sum.
    """
    whole = total(near < last, weights)
    equals = (k - total(near < last)).minimum(total(near.eq(last)))
    if wanted is not None:
        each = weight_at(near, last, weights)
        needed = ((wanted - whole) / (each > 0).where(each, 1)).ceil()
        equals = equals.minimum(needed.maximum(1))
    return whole, equals


def drawn(
    near: Tensor, last: Tensor, weights: Tensor, whole: Tensor, equals: Tensor, share: Tensor
) -> Tensor:
    """The token at a share of the kept weights: nearer tokens come first, then those at `last`."""
    each = weight_at(near, last, weights)
    reached = share * (whole + equals * each)
    among = (reached >= whole) & (equals > 0)
    ones = ((reached - whole) / (each > 0).where(each, 1)).floor().minimum(equals - 1)
    chosen = near < last
    values = among.where(near.eq(last).float(), chosen.where(weights, 0))
    return first_beyond(values, among.where(ones + 0.5, reached), of_sum=False)


def first_beyond(values: Tensor, share: Tensor, of_sum: bool = True) -> Tensor:
    """The first position in each row (rows,) where the running sum of its values exceeds a share.

    share: (rows, 1) float64, relative to the row's sum (of_sum), or absolute. If rounding prevents
    the sum from reaching it, the last value that is not 0.
    """
    rows, count = values.shape
    blocks = -(-count // BLOCK)
    cut = values.pad([None, (0, blocks * BLOCK - count)]).reshape(rows, blocks, BLOCK).contiguous()
    until = cut.sum(-1).double().cumsum(-1)
    reached = share * until[:, -1:] if of_sum else share
    block = passed(until, reached)
    before = until.gather(1, (block - 1).maximum(0))
    rest = reached - (block > 0).where(before, 0)
    inner = cut.gather(1, block.unsqueeze(-1).expand(rows, 1, BLOCK)).squeeze(1)
    return (block * BLOCK + passed(inner.double().cumsum(-1), rest)).squeeze(1)


def passed(until: Tensor, reached: Tensor) -> Tensor:
    """How many running sums do not exceed `reached`, (rows, 1) int32; limited to actual values."""
    below = (until <= reached).sum(-1, keepdim=True, dtype="int32")
    return below.minimum((until < until[:, -1:]).sum(-1, keepdim=True, dtype="int32"))
