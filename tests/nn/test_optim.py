"""Optimizers: against PyTorch, in place, one program per step, checkpoints."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import pytest

from minigrad import GlobalCounters, Tensor, dtypes, jit, nn
from minigrad.errors import GradientError, JitError, ShapeError
from minigrad.nn import optim, schedule
from minigrad.program import recorded_calls

rng = np.random.default_rng(1)
W = rng.normal(size=(5, 3)).astype(np.float32)
B = rng.normal(size=(3,)).astype(np.float32)
X = rng.normal(size=(8, 5)).astype(np.float32)
Y = rng.integers(0, 3, 8)


def own(rule: Callable[..., Any], lr: float, *moments: str, **options: float) -> Any:
    """An optimizer with its own rule, as the hint for PyTorch's other optimizers says."""
    kind = type("Own", (optim.Optimizer,), {"rule": staticmethod(rule)})
    return lambda params: kind(params, lr, moments, **options)


def adagrad(param, grad, lr, t, total, *, eps):
    total = total + grad * grad
    return param - lr * grad / (total.sqrt() + eps), total


def adadelta(param, grad, lr, t, square, moved, *, rho, eps):
    square = square * rho + grad * grad * (1 - rho)
    step = grad * (moved + eps).sqrt() / (square + eps).sqrt()
    return param - lr * step, square, moved * rho + step * step * (1 - rho)


def adamax(param, grad, lr, t, mean, most, *, b1, b2, eps):
    mean, most = mean.lerp(grad, 1 - b1), (most * b2).maximum(grad.abs() + eps)
    return param - lr / (1 - b1**t) * mean / most, mean, most


def radam(param, grad, lr, t, mean, square, *, b1, b2, eps):
    mean, square = mean.lerp(grad, 1 - b1), square * b2 + grad * grad * (1 - b2)
    t = t.double()
    left, longest = 1 - b2**t, 2 / (1 - b2) - 1
    length = longest - 2 * t * b2**t / left
    factor = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    scale = (factor * left).maximum(0).sqrt().float() / (square.sqrt() + eps)
    mean_now = mean / (1 - b1**t).float()
    return param - lr * mean_now * (length > 5).where(scale, 1), mean, square


def nadam(param, grad, lr, t, mean, square, product, *, b1, b2, eps, decay):
    now, later = (b1 * (1 - 0.5 * 0.96 ** (n * decay)) for n in (t, t + 1))
    product = (t <= 1).where(1, product) * now  # moments begin at 0
    mean, square = mean.lerp(grad, 1 - b1), square * b2 + grad * grad * (1 - b2)
    ahead = grad * (1 - now) / (1 - product) + mean * later / (1 - product * later)
    left = (1 - b2 ** t.double()).float()
    return param - lr * ahead / ((square / left).sqrt() + eps), mean, square, product


BETAS = {"b1": 0.9, "b2": 0.999, "eps": 1e-8}
# name → (ours, PyTorch's name, its arguments)
OPTIMIZERS = {
    "sgd": (lambda p: optim.SGD(p, lr=0.1), "SGD", {"lr": 0.1}),
    "momentum": (lambda p: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.05), "SGD",
                 {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05}),
    "nesterov": (lambda p: optim.SGD(p, lr=0.1, momentum=0.8, nesterov=True), "SGD",
                 {"lr": 0.1, "momentum": 0.8, "nesterov": True}),
    "adam": (lambda p: optim.Adam(p, lr=0.02), "Adam", {"lr": 0.02}),
    "adam decay": (lambda p: optim.Adam(p, lr=0.02, weight_decay=0.1), "Adam",
                   {"lr": 0.02, "weight_decay": 0.1}),
    "adamw": (lambda p: optim.AdamW(p, lr=0.02, betas=(0.9, 0.99), weight_decay=0.1), "AdamW",
              {"lr": 0.02, "betas": (0.9, 0.99), "weight_decay": 0.1}),
    "adamw, its rate a tensor": (lambda p: optim.AdamW(p, lr=Tensor(0.02)), "AdamW", {"lr": 0.02}),
    "adamw defaults": (lambda p: optim.AdamW(p), "AdamW", {}),
    "rmsprop": (lambda p: optim.RMSprop(p, lr=0.02, weight_decay=0.1), "RMSprop",
                {"lr": 0.02, "weight_decay": 0.1}),
    "rmsprop momentum": (lambda p: optim.RMSprop(p, 0.01, 0.9, momentum=0.8), "RMSprop",
                         {"lr": 0.01, "alpha": 0.9, "momentum": 0.8}),
    "rmsprop centered": (lambda p: optim.RMSprop(p, 0.01, 0.95, 0.01, centered=True), "RMSprop",
                         {"lr": 0.01, "alpha": 0.95, "eps": 0.01, "centered": True}),
    "rmsprop, all of it": (lambda p: optim.RMSprop(p, 0.01, momentum=0.5, centered=True), "RMSprop",
                           {"lr": 0.01, "momentum": 0.5, "centered": True}),
    "adagrad": (own(adagrad, 0.1, "sum", eps=1e-10), "Adagrad", {"lr": 0.1}),
    "adadelta": (own(adadelta, 1.0, "square", "moved", rho=0.9, eps=1e-6), "Adadelta", {"lr": 1.0}),
    "adamax": (own(adamax, 0.02, "mean", "most", **BETAS), "Adamax", {"lr": 0.02}),
    "radam": (own(radam, 0.02, "mean", "square", **BETAS), "RAdam", {"lr": 0.02}),
    "nadam": (own(nadam, 0.02, "mean", "square", "product", **BETAS, decay=0.004), "NAdam",
              {"lr": 0.02}),
}  # fmt: skip


def loss_of(w, b):
    return (Tensor(X) @ w + b).cross_entropy(Tensor(Y))


def train(make, steps, rate=None):
    w, b = Tensor(W, requires_grad=True), Tensor(B)
    optimizer = make([w, b])
    losses = []
    for step in range(steps):
        if rate:
            optimizer.set_lr(rate(step))
        loss = loss_of(w, b)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, w.numpy(), b.numpy(), optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("scheduled", [False, True])
def test_equals_pytorch(on_device, name, scheduled):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    make, kind, arguments = OPTIMIZERS[name]
    rate = schedule.cosine(0.05, 50, warmup=5, final=0.001) if scheduled else None
    losses, w, b, _ = train(make, 50, rate)
    tw, tb = (torch.tensor(a, requires_grad=True) for a in (W, B))
    other = getattr(torch.optim, kind)([tw, tb], **arguments)
    for step in range(50):
        if rate:
            for group in other.param_groups:
                group["lr"] = rate(step)
        loss = torch.nn.functional.cross_entropy(torch.tensor(X) @ tw + tb, torch.tensor(Y))
        other.zero_grad()
        loss.backward()
        other.step()
        assert abs(losses[step] - loss.item()) <= 1e-5 * abs(loss.item()) + 1e-7
    np.testing.assert_allclose(w, tw.detach().numpy(), rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(b, tb.detach().numpy(), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_learns(on_device, name):
    losses, *_ = train(OPTIMIZERS[name][0], 30)
    assert losses[-1] < losses[0]


def test_a_step_is_one_program_and_in_place(on_device):
    w, b = Tensor(W, requires_grad=True), Tensor(B, requires_grad=True)
    optimizer = optim.AdamW([w, b], lr=0.01)
    kept = [w, b, *chain(*optimizer.moments.values()), optimizer.t, optimizer.lr]
    memory = [t.raw.arg for t in kept]
    rates = schedule.Schedule(optimizer, schedule.linear_warmup(0.1, 3))
    for step in range(5):
        loss = loss_of(w, b)
        optimizer.zero_grad()
        loss.backward()
        norm = optim.clip_grad_norm([w, b], 0.5)
        calls = GlobalCounters.program_calls
        optimizer.step()
        assert GlobalCounters.program_calls == calls + 1
        assert loss.is_realized() and norm.is_realized() and w.grad.is_realized()
        rates.step()
        assert rates.lr == pytest.approx(optimizer.lr.item())
        assert GlobalCounters.program_calls == calls + 1
        if step == 1:
            compiled = GlobalCounters.programs_compiled
    assert GlobalCounters.programs_compiled == compiled, "every step is the same program"
    assert all(t.raw.arg is before for t, before in zip(kept, memory, strict=True))


def test_a_step_that_forgets_gradients_does_the_same_and_stores_none(on_device):
    def two_steps(forget, join):
        w, b = Tensor(W, requires_grad=True), Tensor(B, requires_grad=True)
        optimizer = optim.AdamW([w, b], lr=0.01)
        optimizer = optim.OptimizerGroup(optimizer) if join else optimizer
        for _ in range(2):
            optimizer.zero_grad()
            loss_of(w, b).backward()
            optim.clip_grad_norm([w, b], 0.5)
            with recorded_calls() as calls:
                optimizer.step(forget=forget)
            assert (w.grad is None) == (b.grad is None) == forget
        return w.numpy(), b.numpy(), sum(len(call.made) for call in calls)

    for join in (False, True):
        *kept, many = two_steps(False, join)
        *forgotten, few = two_steps(True, join)
        for one, other in zip(kept, forgotten, strict=True):
            np.testing.assert_array_equal(one, other)
        assert few == many - 2


M = rng.normal(size=(3, 4)).astype(np.float32)


class Unrounded:
    """Muon as published (K. Jordan, 2024), with PyTorch's defaults, but all in float32."""

    def __init__(self, params, lr=1e-3, nesterov=True, adjust_lr_fn="original"):
        self.params, self.lr, self.nesterov, self.adjust = params, lr, nesterov, adjust_lr_fn
        self.means = [0 * p.detach() for p in params]

    def zero_grad(self):
        for p in self.params:
            p.grad = None

    def step(self):
        for p, mean in zip(self.params, self.means, strict=True):
            mean.lerp_(p.grad, 0.05)
            x = p.grad.lerp(mean, 0.95) if self.nesterov else mean
            rows, columns = x.shape
            wide = x.T if rows > columns else x
            wide = wide / wide.norm()
            for _ in range(5):
                square = wide @ wide.T
                wide = 3.4445 * wide + (2.0315 * square @ square - 4.775 * square) @ wide
            size = max(1, rows / columns) ** 0.5
            if self.adjust == "match_rms_adamw":
                size = 0.2 * max(rows, columns) ** 0.5
            step = wide.T if rows > columns else wide
            p.data = p.data * (1 - 0.1 * self.lr) - self.lr * size * step


@pytest.mark.parametrize(
    "options", [{}, {"lr": 0.02, "nesterov": False, "adjust_lr_fn": "match_rms_adamw"}]
)
@pytest.mark.parametrize("name", ["bfloat16", "float32"])
def test_muon(on_device, options, name):
    """Equal to PyTorch's in bfloat16, and to the published algorithm in float32.

    In bfloat16, sums in another order round differently, and this is the only difference.
    """
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this PyTorch has no Muon")
    start = [W, M]
    ours = [Tensor(a, requires_grad=True) for a in start]
    theirs = [torch.tensor(a, requires_grad=True) for a in start]
    mine = optim.Muon(ours, ns_dtype=getattr(dtypes, name), **options)
    other = (torch.optim.Muon if name == "bfloat16" else Unrounded)(theirs, **options)
    for _ in range(50):
        mine.zero_grad()
        ((Tensor(X) @ ours[0]).tanh() @ ours[1]).square().mean().backward()
        mine.step()
        other.zero_grad()
        ((torch.tensor(X) @ theirs[0]).tanh() @ theirs[1]).square().mean().backward()
        other.step()
    for a, b, first in zip(ours, theirs, start, strict=True):
        b = b.detach().numpy()
        near = {"atol": 0.02 * np.abs(b - first).max()} if name == "bfloat16" else {"rtol": 1e-5}
        np.testing.assert_allclose(a.numpy(), b, **{"rtol": 0, "atol": 1e-6, **near})
    with pytest.raises(ShapeError, match="matrices"):
        optim.Muon([Tensor(B)])


def test_muon_rounds_where_pytorch_does(on_device):
    """One step differs by few bfloat16 roundings, caused by another order of sums."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this PyTorch has no Muon")
    for start in (W, M):
        ours, theirs = Tensor(start, requires_grad=True), torch.tensor(start, requires_grad=True)
        (ours * ours * ours).sum().backward()
        (theirs * theirs * theirs).sum().backward()
        mine, other = optim.Muon([ours], lr=1.0), torch.optim.Muon([theirs], lr=1.0)
        mine.step()
        other.step()
        apart = np.abs(ours.detach().numpy() - theirs.detach().numpy())
        assert apart.max() <= 2**-6  # 2 units in the last place of a number near 1
        assert np.mean(apart <= 1e-6) >= 0.5


def test_lamb(on_device):
    w = Tensor(W, requires_grad=True)
    optimizer = optim.LAMB([w], lr=0.1, weight_decay=0.01)
    p = W.astype(np.float64)
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t in range(1, 11):
        optimizer.zero_grad()
        ((w - 1) * (w - 1) * (w - 1) * (w - 1)).sum().backward()
        optimizer.step()
        g = 4 * (p - 1) ** 3
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        u = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-6) + 0.01 * p
        p = p - 0.1 * np.linalg.norm(p) / np.linalg.norm(u) * u
        np.testing.assert_allclose(w.numpy(), p, rtol=2e-5, atol=1e-6)
    zero = Tensor([0.0, 0.0], requires_grad=True)
    optimizer = optim.LAMB([zero], lr=0.1)
    (zero + 1).sum().backward()
    optimizer.step()
    np.testing.assert_allclose(zero.numpy(), [-0.1, -0.1], rtol=1e-4)


@pytest.mark.parametrize("nesterov", [False, True])
def test_lars(on_device, nesterov):
    w = Tensor(W, requires_grad=True)
    optimizer = optim.LARS([w], lr=0.5, weight_decay=0.01, tcoef=0.1, nesterov=nesterov)
    p = W.astype(np.float64)
    b = np.zeros_like(p)
    for _ in range(10):
        optimizer.zero_grad()
        ((w - 1) * (w - 1) * (w - 1) * (w - 1)).sum().backward()
        optimizer.step()
        g = 4 * (p - 1) ** 3
        size = np.linalg.norm(p)
        step = 0.5 * 0.1 * size / (np.linalg.norm(g) + 0.01 * size) * (g + 0.01 * p)
        b = 0.9 * b + step
        p = p - (step + 0.9 * b if nesterov else b)
        np.testing.assert_allclose(w.numpy(), p, rtol=2e-5, atol=1e-6)
    zero = Tensor([0.0, 0.0], requires_grad=True)
    optimizer = optim.LARS([zero], lr=0.1)
    (zero * 3).sum().backward()
    optimizer.step()
    np.testing.assert_allclose(zero.numpy(), [-0.3, -0.3], rtol=1e-6)
    state = {name: Tensor(t.numpy()) for name, t in optimizer.state_dict().items()}
    assert set(state) == {"lr", "step", "momentum_buffer.0"}
    still = optim.LARS([zero], lr=0.1, momentum=0.0)
    still.step()
    np.testing.assert_allclose(zero.numpy(), [-0.3, -0.3], rtol=0.01)


def late(step):
    """Which of four parameters have a gradient: two from step 3 on, one in every second step."""
    return [True, step >= 3, step % 2 == 1, step >= 3]


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_bias_is_corrected_by_the_steps_of_each_parameter(name, grouped, on_device):
    """As in PyTorch; a step compiles nothing for it, except the first one of its kind."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    ours = [Tensor(B + i, requires_grad=True) for i in range(4)]
    theirs = [torch.tensor(B + i, requires_grad=True) for i in range(4)]
    mine = getattr(optim, name)([{"params": ours}] if grouped else ours, lr=0.1)
    other = getattr(torch.optim, name)(theirs, lr=0.1)
    state = None
    for step in range(8):
        for a, b, wants in zip(ours, theirs, late(step), strict=True):
            a.grad = Tensor(X[step, :3], device=on_device) if wants else None
            b.grad = torch.tensor(X[step, :3]) if wants else None
        before = GlobalCounters.programs_compiled
        mine.step()
        assert GlobalCounters.programs_compiled == before or step < 5
        other.step()
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a.numpy(), b.detach().numpy(), rtol=1e-5, atol=1e-6)
        if step == 5:  # continue from a file, in a new optimizer
            state = {key: Tensor(t.numpy()) for key, t in mine.state_dict().items()}
            mine = getattr(optim, name)([{"params": ours}] if grouped else ours, lr=0.1)
            with pytest.raises(KeyError, match="unexpected"):
                mine.load_state_dict({**state, "other": Tensor(0.0)})
            assert len(mine.state_dict()) == len(state) - 3
            mine.load_state_dict(state)
    prefix = "0." if grouped else ""
    counts = [mine.state_dict()[f"{prefix}step{place}"].item() for place in ("", ".1", ".2", ".3")]
    assert counts == [float(other.state[b]["step"]) for b in theirs] == [8, 5, 4, 5]
    fresh = getattr(optim, name)([{"params": ours}] if grouped else ours, lr=0.1)
    mine.load_state_dict(fresh.state_dict())
    assert mine.state_dict().keys() == fresh.state_dict().keys()


def test_a_captured_step_counts_the_steps_of_each_parameter(on_device):
    w, b = Tensor(W, requires_grad=True), Tensor(B, requires_grad=True)
    optimizer = optim.Adam([w, b], lr=0.1)

    @jit
    def step(first):
        optimizer.zero_grad()
        (w * first).sum().backward()
        optimizer.step()

    for value in range(4):
        step(Tensor([value + 1.0]).realize())
    assert [count.item() for count in optimizer.counts] == [4, 0]
    state = {name: Tensor(t.numpy()) for name, t in optimizer.state_dict().items()}
    optimizer.load_state_dict({**state, "step.1": Tensor(7.0)})
    step(Tensor([5.0]).realize())
    assert [count.item() for count in optimizer.counts] == [5, 7]
    optimizer.load_state_dict({name: t for name, t in state.items() if name != "step.1"})
    with pytest.raises(JitError, match="divided"):
        step(Tensor([6.0]).realize())


def test_a_group_whose_step_fails_writes_nothing(on_device):
    """The second optimizer of a captured step would have to read its count."""
    x, y, z = (Tensor([1.0], requires_grad=True) for _ in range(3))
    group = optim.OptimizerGroup(optim.Adam([x], lr=0.1), optim.Adam([y, z], lr=0.1))

    @jit
    def step(rate):
        group.zero_grad()
        ((x + y + z) * rate).sum().backward()
        group.step()

    step(Tensor([1.0]))
    before = [tensor.item() for tensor in (x, y, z)]
    z.requires_grad = False
    with pytest.raises(JitError):
        step(Tensor([1.0]))
    assert [tensor.item() for tensor in (x, y, z)] == before
    assert [one.t.item() for one in group.optimizers] == [1, 1]
    step.reset()
    step(Tensor([1.0]))
    assert [one.t.item() for one in group.optimizers] == [2, 2]


def test_what_an_optimizer_is_shows():
    """Its current options; those of a group one after another."""
    w, b = Tensor(W, requires_grad=True), Tensor(B, requires_grad=True)
    group = optim.AdamW([{"params": [w], "lr": 0.25}, {"params": [b]}], lr=0.5, weight_decay=0.1)
    shown = "AdamW(lr={}, eps=1e-08, weight_decay=0.1, decoupled=True, betas=(0.9, 0.999))"
    assert repr(group) == f"OptimizerGroup({shown.format(0.25)}, {shown.format(0.5)})"
    group.param_groups[0]["lr"] = 2
    assert repr(group[0]) == shown.format(2)
    for lr in (0.1, 0.3, 3e-4, 1e-30, 0.0):  # the given number, though it is stored in float32
        group.param_groups[1]["lr"] = lr
        assert group.param_groups[1]["lr"] == lr
    group.param_groups[1]["lr"] = 1 / 3
    assert np.float32(group.param_groups[1]["lr"]) == np.float32(1 / 3)


def test_a_closure_is_no_flag():
    """PyTorch's step(closure) calls it; here it would be taken for `forget`, and never called."""
    said = r"expected no closure; write loss = closure\(\); optimizer\.step\(\)"
    w, b = Tensor(W, requires_grad=True), Tensor(B, requires_grad=True)
    both = optim.OptimizerGroup(optim.SGD([w], lr=0.1), optim.Adam([b], lr=0.1))
    for optimizer in (both[0], both):
        with pytest.raises(TypeError, match=said):
            optimizer.step(lambda: None)  # type: ignore[arg-type]


def test_a_group_steps_in_one_program(on_device):
    w, b = Tensor(W, requires_grad=True), Tensor(B, requires_grad=True)
    group = optim.OptimizerGroup(optim.Muon([w], lr=0.01), optim.AdamW([b], lr=0.1))
    for _ in range(2):
        group.zero_grad()
        loss_of(w, b).backward()
        calls = GlobalCounters.program_calls
        group.step()
        assert GlobalCounters.program_calls == calls + 1
    state = {name: Tensor(t.numpy()) for name, t in group.state_dict().items()}
    assert set(state) == {"0.lr", "0.step", "0.momentum_buffer.0", "1.lr", "1.step",
                          "1.exp_avg.0", "1.exp_avg_sq.0"}  # fmt: skip
    again = optim.OptimizerGroup(optim.Muon([w]), optim.AdamW([b]))
    again.load_state_dict(state)
    assert again[1].t.item() == 2 and len(again) == 2
    ours, before = (one[0].moments["momentum_buffer"][0].numpy() for one in (again, group))
    np.testing.assert_array_equal(ours, before)
    with pytest.raises(KeyError, match="7"):
        again.load_state_dict({"7.lr": Tensor(0.0)})
    with pytest.raises(ValueError, match="in only one optimizer"):
        optim.OptimizerGroup(optim.SGD([w]), optim.SGD([w, b]))


@pytest.mark.parametrize("grouped", [False, True])
def test_a_step_computes_clipped_gradients_once(grouped):
    w = Tensor([3.0, 4.0], requires_grad=True)
    optimizer = optim.SGD([w], lr=0.5)
    gradient = Tensor([6.0, 8.0]).realize()
    w.grad = gradient
    optim.clip_grad_norm([w], 1.0)
    (optim.OptimizerGroup(optimizer) if grouped else optimizer).step()
    before = GlobalCounters.program_calls
    assert np.allclose(w.grad.numpy(), [0.6, 0.8])
    assert GlobalCounters.program_calls == before
    assert np.allclose(w.numpy(), [2.7, 3.6])


def test_clip_grad_norm(on_device):
    a, b = Tensor([3.0, 0.0], requires_grad=True), Tensor([[4.0]], requires_grad=True)
    ((a * a).sum() / 2 + (b * b).sum() / 2).backward()
    norm = optim.clip_grad_norm([a, b], 1.0)
    assert abs(norm.item() - 5) < 1e-6
    np.testing.assert_allclose(a.grad.numpy(), [0.6, 0], rtol=1e-5)
    np.testing.assert_allclose(b.grad.numpy(), [[0.8]], rtol=1e-5)
    assert abs(optim.clip_grad_norm([a, b], 10.0).item() - 1) < 1e-5
    np.testing.assert_allclose(a.grad.numpy(), [0.6, 0], rtol=1e-5)
    assert abs(optim.clip_grad_norm(b, 0.4).item() - 0.8) < 1e-6 and b.grad.item() < 0.4


class _Own(optim.Optimizer):
    """A rule that reads what is not among its arguments, and an option of each parameter's own."""

    factor = 1.0

    @staticmethod
    def rule(param, grad, lr, t, moment, *, decay):
        moment = moment + grad * _Own.factor
        return param - moment * lr - decay, moment

    def __init__(self, params):
        super().__init__(params, 0.5, ["moment"], decay=0.0)

    def _options_of(self, param):
        return {"decay": float(param.ndim)}


def test_a_rule_of_ones_own_runs_in_every_step(on_device):
    x, y, z = (Tensor(values) for values in ([8.0, 9.0], 8.0, [7.0]))
    optimizer = _Own([x, y, z])
    for factor in (1.0, 2.0, 4.0):
        _Own.factor = factor
        optimizer.zero_grad()
        (x.sum() + y * 2 + z.sum()).backward()
        optimizer.step()
    assert x.tolist() == [8 - 5.5 - 3, 9 - 5.5 - 3]  # moments 1, 3, 7
    assert y.item() == 8 - 11
    assert z.tolist() == [7 - 5.5 - 3]
    assert [moment.tolist() for moment in optimizer.moments["moment"]] == [[7, 7], 14, [7]]


class _OwnBetas(optim.Optimizer):
    @staticmethod
    def rule(param, grad, lr, t, moment, *, betas):
        moment = moment * betas[0] + grad * betas[1]
        return param - moment * lr, moment

    def __init__(self, params):
        super().__init__(params, 0.5, ["moment"], betas=(0.5, 2.0))


def test_a_rule_of_ones_own_takes_its_options_as_they_are(on_device):
    x = Tensor([8.0])
    optimizer = _OwnBetas([x])
    for _ in range(2):
        optimizer.zero_grad()
        x.sum().backward()
        optimizer.step()
    assert x.tolist() == [8 - 1 - 1.5]


def test_tied_parameters_count_once(on_device):
    w = Tensor(W, requires_grad=True)
    assert len(optim.SGD([w, w]).params) == 1


def test_half_parameters_have_float_moments(on_device):
    w = Tensor(W, dtype=dtypes.bfloat16, requires_grad=True)
    optimizer = optim.AdamW([w], lr=0.1)
    assert optimizer.moments["exp_avg"][0].dtype is dtypes.float32
    (w.float() * w.float()).sum().backward()
    optimizer.step()
    assert w.dtype is dtypes.bfloat16
    start = Tensor(W, dtype=dtypes.bfloat16).float().numpy().astype(np.float64)
    wanted = start * (1 - 0.1 * 0.01) - 0.1 * np.sign(start)  # the first step's m/√v is the sign
    # rounded once, at the end, to 8 bits: by 2⁻⁸ of itself; eps and float32 add 1e-6 at most
    assert (np.abs(w.float().numpy() - wanted) <= 2.0**-8 * np.abs(wanted) + 1e-6).all()


def test_parameters_without_gradient_stay(on_device):
    w, b = Tensor(W, requires_grad=True), Tensor(B, requires_grad=True)
    optimizer = optim.AdamW([w, b], lr=0.1)
    w.sum().backward()
    optimizer.step()
    np.testing.assert_array_equal(b.numpy(), B)
    assert (w.numpy() != W).all()
    optimizer.zero_grad()
    with pytest.raises(GradientError, match="backward"):
        optimizer.step()


def test_state_dict_goes_on(on_device):
    make = OPTIMIZERS["adamw"][0]
    whole, w_whole, *_ = train(make, 10)
    first, w, b, optimizer = train(make, 5)
    state = {name: Tensor(t.numpy()) for name, t in optimizer.state_dict().items()}
    w, b = Tensor(w, requires_grad=True), Tensor(b, requires_grad=True)
    again = make([w, b])
    again.load_state_dict(state)
    rest = []
    for _ in range(5):
        loss = loss_of(w, b)
        again.zero_grad()
        loss.backward()
        again.step()
        rest.append(loss.item())
    assert first + rest == whole
    np.testing.assert_array_equal(w.numpy(), w_whole)
    with pytest.raises(KeyError, match="missing"):
        again.load_state_dict({})


def test_mistakes(on_device):
    with pytest.raises(AttributeError, match=r"RMSprop\(centered=True\): expected"):
        optim.RMSprop([Tensor(B)]).centered = True
    for plain in (optim.SGD([Tensor(B)]), optim.RMSprop([Tensor(B)])):  # it did nothing
        plain.momentum = 0.0
        with pytest.raises(ValueError, match=r"momentum=0.9\): expected momentum > 0 when"):
            plain.momentum = 0.9
    with pytest.raises(ValueError, match="momentum"):
        optim.SGD([Tensor(W)], nesterov=True)
    with pytest.raises(GradientError, match="int32"):
        optim.SGD([Tensor([1])])


def test_schedules():
    warm = schedule.linear_warmup(1.0, 4)
    assert [warm(i) for i in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert schedule.constant(0.1)(100) == 0.1
    rate = schedule.cosine(1.0, 110, warmup=10, final=0.1)
    assert rate(9) == 1.0
    assert abs(rate(10) - 1) < 1e-12
    assert abs(rate(60) - 0.55) < 1e-12
    assert rate(110) == rate(1000) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="warmup"):
        schedule.cosine(1, 5, 5)


def test_schedules_equal_pytorch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    rates = torch.optim.lr_scheduler
    kinds = [
        (schedule.linear_warmup(0.3, 10), lambda o: rates.LinearLR(o, 0.1, 1.0, 9)),
        (schedule.cosine(0.3, 50, final=0.01), lambda o: rates.CosineAnnealingLR(o, 50, 0.01)),
        (schedule.constant(0.3), lambda o: rates.ConstantLR(o, 1.0)),
    ]
    for ours, make in kinds:
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
        theirs = make(optimizer)
        for step in range(50):
            assert ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
            optimizer.step()
            theirs.step()


def test_schedule_sets_the_rate(on_device):
    optimizer = optim.SGD([Tensor(W)], lr=5.0)
    rates = schedule.Schedule(optimizer, schedule.linear_warmup(1.0, 2))
    assert optimizer.lr.item() == 0.5
    rates.step()
    assert optimizer.lr.item() == 1.0
    assert isinstance(optimizer.lr, Tensor)
    assert nn.optim is optim


RATES = optim.lr_scheduler
SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "linear": RATES.LinearLR,
    "steps": lambda o: RATES.StepLR(o, 2),
    "milestones": lambda o: RATES.MultiStepLR(o, [2, 3]),
    "exponential": lambda o: RATES.ExponentialLR(o, 0.9),
    "cosine": lambda o: RATES.CosineAnnealingLR(o, 5, 0.01),
    "restarts": lambda o: RATES.CosineAnnealingWarmRestarts(o, 2, 2),
    "polynomial": lambda o: RATES.PolynomialLR(o, 6, 2.0),
    "one cycle": lambda o: RATES.OneCycleLR(o, 0.5, 8),
    "sequence": lambda o: RATES.SequentialLR(
        o, [RATES.LinearLR(o), RATES.ExponentialLR(o, 0.9)], [3]),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_are_copied_with_their_optimizer(name):
    optimizer = optim.SGD([Tensor(W)], lr=0.3, momentum=0.9)
    both = optimizer, SCHEDULERS[name](optimizer)
    both[1].step()
    found = []
    for own, scheduler in [both, copy.deepcopy(both), pickle.loads(pickle.dumps(both))]:
        assert scheduler.optimizer is own
        found.append([own.lr.item()])
        for _ in range(5):
            scheduler.step()
            found[-1].append(own.lr.item())
    assert found[0] == found[1] == found[2] and len({*found[0]}) > 1


def test_a_step_is_seen_by_views_and_not_by_earlier_results() -> None:
    """Whether the weights are written at once, or wait, because views of them are alive."""
    for views in (False, True):
        w = Tensor([1.0, 2.0], requires_grad=True)
        opt = nn.optim.SGD([w], lr=1.0)
        shown = [w.detach(), w[1:]] if views else []
        earlier = w * 10
        w.sum().backward()
        opt.step()
        assert w.tolist() == [0, 1] and earlier.tolist() == [10, 20] and opt.t.item() == 1
        assert [view.tolist() for view in shown] == [[0, 1], [1]][: len(shown)]


def test_a_step_that_is_interrupted_before_its_program_writes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(graph: object) -> None:
        raise KeyboardInterrupt

    w = Tensor([1.0, 2.0, 4.0, 8.0, 16.0], requires_grad=True)
    opt = nn.optim.SGD([w], lr=1.0, momentum=0.5)
    (w * 0.75).sum().backward()
    with monkeypatch.context() as patch:
        patch.setattr("minigrad.program._compiled", interrupted)
        with pytest.raises(KeyboardInterrupt):
            opt.step()
    assert w.tolist() == [1, 2, 4, 8, 16] and opt.t.item() == 0
    opt.step()
    assert w.tolist() == [0.25, 1.25, 3.25, 7.25, 15.25] and opt.t.item() == 1
