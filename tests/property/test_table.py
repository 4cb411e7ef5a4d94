"""The table covers Tensor: every public name has a row, or is listed here as not an operation."""

from __future__ import annotations

from minigrad import Context, Tensor
from minigrad.graph.node import Op, topological
from minigrad.hints import Missing

from . import table_names
from .inputs import ALL, DOMAINS
from .operation import Operation, as_tuple, make_case
from .operations import OPERATIONS, ROWS, WAITING

# Names that describe a tensor, move it, create it from data, or control the engine.
NOT_OPERATIONS = {
    "shape", "ndim", "dtype", "device", "node", "raw", "numel", "size", "nbytes", "grad", "made",
    "requires_grad", "requires_grad_", "stopped", "training", "train", "no_grad", "manual_seed",
    "random_state", "set_random_state", "from_bytes", "set_data",
    "realize", "is_realized", "to", "cpu", "assign", "backward", "gradient",
    "numpy", "data", "tolist", "item", "from_dlpack", "mro",
    "shard", "shard_", "shard_like", "shard_like_", "sharding",
    "scan",  # tested in tests/tensor/test_scan.py: it takes a function
}  # fmt: skip
NOT_OPERATORS = {
    "__init__", "__new__", "__repr__", "__len__", "__iter__", "__bool__", "__int__", "__float__",
    "__index__", "__array__", "__dlpack__", "__dlpack_device__", "__reduce__", "__reduce_ex__",
    "__deepcopy__", "__copy__", "__getstate__", "__setstate__", "__hash__", "__contains__",
    "__format__", "__str__", "__array_priority__", "__init_subclass__", "__subclasshook__",
    "__del__", "__dir__", "__getattr__", "__array_wrap__",
}  # fmt: skip


def _own_attributes() -> set[str]:
    """The attributes that Tensor and its base classes define, without `object`'s."""
    names: set[str] = set()
    for family in Tensor.__mro__[:-1]:
        own = {n: v for n, v in vars(family).items() if not isinstance(v, Missing)}
        names.update(name for name, value in own.items() if value is not None)
    return names


def test_every_public_name_is_covered() -> None:
    """A public method without a row is a gap in the tests."""
    rows = {name for operation in OPERATIONS for name in operation.covers}
    covered = rows | table_names.covered()
    public = {name for name in _own_attributes() if not name.startswith("_")}
    missing = sorted(public - covered - NOT_OPERATIONS)
    assert not missing, f"no row of tests/property tests Tensor.{', Tensor.'.join(missing)}"


def test_every_operator_is_covered() -> None:
    """The same for operators."""
    covered = {name for operation in OPERATIONS for name in operation.covers}
    given = {name for name in _own_attributes() if name.startswith("__") and name.endswith("__")}
    attributes = {
        "__module__", "__doc__", "__slots__", "__dict__", "__weakref__", "__annotations__",
        "__qualname__", "__static_attributes__", "__firstlineno__", "__match_args__",
    }  # fmt: skip
    missing = sorted(given - covered - NOT_OPERATORS - attributes)
    assert not missing, f"no row of tests/property tests {', '.join(missing)}"


# Operations that no row's graph contains: exchanges between ranks, layouts on a mesh, what the
# schedule makes of a SORT, symbolic extents, and loops. Tested in tests/parallel, by the rows
# "sort", and in tests/tensor/test_symbolic.py and test_scan.py.
NOT_PRIMITIVES = {
    Op.COLLECTIVE, Op.DISTRIBUTE, Op.MARK, Op.VARIABLE, Op.LOOP, Op.RESULT,
}  # fmt: skip


def _primitives(operation: Operation, device: str) -> set[Op]:
    """The operations in the graphs of some of a row's results, before they are computed."""
    found: set[Op] = set()
    for plan in operation.plans.edges[:3]:
        for dtype in {operation.dtypes[0], operation.dtypes[-1]}:
            case = make_case(operation, plan, dtype)
            operands = (given.tensor(device) for given in case.inputs)
            results = as_tuple(operation.call(*operands, **case.parameters))
            found.update(node.op for node in topological([result.node for result in results]))
    return found


def test_every_primitive_is_covered(cpu: str) -> None:
    """A member of `Op` that is in no row's graph is a gap in the tests."""
    missing = set(Op) - NOT_PRIMITIVES
    with Context(DEVICE=cpu):
        for operation in sorted(OPERATIONS, key=lambda one: "svd" in one.name):  # svd computes
            missing -= _primitives(operation, cpu) if missing else set()
    names = sorted(op.name for op in missing)
    assert not names, f"no row of tests/property is made of Op.{', Op.'.join(names)}"


def test_no_row_waits() -> None:
    """Every row's method exists, else its name is misspelled."""
    waiting = {name for operation in WAITING for name in operation.covers}
    absent = {name for name in waiting if not hasattr(Tensor, name)}
    assert not absent


def test_rows_are_well_formed() -> None:
    """Unique names, known dtypes and domains, an edge for each row."""
    names = [operation.name for operation in ROWS]
    assert len(names) == len(set(names)), sorted(n for n in names if names.count(n) > 1)
    for operation in ROWS:
        assert operation.plans.edges, operation.name
        assert set(operation.dtypes) <= set(ALL), operation.name
        domains = [*operation.domains, *(operation.gradient_domains or ())]
        assert {domain.partition(":")[0] for domain in domains} <= set(DOMAINS), operation.name
