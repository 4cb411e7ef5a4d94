"""minigrad: a deep-learning framework with its own compiler, written to be read."""

import os

# In a checkout `runtimes` and `models` are beside this folder, not in it (see setup.py): let
# `minigrad.runtimes` be found there too, when Python is started from the checkout itself.
_checkout = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if os.path.exists(os.path.join(_checkout, "setup.py")):
    __path__.append(_checkout)

from minigrad import interrupts, linalg, nn  # noqa: E402
from minigrad.device import Device  # noqa: E402
from minigrad.dtype import dtypes  # noqa: E402
from minigrad.explain import explain  # noqa: E402
from minigrad.graph.sharding import Blocks, P  # noqa: E402
from minigrad.graph.variable import Variable  # noqa: E402
from minigrad.hints import hint_names  # noqa: E402
from minigrad.jit import jit  # noqa: E402
from minigrad.mesh import Mesh  # noqa: E402
from minigrad.program import GlobalCounters  # noqa: E402
from minigrad.settings import Context, getenv  # noqa: E402
from minigrad.tensor import Tensor  # noqa: E402

interrupts.never_lost()
TinyJit = jit  # tinygrad's name

# Linear algebra repeats captured steps: it stands above `jit`, which is made of tensors.
for _method in (linalg.qr, linalg.svd):
    setattr(Tensor, _method.__name__, _method)

__version__ = "0.1.0"
__all__ = [
    "Blocks", "Context", "Device", "GlobalCounters", "Mesh", "P", "Tensor", "TinyJit", "Variable",
    "__version__", "dtypes", "explain", "getenv", "jit", "nn",
]  # fmt: skip

hint_names(globals())
