"""Run programs by other people with PyTorch, and after a sed with minigrad: losses, weights, times.

    python -m tests.programs.run FOLDER [NAME …]

FOLDER has the programs' sources (README.md says where they are from). The original's run is
recorded on a tape: its first weights, and every random number that it drew. The port takes both
from the tape, and its losses are compared. Times are of two more runs without the tape, in which
each draws its own numbers: recording and replaying take Python time at every operation of PyTorch,
also when data is loaded.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections import defaultdict, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch._dynamo  # before its imports get stand-ins below
from torch.utils._python_dispatch import TorchDispatchMode

from minigrad import Tensor

from .catalogue import PROGRAMS, Program

HERE = Path(__file__).resolve().parent
STEPS = 20
DRAWS = {"bernoulli", "bernoulli_", "multinomial", "normal_", "rand", "randint", "randn",
         "randn_like", "random_", "randperm", "uniform_"}  # fmt: skip


class Over(BaseException):
    """Raised after enough steps."""


class Tape:
    """The original's random numbers, in order, by kind and shape; and its weights."""

    def __init__(self) -> None:
        self.drawn: dict[tuple[str, tuple[int, ...]], deque[np.ndarray]] = defaultdict(deque)
        self.weights: dict[str, np.ndarray] = {}

    def next(self, kind: str, shape: tuple[int, ...]) -> np.ndarray:
        """The next number, or array, of a kind and shape."""
        if not self.drawn[kind, shape]:
            raise AssertionError(f"the original drew no more {kind} of shape {shape}")
        return self.drawn[kind, shape].popleft()


class Recording(TorchDispatchMode):
    """Records every random number that PyTorch draws on the tape."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in DRAWS:
            self.tape.drawn[name, tuple(out.shape)].append(out.detach().clone().numpy())
        return out


class Replaying(Recording):
    """Replaces what a port still draws with PyTorch, for its data, by the tape's numbers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in DRAWS:
            return func(*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        with torch.no_grad():
            out.copy_(torch.from_numpy(self.tape.next(name, tuple(out.shape))))
        return out


class Hands:
    """Replaces the random methods of Tensor by numbers from the tape.

    A captured step reads them from the same tensors each time, so these are filled before each
    step.
    """

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self.held: list[tuple[str, tuple[int, ...], Tensor]] = []
        self.place = 0

    def take(self, kind: str, shape: tuple[Any, ...]) -> Tensor:
        if self.place == len(self.held):
            self.held.append((kind, shape, Tensor(self.tape.next(kind, shape))))
        name, extents, tensor = self.held[self.place]
        assert (name, extents) == (kind, shape), f"drew {kind} {shape}, before {name} {extents}"
        self.place += 1
        return tensor

    def turn(self) -> None:
        """Start again at the first draw, with the numbers of the next step."""
        self.place = 0
        for kind, shape, tensor in self.held:
            tensor.set_data(self.tape.next(kind, shape))

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        def dropout(x: Tensor, p: float = 0.5) -> Tensor:
            if not Tensor.training or p == 0:
                return x
            return x * (self.take("bernoulli_", x.shape) / (1 - p))

        drawing = {
            "dropout": dropout,
            "randn_like": lambda x: self.take("randn_like", x.shape),
            "randint": lambda *shape, low=0, high=10: self.take("randint", shape),
            "bernoulli": lambda x: self.take("bernoulli", x.shape),
            "multinomial": lambda x, n=1, replacement=False: self.take(  # results may be kept
                "multinomial", (*x.shape[:-1], n)).clone(),
        }  # fmt: skip
        with mock.patch.multiple(Tensor, **drawing):
            yield


class Images(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Replaces MNIST: as many random images as 20 steps need."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        draw = np.random.default_rng(5)
        self.images = torch.from_numpy(draw.random((128 * (STEPS + 2), 1, 28, 28), np.float32))
        self.labels = draw.integers(0, 10, len(self.images)).tolist()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> Any:
        return self.images[place], self.labels[place]


def stand_ins() -> dict[str, Any]:
    """Replacements for other modules that programs import: logging, plots, images."""
    nothing = mock.MagicMock()
    vision = types.ModuleType("torchvision")
    vision.datasets = types.SimpleNamespace(MNIST=Images)  # type: ignore[attr-defined]
    vision.transforms = vision.utils = vision.models = nothing  # type: ignore[attr-defined]
    tqdm = types.SimpleNamespace(tqdm=lambda items: Bar(items))
    return {
        "torchvision": vision, "torchvision.datasets": vision.datasets, "tqdm": tqdm,
        "torchvision.utils": nothing, "torchvision.transforms": nothing, "matplotlib": nothing,
        "torch.utils.tensorboard": nothing,
        "matplotlib.pyplot": nothing, "matplotlib.animation": nothing,
    }  # fmt: skip


class Bar(list[Any]):
    """Replaces tqdm's progress bar."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)

    def set_description(self, text: str) -> None:
        """Shows nothing."""


def sources(program: Program, folder: Path, ported: bool) -> dict[str, str]:
    """The program's files, with calls where a run observes the main one; `ported`: after the sed.
    """
    found = {}
    for name in (program.main, *program.others):
        path = folder / program.folder / name
        text = path.read_text("utf-8") if path.exists() else ""
        for old, new in program.sizes:
            text = text.replace(old, new)
        marks = {program.model: f"given({program.given})", program.step: f"seen({program.loss})"}
        for pattern, call in (marks | ({program.draws: "turn()"} if program.draws else {})).items():
            text = re.sub(rf"{pattern}.*" if pattern[-1] != "$" else pattern, lambda m, c=call: (
                f"{m[0]}\n{' ' * (len(m[0]) - len(m[0].lstrip()))}{c}"), text, flags=re.M)
        if ported:
            scripts = [f"--file={HERE / name}.sed" for name in (program.script, "torch")]
            command = ["sed", "--regexp-extended", *scripts]
            text = subprocess.run(command, input=text, text=True, check=True,
                                  capture_output=True).stdout  # fmt: skip
        found[name] = text
    return found


class Run:
    """One run of a program: its losses, the time of each, its last weights."""

    def __init__(self, program: Program, folder: Path, tape: Tape | None, ported: bool) -> None:
        self.program, self.tape, self.ported = program, tape, ported
        self.losses: list[float] = []
        self.times: list[float] = []
        self.model: Any = None
        self.hands = Hands(tape) if tape and ported else None
        with tempfile.TemporaryDirectory() as place:
            self._run(sources(program, folder, ported), Path(place))

    def given(self, model: Any) -> None:
        """Called once the model has its first weights."""
        self.model = model
        if self.tape is None:
            return
        if self.ported:
            model.load_state_dict(self.tape.weights)
        else:
            state = {name: value.clone().numpy() for name, value in model.state_dict().items()}
            self.tape.weights = state

    def seen(self, loss: Any) -> None:
        """Called after each step."""
        self.losses.append(float(loss.item()))
        self.times.append(time.perf_counter())
        if len(self.losses) == STEPS:
            raise Over
        if not self.program.draws:
            self.turn()

    def turn(self) -> None:
        """Called when the next draws belong to another step."""
        if self.hands:
            self.hands.turn()

    def state(self) -> dict[str, np.ndarray]:
        """The model's weights."""
        return {name: value.detach().numpy() for name, value in self.model.state_dict().items()}

    def milliseconds(self) -> float:
        """The median time of a step, without the first ones."""
        spans = [b - a for a, b in zip(self.times[4:], self.times[5:], strict=False)]
        return 1000 * statistics.median(spans)

    def _run(self, files: dict[str, str], place: Path) -> None:
        for name, text in files.items():
            path = place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
        self.program.data(place)
        main = place / self.program.main
        scope = {"__name__": "__main__", "__file__": str(main)}
        before = os.getcwd()
        mode: Any = contextlib.nullcontext()
        if self.tape is not None:
            mode = (Replaying if self.ported else Recording)(self.tape)
        drawing = self.hands.on() if self.hands else contextlib.nullcontext()
        others = stand_ins()
        modules = set(sys.modules)
        try:
            os.chdir(place)
            sys.modules.update(others)
            with (
                drawing, mode,
                mock.patch.object(sys, "argv", [str(main), *self.program.arguments.split()]),
                mock.patch.object(sys, "path", [str(main.parent), str(place), *sys.path]),
                mock.patch.object(builtins, "given", self.given, create=True),
                mock.patch.object(builtins, "seen", self.seen, create=True),
                mock.patch.object(builtins, "turn", self.turn, create=True),
                contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Over),
            ):  # fmt: skip
                exec(compile(main.read_text("utf-8"), str(main), "exec"), scope)
        finally:
            os.chdir(before)
            for name in set(sys.modules) - modules:
                if name in others or str(place) in str(getattr(sys.modules[name], "__file__", "")):
                    del sys.modules[name]


def pair(program: Program, folder: Path) -> tuple[Run, Run]:
    """The run of the original, and the run of the port."""
    tape = Tape()
    original = Run(program, folder, tape, False)
    return original, Run(program, folder, tape, True)


def main(arguments: list[str]) -> None:
    """Print the table."""
    if not arguments or not Path(arguments[0]).is_dir():
        raise SystemExit(__doc__)
    folder, names = Path(arguments[0]), arguments[1:] or list(PROGRAMS)
    print("| program | losses differ by | PyTorch ms | minigrad ms |\n| --- | --- | --- | --- |")
    for name in names:
        program = PROGRAMS[name]
        original, port = pair(program, folder)
        apart = np.abs(np.array(port.losses) / np.array(original.losses) - 1).max()
        # An episode's length depends on its draws, so the port is timed with those of the tape.
        theirs = Run(program, folder, None, False)
        ours = port if program.draws else Run(program, folder, None, True)
        times = f"{theirs.milliseconds():.2f} | {ours.milliseconds():.2f}"
        print(f"| {name} | {apart:.1e} | {times} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
