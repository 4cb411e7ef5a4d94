"""Recurrent layers; names and shapes of parameters are PyTorch's."""

from __future__ import annotations

from minigrad.errors import ShapeError
from minigrad.nn.layers import uniform
from minigrad.tensor import Tensor


class LSTMCell:
    """One step of a long short-term memory (Hochreiter and Schmidhuber 1997).

    weight_ih (4·hidden, input), weight_hh (4·hidden, hidden), bias_ih and bias_hh (4·hidden,): of
    the input, forget, cell and output gates, in this order.
    """

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True) -> None:
        self.input_size, self.hidden_size = input_size, hidden_size
        self.weight_ih = uniform((4 * hidden_size, input_size), hidden_size)
        self.weight_hh = uniform((4 * hidden_size, hidden_size), hidden_size)
        self.bias_ih = uniform((4 * hidden_size,), hidden_size) if bias else None
        self.bias_hh = uniform((4 * hidden_size,), hidden_size) if bias else None

    def __call__(
        self, x: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """(…, input_size) and the state → the new state: hidden and cell, (…, hidden_size) each.

        Without a state it is zeros.
        """
        if x.shape[-1:] != (self.input_size,):
            raise ShapeError(f"LSTMCell of {x.shape}: expected (…, {self.input_size})")
        if state is None:
            zeros = Tensor.zeros(
                *x.shape[:-1], self.hidden_size, dtype=x.dtype, device=x.device
            )
            state = (zeros, zeros)
        hidden, cell = state
        gates = x.linear(self.weight_ih.T, self.bias_ih)
        gates = gates + hidden.linear(self.weight_hh.T, self.bias_hh)
        enter, forget, new, leave = gates.chunk(4, -1)
        cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
        return leave.sigmoid() * cell.tanh(), cell
