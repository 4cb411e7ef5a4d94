"""A mixture of experts: several feed-forward networks, of which a router chooses a few per token.

    python models/moe.py          # a small GPT with 8 experts, 2 active; shows what each one does

Shazeer et al., "Outrageously Large Neural Networks" (2017); Fedus et al., "Switch Transformers"
(2022), for the load-balancing loss; Zoph et al., "ST-MoE" (2022), for the router's z-loss; Jiang et
al., "Mixtral of Experts" (2024), for the weights of the chosen, normalised to sum to 1.

No token is dropped. The tokens of each expert are put side by side in blocks of rows, an expert's
last block filled up, and each block is multiplied by its own expert's matrices: the work follows
the number of tokens, not that of experts. With so few tokens that blocks would be mostly filling,
each choice is a block of one row; then only the matrices of chosen experts are read.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from minigrad import Tensor, dtypes, nn
from minigrad.errors import ShapeError
from minigrad.models.checkpoint import plain_shape

BLOCK_ROWS = 128  # of one expert's tokens; fewer where there are few tokens


@dataclass(frozen=True)
class Routing:
    """What a router decided for some tokens.

    logits, probabilities: (tokens, experts) float32; chosen: (tokens, active) int32; weights: the
    chosen ones' probabilities, normalised, (tokens, active).
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
    """Which experts a token goes to. weight (experts, dim)."""

    def __init__(self, dim: int, experts: int, active: int) -> None:
        self.active = active
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
        return Routing(logits, probabilities, places, weights / weights.sum(1, keepdim=True))


class Experts:
    """One matrix per expert: weight (experts, out, in), bias (experts, out) or None."""

    def __init__(self, experts: int, inputs: int, outputs: int, bias: bool) -> None:
        bound = 1 / math.sqrt(inputs)
        self.weight = Tensor.uniform(experts, outputs, inputs, low=-bound, high=bound,
                                     requires_grad=True)  # fmt: skip
        self.bias = (
            Tensor.uniform(experts, outputs, low=-bound, high=bound, requires_grad=True)
            if bias else None
        )  # fmt: skip

    def __call__(self, x: Tensor, which: Tensor) -> Tensor:
        """Blocks (blocks, rows, in), each for the expert which[block] → (blocks, rows, out)."""
        y = x.matmul(self.weight[which].transpose(1, 2))
        return y if self.bias is None else y + self.bias[which].unsqueeze(1)


class MoE:
    """A router and `experts` feed-forward networks dim → hidden → dim, `active` of them per token.

    gated: SwiGLU, with the rows of gate and up in one matrix (2·hidden, dim); otherwise GELU.
    """

    def __init__(self, dim: int, hidden: int, experts: int, active: int = 2,
                 gated: bool = False, bias: bool = True) -> None:  # fmt: skip
        if not 1 <= active <= experts:
            raise ValueError(f"active is {active}: expected 1 … {experts}, the number of experts")
        self.dim, self.hidden, self.gated = dim, hidden, gated
        self.experts, self.active = experts, active
        self.router = Router(dim, experts, active)
        self.c_fc = Experts(experts, dim, hidden * (2 if gated else 1), bias)
        self.c_proj = Experts(experts, hidden, dim, bias)

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

    def network(self, x: Tensor, which: Tensor) -> Tensor:
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
        tokens = plain_shape(flat)[0]
        choices = tokens * self.active
        block = min(BLOCK_ROWS, 1 << (choices // self.experts).bit_length())
        # an expert with one choice needs a block, and so do `block` choices of one expert
        blocks = min(choices, (choices - self.experts) // block + self.experts)
        expert = chosen.reshape(-1)
        hot = _one_hot(expert, self.experts)
        before = ((hot.cumsum(0) - hot) * hot).sum(1)  # earlier choices of the same expert
        filled = (hot.sum(0) + (block - 1)) // block  # blocks of each expert
        ends = filled.cumsum(0)
        slot = (ends - filled).gather(0, expert) * block + before
        # what each row of the blocks is: a token; filling is token 0, whose answer nobody reads
        number = Tensor.arange(tokens, device=flat.device).unsqueeze(1)
        number = number.expand(tokens, self.active).reshape(-1)
        empty = Tensor.zeros(blocks * block, dtype=dtypes.int32, device=flat.device)
        source = empty.scatter(0, slot, number, reduce="add").contiguous()
        place = Tensor.arange(blocks, device=flat.device).unsqueeze(1)
        which = (place >= ends).int().sum(1).minimum(self.experts - 1).contiguous()
        rows = flat[source].reshape(blocks, block, self.dim)
        answers = self.network(rows, which).reshape(blocks * block, self.dim)
        return answers[slot].reshape(tokens, self.active, self.dim)


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
