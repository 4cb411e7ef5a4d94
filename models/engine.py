"""Requests that share a model: they join and leave between steps without waiting for each other.

One thread does all the work: it reads a piece of one prompt, then draws one token for each request
whose prompt is read, and so on. If a prompt begins like one that a slot still holds, that part is
copied instead of read. Where it pays off, the next tokens of a greedy request are guessed
(`speculation.py`), and one step checks them all.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minigrad import Tensor, jit
from minigrad.models.errors import InputError
from minigrad.models.gpt import GPT
from minigrad.models.sampling import Sampler, Sampling, draw
from minigrad.models.slots import Row, Slots
from minigrad.models.speculation import Guesses


class Busy(InputError):
    """The queue of requests is full."""


@dataclass(frozen=True)
class Drawn:
    """A token, its log probability before temperature, and those of the likeliest tokens."""

    token: int
    logprob: float | None = None
    top: Sequence[tuple[int, float]] = ()


@dataclass(frozen=True)
class Ended:
    """An answer's end: "stop" (a token of `ends`, not included), "length", "cancelled", "error"."""

    reason: str
    message: str = ""


@dataclass(eq=False)
class Request:
    """A prompt to continue, and its receiver: `tell` is called in the engine's thread.

    logprobs: the number of likeliest tokens reported with each token; None for no log
    probabilities.
    """

    prompt: Sequence[int]
    tokens: int  # at most
    settings: Sampling
    tell: Callable[[Drawn | Ended], None]
    seed: int = 0
    ends: Collection[int] = ()
    logprobs: int | None = None
    shared: int = 0  # tokens of the prompt that were known when it began
    cancelled: bool = False
    read: int = 0  # tokens of the prompt whose keys are stored; the last token goes through a step
    said: list[int] = field(default_factory=list)
    sampler: Sampler | None = None  # None: the likeliest token is taken
    guesses: Guesses | None = None  # if the likeliest token is taken
    guessed: int = 0  # guessed tokens that were checked
    accepted: int = 0  # guessed tokens that were right, and saved a step

    def cancel(self) -> None:
        """Stop working on it: nobody waits for it."""
        self.cancelled = True


class Engine:
    """A model with `slots` requests at a time, each of at most `context` − 1 tokens, and a queue.

    Each request's tokens are bit by bit those it would have alone: see `slots.py`. guesses: the
    most tokens of a greedy request that are guessed at once.
    """

    def __init__(
        self, model: GPT, slots: int, context: int, queue: int = 64, guesses: int = 0
    ) -> None:
        self.slots = Slots(model, slots, context, guesses)
        self.most, self.queue = self.slots.context - 1, queue
        self.known: list[list[int]] = [[] for _ in range(slots)]  # by slot: tokens read in pieces
        self.active: dict[int, Request] = {}
        self.waiting: deque[Request] = deque()
        self.idle = list(range(slots))  # longest idle first
        self.steps = self.given = self.guessed = self.accepted = 0
        self._draws: dict[frozenset[str], Any] = {}  # by sampling steps: the program
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self.ready = threading.Event()
        self.failure: BaseException | None = None
        self.after: Callable[[], None] = lambda: None  # called after requests were told something

    def start(self) -> None:
        """Start the thread and wait until the programs are compiled; raises its error."""
        self._thread.start()
        self.ready.wait()
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        """End at once; unfinished requests are cancelled."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, request: Request) -> None:
        """Append a request to the queue; Busy if that is full."""
        with self._changed:
            if self._closed or self.failure is not None:
                raise Busy("the server is shutting down and accepts no more requests")
            if len(self.waiting) >= self.queue + len(self.idle):
                raise Busy(f"{len(self.waiting)} requests are already waiting: try again later")
            self.waiting.append(request)
            self._changed.notify()

    def _work(self) -> None:
        try:
            self.slots.warm()
            self.ready.set()
            while self._turn():
                self.after()
        except BaseException as error:  # everybody who waits is told
            self.failure = error
            self.ready.set()
            raise
        finally:
            with self._changed:
                rest = [*self.active.values(), *self.waiting]
                self.active.clear()
                self.waiting.clear()
            for request in rest:
                reason = "cancelled" if self.failure is None else "error"
                request.tell(Ended(reason, "the server has shut down"))
            self.after()

    def _turn(self) -> bool:
        """Read a piece of one prompt, or some short ones, and step the others; False at the end."""
        with self._changed:
            while not (self.active or self.waiting or self._closed):
                self._changed.wait()
            if self._closed:
                return False
            self._drop_cancelled()
            while self.idle and self.waiting:
                self._admit(self.waiting.popleft())
        room = self.slots.piece  # tokens for which the others wait
        for slot, one in self.active.items():
            size = self.slots.size(len(one.prompt) - 1 - one.read)
            if 0 < size <= room:
                self._read_piece(slot)
                room -= size
        going = {
            slot: ([*one.prompt[-1:], *one.said][-1], len(one.prompt) + len(one.said) - 1)
            for slot, one in self.active.items() if one.read == len(one.prompt) - 1
        }  # fmt: skip
        if going:
            guesses = self._guesses(going)
            self.steps += 1
            if guesses is not None:
                rows = self.slots.check({slot: ([token, *guesses.get(slot, ())], place)
                                         for slot, (token, place) in going.items()})  # fmt: skip
                for slot in going:
                    self._draw_guessed(slot, rows[slot], guesses.get(slot, ()))
            else:
                for slot, row in self.slots.step(going).items():
                    self._draw(slot, row)
        return True

    def _guesses(self, going: Mapping[int, tuple[int, int]]) -> dict[int, Sequence[int]] | None:
        """By slot the tokens to check; None if plain steps are probably faster."""
        if not self.slots.can_check([place for _, place in going.values()]):
            return None
        able = {slot: one.guesses for slot in going if (one := self.active[slot]).guesses}
        found: dict[int, Sequence[int]] = {
            slot: guess for slot, one in able.items() if (guess := one.next())
        }
        gain = sum(able[slot].luck for slot in found)
        # a check has no rows for waiting slots, so it may be faster than a step even without
        # guesses
        return found if gain > (self.slots.checks[len(going)] - 1) * len(going) else None

    def _draw_guessed(self, slot: int, rows: Sequence[Row], guess: Sequence[int]) -> None:
        """Draw the token after each row, as long as the guessed tokens of the rows are right."""
        request = self.active[slot]
        request.guessed += len(guess)
        self.guessed += len(guess)
        for row, guessed in zip(rows, [*guess, None], strict=True):
            if self._draw(slot, row) != guessed or slot not in self.active:
                return
            request.accepted += 1
            self.accepted += 1

    def _drop_cancelled(self) -> None:
        for slot in [slot for slot, one in self.active.items() if one.cancelled]:
            self._free(slot).tell(Ended("cancelled"))
        for one in [one for one in self.waiting if one.cancelled]:
            self.waiting.remove(one)
            one.tell(Ended("cancelled"))

    def _free(self, slot: int) -> Request:
        self.idle.append(slot)
        return self.active.pop(slot)

    def _admit(self, request: Request) -> None:
        """Give a request the slot that knows most of its beginning, or the longest idle one."""
        piece, head = self.slots.piece, list(request.prompt[:-1])
        shared = [_common(known, head) // piece * piece for known in self.known]
        best = max(range(len(shared)), key=shared.__getitem__)
        slot = best if shared[best] and best in self.idle else self.idle[0]
        self.idle.remove(slot)
        if slot != best and shared[best]:
            self.slots.copy(best, slot, shared[best])
        request.read = request.shared = shared[best]
        self.known[slot] = head[: shared[best]]
        if request.settings.steps:
            vocabulary = self.slots.model.config.vocabulary
            request.sampler = Sampler([request.settings], vocabulary, request.seed)
            request.sampler.see([request.prompt])
        elif self.slots.checks:
            request.guesses = Guesses(request.prompt, self.slots.guesses)
        self.active[slot] = request

    def _read_piece(self, slot: int) -> None:
        request = self.active[slot]
        tokens = request.prompt[request.read : len(request.prompt) - 1][: self.slots.piece]
        self.slots.read(slot, tokens, request.read)
        request.read += len(tokens)
        self.known[slot] += tokens

    def _draw(self, slot: int, row: Row) -> int | None:
        """Tell one more token to the slot's request; None if it has just ended instead."""
        request = self.active[slot]
        sampler = request.sampler
        token = row.likeliest if sampler is None else self._drawn_token(sampler, row)
        if token in request.ends:
            self._free(slot).tell(Ended("stop"))
            return None
        request.said.append(token)
        self.given += 1
        if request.guesses is not None:
            request.guesses.add(token)
        request.tell(_drawn(token, row, request.logprobs))
        full = len(request.prompt) + len(request.said) >= self.most
        if full or len(request.said) >= request.tokens:
            self._free(slot).tell(Ended("length"))
        return token

    def _drawn_token(self, sampler: Sampler, row: Row) -> int:
        """A token drawn by a program that all requests with the same sampling steps share."""
        steps = sampler.steps
        if steps not in self._draws:
            self._draws[steps] = jit(lambda *given: draw(steps, *given))
        with Tensor.no_grad():
            return int(self._draws[steps](Tensor(row.logits[None]), *sampler.state).item())


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """The number of equal tokens at the beginning of two rows."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(first), len(second)))


def _drawn(token: int, row: Row, count: int | None) -> Drawn:
    if count is None:
        return Drawn(token)
    wide = row.logits.astype(np.float64)
    wide -= wide.max()
    wide -= np.log(np.exp(wide).sum())
    best = np.argsort(-wide, kind="stable")[:count].tolist()
    return Drawn(token, float(wide[token]), [(number, float(wide[number])) for number in best])
