"""The models of `torch_programs`, and the statements that train and change them.

A program may begin with models m0 and m1, an optimizer o0 and a scheduler s0. Holes, besides those
of `torch_statements`: M a model; call its result for an input of a random batch size and length;
loss a sum of such results; P parameters.
"""

from __future__ import annotations

import random
import re
from typing import NamedTuple

from .torch_statements import Group, templates


class Model(NamedTuple):
    """shape: of its inputs, with b and l for a random batch size and length. ints: they are."""

    text: str
    shape: str
    ints: bool = False


MODELS = (
    Model("nn.Linear(4, 3)", "b, 4"),
    Model("nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))", "b, 4"),
    Model("nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.0), nn.GroupNorm(2, 4), nn.PReLU(4))",
          "b, 3"),
    Model("nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3, momentum=None),"
          " nn.LeakyReLU(0.1, True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 2))",
          "b, 2, 4, 4"),
    Model("nn.Sequential(nn.ConvTranspose1d(2, 3, 2, stride=2, bias=False),"
          " nn.BatchNorm1d(3, affine=False, momentum=0.5), nn.GELU())", "b, 2, l"),
    Model("nn.Sequential(nn.InstanceNorm1d(3, affine=True), nn.Conv1d(3, 2, 2), nn.SiLU())",
          "b, 3, 4"),
    Model("nn.BatchNorm1d(3, track_running_stats=False)", "b, 3"),
    Model("nn.Sequential(nn.Embedding(5, 4, padding_idx=1), nn.LayerNorm(4),"
          " nn.Linear(4, 2, bias=False))", "b, l", ints=True),
    Model("nn.LSTM(3, 2, num_layers=2, batch_first=True)", "b, l, 3"),
    Model("nn.GRU(3, 2, bidirectional=True)", "l, b, 3"),
    Model("nn.RNN(3, 2, nonlinearity='relu', bias=False)", "l, b, 3"),
    Model("nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)", "b, l, 4"),
    Model("Tied(5, 3)", "b, l", ints=True),
    Model("Own(3)", "b, 3"),
)  # fmt: skip
OPTIMIZERS = (
    "optim.SGD({P}, lr=0.1)", "optim.SGD({P}, lr=0.1, momentum=0.9, weight_decay=0.1)",
    "optim.SGD({P}, lr=0.05, momentum=0.5, nesterov=True)",
    "optim.Adam({P}, lr=0.05, eps=0.05)",
    "optim.Adam({P}, 0.05, betas=(0.5, 0.9), eps=0.1, weight_decay=0.1)",
    "optim.AdamW({P}, lr=0.05, eps=0.1, weight_decay=0.2)",
    "optim.RMSprop({P}, lr=0.02, eps=0.1, momentum=0.5)",
    "optim.SGD([{'params': {P}[:1], 'lr': 0.01}, {'params': {P}[1:]}], lr=0.1, momentum=0.5)",
    "optim.AdamW([{'params': {P}[1:]}, {'params': {P}[:1], 'weight_decay': 0.0}], eps=0.1)",
)  # fmt: skip
SCHEDULERS = (
    "StepLR(o0, 2, 0.5)", "ExponentialLR(o0, 0.75)", "CosineAnnealingLR(o0, 4)",
    "LinearLR(o0, 0.5, total_iters=3)", "LambdaLR(o0, lambda k: 1 / (k + 1))",
    "MultiStepLR(o0, [1, 3], 0.5)", "OneCycleLR(o0, 0.1, 400, cycle_momentum=False)",
)  # fmt: skip

TRAINING = templates(r"""
    {new} = {call}  back({call}.square().mean())  {new} = {call}; back({new}.abs().sum())
    o0.zero_grad(); back({loss}); o0.step()  o0.zero_grad(); back({loss}); o0.step()
    o0.zero_grad(); back({loss}); back({call}.sum() * 0.5); o0.step()
    o0.zero_grad(); back({loss}); clip(m0.parameters(), {K}); o0.step()
    o0.zero_grad(); back({loss}); {new} = clip(m0.parameters(), 0.5); o0.step()
    for step in range({K}):\n\to0.zero_grad()\n\tback({loss})\n\to0.step()
    o0.zero_grad(); {new} = {loss}; back({new}); o0.step(); {new} = {new}.detach()
    o0.zero_grad(); back(F.cross_entropy({call}.flatten(1), T.tensor([0]).expand(len({call}))));\
        o0.step()
    o0.step()  o0.zero_grad()  o0.zero_grad(set_to_none=False)  {M}.zero_grad()
    with T.no_grad():\n\t{new} = {call}
    {new} = {P}[{k}].grad.clone()  {new} = {P}[{k}].detach().clone()
    {new} = list({M}.state_dict().values())[{k}].clone()
    with T.no_grad():\n\tfor p in {M}.parameters():\n\t\tp *= {C}
    with T.no_grad():\n\tfor p in {M}.parameters():\n\t\tp -= 0.1 * p.grad\n\t\tp.grad = None
    with T.no_grad():\n\tfor p, q in zip(m0.parameters(), m1.parameters()):\n\t\tp.lerp_(q, 0.25)
    {new} = grad_of({loss}, *{P})[{k}]  {new} = grad_of({call}.square().sum(), {f})[0]
    {new} = sum(g.square().sum() for g in further({loss}, *{P})); {new}.backward()
    {new} = further({call}.square().sum(), {l})[0]; back({new}.square().sum())
    {new} = T.cat([p.detach().flatten() for p in {M}.parameters()])
    {new} = sum(p.square().sum() for p in {M}.parameters()); back({new} * 0.1)
    {P}[{k}].data.mul_({C})  {P}[{k}].grad = None  {P}[{k}].grad *= 0.5
""")

CHANGES = templates(r"""
    {M}.train()  {M}.eval()  {M}.train({B})  {M}.requires_grad_({B})  s0.step()  s0.step()
    {P}[{k}].requires_grad_({B})  saved = copy.deepcopy(m0.state_dict())  m0.load_state_dict(saved)
    m0.load_state_dict(m1.state_dict())  kept = copy.deepcopy(o0.state_dict())
    o0.load_state_dict(kept)  o0.load_state_dict(copy.deepcopy(o0.state_dict()))
    m0 = copy.deepcopy(m0)  m1 = copy.deepcopy(m0)  o0.param_groups[0]["lr"] *= 0.5
    for group in o0.param_groups:\n\tgroup["lr"] = 0.02
    o0.param_groups[0]["weight_decay"] = 0.05  o0.param_groups[-1]["momentum"] = 0.25
    hook = {M}.register_forward_hook(lambda m, i, o: o * 0.5 if hasattr(o, "dim") else None)
    hook = {M}.register_forward_pre_hook(lambda m, i: (i[0] * 2,))
    hook.remove()  {M}.apply(halve)  {M}[-1].register_forward_hook(lambda m, i, o: o + 1)
    {M}.weight = nn.Parameter({M}.weight.detach() * 0.5)  {M}.bias = None
    {M}[0].weight = nn.Parameter({M}[0].weight.detach() * 0.5)  {M}[-1] = nn.Sigmoid()
    {M}[0].bias = nn.Parameter(T.ones({M}[0].bias.shape))
    {M}.append(nn.Tanh())  {M}[1].p = 0.0  {M}[1].momentum = 0.25  {M}[1].eps = 0.5
    {M}.scale = 2.0  {M}.scale = {K}  {M}.extra = not {M}.extra
    {M}.layers.append(filled(nn.Linear(3, 3, bias=False), 2))
    {M}.seen = T.zeros(3)  {M}.seen.fill_(1)
    o0 = optim.SGD([p for p in {M}.parameters() if p.requires_grad], lr=0.05)
    o0 = optim.Adam({P}, lr=0.02, eps=0.1)
    {new} = sum(p.numel() for p in {M}.parameters())  {new} = [*{M}.state_dict()]
    {new} = [n for n, p in {M}.named_parameters() if p.requires_grad]
    {new} = o0.param_groups[-1]["lr"]  {new} = s0.get_last_lr()[0]  {new} = {M}.training
    try:\n\t{M}(T.ones(7, 7, 7, 7, 7, 7))\nexcept Exception:\n\tpass
    with T.no_grad():\n\t{P}[{k}].copy_({P}[{k}].flip(0))
    with T.no_grad():\n\t{P}[{k}][0] = 0.25
""")

GROUPS = (
    Group(12, TRAINING, makes_value=False),
    Group(6, CHANGES, makes_value=False, captured=False),
)


def setup_of(draw: random.Random) -> tuple[tuple[str, ...], dict[str, Model]]:
    """The lines that create models, an optimizer and a scheduler; and the models by name."""
    models = {"m0": draw.choice(MODELS)}
    models["m1"] = draw.choice((models["m0"], draw.choice(MODELS)))
    lines = [f"{name} = filled({model.text}, {n})" for n, (name, model) in
             enumerate(models.items())]  # fmt: skip
    params = "list(m0.parameters())" if draw.random() < 0.8 else \
        "[*m0.parameters(), *m1.parameters()]"  # fmt: skip
    lines.append(f"o0 = {draw.choice(OPTIMIZERS)}".replace("{P}", params))
    lines.append(f"s0 = optim.lr_scheduler.{draw.choice(SCHEDULERS)}")
    return tuple(lines), models


def call_of(draw: random.Random, name: str, model: Model) -> str:
    """A call with an input of a random batch size and length: text with holes."""
    shape = re.sub("b", str(draw.choice((1, 2, 3, 3, 5))), model.shape)
    shape = re.sub("l", str(draw.choice((1, 2, 2, 4))), shape)
    given = f"idx(fit({{i}}, {shape}), 5)" if model.ints else f"fit({{f}}.float(), {shape})"
    if "MaxPool" in model.text:  # equal elements share the gradient here, not in PyTorch
        given += " + T.arange(32).reshape(2, 4, 4).float().sin()"
    return f"first({name}({given}))"
