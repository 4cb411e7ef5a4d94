"""A mixture of experts: several feed-forward networks, of which a router chooses a few per token.

    python models/moe.py          # a small GPT with 8 experts, 2 active; shows what each one does

Shazeer et al., "Outrageously Large Neural Networks" (2017); Fedus et al., "Switch Transformers"
(2022), for the load-balancing loss; Zoph et al., "ST-MoE" (2022), for the router's z-loss; Jiang et
al., "Mixtral of Experts" (2024), for the weights of the chosen, normalised to sum to 1.

No token is dropped. The tokens of each expert are put side by side in blocks of rows, and each
block is multiplied by its own expert's matrices. How many rows a block really has, and which rows
are an expert's, is known on the device only: masks say it, which become bounds that the products'
loops load (`loops/dynamic_bounds.py`), so the work follows the number of tokens, not that of
experts or blocks. With very few tokens each choice is a block of one row; then only the matrices of
chosen experts are read.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from minigrad import Tensor, dtypes, nn
from minigrad.dtype import DType
from minigrad.errors import ShapeError
from minigrad.graph import build
from minigrad.graph.node import Node
from minigrad.models.checkpoint import plain_shape
from minigrad.models.precision import of_gradient, product
from minigrad.nn.layers import uniform

BLOCK_ROWS = 128  # of one expert's tokens, over which the packing of its matrices pays


@dataclass(frozen=True)
class Routing:
    """What a router decided for some tokens.

    logits, probabilities: (tokens, experts) float32; chosen: (tokens, active) int32; weights: the
    chosen ones' probabilities, normalised if the router does so, (tokens, active).
    """

    logits: Tensor
    probabilities: Tensor
    chosen: Tensor
    weights: Tensor

    def load(self) -> Tensor:
        """The share of choices that fell on each expert: (experts,), sums to 1."""
        experts = plain_shape(self.logits)[1]
        return _one_hot(self.chosen.reshape(-1), experts).float().mean(0)

    def balance_loss(self) -> Tensor:
        """experts · Σ load · mean probability: 1 where all are used alike, more otherwise."""
        experts = plain_shape(self.logits)[1]
        return (self.load().detach() * self.probabilities.mean(0)).sum() * experts

    def z_loss(self) -> Tensor:
        """Mean square of each token's log-sum-exp: keeps logits small, where float32 is exact."""
        return self.logits.logsumexp(1).square().mean()


class _Open(threading.local):
    records: list[Routing] | None = None


_open = _Open()


@contextmanager
def recording() -> Iterator[list[Routing]]:
    """Within it, what each router decides is added to the list, in order."""
    before, _open.records = _open.records, []
    try:
        yield _open.records
    finally:
        _open.records = before


def _one_hot(index: Tensor, classes: int) -> Tensor:
    """(count,) integers → (count, classes) int32 of 0 and 1."""
    places = Tensor.arange(classes, device=index.device)
    return index.unsqueeze(1).eq(places).int()


class Router:
    """Which experts a token goes to. weight (experts, dim). share: their weights sum to 1."""

    def __init__(self, dim: int, experts: int, active: int, share: bool = True) -> None:
        self.active, self.share = active, share
        self.weight = nn.Linear(dim, experts, bias=False).weight

    def __call__(self, x: Tensor) -> Tensor:
        """(tokens, dim) → logits (tokens, experts), float32."""
        return x.float().linear(self.weight.float().transpose())

    def route(self, x: Tensor) -> Routing:
        """The `active` likeliest experts of each token, the first of equals first."""
        logits = self(x)
        probabilities = logits.softmax(1)
        chosen, left = [], probabilities.detach()
        for _ in range(self.active):
            best = left.argmax(1)
            chosen.append(best)
            left = _one_hot(best, plain_shape(logits)[1]).bool().where(-1.0, left)
        places = chosen[0].stack(*chosen[1:], dim=1) if chosen[1:] else chosen[0].unsqueeze(1)
        weights = probabilities.gather(1, places)
        weights = weights / weights.sum(1, keepdim=True) if self.share else weights
        return Routing(logits, probabilities, places, weights)


def block_shape(choices: int, experts: int) -> tuple[int, int]:
    """How many blocks, of how many rows, hold so many choices however they fall on experts."""
    rows = min(BLOCK_ROWS, 1 << (choices // experts).bit_length())
    # an expert with one choice needs a block, and so do `rows` choices of one expert
    return min(choices, (choices - experts) // rows + experts), rows


@dataclass(frozen=True)
class Blocks:
    """Where choices are when those of one expert stand side by side, in blocks of `rows` rows.

    A choice is (token, place among its experts), numbered token by token. slot (choices,): the row
    of each. choice (blocks·rows,): the other way round; 0 where nothing stands. expert, used
    (blocks,): whose rows a block has, and how many, the first ones. first, stop (experts,): where
    an expert's rows begin, and end. All int32.
    """

    rows: int
    slot: Tensor
    choice: Tensor
    expert: Tensor
    used: Tensor
    first: Tensor
    stop: Tensor

    @classmethod
    def of(cls, chosen: Tensor, experts: int) -> Blocks:
        """For (tokens, active) choices."""
        choices = math.prod(plain_shape(chosen))
        blocks, rows = block_shape(choices, experts)
        which = chosen.reshape(-1)
        hot = _one_hot(which, experts)
        # earlier choices of the same expert
        before = ((hot.cumsum(0, dtype="int32") - hot) * hot).sum(1, dtype="int32")
        count = hot.sum(0, dtype="int32")
        filled = (count + (rows - 1)) // rows
        ends = filled.cumsum(0, dtype="int32").contiguous()
        first = ((ends - filled) * rows).contiguous()
        slot = (first.gather(0, which) + before).contiguous()
        empty = Tensor.zeros(blocks * rows, dtype=dtypes.int32, device=chosen.device)
        number = Tensor.arange(choices, device=chosen.device)
        choice = empty.scatter(0, slot, number, reduce="add").contiguous()
        place = Tensor.arange(blocks, device=chosen.device)
        behind = (place.unsqueeze(1) >= ends).sum(1, dtype="int32")
        expert = behind.minimum(experts - 1).contiguous()
        stop = (first + count).contiguous()
        used = (stop.gather(0, expert) - place * rows).maximum(0).minimum(rows).contiguous()
        return cls(rows, slot, choice, expert, used, first, stop)

    def mask(self) -> Tensor:
        """(blocks, rows, 1): where a choice stands."""
        row = Tensor.arange(self.rows, device=self.used.device).reshape(1, self.rows, 1)
        return row < self.used.reshape(-1, 1, 1)

    def fill(self, x: Tensor, active: int) -> Tensor:
        """(tokens, dim) → (blocks, rows, dim): each choice's token; other rows are anything."""
        tokens, dim = plain_shape(x)
        value = x[self.choice // active].reshape(-1, self.rows, dim)

        def rule(blocks: Blocks, g: Tensor, _: Tensor) -> list[Tensor]:
            return [g.reshape(-1, dim)[blocks.slot].reshape(tokens, active, dim).sum(1)]

        return self._with_gradient(value, [x], rule)

    def empty(self, x: Tensor) -> Tensor:
        """(blocks, rows, dim) → (choices, dim): the row of each choice.

        The gradient of other rows is anything.
        """
        shape = plain_shape(x)
        value = x.reshape(-1, shape[2])[self.slot]

        def rule(blocks: Blocks, g: Tensor, _: Tensor) -> list[Tensor]:
            return [g[blocks.choice].reshape(shape)]

        return self._with_gradient(value, [x], rule)

    def product(self, x: Tensor, weight: Tensor, precision: DType) -> Tensor:
        """Each block times its expert's matrix: x (blocks, rows, in), weight (experts, out, in).

        → (blocks, rows, out), 0 in rows where no choice stands, whatever x and its gradient have
        there. Operands are rounded first: see `precision.product`.
        """
        count = math.prod(plain_shape(x)[:2])
        value = self.mask().where(product(x, weight[self.expert], precision), 0.0)

        def rule(blocks: Blocks, g: Tensor, x: Tensor, weight: Tensor) -> list[Tensor]:
            x, theirs = x.cast(precision), weight[blocks.expert].cast(precision)
            g = of_gradient(g, precision)
            by_x = blocks.mask().where(g.matmul(theirs, g.dtype), 0.0).contiguous()
            row = Tensor.arange(count, device=g.device).reshape(1, count, 1)
            first, stop = blocks.first.reshape(-1, 1, 1), blocks.stop.reshape(-1, 1, 1)
            inside = (first <= row) & (row < stop)  # both are masked: 0·∞ would be NaN
            g, x = (inside.where(part.reshape(1, count, -1), 0.0) for part in (g, x))
            return [by_x, g.transpose(1, 2).matmul(x, g.dtype)]

        return self._with_gradient(value, [x, weight], rule)

    def _with_gradient(
        self, value: Tensor, sources: Sequence[Tensor], rule: Callable[..., Sequence[Tensor]]
    ) -> Tensor:
        """`value` with rule(blocks, gradient, *sources) for the gradients of its sources."""
        tensors = (self.slot, self.choice, self.expert, self.used, self.first, self.stop)
        rows, count, others = self.rows, len(sources), (None,) * len(tensors)

        def of_nodes(node: Node, g: Node) -> Sequence[Node | None]:
            # it takes all tensors from its node: one that it kept would live on, and be computed
            with Tensor.no_grad():
                given = [Tensor._of(source) for source in node.src[1:]]
                parts = rule(Blocks(rows, *given[count:]), Tensor._of(g), *given[:count])
                return [*(part.node for part in parts), *others]

        nodes = [tensor.node for tensor in (*sources, *tensors)]
        return Tensor._of(build.custom(value.detach().node, nodes, of_nodes))


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
        """Blocks (blocks, rows, in), each for the expert which[block] → (blocks, rows, out)."""
        if isinstance(which, Blocks):
            y = which.product(x, self.weight, self.precision)
            if self.bias is None:
                return y
            return y + which.mask().where(self.bias[which.expert].unsqueeze(1), 0.0)
        y = product(x, self.weight[which], self.precision)
        return y if self.bias is None else y + self.bias[which].unsqueeze(1)


class MoE:
    """A router and `experts` feed-forward networks dim → hidden → dim, `active` of them per token.

    gated: SwiGLU, with the rows of gate and up in one matrix (2·hidden, dim); otherwise GELU.
    precision: of the experts' products; the router's stay in float32. share: see `Router`.
    """

    def __init__(
        self, dim: int, hidden: int, experts: int, active: int = 2, gated: bool = False,
        bias: bool = True, precision: DType = dtypes.float32, share: bool = True,
    ) -> None:  # fmt: skip
        if not 1 <= active <= experts:
            raise ValueError(f"active is {active}: expected 1 … {experts}, the number of experts")
        self.dim, self.hidden, self.gated = dim, hidden, gated
        self.experts, self.active = experts, active
        self.router = Router(dim, experts, active, share)
        self.c_fc = Experts(experts, dim, hidden * (2 if gated else 1), bias, precision)
        self.c_proj = Experts(experts, hidden, dim, bias, precision)

    def __call__(self, x: Tensor) -> Tensor:
        """(…, dim) → the same shape."""
        if x.shape[-1] != self.dim:
            raise ShapeError(f"MoE of {x.shape}: expected (…, {self.dim})")
        flat = x.reshape(-1, self.dim)
        routing = self.router.route(flat)
        if _open.records is not None:
            _open.records.append(routing)
        tokens = plain_shape(flat)[0]
        if tokens * self.active <= self.experts:
            answers = self._alone(flat, routing.chosen)
        else:
            answers = self._grouped(flat, routing.chosen)
        return (answers * routing.weights.unsqueeze(2)).sum(1).reshape(x.shape)

    def network(self, x: Tensor, which: Tensor | Blocks) -> Tensor:
        """Blocks of rows through one expert each: (blocks, rows, dim) → the same shape."""
        inner = self.c_fc(x, which)
        if self.gated:
            inner = inner[..., : self.hidden].silu() * inner[..., self.hidden :]
        else:
            inner = inner.gelu()
        return self.c_proj(inner, which)

    def dense(self, x: Tensor) -> Tensor:
        """The same by the book: every expert on every token, what was not chosen times 0."""
        flat = x.reshape(-1, self.dim)
        routing = self.router.route(flat)
        every = Tensor.arange(self.experts, device=x.device)
        rows = flat.unsqueeze(0).expand(self.experts, *flat.shape)
        answers = self.network(rows, every)  # (experts, tokens, dim)
        hot = routing.chosen.unsqueeze(2).eq(every).float()  # (tokens, active, experts)
        share = (hot * routing.weights.unsqueeze(2)).sum(1)
        return (answers * share.transpose().unsqueeze(2)).sum(0).reshape(x.shape)

    def _alone(self, flat: Tensor, chosen: Tensor) -> Tensor:
        """Each choice a block of its own → answers (tokens, active, dim)."""
        tokens, active = chosen.shape
        rows = flat.unsqueeze(1).expand(tokens, active, self.dim).reshape(-1, 1, self.dim)
        return self.network(rows, chosen.reshape(-1)).reshape(tokens, active, self.dim)

    def _grouped(self, flat: Tensor, chosen: Tensor) -> Tensor:
        """Choices of one expert side by side → answers (tokens, active, dim)."""
        blocks = Blocks.of(chosen, self.experts)
        answers = self.network(blocks.fill(flat, self.active), blocks)
        return blocks.empty(answers).reshape(*chosen.shape, self.dim)


def auxiliary_loss(routes: Sequence[Routing], balance: float, z: float) -> Tensor:
    """balance · mean load-balancing loss + z · mean z-loss of all routers, a scalar."""
    total = routes[0].balance_loss() * balance + routes[0].z_loss() * z
    for route in routes[1:]:
        total = total + route.balance_loss() * balance + route.z_loss() * z
    return total / len(routes)


if __name__ == "__main__":
    from minigrad.models import console
    from minigrad.models.moe_commands import main

    sys.exit(console.run(main))
