"""A captured step with inputs of several sizes: a capture for each that comes repeatedly.

Only the first two sizes are compiled. A size runs twice, is captured, and replayed from then on.
"""

from __future__ import annotations

from threading import Thread

import numpy as np
import pytest
from devices import CPU
from jit.arrays import data

from minigrad import GlobalCounters, Tensor, jit, nn
from minigrad.programs import FREQUENT, programs
from minigrad.runtimes import cpu_pool

SIZES = (6, 6, 6, 9, 9, 9, 9, 4, 4, 4, 4, 6, 31, 31, 31, 31, 9)


def trainer(device):
    """A training step of a small network, with the same weights each time."""
    Tensor.manual_seed(5)
    layers = [nn.Linear(7, 12), nn.Linear(12, 3)]
    parameters = nn.state.get_parameters(layers)
    own = [p.detach().to(device).realize().requires_grad_() for p in parameters]
    optimizer = nn.optim.Adam(own, lr=0.05)
    weights = optimizer.params

    def step(x, y):
        hidden = (x @ weights[0].T + weights[1]).relu()
        loss = (hidden @ weights[2].T + weights[3]).cross_entropy(y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.realize()

    return step


def batch(size, device):
    rng = np.random.default_rng(size)
    x = rng.standard_normal((size, 7)).astype(np.float32)
    y = rng.integers(0, 3, size).astype(np.int32)
    return Tensor(x, device=device).realize(), Tensor(y, device=device).realize()


def test_every_size_trains_alike(on_device):
    """For any order of sizes, the captured step gives the same losses as the function."""
    plain, captured = trainer(on_device), jit(trainer(on_device))
    expected = [plain(*batch(size, on_device)).item() for size in SIZES]
    given = [captured(*batch(size, on_device)).item() for size in SIZES]
    np.testing.assert_allclose(given, expected, rtol=2e-5)
    assert expected[0] != expected[1]


def test_from_the_third_size_on_nothing_is_compiled(compiled):
    programs.forget()
    step = jit(trainer(compiled))
    for size in (6, 6, 6, 9, 9, 9, 9):
        step(*batch(size, compiled)).item()
    before = GlobalCounters.programs_compiled
    for size in (4, 4, 4, 4, 31, 31, 31, 31, 6, 9, 100):
        step(*batch(size, compiled)).item()
    assert GlobalCounters.programs_compiled == before


def test_other_extents_are_captures_of_their_own(on_device):
    """The third call does not run the function, nor does the fourth with another size."""
    seen = []
    step = jit(lambda x: seen.append(x.shape) or x.sum(0))
    for size in (2, 2, 2, 3, 3, 3, 3, 2, 3, 2):
        given = data(size, 4)
        np.testing.assert_allclose(step(Tensor(given)).numpy(), given.sum(0), rtol=1e-6)
    assert seen == [(2, 4)] * 2 + [(3, 4)] * 3
    step.reset()
    step(Tensor(data(3, 4)))
    assert len(seen) == 6


@pytest.mark.parametrize("count", [20])
def test_old_captures_make_room(reference, count):
    """The captures that were used last are kept."""
    seen = []
    step = jit(lambda x: seen.append(len(x)) or x + 1)
    for size in (1, 1, *(n for n in range(2, count) for _ in range(3))):
        step(Tensor(data(size)))
    seen.clear()
    for size in (count - 1, 1, count - 2, 2):
        step(Tensor(data(size)))
    assert seen == [2]


def texts(device):
    """A training step of a small attention layer, and batches of two texts of a length."""
    Tensor.manual_seed(5)
    weights = [Tensor.randn(*shape, requires_grad=True).to(device).realize().requires_grad_()
               for shape in ((9, 6), (6, 9))]  # fmt: skip
    optimizer = nn.optim.SGD(weights, lr=0.1)

    def step(tokens):
        h = weights[0][tokens]
        scores = (h @ h.transpose(-1, -2)).softmax(-1)
        loss = (scores @ h @ weights[1]).reshape(-1, 9).cross_entropy(tokens.reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.realize(), scores.sum((1, 2))

    def batch(length):
        tokens = np.random.default_rng(length).integers(0, 9, (2, length)).astype(np.int32)
        return Tensor(tokens, device=device).realize()

    return step, batch


def test_inner_sizes_train_alike(on_device):
    """Also after a size has come often, and has a program of its own."""
    (plain, batch), (captured, _) = texts(on_device), texts(on_device)
    captured, lengths = jit(captured), (7, 5, 7, 11, 11, 11, 11, 5, 5, *[11] * 40, 6, 6, 7)
    for length in lengths:
        expected, given = plain(batch(length)), captured(batch(length))
        for one, other in zip(expected, given, strict=True):
            np.testing.assert_allclose(other.numpy(), one.numpy(), rtol=2e-5)


def test_from_the_third_inner_size_on_nothing_is_compiled(compiled):
    """Until one has come more than `FREQUENT` times: its two programs are compiled, and no more."""
    programs.forget()
    step, batch = texts(compiled)
    step = jit(step)
    for length in (6, 6, 6, 9, 9, 9, 9):
        step(batch(length))
    before = GlobalCounters.programs_compiled
    for length in (4, 31, 6, 17, 4, 4, 4, 9, 5, *[17] * FREQUENT):
        step(batch(length))
    assert GlobalCounters.programs_compiled == before
    for length in [17] * FREQUENT:
        step(batch(length))
    assert GlobalCounters.programs_compiled == before + 2


def test_sizes_that_differ_from_the_first_call_on(compiled):
    """No size comes twice: the third is the last that is compiled."""
    programs.forget()
    step, batch = texts(compiled)
    step = jit(step)
    for length in (6, 9, 4):
        step(batch(length))
    before = GlobalCounters.programs_compiled
    for length in (10, 5, 8, 7):
        step(batch(length))
    assert GlobalCounters.programs_compiled == before


def test_many_inner_sizes_keep_little_memory(compiled):
    """The captures of old sizes go, with the memory that they keep."""
    step = jit(lambda x: (x @ x.T).softmax(-1).sum(0))
    kept = []
    for turn in range(3):
        for n in range(100 + turn * 30, 130 + turn * 30):
            x = Tensor(data(n, n)).realize()
            for _ in range(4):
                step(x)
        del x
        kept.append(GlobalCounters.mem_used)
    assert kept[2] < kept[1] + 20 * 190 * 190 * 4


def centred(x, weight):
    """A sum that needs the whole product in memory before it goes on."""
    rows = x @ weight
    return ((rows - rows.mean(0)).exp() @ weight.T).sum()


def test_captures_keep_no_memory_between_kernels(compiled):
    """One runs at a time, so sixteen sizes need no more than the one that runs."""
    weight = Tensor(data(8, 1000), device=compiled).realize()
    step, used = jit(centred), []
    for n in (100, 300, 290, 280, 270, 260, 310):
        x = Tensor(data(n, 8), device=compiled).realize()
        for _ in range(4):
            step(x, weight).item()
        used.append(GlobalCounters.mem_used)
    one = 300 * 1000 * 4
    assert max(used) < used[0] + one // 2


def test_inputs_of_several_shapes_are_copied_without_programs(compiled):
    """A program that copies arrays of any shape would lay them out at their bounds."""
    programs.forget()
    inputs = [Tensor(data(*shape), device=compiled).realize() for shape in ((7, 5), (2, 9), (4, 4))]
    step = jit(lambda *given: [x * 2 for x in given])
    step(*inputs)
    before = GlobalCounters.programs_compiled
    for x, y in zip(inputs, step(*inputs), strict=True):
        np.testing.assert_array_equal(y.numpy(), 2 * x.numpy())
    assert GlobalCounters.programs_compiled == before


def test_captures_share_the_memory_of_a_thread(monkeypatch):
    """What kernels write for themselves, as parts of factors, is as large as the largest needs."""
    made, area = [], cpu_pool.Area.__init__

    def watched(self, nbytes, *take):
        made.append(nbytes)
        area(self, nbytes, *take)

    sizes = (256, 248, 240, 232)
    weight = Tensor(data(1200, 1200), device=CPU).realize()
    inputs = [Tensor(data(n, 1200), device=CPU).realize() for n in sizes]
    (inputs[0] @ weight).realize()  # the thread's own area
    step = jit(lambda x: x @ weight)
    monkeypatch.setattr(cpu_pool.Area, "__init__", watched)
    for x in inputs:
        for _ in range(4):
            np.testing.assert_allclose(step(x).numpy(), (x @ weight).numpy(), rtol=1e-5)
    assert max(made) < 1 << 17, made


def test_captures_that_run_at_once(compiled):
    """Each of two threads has its own memory between kernels, as large as its step needs."""
    weight = Tensor(data(8, 1000), device=compiled).realize()
    inputs = [Tensor(data(n, 8), device=compiled).realize() for n in (100, 140)]
    expected = [centred(x, weight).item() for x in inputs]
    wrong = []

    def run(x, result):
        step = jit(centred)
        for _ in range(100):
            if step(x, weight).item() != result:
                wrong.append(x.shape)

    threads = [Thread(target=run, args=both) for both in zip(inputs, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_view_in_the_result_of_an_other_size(on_device):
    """In the first call with a size, too, the result has its own memory and is realized."""
    kept = Tensor([1.0, 2.0, 3.0, 4.0]).realize()
    outside = kept[1:]

    def step(x):
        y = x * 2
        return y[1:], outside

    step = jit(step)
    for size in (3, 3, 3, 5):
        part, same = step(Tensor.ones(size).contiguous())
        assert part.is_realized() and same is outside
    part += 1
    assert part.tolist() == [3.0] * 4
    kept += 1
    assert outside.tolist() == [3.0, 4.0, 5.0]


def test_a_wrong_index_in_a_padded_replay(on_device):
    """It raises, and the next call is right again."""
    rows = data(8, 3)
    table = Tensor(rows).realize()
    step = jit(lambda i: table[i].sum((0, 1)))
    for length in (4, 4, 4, 5, 5, 5, 7, 7, 7, 7):
        index = np.arange(2 * length).reshape(2, length) % 8
        good, bad = Tensor(index.astype(np.int32)), Tensor(np.where(index == 3, 8, index))
        with pytest.raises(IndexError, match="index 8"):
            step(bad.cast(good.dtype)).numpy()
        np.testing.assert_allclose(step(good).numpy(), rows[index].sum((0, 1)), rtol=1e-5)
