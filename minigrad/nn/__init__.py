"""Layers, optimizers, learning-rate schedules, and the state of models."""

from minigrad.nn import optim, schedule, state
from minigrad.nn.layers import Dropout, Embedding, LayerNorm, Linear, RMSNorm, Sequential

__all__ = [
    "Dropout", "Embedding", "LayerNorm", "Linear", "RMSNorm", "Sequential", "optim", "schedule",
    "state",
]  # fmt: skip
