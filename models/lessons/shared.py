"""What several lessons take: SmolLM2 with its tokenizer, and small models that learn the plays."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from minigrad import Tensor, nn
from minigrad.models.gpt import GPT
from minigrad.models.gpt_config import GPTConfig
from minigrad.models.inspection import shown
from minigrad.models.parallel import Rank, run
from minigrad.models.parallel.timeline import Ranks, as_text, read_trace
from minigrad.models.parallel.training import Replica
from minigrad.models.pretrained import load_model, smollm
from minigrad.models.text import Windows, load_text, split
from minigrad.models.tokenizer import CharacterTokenizer, Tokenizer
from minigrad.models.train import TrainingPlan, TrainingRun

CONTEXT = 256  # of SmolLM2 here; it could do with 8,192


@lru_cache(maxsize=1)
def language_model() -> tuple[GPT, Tokenizer]:
    """SmolLM2-135M-Instruct: 30 layers of 9 heads, 576 dims, 49,152 tokens."""
    return load_model(smollm(), context=CONTEXT)


@lru_cache(maxsize=1)
def word_table() -> Tensor:
    """Its embedding, a row for each token: (49152, 576) float32."""
    table: Any = language_model()[0].wte
    with Tensor.no_grad():
        result: Tensor = table.weight.dequantized().contiguous().realize()
    return result


def names(ids: list[int]) -> list[str]:
    """Tokens of SmolLM2 as they can be read, without quotes; a dot is a space."""
    tokenizer = language_model()[1]
    return [shown(tokenizer, number)[1:-1].replace(" ", "·") for number in ids]


@dataclass(frozen=True)
class Plays:
    """Shakespeare's plays, character by character."""

    tokenizer: CharacterTokenizer
    training: Windows
    validation: Windows


@lru_cache(maxsize=4)
def plays(context: int) -> Plays:
    """In windows of `context` characters."""
    text = load_text()
    tokenizer = CharacterTokenizer.of(text)
    training, validation = split(tokenizer.encode_array(text))
    return Plays(tokenizer, Windows(training, context), Windows(validation, context))


def learn(config: GPTConfig, plan: TrainingPlan, windows: Windows) -> tuple[GPT, list[float]]:
    """A new GPT, trained; and the milliseconds of each step."""
    Tensor.manual_seed(plan.seed)
    model = GPT(config)
    run, times = TrainingRun(model, plan), []
    for _ in range(plan.steps):
        start = time.perf_counter()
        run.advance(windows)
        times.append(1e3 * (time.perf_counter() - start))
    return model, times


def losses_of(
    replica: Replica, model: Any, batches: Iterable[tuple[np.ndarray, np.ndarray]], lr: float
) -> list[float]:
    """One rank's part of training by plain descent: the loss of each batch, a step each."""
    optimizer = nn.optim.SGD(nn.state.get_parameters(model), lr=lr)
    losses = []
    with Tensor.train():
        for x, y in batches:
            optimizer.zero_grad()
            loss = model.loss(*replica.batch(x, y)) * replica.weight
            loss.backward()
            loss = replica.share_gradients(loss, optimizer.params)
            optimizer.step()
            losses.append(float(loss.item()))
    return losses


def traced(program: Callable[[Rank], Any], dp: int = 1, sp: int = 1) -> tuple[list[Any], Ranks]:
    """What a program gives on each of dp · sp ranks, and what they did when."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        return run(program, dp, sp, trace=path), read_trace(path)


def last_step(done: Ranks, steps: int) -> str:
    """The last of so many steps, as lines of characters."""
    starts = sorted(event["start"] for event in done[0][1])
    end = max(event["stop"] for _, events in done for event in events)
    return as_text(done, starts[-len(starts) // steps], end, 72)
