"""Layers that are functions of one or more tensors, with options: activations, losses, windows."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any, ClassVar

from minigrad.nn import functional as F
from minigrad.nn.module import Layer
from minigrad.tensor import Tensor
from minigrad.tensor.arguments import fit, kind_of


class FunctionLayer(Layer):
    """A function of tensors; its other arguments are options, in their order, and attributes.

    inplace is accepted as PyTorch's: results are new tensors. weight and pos_weight are buffers.
    """

    function: ClassVar[Callable[..., Any]]
    __signature__: ClassVar[inspect.Signature]

    def __init__(self, *args: Any, **options: Any) -> None:
        try:
            bound = type(self).__signature__.bind(*args, **options)
        except TypeError as error:
            raise TypeError(f"{type(self).__name__}: {error}") from None
        bound.apply_defaults()
        said = type(self).__signature__.parameters
        kinds = {name: kind_of(said[name].annotation) for name in said}
        fit(type(self).__name__, kinds, bound.arguments)
        for name, value in bound.arguments.items():
            if name in ("weight", "pos_weight"):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def _options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in type(self).__signature__.parameters}

    def __call__(self, *inputs: Tensor) -> Tensor:
        """What the function gives."""
        options = {name: value for name, value in self._options().items() if name != "inplace"}
        result: Tensor = type(self).function(*inputs, **options)
        return result

    def extra_repr(self) -> str:
        """The options, without what is off."""
        shown = {n: v for n, v in self._options().items() if v is not None and n != "inplace"}
        shown |= {"inplace": True} if vars(self)["inplace"] else {}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())


def _layers(
    names: str, *functions: Callable[..., Any], inputs: int = 1, only: str = ""
) -> list[type[FunctionLayer]]:
    """Layers of these names. inputs: how many tensors a call gives. only: the one option."""
    return [
        _layer(name, function, inputs, only)
        for name, function in zip(names.split(), functions, strict=True)
    ]


def _layer(name: str, function: Any, inputs: int, only: str) -> type[FunctionLayer]:
    options = list(inspect.signature(function).parameters.values())[inputs:]
    options = [option for option in options if only in ("", option.name)]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    place = len(options) if only else sum(option.kind is kind for option in options)
    options.insert(place, inspect.Parameter("inplace", kind, default=False))
    options = [o.replace(kind=kind) for o in options] if only else options
    text = f"The layer of `{function.__name__}`. {inspect.getdoc(function)}".partition("\n>>>")[0]
    body = {"__doc__": text, "__module__": __name__, "function": staticmethod(function),
            "__signature__": inspect.Signature(options)}  # fmt: skip
    return types.new_class(name, (FunctionLayer,), exec_body=lambda space: space.update(body))


def _flatten(x: Tensor, start_dim: int = 1, end_dim: int = -1) -> Tensor:
    """Dimensions start_dim … end_dim become one: (batch, …) → (batch, all others)."""
    return x.flatten(start_dim, end_dim)


def _unflatten(x: Tensor, dim: int, unflattened_size: Any) -> Tensor:
    """A dimension becomes several; one of their sizes may be −1."""
    return x.unflatten(dim, unflattened_size)


ReLU, ReLU6, SiLU, Mish, Hardswish = _layers(
    "ReLU ReLU6 SiLU Mish Hardswish", F.relu, F.relu6, F.silu, F.mish, F.hardswish
)
Hardsigmoid, Hardtanh, Hardshrink, Softshrink, Tanhshrink = _layers(
    "Hardsigmoid Hardtanh Hardshrink Softshrink Tanhshrink", F.hardsigmoid, F.hardtanh,
    F.hardshrink, F.softshrink, F.tanhshrink,
)  # fmt: skip
Threshold, Tanh, Sigmoid, LogSigmoid, LeakyReLU, ELU, SELU, GELU, GLU = _layers(
    "Threshold Tanh Sigmoid LogSigmoid LeakyReLU ELU SELU GELU GLU", F.threshold, F.tanh,
    F.sigmoid, F.logsigmoid, F.leaky_relu, F.elu, F.selu, F.gelu, F.glu,
)  # fmt: skip
Softplus, Flatten, Unflatten = _layers(
    "Softplus Flatten Unflatten", F.softplus, _flatten, _unflatten
)
Softmax, LogSoftmax = _layers("Softmax LogSoftmax", F.softmax, F.log_softmax, only="dim")
MSELoss, L1Loss, HuberLoss, SmoothL1Loss, CrossEntropyLoss, NLLLoss, BCELoss, KLDivLoss = _layers(
    "MSELoss L1Loss HuberLoss SmoothL1Loss CrossEntropyLoss NLLLoss BCELoss KLDivLoss",
    F.mse_loss, F.l1_loss, F.huber_loss, F.smooth_l1_loss, F.cross_entropy, F.nll_loss,
    F.binary_cross_entropy, F.kl_div, inputs=2,
)  # fmt: skip
BCEWithLogitsLoss, PoissonNLLLoss, CosineSimilarity, PairwiseDistance = _layers(
    "BCEWithLogitsLoss PoissonNLLLoss CosineSimilarity PairwiseDistance",
    F.binary_cross_entropy_with_logits, F.poisson_nll_loss, F.cosine_similarity,
    F.pairwise_distance, inputs=2,
)  # fmt: skip
MarginRankingLoss, TripletMarginLoss = _layers(
    "MarginRankingLoss TripletMarginLoss", F.margin_ranking_loss, F.triplet_margin_loss, inputs=3
)
MaxPool1d, MaxPool2d, MaxPool3d, AvgPool1d, AvgPool2d, AvgPool3d = _layers(
    "MaxPool1d MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d", *F.max_pools, *F.avg_pools
)
AdaptiveAvgPool1d, AdaptiveAvgPool2d, AdaptiveAvgPool3d = _layers(
    "AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d", *F.adaptive_avg_pools
)
AdaptiveMaxPool1d, AdaptiveMaxPool2d, AdaptiveMaxPool3d = _layers(
    "AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d", *F.adaptive_max_pools
)
Upsample, PixelShuffle, PixelUnshuffle = _layers(
    "Upsample PixelShuffle PixelUnshuffle", F.interpolate, F.pixel_shuffle, F.pixel_unshuffle
)
