"""Recurrent layers and their steps; names and shapes of parameters are PyTorch's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from minigrad.dtype import promote
from minigrad.errors import ShapeError, expect, misfit
from minigrad.nn.layers import blank, uniform
from minigrad.nn.module import Layer
from minigrad.tensor import Tensor
from minigrad.tensor.arguments import check_names
from minigrad.tensor.broadcasting import check_choice, check_share

PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def parts_of(layer: Any, state: Any, kept: tuple[str, ...]) -> tuple[Tensor, ...]:
    """The tensors of a state, given alone or in a tuple; ShapeError or TypeError for others."""
    parts = tuple(state) if isinstance(state, (tuple, list)) else (state,)
    are_tensors = all(isinstance(part, Tensor) for part in parts)
    if len(parts) != len(kept) or not are_tensors:
        raise (ShapeError if are_tensors else TypeError)(
            f"{type(layer).__name__}: expected a state of {' and '.join(kept)}, a Tensor"
            f"{' each, in a tuple' * (len(kept) > 1)}, got "
            f"{', '.join(type(p).__name__ for p in parts)}"
        )
    return parts


class _Cell(Layer):
    """The weights of a step; each tensor holds those of all gates, one gate after the other.

    weight_ih (gates·hidden, input), weight_hh (gates·hidden, hidden), bias_ih and bias_hh
    (gates·hidden,).
    """

    _sizes, _unusual = ("input_size", "hidden_size"), {"bias": True}
    gates: ClassVar[int] = 1
    kept: ClassVar[tuple[str, ...]] = ("hidden",)  # names of the tensors passed from step to step

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True) -> None:
        self.input_size, self.hidden_size, self.bias = input_size, hidden_size, bias
        rows = self.gates * hidden_size
        self.weight_ih = uniform((rows, input_size), hidden_size)
        self.weight_hh = uniform((rows, hidden_size), hidden_size)
        self.bias_ih = uniform((rows,), hidden_size) if bias else None
        self.bias_hh = uniform((rows,), hidden_size) if bias else None

    def _parts(self, x: Tensor, state: Any) -> tuple[Tensor, ...]:
        """The tensors of a state; zeros if there is none."""
        if state is not None:
            return parts_of(self, state, self.kept)
        shape = (*x.shape[:-1], self.hidden_size)
        return (Tensor.zeros(shape, dtype=x.dtype, device=x.device),) * len(self.kept)

    def _products(self, x: Tensor, hidden: Tensor, *more: Tensor) -> tuple[Tensor, Tensor]:
        """For all gates (…, gates·hidden): the contributions of x and of the hidden state."""
        name = type(self).__name__
        if x.shape[-1:] != (self.input_size,):
            raise misfit(name, f"(…, {self.input_size})", x)
        wanted = (*x.shape[:-1], self.hidden_size)
        for part in (hidden, *more):
            if part.shape != wanted:
                raise misfit(f"{name}: state", str(wanted), part)
        by_x = x.linear(self.weight_ih.T, self.bias_ih)
        return by_x, hidden.linear(self.weight_hh.T, self.bias_hh)

    def step(self, state: tuple[Tensor, ...], x: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """A step for `Tensor.scan`: the state as a tuple, and its hidden part as the output."""
        new: Any = self(x, state if len(self.kept) > 1 else state[0])
        state = new if isinstance(new, tuple) else (new,)
        return state, state[0]


class LSTMCell(_Cell):
    """One step of a long short-term memory (Hochreiter and Schmidhuber 1997).

    weight_ih (4·hidden, input), weight_hh (4·hidden, hidden), bias_ih and bias_hh (4·hidden,): for
    the input, forget, cell and output gates, in this order.
    """

    gates = 4
    kept = ("hidden", "cell")

    def __call__(
        self, x: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """(…, input_size) and the state → the new state: hidden and cell, (…, hidden_size) each.

        The initial state is zeros.
        """
        hidden, cell = self._parts(x, state)
        by_x, by_state = self._products(x, hidden, cell)
        enter, forget, new, leave = (by_x + by_state).chunk(4, -1)
        cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
        return leave.sigmoid() * cell.tanh(), cell


class GRUCell(_Cell):
    """One step of a gated recurrent unit (Cho et al. 2014), with the reset gate as in PyTorch.

    weight_ih (3·hidden, input) and so on: for the reset, update and new gates, in this order.
    """

    gates = 3

    def __call__(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """(…, input_size) and the state → the new state (…, hidden_size); zeros if not given."""
        (before,) = self._parts(x, hidden)
        by_x, by_state = (part.chunk(3, -1) for part in self._products(x, before))
        reset, update = ((by_x[i] + by_state[i]).sigmoid() for i in (0, 1))
        new = (by_x[2] + reset * by_state[2]).tanh()
        return new + update * (before - new)


class RNNCell(_Cell):
    """One step of a simple recurrent layer (Elman 1990): tanh or relu of the sum of both products.
    """

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, nonlinearity: str = "tanh"
    ) -> None:
        check_choice("RNNCell", ("tanh", "relu"), nonlinearity=nonlinearity)
        super().__init__(input_size, hidden_size, bias)
        self.nonlinearity = nonlinearity

    def __call__(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """(…, input_size) and the state → the new state (…, hidden_size); zeros if not given."""
        by_x, by_state = self._products(x, *self._parts(x, hidden))
        total = by_x + by_state
        return total.tanh() if self.nonlinearity == "tanh" else total.relu()


class _Recurrent(Layer):
    """Cells over sequences, in num_layers layers; each reads the outputs of the previous one.

    Parameters are PyTorch's: weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0, then those of the
    other direction (…_l0_reverse) and of layers 1, 2, …. In training, dropout acts on the outputs
    passed from layer to layer.
    """

    _sizes = ("input_size", "hidden_size")
    _unusual: ClassVar[dict[str, Any]] = {
        "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False
    }  # fmt: skip
    cell: ClassVar[type[_Cell]]

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
        batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False,
        **options: Any,
    ) -> None:  # fmt: skip
        check_names(type(self).__name__, self.cell.__init__, options)
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout = bias, batch_first, dropout
        self.bidirectional, self.options = bidirectional, options
        check_share(type(self).__name__, dropout=dropout)
        expect(min(input_size, hidden_size, num_layers) >= 1,
               f"{type(self).__name__}({input_size}, {hidden_size}, num_layers={num_layers})",
               "sizes and num_layers ≥ 1", error=ValueError)  # fmt: skip
        for layer in range(num_layers):
            width = hidden_size * (1 + bidirectional) if layer else input_size
            for end in self._ends(layer):
                made = self.cell(width, hidden_size, bias, **options)
                for name in PARAMETERS:
                    setattr(self, f"{name}_{end}", getattr(made, name))

    def _ends(self, layer: int) -> list[str]:
        return [f"l{layer}", f"l{layer}_reverse"][: 1 + self.bidirectional]

    def _cell(self, end: str, width: int) -> _Cell:
        """The cell of one layer and direction, with this module's parameters."""
        with blank():
            made = self.cell(width, self.hidden_size, self.bias, **self.options)
        for name in PARAMETERS:
            setattr(made, name, getattr(self, f"{name}_{end}"))
        return made

    def __call__(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """(length, batch, input_size) → (length, batch, directions·hidden_size), the last state.

        batch_first: (batch, length, …) instead. The batch dimension may be missing. A state is
        (num_layers·directions, batch, hidden_size), for an LSTM a pair of these; zeros if not
        given.
        """
        n = self.input_size
        expect(x.ndim in (2, 3) and x.shape[-1] == n, type(self).__name__,
               f"(length, batch, {n}), or (batch, length, {n}) with batch_first", x)  # fmt: skip
        time = 1 if self.batch_first and x.ndim == 3 else 0
        given: Sequence[Tensor] = () if state is None else parts_of(self, state, self.cell.kept)
        whole = x.transpose(0, time)
        wanted = (self.num_layers * (1 + self.bidirectional), *whole.shape[1:-1], self.hidden_size)
        expect(all(part.shape == wanted for part in given), f"{type(self).__name__}: state",
               f"{' and '.join(self.cell.kept)} of shape {wanted}", *given)  # fmt: skip
        weight: Tensor = getattr(self, f"{PARAMETERS[0]}_l0")
        dtype = promote(*(one.dtype for one in (x, weight, *given)))
        zeros = Tensor.zeros(wanted, dtype=dtype, device=whole.device)
        given = given or (zeros,) * len(self.cell.kept)
        last: list[tuple[Tensor, ...]] = []
        for layer in range(self.num_layers):
            found = []
            for turn, end in enumerate(self._ends(layer)):
                cell = self._cell(end, whole._known_shape()[-1])
                start = tuple(part[len(last)].cast(dtype) for part in given)
                if whole.shape[0] == 1:  # no loop: it becomes part of the surrounding program
                    held, out = cell.step(start, whole[0])
                    found.append(out.unsqueeze(0))
                else:
                    held, outs = Tensor.scan(cell.step, start, whole, reverse=bool(turn))
                    found.append(outs)
                last.append(held)
            whole = Tensor.cat(found, dim=-1)
            if layer < self.num_layers - 1 and self.dropout and self._trains():
                whole = whole.dropout(self.dropout)
        states = tuple(map(Tensor.stack, zip(*last, strict=True)))
        return whole.transpose(0, time), states if len(states) > 1 else states[0]


class RNN(_Recurrent):
    """`RNNCell` over sequences; nonlinearity="tanh" or "relu".

    rnn(x, state) gives (outputs, final state). x (length, batch, input_size), or with the batch
    first if batch_first=True; outputs (length, batch, hidden_size), twice as wide if bidirectional.
    state (layers · directions, batch, hidden_size); zeros if it is not given.
    """

    cell = RNNCell


class GRU(_Recurrent):
    """`GRUCell` over sequences; arguments and results as for `RNN`."""

    cell = GRUCell


class LSTM(_Recurrent):
    """`LSTMCell` over sequences; as `RNN`, but the state is a pair: hidden and cell.

    outputs, (hidden, cell) = LSTM(3, 8)(x) of x (5, 2, 3): (5, 2, 8), (1, 2, 8), (1, 2, 8).
    """

    cell = LSTMCell
