"""The Python array API standard 2024.12 (https://data-apis.org/array-api/2024.12) on Tensors.

Code that is written for the standard, such as parts of scikit-learn and SciPy, runs on its arrays.
Dtypes are real; complex ones raise. Arrays are lazy like the Tensors in them.
"""

# ruff: noqa: F403

import math
import sys

from minigrad.array_api import linalg
from minigrad.array_api.array import Array
from minigrad.array_api.creation import *
from minigrad.array_api.dtypes import *
from minigrad.array_api.dtypes import VERSIONS, __array_namespace_info__
from minigrad.array_api.elementwise import *
from minigrad.array_api.linalg import matmul, matrix_transpose, tensordot, vecdot
from minigrad.array_api.manipulation import *
from minigrad.array_api.statistics import *
from minigrad.dtype import DType

Array._namespace = sys.modules[__name__]
__array_api_version__ = VERSIONS[-1]
e, inf, nan, newaxis, pi = math.e, math.inf, math.nan, None, math.pi

__all__ = ["Array", "__array_api_version__", "__array_namespace_info__", "e", "inf", "linalg"]
__all__ += ["matmul", "matrix_transpose", "nan", "newaxis", "pi", "tensordot", "vecdot"]
__all__ += [  # the standard's dtypes, and the functions of the other files
    name for name, value in globals().items()
    if name not in __all__ and (isinstance(value, DType) or (
        hasattr(value, "__code__") and str(value.__module__).startswith(f"{__name__}.")
    ))
]  # fmt: skip
