"""Gradients of a graph of a known form equal those computed by the rules."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
from graph.nodes import form_of

from minigrad import Tensor
from minigrad.graph import reroll, template
from minigrad.graph.build import custom
from minigrad.graph.node import Node, topological
from minigrad.graph.template import Derived
from minigrad.tensor import backward

FORMS: dict[str, Any] = {
    "a product": lambda x, y: (x @ y.T).relu().square().mean(),
    "rules of their own": lambda x, y: (x.gelu() * y.sigmoid()).log1p().sum(),
    "zero": lambda x, y: (x * 0.0 + y).exp().sum(),
    "minus zero": lambda x, y: (x * -0.0 + y).exp().sum(),
    "parts": lambda x, y: (x[0] * y[1:].sum(0)).cat(x[1]).max(),
    "a loss": lambda x, y: (x + y).cross_entropy(Tensor([0, 2, 1])),
    "of one": lambda x, y: x.square().sum() + y.detach().sum(),
}


def leaves() -> list[Tensor]:
    values = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    return [Tensor(value, requires_grad=True) for value in values]


def gradients(loss: Tensor, of: list[Tensor]) -> list[Any]:
    """What the gradients compute."""
    for leaf in of:
        leaf.grad = None
    loss.backward()
    return [None if leaf.grad is None else form_of(leaf.grad.raw) for leaf in of]


def by_rules(loss: Tensor, of: list[Tensor]) -> list[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(template, "is_watched", lambda: True)
        return gradients(loss, of)


@pytest.fixture(autouse=True)
def derived(monkeypatch: pytest.MonkeyPatch) -> Derived:
    """Gradients that were derived in this test."""
    found = Derived()
    monkeypatch.setattr(backward, "_derived", found)
    return found


@pytest.mark.parametrize("name", FORMS)
def test_a_form_seen_before_has_the_gradients_of_its_rules(name: str, derived: Derived) -> None:
    for other in (FORMS[name], *FORMS.values()) * 3:
        of = leaves()
        loss = other(*of)
        assert gradients(loss, of) == by_rules(loss, of)
    assert len(derived.templates) == len(FORMS)


def test_scans_of_equal_steps_have_one_form(derived: Derived) -> None:
    results = []
    for _ in range(4):
        of = leaves()
        x, y = of
        Tensor.scan(lambda c, e, y=y: (c * e + y[0], c), x[0], x)[1].sum().backward()
        results.append([leaf.grad.tolist() for leaf in of])
    assert results.count(results[0]) == 4 and len(derived.templates) == 1


def test_who_wants_a_gradient_is_part_of_the_form() -> None:
    for marked in ((True, True), (True, False), (False, True)) * 3:
        of = leaves()
        for leaf, wanted in zip(of, marked, strict=True):
            leaf.requires_grad = wanted
        loss = FORMS["a product"](*of)
        found = gradients(loss, of)
        assert [g is not None for g in found] == list(marked)
        assert found == by_rules(loss, of)


def test_what_is_another_form_each_time_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, derived: Derived
) -> None:
    monkeypatch.setattr(derived.once, "most", 8)
    monkeypatch.setattr(derived.templates, "most", 2)
    for size in range(1, 20):
        x = Tensor(np.ones(size, np.float32), requires_grad=True)
        x.square().sum().backward()
    assert not derived.templates and len(derived.once) <= 8
    for size in (1, 1, 2, 2, 3, 3, 4, 4, 5, 5):
        x = Tensor(np.ones(size, np.float32), requires_grad=True)
        x.square().sum().backward()
        assert x.grad.tolist() == [2.0] * size
        assert len(derived.templates) <= 2


def test_a_form_keeps_no_memory(derived: Derived) -> None:
    for _ in range(4):
        of = leaves()
        FORMS["a product"](*of).backward()
    kept = [node for one in derived.templates.values() for node in one.kept]
    assert derived.templates and not any(node.op.value == "buffer" for node in kept)


def test_a_rule_that_is_made_each_time_is_not_kept(derived: Derived) -> None:
    """A new rule may get the hash of a freed one that was at its memory address."""
    for _ in range(8):
        of = leaves()
        node = of[0].node
        made = Tensor._of(custom(node, [node], lambda _, g: [g + g]))
        made.sum().backward()
        assert of[0].grad.tolist() == [[2.0] * 4] * 3
    assert not derived.templates


def test_what_a_rule_reads_from_outside_is_that_of_the_call(derived: Derived) -> None:
    """The rule is one function, but the memory that it reads is another each time."""
    scales = [Tensor([float(number)] * 4).realize() for number in range(6)]
    current: list[Tensor] = []

    def scaled(_: Node, g: Node) -> list[Node]:
        return [(Tensor._of(g) * current[-1]).node]

    for scale in scales:
        current.append(scale)
        of = leaves()
        node = of[0].node
        Tensor._of(custom(node, [node], scaled)).sum().backward()
        assert of[0].grad.tolist() == [scale.tolist()] * 3


def a_recurrence(x: Tensor, y: Tensor) -> Tensor:
    state = x[0, 0]
    for _ in range(40):
        for part in y[0]:
            state = (state * 0.5 + part).tanh()
    return state.sum()


def rows_of_an_array(x: Tensor, y: Tensor) -> Tensor:
    out = Tensor.zeros(30, 4)
    for i in range(30):
        out[i] = x[i % 2, i % 3] * y[0, 0]
    return out.square().sum()


def sums_of_copies(x: Tensor, y: Tensor) -> Tensor:
    return sum((x[i % 2] * y[0]).tanh().sum() for i in range(40))


def sums_of_rules(x: Tensor, y: Tensor) -> Tensor:
    weight = y[0] * 2  # not the same memory in all calls
    return sum((x[i % 2] * weight).gelu().log_softmax().sum() for i in range(20))


def a_recurrence_of_rules(x: Tensor, y: Tensor) -> Tensor:
    weight, state = y[1] * 2, x[0]
    for i in range(40):
        state = (state * weight + x[i % 2]).sigmoid().softmax(0)
    return state.square().sum()


LOOPS = [a_recurrence, rows_of_an_array, sums_of_copies, sums_of_rules, a_recurrence_of_rules]


def test_roots_are_not_taken_for_nodes_that_stay(derived: Derived) -> None:
    x = leaves()[0]
    inner, root = (x * 2).raw, ((x * 2).exp() * 2).raw
    order = topological([root])
    assert derived.form(order, [root, inner]) != derived.form(order, [root], [inner])


@pytest.mark.parametrize("loop", LOOPS)
def test_gradients_of_loops_are_copied(loop: Any, derived: Derived) -> None:
    """Steps of a training loop: equal but for their memory, which an optimizer changes."""
    weights = []
    for fresh in (False, True):
        of = leaves()
        for _ in range(6):
            if fresh:
                derived.templates.clear()
            loss = loop(*of)
            assert len(gradients(loss, of)) == 2
            with Tensor.no_grad():
                for leaf in of:
                    leaf -= leaf.grad * 0.1
            Tensor.realize(loss, *of)
        weights.append([leaf.numpy() for leaf in of])
        assert fresh or derived.templates
    np.testing.assert_array_equal(*weights)


@pytest.mark.parametrize("loop", LOOPS)
def test_values_of_loops_are_copied(loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loops = Derived()
    monkeypatch.setattr(reroll, "_derived", loops)
    values = np.random.default_rng(0).standard_normal((6, 2, 2, 3, 4)).astype(np.float32)
    found = [loop(*map(Tensor, pair)).item() for pair in values]
    assert loops.templates
    for pair, one in zip(values, found, strict=True):
        loops.templates.clear()
        assert loop(*map(Tensor, pair)).item() == one


@pytest.mark.parametrize("loop", LOOPS)
def test_copied_loops_keep_no_memory(
    loop: Any, derived: Derived, monkeypatch: pytest.MonkeyPatch
) -> None:
    loops = Derived()
    monkeypatch.setattr(reroll, "_derived", loops)
    memory = []
    for step in range(8):
        of = leaves()
        memory += [weakref.ref(leaf.realize().raw.arg) for leaf in of]
        if step % 2:
            loop(*of).backward()
            Tensor.realize(*(leaf.grad for leaf in of))
        else:
            loop(*of).item()
    assert derived.templates and loops.templates
    del of
    gc.collect()
    assert not any(one() for one in memory)
