"""Modules, layers, losses, optimizers, learning-rate schedules, and the state of models."""

from minigrad.nn import functional, init, optim, schedule, state, utils
from minigrad.nn.activations import (
    ELU,
    GELU,
    Hardswish,
    LeakyReLU,
    LogSoftmax,
    Mish,
    ReLU,
    ReLU6,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from minigrad.nn.attention import MultiheadAttention, TransformerEncoderLayer
from minigrad.nn.containers import ModuleDict, ModuleList, ParameterList, Sequential
from minigrad.nn.convolution import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
)
from minigrad.nn.layers import Dropout, Embedding, Flatten, Identity, Linear, Unflatten, blank
from minigrad.nn.losses import (
    BCELoss,
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    HuberLoss,
    KLDivLoss,
    L1Loss,
    MSELoss,
    NLLLoss,
    SmoothL1Loss,
)
from minigrad.nn.module import Module, Parameter, buffer
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
from minigrad.nn.pooling import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d, PixelShuffle, Upsample
from minigrad.nn.recurrent import GRUCell, LSTMCell, RNNCell

__all__ = [
    "AdaptiveAvgPool2d", "AvgPool2d", "BCELoss", "BCEWithLogitsLoss", "BatchNorm", "BatchNorm1d",
    "BatchNorm2d", "BatchNorm3d", "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d",
    "ConvTranspose2d", "ConvTranspose3d", "CrossEntropyLoss", "Dropout", "ELU", "Embedding",
    "Flatten", "GELU", "GRUCell", "GroupNorm", "Hardswish", "HuberLoss", "Identity",
    "InstanceNorm", "KLDivLoss", "L1Loss", "LSTMCell", "LayerNorm", "LayerNorm2d", "LeakyReLU",
    "Linear", "LogSoftmax", "MSELoss", "MaxPool2d", "Mish", "Module", "ModuleDict", "ModuleList",
    "MultiheadAttention", "NLLLoss", "Parameter", "ParameterList", "PixelShuffle", "RMSNorm",
    "RNNCell", "ReLU", "ReLU6", "Sequential", "SiLU", "Sigmoid", "SmoothL1Loss", "Softmax",
    "Softplus", "Tanh", "TransformerEncoderLayer", "Unflatten", "Upsample", "blank", "buffer",
    "functional", "init", "optim", "schedule", "state", "utils",
]  # fmt: skip
