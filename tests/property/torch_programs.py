"""Random imperative programs that run unchanged in PyTorch and here.

    python -m tests.property.torch_programs --seed 17 --device REF      one program, in full
    python -m tests.property.torch_programs --count 500 --device REF    many, with statistics

A program is a list of statements (see `torch_statements`): views and writes through them, dtypes,
sorts, losses, gradients, loops, values read in the middle. PyTorch runs each statement when it is
drawn. A statement that raises there is drawn again; a few are kept, and must raise here, too. The
program then runs here in three modes: as it is; with all values computed after each statement; and
as a step of `@jit`, called with other inputs each time, whose caller writes to what it returned.

Inputs have few digits, so most values are exact; only exact ones are compared, sorted and rounded.
A failure is shrunk: statements are dropped as long as it stays.
"""

from __future__ import annotations

import copy
import random
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cache
from itertools import count
from typing import Any

import numpy as np

from minigrad import Context, Tensor, dtypes, jit, nn
from minigrad.errors import JitError

from .command import parser_of, run_command
from .torch_models import CHANGES, TRAINING, Model, call_of, setup_of
from .torch_models import GROUPS as MODEL_GROUPS
from .torch_statements import ERRORS, FINITE, GROUPS, HERE, MIXING, READING, ROUGH, SHAPES

Names = dict[str, Any]
DTYPES = ("float32",) * 6 + ("int64", "int64", "int32", "bool", "float64", "float16", "uint8")
MODES = ("lazy", "step", "jit")
INPUTS, CALLS = 6, 4
MOST, LARGEST = 300, {"float16": 200.0}  # elements of a value, and its largest number
ATTEMPTS = 40  # at a statement that PyTorch accepts
HOLE = re.compile(r"\{([a-zA-Z]+)(\d?)\}")
NAME = re.compile(r"\b[iv]\d+\b")
CHOICES: dict[str, tuple[Any, ...]] = {
    "d": (0, 0, -1, -1, 1, 2, -2), "D": ("0", "-1", "(0, 1)", "(0, -1)", "1", "(1, 2)", "(-2,)"),
    "c": (2, -3, 0.5, 1, -1.5, 0, 3, 0.25, -1), "C": (0.5, -0.5, 1.5, 2, -1, 0.25),
    "k": (0, 1, 1, 2, 3, -1, -2), "K": (1, 2, 3), "B": (True, False), "q": ("mean", "sum", "none"),
    "t": ("float32", "float64", "int64", "int32", "float16", "bool", "uint8", "int8", "int16"),
    "p": ("-1", "2, -1", "-1, 3", "1, -1", "-1, 2, 3", "3, -1", "2, 2, -1", "-1, 1", "4, -1"),
    "s": ("0", "-1", "1:", ":-1", "::2", "..., 0", "..., 1:", ":, 1", "None", ":, ::2", "1", ":1",
          "..., None", ":, None", "0:0", "-2:", ":, -1:", "1::2", "..., ::3", "None, ..., 0"),
}  # fmt: skip


# ---- the names that programs use -----------------------------------------------------------------


class Ours:
    """`torch` as minigrad spells it."""

    def __getattr__(self, name: str) -> Any:
        if name == "tensor":
            return Tensor
        places = (dtypes, Tensor, nn.functional)
        return next(getattr(place, name) for place in places if hasattr(place, name))


def _common(T: Any, nn: Any) -> Names:
    """Helpers, which run in either library."""

    def fit(x: Any, *shape: int) -> Any:
        """The elements of x, repeated, in another shape."""
        if x.numel() == 0:
            return T.ones(*shape, dtype=x.dtype)
        size = int(np.prod(shape))
        return x.flatten().repeat(size // x.numel() + 1)[:size].reshape(*shape).clone()

    def idx(x: Any, n: int) -> Any:
        """The elements of x as positions below n."""
        return x.long() % max(n, 1)

    def filled(module: Any, number: int) -> Any:
        """The module in training mode, with weights that are the same in both libraries."""
        with T.no_grad():
            for place, own in enumerate(module.state_dict().values()):
                values = (np.arange(own.numel()) * 5 + 7 * place + number) % 11 / 8 - 0.625
                if own.is_floating_point():
                    own.copy_(T.tensor(values.tolist()).reshape(*own.shape))
        return module.train()

    def halve(module: Any) -> None:
        """Halve the module's weight, if it has one."""
        if getattr(module, "weight", None) is not None:
            module.weight.data.mul_(0.5)

    class Tied(nn.Module):  # type: ignore[misc]
        """A language model whose table of vectors is also its last layer."""

        def __init__(self, classes: int, width: int) -> None:
            super().__init__()
            self.table = nn.Embedding(classes, width)
            self.out = nn.Linear(width, classes, bias=False)
            self.out.weight = self.table.weight

        def forward(self, x: Any) -> Any:
            return self.out(self.table(x).tanh())

    class Own(nn.Module):  # type: ignore[misc]
        """A list of layers, a parameter, a buffer that training changes, and options."""

        def __init__(self, width: int) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(width, width), nn.Tanh()])
            self.weight = nn.Parameter(T.ones(width))
            self.register_buffer("seen", T.zeros(width))
            self.scale, self.extra = 1.0, False

        def forward(self, x: Any) -> Any:
            x = x * self.weight * self.scale
            for layer in self.layers:
                x = layer(x)
            if self.training:
                self.seen += x.detach().sum(0)
            return x + self.seen * 0.1 if self.extra else x

    return {
        "T": T, "nn": nn, "fit": fit, "idx": idx, "inf": float("inf"), "nan": float("nan"),
        "np": np, "copy": copy, "filled": filled, "halve": halve, "Tied": Tied, "Own": Own,
        "first": lambda value: value[0] if isinstance(value, tuple) else value,
    }  # fmt: skip


def _theirs() -> Names:
    import torch

    return {
        **_common(torch, torch.nn), "F": torch.nn.functional, "optim": torch.optim,
        "clip": torch.nn.utils.clip_grad_norm_,
        "further": lambda loss, *by: torch.autograd.grad(loss, by, create_graph=True),
        "back": lambda loss: loss.backward(retain_graph=True),
        "grad_of": lambda loss, *by: torch.autograd.grad(loss, by, retain_graph=True),
        "pair": lambda x, dim, most: tuple(x.max(dim) if most else x.min(dim)),
        "median": lambda x, dim: x.median(dim)[0],
    }  # fmt: skip


def _ours() -> Names:
    return {
        **_common(Ours(), nn), "F": nn.functional, "optim": nn.optim,
        "clip": nn.utils.clip_grad_norm_,
        "further": lambda loss, *by: loss.gradient(*by),
        "back": lambda loss: loss.backward(),
        "grad_of": lambda loss, *by: [grad.detach() for grad in loss.gradient(*by)],
        "pair": lambda x, dim, most: x.max_with_indices(dim) if most else x.min_with_indices(dim),
        "median": lambda x, dim: x.median(dim),
    }  # fmt: skip


# ---- kinks of functions --------------------------------------------------------------------------

BENT = {"relu", "relu_", "leaky_relu", "leaky_relu_", "_prelu_kernel", "abs"}
NORMALIZING = {"native_batch_norm", "_native_batch_norm_legit", "native_layer_norm",
               "native_group_norm", "_native_batch_norm_legit_no_training"}  # fmt: skip
NEAR = 1e-4


@cache
def _careful() -> AbstractContextManager[Any]:
    """While it is entered, PyTorch raises where rounding decides what the result is.

    A layer that gives 0 with exact arithmetic, as a normalization often does, gives ±10⁻⁸ with
    rounding, and a ReLU of that has the slope 0 or 1. And the normalization of a batch of equal
    numbers divides their rounding errors by almost nothing. Neither library is wrong then.
    """
    from torch.utils._python_dispatch import TorchDispatchMode

    class Careful(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any, kwargs: Any = None) -> Any:
            result, name = func(*args, **(kwargs or {})), func._overloadpacket.__name__
            x = args[0] if name in BENT or name in NORMALIZING else None
            if x is None or not x.is_floating_point() or not x.numel():
                return result
            if name in BENT and (x.abs() < NEAR).any():
                raise ArithmeticError("rounding decides: a bent function is near 0")
            # the result's error: that of x, times the reciprocal of the deviation
            if name in NORMALIZING and result[2].numel():
                if x.abs().max() * result[2].max() * 2**-23 > NEAR:
                    raise ArithmeticError("rounding decides: a normalization of equal numbers")
            return result

    guard: AbstractContextManager[Any] = Careful()
    return guard


def perform(statement: Statement, names: Names) -> None:
    """Execute it. One that runs a model raises in PyTorch if rounding decides what it gives."""
    with _careful() if statement.template in TRAINING else nullcontext():
        exec(statement.text, names)


# ---- programs ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Statement:
    """text: one line or several. raises: in PyTorch. captured: whether `@jit` accepts it."""

    text: str
    template: str
    captured: bool
    raises: bool = False


@dataclass(frozen=True)
class Program:
    """inputs: dtype and shape of each. graded: floats require gradients. odd: there are NaNs.

    setup: lines that create models, outside of a captured step. changes: lines between its calls.
    """

    seed: int
    inputs: tuple[tuple[str, tuple[int, ...]], ...]
    graded: bool
    odd: bool
    statements: tuple[Statement, ...] = ()
    setup: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()

    def arrays(self, variant: int) -> list[np.ndarray]:
        """Values of the inputs, multiples of ⅛; without ties where there are gradients."""
        draw = np.random.default_rng((self.seed, variant))
        found = []
        for dtype, shape in self.inputs:
            size = int(np.prod(shape))
            values = draw.integers(0 if dtype == "uint8" else -5, 6, size).astype(np.float64)
            if dtype.startswith("float"):
                values = draw.permutation(np.arange(-size, size) + 0.5)[:size] / 4
                values = values if self.graded else np.round(values * 2) / 4
                if self.odd and size:
                    for value in (np.nan, np.inf, -np.inf, -0.0):
                        values[draw.integers(0, size)] = value
            found.append(values.astype(dtype).reshape(shape))
        return found

    def leaf(self, number: int) -> bool:
        """Whether an input requires a gradient."""
        return self.graded and self.inputs[number][0].startswith("float")

    def theirs(self, variant: int = 0) -> Names:
        """The inputs in PyTorch."""
        import torch

        return {f"i{n}": torch.from_numpy(a.copy()).requires_grad_(self.leaf(n))
                for n, a in enumerate(self.arrays(variant))}  # fmt: skip

    def ours(self, variant: int = 0) -> Names:
        """The inputs here."""
        return {f"i{n}": Tensor(a, requires_grad=True if self.leaf(n) else None)
                for n, a in enumerate(self.arrays(variant))}  # fmt: skip

    def start(self, names: Names, inputs: Names) -> Names:
        """The names at the program's start."""
        names = {**names, **inputs}
        for line in self.setup:
            exec(line, names)
        return names

    def __str__(self) -> str:
        used = {name for s in self.statements for name in NAME.findall(s.text)}
        lines = [
            f"i{n} = T.tensor({a.tolist()}, dtype=T.{a.dtype}"
            + (", requires_grad=True)" if self.leaf(n) else f").reshape{a.shape}")
            for n, a in enumerate(self.arrays(0)) if f"i{n}" in used
        ]  # fmt: skip
        lines += self.setup
        lines += [s.text + "  # raises" * s.raises for s in self.statements]
        lines += [f"# between calls: {text}" for text in self.changes]
        return "\n".join([f"# seed {self.seed}", *lines])


def _values(names: Names) -> Names:
    """A program's variables, and the gradients of its inputs."""
    found = {name: value for name, value in names.items() if NAME.fullmatch(name)}
    held = {name: value for name, value in found.items() if name[0] == "i"}
    for name in ("m0", "m1"):
        if name in names:
            found |= {f"{name}.{key}": own for key, own in names[name].state_dict().items()}
            held |= {f"{name}.{key}": own for key, own in names[name].named_parameters()}
    grads = {name: getattr(value, "grad", None) for name, value in held.items()}
    return found | {f"{name}.grad": grad for name, grad in grads.items() if grad is not None}


class Maker:
    """Draws one program, and runs it in PyTorch."""

    def __init__(self, seed: int) -> None:
        self.random = draw = random.Random(seed)
        kinds = ["float32", "int64", *(draw.choice(DTYPES) for _ in range(INPUTS - 2))]
        inputs = tuple((kind, draw.choice(SHAPES)) for kind in kinds)
        graded = draw.random() < 0.35
        odd = not graded and draw.random() < 0.2
        setup, self.models = (), dict[str, Model]()
        if not odd and draw.random() < 0.5:
            setup, self.models = setup_of(draw)
        self.groups = (*GROUPS, *MODEL_GROUPS) if setup else GROUPS
        self.program = Program(seed, inputs, graded, odd, setup=setup)
        self.names = self.program.start(_theirs(), self.program.theirs())
        self.rough: set[int] = set()  # memory whose values are rounded
        self.new = (f"v{n}" for n in count())

    def used(self, text: str) -> list[Any]:
        """The tensors in a statement."""
        found = (self.names.get(name) for name in dict.fromkeys(NAME.findall(text)))
        return [value for value in found if hasattr(value, "dim")]

    def exact(self, value: Any) -> bool:
        """Whether a value is the same in both libraries, so that comparisons of it are, too."""
        if not value.is_floating_point():
            return True
        if value.untyped_storage().data_ptr() in self.rough:
            return False
        numbers = value.detach().double().numpy()
        numbers = numbers[np.isfinite(numbers)]
        step, most = (4, 64) if value.element_size() == 2 else (64, 4096)
        return bool((numbers * step % 1 == 0).all() and (abs(numbers) < most).all())

    def fits(self, kind: str, value: Any) -> bool:
        """Whether a tensor may fill a hole: see `torch_statements`."""
        floats, name = value.is_floating_point(), str(value.dtype)
        if kind in "eh":
            return self.exact(value) and (kind == "e" or floats)
        return {
            "x": True, "f": floats, "n": name not in ("torch.bool", "torch.uint8"),
            "m": name == "torch.bool", "i": name in ("torch.int64", "torch.int32"),
            "l": floats and value.requires_grad and not value._is_view() and value.is_leaf,
        }[kind]  # fmt: skip

    def fill(self, kind: str) -> str:
        """Text for a hole."""
        if kind in CHOICES:
            return str(self.random.choice(CHOICES[kind]))
        if kind == "loss":
            return " + ".join(f"{self.fill('call')}.square().mean()"
                              for _ in range(self.random.choice((1, 1, 2))))  # fmt: skip
        if kind in ("M", "P", "call"):
            name = self.random.choice([*self.models])
            if kind == "call":
                text = call_of(self.random, name, self.models[name])
                return HOLE.sub(lambda match: self.fill(match[1]), text)
            return name if kind == "M" else f"list({name}.parameters())"
        tensors = {n: v for n, v in _values(self.names).items() if hasattr(v, "dim")}
        found = [n for n, v in tensors.items() if "." not in n and self.fits(kind, v)]
        if not found:
            return {"m": "(i1 > 0)", "h": "i1.float()"}.get(kind, "i1")
        return self.random.choice(found[-8:] if self.random.random() < 0.5 else found)

    def draw(self) -> Statement:
        """A statement, which PyTorch may refuse."""
        (group,) = self.random.choices(self.groups, [group.weight for group in self.groups])
        template = self.random.choice(group.templates)
        filled: dict[str, str] = {}

        def hole(match: re.Match[str]) -> str:
            if match[0] not in filled:
                filled[match[0]] = next(self.new) if match[1] == "new" else self.fill(match[1])
            return filled[match[0]]

        text = HOLE.sub(hole, template)
        text = f"{next(self.new)} = {text}" if group.makes_value else text
        return Statement(text, template, group.captured and not re.search(READING, template))

    def differs(self, statement: Statement) -> bool:
        """Whether the libraries differ by design: see differences.md."""
        used = self.used(statement.text)
        kinds = {(v.is_floating_point(), v.dtype) for v in used}
        floats = {kind for kind, _ in kinds}
        mixes = len(kinds) > len(floats) or re.search(MIXING, statement.template)
        points = mixes and any(v.dim() == 0 for v in used)  # promotion
        points = points or (
            "np.float32(" in statement.template and any(v.dtype.itemsize == 2 for v in used)
        )
        wraps = re.search(r"-\d", statement.text) and any(v.dtype.itemsize == 1 for v in used)
        writes = not re.match(r"v\d+ = ", statement.text) and len(floats) > 1
        odd = self.program.odd and (writes or re.search(FINITE, statement.template))
        # NaN and infinity as integers
        odd = odd or (writes and not all(v.isfinite().all() for v in used))
        return bool(points or wraps or odd)

    def step(self) -> None:
        """Add a statement."""
        for _ in range(ATTEMPTS):
            statement = self.draw()
            if self.differs(statement):
                continue
            try:
                perform(statement, self.names)
            except Exception as error:
                if self.random.random() < 0.02 and not re.search(ERRORS, str(error)):
                    statement = replace(statement, raises=True, captured=False)
                    self.take(statement)
                    return
            else:
                if self.keeps(statement):
                    self.take(statement)
                    return
            self.restart()  # it may have written

    def take(self, statement: Statement) -> None:
        """Add a statement to the program."""
        kept = (*self.program.statements, statement)
        self.program = replace(self.program, statements=kept)

    def restart(self) -> None:
        """Run the program again from the start."""
        self.names, self.rough = self.program.start(_theirs(), self.program.theirs()), set()
        for statement in self.program.statements:
            with suppress(Exception):
                perform(statement, self.names)
            self.keeps(statement)

    def keeps(self, statement: Statement) -> bool:
        """False for a statement whose values are too large; else note which are rounded."""
        used = self.used(statement.text)
        for value in used:
            name, numbers = str(value.dtype)[6:], value.detach().numpy()
            finite = numbers[np.isfinite(numbers)]
            most = LARGEST.get(name, 1e4) if value.is_floating_point() else np.inf
            if value.numel() > MOST or (finite.size and abs(finite).max() > most):
                return False
        states = _values({name: self.names.get(name) for name in self.models})
        if any(not own.abs().max() <= 50 for own in states.values() if own.is_floating_point()):
            return False
        memory = {v.untyped_storage().data_ptr() for v in used if v.is_floating_point()}
        if statement.template in (*ROUGH, *TRAINING, *CHANGES) or memory & self.rough:
            self.rough |= memory - {0}  # 0: no elements
        return True


def make_program(seed: int) -> Program:
    """The program of a seed."""
    maker = Maker(seed)
    for _ in range(maker.random.randint(8, 35)):
        maker.step()
    return maker.program


# ---- running and comparing -----------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """kind: it raises here, answers here, or differs. at: the statement, or −1."""

    kind: str
    mode: str
    at: int
    what: str


def run(program: Program, names: Names, realized: bool = False) -> list[str]:
    """Run all statements; the error of each, or ""."""
    errors = []
    for statement in program.statements:
        error = ""
        try:
            perform(statement, names)
            if realized:
                Tensor.realize(*(v for v in _values(names).values() if isinstance(v, Tensor)))
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
        errors.append(error)
    return errors


def _array(value: Any) -> np.ndarray:
    return np.asarray(value.detach().numpy() if hasattr(value, "detach") else value)


def _is_half(value: Any) -> bool:
    return _array(value).dtype == np.float16 if hasattr(value, "detach") else False


def unlike(found: Any, wanted: Any, share: float, noise: float = 0.0) -> str | None:
    """How our value differs from PyTorch's by more than a share of the largest number, or None.

    noise: a difference that is allowed in any case.
    """
    if isinstance(wanted, (tuple, list)) and len(found) == len(wanted):
        each = (unlike(f, w, share) for f, w in zip(found, wanted, strict=True))
        return next(filter(None, each), None)
    if isinstance(found, Tensor) is not hasattr(wanted, "detach"):
        return f"{type(found)} instead of {type(wanted)}"
    f, w = _array(found), _array(wanted)
    if w.dtype.kind in "OU":  # None, or names
        return None if found == wanted else f"{found} instead of {wanted}"
    if (f.dtype, f.shape) != (w.dtype, w.shape):
        return f"{f.dtype} {f.shape} instead of {w.dtype} {w.shape}"
    bound = 0.0
    if w.dtype.kind == "f":
        largest = np.abs(w[np.isfinite(w)], dtype=np.float64).max(initial=1)
        bound = max(share * largest, noise)
        f, w = f.astype(np.float64), w.astype(np.float64)
    same = np.allclose(f, w, rtol=0, atol=bound, equal_nan=True)
    return None if same else f"{f.tolist()} instead of {w.tolist()}"


def _noise(values: Names) -> dict[str, float]:
    """By model, what rounding leaves of gradients that cancel: a bias before a normalization."""
    largest: dict[str, float] = {}
    for name, value in values.items():
        if name.startswith("m") and name.endswith(".grad"):
            own = float(np.abs(_array(value)).max(initial=0))
            largest[name[:2]] = max(largest.get(name[:2], 0.0), own if np.isfinite(own) else 0.0)
    return {model: most * 2**-20 for model, most in largest.items()}


def _difference(found: Names, wanted: Names) -> str | None:
    """The first variable that differs, and how."""
    # a number may have been rounded to 11 bits before it became a float64
    share = 3e-2 if any(map(_is_half, wanted.values())) else 1e-3
    noise = _noise(wanted)
    for name, value in wanted.items():
        if name in found:
            least = noise.get(name[:2], 0.0) if name.endswith(".grad") else 0.0
            if different := unlike(found[name], value, share, least):
                return f"{name}: {different}"
        elif not name.endswith(".grad") or _array(value).any():  # None may stand for zeros
            return f"{name} is missing"
    return None


def check(program: Program, mode: str, device: str) -> Finding | None:
    """Run a program here; what differs from PyTorch."""
    theirs = program.start(_theirs(), program.theirs())
    wanted = run(program, theirs)
    with Context(DEVICE=device):
        try:
            if mode == "jit":
                different = captured(program, theirs)
            else:
                ours = program.start(_ours(), program.ours())
                errors = run(program, ours, mode == "step")
                for at, (mine, its) in enumerate(zip(errors, wanted, strict=True)):
                    if bool(mine) is not bool(its):
                        return Finding("raises" if mine else "answers", mode, at, mine or its)
                different = _difference(_values(ours), _values(theirs))
        except Exception as error:
            return Finding("raises", mode, -1, f"{type(error).__name__}: {error}")
    return None if different is None else Finding("differs", mode, -1, different)


def captured(program: Program, theirs: Names) -> str | None:
    """A difference of the program as a captured step, called with other inputs each time.

    theirs: what it computes in PyTorch. A step that may not be captured must say so: JitError.
    """
    names = [f"i{n}" for n in range(len(program.inputs))]
    made, its = program.start(_ours(), {}), program.start(_theirs(), {})
    lines = [f"{name}.grad = None" for n, name in enumerate(names) if program.leaf(n)]
    lines += [line for s in program.statements for line in s.text.splitlines()]
    results = [n for n, v in theirs.items() if re.fullmatch(r"v\d+", n) and hasattr(v, "dim")]
    body = "\n    ".join([*lines, f"return {', '.join(results)}{',' * bool(results)}"])
    exec(f"def step({', '.join(names)}):\n    {body}", made)
    step, before = jit(made["step"]), None
    models = [name for name in ("m0", "m1") if name in made]
    for variant in range(CALLS + len(program.changes)):
        if variant >= CALLS - 1:
            for line in program.changes[variant - CALLS + 1 :][:1]:
                exec(line, its)
                exec(line, made)
        inputs = program.theirs(variant)
        its |= inputs
        if any(run(program, its)):
            if program.setup:
                return None
            continue
        wanted = _values({name: its[name] for name in (*results, *models)} | inputs)
        given = program.ours(variant)
        try:
            try:
                values = step(*given.values())
            except JitError as error:
                if not step.captured or "did its work" in str(error):
                    raise
                COUNTED[f"captured again: {str(error)[:40]}"] += 1
                step.reset()
                values = step(*given.values())
        except JitError as error:
            COUNTED[f"not captured: {str(error)[:40]}"] += 1
            return None
        found = dict(zip(results, values or (), strict=True))
        ours = found | given | {name: made[name] for name in models}
        different = _difference(_values(ours), wanted)
        if different is None and before is not None:
            different = _difference(*before)
        if different is not None:
            return f"call {variant}: {different}"
        before = found, {name: wanted[name] for name in results}
        if variant == CALLS - 2:  # the caller's, and nobody else's
            before = None
            with Tensor.no_grad():
                for value in found.values():
                    value.zero_()
    return None


def without(program: Program, at: int) -> Program:
    """The program without a statement, and without those that then end otherwise in PyTorch."""
    kept = (*program.statements[:at], *program.statements[at + 1 :])
    smaller = replace(program, statements=kept)
    errors = run(smaller, smaller.start(_theirs(), smaller.theirs()))
    same = [s for s, error in zip(kept, errors, strict=True)
            if bool(error) is s.raises and not error.startswith("NameError")]  # fmt: skip
    return replace(smaller, statements=tuple(same))


def shrink(program: Program, found: Finding, device: str) -> tuple[Program, Finding]:
    """Drop statements as long as the same kind of finding stays."""
    for at in reversed(range(len(program.statements))):
        if at < len(program.statements):
            smaller = without(program, at)
            again = check(smaller, found.mode, device)
            if again and (again.kind, again.what[:20]) == (found.kind, found.what[:20]):
                program, found = smaller, again
            elif again and again.kind == found.kind == "differs":
                program, found = smaller, again
    return program, found


def findings(seed: int, device: str) -> Iterator[tuple[Program, Finding]]:
    """What differs in the program of a seed, and the smallest program that shows it.

    Statements with known errors are dropped, and the rest runs again.
    """
    program = make_program(seed)
    for mode in MODES:
        if mode == "jit":
            program = replace(
                program, statements=tuple(s for s in program.statements if s.captured),
                changes=tuple(s.text for s in program.statements if s.template in CHANGES
                              and not s.raises and not NAME.search(s.text))[:4],
            )  # fmt: skip
            program = without(program, len(program.statements))
        while (found := check(program, mode, device)) is not None:
            template = program.statements[found.at].template if found.at >= 0 else ""
            known = re.search(HERE, f"{found.kind}: {template}: {found.what}")
            COUNTED[f"known: {known[0]}" if known else found.kind] += 1
            if not known:
                yield shrink(program, found, device)
            if found.at < 0:
                break
            program = without(program, found.at)


COUNTED: Counter[str] = Counter()


def failure_of(seed: int, device: str) -> str | None:
    """The findings of a seed's program as text, or None."""
    texts = [f"seed {seed}, {found.mode}: {found.kind} at {found.at}: {found.what}\n{program}\n"
             for program, found in findings(seed, device)]  # fmt: skip
    return "\n".join(texts) or None


def main() -> None:
    """The command."""
    given = parser_of("torch_programs", __doc__).parse_args()
    run_command(
        given, "programs", lambda seed: str(make_program(seed)),
        lambda seed: failure_of(seed, given.device), lambda: print(dict(COUNTED)),
    )  # fmt: skip


if __name__ == "__main__":
    main()
