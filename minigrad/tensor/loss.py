"""Losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from minigrad.dtype import dtypes, promote
from minigrad.errors import DTypeError, expect, misfit
from minigrad.tensor.basic import Composed
from minigrad.tensor.broadcasting import Axis, Scalar, axis_of, check_share
from minigrad.tensor.core import Core
from minigrad.tensor.templates import templated


@templated
def _binary_rule(g: Any, value: Any, p: Any, t: Any) -> Sequence[Any]:
    by_p = g * (p - t) / (p * (1 - p)).maximum(1e-12)
    by_t = g * ((-p).log1p().maximum(-100) - p.log().maximum(-100))
    return [by_p.cast(p.dtype), by_t.cast(t.dtype)]


class Loss(Composed):
    """Losses; reduction is "mean", "sum" or "none"."""

    __slots__ = ()

    def _reduced(self, reduction: str) -> Self:
        if reduction == "mean":
            return self.mean()
        if reduction == "sum":
            return self.sum()
        if reduction != "none":
            raise ValueError(f"reduction={reduction!r}: expected 'mean', 'sum' or 'none'")
        return self

    def cross_entropy(
        self, target: Core, reduction: str = "mean", label_smoothing: Scalar = 0.0,
        ignore_index: int = -100, *, axis: Axis = None,
    ) -> Self:  # fmt: skip
        """−log softmax(logits)[target], for logits (…, classes) or PyTorch's (batch, classes, …).

        target: integers in the logits' shape without the classes, or probabilities in their shape.
        axis: the dimension of the classes, required if the shapes fit both forms, such as (8, 5, 5)
        with integers (8, 5). Targets equal to ignore_index do not count; BoundsError if another is
        not a class. reduction: "mean", "sum" or "none". Computed in at least float32.

        >>> round(Tensor([[0.0, 0.0]]).cross_entropy(Tensor([1])).item(), 4)
        0.6931
        """
        place = self._class_axis("cross_entropy", target, axis)
        return self._cross_entropy(target, None, reduction, label_smoothing, ignore_index, place)

    @templated
    def _cross_entropy(
        self, target: Core, weight: Core | None, reduction: str, label_smoothing: Scalar,
        ignore_index: int, place: int,
    ) -> Self:  # fmt: skip
        """As `cross_entropy`. weight: one factor per class. place: the dimension of the classes."""
        check_share("cross_entropy", label_smoothing=label_smoothing)
        expect(self.ndim, "cross_entropy", "a dimension of classes", self)
        shifted = self.movedim(place, -1)._wide()._shifted(-1)
        total = shifted.exp().sum(-1).log()
        if not target.dtype.is_float:
            options = (ignore_index, reduction, total, label_smoothing)
            result = shifted._of_classes("cross_entropy", target, weight, *options)
            return result.cast(self._float_dtype())
        expect(ignore_index == -100, f"cross_entropy(ignore_index={ignore_index})",
               "integer targets; write target.int(), or leave ignore_index out for probabilities",
               target.dtype.name, error=DTypeError)  # fmt: skip
        if target.shape != self.shape:
            expected = "probabilities of the logits' shape, or integers; write target.int()"
            given = f"targets {target.dtype.name} {target.shape}"
            raise misfit("cross_entropy", expected, self, given)
        wanted = self._new(target.node).movedim(place, -1) * (1 - label_smoothing)
        if label_smoothing:
            wanted = wanted + label_smoothing / shifted._count(-1, shifted.dtype)
        wanted = wanted if weight is None else wanted * shifted._of_each_class(weight)
        losses = -((shifted - total.unsqueeze(-1)) * wanted).sum(-1)
        return losses._reduced(reduction).cast(promote(self._float_dtype(), target.dtype))

    def _class_axis(self, name: str, target: Core, axis: Axis) -> int:
        """The dimension of the classes: as given, else the one of −1 and 1 that fits the targets.
        """
        expect(self.ndim, name, "a dimension of classes", self)
        if axis is not None:
            return axis_of(name, axis, self.ndim)
        if target.dtype.is_float:
            last = second = target.shape == self.shape
        else:
            last = target.shape == self.shape[:-1]
            second = target.shape == self.shape[:1] + self.shape[2:]
        if self.ndim > 2 and last and second:
            expected = "axis=1 (as in PyTorch) or axis=-1, as both fit"
            raise misfit(name, expected, self, f"targets {target.shape}")
        return 1 if self.ndim > 2 and second else -1

    def sparse_categorical_crossentropy(
        self, target: Core, ignore_index: int = -1, label_smoothing: Scalar = 0.0,
        reduction: str = "mean",
    ) -> Self:  # fmt: skip
        """`cross_entropy` of logits (…, classes) and integer targets (…); −1 does not count.

        >>> round(Tensor([[0.0, 0.0]]).sparse_categorical_crossentropy(Tensor([1])).item(), 4)
        0.6931
        """
        return self._cross_entropy(target, None, reduction, label_smoothing, ignore_index, -1)

    def _of_classes(
        self, name: str, target: Core, weight: Core | None, ignore_index: int, reduction: str,
        total: Any = 0.0, label_smoothing: Scalar = 0.0,
    ) -> Self:  # fmt: skip
        """Losses total − self[…, target] for integer targets (…), reduced.

        total − self: negative log probabilities (…, classes). The target's one is picked by a
        masked sum: its gradient is elementwise, and fuses with that of softmax.
        """
        is_target, counts = self._targets(name, target, ignore_index)
        losses: Self = total - is_target.where(self, 0).sum(-1)
        factor = counts
        if weight is not None:
            factors = self._of_each_class(weight)
            factor = counts.where(is_target.where(factors, 0).sum(-1), 0)
            losses = factor.ne(0).where(losses, 0) * factor
        if label_smoothing:
            even = total - self.mean(-1) if weight is None else (
                total * factors.mean() - (self * factors).mean(-1)
            )  # fmt: skip
            losses = losses * (1 - label_smoothing) + even * label_smoothing
        losses = counts.where(losses, 0)
        if reduction == "mean":
            number = factor.sum(dtype=dtypes.int32 if weight is None else None)
            return losses.sum() / number.cast(self.dtype)
        return losses._reduced(reduction)

    def _of_each_class(self, weight: Core) -> Self:
        """`weight`, checked to have one element for each class (the last dimension of self)."""
        if weight.shape != self.shape[-1:]:
            raise misfit("weight for each class", str(self.shape[-1:]), weight)
        return self._new(weight.node)._wide()

    def _targets(self, name: str, target: Core, ignore_index: int) -> tuple[Self, Self]:
        """For self (…, classes): the targets as one-hot bools, and which of them (…) count."""
        if not self.ndim or target.shape != self.shape[:-1]:
            how = {self.shape: "argmax(-1)", (*self.shape[:-1], 1): "squeeze(-1)"}
            more = f"; write target.{how[target.shape]}" if target.shape in how else ""
            expected = f"(…, classes) and integer targets (…){more}"
            raise misfit(name, expected, self, f"targets {target.shape}")
        expect(target.dtype.is_int, name, "integer targets; write target.int()", target.dtype.name,
               error=DTypeError)  # fmt: skip
        known = self._new(target.node)
        classes = known._checked(self.shape[-1], name, "classes", ignored=ignore_index)
        ramp = self.arange(self.shape[-1], device=self.raw.device)
        return classes.unsqueeze(-1).eq(ramp), classes.ne(ignore_index)

    def nll_loss(
        self, target: Core, weight: Core | None = None, ignore_index: int = -100,
        reduction: str = "mean", *, axis: Axis = None,
    ) -> Self:  # fmt: skip
        """−self[…, target], for log probabilities (…, classes); weight: one factor per class.

        (batch, classes, …), axis and reduction as for `cross_entropy`. Targets equal to
        ignore_index do not count; BoundsError if another is not a class. With weights, a mean is
        divided by the sum of their factors. Computed in at least float32.

        >>> Tensor([[-1.0, -2.0]]).nll_loss(Tensor([1])).item()
        2.0
        """
        x = self._wide().movedim(self._class_axis("nll_loss", target, axis), -1)
        result = x._of_classes("nll_loss", target, weight, ignore_index, reduction)
        return result.cast(self._float_dtype())

    def _check_same_shape(self, name: str, target: Core) -> None:
        """ShapeError unless shapes are equal: (4, 1) and (4,) would broadcast to 16 differences."""
        expect(target.shape == self.shape, name, "equal shapes; reshape or expand one of them",
               self, f"targets {target.shape}")  # fmt: skip

    def _away(self, name: str, target: Core) -> Self:
        """self − target, of equal shapes, in floats: a difference of bytes would wrap."""
        self._check_same_shape(name, target)
        x, y = self._two_floats(name, target)
        return x - y

    def mse_loss(self, target: Core, reduction: str = "mean") -> Self:
        """(self − target)² in floats, reduced by "mean", "sum" or "none".

        ShapeError unless the shapes are equal.

        >>> Tensor([1.0]).mse_loss(Tensor([3.0])).item()
        4.0
        """
        return self._away("mse_loss", target).square()._reduced(reduction)

    def binary_crossentropy(self, target: Core, reduction: str = "mean") -> Self:
        """−(t·log p + (1 − t)·log(1 − p)) of probabilities p; logarithms are at least −100.

        The derivative is (p − t)/max(p·(1 − p), 10⁻¹²), as in PyTorch. Computed in at least
        float32. reduction: "mean", "sum" or "none". ShapeError unless the shapes are equal;
        DomainError if p or t is not in 0 … 1, raised when the loss is computed.

        >>> round(Tensor([0.5]).binary_crossentropy(Tensor([1.0])).item(), 4)
        0.6931
        """
        self._check_same_shape("binary_crossentropy", target)
        p, t = (value._wide()._within("binary_crossentropy", "not a probability", said)
                for value, said in ((self, "0 … 1; use binary_crossentropy_logits for logits"),
                                    (self._new(target.node), "targets in 0 … 1")))  # fmt: skip
        yes, no = p.log().maximum(-100), (-p).log1p().maximum(-100)
        losses = -(t * yes + (1 - t) * no)
        losses = p._with_derivative(losses, _binary_rule, t)
        return losses._reduced(reduction).cast(promote(self._float_dtype(), target.dtype))

    def binary_crossentropy_logits(
        self, target: Core, reduction: str = "mean", pos_weight: Core | None = None
    ) -> Self:
        """`binary_crossentropy` of sigmoid(self), without overflow.

        pos_weight: a factor of −t·log p, broadcast to self's shape. Targets need not be in 0 … 1.

        >>> round(Tensor([0.0]).binary_crossentropy_logits(Tensor([1.0])).item(), 4)
        0.6931
        """
        self._check_same_shape("binary_crossentropy_logits", target)
        wanted = self._new(target.node)
        yes, no = self.logsigmoid(), (-self._as_float()).logsigmoid()
        if pos_weight is not None:
            yes = yes * pos_weight
            self._check_same_shape("binary_crossentropy_logits with pos_weight", yes)
        return (-(wanted * yes + (1 - wanted) * no))._reduced(reduction)
