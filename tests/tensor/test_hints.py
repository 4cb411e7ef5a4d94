"""Names of PyTorch, numpy and tinygrad that are missing here raise an error with what to type."""

from __future__ import annotations

import importlib.util
import inspect
import re
import warnings
from typing import Any

import numpy as np
import pytest

import minigrad
from minigrad import Device, Tensor, dtypes, nn
from minigrad.errors import AxisError
from minigrad.hints import _by_name, hint, table


def scope() -> dict[str, Any]:
    """The names in the table's lines."""
    x = Tensor([1.0, 2.0, 3.0], requires_grad=True)
    return {
        "x": x, "loss": x.square().sum(), "a": np.ones((2, 3), np.float32), "Tensor": Tensor,
        "dtypes": dtypes, "Device": Device, "nn": nn, "F": nn.functional, "optim": nn.optim,
        "model": nn.Linear(3, 2), "minigrad": minigrad, "linalg": minigrad.linalg,
        "optimizer": nn.optim.SGD([x]), "lr_scheduler": nn.optim.lr_scheduler,
        "utils": nn.utils, "dtype": dtypes.float32, "f": nn.functional.relu,
    }  # fmt: skip


def test_the_table_is_long() -> None:
    assert len(table()) >= 120


@pytest.mark.parametrize("typed", table())
def test_hint(typed: str) -> None:
    """It raises the error that the table says."""
    names = scope()
    if "max(1)" in typed:
        names["x"] = Tensor.ones(2, 3)
    with pytest.raises(Exception, match=re.escape(table()[typed])) as caught:
        exec(typed, names)
    assert isinstance(caught.value, (AttributeError, TypeError, ValueError, KeyError, RuntimeError))


def test_what_sounds_alike() -> None:
    """Typos get a suggestion, too; names asked for by hasattr and protocols are simply absent."""
    with pytest.raises(AttributeError, match="Linear"):
        nn.Linar(2, 3)  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match=r"did you mean max_pools or avg_pools or Pool\?"):
        nn.functional.pools()  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match=r"x\.copy_\(x\.erf\(…\)\)"):
        Tensor([1.0]).erf_()  # type: ignore[attr-defined]
    assert not hasattr(Tensor([1.0]), "__cuda_array_interface__")
    assert not hasattr(nn.Linear(2, 3), "nothing") and not hasattr(Tensor, "cuda")
    assert "cuda" not in dir(nn.Linear(2, 3)) and "forward" in dir(nn.Linear(2, 3))
    assert not hasattr(Tensor, "erf_") and "erf_" not in dir(Tensor) and "add_" in dir(Tensor)
    assert "cuda" not in dir(Tensor) and "cuda" not in dir(Tensor([1.0])) and "data" in dir(Tensor)


@pytest.mark.parametrize("typed, told", [
    ("import minigrad.optim", "minigrad has no 'optim' here: nn.optim"),
    ("from minigrad.optim import Adam", "nn.optim"),
    ("from minigrad.data import DataLoader", "torch.utils.data.DataLoader feeds steps as it is"),
    ("from minigrad.utils.data import DataLoader", "torch.utils.data.DataLoader feeds"),
    ("import minigrad.functional as F", "nn.functional"),
    ("from minigrad.nn.datasets import mnist", "nn has no 'datasets' here: models/mlp.py"),
    ("from minigrad import optim", "nn.optim"), ("from minigrad import relu", "Tensor.relu"),
    ("from minigrad import float64", 'dtypes.float64, or "float64"'),
    ("from minigrad import long", 'dtypes.int64, or "int64"'),
])  # fmt: skip
def test_imports(typed: str, told: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=re.escape(told)):
        exec(typed, {})


@pytest.mark.parametrize("name", ["nothing", "nn.nothing", "tensor.nothing"])
def test_other_imports_that_fail(name: str) -> None:
    """They are Python's errors; who asks whether there is a module gets None."""
    assert importlib.util.find_spec(f"minigrad.{name}") is None
    with pytest.raises(ModuleNotFoundError, match=f"No module named 'minigrad.{name}'"):
        importlib.import_module(f"minigrad.{name}")


def test_unpacking() -> None:
    """Unpacking into as many names as there are elements works."""
    first, second = Tensor([[1, 2], [3, 4]]).amax(1)
    assert (first.item(), second.item()) == (2, 4)
    start, *rest = Tensor([1, 2, 3])
    assert len(rest) == 2 and start.item() == 1
    assert [x.item() for x in Tensor([1, 2])] == [1, 2]


def test_where_takes_two_values_or_none() -> None:
    for given in ((1,), (None, 1), (1, None)):
        with pytest.raises(TypeError, match=r"expected two values, as in where\(x, y\), or none"):
            Tensor([True]).where(*given)


def test_a_pair_that_is_none() -> None:
    """PyTorch's x.max(1)[0] and v, i = x.max(1) warn; other expressions with rows do not."""
    x = Tensor([[1.0, 5.0, 2.0], [7.0, 2.0, 3.0]])
    for call in (
        lambda: x.max(1)[0], lambda: x.max(dim=1, keepdim=True)[1], lambda: Tensor.max(x, 1)[1],
        lambda: x.exp().min(-1)[0], lambda: x.median(0)[1],
    ):  # fmt: skip
        with pytest.warns(UserWarning, match=r"\)\[.\] is row .*max_with_indices"):
            call()
    with pytest.warns(UserWarning, match="gives two rows of the values; .*max_with_indices"):
        first, second = x.max(1)
    with pytest.warns(UserWarning, match="gives two rows of the values"):
        _, second = Tensor.min(x, dim=-1, keepdim=True)
    assert first.item() == 5 and second.item() == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values, rows = x.max(1), [x.max(1)]
        assert values[0].item() == rows[0][0].item() == x.amax(1)[0].item() == 5
        assert x.max(0)[2].item() == 3 and x.max_with_indices(1)[1].tolist() == [1, 0]
        assert nn.functional.adaptive_max_pool1d(x, 1)[0].item() == 5
        assert eval("x.max(1)", {"x": x}).shape == (2,)  # the call ends its code


def test_errors_that_pytorch_raises_are_caught() -> None:
    """A wrong axis is an IndexError; shapes and dtypes that do not match are RuntimeErrors."""
    x, y = Tensor.zeros(2, 3), Tensor.zeros(4, 5)
    for call in (lambda: x.sum(2), lambda: x.softmax(5), lambda: x.transpose(0, 9)):
        with pytest.raises(IndexError, match="axis") as caught:
            call()
        assert isinstance(caught.value, (AxisError, ValueError))
    for wrong in (lambda: x @ y, lambda: x + y, lambda: x.mm(y), lambda: x.reshape(5),
                  lambda: x.bool() - x.bool(), lambda: x & x,
                  lambda: nn.Linear(2, 3).load_state_dict({"weights": x})):  # fmt: skip
        with pytest.raises(RuntimeError):
            wrong()


def test_no_message_names_a_class_of_ours() -> None:
    """Python's own messages about arguments do not name Tensor's base classes."""
    families = [family.__name__ for family in Tensor.__mro__[1:-1]]
    x = Tensor([1.0])
    for name in dir(Tensor):
        method = getattr(Tensor, name)
        if name.startswith("_") or not inspect.isroutine(method) or name == "mro":
            continue
        with pytest.raises((TypeError, RuntimeError)) as caught:
            getattr(x, name)(*[x] * 30, nothing=1)
        found = re.findall(r"(\w+)\.\w+\(\)", str(caught.value))
        assert not set(found) & set(families), str(caught.value)


def test_hints_of_names_are_of_names_that_are_missing() -> None:
    """A hint for a name that exists by now is noise."""
    names = scope()
    for typed in table():
        found = re.match(r"(\w+)\.(\w+)", typed)
        if found and found[1] != "loss" and (found[1], found[2]) not in USED:
            assert not hasattr(names[found[1]], found[2]), typed
    assert hint("x.cuda()")


# Names that exist here, in calls that do not.
USED = {("x", "to"), ("x", "view"), ("optim", "Adam"), ("minigrad", "tensor"),
        ("minigrad", "device"), ("minigrad", "compile"), ("optimizer", "step")}  # fmt: skip


def test_arguments_that_are_not_here() -> None:
    """The error names the called function, and what to type or which arguments it takes."""
    x, odd = Tensor([1.0, 2.0]), "() got an unexpected keyword argument"
    for call, said in (
        (lambda: x.sum(every=1), f"Tensor.sum{odd} 'every': expected axis, keepdim, dim, dtype"),
        (lambda: nn.functional.relu(x, inplace=True), f"'inplace': {hint('f(x, inplace=True)')}"),
        (lambda: nn.LSTM(3, 4, proj_size=2), f"LSTM{odd} 'proj_size': leave"),
        (lambda: nn.GELU(alpha=1), f"GELU{odd} 'alpha': expected approximate"),
        (lambda: nn.Linear(3, 4, dtype="float16"), f"Linear{odd} 'dtype': x.cast"),
        (lambda: nn.optim.AdamW([x], fused=True), f"AdamW{odd} 'fused': leave"),
        (lambda: nn.optim.SGD([{"params": [x], "beta": 1}]),
         f"SGD{odd} 'beta': expected params, lr, momentum, weight_decay, nesterov"),
        (lambda: np.sum(x), "'out': omit out="),
        (lambda: np.mean(x), "write x.sum() for np.sum(x)"),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=re.escape(said)):
            call()


def test_names_of_a_module_that_methods_have() -> None:
    """Users of `import minigrad as torch` are told where functions are."""
    for name in ("einsum", "cat", "where", "exp"):
        with pytest.raises(AttributeError, match=rf"minigrad has no '{name}' here: Tensor\.{name}"):
            getattr(minigrad, name)
    for name in ("from_numpy", "inference_mode", "is_tensor"):  # the hint is that of Tensor's name
        said = re.escape(_by_name()["Tensor", name])
        with pytest.raises(AttributeError, match=f"minigrad has no '{name}' here: {said}"):
            getattr(minigrad, name)


def test_a_dtype_and_a_module_are_no_device_and_no_function() -> None:
    x = Tensor([1.0])
    assert x.to("float64").dtype is x.to(dtypes.float64).dtype is dtypes.float64
    import minigrad.compile  # which makes it an attribute of the package

    with pytest.raises(TypeError, match=r"compile is a module, not a function: @jit captures"):
        minigrad.compile(x.exp)


def test_one_hot_of_as_many_classes_as_there_are() -> None:
    """PyTorch's default number of classes, in eager code only; and Python's round."""
    assert Tensor([0, 2]).one_hot().tolist() == nn.functional.one_hot(Tensor([0, 2]), 3).tolist()
    with pytest.raises(minigrad.errors.JitError):
        step = minigrad.jit(lambda x: x.one_hot())
        for _ in range(2):
            step(Tensor([0, 2]))
    assert round(Tensor([1.26, 2.5]), 1).allclose(Tensor([1.3, 2.5]))
    assert round(Tensor(2.5)).item() == 2.0


def test_schedulers_are_imported_as_pytorchs() -> None:
    from minigrad.nn.optim.lr_scheduler import StepLR  # type: ignore[import-not-found]

    assert StepLR is nn.optim.lr_scheduler.StepLR


def test_tinygrads_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first lines of typical tinygrad programs."""
    monkeypatch.setenv("STEPS_OF_MINE", "7")
    assert minigrad.getenv("STEPS_OF_MINE", 3) == 7 and minigrad.getenv("NOTHING", 0.5) == 0.5
    with pytest.raises(KeyError, match="unknown setting"):
        minigrad.getenv("NOTHING")
    with minigrad.Context(TRAINING=1, DEBUG=0):
        assert Tensor.training
    assert not Tensor.training
    assert minigrad.TinyJit is minigrad.jit
    assert (dtypes.int8.min, dtypes.int8.max) == (-128, 127)
    with pytest.raises(ValueError, match="equal shapes and dtypes"):
        Tensor([1]).replace(Tensor([1.0]))
