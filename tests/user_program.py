"""A program as users write them, in PyTorch's words: `python tests types` checks it strictly.

`tests/test_user_program.py` runs it.
"""

# pyright: strict

from __future__ import annotations

from minigrad import Context, Device, GlobalCounters, Tensor, dtypes, jit, nn
from minigrad.nn import functional as F


class Attention(nn.Module):
    """Causal self-attention of several heads."""

    def __init__(self, dim: int, heads: int) -> None:
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, dim) → the same."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in
                   self.qkv(x).chunk(3, -1))  # fmt: skip
        mixed = q.scaled_dot_product_attention(k, v, is_causal=True)
        return self.drop(self.out(mixed.transpose(1, 2).flatten(2)))


class Block(nn.Module):
    """Attention and a network, each after a norm and with a residual connection."""

    def __init__(self, dim: int, heads: int) -> None:
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.RMSNorm(dim)
        self.attention = Attention(dim, heads)
        self.feed = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        x = x + self.attention.forward(self.norm1(x))
        fed: Tensor = self.feed(self.norm2(x))
        return x + fed


class Model(nn.Module):
    """Characters in, logits out."""

    def __init__(self, letters: int, dim: int = 16, heads: int = 2, layers: int = 2) -> None:
        self.embedding = nn.Embedding(letters, dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(layers))
        self.head = nn.Linear(dim, letters)
        self.register_buffer("seen", Tensor.zeros(1))

    def forward(self, ids: Tensor) -> Tensor:
        """(batch, length) → (batch, length, letters)."""
        x = self.embedding(ids)
        for block in self.blocks:
            x = block.forward(x) if isinstance(block, Block) else x
        return self.head(x)


def statistics(x: Tensor) -> dict[str, float]:
    """Statistics that programs print of a tensor."""
    best, place = x.flatten().max_with_indices()
    middle = x.float().quantile(0.5)
    with Tensor.no_grad():
        spread = x.float().std(unbiased=False)
    return {
        "best": float(best.item()), "place": float(place), "middle": float(middle.item()),
        "spread": float(spread.item()), "norm": float(x.float().norm().item()),
        "count": float(x.ne(0).count_nonzero().item()), "rows": float(x.size(0)),
    }  # fmt: skip


def movements(x: Tensor) -> list[Tensor]:
    """Methods that return tensors, and lists and pairs of tensors."""
    values, order = x.sort(-1)
    first, *rest = x.unbind(0)
    halves = x.tensor_split(2, -1)
    y = x.clone()
    with Tensor.no_grad():
        y.mul_(2).add_(1, alpha=3).clamp_(min=0)
    chosen = (x > 0).logical_and(x < 1).where(x, 0.0)
    return [
        values, order, first, *rest, *halves, y, chosen, x.moveaxis(0, 1), x.absolute(),
        x.outer(x) if x.ndim == 1 else x @ x.mT, x.index_select(0, Tensor([0])), x[:, 1:], x[0],
        -x + 1 - x * 2 / 3 // 1 % 5, x**2, x.float().half().to(dtypes.float32), abs(x),
        Tensor.stack([first, first]), Tensor.cat([x, x], dim=0), x.masked_fill(x > 0, 1.0),
        Tensor.einsum("ij,kj->ik", x, x), F.softmax(x, 1), F.layer_norm(x, (x.shape[-1],)),
        Tensor.arange(3) + Tensor.randn(3), x.std_mean()[0], Tensor.where(x > 0, x, 1.0),
    ]  # fmt: skip


def train(steps: int = 3) -> list[float]:
    """A few steps, captured; the losses."""
    Tensor.manual_seed(3)
    model = Model(11)
    optimizer = nn.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    ids = Tensor.randint(4, 8, low=0, high=11)

    @jit
    def step(given: Tensor) -> Tensor:
        optimizer.zero_grad()
        logits = model.forward(given[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), given[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    losses: list[float] = []
    for _ in range(steps):
        losses.append(float(step(ids).item()))
    state = model.state_dict()
    model.load_state_dict(state)
    model.eval()
    return losses


def main() -> None:
    """Run everything once."""
    with Context(DEBUG=0):
        losses = train()
        assert losses[-1] < losses[0], losses
        x = Tensor([[0.5, -1.0, 2.0], [3.0, 0.25, -0.5]])
        assert statistics(x)["best"] == 3.0
        for tensor in movements(x):
            tensor.realize()
        memory, name = GlobalCounters.mem_used, Device.DEFAULT
        assert memory >= 0 and name in {x.device, Device.DEFAULT}


if __name__ == "__main__":
    main()
