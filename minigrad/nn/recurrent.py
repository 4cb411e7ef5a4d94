"""Steps of recurrent layers; names and shapes of parameters are PyTorch's."""

from __future__ import annotations

from typing import ClassVar

from minigrad.errors import ShapeError
from minigrad.nn.layers import uniform
from minigrad.nn.module import Layer
from minigrad.tensor import Tensor


class _Cell(Layer):
    """The weights of `gates` gates: each kind in one tensor, one gate after the other.

    weight_ih (gates·hidden, input), weight_hh (gates·hidden, hidden), bias_ih and bias_hh
    (gates·hidden,).
    """

    gates: ClassVar[int] = 1

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True) -> None:
        self.input_size, self.hidden_size, self.bias = input_size, hidden_size, bias
        rows = self.gates * hidden_size
        self.weight_ih = uniform((rows, input_size), hidden_size)
        self.weight_hh = uniform((rows, hidden_size), hidden_size)
        self.bias_ih = uniform((rows,), hidden_size) if bias else None
        self.bias_hh = uniform((rows,), hidden_size) if bias else None

    def _zeros(self, x: Tensor) -> Tensor:
        """The state before the first step."""
        return Tensor.zeros(*x.shape[:-1], self.hidden_size, dtype=x.dtype, device=x.device)

    def _products(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Of all gates (…, gates·hidden): what comes from x, and what from the hidden state."""
        name = type(self).__name__
        if x.shape[-1:] != (self.input_size,):
            raise ShapeError(f"{name} of {x.shape}: expected (…, {self.input_size})")
        if hidden.shape[-1:] != (self.hidden_size,):
            raise ShapeError(
                f"{name} with a state of {hidden.shape}: expected (…, {self.hidden_size})"
            )
        by_x = x.linear(self.weight_ih.T, self.bias_ih)
        return by_x, hidden.linear(self.weight_hh.T, self.bias_hh)

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.input_size}, {self.hidden_size}" + ("" if self.bias else ", bias=False")


class LSTMCell(_Cell):
    """One step of a long short-term memory (Hochreiter and Schmidhuber 1997).

    weight_ih (4·hidden, input), weight_hh (4·hidden, hidden), bias_ih and bias_hh (4·hidden,): of
    the input, forget, cell and output gates, in this order.
    """

    gates = 4

    def __call__(
        self, x: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """(…, input_size) and the state → the new state: hidden and cell, (…, hidden_size) each.

        Without a state it is zeros.
        """
        hidden, cell = state or (self._zeros(x), self._zeros(x))
        by_x, by_state = self._products(x, hidden)
        enter, forget, new, leave = (by_x + by_state).chunk(4, -1)
        cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
        return leave.sigmoid() * cell.tanh(), cell


class GRUCell(_Cell):
    """One step of a gated recurrent unit (Cho et al. 2014), with PyTorch's place of the reset gate.

    weight_ih (3·hidden, input) and so on: of the reset, update and new gates, in this order.
    """

    gates = 3

    def __call__(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """(…, input_size) and the state → the new state (…, hidden_size); zeros if not given."""
        before = self._zeros(x) if hidden is None else hidden
        by_x, by_state = (part.chunk(3, -1) for part in self._products(x, before))
        reset, update = ((by_x[i] + by_state[i]).sigmoid() for i in (0, 1))
        new = (by_x[2] + reset * by_state[2]).tanh()
        return new + update * (before - new)


class RNNCell(_Cell):
    """One step of a simple recurrent layer (Elman 1990): tanh or relu of both products' sum."""

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, nonlinearity: str = "tanh"
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"RNNCell(nonlinearity={nonlinearity!r}): expected 'tanh' or 'relu'")
        super().__init__(input_size, hidden_size, bias)
        self.nonlinearity = nonlinearity

    def __call__(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """(…, input_size) and the state → the new state (…, hidden_size); zeros if not given."""
        by_x, by_state = self._products(x, self._zeros(x) if hidden is None else hidden)
        total = by_x + by_state
        return total.tanh() if self.nonlinearity == "tanh" else total.relu()
