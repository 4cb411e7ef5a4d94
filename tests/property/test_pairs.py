"""Pairs of programs that must agree. See `pairs` for the command, `pair_kinds` for the kinds."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings

from minigrad import Tensor

from .graphs import Graph, Statement
from .pair_kinds import KINDS
from .pair_oracles import Beyond, Ints, Played
from .pairs import Pair, fails, make_pair, report

# A few pairs of each kind in CI; 20,000 in all with the profile "long".
PAIRS = 6 if settings().max_examples <= 20 else 20_000 // len(KINDS)
FIRST_SEED = random.SystemRandom().randrange(2**31)


@pytest.mark.parametrize("kind", KINDS)
def test_new_pairs(kind: str, compiled: str) -> None:
    """Pairs of new seeds in each run; a failure prints its seed and both programs."""
    seeds = range(FIRST_SEED, FIRST_SEED + PAIRS)
    failures = [text for text in (report(seed, compiled, (kind,)) for seed in seeds) if text]
    assert not failures, "\n\n".join(failures[:3])


def test_a_seed_makes_one_pair(reference: str) -> None:
    for seed in range(2 * len(KINDS)):
        kind, pair = make_pair(seed)
        assert pair.script(reference) == make_pair(seed)[1].script(reference)
        assert pair.script(reference) == make_pair(seed, (kind,))[1].script(reference)
    assert {make_pair(seed)[0] for seed in range(len(KINDS))} == set(KINDS)


def _graph(code: str) -> Graph:
    leaf = Statement("a", "leaf(1, (5,), 'float32', 3, device, real)", (), (5,), "float32")
    return Graph((leaf, Statement("b", code, ("a",), (5,), "float32")), ("b",))


def test_a_difference_is_noticed(reference: str) -> None:
    """Differences in an exception, in the shape, and in one element by more than rounding."""
    assert fails(Pair(_graph("a * 2"), _graph("a + a")), reference) is None
    near = "a * 2 + (Tensor.arange(5) == 3) * 1e-6"
    for code, said in ((near, "1 of 5"), ("a[:4] * 2", "expected (5,)"), ("a.none()", "Error")):
        assert said in str(fails(Pair(_graph("a * 2"), _graph(code)), reference))


def test_an_oracle_notices_a_difference(
    reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that is none, a wrong sum, and a bad index are noticed; correct programs pass."""
    assert Played(1).problems(reference) == []
    with monkeypatch.context() as patched:
        patched.setattr(Tensor, "clone", lambda x: x)
        assert any(Played(seed).problems(reference) for seed in range(20))
    assert Ints("Tensor([5]) + 1", (7,), True).problems(reference)
    assert Ints("Tensor([5]) + 1", (6,), False).problems(reference) == []
    fine = Beyond("x[i]", 5, (4, -5), "int32", None, False)
    assert fine.problems(reference) == []
    assert Beyond("x[i]", 5, (4, -5), "int32", 4, False).problems(reference)
