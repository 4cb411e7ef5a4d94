"""minigrad: a deep-learning framework small enough to read in a weekend."""

from minigrad import nn
from minigrad.device import Device
from minigrad.dtype import dtypes
from minigrad.graph.symbolic import Variable
from minigrad.jit import jit
from minigrad.program import GlobalCounters
from minigrad.settings import Context, getenv
from minigrad.tensor import Tensor

__version__ = "0.1.0"
__all__ = [
    "Context", "Device", "GlobalCounters", "Tensor", "Variable", "__version__", "dtypes", "getenv",
    "jit", "nn",
]  # fmt: skip
