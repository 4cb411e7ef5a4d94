"""A value of the wrong kind for any argument of a public function raises a one-sentence error."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from minigrad import Tensor, docs, nn
from minigrad.tensor.arguments import kind_of

WRONG: tuple[Any, ...] = ("wrong", 2.0, 7, [None], {}, None, object())
X = Tensor([[1.0, 2.0], [3.0, 4.0]])
I = Tensor([[0, 1], [1, 0]])  # noqa: E741
# Valid arguments for parameters whose annotations are too vague to derive one.
RIGHT: dict[str, Any] = {
    "other": X, "index": I, "indices": I, "target": I, "mask": X > 2, "attn_mask": None, "src": X,
    "values": X, "end": X, "weight": X, "tensor1": X, "tensor2": X, "mat1": X, "x2": X,
    "batch1": X, "test_elements": X, "min_": 0.0, "max_": 1.0, "q": 0.5, "start": 0, "stop": 4,
    "dims": 1, "value": X, "data": [1.0], "source": X,
}  # fmt: skip
# Which of `WRONG` are valid for an annotation, by its text; other annotations are not checked.
ALLOWED: dict[str, Callable[[Any], bool]] = {
    "int": lambda value: type(value) is int,
    "Scalar": lambda value: isinstance(value, (int, float)),
    "bool": lambda value: isinstance(value, bool),
    "str": lambda value: isinstance(value, str),
    "Tensor": lambda value: False, "Core": lambda value: False, "Self": lambda value: False,
    "Axes": lambda value: value is None or type(value) is int,
    "int | Sequence[int]": lambda value: type(value) is int,
}  # fmt: skip
ALLOWED["float"], ALLOWED["Integer"] = ALLOWED["Scalar"], ALLOWED["int"]


def functions() -> Iterator[tuple[str, Any]]:
    """All public functions, methods and layers, by the names that users write."""
    for title, place in docs.places().items():
        unlike = title in ("minigrad", "nn.optim.Optimizer")  # methods of an optimizer need one
        for name in docs.public_names(place) if not unlike else ():
            value = getattr(place, name)
            if inspect.isclass(value) and title != "nn":
                continue
            if callable(value) and not isinstance(value, type(Tensor)):
                yield f"{title}.{name}", value


def cases() -> Iterator[tuple[str, Any, str, str]]:
    """(name, function, parameter, annotation) of each parameter whose annotation is in ALLOWED."""
    for name, function in functions():
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):
            continue
        for parameter in parameters:
            said = str(parameter.annotation)
            kind = said.removesuffix(" | None")
            named = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            if kind in ALLOWED and named and parameter.name != "device":
                yield name, function, parameter.name, said


def arguments(function: Any) -> dict[str, Any]:
    """A plausible value for each required parameter."""
    given: dict[str, Any] = {}
    for one in inspect.signature(function).parameters.values():
        if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD:
            kind = str(one.annotation)
            usual: Any = {"int": 1, "Integer": 1, "Scalar": 1.0, "float": 0.5, "str": "mean",
                          "Sequence[int]": (2, 2)}.get(
                kind, 0 if kind.startswith("int |") else X
            )
            given[one.name] = usual if kind in ALLOWED or "int" in kind else RIGHT.get(one.name, X)
    return given


CASES = {f"{name}({parameter})": rest for name, *rest in cases() for parameter in [rest[1]]}


@pytest.mark.parametrize("case", CASES)
def test_another_kind_is_refused(case: str) -> None:
    """randint(low="a") raised "unsupported operand type(s)", and keepdim=7 was accepted."""
    function, parameter, said = CASES[case]
    kind = said.removesuffix(" | None")
    for value in WRONG:
        if (value is None and kind != said) or ALLOWED[kind](value):
            continue
        given = {**arguments(function), parameter: value}
        first, *_ = inspect.signature(function).parameters.values()
        rest = {name: one for name, one in given.items() if name != first.name}
        positional = [given[first.name]] if first.name == "self" else []
        call = rest if positional else given
        with pytest.raises((TypeError, ValueError)) as found:
            function(*positional, **call)
        text = str(found.value)
        assert re.search(r"expected|to type|use ", text), (value, text)
        assert parameter in text or "input" in text, (value, text)


def test_the_walk_is_long() -> None:
    assert len(CASES) > 700


def test_numbers_of_numpy() -> None:
    """np.float32 is no float, nor np.int64 an int: some functions refused what others took."""
    half, two = np.float32(0.5), np.int64(2)
    assert Tensor.full((two,), half).tolist() == [0.5, 0.5]
    lowest = np.finfo(np.float32).min
    assert Tensor.full((1,), lowest).item() == X.masked_fill(X > 1, lowest)[0, 1].item() == lowest
    assert Tensor.linspace(half, np.float16(1), two).tolist() == [0.5, 1]
    assert X.new_full((1,), half).item() == 0.5 and nn.Dropout(half).p == 0.5
    assert nn.functional.dropout(X, np.float32(0), training=True).tolist() == X.tolist()
    loss = nn.functional.cross_entropy(X, Tensor([0, 1]), label_smoothing=half).item()
    assert loss == nn.functional.cross_entropy(X, Tensor([0, 1]), label_smoothing=0.5).item()


NUMBERS = {2: np.int64, 0.5: np.float32, (1, 1): np.int32}


def results(value: Any) -> Any:
    """What can be compared of a result."""
    if isinstance(value, Tensor):
        return value.dtype, value.tolist()
    return [results(one) for one in value] if isinstance(value, tuple) else None


def test_where_a_number_is_accepted_so_is_numpys() -> None:
    """Of all arguments of all functions, whatever their annotation."""
    tried = 0
    for name, function in functions():
        for parameter in inspect.signature(function).parameters.values():
            kind = kind_of(str(parameter.annotation))
            if kind is not None or parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
                continue  # those of a known kind become Python's numbers in one place
            if parameter.name == "data":
                continue  # its dtype is kept
            for number, to in NUMBERS.items():
                given = tuple(map(to, number)) if isinstance(number, tuple) else to(number)
                try:
                    wanted = called(function, parameter.name, number)
                except Exception:
                    continue
                tried += 1
                assert called(function, parameter.name, given) == wanted, (name, parameter, given)
    assert tried > 300


def called(function: Any, parameter: str, value: Any) -> Any:
    """The results with that argument, and other plausible ones."""
    given = {**arguments(function), parameter: value}
    Tensor.manual_seed(1)
    with Tensor.no_grad():
        X.assign([[1.0, 2.0], [3.0, 4.0]])
        first = [given.pop("self")] if "self" in given else []
        return results(function(*first, **given))
