"""Programs with numbers as arguments: derived from two or more graphs, and matched with others."""

from __future__ import annotations

import contextlib
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from minigrad.dtype import dtypes
from minigrad.errors import ShapeError
from minigrad.graph import build
from minigrad.graph.canonical import Canonical, canonicalize
from minigrad.graph.general import General, Refused, Special, generalize, laid_out, unify
from minigrad.graph.node import Node, Op
from minigrad.graph.symbolic import Affine, Integer, var
from minigrad.graph.variable import evaluate
from minigrad.padded import Block, blocks
from minigrad.programs import FREQUENT, programs

from minigrad import Context, GlobalCounters, Tensor, Variable  # isort: skip

DEVICE = "REF"
F32 = dtypes.float32


def array(*shape: int, slot: int = 0) -> Node:
    return build.buffer(slot, F32, shape, DEVICE)


def part(x: Node, start: int, length: int) -> Node:
    ranges = [(start, start + length), *((0, extent) for extent in x.shape[1:])]
    return build.shrink(x, ranges)


def call(node: Node) -> Canonical:
    return canonicalize([node])


def general(*nodes: Node) -> General:
    calls = [call(node) for node in nodes]
    assert len({one.structure for one in calls}) == 1
    return generalize(calls[-1], [one.cells for one in calls])


def shape_at(found: General, values: dict[str, int]) -> tuple[int, ...]:
    return tuple(evaluate(extent, values) for extent in found.graph.roots[0].shape)


def rows(n: int, width: int = 5) -> Node:
    """Sums of n rows of a flat array."""
    return build.reduce(Op.SUM, build.reshape(array(n * width), (n, width)), [1])


def test_cells_that_differ_alike_share_a_variable() -> None:
    found = general(rows(6), rows(8))
    assert len(found.holes) == 1
    values = found.match(call(rows(20)).cells)
    assert values is not None and shape_at(found, values) == (20, 1)
    assert found.match(call(rows(6, width=4)).cells) is None


def test_what_follows_by_chance_is_found_out() -> None:
    """In two samples both extents are equal and get one variable; the third sample corrects it."""

    def two(n: int, m: int) -> Node:
        one = build.reshape(build.reduce(Op.SUM, array(m, slot=1), [0]), (1, 1))
        left, right = (build.expand(x, (n, 3)) for x in (build.reshape(array(n), (n, 1)), one))
        return build.reduce(Op.SUM, build.elementwise(Op.MUL, left, right), [1])

    first, second, third = two(4, 4), two(6, 6), two(5, 9)
    assert len(general(first, second).holes) == 1
    assert general(first, second).match(call(third).cells) is None
    found = general(first, second, third)
    assert len(found.holes) == 2
    values = found.match(call(two(11, 2)).cells)
    assert values is not None and shape_at(found, values) == (11, 1)


def test_starts_of_parts_are_variables_of_their_own() -> None:
    def both(i: int, j: int) -> Node:
        return build.elementwise(Op.ADD, part(array(20, 3), i, 4), part(array(20, 3, slot=1), j, 4))

    found = general(both(1, 1), both(2, 2))
    assert len(found.holes) == 2
    assert found.match(call(both(3, 9)).cells) is not None


def turned(n: int, rows: int = 3) -> Node:
    """The transpose of an input with rows of length n."""
    return build.contiguous(build.permute(array(rows, n), (1, 0)))


def merged(n: int) -> Node:
    """Pairs (n, 2) in each row merged into one dimension; n is not the last of its factors."""
    return build.contiguous(build.reshape(array(3, n, 2), (3, 2 * n)))


def split(n: int) -> Node:
    """Rows of length n of a flat array."""
    return build.contiguous(build.reshape(array(3 * n), (3, n)))


@pytest.mark.parametrize(
    ("make", "reads", "writes"),
    [(turned, (3, 20), (20, 3)), (split, (3, 20), (3, 20)), (merged, (3, 20, 2), (3, 40))],
)  # fmt: skip
def test_dimensions_inside_of_others(
    make: Callable[[int], Node], reads: tuple[int, ...], writes: tuple[int, ...]
) -> None:
    """Inner dimensions vary in arrays padded to a bound, if that is allowed."""
    found = general(make(4), make(5))
    values = found.match(call(make(20)).cells)
    assert values is not None
    for shapes, wanted in zip(laid_out(found.graph), (reads, writes), strict=True):
        now = [tuple(evaluate(e, values) for e in shape) for shape in shapes.values()]
        assert now == ([wanted] if wanted[0] == 3 else [])
    calls = [call(make(4)), call(make(5))]
    with pytest.raises(Special):
        generalize(calls[1], [one.cells for one in calls], may_pad=False)


def long_sum(length: int) -> Node:
    """Running sums of a row that is divided among threads, unless its length varies."""
    return build.scan(Op.CUMSUM, array(length), 0)


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (long_sum(1 << 16), long_sum((1 << 16) + 1), "cumsum"),
        (turned(5, 1 << 21), turned(6, 1 << 21), "is too large"),
    ],
)  # fmt: skip
def test_what_stays_special(first: Node, second: Node, reason: str) -> None:
    """Sizes that determine more than loop bounds."""
    calls = [call(first), call(second)]
    assert calls[0].structure == calls[1].structure and calls[0].cells != calls[1].cells
    with pytest.raises(Special) as error:
        generalize(calls[1], [one.cells for one in calls])
    assert reason in str(error.value)


def test_what_stays_special_keeps_nobody_alive() -> None:
    """A stored exception would keep the frames of all its callers."""

    def attempt(first: Node, second: Node) -> weakref.ref[Any]:
        calls, local = [call(first), call(second)], {1}
        with contextlib.suppress(Special):
            generalize(calls[1], [one.cells for one in calls])
        return weakref.ref(local)

    gc.disable()
    try:
        assert attempt(merged(4), merged(5))() is None
        sums = [build.scan(Op.CUMSUM, array(n), 0) for n in (4, 5)]
        assert attempt(*sums)() is None
    finally:
        gc.enable()


def test_integers_are_pickled() -> None:
    found = general(rows(6), rows(8))
    n: Integer = found.holes[0].atom.index
    for x in (7, n, n * 3 + 1, (n + 12) // 13 * 4, (n * 5 + 2) % 7):
        again = pickle.loads(pickle.dumps(x))
        assert again == x
        assert all(evaluate(again, {"_0": v}) == evaluate(x, {"_0": v}) for v in (2, 13, 40))
    assert isinstance(n, Affine)


# ---- as users see it -----------------------------------------------------------------------------

NUMBERS = (3, 11, 7, 40, 1, 25)
FLOATS = (0.5, -1.25, 0.0, 3.0, -0.0, float("inf"))
LENGTH = Variable("length", 1, 9).bind(5)

# What is computed from a (64, 6) array and a number, in minigrad and in numpy.
VARYING = {
    "a row": (lambda x, n: x[n], lambda x, n: x[n]),
    "rows from": (lambda x, n: x[n:] * 2, lambda x, n: x[n:] * 2),
    "rows to": (lambda x, n: x[:n].exp(), lambda x, n: np.exp(x[:n])),
    "a window": (lambda x, n: x[n : n + 8].sum(0), lambda x, n: x[n : n + 8].sum(0)),
    "mean": (lambda x, n: x[:n].mean(), lambda x, n: x[:n].mean()),
    "product": (lambda x, n: x[:n] @ x[:6], lambda x, n: x[:n] @ x[:6]),
    "transposed product": (lambda x, n: x[:n].T @ x[:n], lambda x, n: x[:n].T @ x[:n]),
    "centred": (lambda x, n: x[:n] - x[:n].mean(0), lambda x, n: x[:n] - x[:n].mean(0)),
    "zeros behind": (lambda x, n: x.pad(((0, n), (0, 0))).sum(1),
                     lambda x, n: np.pad(x, ((0, n), (0, 0))).sum(1)),
    "rolled": (lambda x, n: x.roll(n, 0), lambda x, n: np.roll(x, n, 0)),
    "power": (lambda x, n: x.abs() ** (n / 8), lambda x, n: np.abs(x) ** (n / 8)),
    "integer": (lambda x, n: (x * 8).cast("int32") // n,
                lambda x, n: (x * 8).astype(np.int32) // n),
    "range": (lambda x, n: Tensor.arange(n * 2, device=x.device) * 3,
              lambda x, n: np.arange(n * 2) * 3),
    "a variable": (lambda x, n: x[:n] * Tensor(LENGTH, device=x.device), lambda x, n: x[:n] * 5),
    "repeated": (lambda x, n: x[:1].expand(n, 6) + x[0],
                 lambda x, n: np.repeat(x[:1], n, 0) + x[0]),
}  # fmt: skip


@pytest.mark.parametrize("what", VARYING)
def test_other_numbers(compiled: str, what: str) -> None:
    """All numbers give right results; from the third on, nothing compiles (1 is a special case)."""
    ours, theirs = VARYING[what]
    data = np.random.default_rng(3).standard_normal((64, 6)).astype(np.float32)
    x = Tensor(data, device=compiled).realize()
    programs.forget()
    for place, n in enumerate(NUMBERS):
        before = GlobalCounters.programs_compiled
        given = ours(x, n).numpy()
        np.testing.assert_allclose(given, theirs(data, n), rtol=2e-5, atol=2e-5, err_msg=f"{n}")
        if place >= 2 and n != 1:
            assert GlobalCounters.programs_compiled == before, f"compiled for {n}"


def test_a_part_that_shrinks_while_another_grows(compiled: str, reference: str) -> None:
    """A size 24 - n of a part is followed exactly: no kernel runs beyond its rows.

    The last of 24 - n rows, if their number is odd, would be computed again, from its own result.
    """
    def gradients(n: int, device: str) -> list[np.ndarray]:
        rng = np.random.default_rng(3)

        def given(*shape: int) -> Tensor:
            return Tensor(rng.standard_normal(shape).astype(np.float32), device=device)

        x, last, scale = given(24, 16), given(32, 4), given(24, 4)
        weights = [given(16, 32).requires_grad_() for _ in range(2)]
        parts = zip(x.split([n, 24 - n]), weights, strict=True)
        results = Tensor.cat(*[(part @ weight).relu() @ last for part, weight in parts])
        (results * scale).sum().backward()
        found = [weight.grad for weight in weights if weight.grad is not None]
        Tensor.realize(*found)
        return [one.numpy() for one in found]

    programs.forget()
    for n in (11, 13, 12, 17, 9, 4):
        for found, expected in zip(gradients(n, compiled), gradients(n, reference), strict=True):
            np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5, err_msg=f"{n}")


# In-place writes to a (64, 6) array that depend on a number; numpy runs them, too.
WRITES = {
    "a row": lambda x, n: x.__setitem__(n, n / 4),
    "rows": lambda x, n: x.__setitem__(slice(n, n + 4), x[n + 8 : n + 12] * 2),
    "added": lambda x, n: x.__setitem__(slice(0, n), x[:n] + 1.5),
    "from a row": lambda x, n: x.__setitem__(n, x[n] * x[0]),
    "a column": lambda x, n: x.__setitem__((slice(None), n % 6), x[:, (n + 1) % 6] * n),
    "overlapping": lambda x, n: x.__setitem__(slice(n, n + 20), x[n % 9 + 3 : n % 9 + 23] * 1),
}


@pytest.mark.parametrize("what", WRITES)
def test_writes_at_other_places(compiled: str, what: str) -> None:
    """Also if the parts read and written overlap, in some calls and not in others."""
    data = np.random.default_rng(3).standard_normal((64, 6)).astype(np.float32)
    x = Tensor(data.copy(), device=compiled).realize()
    programs.forget()
    counts = []
    for n in (3, 11, 7, 40, 25, 2, 9):
        WRITES[what](x, n)
        WRITES[what](data, n)
        x.realize()
        counts.append(GlobalCounters.programs_compiled)
        np.testing.assert_allclose(x.numpy(), data, rtol=1e-5, err_msg=f"{n}")
    assert counts[1] == counts[-1]


def test_what_was_written_is_seen_transposed(compiled: str) -> None:
    """A transposed result of a written array has its own memory."""
    programs.forget()
    for n in (4, 7, 5, 12):
        data = np.arange(n * 6, dtype=np.float32).reshape(n, 6)
        x = Tensor(data, device=compiled).realize()
        x += x
        np.testing.assert_array_equal(x.T.numpy(), 2 * data.T, err_msg=f"{n}")
        np.testing.assert_array_equal(x.numpy(), 2 * data, err_msg=f"{n}")


@pytest.mark.parametrize("stride", [(1, 2), (1, 3)], ids=str)
def test_images_of_another_batch_channel_by_channel(
    compiled: str, reference: str, stride: tuple[int, int]
) -> None:
    """A row's adjacent windows merge into one dimension, but not with the batch dimension."""
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((2, 1, 1, 3)).astype(np.float32)
    programs.forget()
    for n in (4, 7, 5):
        images = rng.standard_normal((n, 2, 4, 17)).astype(np.float32)
        found, exact = (
            Tensor(images, device=name).conv2d(
                Tensor(weight, device=name), stride=stride, padding=2, groups=2
            ).numpy() for name in (compiled, reference)
        )  # fmt: skip
        np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5, err_msg=f"{n}")


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_other_constants(compiled: str, reference: str, dtype: str) -> None:
    """All bits of a different float are kept, also the sign of zero."""
    def scaled(value: float, device: str) -> bytes:
        x = Tensor([1.0, -2.0, 3.0], dtype=dtype, device=device)
        return (x * value + 1 / 3).numpy().tobytes()

    programs.forget()
    expected = [scaled(value, reference) for value in FLOATS]
    counts = []
    for value, bits in zip(FLOATS, expected, strict=True):
        assert scaled(value, compiled) == bits, value
        counts.append(GlobalCounters.programs_compiled)
    assert counts[1] == counts[-1]


def compared(
    compute: Callable[[int, int, str], list[np.ndarray]], sizes: tuple[tuple[int, int], ...],
    compiled: str, reference: str, atol: float,
) -> list[int]:  # fmt: skip
    """Compare results for pairs of sizes; how many programs were compiled after each pair."""
    exact = [compute(*some, reference) for some in sizes]
    programs.forget()
    counts = []
    for some, expected in zip(sizes, exact, strict=True):
        for found, right in zip(compute(*some, compiled), expected, strict=True):
            np.testing.assert_allclose(found, right, rtol=1e-5, atol=atol, err_msg=f"{some}")
        counts.append(GlobalCounters.programs_compiled)
    return counts


def test_two_sizes_at_once(compiled: str, reference: str) -> None:
    """Pairs of n and m rows: a result, and then an input, with two dimensions that vary."""

    def between(n: int, m: int, device: str) -> list[np.ndarray]:
        rng = np.random.default_rng(n)
        x, y = (Tensor(rng.standard_normal((k, 2)).astype(np.float32), device=device).realize()
                for k in (n, m))  # fmt: skip
        distances = (x.unsqueeze(1) - y).square().sum(2).realize()
        weights = (-distances).softmax(1) @ y
        return [distances.numpy(), weights.numpy()]

    sizes = ((3, 5), (4, 9), (7, 2), (6, 6), (2, 8), (9, 3))
    counts = compared(between, sizes, compiled, reference, 1e-5)
    assert counts[2] == counts[-1]


def test_two_sizes_that_are_merged(compiled: str, reference: str) -> None:
    """(n, m) to n · m and back, as in losses of texts: the graph is cut where that happens."""

    def losses(n: int, m: int, device: str) -> list[np.ndarray]:
        rng = np.random.default_rng(100 * n + m)
        data = (rng.standard_normal((n, m, 3)), rng.standard_normal((3, 4)), np.zeros(4))
        x, w, total = (
            Tensor(one.astype(np.float32), device=device, requires_grad=one.ndim > 1)
            for one in data
        )  # fmt: skip
        labels = Tensor(rng.integers(0, 4, (n, m)), device=device)
        scores = ((x - x.mean(0)) @ w).tanh()
        flat = scores.reshape(-1, 4)
        centered = (flat - flat.mean(0)).reshape(n, m, 4)
        loss = flat.cross_entropy(labels.reshape(-1)) + centered.softmax(1).square().mean()
        total.assign(flat.sum(0) + 0.5)
        found = [loss, flat, centered, *loss.gradient(x, w), total]
        Tensor.realize(*found)
        return [one.numpy() for one in found]

    sizes = ((3, 5), (4, 9), (7, 2), (6, 11), (2, 8), (9, 3), (5, 7))
    for n, m in sizes:  # from then on, all of them have nodes from templates, whatever ran before
        losses(n, m, compiled)
    counts = compared(losses, sizes, compiled, reference, 1e-6)
    assert counts[3] == counts[-1], counts


@pytest.mark.parametrize("sizes", [(5, 3, 1), (1, 4, 3), (4, 1, 2)], ids=str)
def test_a_single_row(compiled: str, reference: str, sizes: tuple[int, ...]) -> None:
    """1 is a size as any other, where the graph is the same; also as one of two samples."""

    def rows(n: int, device: str) -> np.ndarray:
        data = np.arange(n * 6, dtype=np.float32).reshape(n, 6)
        x = Tensor(data, device=device).realize()
        return ((x * 0.1).softmax(1) + x.cumsum(1)).numpy()

    exact = [rows(n, reference) for n in sizes]
    programs.forget()
    counts = []
    for n, expected in zip(sizes, exact, strict=True):
        np.testing.assert_allclose(rows(n, compiled), expected, rtol=1e-6, err_msg=f"{n}")
        counts.append(GlobalCounters.programs_compiled)
    assert counts[1] == counts[2]


def written(n: int, place: int) -> Node:
    """One row written into n rows."""
    row = build.pad(array(1, 3), [(place, n - 1 - place), (0, 0)])
    return build.elementwise(Op.ADD, row, array(n, 3, slot=1))


def beside(n: int, m: int) -> Node:
    """n and m rows, beside n + m rows."""
    pieces = build.cat([array(n, 3), array(m, 3, slot=1)], 0)
    return build.elementwise(Op.ADD, pieces, array(n + m, 3, slot=2))


def repeated(n: int, m: int) -> Node:
    """n and m elements, each repeated."""
    pieces = build.cat([array(n, 1), array(m, 1, slot=1)], 0)
    return build.reduce(Op.SUM, build.expand(pieces, (n + m, 4)), [1])


@pytest.mark.parametrize("make", [written, beside, repeated])
def test_a_size_is_the_sum_of_others(make: Callable[[int, int], Node]) -> None:
    """Where shapes must agree, a number that varies becomes what it has to be equal to."""
    found = general(make(9, 4), make(7, 1), make(12, 5))
    assert len(found.holes) == 2
    for sizes in ((6, 3), (20, 12), (3, 1), (8, 0) if make is written else (8, 2)):
        one = call(make(*sizes))
        values = found.match(one.cells)
        assert values is not None and shape_at(found, values) == one.roots[0].shape
    one = call(make(9, 4))
    place = one.cells[::-1].index(one.roots[0].shape[0])
    wrong = [*one.cells[::-1]]
    wrong[place] = 77
    assert found.match(tuple(wrong[::-1])) is None


def test_one_row_may_be_repeated() -> None:
    """So the rows before and after are equal in some samples only."""

    def wide(n: int, m: int) -> Node:
        return build.reduce(Op.SUM, build.expand(array(n, 1), (m, 6)), [1])

    calls = [call(wide(*sizes)) for sizes in ((3, 3), (1, 5), (4, 4))]
    with pytest.raises(Special):
        generalize(calls[1], [one.cells for one in calls])


def test_numbers_on_a_line_by_chance() -> None:
    """8, 4 and 6 are 12 less twice 2, 4 and 3; without such lines, there are two variables."""
    samples, kinds = [(2, 8), (4, 4), (3, 6)], ["extent"] * 2
    counts = [len(unify(samples, kinds, (8, 1024, 0.0), lines)[0]) for lines in (True, False)]
    assert counts == [1, 2]


def test_a_refused_graph_is_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other samples often vary in the same way; then the reason is known."""
    made = []
    monkeypatch.setattr(Canonical, "rewritten", lambda *_: made.append(1) or deny())
    calls = [call(rows(n)) for n in (4, 5, 7)]
    known: Refused = {}

    def deny() -> None:
        raise ShapeError("no")

    for some in ([0, 1], [0, 1], [2, 1], [0, 2, 1]):
        with pytest.raises(Special, match=r"^no$"):
            generalize(calls[1], [calls[number].cells for number in some], refused=known)
    assert len(made) == 2  # for dimensions in front, and for others


def test_a_reason_is_told(compiled: str, capsys: pytest.CaptureFixture[str]) -> None:
    """MINIGRAD_DEBUG=1 prints why two programs were not generalized."""
    programs.forget()
    with Context(DEBUG=1):
        for n in (1 << 17, 1 + (1 << 17)):
            Tensor.ones(n, device=compiled).cumsum(0).realize()
    assert "compiled for these numbers only: " in capsys.readouterr().err


def test_numbers_that_come_often_get_a_program_of_their_own(compiled: str) -> None:
    """Programs padded to a bound are slower, so they are only used for rare numbers."""

    def computed(n: int) -> None:
        x = np.arange(3 * n * 4, dtype=np.float32).reshape(3, n, 4)
        y = (Tensor(x, device=compiled) * 2.0).transpose(1, 2).contiguous().numpy()
        np.testing.assert_array_equal(y, 2 * x.transpose(0, 2, 1))

    programs.forget()
    for n in (5, 6):
        computed(n)
    before = GlobalCounters.programs_compiled
    for n in range(2, 40):
        computed(n)
    assert GlobalCounters.programs_compiled == before
    for _ in range(2 * FREQUENT):
        computed(7)
    assert GlobalCounters.programs_compiled == before + 1


def _of_sizes(device: str, kind: str, x: Tensor) -> Tensor:
    """A function of images (…, rows, columns) with two of their dimensions inside of others."""
    weight = Tensor(np.arange(54.0).reshape(2, 3, 3, 3) % 7 - 3, device=device)
    match kind:
        case "elementwise":
            return x * 2.0 + 1.0
        case "rows":
            return x.softmax(-1) - x.mean((-2, -1), keepdim=True)
        case "columns":
            return x.softmax(-2).transpose(-1, -2)
        case "product":
            return x[0] @ x[0].transpose(-1, -2)
        case "convolution":
            return x.conv2d(weight, padding=1).relu()
        case "valid":
            return x.conv2d(weight)
        case "strided":
            return x.conv2d(weight, padding=1, stride=2)
        case _:
            return x.max_pool2d(2).cumsum(-1)


KINDS = ["elementwise", "rows", "columns", "product", "convolution", "valid", "strided", "pooled"]


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_images_of_other_sizes(compiled: str, reference: str, kind: str, gradient: bool) -> None:
    """Rows and columns vary; nothing is compiled once sizes of each kind were seen."""
    rng = np.random.default_rng(11)
    odd = kind in ("strided", "pooled") and not gradient  # structures of their own in gradients
    learn = [(8, 14), (10, 12), (16, 4), (6, 18)] + odd * [(7, 9), (11, 14), (14, 11)]
    images = [rng.standard_normal((2, 3, *one)) for one in (*learn, (12, 8), (6, 24), (30, 6))]

    def computed(data: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
        x = Tensor(data, device=name, requires_grad=True).realize()
        y = _of_sizes(name, kind, x)
        return (y * y).sum().gradient(x)[0].numpy() if gradient else y.numpy()

    exact = [computed(data, reference) for data in images]
    programs.forget()
    counts = []
    for data, wanted in zip(images, exact, strict=True):
        found = computed(data, compiled)
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9, err_msg=f"{data.shape}")
        counts.append(GlobalCounters.programs_compiled)
    assert counts[len(learn) - 1] == counts[-1], counts


def test_images_whose_number_height_and_width_vary() -> None:
    """Their bounds are tight, because arrays would be too large otherwise."""

    def pooled(*shape: int) -> Node:
        return Tensor._of(array(*shape)).max_pool2d(2).node

    found = general(pooled(2, 64, 80, 96), pooled(3, 64, 96, 72), pooled(4, 64, 88, 112))
    values = found.match(call(pooled(9, 64, 120, 64)).cells)
    assert values is not None and shape_at(found, values) == (9, 64, 60, 32)


@pytest.mark.parametrize("rows, channels, most", [(4, 2, 1024), (196, 2, 30), (196, 64, 30)])
@pytest.mark.parametrize("how", ["multiplied", "joined"])
def test_the_bound_of_a_dimension_that_is_not_the_first(
    how: str, rows: int, channels: int, most: int
) -> None:
    """It is laid out at its bound, which is tight if that would be much memory."""

    def made(count: int) -> Node:
        x, w = Tensor._of(array(count, rows, channels)), Tensor._of(array(16, channels, channels))
        if how == "joined":
            return x.unsqueeze(0).pad([(7, 8), None, None, None]).exp().sum(0).node
        return (x.unsqueeze(0) @ w.unsqueeze(1)).max(0).node

    found = general(*map(made, (5, 10, 15)))
    assert [hole.atom.high for hole in found.holes] == [most]


def test_blocks_of_both_layouts() -> None:
    """Dense arrays with dimensions k, n, m = 1, 2, 3, and the same padded to the bounds 2, 8, 4."""
    n, m = var("n", 2, 8), var("m", 2, 4)
    k = var("k", 1, 2)
    both = list(blocks((2, n, m, 3), {"n": 2, "m": 3}))
    assert both == [(Block(0, 9, 18, 9, 2, 2), Block(0, 12, 96, 9, 2, 2))]
    rows = list(blocks((n, m), {"n": 2, "m": 3}))
    assert rows == [(Block(0, 3, 6, 3, 2, 1), Block(0, 4, 32, 3, 2, 1))]
    three = list(blocks((2, k, n, 5, m), {"k": 1, "n": 2, "m": 3}))
    assert three == [
        (Block(0, 3, 30, 3, 10, 1), Block(0, 4, 160, 3, 10, 1)),
        (Block(30, 3, 30, 3, 10, 1), Block(320, 4, 160, 3, 10, 1)),
    ]
