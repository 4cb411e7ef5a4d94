"""The one table of operations for all property tests.

To add an operation to Tensor, add a row to the `table_*` file of its family: it is then tested
forward and backward, with each dtype, layout and edge shape, on every device.
"""

from __future__ import annotations

from minigrad import Tensor

from .operation import Operation
from .table_binary import BINARY
from .table_contraction import CONTRACTION
from .table_creation import CREATION
from .table_indexing import INDEXING
from .table_linalg import LINALG
from .table_movement import MOVEMENT
from .table_reduce import REDUCE
from .table_unary import UNARY
from .table_windows import WINDOWS

ROWS: tuple[Operation, ...] = (
    *UNARY, *BINARY, *REDUCE, *MOVEMENT, *INDEXING, *CONTRACTION, *WINDOWS,
    *LINALG, *CREATION,
)  # fmt: skip


def exists(operation: Operation) -> bool:
    """Whether Tensor has all attributes that the row tests."""
    return all(hasattr(Tensor, name) for name in operation.covers)


OPERATIONS = tuple(operation for operation in ROWS if exists(operation))
WAITING = tuple(operation for operation in ROWS if not exists(operation))
BY_NAME = {operation.name: operation for operation in OPERATIONS}
