"""The numbers that are not trained, but chosen before training begins."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from minigrad.models.gpt_config import GPTConfig
from minigrad.models.lessons.page import Page, alone
from minigrad.models.lessons.shared import learn, plays
from minigrad.models.sizing import parameters
from minigrad.models.train import TrainingPlan, parameter_count, validate

TITLE = "Hyperparameters"
SECTIONS = ("Hyperparameters",)
RATE = 3e-3


@dataclass(frozen=True)
class Run:
    """What came of a training: loss on new text, parameters, milliseconds of a quick step.

    (A tenth of the steps are quicker: the others may have shared the machine with somebody.)
    """

    loss: float
    parameters: int
    milliseconds: float


def train(config: GPTConfig, plan: TrainingPlan) -> Run:
    """Learn from Shakespeare's plays, and validate on what was held back."""
    texts = plays(config.context)
    whole = replace(config, vocabulary=len(texts.tokenizer))
    model, times = learn(whole, plan, texts.training)
    loss = validate(model, texts.validation, 96, 48)
    return Run(loss, parameter_count(model), sorted(times)[len(times) // 10])


def lesson(page: Page) -> None:
    """The lesson."""
    page.say("""
        Weights and biases are found by training. Other numbers must be chosen before training: how
        long a vector is, how many layers there are, how large a step is. They are not trained; they
        are the rules of the game, and so they are called **hyperparameters**.

        There is no formula for them. People start with what worked for others, change one thing
        at a time, and look. We do the same: a tiny GPT learns to write like Shakespeare, character
        by character. These are its hyperparameters.
    """)
    layers = page.pick(2, 1)
    start = GPTConfig(layers=layers, heads=2, dim=32, context=32)
    plan = TrainingPlan(steps=page.pick(300, 30), batch=16, lr=RATE, warmup=10)
    changed: dict[str, tuple[Any, Any, GPTConfig, TrainingPlan]] = {
        "length of a word's vector": (32, 64, replace(start, dim=64), plan),
        "layers": (layers, 2 * layers, replace(start, layers=2 * layers), plan),
        "neurons inside the FFN": (128, 256, replace(start, feed_forward=256), plan),
        "heads of attention": (2, 4, replace(start, heads=4), plan),
        "context": (32, 64, replace(start, context=64), plan),
        "step size (learning rate)": (RATE, 2 * RATE, start, replace(plan, lr=2 * RATE)),
        "batch": (16, 32, start, replace(plan, batch=32)),
        "activation function": ("gelu", "swiglu", replace(start, activation="swiglu"), plan),
    }
    if page.quick:  # those that the checks are about, and one that makes the model larger
        some = ("length of a word's vector", "heads of attention", "step size (learning rate)",
                "batch")  # fmt: skip
        changed = {name: changed[name] for name in some}
    page.table(["hyperparameter", "value"],
               [[name, before] for name, (before, *_) in changed.items()])  # fmt: skip

    page.say(f"""
        Now each of them is doubled (the activation function is exchanged), one after the other, and
        the model learns from the start, {plan.steps} steps each time. The **loss** is on text that
        it did not learn from; a difference of a few hundredths may be chance.
    """)
    base = train(start, plan)
    runs = {name: train(config, other) for name, (_, _, config, other) in changed.items()}
    rows = [["unchanged", "", base.loss, base.parameters, base.milliseconds]]
    rows += [[name, f"{before} → {after}", runs[name].loss, runs[name].parameters,
              runs[name].milliseconds] for name, (before, after, *_) in changed.items()]
    page.table(["changed", "from → to", "loss", "parameters", "ms per step"], rows)
    same = [name for name in ("heads of attention", "step size (learning rate)", "batch")
            if runs[name].parameters == base.parameters]  # fmt: skip
    page.check("heads, learning rate and batch do not change the parameter count", len(same) == 3,
               f"{base.parameters:,} as before")  # fmt: skip
    counted = parameters(replace(start, vocabulary=len(plays(32).tokenizer))).total
    page.check("the formula for the number of parameters is right", counted == base.parameters,
               f"{counted:,}")  # fmt: skip

    page.say("""
        What to learn from it: some changes cost parameters and time, some cost nothing and help or
        harm. And what helps a model of this size in a few steps is not what helps GPT-3. The search
        for good hyperparameters takes a large part of the work, and of the electricity.
    """)
    everything = {"unchanged": base, **runs}
    page.widget("hyper", "Choose what is doubled, and compare.",
                {"names": list(everything), "loss": [r.loss for r in everything.values()],
                 "parameters": [r.parameters for r in everything.values()],
                 "milliseconds": [r.milliseconds for r in everything.values()]},
                [({"choose": i}, [r.loss / base.loss, r.parameters / base.parameters,
                                  r.milliseconds / base.milliseconds], 1e-9)
                 for i, r in enumerate(everything.values())])  # fmt: skip


if __name__ == "__main__":
    alone(lesson)
