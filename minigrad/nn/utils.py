"""PyTorch's torch.nn.utils: gradients made smaller."""

from typing import TYPE_CHECKING

from minigrad.hints import names_of
from minigrad.nn.optim import clip_grad_norm as clip_grad_norm_

__all__ = ["clip_grad_norm_"]

if not TYPE_CHECKING:
    __getattr__ = names_of(__name__, __all__)
