"""Small layers; names and shapes of parameters are PyTorch's."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Self

from minigrad.errors import expect, misfit
from minigrad.nn import functional as F
from minigrad.nn.module import Layer, Parameter
from minigrad.settings import having
from minigrad.tensor import Tensor
from minigrad.tensor.arguments import check_names, checked, fit, kind_of
from minigrad.tensor.broadcasting import check_share
from minigrad.tensor.modes import modes
from minigrad.tensor.templates import templated

_linear = templated(F.linear)


def blank() -> AbstractContextManager[None]:
    """Inside, layers that this thread creates get zeros instead of random numbers.

    For code that sets the parameters itself: nothing is drawn, and zeros take no memory before they
    are read.
    """
    return having(modes, blank=True)


def uniform(shape: tuple[int, ...], inputs: float) -> Tensor:
    """A parameter uniform in ±1/√inputs, as PyTorch initialises linear and convolution layers.

    Without inputs, zeros.
    """
    if modes.blank:
        return Tensor.zeros(*shape, requires_grad=True)
    bound = 1 / math.sqrt(inputs) if inputs else 0.0
    return Tensor.uniform(*shape, low=-bound, high=bound, requires_grad=True)


class Linear(Layer):
    """x·Wᵀ + b: (…, in_features) → (…, out_features).

    weight (out_features, in_features) and bias (out_features,), or None, begin uniform in
    ±1/√in_features. ShapeError if the last dimension of x is not in_features.
    """

    _named = ("in_features", "out_features", "bias")

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        self.in_features, self.out_features = in_features, out_features
        self.weight = uniform((out_features, in_features), in_features)
        self.bias = uniform((out_features,), in_features) if bias else None

    def __call__(self, x: Tensor) -> Tensor:
        """(…, in_features) → (…, out_features)."""
        if x.shape[-1:] != self.weight.shape[1:]:
            raise misfit("Linear", f"(…, {self.weight.shape[1]})", x)
        return _linear(x, self.weight, self.bias)


class Embedding(Layer):
    """A table of vectors: integers (…) → (…, embedding_dim); BoundsError for one that is no row.

    weight (num_embeddings, embedding_dim), initially normal, deviation 1. padding_idx: a row of
    zeros at first, which gets no gradient.
    """

    _sizes, _unusual = ("num_embeddings", "embedding_dim"), {"padding_idx": None}

    def __init__(
        self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None
    ) -> None:
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        expect(padding_idx is None or -num_embeddings <= padding_idx < num_embeddings,
               f"Embedding({num_embeddings}, {embedding_dim}, padding_idx={padding_idx})",
               "padding_idx to be a row", error=ValueError)  # fmt: skip
        self.padding_idx = None if padding_idx is None else padding_idx % num_embeddings
        make = Tensor.zeros if modes.blank else Tensor.randn
        self.weight = make(num_embeddings, embedding_dim, requires_grad=True)
        if self.padding_idx is not None:
            with Tensor.no_grad():
                self.weight[self.padding_idx] = 0

    @classmethod
    @checked
    def from_pretrained(
        cls, embeddings: Tensor, freeze: bool = True, padding_idx: int | None = None
    ) -> Self:
        """A table with these rows (num_embeddings, embedding_dim), not trained if `freeze`."""
        expect(embeddings.ndim == 2, "Embedding.from_pretrained", "a matrix", embeddings)
        with blank():
            rows, width = embeddings._known_shape()
            made = cls(rows, width, padding_idx)
        made.weight = Parameter(embeddings)
        made.weight.requires_grad = not freeze
        return made

    def __call__(self, index: Tensor) -> Tensor:
        """Integers (…) → (…, embedding_dim); BoundsError for one that is not a row."""
        rows = index._rows_of(self.weight, "Embedding")
        if self.padding_idx is None:
            return rows
        return index.eq(self.padding_idx).unsqueeze(-1).where(rows.detach(), rows)


class Dropout(Layer):
    """In training, elements are 0 with probability p, and divided by 1 − p otherwise.

    inplace: the result is written to the input. ValueError unless p is in 0 … 1.
    """

    _named = ("p",)

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        check_share(type(self).__name__, p=p)
        self.p, self.inplace = p, inplace

    def __call__(self, x: Tensor) -> Tensor:
        """Same shape."""
        result = self._dropped(x)
        return x.copy_(result) if self.inplace and result is not x else result

    def _dropped(self, x: Tensor) -> Tensor:
        return x.dropout(self.p) if self.p and self._trains() else x


class Dropout2d(Dropout):
    """`Dropout` of whole channels of images (…, channels, height, width).

    In training, a channel of an image is 0 with probability p, and divided by 1 − p otherwise.
    """

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout2d(x, self.p, self.p > 0 and self._trains())


class Identity(Layer):
    """Returns its input; constructor arguments are accepted and ignored."""

    _refused = ("numpy", "torch")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, x: Tensor) -> Tensor:
        """x."""
        return x


class PReLU(Layer):
    """x, but weight·x below 0, with a trained weight (num_parameters,) that begins with `init`.

    num_parameters: 1, or the number of channels of x (batch, channels, …).
    """

    _named = ("num_parameters",)

    def __init__(self, num_parameters: int = 1, init: float = 0.25) -> None:
        self.num_parameters, self.init = num_parameters, init
        self.weight = Tensor.full((num_parameters,), float(init), requires_grad=True)

    def __call__(self, x: Tensor) -> Tensor:
        """Same shape."""
        return x.prelu(self.weight)


class FunctionLayer(Layer):
    """A function of tensors as a layer; the function's options are arguments, and attributes.

    inplace, where PyTorch has it, writes the result to the input: a residual block that begins with
    nn.ReLU(True) adds the result, as in PyTorch. weight and pos_weight are buffers.
    """

    function: ClassVar[Callable[..., Any]]
    __signature__: ClassVar[inspect.Signature]

    def __init__(self, *args: Any, **options: Any) -> None:
        try:
            bound = type(self).__signature__.bind(*args, **options)
        except TypeError as error:
            name = type(self).__name__
            check_names(name, type(self), options)
            how = f"; write {name}()(…)" if any(isinstance(a, Tensor) for a in args) else ""
            raise TypeError(f"{name}: {error}{how}") from None
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
        """The function's result."""
        options = {name: value for name, value in self._options().items() if name != "inplace"}
        result: Tensor = type(self).function(*inputs, **options)
        return inputs[0].copy_(result) if vars(self).get("inplace") else result

    def extra_repr(self) -> str:
        """The options, except those that are None or off."""
        shown = {n: v for n, v in self._options().items() if v is not None}
        return ", ".join(f"{n}={v!r}" for n, v in shown.items() if n != "inplace" or v)


def _layers(
    *functions: Any, inputs: int = 1, only: str = "", last: str = "", inplace: bool = False
) -> list[type[FunctionLayer]]:
    """Layers of functions.

    inputs: how many tensors a call takes. only: the name of the one option. last: an option that
    comes last in the layer.
    """
    kind, made = inspect.Parameter.POSITIONAL_OR_KEYWORD, list[Any]()
    for function in functions:
        options = list(inspect.signature(function).parameters.values())[inputs:]
        options = [option for option in options if only in ("", option.name)]
        options.sort(key=lambda option: option.name == last)
        if inplace:
            options.append(inspect.Parameter("inplace", kind, default=False, annotation="bool"))
        options = [o.replace(kind=kind) for o in options] if only else options
        private = function.__name__.startswith("_")  # it exists as a layer only
        text = "" if private else f"The layer of `{function.__name__}`. "
        text += inspect.getdoc(function) or ""
        body = {"__doc__": text.partition("\n>>>")[0], "__module__": __name__,
                "__signature__": inspect.Signature(options),
                "function": staticmethod(function)}  # fmt: skip
        made.append(type("layer", (FunctionLayer,), body))
    return made


def _flatten(x: Tensor, start_dim: int = 1, end_dim: int = -1) -> Tensor:
    """Dimensions start_dim … end_dim merged into one: (batch, …) → (batch, all others)."""
    return x.flatten(start_dim, end_dim)


def _unflatten(x: Tensor, dim: int, unflattened_size: Any) -> Tensor:
    """One dimension split into several; one of their sizes may be −1."""
    return x.unflatten(dim, unflattened_size)


def _padding_layers(mode: str) -> list[type[FunctionLayer]]:
    """The layers that pad one, two and three dimensions."""

    def padded(dimensions: int) -> Callable[..., Tensor]:
        def _pad(x: Tensor, padding: int | Sequence[int]) -> Tensor:
            widths = [padding] * 2 * dimensions if isinstance(padding, int) else [*padding]
            expect(len(widths) == 2 * dimensions, "padding", f"an int or {2 * dimensions} of them",
                   widths)  # fmt: skip
            return x.pad(widths, mode=mode)

        _pad.__doc__ = (
            f'`Tensor.pad` with mode="{mode}": elements around the last dimensions.\n\n'
            f"padding: one width, or {2 * dimensions} of them: (left, right, top, bottom, …)."
        )
        return _pad

    return _layers(*map(padded, F.DIMENSIONS))


ReLU, ReLU6, SiLU, Mish, Hardswish, Hardsigmoid, Hardtanh = _layers(
    F.relu, F.relu6, F.silu, F.mish, F.hardswish, F.hardsigmoid, F.hardtanh, inplace=True
)
LeakyReLU, ELU, SELU, Threshold = _layers(F.leaky_relu, F.elu, F.selu, F.threshold, inplace=True)
Hardshrink, Softshrink, Tanhshrink, Tanh, Sigmoid, LogSigmoid, GELU, GLU, Softplus = _layers(
    F.hardshrink, F.softshrink, F.tanhshrink, F.tanh, F.sigmoid, F.logsigmoid, F.gelu, F.glu,
    F.softplus,
)  # fmt: skip
Flatten, Unflatten = _layers(_flatten, _unflatten)
Softmax, LogSoftmax = _layers(F.softmax, F.log_softmax, only="dim")
MSELoss, L1Loss, HuberLoss, SmoothL1Loss, CrossEntropyLoss, NLLLoss, BCELoss, KLDivLoss = _layers(
    F.mse_loss, F.l1_loss, F.huber_loss, F.smooth_l1_loss, F.cross_entropy, F.nll_loss,
    F.binary_cross_entropy, F.kl_div, inputs=2,
)  # fmt: skip
BCEWithLogitsLoss, PoissonNLLLoss, CosineSimilarity, PairwiseDistance = _layers(
    F.binary_cross_entropy_with_logits, F.poisson_nll_loss, F.cosine_similarity,
    F.pairwise_distance, inputs=2,
)  # fmt: skip
MarginRankingLoss, TripletMarginLoss = _layers(
    F.margin_ranking_loss, F.triplet_margin_loss, inputs=3
)
MaxPool1d, MaxPool2d, MaxPool3d = _layers(*F.max_pools, last="ceil_mode")
AvgPool1d, AvgPool2d, AvgPool3d = _layers(*F.avg_pools)
AdaptiveAvgPool1d, AdaptiveAvgPool2d, AdaptiveAvgPool3d = _layers(*F.adaptive_avg_pools)
AdaptiveMaxPool1d, AdaptiveMaxPool2d, AdaptiveMaxPool3d = _layers(*F.adaptive_max_pools)
Upsample, PixelShuffle, PixelUnshuffle = _layers(F.interpolate, F.pixel_shuffle, F.pixel_unshuffle)
ReflectionPad1d, ReflectionPad2d, ReflectionPad3d = _padding_layers("reflect")
ReplicationPad1d, ReplicationPad2d, ReplicationPad3d = _padding_layers("replicate")
CircularPad1d, CircularPad2d, CircularPad3d = _padding_layers("circular")
ZeroPad1d, ZeroPad2d, ZeroPad3d = _padding_layers("constant")
for _name, _kind in [*globals().items()]:
    if isinstance(_kind, type) and _kind.__name__ == "layer":
        _kind.__name__ = _kind.__qualname__ = _name
