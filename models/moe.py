"""A mixture of experts: several feed-forward networks; a router chooses a few for each token.

    python models/moe.py          # a small GPT with 8 experts, 2 active; shows what each one does

Shazeer et al., "Outrageously Large Neural Networks" (2017); Fedus et al., "Switch Transformers"
(2022), for the load-balancing loss; Zoph et al., "ST-MoE" (2022), for the router's z-loss; Jiang et
al., "Mixtral of Experts" (2024), for the weights of the chosen, normalised to sum to 1.

No token is dropped. The tokens of each expert are placed side by side in blocks of rows, and each
block is multiplied by its expert's matrices. The number of rows in a block, and the rows of an
expert, are known only on the device, as masks. These become loop bounds of the products that are
loaded from memory (`loops/product.py`), so the work depends on the number of tokens, not of experts
or blocks. With very few tokens, each choice is a block of one row; then only the matrices of chosen
experts are read.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

from minigrad import Tensor, dtypes, nn
from minigrad.dtype import DType
from minigrad.errors import ShapeError
from minigrad.models.precision import of_gradient, product
from minigrad.nn.layers import uniform
from minigrad.settings import having

BLOCK_ROWS = 128  # rows of one expert's tokens for which packing its matrices pays off


@dataclass(frozen=True)
class Routing:
    """A router's decision for some tokens.

    logits, probabilities: (tokens, experts) float32. chosen: (tokens, active) int32. weights:
    (tokens, active), the probabilities of the chosen experts, normalized if the router does so.
    """

    logits: Tensor
    probabilities: Tensor
    chosen: Tensor
    weights: Tensor

    def load(self) -> Tensor:
        """The share of choices for each expert: (experts,), sums to 1."""
        experts = self.logits._known_shape()[1]
        return _one_hot(self.chosen.reshape(-1), experts).float().mean(0)

    def balance_loss(self) -> Tensor:
        """experts · Σ load · mean probability: 1 if all are used equally, more otherwise."""
        experts = self.logits._known_shape()[1]
        return (self.load().detach() * self.probabilities.mean(0)).sum() * experts

    def z_loss(self) -> Tensor:
        """Mean square of each token's log-sum-exp: keeps logits small, where float32 is accurate.
        """
        return self.logits.logsumexp(1).square().mean()


class _Open(threading.local):
    records: list[Routing] | None = None


_open = _Open()


@contextmanager
def recording() -> Iterator[list[Routing]]:
    """In the block, the decision of each router is appended to the list, in order."""
    records: list[Routing] = []
    with having(_open, records=records):
        yield records


def _one_hot(index: Tensor, classes: int) -> Tensor:
    """(…, count) integers → (…, count, classes) int32 of 0 and 1."""
    places = Tensor.arange(classes, device=index.device)
    return index.unsqueeze(-1).eq(places).int()


class Router:
    """Chooses experts for tokens. weight (experts, dim). share: chosen weights sum to 1."""

    def __init__(self, dim: int, experts: int, active: int, share: bool = True) -> None:
        self.active, self.share = active, share
        self.weight = nn.Linear(dim, experts, bias=False).weight

    def __call__(self, x: Tensor) -> Tensor:
        """(tokens, dim) → logits (tokens, experts), float32."""
        return x.float().linear(self.weight.float().transpose())

    def route(self, x: Tensor) -> Routing:
        """The `active` likeliest experts of each token; of equal ones the first."""
        logits = self(x)
        probabilities = logits.softmax(1)
        chosen, left = [], probabilities.detach()
        for _ in range(self.active):
            best = left.argmax(1)
            chosen.append(best)
            left = _one_hot(best, logits._known_shape()[1]).bool().where(-1.0, left)
        places = Tensor.stack(chosen, dim=1)
        weights = probabilities.gather(1, places)
        weights = weights / weights.sum(1, keepdim=True) if self.share else weights
        return Routing(logits, probabilities, places, weights)


def block_shape(choices: int, experts: int) -> tuple[int, int]:
    """(blocks, rows per block) that hold so many choices, however they fall on experts."""
    rows = min(BLOCK_ROWS, 1 << (choices // experts).bit_length())
    # an expert with a single choice needs a block, and so do `rows` choices of one expert
    return min(choices, (choices - experts) // rows + experts), rows


def picked(table: Tensor, index: Tensor) -> Tensor:
    """table (*lead, count, …), index (*lead, many) → the entries at the indices: (*lead, many, …).

    Unchecked: 0 for an index out of range.
    """
    rest = table._known_shape()[index.ndim :]
    shape = index._known_shape()
    places = index.reshape(*shape, *(1 for _ in rest)).expand(*shape, *rest)
    return table._at(index.ndim - 1, places)


def counted(which: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """(*lead, count) classes → (number of earlier ones of the same class, *lead, classes: counts).

    −1 means no class.
    """
    hot = _one_hot(which, classes)
    before = ((hot.cumsum(-2, dtype="int32") - hot) * hot).sum(-1, dtype="int32")
    return before, hot.sum(-2, dtype="int32")


@dataclass(frozen=True)
class Order:
    """The places of choices in a table whose rows are sorted by class.

    A choice is (token, number of its expert), numbered token by token. slot (*lead, choices): the
    row of each choice. choice (*lead, rows): the inverse; 0 for empty rows. All int32. lead: (), or
    the shape of a grid of tables with separate choices.
    """

    slot: Tensor
    choice: Tensor

    @classmethod
    def by_place(cls, chosen: Tensor, experts: int, places: int) -> tuple[Order, Tensor]:
        """Choices sorted by the place of their expert; places have equally many experts, in order.

        chosen: (*lead, choices). A place has room for all choices: rows (*lead, places·choices).
        Also returns, for each row, which of the place's experts is chosen; −1 for empty rows.
        """
        *lead, choices = chosen._known_shape()
        here = experts // places
        to = chosen // here
        before, _ = counted(to, places)
        slot = (to * choices + before).contiguous()
        wanted = cls._table(slot, chosen - to * here + 1, places * choices) - 1
        number = Tensor.arange(choices, device=chosen.device).expand(*lead, choices)
        return cls(slot, cls._table(slot, number, places * choices)), wanted.contiguous()

    @staticmethod
    def _table(slot: Tensor, values: Tensor, rows: int) -> Tensor:
        """(*lead, rows) with values (*lead, choices) at slots, 0 elsewhere."""
        lead = slot._known_shape()[:-1]
        empty = Tensor.zeros(*lead, rows, dtype=dtypes.int32, device=slot.device)
        return empty.scatter(-1, slot, values, reduce="add").contiguous()

    def fill(self, x: Tensor, active: int) -> Tensor:
        """(*lead, tokens, dim) → (*lead, rows, dim): each choice's token; other rows are anything.
        """
        value = picked(x, self.choice // active)
        return x._with_derivative(value, _by_filled, self.slot)

    def empty(self, x: Tensor) -> Tensor:
        """(*lead, rows, dim) → (*lead, choices, dim): the row of each choice.

        The gradient of other rows has any value.
        """
        return x._with_derivative(picked(x, self.slot), _by_emptied, self.choice)


def _by_filled(g: Tensor, _: Tensor, x: Tensor, slot: Tensor) -> Sequence[Tensor | None]:
    *lead, dim = x._known_shape()
    return [picked(g, slot).reshape(*lead, -1, dim).sum(-2), None]


def _by_emptied(g: Tensor, _: Tensor, x: Tensor, choice: Tensor) -> Sequence[Tensor | None]:
    return [picked(g, choice), None]


def mask(rows: int, used: Tensor) -> Tensor:
    """(*lead, blocks, rows, 1): which rows of each block are used, the first `used` of them."""
    row = Tensor.arange(rows, device=used.device).reshape(rows, 1)
    return row < used.unsqueeze(-1).unsqueeze(-1)


@dataclass(frozen=True)
class Blocks(Order):
    """The order by experts, in blocks of `rows` rows, each of which belongs to one expert.

    expert, used (*lead, blocks): the expert of a block, and how many of its first rows are used.
    first, stop (*lead, experts): where an expert's rows begin and end. All int32.
    """

    rows: int
    expert: Tensor
    used: Tensor
    first: Tensor
    stop: Tensor

    @classmethod
    def of(cls, which: Tensor, experts: int, missing: bool = False) -> Blocks:
        """The blocks for choices (*lead, choices) of experts; missing: −1 is no choice."""
        *lead, choices = which._known_shape()
        blocks, rows = block_shape(choices, experts)
        before, count = counted(which, experts)
        filled = (count + (rows - 1)) // rows
        ends = filled.cumsum(-1, dtype="int32").contiguous()
        first = ((ends - filled) * rows).contiguous()
        number = Tensor.arange(choices, device=which.device).expand(*lead, choices)
        if missing:  # these are put into the first row, and add nothing there
            there = which >= 0
            number = there.where(number, 0)
            slot = there.where(picked(first, which) + before, 0).contiguous()
        else:
            slot = (picked(first, which) + before).contiguous()
        choice = cls._table(slot, number, blocks * rows)
        place = Tensor.arange(blocks, device=which.device)
        behind = (place.unsqueeze(1) >= ends.unsqueeze(-2)).sum(-1, dtype="int32")
        expert = behind.minimum(experts - 1).contiguous()
        stop = (first + count).contiguous()
        used = (picked(stop, expert) - place * rows).maximum(0).minimum(rows).contiguous()
        return cls(slot, choice, rows, expert, used, first, stop)

    def cut(self, x: Tensor) -> Tensor:
        """(*lead, blocks·rows, dim) → (*lead, blocks, rows, dim)."""
        *lead, _, dim = x._known_shape()
        return x.reshape(*lead, -1, self.rows, dim)

    def of_all(self, x: Tensor) -> Tensor:
        """An array of all experts (experts, …) as each table has it: (*lead, its experts, …).

        lead is (), or (copies of all experts, places that share them).
        """
        if self.used.ndim == 1:
            return x
        copies, places = self.used._known_shape()[:2]
        _, *rest = x._known_shape()
        parts = x.reshape(1, places, -1, *rest)
        return parts.expand(copies, *parts._known_shape()[1:])

    def product(self, x: Tensor, weight: Tensor, precision: DType) -> Tensor:
        """Each block times its expert's matrix: x (*lead, blocks, rows, in), weight (…, out, in).

        → (*lead, blocks, rows, out), 0 in unused rows, whatever x and the gradient have there.
        weight: as returned by `of_all`. Operands are rounded first: see `precision.product`.
        """
        every = product(x, picked(weight, self.expert), precision)
        value = mask(self.rows, self.used).where(every, 0.0)
        own = self.expert, self.used, self.first, self.stop
        return x._with_derivative(value, _product_rule(precision), weight, *own)


@cache
def _product_rule(precision: DType) -> Callable[..., Sequence[Tensor | None]]:
    def rule(
        g: Tensor, _: Tensor, x: Tensor, weight: Tensor, expert: Tensor, used: Tensor,
        first: Tensor, stop: Tensor,
    ) -> Sequence[Tensor | None]:  # fmt: skip
        *lead, blocks, rows = x._known_shape()[:-1]
        x, theirs = x.cast(precision), picked(weight, expert).cast(precision)
        g = of_gradient(g, precision)
        by_x = mask(rows, used).where(g.matmul(theirs, g.dtype), 0.0).contiguous()
        row = Tensor.arange(blocks * rows, device=g.device).reshape(-1, 1)
        first, stop = (end.unsqueeze(-1).unsqueeze(-1) for end in (first, stop))
        inside = (first <= row) & (row < stop)  # both are masked: 0·∞ would be NaN
        g, x = (inside.where(part.reshape(*lead, 1, blocks * rows, -1), 0.0) for part in (g, x))
        return [by_x, g.transpose(-2, -1).matmul(x, g.dtype), None, None, None, None]

    return rule


class Experts:
    """One matrix per expert: weight (experts, out, in), bias (experts, out) or None.

    precision: the dtype to which operands are rounded before they are multiplied.
    """

    def __init__(
        self, experts: int, inputs: int, outputs: int, bias: bool, precision: DType
    ) -> None:
        self.precision = precision
        self.weight = uniform((experts, outputs, inputs), inputs)
        self.bias = uniform((experts, outputs), inputs) if bias else None

    def __call__(self, x: Tensor, which: Tensor | Blocks) -> Tensor:
        """Blocks (…, rows, in), each for the expert which[block] → (…, rows, out)."""
        if isinstance(which, Blocks):
            y = which.product(x, which.of_all(self.weight), self.precision)
            if self.bias is None:
                return y
            own = picked(which.of_all(self.bias), which.expert)
            return y + mask(which.rows, which.used).where(own.unsqueeze(-2), 0.0)
        y = product(x, self.weight[which], self.precision)
        return y if self.bias is None else y + self.bias[which].unsqueeze(1)


class MoE:
    """A router and `experts` feed-forward networks dim → hidden → dim, `active` of them per token.

    gated: SwiGLU, with the rows of gate and up in one matrix (2·hidden, dim); otherwise GELU.
    precision: of the experts' products; the router's are float32. share: see `Router`.
    """

    def __init__(
        self, dim: int, hidden: int, experts: int, active: int = 2, gated: bool = False,
        bias: bool = True, precision: DType = dtypes.float32, share: bool = True,
    ) -> None:  # fmt: skip
        if not 1 <= active <= experts:
            raise ValueError(f"active: expected 1 … {experts}, the number of experts, got {active}")
        self.dim, self.hidden, self.gated = dim, hidden, gated
        self.experts, self.active = experts, active
        self.router = Router(dim, experts, active, share)
        self.c_fc = Experts(experts, dim, hidden * (2 if gated else 1), bias, precision)
        self.c_proj = Experts(experts, hidden, dim, bias, precision)
        # if devices share tokens and experts: (groups with all experts, places in each), and the
        # function that divides an array whose first two dimensions are these
        self.lead: tuple[int, ...] = ()
        self.place: Callable[[Tensor], Tensor] = lambda x: x

    def __call__(self, x: Tensor) -> Tensor:
        """(…, dim) → the same shape."""
        if x.shape[-1] != self.dim:
            raise ShapeError(f"MoE: expected shape (…, {self.dim}), got {x.shape}")
        flat = x.reshape(-1, self.dim)
        routing = self.router.route(flat)
        if _open.records is not None:
            _open.records.append(routing)
        tokens = flat._known_shape()[0]
        if tokens * self.active <= self.experts:
            answers = self._alone(flat, routing.chosen)
        else:
            answers = self._grouped(flat, routing.chosen)
        return (answers * routing.weights.unsqueeze(2)).sum(1).reshape(x.shape)

    def network(self, x: Tensor, which: Tensor | Blocks) -> Tensor:
        """Blocks of rows, each through one expert: (blocks, rows, dim) → the same shape."""
        inner = self.c_fc(x, which)
        if self.gated:
            inner = inner[..., : self.hidden].silu() * inner[..., self.hidden :]
        else:
            inner = inner.gelu()
        return self.c_proj(inner, which)

    def _alone(self, flat: Tensor, chosen: Tensor) -> Tensor:
        """Each choice as a separate block → answers (tokens, active, dim)."""
        tokens, active = chosen.shape
        rows = flat.unsqueeze(1).expand(tokens, active, self.dim).reshape(-1, 1, self.dim)
        return self.network(rows, chosen.reshape(-1)).reshape(tokens, active, self.dim)

    def _grouped(self, flat: Tensor, chosen: Tensor) -> Tensor:
        """Choices of one expert side by side → answers (tokens, active, dim)."""
        shape = (*chosen._known_shape(), self.dim)
        lead = self.lead if shape[0] % math.prod(self.lead) == 0 else ()
        x, which = flat.reshape(*lead, -1, self.dim), chosen.reshape(*lead, -1)
        if not lead or lead[1] == 1:
            return self._in_blocks(x, which, self.active).reshape(shape)
        order, wanted = Order.by_place(which, self.experts, lead[1])
        sent = self._exchanged(order.fill(x, self.active), lead)
        answers = self._in_blocks(sent, self._exchanged(wanted, lead), 1)
        return order.empty(self._exchanged(answers, lead)).reshape(shape)

    def _in_blocks(self, x: Tensor, which: Tensor, active: int) -> Tensor:
        """x (*lead, tokens, dim), choices (*lead, tokens·active) → the answer to each choice."""
        places = self.lead[1] if which.ndim > 1 else 1
        blocks = Blocks.of(which, self.experts // places, missing=places > 1)
        # in memory: if its reader masked it, all rows of the last product would be computed
        answers = self.network(blocks.cut(blocks.fill(x, active)), blocks).contiguous()
        return blocks.empty(answers.flatten(-3, -2))

    def _exchanged(self, x: Tensor, lead: tuple[int, ...]) -> Tensor:
        """(groups, places, rows for each place, …) → the same, with rows from each place.

        If places are devices, that is an all_to_all.
        """
        groups, places = lead
        apart = x.reshape(groups, places, places, -1, *x._known_shape()[3:])
        return self.place(self.place(apart).transpose(1, 2)).reshape(x.shape)


def auxiliary_loss(routes: Sequence[Routing], balance: float, z: float) -> Tensor:
    """balance · mean load-balancing loss + z · mean z-loss over all routers, a scalar."""
    first, *others = (route.balance_loss() * balance + route.z_loss() * z for route in routes)
    return sum(others, first) / len(routes)


if __name__ == "__main__":
    from minigrad.models import console
    from minigrad.models.moe_commands import main

    sys.exit(console.run(main))
