"""Layers, optimizers, learning-rate schedules, and the state of models."""

from minigrad.nn import optim, schedule, state
from minigrad.nn.convolution import Conv1d, Conv2d, ConvTranspose1d, ConvTranspose2d
from minigrad.nn.layers import Dropout, Embedding, Linear, Sequential, blank
from minigrad.nn.normalization import (
    BatchNorm,
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    LayerNorm2d,
    RMSNorm,
)
from minigrad.nn.recurrent import LSTMCell

__all__ = [
    "BatchNorm", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "Conv1d", "Conv2d",
    "ConvTranspose1d", "ConvTranspose2d", "Dropout", "Embedding", "GroupNorm", "InstanceNorm",
    "LSTMCell", "LayerNorm", "LayerNorm2d", "Linear", "RMSNorm", "Sequential", "blank", "optim",
    "schedule", "state",
]  # fmt: skip
