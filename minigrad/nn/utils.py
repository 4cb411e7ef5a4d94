"""PyTorch's torch.nn.utils: gradients made smaller."""

from __future__ import annotations

from collections.abc import Iterable

from minigrad.errors import expect
from minigrad.hints import hint_names
from minigrad.nn.members import tensors_of
from minigrad.nn.optim import clip_grad_norm as clip_grad_norm_
from minigrad.tensor import Tensor
from minigrad.tensor.arguments import check_functions

__all__ = ["clip_grad_norm_", "clip_grad_value_"]


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Clip each element of the gradients to −clip_value … clip_value, between backward and step.

    Parameters without a gradient are skipped; lazy. ValueError for a negative clip_value.
    """
    expect(clip_value >= 0, "clip_grad_value_", "≥ 0", error=ValueError, clip_value=clip_value)
    with Tensor.no_grad():
        for parameter in tensors_of("clip_grad_value_", parameters):
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clip(-clip_value, clip_value).requires_grad_(False)


check_functions(globals())
hint_names(globals(), __all__)
