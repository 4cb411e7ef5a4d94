"""Random programs give PyTorch's values. See `torch_programs` for the command."""

from __future__ import annotations

import pytest
from devices import REFERENCE
from hypothesis import settings

from minigrad import Tensor

from .torch_programs import Program, Statement, _theirs, check, failure_of, run, shrink

pytest.importorskip("torch", reason="PyTorch is not installed")

PROGRAMS = 30 if settings().max_examples <= 20 else 1_000
COMPILED = PROGRAMS // 15


@pytest.mark.filterwarnings("ignore::UserWarning")  # PyTorch's about x.T and Tensor.diag_embed
def test_programs() -> None:
    """The seeds are the same in every run; a failure prints the smallest program that shows it."""
    found = [text for seed in range(PROGRAMS) if (text := failure_of(seed, REFERENCE))]
    assert not found, "\n\n".join(found[:2])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_compiled_programs(compiled: str) -> None:
    """A few of other seeds."""
    found = [text for seed in range(-COMPILED, 0) if (text := failure_of(seed + 10**6, compiled))]
    assert not found, "\n\n".join(found[:2])


@pytest.mark.parametrize("mode, call", [("lazy", ""), ("step", ""), ("jit", "call 0: ")])
def test_a_difference_is_noticed(mode: str, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what has nothing to do with it is dropped."""
    texts = ("v0 = i0 + 1", "v1 = v0.flip(0)", "i0 += v0", "v2 = v0.roll(1)", "v3 = v2.abs()")
    statements = tuple(Statement(text, text, captured=True) for text in texts)
    program = Program(1, (("float32", (3,)),), graded=False, odd=False, statements=statements)
    assert check(program, mode, REFERENCE) is None
    monkeypatch.setattr(Tensor, "roll", lambda self, by: self)
    found = check(program, mode, REFERENCE)
    assert found is not None and found.kind == "differs" and found.what.startswith(f"{call}v2: ")
    smaller, again = shrink(program, found, REFERENCE)
    assert again.kind == "differs"
    assert [s.text for s in smaller.statements] == ["v0 = i0 + 1", "v2 = v0.roll(1)"]


@pytest.mark.parametrize("raises", [False, True])
def test_an_error_of_one_side_is_noticed(raises: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ours, and of PyTorch's."""
    statement = Statement("i0.view(5)" if raises else "v0 = i0.abs()", "", True, raises)
    program = Program(1, (("float32", (3,)),), graded=False, odd=False, statements=(statement,))
    assert check(program, "lazy", REFERENCE) is None
    monkeypatch.setattr(Tensor, "abs", lambda self: self.missing)
    monkeypatch.setattr(Tensor, "view", lambda self, *shape: self)
    found = check(program, "lazy", REFERENCE)
    assert found is not None and (found.kind, found.at) == ("answers" if raises else "raises", 0)


@pytest.mark.parametrize("layer", ["nn.ReLU()", "nn.LayerNorm(3)"])
def test_what_rounding_decides_is_not_compared(layer: str) -> None:
    """The slope of a ReLU at 10⁻⁸, and the normalization of large equal numbers."""
    template = "{new} = {call}"
    texts = ("v0 = m0(i0 * 1e-9 + 0.5)", "v1 = m0(i0 * 0 + 1e-9)", "v2 = m0(i0 * 0 + 999.0)")
    statements = tuple(Statement(text, template, captured=True) for text in texts)
    program = Program(1, (("float32", (3,)),), graded=False, odd=False, statements=statements,
                      setup=(f"m0 = {layer}",))  # fmt: skip
    refused = [bool(error) for error in run(program, program.start(_theirs(), program.theirs()))]
    assert refused == [False, "ReLU" in layer, "Norm" in layer]
