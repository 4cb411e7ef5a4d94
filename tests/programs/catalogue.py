"""The programs, their arguments and data, and the lines at which a run observes them."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Program:
    """A program to run. folder: relative to the folder of all; script: the name of its `.sed`."""

    folder: str
    script: str
    main: str
    arguments: str
    model: str  # its weights are taken, or set, after the line that this matches
    step: str  # a step is over after the line that this matches
    given: str = "model"
    loss: str = "loss"
    others: tuple[str, ...] = ()  # files that main imports
    sizes: tuple[tuple[str, str], ...] = ()  # replaced in both, so that a run takes seconds
    data: Callable[[Path], None] = field(default=lambda place: None)
    draws: str = ""  # draws start again before the line after this one, if not after each step


def _names(place: Path) -> None:
    """Words for makemore."""
    draw = random.Random(2)
    syllables = ["ka", "lo", "mi", "ra", "ne", "su", "to", "an", "el", "is", "or", "ya"]
    words = {"".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(600)}
    (place / "names.txt").write_text("\n".join(sorted(words)), "utf-8")


def _tokens(place: Path) -> None:
    """Files as nanoGPT's prepare.py writes them."""
    folder = place / "data" / "made"
    folder.mkdir(parents=True)
    for name in ("train", "val"):
        tokens = np.random.default_rng(3).integers(0, 65, 20_000).astype(np.uint16)
        tokens[1::2] = (tokens[::2] * 7 + 1) % 65
        tokens.tofile(folder / f"{name}.bin")
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 65}))


def _text(place: Path) -> None:
    """A corpus of made-up words."""
    draw = random.Random(4)
    words = [f"word{i}" for i in range(300)]
    for name in ("train", "valid", "test"):
        lines = [" ".join(draw.choices(words, range(300, 0, -1), k=12)) for _ in range(1500)]
        (place / f"{name}.txt").write_text("\n".join(lines) + "\n", "utf-8")


def _papers(place: Path) -> None:
    """Cora's two files: papers with their words and subject, and their citations."""
    folder = place / "cora"
    folder.mkdir()
    draw = np.random.default_rng(6)
    words, subjects = draw.integers(0, 2, (300, 60)), draw.integers(0, 5, 300)
    rows = [f"{n} {' '.join(map(str, words[n]))} subject{subjects[n]}" for n in range(300)]
    (folder / "cora.content").write_text("\n".join(rows), "utf-8")
    np.savetxt(folder / "cora.cites", draw.integers(0, 300, (900, 2)), "%d")


PROGRAMS = {
    **{
        f"makemore {kind}": Program(
            "makemore", "makemore", "makemore.py", f"--type {kind} --num-workers 0",
            r"^    model\.to\(args\.device\)$", r"^        optimizer\.step\(\)$", data=_names,
        )
        for kind in ("bigram", "mlp", "bow", "rnn", "gru", "transformer")
    },
    "nanoGPT": Program(
        "nanoGPT", "nanoGPT", "train.py",
        "--dataset=made --device=cpu --compile=False --eval_iters=2 --block_size=64 --n_layer=4 "
        "--n_head=4 --n_embd=128 --batch_size=12 --gradient_accumulation_steps=2 "
        "--warmup_iters=10 --max_iters=30 --dropout=0.1",
        r"^model\.to\(device\)$", r"^    optimizer\.zero_grad\(set_to_none=True\)$",
        others=("model.py", "configurator.py"), data=_tokens,
    ),
    "minGPT": Program(
        "minGPT", "minGPT", "projects/adder/adder.py",
        "--trainer.num_workers=0 --trainer.device=cpu --data.ndigit=1",
        r"^    model = GPT\(config\.model\)$", r"^            self\.optimizer\.step\(\)$",
        loss="self.loss",
        others=("mingpt/__init__.py", "mingpt/model.py", "mingpt/trainer.py", "mingpt/utils.py"),
    ),
    "vae": Program(
        "examples/vae", "vae", "main.py", "--no-accel", r"^model = VAE\(\)\.to\(device\)$",
        r"^        optimizer\.step\(\)$",
    ),
    "word_language_model": Program(
        "examples/word_language_model", "word_language_model", "main.py",
        "--data . --lr 5 --emsize 100 --nhid 100",
        r"^criterion = ", r"^        total_loss \+= loss\.item\(\)$",
        others=("data.py", "model.py"), data=_text,
    ),
    "reinforce": Program(
        "examples/reinforcement_learning", "reinforce", "reinforce.py", "",
        r"^policy = Policy\(\)$", r"^    optimizer\.step\(\)$",
        given="policy", loss="policy_loss", draws=r"^    state = torch\.from_numpy.*$",
    ),
    "forward-forward": Program(
        "examples/mnist_forward_forward", "forward_forward", "main.py", "",
        r"^    net = Net\(\[784, 500, 500\]\)$", r"^            self\.opt\.step\(\)$",
        given="nn.ModuleList(net.layers)",
        sizes=(("x, y = x.to(device), y.to(device)", "x, y = x[:256].flatten(1), y[:256]"),),
    ),
    "gat": Program(
        "examples/gat", "gat", "main.py", "", r"^    \)\.to\(device\)$",
        r"^    optimizer\.step\(\)$", given="gat_net", data=_papers,
        sizes=(("idx[:1200], idx[1200:1600], idx[1600:]", "idx[:60], idx[60:100], idx[100:]"),),
    ),
    "diffusion U-Net": Program(
        "Conditional_Diffusion_MNIST", "diffusion_unet", "script.py", "",
        r"^    ddpm\.to\(device\)$", r"^            optim\.step\(\)$", given="ddpm",
        sizes=(("batch_size = 256", "batch_size = 16"), ("n_feat = 128", "n_feat = 32"),
               ("num_workers=5", "num_workers=0"), ('"cuda:0"', '"cpu"')),
    ),
}  # fmt: skip
