"""PyTorch's torch.nn.utils: gradients made smaller."""

from minigrad.nn.optim import clip_grad_norm as clip_grad_norm_

__all__ = ["clip_grad_norm_"]
