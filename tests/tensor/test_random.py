"""Random numbers: the generator's published test vectors, streams, distributions."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest

from minigrad import Context, GlobalCounters, Tensor, dtypes, jit, nn
from minigrad.errors import DTypeError, RangeError, ShapeError
from minigrad.graph.node import topological
from minigrad.tensor import plan, random
from minigrad.tensor.random import threefry


def words(*values, device):
    return tuple(Tensor([v], dtype=dtypes.uint32, device=device).raw for v in values)


@pytest.mark.parametrize(
    ("counter", "key", "result"),
    [  # from the test vectors that accompany the paper (Random123, threefry2x32, 20 rounds)
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry(device, counter, key, result):
    made = threefry(words(*key, device=device), words(*counter, device=device))
    assert tuple(Tensor._of(node).item() for node in made) == result


def test_same_numbers_on_each_device(compiled, reference):
    def draw(device):
        Tensor.manual_seed(11)
        a = Tensor.rand(37, 5, device=device)
        b = Tensor.randint(100, low=-7, high=1000, device=device)
        c = Tensor.rand(9, dtype=dtypes.float64, device=device)
        return a.tolist(), b.tolist(), c.tolist()

    assert draw(reference) == draw(compiled)


def test_streams(on_device):
    Tensor.manual_seed(3)
    a, b = Tensor.rand(100), Tensor.rand(100)
    first, second = a.tolist(), b.tolist()
    assert first != second
    Tensor.manual_seed(3)
    assert Tensor.rand(100).tolist() == first
    assert Tensor.rand(100).tolist() == second
    Tensor.manual_seed(4)
    assert Tensor.rand(100).tolist() != first
    Tensor.manual_seed(3 + (1 << 32))
    assert Tensor.rand(100).tolist() != first


def test_numbers_do_not_depend_on_when_they_are_computed(on_device):
    Tensor.manual_seed(3)
    eager = [Tensor.rand(5).tolist() for _ in range(4)]
    Tensor.manual_seed(3)
    lazy = [Tensor.rand(5) for _ in range(4)]
    assert [x.tolist() for x in reversed(lazy)][::-1] == eager
    Tensor.manual_seed(3)
    lazy = [Tensor.rand(5) for _ in range(4)]
    Tensor.manual_seed(9)
    assert [x.tolist() for x in lazy] == eager


def test_repeated_draws_are_one_program(on_device):
    seen = set()
    for step in range(5):
        seen.add(Tensor.rand(16).sum().item())
        if step == 1:
            compiled = GlobalCounters.programs_compiled
    assert len(seen) == 5
    assert GlobalCounters.programs_compiled == compiled


def test_state_can_be_saved(on_device):
    Tensor.manual_seed(8)
    Tensor.rand(3).realize()
    state = Tensor.random_state()
    wanted = Tensor.rand(6).tolist()
    Tensor.rand(100).realize()
    Tensor.set_random_state(state)
    assert Tensor.rand(6).tolist() == wanted


@pytest.mark.parametrize("state", [5, (1,), (1, {"there": [1, 2]}), [1, [2]]])
def test_what_is_no_state(state):
    before = Tensor.random_state()
    with pytest.raises(ValueError, match=r"expected what Tensor.random_state\(\) returned, got"):
        Tensor.set_random_state(state)
    assert Tensor.random_state() == before


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_seeds_of_more_than_64_bits(seed):
    """Their other bits would not count."""
    with pytest.raises(ValueError, match=r"manual_seed.* expected −2⁶³"):
        Tensor.manual_seed(seed)


def test_threads_draw_for_themselves(on_device):
    found = []

    def work():
        Tensor.manual_seed(1)
        found.append(Tensor.rand(4, device=on_device).tolist())

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("captures", [False, True])
def test_another_thread_does_not_advance_the_state_during_a_draw(on_device, monkeypatch, captures):
    """Between the draw and its tensor, another thread computes numbers drawn before."""
    Tensor.manual_seed(1)
    wanted = [Tensor.rand(4).tolist() for _ in range(3)]
    Tensor.manual_seed(1)
    first = Tensor.rand(4)
    step = jit(lambda x: (x * 2).realize())

    def other():
        if captures:
            for _ in range(3):
                step(Tensor.ones(2).realize())
        else:
            first.realize()

    def meanwhile(*given, uniform=random._uniform):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        return uniform(*given)

    with monkeypatch.context() as patched:
        patched.setattr(random, "_uniform", meanwhile)
        second = Tensor.rand(4)
    third = Tensor.rand(4)
    assert [first.tolist(), second.tolist(), third.tolist()] == wanted


def statistic(sample, cdf):
    """√n times the Kolmogorov–Smirnov distance; above 1.95 with probability 0.001."""
    x = np.sort(np.asarray(sample, np.float64).ravel())
    n = len(x)
    steps = np.arange(n)
    at = cdf(x)
    return np.sqrt(n) * max((at - steps / n).max(), ((steps + 1) / n - at).max())


def normal_cdf(x):
    from math import erf

    return np.array([0.5 * (1 + erf(v / 2**0.5)) for v in x])


@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.float64], ids=lambda d: d.name)
def test_distributions(on_device, dtype):
    Tensor.manual_seed(21)
    n = 20_000
    x = Tensor.rand(n, dtype=dtype).numpy()
    assert x.dtype == dtype.name
    assert (x >= 0).all() and (x < 1).all()
    assert statistic(x, lambda v: v) < 1.95
    assert (
        statistic(Tensor.uniform(n, low=-3, high=5, dtype=dtype).numpy(), lambda v: (v + 3) / 8)
        < 1.95
    )
    assert statistic(Tensor.randn(n, dtype=dtype).numpy(), normal_cdf) < 1.95
    y = Tensor.normal(n, mean=4, std=0.5, dtype=dtype).numpy()
    assert statistic((y - 4) / 0.5, normal_cdf) < 1.95
    pairs = Tensor.rand(2, n, dtype=dtype).numpy()
    assert abs(np.corrcoef(pairs)[0, 1]) < 0.03
    assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) < 0.03


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_rounding_does_not_lead_to_the_end_of_an_interval(dtype):
    """In bfloat16 one number in 512 would round to 1, for which −log(1 − u) is infinite."""
    Tensor.manual_seed(23)
    for low, high in ((0.0, 1.0), (1.0, 2.0), (-3.0, -1.0), (0.0, 0.1), (-1.0, 0.0)):
        drawn = Tensor.uniform(20_000, low=low, high=high, dtype=dtype)
        written = Tensor.zeros(20_000, dtype=dtype).contiguous().uniform_(low, high)
        for values in (drawn.double().numpy(), written.double().numpy()):
            assert (values < high).all() and values.max() > low + (high - low) * 0.9
    assert Tensor.uniform(2, low=1.0, high=1.0, dtype=dtype).tolist() == [1.0, 1.0]


def chi_square(counts, expected):
    """Chi-square in standard deviations from its mean; it is nearly normal here."""
    value = ((counts - expected) ** 2 / expected).sum()
    degrees = counts.size - 1
    return (value - degrees) / np.sqrt(2 * degrees)


def test_other_continuous_distributions(on_device):
    """Samples of every constructor, mapped to the uniform or the standard normal distribution."""
    Tensor.manual_seed(22)
    shape = (100, 200)
    for name, bound in (
        ("scaled_uniform", 1 / np.sqrt(20_000)),
        ("glorot_uniform", np.sqrt(6 / 300)),
        ("kaiming_uniform", np.sqrt(6 / (1 + 0.01**2) / 200)),
    ):
        x = getattr(Tensor, name)(*shape).numpy().reshape(-1)
        assert statistic((x / bound + 1) / 2, lambda v: v) < 1.95, name
    x = Tensor.kaiming_normal(*shape).numpy().reshape(-1)
    assert statistic(x / np.sqrt(2 / (1 + 0.01**2) / 200), normal_cdf) < 1.95
    like = Tensor.empty(*shape, dtype="float64")
    assert statistic(like.rand_like().numpy().reshape(-1), lambda v: v) < 1.95
    assert statistic(like.randn_like().numpy().reshape(-1), normal_cdf) < 1.95


def test_draws_in_proportion(on_device):
    """With replacement: frequencies match; categories of weight 0 are never drawn."""
    Tensor.manual_seed(23)
    weights = np.array([0, 3, 1, 0, 4, 2, 0], np.float32)
    n = 20_000
    drawn = Tensor(weights).multinomial(n, replacement=True).numpy()
    counts = np.bincount(drawn, minlength=7)
    assert drawn.dtype == np.int32 and counts[weights == 0].sum() == 0
    used = weights > 0
    assert abs(chi_square(counts[used], n * weights[used] / 10)) < 4


def test_weights_whose_sum_is_infinite(on_device):
    """Only their shares count."""
    weights = Tensor([1e308, 1e308, 0.0], dtype="float64")
    assert {*weights.multinomial(40, replacement=True).tolist()} == {0, 1}


def test_draws_without_replacement(on_device):
    """The first draw follows the weights; no category comes twice, those of weight 0 come last."""
    Tensor.manual_seed(24)
    weights = np.array([3.0, 1, 0, 4, 2])
    n = 5000
    rows = Tensor(np.tile(weights, (n, 1))).multinomial(5).numpy()
    assert (np.sort(rows, axis=1) == np.arange(5)).all()
    assert (rows[:, 4] == 2).all()
    used = weights > 0
    counts = np.bincount(rows[:, 0], minlength=5)[used]
    assert abs(chi_square(counts, n * weights[used] / 10)) < 4
    second = np.bincount(rows[rows[:, 0] == 3, 1], minlength=5)[[0, 1, 4]]
    assert abs(chi_square(second, second.sum() * np.array([3, 1, 2]) / 6)) < 4


def test_each_order_is_as_likely(on_device):
    Tensor.manual_seed(25)
    orders = Tensor.stack(*(Tensor.randperm(4) for _ in range(50))).numpy()
    assert (np.sort(orders, axis=1) == np.arange(4)).all()
    for n in (100, 4000, 70_000):  # so many bits are sorted: 40, 40, 48
        assert (np.sort(Tensor.randperm(n).numpy()) == np.arange(n)).all()
    big = Tensor.randperm(5000).numpy()
    assert (np.sort(big) == np.arange(5000)).all()
    # in a random permutation, the numbers in the first half are like uniform samples
    assert statistic(big[:2500] / 5000, lambda v: v) < 1.95
    assert abs(np.corrcoef(big[:-1], big[1:])[0, 1]) < 0.05
    assert len({tuple(order) for order in orders}) > 12


def test_half_floats_stay_below_one(on_device):
    Tensor.manual_seed(0)
    for dtype in (dtypes.float16, dtypes.bfloat16):
        x = Tensor.rand(20_000, dtype=dtype).float().numpy()
        assert x.max() < 1
        assert abs(x.mean() - 0.5) < 0.02


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1.0, 2.0), (-2.0, -1.0), (-0.1, 0.1)])
def test_uniform_numbers_stay_below_their_end(low, high, dtype, on_device):
    Tensor.manual_seed(0)
    written, filled = (Tensor.zeros(20_000, dtype=dtype).contiguous() for _ in range(2))
    for x in (Tensor.uniform(20_000, low=low, high=high, dtype=dtype), written.uniform_(low, high),
              nn.init.uniform_(filled, low, high)):  # fmt: skip
        found = x.cast("float64").numpy()
        assert found.max() < high and abs(found.mean() - (low + high) / 2) < 0.02


@pytest.mark.parametrize("low", [0, 1_000_000, 2**24, 2**31 - 4, -(2**31)])
def test_uniform_integers_far_out(low, on_device):
    Tensor.manual_seed(0)
    for x in (Tensor.uniform(4000, low=low, high=low + 3, dtype="int32"),
              Tensor.zeros(4000, dtype="int32").contiguous().uniform_(low, low + 3)):  # fmt: skip
        counts = np.bincount(x.numpy().astype(np.int64) - low)
        assert len(counts) == 3 and (abs(counts - 4000 / 3) < 150).all()


@pytest.mark.parametrize(
    ("low", "high", "dtype", "error"),
    [
        (-3e38, 3e38, "float32", ValueError), (-1e5, 0.0, "float16", ValueError),
        (0.0, 1e5, "float16", ValueError), (-1.7e308, 1.7e308, "float64", ValueError),
        (0.0, 1e39, "bfloat16", ValueError), (1.0, 0.0, "float32", ValueError),
        (0.0, math.nan, "float32", ValueError), (0.0, math.inf, "int32", ValueError),
        (-5, 5, "uint8", RangeError), (0.0, 257.0, "uint8", RangeError),
    ],
)  # fmt: skip
def test_intervals_that_a_dtype_does_not_hold(low, high, dtype, error):
    """Their numbers were infinite, all equal, or heaped at the end of the dtype."""
    with pytest.raises(error, match="uniform"):
        Tensor.uniform(4, low=low, high=high, dtype=dtype)
    assert Tensor.uniform(4, low=0, high=256, dtype="uint8").dtype is dtypes.uint8
    wide = Tensor.uniform(100, low=-6e4, high=6e4, dtype="float16").float().numpy()
    assert np.isfinite(wide).all() and wide.min() < 0 < wide.max()


def test_orders_that_a_dtype_does_not_hold():
    for n, dtype in ((300, "int8"), (257, "uint8"), (3000, "float16"), (3, "bool")):
        with pytest.raises(RangeError, match=f"a dtype that holds {n - 1}"):
            Tensor.randperm(n, dtype=dtype)
    assert (np.sort(Tensor.randperm(256, dtype="uint8").numpy()) == np.arange(256)).all()


def test_randint(on_device):
    Tensor.manual_seed(2)
    x = Tensor.randint(7, 1000, low=-3, high=4).numpy()
    assert x.shape == (7, 1000)
    counts = np.bincount((x + 3).ravel(), minlength=7)
    assert len(counts) == 7
    assert (abs(counts - 1000) < 150).all()
    wide = Tensor.randint(1000, low=0, high=2**32, dtype=dtypes.int64).numpy()
    assert wide.max() > 2**31
    with pytest.raises(ValueError, match="low"):
        Tensor.randint(3, low=2, high=2)
    with pytest.raises(DTypeError):
        Tensor.rand(3, dtype=dtypes.int32)
    with pytest.raises(ShapeError):
        Tensor.rand(-1)


def test_initialisers(on_device):
    Tensor.manual_seed(5)
    bounds = {
        "scaled_uniform": (50 * 80) ** -0.5,
        "glorot_uniform": (6 / 130) ** 0.5,
        "kaiming_uniform": (6 / (1 + 0.01**2) / 80) ** 0.5,
    }
    for name, bound in bounds.items():
        x = getattr(Tensor, name)(50, 80).numpy()
        assert 0.95 * bound < abs(x).max() <= bound, name
        assert abs(x.mean()) < 0.05 * bound
    x = Tensor.kaiming_normal(50, 80, a=0).numpy()
    assert abs(x.std() - (2 / 80) ** 0.5) < 0.01


def test_dropout(on_device):
    Tensor.manual_seed(1)
    x = Tensor.ones(100, 100)
    assert x.dropout(0.3) is x
    with Tensor.train():
        y = x.dropout(0.3).numpy()
        kept = (y != 0).mean()
        assert abs(kept - 0.7) < 0.02
        np.testing.assert_allclose(y[y != 0], 1 / 0.7, rtol=1e-6)
        assert (x.dropout(1).numpy() == 0).all()
        assert x.dropout(0) is x
        with pytest.raises(ValueError, match="expected a number in 0 … 1"):
            x.dropout(1.5)
        a, b = x.dropout(0.5).numpy(), x.dropout(0.5).numpy()
    assert (a != b).any()


def test_the_kernels_of_each_dropout_are_the_same(compiled, tmp_path):
    def made(layers):
        x, w = Tensor.ones(12, 33).contiguous(), Tensor.ones(33, 33)
        Tensor.realize(x, w)
        GlobalCounters.reset()
        for _ in range(layers):
            x = (x @ w).contiguous().dropout(0.25)
        x.realize()
        return GlobalCounters.kernels_compiled

    with Context(CACHE=str(tmp_path), DEVICE=compiled), Tensor.train():
        made(4)
        assert made(9) <= 1  # the kernel that counts the draws


def test_more_numbers_than_the_counter_has():
    assert Tensor.rand(2**16, 2**16).shape == (2**16, 2**16)  # never computed
    for draw in (Tensor.rand, Tensor.randn, Tensor.randint):
        with pytest.raises(ShapeError, match="at most 2³² numbers; draw them in parts"):
            draw(2**16, 2**16 + 1)
    with pytest.raises(ShapeError, match="at most 2³² numbers"), Tensor.train():
        Tensor.ones(1).expand(2**33).dropout(0.5)


def test_zero_and_no_dimensions(on_device):
    assert Tensor.rand(0, 3).tolist() == []
    assert 0 <= Tensor.rand().item() < 1
    assert Tensor.randn(2, 0).shape == (2, 0)


def test_a_draw_or_a_seed_computes_nothing_that_nobody_wants(on_device):
    Tensor.manual_seed(5)
    first = Tensor.rand(4).tolist()
    wanted = Tensor.rand(6).tolist()
    Tensor.manual_seed(5)
    Tensor.rand(4)
    kept = Tensor.rand(6) + 0.0
    whole = Tensor.rand(1 << 20, 1) + Tensor.zeros(1 << 20)  # 4 TiB: computing it would fail
    assert Tensor.rand(2).shape == (2,) and Tensor.rand(2).tolist()
    Tensor.manual_seed(5)
    assert Tensor.rand(4).tolist() == first
    assert kept.tolist() == wanted
    assert whole.shape == (1 << 20, 1 << 20)


def test_dropout_keeps_the_mean(on_device):
    with Tensor.train():
        Tensor.manual_seed(0)
        kept = Tensor.ones(20000).dropout(0.25).numpy()
    assert set(np.unique(kept)) <= {0.0, np.float32(1 / 0.75)}
    assert abs(kept.mean() - 1) < 0.02


def test_a_draw_looks_at_nothing_that_is_older_than_the_draw_before(on_device, monkeypatch):
    """With any number of pending lazy tensors, each of which reads random numbers of its own."""
    looked_at = []

    def counting(roots, *known):
        order = topological(roots, *known)
        looked_at[-1] += len(order)
        return order

    monkeypatch.setattr(plan, "topological", counting)
    waiting = []
    for _ in range(40):
        looked_at.append(0)
        drawn = Tensor.rand(4)
        waiting.append((drawn * 2.0, Tensor.rand(4) + drawn))
        Tensor.rand(2).realize()
    assert looked_at[39] == looked_at[9] > 0
    assert len({tuple(both.tolist()) for _, both in waiting}) == 40
