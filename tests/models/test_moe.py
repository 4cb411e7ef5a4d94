"""Mixtures of experts: sparse equals dense, no token is dropped, routers stay balanced."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from minigrad import Tensor, nn
from minigrad.compile import schedule_of
from minigrad.dtype import named
from minigrad.graph.canonical import canonicalize
from minigrad.graph.rewrite import without_rules
from minigrad.models.decode import Decoder
from minigrad.models.gpt import GPT, GPTConfig
from minigrad.models.moe import MoE, auxiliary_loss, recording
from minigrad.models.moe_commands import main, show_loads
from minigrad.models.sizing import parameters
from minigrad.target import Target

# tokens, dim, hidden, experts, active, gated; two have blocks of one row each, and one has matrices
# so large that products read them in place
CASES = [
    (70, 8, 12, 8, 2, True), (2, 16, 24, 8, 2, True),
    (1, 16, 24, 8, 1, False), (7, 8, 8, 1, 1, False), (9, 8, 8, 3, 3, True),
    (90, 64, 72, 4, 2, False),
]  # fmt: skip


def by_the_book(model: MoE, x: Tensor) -> Tensor:
    """Every expert applied to every token; the experts that were not chosen have weight 0."""
    routing, every = model.router.route(x), Tensor.arange(model.experts)
    answers = model.network(x.unsqueeze(0).expand(model.experts, *x.shape), every)
    hot = routing.chosen.unsqueeze(2).eq(every).float()  # (tokens, active, experts)
    share = (hot * routing.weights.unsqueeze(2)).sum(1)
    return (answers * share.transpose().unsqueeze(2)).sum(0)


@pytest.mark.parametrize(("tokens", "dim", "hidden", "experts", "active", "gated"), CASES)
def test_sparse_equals_dense(
    tokens: int, dim: int, hidden: int, experts: int, active: int, gated: bool, on_device: str
) -> None:
    Tensor.manual_seed(1)
    model = MoE(dim, hidden, experts, active, gated)
    x, weights = (Tensor.randn(tokens, dim, requires_grad=True).realize() for _ in range(2))
    sparse, dense = model(x), by_the_book(model, x)
    assert np.abs(sparse.numpy() - dense.numpy()).max() <= 1e-6
    leaves = [*nn.state.get_parameters(model), x]
    found = (sparse * weights).sum().gradient(*leaves)
    wanted = (dense * weights).sum().gradient(*leaves)
    for one, other in zip(found, wanted, strict=True):
        a, b = one.numpy(), other.numpy()
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max() + 1e-7


@pytest.mark.parametrize("tokens", [1, 40])  # one token's choice, and several tokens' choices
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_experts_multiply_in_a_precision(tokens: int, precision: str, on_device: str) -> None:
    """Operands are rounded, also in gradients; sums, and values between products, are not."""
    Tensor.manual_seed(5)
    model = MoE(16, 24, 4, 2, bias=False, precision=named(precision))
    x = Tensor.randn(tokens, 16, requires_grad=True).realize()
    with recording() as routes:
        y = model(x)
    by_inner, by_outer = y.sum().gradient(model.c_fc.weight, model.c_proj.weight)
    kind = ml_dtypes.bfloat16 if precision == "bfloat16" else np.float16

    def rounded(a: np.ndarray) -> np.ndarray:
        return a.astype(kind).astype(np.float64)

    def of_gradient(g: np.ndarray) -> np.ndarray:
        return rounded(g) if precision == "bfloat16" else g

    (route,) = routes
    wanted = np.zeros((tokens, 16))
    by_inner_wanted, by_outer_wanted = (np.zeros(t.shape) for t in (by_inner, by_outer))
    inner, outer = rounded(model.c_fc.weight.numpy()), rounded(model.c_proj.weight.numpy())
    for token, (chosen, shares) in enumerate(
        zip(route.chosen.numpy(), route.weights.numpy(), strict=True)
    ):
        for expert, share in zip(chosen, shares, strict=True):
            given = rounded(x.numpy()[token])
            before = Tensor((inner[expert] @ given).astype(np.float32), requires_grad=True)
            bent = before.gelu()
            wanted[token] += share * (outer[expert] @ rounded(bent.numpy()))
            by_outer_wanted[expert] += of_gradient(share) * rounded(bent.numpy())
            by_bent = of_gradient(share) * outer[expert].sum(0)
            (slope,) = bent.sum().gradient(before)
            by_inner_wanted[expert] += np.outer(of_gradient(by_bent * slope.numpy()), given)
    for got, expected in ((y, wanted), (by_inner, by_inner_wanted), (by_outer, by_outer_wanted)):
        # not the maximum: a number between two values may be rounded to the other one
        most = np.quantile(np.abs(got.numpy() - expected), 0.9)
        # autograd rounds a gradient that passes through a cast (one token's choice): that is no sum
        assert most <= (2e-6 if tokens > 1 or got is y else 1e-2) * np.abs(expected).max()
    exact = MoE(16, 24, 4, 2, bias=False)
    nn.state.load_state_dict(exact, nn.state.get_state_dict(model))
    assert np.abs(exact(x).numpy() - y.numpy()).max() > 1e-5


def test_no_token_is_dropped() -> None:
    """All tokens choose the same two experts, far more than a fair share."""
    Tensor.manual_seed(2)
    model = MoE(8, 16, 8, 2)
    with Tensor.no_grad():
        push = np.zeros((8, 8), np.float32)
        push[3, 0], push[5, 0] = 9, 8
        model.router.weight.assign(Tensor(push)).realize()
    x = Tensor.randn(300, 8)
    x = x.abs().realize()
    with recording() as routes:
        sparse = model(x)
    assert np.abs(sparse.numpy() - by_the_book(model, x).numpy()).max() <= 1e-6
    load = routes[0].load().numpy()
    assert load[3] == load[5] == 0.5
    assert routes[0].balance_loss().item() > 3  # of at most 4: two of eight do everything


def test_products_do_the_rows_of_a_block_that_are_there() -> None:
    """Every product masks its result, so that the mask bounds its loop, forward and backward."""
    model, rows = MoE(16, 24, 4), 128
    x = Tensor.randn(200, 16, requires_grad=True).realize()
    y = model(x)
    slopes = y.square().sum().gradient(x, *nn.state.get_parameters(model))
    roots = [each.raw for each in (y, *slopes)]
    graph = canonicalize(without_rules(roots)).graph()
    plan = schedule_of(graph, Target(32, 16, 32 << 10, 512 << 10))
    found = [kernel.stages for kernel in plan.kernels
             if kernel.kind == "contraction" and rows in kernel.stages[0].shape]  # fmt: skip
    assert len(found) == 4
    assert all(len(stages) > 1 for stages in found), found


def test_the_losses_of_a_router() -> None:
    Tensor.manual_seed(3)
    model = MoE(8, 8, 4, 2)
    x = Tensor.randn(40, 8).realize()
    with recording() as routes:
        model(x)
    (route,) = routes
    logits = x.numpy() @ model.router.weight.numpy().T
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    chosen = np.argsort(-chances, axis=1, kind="stable")[:, :2]
    assert (route.chosen.numpy() == chosen).all()
    kept = np.take_along_axis(chances, chosen, 1)
    assert np.allclose(route.weights.numpy(), kept / kept.sum(1, keepdims=True), atol=1e-6)
    load = np.bincount(chosen.ravel(), minlength=4) / 80
    balance = 4 * (load * chances.mean(0)).sum()
    z = (np.log(np.exp(logits).sum(1)) ** 2).mean()
    assert route.balance_loss().item() == pytest.approx(balance, rel=1e-5)
    assert route.z_loss().item() == pytest.approx(z, rel=1e-5)
    both = auxiliary_loss([route, route], 0.5, 0.1).item()
    assert both == pytest.approx(0.5 * balance + 0.1 * z, rel=1e-5)
    even = MoE(8, 8, 4, 2)
    with Tensor.no_grad():
        even.router.weight.assign(0.0).realize()
    with recording() as routes:
        even(x)
    assert routes[0].balance_loss().item() == pytest.approx(1, rel=1e-5)


def test_a_gpt_of_experts() -> None:
    config = GPTConfig(2, 2, 16, 16, 11, experts=4, active=2)
    Tensor.manual_seed(4)
    model = GPT(config)
    count = sum(np.prod(p.shape) for p in nn.state.get_parameters(model))
    assert count == parameters(config).total
    ids = [3, 1, 4, 1, 5, 9, 2, 6]
    whole = model(Tensor([ids])).numpy()[0]
    decoder = Decoder(model, [ids[:3]])  # token by token: only chosen experts are read
    for place in range(2, 8):
        assert np.abs(decoder.logits()[0] - whole[place]).max() <= 1e-5
        decoder.append([ids[place + 1] if place < 7 else 0])
    plain = model.loss(Tensor([ids[:-1]]), Tensor([ids[1:]])).item()
    with Tensor.train():
        more = model.loss(Tensor([ids[:-1]]), Tensor([ids[1:]])).item()
    assert 0.01 <= more - plain <= 0.02


def test_invalid_active_experts() -> None:
    with pytest.raises(ValueError, match="active: expected 1 … 4, the number of experts, got 5"):
        MoE(8, 8, 4, 5)
    with pytest.raises(ValueError, match="active: expected at most 2 experts, got 3"):
        GPTConfig(experts=2, active=3)


@pytest.mark.parametrize(("steps", "end"), [
    (4, "same active size"), (3, "no step was timed, as the first 3 also compile")
])  # fmt: skip
def test_the_script(
    steps: int, end: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("to be, or not to be: that is the question.\n" * 60)
    main(["--text", str(tmp_path / "text.txt"), "--layers", "1", "--heads", "2", "--dim", "16",
          "--context", "16", "--steps", str(steps), "--batch", "2", "--experts", "4"])  # fmt: skip
    said = capsys.readouterr().out
    assert "step     1" in said and "block 1:" in said and end in said
    assert "▄ is an equal share, · none" in said


def test_experts_can_be_counted() -> None:
    """An expert without tokens, and one with few, are told apart; layers are separated."""
    shares = np.array([[0.5, 0.0, 0.25, 0.25], [0.0, 0.01, 0.99, 0.0]], np.float32)
    assert show_loads(shares) == "█·▄▄ | ·▁█·"
