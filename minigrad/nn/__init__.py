"""Modules, layers, losses, optimizers, learning-rate schedules, and the state of models."""

# ruff: noqa: F403, F405

from minigrad.hints import hint_names
from minigrad.nn import functional, init, optim, schedule, state, utils
from minigrad.nn.attention import *
from minigrad.nn.containers import *
from minigrad.nn.convolution import *
from minigrad.nn.layers import *
from minigrad.nn.module import *
from minigrad.nn.normalization import *
from minigrad.nn.recurrent import *

__all__ = ["blank", "buffer", "functional", "init", "optim", "schedule", "state", "utils"]
__all__ += [  # defined in this package's modules: all names with a capital
    name for name, value in globals().items()
    if name[0].isupper() and getattr(value, "__module__", "").startswith(f"{__name__}.")
]  # fmt: skip

hint_names(globals())
