"""minigrad/data.md: numpy, PyTorch's loader and datasets feed a captured step without copies."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from devices import CPU

from minigrad import Context, Tensor

PAGE = Path(__file__).parents[2] / "minigrad" / "data.md"
FIRST, *BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=["numpy", "DataLoader", "datasets"])
def test_block(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block runs; tensors share their array's memory, which a captured step reads in place."""
    for module in re.findall(r"^(?:from|import) (torch|datasets)\b", block, re.M):
        pytest.importorskip(module, reason=f"{module} is not installed")
    made: list[Any] = []
    take = Tensor.from_dlpack

    def noting(data: Any, **options: Any) -> Tensor:
        tensor = take(data, **options)
        made.append((data, tensor))
        return tensor

    monkeypatch.setattr(Tensor, "from_dlpack", noting)
    scope: dict[str, Any] = {}
    with Context(DEVICE=CPU):
        exec(FIRST, scope)
        exec(block, scope)
        assert len(made) >= 8 and np.isfinite(scope["loss"].item())
        for data, tensor in made[:2]:
            array = data.numpy() if hasattr(data, "numpy") else data
            values = tensor.tolist()
            np.testing.assert_array_equal(array, values)
            if array.flags.writeable:
                array[:] = array + 1  # a write to the array is seen in the tensor
                assert tensor.tolist() == array.tolist() != values
                array[:] = array - 1
        kept = scope["model"].weight.numpy()
        scope["step"](made[0][1], made[1][1])
        assert (scope["model"].weight.numpy() != kept).any()


def test_what_cannot_be_shared_is_refused() -> None:
    """A column of a matrix, and a read-only array."""
    rows = np.ones((4, 4), np.float32)
    fixed = rows.copy()
    fixed.flags.writeable = False
    with Context(DEVICE=CPU):
        for array in (rows[:, 1], fixed):
            with pytest.raises(BufferError):
                Tensor.from_dlpack(array, copy=False)
