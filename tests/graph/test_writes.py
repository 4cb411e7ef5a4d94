"""Loops that write to parts of an array: as one operation, with the same values and gradients."""

from __future__ import annotations

import random

import numpy as np
import pytest

from minigrad import GlobalCounters, Tensor, dtypes
from minigrad.graph.node import Op, topological
from minigrad.graph.reroll import with_loops
from minigrad.programs import programs

SHAPE = (12, 3)


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ops(x: Tensor) -> list[Op]:
    """The operations of a tensor's graph after the passes on loops."""
    made, _ = with_loops([x.raw], topological([x.raw]))
    return [node.op for node in topological(made)]


def rows_in_order(out, x, draw):
    for i in range(12):
        out[i] = x[i] * 2


def rows_backwards(out, x, draw):
    for i in reversed(range(12)):
        out[i] = x[11 - i]
        out[i] = x[i]


def rows_anywhere(out, x, draw):
    for i in draw.sample(range(12), 12) + draw.choices(range(12), k=9):
        out[i] = x[i] + 1


def all_rows_but_one(out, x, draw):
    for i in (3, 0, 11, 2, 4, 6, 8, 10, 9, 7, 3):
        out[i] = x[i] + 1


def parts_of_rows(out, x, draw):
    for i in range(10):
        out[2:12, 1:][i % 10] = x[i % 10 + 2, 1:]


def blocks(out, x, draw):
    for i in draw.choices(range(0, 12, 2), k=12):
        out[i : i + 2] = i / 2


def blocks_that_do_not_divide(out, x, draw):
    for i in (0, 5) * 6:
        out[i : i + 5] += x[i : i + 5]


def blocks_beside_each_other_but_in_no_grid(out, x, draw):
    for i in (0, 3, 6, 9, 3, 0) * 2:
        out[i : i + 2] += x[i : i + 2]


def sums_the_other_way(out, x, draw):
    for i in draw.choices(range(12), k=30):
        out[i] = x[11 - i] * 2 + out[i]


def counts(out, x, draw):
    for i, j in zip(draw.choices(range(12), k=40), draw.choices(range(3), k=40), strict=True):
        out[i, j] += 1


def sums(out, x, draw):
    for i in draw.choices(range(12), k=30):
        out[i] += x[11 - i] * 2


def differences(out, x, draw):
    for i in draw.choices(range(12), k=30):
        out[i] -= x[11 - i]


def from_the_row_before(out, x, draw):
    out[0] = x[0]
    for _ in range(3):
        for i in range(1, 12):
            out[i] = out[i - 1] * 0.5 + x[i]


def from_the_row_behind(out, x, draw):
    for i in range(11):
        out[i] = out[i + 1] * 0.5 + x[i]


def from_rows_that_stay(out, x, draw):
    for i in (0, 7, 2, 9, 4, 11, 0, 7, 2, 9):
        out[i] = out[(i + 1) % 12] - out[5] + x[i]


def from_any_row(out, x, draw):
    for i in draw.choices(range(12), k=20):
        out[i] = out[draw.randrange(12)] * 0.5 + x[i]


def from_two_blocks(out, x, draw):
    for _ in range(3):
        for i in range(2, 12, 2):
            out[i : i + 2] = out[i - 1 : i + 1] * 0.5 + x[i : i + 2]


def one_place(out, x, draw):
    for i in range(12):
        out[3] = x[i % 12]


def from_a_row_that_stays(out, x, draw):
    for i in range(12):
        out[3] = out[5] * 0.5 + x[i]


def places_that_overlap(out, x, draw):
    for i in range(6):
        out[i : i + 3] = x[i : i + 3]
        out[i : i + 3] += x[i : i + 3]


def columns_and_rows(out, x, draw):
    for i in range(12):
        out[:, i % 3] = x[:, i % 3]
        out[i % 12] = x[i % 12]


def with_reads_of_all(out, x, draw):
    for i in range(24):
        out[i % 12] = x[i % 12] + i
        if i % 9 == 8:
            out[i % 12] += out.sum() * 0.1


LOOPS = (
    rows_in_order, rows_backwards, rows_anywhere, all_rows_but_one, parts_of_rows, blocks,
    blocks_that_do_not_divide, blocks_beside_each_other_but_in_no_grid, counts, sums,
    sums_the_other_way, differences, from_the_row_before, from_the_row_behind, from_rows_that_stay,
    from_any_row, from_two_blocks, from_a_row_that_stays, one_place, places_that_overlap,
    columns_and_rows, with_reads_of_all,
)  # fmt: skip


@pytest.mark.parametrize("base", ["memory", "zeros", "computed"])
@pytest.mark.parametrize("loop", LOOPS)
def test_values_are_those_of_numpy(on_device, loop, base):
    start = np.zeros(SHAPE, np.float32) if base == "zeros" else array(*SHAPE, seed=1)
    out = Tensor.zeros(*SHAPE) if base == "zeros" else Tensor(start)
    out = out * 1 if base == "computed" else out
    x, expected = array(*SHAPE), start.copy()
    loop(out, Tensor(x), random.Random(3))
    loop(expected, x, random.Random(3))
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loop", LOOPS)
def test_gradients_are_differences(on_device, loop):
    """All loops are affine, so that differences of their results are exact up to rounding."""
    start, x, weight = array(*SHAPE, seed=1), array(*SHAPE), array(*SHAPE, seed=2)

    def loss(start, x):
        out = start.astype(np.float64)
        loop(out, x.astype(np.float64), random.Random(3))
        return (out * weight).sum()

    leaves = [Tensor(given, requires_grad=True) for given in (start, x)]
    out = leaves[0] * 1
    loop(out, leaves[1], random.Random(3))
    (out * Tensor(weight)).sum().backward()
    for number, leaf in enumerate(leaves):
        expected = np.zeros(SHAPE)
        for place in np.ndindex(SHAPE):
            moved = [start.astype(np.float64), x.astype(np.float64)]
            moved[number][place] += 1
            expected[place] = loss(*moved) - loss(start, x)
        if leaf.grad is None:  # only numbers were written
            assert loop in (blocks, counts) and number == 1
        else:
            np.testing.assert_allclose(leaf.grad.numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("loop", "op"),
    [(rows_in_order, Op.MUL), (rows_anywhere, Op.ADD), (one_place, Op.SHRINK),
     (from_a_row_that_stays, Op.MUL),
     (all_rows_but_one, Op.SCATTER), (counts, Op.SCATTER_ADD), (sums, Op.SCATTER_ADD),
     (sums_the_other_way, Op.SCATTER_ADD), (differences, Op.SCATTER_ADD)],
)  # fmt: skip
def test_no_choice_is_left(loop, op):
    out, x = Tensor.zeros(*SHAPE), Tensor(array(*SHAPE)).realize()
    loop(out, x, random.Random(3))
    found = ops(out)
    assert op in found and found.count(Op.WHERE) <= 1


def test_what_a_loop_wrote_before_is_read_from_there():
    """So out[i] = f(out[i − 1]) is a LOOP whose state is a row, not the whole array."""
    x, out = Tensor(array(100, 3)).realize(), Tensor.zeros(100, 3)
    for i in range(1, 100):
        out[i] = (out[i - 1] * 0.5 + x[i]).tanh()
    assert Op.LOOP in ops(out)
    expected = np.zeros((100, 3), np.float32)
    for i in range(1, 100):
        expected[i] = np.tanh(expected[i - 1] * 0.5 + x.numpy()[i])
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_states_that_are_kept_stay(on_device):
    x = Tensor.zeros(20)
    states = []
    for i in range(20):
        x[i] = i + 1
        if i in (4, 12):
            states.append(x * 1)
    expected = np.arange(1, 21)
    for state, count in zip([*states, x], (5, 13, 20), strict=True):
        assert state.tolist() == [*expected[:count], *[0] * (20 - count)]


@pytest.mark.parametrize("new", [False, True])
def test_rows_that_are_added_to_are_read_elsewhere(new, on_device):
    """The old row, or the new one: what reads it needs the state, though the write does not."""
    x, sums = array(12, 3), []
    for out, rows in (Tensor.zeros(12, 3), Tensor(x)), (np.zeros((12, 3), np.float32), x):
        total = rows[0] * 0
        for i in random.Random(3).choices(range(12), k=20):
            old = out[i : i + 1]
            row = old + rows[i]
            total = total + (row if new else old * 2)
            out[i : i + 1] = row
        sums.append(total)
    np.testing.assert_allclose(sums[0].numpy(), sums[1], rtol=1e-5, atol=1e-5)


def test_negative_zeros_and_nans_are_written_as_they_are(on_device):
    x, out = Tensor([-0.0, float("nan"), float("-inf"), -0.0]).realize(), Tensor.ones(16)
    for i in range(15):
        out[i * 7 % 16] = x[i % 4]
    found, expected = out.numpy(), np.ones(16, np.float32)
    for i in range(15):
        expected[i * 7 % 16] = x.numpy()[i % 4]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))


def test_new_places_and_counts_compile_nothing(compiled):
    programs.forget()
    made = []
    for seed, count in enumerate((30, 41, 23, 52)):
        before = GlobalCounters.programs_compiled
        draw = random.Random(seed)
        table = Tensor.zeros(5, 4, dtype=dtypes.int32)
        expected = np.zeros((5, 4), int)
        for _ in range(count):
            i, j = draw.randrange(5), draw.randrange(4)
            table[i, j] += 1
            expected[i, j] += 1
        assert table.tolist() == expected.tolist()
        made.append(GlobalCounters.programs_compiled - before)
    assert made[0] > 0 and made[2:] == [0, 0]


def test_a_few_writes_at_new_places_compile_nothing(compiled):
    """Fewer than are joined: a part at any place of a whole is one number of a general program."""
    programs.forget()
    made = []
    for seed in range(4):
        before = GlobalCounters.programs_compiled
        out, expected = Tensor.zeros(40), np.zeros(40)
        for number in range(6):
            place = (number * 7 + seed * 5) % 40
            out[place] = expected[place] = number + 0.5
        assert out.tolist() == expected.tolist()
        made.append(GlobalCounters.programs_compiled - before)
    assert made[2:] == [0, 0]


def test_which_places_are_equal_is_not_structure(compiled):
    """The letters of words as rows with a single 1: they differ in which letters are equal."""
    programs.forget()
    weight = np.random.default_rng(0).standard_normal((9, 3)).astype(np.float32)
    w, made = Tensor(weight).realize(), []
    for word in ("abcdef", "badhfi", "aabbcc", "abcabc", "fffffa"):
        before = GlobalCounters.programs_compiled
        rows, expected = Tensor.zeros(6, 1, 9), 0
        for number, letter in enumerate(word):
            rows[number][0][ord(letter) - ord("a")] = 1
            expected = np.tanh(expected + weight[ord(letter) - ord("a")])
        state = Tensor.zeros(1, 3)
        for row in rows:
            state = (state + row @ w).tanh()
        np.testing.assert_allclose(state.numpy()[0], expected, rtol=1e-5, atol=1e-6)
        made.append(GlobalCounters.programs_compiled - before)
    assert made[2:] == [0, 0, 0]


def test_gradients_by_what_a_loop_reads_and_writes(on_device):
    """Tensors in the middle of a loop stay what they are, as targets of a gradient."""
    x, out = Tensor(array(12, 3), requires_grad=True), Tensor(array(12, 3, seed=1)) * 1
    for i in range(12):
        out[i] = x[i] * 2
        if i == 5:
            state, row = out * 1, out[3] * 1
    whole = out * 1
    loss = (whole * whole).sum() + (state * 3).sum() + (row * 5).sum()
    found = loss.gradient(whole, state, row, x)
    expected = np.full((12, 3), 0, np.float32)
    expected[:6] = 6
    expected[3] += 10
    np.testing.assert_allclose(found[0].numpy(), 2 * whole.numpy())
    np.testing.assert_allclose(found[1].numpy(), np.full((12, 3), 3))
    np.testing.assert_allclose(found[2].numpy(), np.full(3, 5))
    np.testing.assert_allclose(found[3].numpy(), 8 * x.numpy() + expected, rtol=1e-5)


def test_unsigned_counts_wrap_around(on_device):
    out, expected = Tensor.zeros(4, dtype=dtypes.uint8), np.zeros(4, int)
    for i in range(20):
        out[i % 3] -= i
        expected[i % 3] -= i
    assert out.tolist() == (expected % 256).tolist()
