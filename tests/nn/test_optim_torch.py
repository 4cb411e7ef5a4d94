"""Parameter groups and learning-rate schedulers as torch.optim has them."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from minigrad import Tensor, jit, nn
from minigrad.errors import GradientError, StateError
from minigrad.nn import optim

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

SCHEDULERS = {
    "StepLR": (3, 0.5), "MultiStepLR": ([2, 5, 5], 0.5), "ExponentialLR": (0.9,),
    "CosineAnnealingLR": (6, 0.01), "LinearLR": (0.25, 0.75, 4),
    "LambdaLR": (lambda step: 1 / (1 + step),), "PolynomialLR": (8, 0.9),
}  # fmt: skip


def pairs(shapes, seed=31):
    generator = np.random.default_rng(seed)
    arrays = [generator.standard_normal(shape).astype(np.float32) for shape in shapes]
    return [Tensor(a) for a in arrays], [torch.tensor(a, requires_grad=True) for a in arrays]


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop"])
def test_groups(name, on_device):
    ours, theirs = pairs([(3, 2), (4,), (2,)])
    steps = []
    for library, (a, b, c) in ((optim, ours), (torch.optim, theirs)):
        groups = [{"params": [a], "weight_decay": 0.5}, {"params": iter([b]), "lr": 0.3},
                  {"params": c}]  # fmt: skip
        optimizer = getattr(library, name)(groups, lr=0.1)
        assert [round(group["lr"], 6) for group in optimizer.param_groups] == [0.1, 0.3, 0.1]
        assert optimizer.param_groups[0]["weight_decay"] == 0.5
        for step in range(4):
            optimizer.zero_grad()
            ((a * a).sum() + (b * 3).sum() + (c * c * c).sum()).backward()
            optimizer.step()
            for group in optimizer.param_groups:
                group["lr"] = 0.1 / (step + 1)
        steps.append(optimizer)
    for tensor, wanted in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(tensor.numpy(), wanted.detach().numpy(), rtol=1e-5, atol=1e-6)
    if name.startswith("Adam"):
        assert steps[0].param_groups[0]["betas"] == steps[1].param_groups[0]["betas"]


def test_groups_that_are_wrong():
    param = Tensor.ones(2, requires_grad=True)
    with pytest.raises(TypeError, match="expected parameter groups as"):
        optim.SGD([{"params": [param]}, [param]])
    with pytest.raises(ValueError, match="in only one optimizer"):
        optim.SGD([{"params": [param]}, {"params": [param]}])
    group = optim.SGD([param]).param_groups[0]
    with pytest.raises(KeyError, match="expected one of lr, momentum, weight_decay, nesterov"):
        group["learning_rate"] = 0.5
    with pytest.raises(ValueError, match="expected momentum > 0 when the optimizer is made"):
        group["momentum"] = 0.5
    with pytest.raises(ValueError, match="expected a number ≥ 0"):
        group["weight_decay"] = -1
    with pytest.raises(KeyError, match="no 'betas': expected one of lr, params, momentum"):
        group["betas"]
    assert group["params"][0] is param and group["nesterov"] is False and len(group) == 5


def test_options_of_groups_are_set(on_device):
    """As scripts do that warm up the momentum, or find a group by its name."""
    ours, theirs = pairs([(3, 2), (4,)])
    for library, (a, b) in ((optim, ours), (torch.optim, theirs)):
        groups = [{"params": [a], "name": "xy"}, {"params": [b], "weight_decay": 0.1}]
        optimizer = library.SGD(groups, lr=0.1, momentum=0.9)
        assert optimizer.param_groups[0]["name"] == "xy"
        for step in range(5):
            optimizer.zero_grad()
            ((a * a).sum() + (b * b * b).sum()).backward()
            for group in optimizer.param_groups:
                group["momentum"] = 0.5 + 0.1 * step
                if group["weight_decay"]:
                    group["weight_decay"] *= 0.5
                if group.get("name") == "xy":
                    group["lr"] *= 0.9
            optimizer.step()
    for tensor, wanted in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(tensor.numpy(), wanted.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_copies(on_device):
    optimizer = optim.Adam([Tensor([1.0], requires_grad=True)], lr=0.25)
    assert copy.deepcopy(optimizer).lr.item() == 0.25


def test_what_is_frozen_stays(on_device):
    a, b = (Tensor([1.0], requires_grad=True) for _ in range(2))
    a.requires_grad = False
    optimizer = optim.SGD([a, b], lr=0.5)
    (a * b).sum().backward()
    optimizer.step()
    assert (a.item(), b.item()) == (1, 0.5)
    a.requires_grad = True
    optimizer.zero_grad()
    (a * b).sum().backward()
    optimizer.step()
    assert (a.item(), b.item()) == (0.75, 0)


def test_gradients_set_to_zero(on_device):
    (a,), (ta,) = pairs([(3,)])
    ours, theirs = optim.SGD([a], 0.1, 0.9), torch.optim.SGD([ta], 0.1, 0.9)
    for x, optimizer in ((a, ours), (ta, theirs)):
        (x * x).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        optimizer.step()
        assert not np.asarray(x.grad).any()
    np.testing.assert_allclose(a.numpy(), ta.detach().numpy(), rtol=1e-6)
    optim.OptimizerGroup(ours).zero_grad()
    assert a.grad is None


def test_clipping(on_device):
    ours, theirs = pairs([(3, 2), (4,)])
    norms = []
    for params, clip in ((ours, nn.utils.clip_grad_norm_), (theirs,
                                                            torch.nn.utils.clip_grad_norm_)):
        (params[0].sum() * 3 + (params[1] * params[1]).sum()).backward()
        norms.append(float(clip(iter(params), max_norm=1.0)))
    np.testing.assert_allclose(norms[0], norms[1], rtol=1e-5)
    for tensor, wanted in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(tensor.grad.numpy(), wanted.grad.numpy(), rtol=1e-5)


def test_clipping_values(on_device):
    ours, theirs = pairs([(3, 2), (2,), (4,)])
    for library, params in ((nn, ours), (torch.nn, theirs)):
        ((params[0] ** 3).sum() + (params[1] * 5).sum()).backward()  # the third has no gradient
        library.utils.clip_grad_value_(iter(params), clip_value=1.5)
        library.utils.clip_grad_value_(params[1], 0.5)
    for tensor, wanted in zip(ours[:2], theirs, strict=False):
        np.testing.assert_allclose(tensor.grad.numpy(), wanted.grad.numpy(), rtol=1e-5)
    assert ours[2].grad is None and ours[1].grad.tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match=r"clip_value=-1\): expected ≥ 0"):
        nn.utils.clip_grad_value_(ours, -1)
    with pytest.raises(TypeError, match="expected tensors, got Linear"):
        nn.utils.clip_grad_value_(nn.Linear(2, 2), 1.0)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers(name):
    ours, theirs = pairs([(2,), (2,)])
    rates = []
    for library, (a, b) in ((optim, ours), (torch.optim, theirs)):
        optimizer = library.SGD([{"params": [a]}, {"params": [b], "lr": 0.4}], lr=0.2)
        scheduler = getattr(library.lr_scheduler, name)(optimizer, *SCHEDULERS[name])
        found = []
        for _ in range(9):
            found.append([group["lr"] for group in optimizer.param_groups])
            np.testing.assert_allclose(found[-1], scheduler.get_last_lr(), rtol=1e-6)
            (a.sum() + b.sum()).backward()
            optimizer.step()
            scheduler.step()
        rates.append(found)
    np.testing.assert_allclose(rates[0], rates[1], rtol=1e-6)


@pytest.mark.parametrize("case", ["warm", "warm twice", "polynomial", "sequence"])
def test_schedulers_of_parts(case):
    """Warm restarts; a polynomial beyond its end; a warm-up, then a cosine, then steps."""
    found = []
    for library, tensor in ((optim, Tensor([1.0])), (torch.optim, torch.ones(1))):
        make = library.lr_scheduler
        optimizer = library.SGD([{"params": [tensor], "lr": 0.4}], lr=0.2)
        if case == "sequence":
            warm = make.LinearLR(optimizer, 0.25, 1.0, 3)
            parts = [make.CosineAnnealingLR(optimizer, 4, 0.1), make.StepLR(optimizer, 2, 0.5)]
            scheduler = make.SequentialLR(optimizer, [warm, *parts], [3, 7])
        elif case == "polynomial":
            scheduler = make.PolynomialLR(optimizer, 4, 2.0)
        else:
            times = {"warm": 1, "warm twice": 2}[case]
            scheduler = make.CosineAnnealingWarmRestarts(optimizer, 2, times, 0.01)
        rates = []
        for _ in range(12):
            rates.append(optimizer.param_groups[0]["lr"])
            np.testing.assert_allclose(scheduler.get_last_lr(), rates[-1:], rtol=1e-6)
            optimizer.step() if library is torch.optim else None
            scheduler.step()
        found.append(rates)
    np.testing.assert_allclose(*found, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("second", [
    ("CosineAnnealingLR", 3, 0.0), ("CosineAnnealingLR", 3, 0.01),
    ("CosineAnnealingWarmRestarts", 2, 2, 0.01),
])  # fmt: skip
@pytest.mark.parametrize("name", ["ExponentialLR", "LambdaLR", "LinearLR", "MultiStepLR"])
def test_several_schedulers(name, second):
    """A cosine begins again from the first learning rate: another one's factor is gone then."""
    found = []
    for library, tensor in ((optim, Tensor([1.0])), (torch.optim, torch.ones(1))):
        make = library.lr_scheduler
        optimizer = library.SGD([{"params": [tensor], "lr": 0.4}], lr=0.2)
        schedulers = [getattr(make, name)(optimizer, *SCHEDULERS[name]),
                      getattr(make, second[0])(optimizer, *second[1:])]  # fmt: skip
        rates = []
        for _ in range(8):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step() if library is torch.optim else None
            for scheduler in schedulers:
                scheduler.step()
        found.append(rates)
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-8)


CYCLES = [
    {"total_steps": 20}, {"epochs": 3, "steps_per_epoch": 4, "anneal_strategy": "linear"},
    {"total_steps": 12, "three_phase": True, "pct_start": 0.4, "div_factor": 10.0},
    {"total_steps": 12, "cycle_momentum": False, "final_div_factor": 10.0},
    {"total_steps": 16, "base_momentum": 0.5, "max_momentum": 0.8},
]  # fmt: skip


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("options", CYCLES)
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_one_cycle(name, options, captured):
    """Learning rates and momentum, also of a captured step, and from a saved state on."""
    found = []
    for library, (a, b) in zip((optim, torch.optim), pairs([(3,), (2,)]), strict=True):
        more = {"momentum": 0.9} if name == "SGD" else {}
        groups = [{"params": [a]}, {"params": [b]}]
        optimizer = getattr(library, name)(groups, lr=7.0, weight_decay=0.01, **more)
        make, top = library.lr_scheduler.OneCycleLR, [0.1, 0.3]
        scheduler, values = make(optimizer, top, **options), []

        def step(a=a, b=b, optimizer=optimizer):
            optimizer.zero_grad()
            loss = (a * a).sum() + (b**3).sum()
            loss.backward()
            optimizer.step()
            return loss

        run = jit(step) if captured and library is optim else step
        for count in range(10):
            values.append([run().item(), *scheduler.get_last_lr(), *a.tolist(), *b.tolist()])
            if library is optim and count == 5:
                state = scheduler.state_dict()
                if not captured:  # a new scheduler has a new tensor for the momentum
                    scheduler = make(optimizer, top, **options)
                scheduler.load_state_dict(state)
            scheduler.step()
        found.append(values)
    np.testing.assert_allclose(*found, rtol=2e-5, atol=1e-6)


def test_one_cycle_that_is_wrong():
    make, plain = optim.lr_scheduler.OneCycleLR, optim.SGD([Tensor([1.0])], lr=0.2)
    with pytest.raises(ValueError, match="momentum or betas, got SGD; or pass cycle_momentum"):
        make(plain, 0.1, 10)
    with pytest.raises(ValueError, match="total_steps ≥ 1, or epochs and steps_per_epoch"):
        make(plain, 0.1, epochs=3)
    with pytest.raises(ValueError, match=r"div_factor=0, final_div_factor=.*: expected both > 0"):
        make(plain, 0.1, 10, div_factor=0, cycle_momentum=False)
    with pytest.raises(ValueError, match=r"max_momentum=1.5\): expected 0 ≤ momentum < 1"):
        make(optim.Adam([Tensor([1.0])]), 0.1, 10, max_momentum=1.5)
    with pytest.raises(ValueError, match="a number for each group"):
        make(plain, [0.1, 0.2], 10, cycle_momentum=False)
    scheduler = make(plain, 0.1, 2, cycle_momentum=False)
    scheduler.step()
    scheduler.step()
    with pytest.raises(ValueError, match="total_steps=2"):
        scheduler.step()


PLATEAUS = [
    {}, {"mode": "max", "patience": 1}, {"threshold_mode": "abs", "threshold": 0.2, "patience": 0},
    {"cooldown": 2, "patience": 0, "min_lr": 0.01, "factor": 0.5}, {"patience": 1, "eps": 0.05},
    {"mode": "max", "threshold": 0.1, "threshold_mode": "abs", "patience": 0, "factor": 0.7},
]  # fmt: skip


@pytest.mark.parametrize("options", PLATEAUS)
def test_plateaus(options):
    metrics = [3.0, 2.0, 2.1, 1.9999, float("nan"), 1.5, -1.0, -1.0, -1.05, 4.0, 4.3, 4.3, 4.2] * 2
    found = []
    for library, tensor in ((optim, Tensor([1.0])), (torch.optim, torch.ones(1))):
        optimizer = library.SGD([tensor], lr=0.2)
        scheduler = library.lr_scheduler.ReduceLROnPlateau(optimizer, **options)
        rates = []
        for metric in metrics:
            scheduler.step(metric)
            if library is optim:  # a copy goes on from its state
                state = scheduler.state_dict()
                scheduler = optim.lr_scheduler.ReduceLROnPlateau(optimizer, **options)
                scheduler.load_state_dict(state)
            rates.append(scheduler.get_last_lr()[0])
        found.append(rates)
    np.testing.assert_allclose(*found, rtol=1e-6)


def test_schedulers_that_are_wrong():
    make, optimizer = optim.lr_scheduler, optim.SGD([Tensor([1.0])], lr=0.2)
    with pytest.raises(ValueError, match="one scheduler more than milestones"):
        make.SequentialLR(optimizer, [make.StepLR(optimizer, 2)], [3])
    with pytest.raises(ValueError, match="schedulers of this optimizer"):
        make.SequentialLR(optimizer, [make.ReduceLROnPlateau(optimizer)], [])
    with pytest.raises(ValueError, match=r"factor=1\.5\): expected below 1"):
        make.ReduceLROnPlateau(optimizer, factor=1.5)
    with pytest.raises(StateError, match="missing"):
        make.ReduceLROnPlateau(optimizer).load_state_dict({"best": 1.0})


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_that_begin_later(name):
    """last_epoch=-1 is the default; any other value says how many steps were taken before."""
    make, groups = getattr(optim.lr_scheduler, name), [{"params": [Tensor([1.0])], "lr": 0.5}]
    begun = make(optim.SGD(groups), *SCHEDULERS[name], last_epoch=-1)
    for _ in range(4):
        begun.step()
    later = make(optim.SGD(groups), *SCHEDULERS[name], last_epoch=3)
    assert later.get_last_lr() == begun.get_last_lr() and later.last_epoch == 4


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_that_go_on_from_what_was_saved(name):
    """The optimizer already has the learning rate after those steps: they are not applied twice."""
    make = getattr(optim.lr_scheduler, name)
    optimizer, other, loaded = (optim.SGD([Tensor([1.0])], lr=0.5) for _ in range(3))
    first, goes_on = (make(each, *SCHEDULERS[name]) for each in (optimizer, other))
    for _ in range(4):
        first.step()
        goes_on.step()
    loaded.load_state_dict({n: Tensor(t.numpy()) for n, t in optimizer.state_dict().items()})
    later = [make(each, *SCHEDULERS[name], last_epoch=3) for each in (loaded, optimizer)]
    for _ in range(4):
        for each in later:
            np.testing.assert_allclose(each.get_last_lr(), goes_on.get_last_lr(), rtol=1e-6)
            np.testing.assert_allclose(each.optimizer.lr.item(), other.lr.item(), rtol=1e-6)
            each.step()
        goes_on.step()


@pytest.mark.parametrize("steps", [4, 5, 6, 7])
@pytest.mark.parametrize("loads", [True, False])
def test_a_cosine_that_goes_on_after_its_zero(steps, loads):
    """The learning rate of a checkpoint was taken for one that another scheduler had changed."""
    make = optim.lr_scheduler.CosineAnnealingLR
    optimizer, saved = (optim.SGD([Tensor([1.0])], lr=0.5) for _ in range(2))
    first = make(optimizer, 5)
    for _ in range(steps):
        first.step()
    saved.load_state_dict(optimizer.state_dict())
    later = make(saved, 5, last_epoch=-1 if loads else steps - 1)
    if loads:
        later.load_state_dict(first.state_dict())
    for _ in range(4):
        np.testing.assert_allclose(later.get_last_lr(), first.get_last_lr(), rtol=1e-6, atol=1e-9)
        later.step()
        first.step()


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "LambdaLR"])
def test_a_rate_set_before_the_state_is_saved(name):
    """The scheduler's state had the base rates of its last step: loading it undid the change."""
    make = getattr(optim.lr_scheduler, name)
    optimizer, saved = (optim.SGD([Tensor([1.0])], lr=0.5) for _ in range(2))
    first, later = (make(each, *SCHEDULERS[name]) for each in (optimizer, saved))
    first.step()
    optimizer.param_groups[0]["lr"] = 0.125
    saved.load_state_dict(optimizer.state_dict())
    later.load_state_dict(first.state_dict())
    for _ in range(3):
        np.testing.assert_allclose(saved.lr.item(), optimizer.lr.item(), rtol=1e-6)
        later.step()
        first.step()


def test_two_schedulers_that_begin_later():
    """With a new optimizer: each scheduler applies all of its steps."""
    make, groups = optim.lr_scheduler, [{"params": [Tensor([1.0])], "lr": 0.5}]
    rates = []
    for last in (-1, 3):
        optimizer = optim.SGD(groups)
        both = [make.StepLR(optimizer, 3, 0.5, last), make.ExponentialLR(optimizer, 0.9, last)]
        for _ in range(3 - last):
            for scheduler in both:
                scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    np.testing.assert_allclose(*rates, rtol=1e-6)


@pytest.mark.parametrize("first", SCHEDULERS)
@pytest.mark.parametrize("second", SCHEDULERS)
def test_two_schedulers_of_one_optimizer(first, second):
    """Each changes the rate that the other has left, and a change by the user is kept.

    This holds until a cosine is at its minimum: PyTorch's then restarts as if it were alone.
    """
    found = []
    for ours in (True, False):
        kind, tensor = (optim, Tensor) if ours else (torch.optim, torch.tensor)
        optimizer = kind.SGD([tensor([1.0], requires_grad=True)], lr=0.5)
        make = kind.lr_scheduler
        both = [getattr(make, name)(optimizer, *SCHEDULERS[name]) for name in (first, second)]
        rates = []
        for number in range(7):
            rates.append(optimizer.param_groups[0]["lr"])
            for scheduler in both:
                scheduler.step()
            if number == 3:
                optimizer.param_groups[0]["lr"] *= 0.5
        found.append(rates)
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-9)


def test_a_scheduler_goes_on(on_device):
    param = Tensor([1.0], requires_grad=True)
    optimizer = optim.SGD([param], lr=0.5)
    scheduler = optim.lr_scheduler.StepLR(optimizer, 2)

    @jit
    def step():
        optimizer.zero_grad()
        param.sum().backward()
        optimizer.step()

    values = [1.0]
    for _ in range(6):
        step()
        scheduler.step()
        values.append(param.item())
    np.testing.assert_allclose(-np.diff(values), [0.5, 0.5, 0.05, 0.05, 0.005, 0.005], rtol=1e-4)
    other = optim.lr_scheduler.StepLR(optim.SGD([param], lr=0.7), 2)
    other.load_state_dict(scheduler.state_dict())
    assert other.last_epoch == 6
    np.testing.assert_allclose(other.optimizer.lr.item(), 0.0005, rtol=1e-5)
    with pytest.raises(ValueError, match="expected a function for each group, got 2 for 1"):
        optim.lr_scheduler.LambdaLR(optimizer, [abs, abs])


def valley(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


@pytest.mark.parametrize("options", [
    {"lr": 0.1, "max_iter": 8}, {"lr": 0.3, "max_iter": 5, "history_size": 3},
    {"lr": 0.1, "max_iter": 8, "max_eval": 4}, {"lr": 0.1, "tolerance_change": 0.02},
])  # fmt: skip
def test_lbfgs(options, on_device):
    """The same steps as PyTorch's, with two parameters, also after a checkpoint."""
    runs = []
    for library, (a, b) in zip((optim, torch.optim), pairs([(2, 2), (3,)]), strict=True):
        optimizer = library.LBFGS([a, b], **options)
        join = Tensor.cat if library is optim else torch.cat
        found = []

        def closure(a=a, b=b, join=join, found=found, optimizer=optimizer):
            optimizer.zero_grad()
            loss = valley(join([a.flatten(), b * 2]))
            loss.backward()
            found.append(loss.item())
            return loss

        for count in range(3):
            assert optimizer.step(closure).item() in found
            if library is optim and count == 1:
                state = {n: Tensor(t.numpy()) for n, t in optimizer.state_dict().items()}
                optimizer = library.LBFGS([a, b], **options)
                optimizer.load_state_dict(state)
        runs.append([*found, *a.flatten().tolist(), *b.tolist()])
    np.testing.assert_allclose(*runs, rtol=1e-3, atol=1e-5)


def test_lbfgs_with_a_line_search(on_device):
    """It reaches the minimum, and no step makes the loss worse, even if the first try is long."""
    x = Tensor([-1.2, 1.0], requires_grad=True)
    optimizer = optim.LBFGS([x], lr=30.0, max_iter=12, line_search_fn="strong_wolfe")
    losses = []

    def closure():
        optimizer.zero_grad()
        loss = valley(x)
        loss.backward()
        return loss

    for _ in range(8):
        losses.append(optimizer.step(closure).item())
    assert losses == sorted(losses, reverse=True) and losses[-1] < 1e-8
    np.testing.assert_allclose(x.tolist(), [1, 1], atol=1e-3)


def test_lbfgs_that_is_wrong():
    x = Tensor([1.0], requires_grad=True)
    with pytest.raises(ValueError, match="line_search_fn='wolfe'"):
        optim.LBFGS([x], line_search_fn="wolfe")
    for wrong in ({"max_iter": 0}, {"history_size": 0}):
        with pytest.raises(ValueError, match="expected both ≥ 1"):
            optim.LBFGS([x], **wrong)
    with pytest.raises(ValueError, match=r"expected optimizers without a step\(\) .* got LBFGS"):
        optim.LBFGS([{"params": [x]}])  # its step() did not get the closure
    with pytest.raises(TypeError, match="calls backward and returns the loss, got Tensor"):
        optim.LBFGS([x]).step(x)
    with pytest.raises(GradientError, match="the closure gave no parameter a gradient"):
        optim.LBFGS([x]).step(lambda: x.sum())
