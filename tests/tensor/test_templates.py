"""Templates create the same nodes as the functions do."""

from __future__ import annotations

from typing import Any

import pytest
from graph.nodes import form_of

from minigrad import Tensor, jit
from minigrad.errors import BoundsError, ShapeError
from minigrad.graph.bounds import users_line
from minigrad.graph.node import Op, topological
from minigrad.nn import optim
from minigrad.tensor import templates
from minigrad.tensor.live_tensors import lazy_holders, lock
from minigrad.tensor.templates import TEMPLATED, templated

WORDS = [[1 << n for n in range(6)]] * 4
ARGUMENTS: dict[str, list[tuple[Any, ...]]] = {
    "matmul": [((6, 3),), ((6,),)],
    "__matmul__": [((6, 3),), ((6,),)],
    "linear": [((6, 3),), ((6, 3), (3,))],
    "layernorm": [(), (-1, 1e-3, (6,), (6,)), ((0, 1),)],
    "rmsnorm": [(), (-1, 1e-3, (6,))],
    "batchnorm": [((6,), (6,), (6,), (6,)), (None, None, (6,), (6,))],
    "conv2d": [((3, 2, 2, 2), (3,))],
    "conv_transpose2d": [((2, 3, 2, 2), (3,))],
    "avg_pool2d": [(), (2,)],
    "max_pool2d": [(), (2,)],
    "_keys": [(False,), (True,)],
    "cross_entropy": [([0, 1, 5, -100],)],
    "gather": [(1, [[0, 1], [1, 0], [2, 2], [5, 3]])],
    "_positions": [(WORDS, WORDS, 1, False), (WORDS, WORDS, 2, False), (WORDS, WORDS, 6, True)],
}
SHAPES = {"conv2d": (2, 2, 5, 5), "conv_transpose2d": (2, 2, 5, 5)}
SHAPES |= dict.fromkeys(("avg_pool2d", "max_pool2d"), (2, 2, 6, 6))


def tensors(given: Any) -> Any:
    """Lists, and tuples that are shapes, as tensors; the axes (0, 1) and other values unchanged."""
    if isinstance(given, list):
        return Tensor(given, dtype="uint32" if given is WORDS else None)
    is_shape = isinstance(given, tuple) and given != (0, 1)
    return Tensor.rand(given).realize() if is_shape else given


def bare(method: Any) -> Any:
    """The method without its template."""
    return method.__wrapped__


@pytest.mark.parametrize("name", TEMPLATED)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_template_makes_the_nodes_that_the_method_makes(name: str, dtype: str) -> None:
    method = getattr(Tensor, name)
    for arguments in ARGUMENTS.get(name, [()]):
        for _ in range(3):  # the first call creates the template
            x = Tensor.rand(SHAPES.get(name, (4, 6))).cast(dtype).realize()
            given = [tensors(one) for one in arguments]
            made, wanted = method(x, *given).raw, bare(method)(x, *given).raw
            assert form_of(made) == form_of(wanted), (name, arguments)


def test_an_operator_has_the_template_of_its_method() -> None:
    assert Tensor.__matmul__ is Tensor.matmul  # type: ignore[comparison-overlap]


def test_gradients_of_what_templates_made() -> None:
    results = []
    for _ in range(2):
        Tensor.manual_seed(3)
        x = Tensor.rand(2, 3, 4, requires_grad=True)
        y = x.layernorm().gelu().scaled_dot_product_attention(x, x, is_causal=True).silu()
        y.softmax(-1).square().sum().backward()
        results.append(x.grad.tolist())
    assert results[0] == results[1]


def test_numbers_that_are_equal_and_no_others_share_a_template() -> None:
    scaled = templated(lambda x, number: x * number + number)
    x = Tensor([1, -2])
    for number in (1, 1.0, True, 2, 0.0, -0.0):
        made = scaled(x, number)
        assert made.dtype is (x * number + number).dtype
        assert form_of(made.raw) == form_of((x * number + number).raw)


def test_lists_and_constants_are_computed_as_they_are() -> None:
    total = templated(lambda x, axes: x.sum(axes))
    assert total(Tensor.rand(2, 3).realize(), [0, 1]).shape == ()
    assert total(Tensor.ones(2, 3), 1).tolist() == [3.0, 3.0]


def test_numbers_of_another_library_are_operands() -> None:
    """If hashable, like a tuple of rows or PyTorch's numbers, they raised an AssertionError."""
    for _ in range(2):
        assert Tensor([[1.0, 2.0]]).matmul(((3.0,), (4.0,))).tolist() == [[11.0]]


def test_an_axis_that_equals_another_is_none() -> None:
    """The template of axes (0, 1) was used for (0, True), which must raise."""
    x = Tensor.rand(2, 3).realize()
    assert x.mean((0, 1)).shape == ()
    with pytest.raises(TypeError, match=r"True.*expected an int"):
        x.mean((0, True))


def test_what_draws_is_refused() -> None:
    noisy = templated(lambda x: x + Tensor.rand(3))
    with pytest.raises(AssertionError):
        noisy(Tensor([1.0, 2.0, 3.0]).realize())


def test_a_function_that_raises_does_so_each_time() -> None:
    x = Tensor.rand(2, 3).realize()
    for _ in range(2):
        with pytest.raises(ValueError, match="matmul"):
            x.matmul(x)


def test_what_a_template_checks_is_told_at_the_line_of_its_call() -> None:
    x, line = Tensor.rand(2, 3).realize(), users_line()[1]
    for number in range(3):
        wrong = x.gather(1, Tensor([[9 + number], [0]]))
        with pytest.raises(BoundsError, match=f"index {9 + number} .*py:{line + 2}"):
            wrong.realize()
    with pytest.raises(BoundsError, match=f"py:{line + 6}"):
        x.gather(1, Tensor([[13], [0]])).realize()


def test_forms_that_come_once_get_no_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "MOST_UNUSED", 3)
    runs = []

    def double(x: Tensor) -> Tensor:
        runs.append(x.raw.arg)
        return x * 2

    doubled = templated(double)
    for size in range(1, 9):
        doubled(Tensor.rand(size).realize())
    assert [isinstance(arg, tuple) for arg in runs] == [True] * 3 + [False] * 5
    for _ in range(4):  # the second call makes a template; its uses let other forms have one
        doubled(Tensor.rand(8).realize())
    doubled(Tensor.rand(9).realize())
    assert [isinstance(arg, tuple) for arg in runs[8:]] == [True, True]


def test_forms_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "MOST", 4)
    runs = []

    def double(x: Tensor) -> Tensor:
        runs.append(1)
        return x * 2

    doubled = templated(double)
    for size in (*range(1, 11), 10):
        assert doubled(Tensor.rand(size).realize()).shape == (size,)
    assert len(runs) == 10


@pytest.mark.parametrize(
    "kind", [optim.SGD, optim.Adam, optim.AdamW, optim.LAMB, optim.Muon, optim.RMSprop]
)
def test_updates_of_equal_parameters_are_equal(kind: Any) -> None:
    first, second = (Tensor([[1.0, 2.0], [3.0, 5.0]]) for _ in range(2))
    optimizer = kind([first, second], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        ((first * first).sum() + (second * second).sum()).backward()
        optimizer.step()
        assert first.tolist() == second.tolist()


def test_no_tensor_without_memory_outlives_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a forked child it would never be freed, and would be realized with other tensors."""
    left: list[int] = []

    class Watched:
        def __enter__(self) -> None:
            lock.acquire()

        def __exit__(self, *unused: Any) -> None:
            nodes = topological([holder.raw for holder in lazy_holders()])
            left.append(sum(isinstance(node.arg, tuple) for node in nodes if node.op is Op.BUFFER))
            lock.release()

    monkeypatch.setattr(templates, "lock", Watched())
    monkeypatch.setattr(templates, "MOST_UNUSED", 1 << 20)  # also after tests of many forms
    x = Tensor([[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
    x.log_softmax()
    with pytest.raises(ShapeError):
        x.matmul(Tensor([[1.0, 2.0]]))
    x.matmul(((1.0,),) * 7)
    assert len(left) > 1 and not any(left)


def test_an_error_that_is_kept_keeps_no_tensor_without_memory() -> None:
    """As an interactive session keeps its last one: later steps visit all live tensors."""
    with pytest.raises(ShapeError) as kept:
        Tensor.ones(4, 3).realize().cross_entropy(Tensor.ones(2, 2).realize())
    step = jit(lambda x: x.softmax())
    for _ in range(3):
        assert step(Tensor([0.0, 0.0])).tolist() == [0.5, 0.5]
    assert kept.value.__traceback__
