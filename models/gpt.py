"""GPT-2, from the embedding of a token to the logits of the next, and the scripts around it.

    python models/gpt.py                                    # train on Shakespeare's plays
    python models/gpt.py train --text my.txt --layers 6     # … on a text of one's own
    python models/gpt.py sample --checkpoint gpt.safetensors --prompt "ROMEO:"

Radford et al., "Language Models are Unsupervised Multitask Learners" (2019). Parameters have the
names of HuggingFace's GPT-2 (wte, wpe, h.0.attn.c_attn, …) and PyTorch's shapes (out, in).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minigrad import Tensor, nn
from minigrad.models import checkpoint, console, sampling
from minigrad.models.errors import InputError
from minigrad.models.metrics import Metrics, save_curves
from minigrad.models.text import Windows, load_text, split
from minigrad.models.tokenizer import CharacterTokenizer
from minigrad.models.train import TrainingPlan, train_language_model

Prompt = Sequence[int]


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT. ValueError where the numbers do not fit one another."""

    layers: int = 4
    heads: int = 4
    dim: int = 128
    context: int = 64
    vocabulary: int = 50257
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "dim", "context", "vocabulary"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: expected at least 1")
        if self.dim % self.heads:
            raise ValueError(f"{self.dim} dims cannot be shared evenly by {self.heads} heads")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}: expected 0 or more and less than 1")

    @property
    def hidden(self) -> int:
        """Width of the feed-forward layer."""
        return 4 * self.dim

    @classmethod
    def preset(cls, name: str) -> GPTConfig:
        """A published shape, e.g. "gpt2"; ValueError lists the known names."""
        try:
            return PRESETS[name]
        except KeyError:
            known = ", ".join(PRESETS)
            raise ValueError(f"unknown preset {name!r}; known presets: {known}") from None


PRESETS = {
    "mini": GPTConfig(layers=4, heads=4, dim=128, context=64),
    "small": GPTConfig(layers=6, heads=6, dim=384, context=256),
    "gpt2": GPTConfig(layers=12, heads=12, dim=768, context=1024),
    "gpt2-medium": GPTConfig(layers=24, heads=16, dim=1024, context=1024),
    "gpt2-large": GPTConfig(layers=36, heads=20, dim=1280, context=1024),
    "gpt2-xl": GPTConfig(layers=48, heads=25, dim=1600, context=1024),
    # Brown et al., "Language Models are Few-Shot Learners" (2020), table 2.1
    "gpt3": GPTConfig(layers=96, heads=96, dim=12288, context=2048),
}


class Attention:
    """Causal self-attention; queries, keys and values come from one product."""

    def __init__(self, config: GPTConfig) -> None:
        self.heads, self.dropout = config.heads, config.dropout
        self.c_attn = nn.Linear(config.dim, 3 * config.dim)
        self.c_proj = nn.Linear(config.dim, config.dim)

    def __call__(self, x: Tensor) -> Tensor:
        batch, length, dim = x.shape
        qkv = self.c_attn(x).reshape(batch, length, 3, self.heads, dim // self.heads)
        q, k, v = (qkv[:, :, part].transpose(1, 2) for part in range(3))  # (batch, heads, length, …)
        y = q.scaled_dot_product_attention(k, v, dropout_p=self.dropout, is_causal=True)
        y = y.transpose(1, 2).reshape(batch, length, dim)
        return self.c_proj(y).dropout(self.dropout)


class FeedForward:
    """Widen four times, GELU (the tanh form), narrow."""

    def __init__(self, config: GPTConfig) -> None:
        self.dropout = config.dropout
        self.c_fc = nn.Linear(config.dim, config.hidden)
        self.c_proj = nn.Linear(config.hidden, config.dim)

    def __call__(self, x: Tensor) -> Tensor:
        return self.c_proj(self.c_fc(x).gelu()).dropout(self.dropout)


class Block:
    """Two residual branches, each normalised at its entry."""

    def __init__(self, config: GPTConfig) -> None:
        self.ln_1 = nn.LayerNorm(config.dim)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.dim)
        self.mlp = FeedForward(config)

    def __call__(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT:
    """model(ids) → logits; ids (batch, length) of integers, logits (batch, length, vocabulary)."""

    def __init__(self, config: GPTConfig) -> None:
        self.config = config
        self.wte = nn.Embedding(config.vocabulary, config.dim)
        self.wpe = nn.Embedding(config.context, config.dim)
        self.h = [Block(config) for _ in range(config.layers)]
        self.ln_f = nn.LayerNorm(config.dim)
        self.initialize()

    def initialize(self) -> None:
        """Weights as in GPT-2: normal, 0.02; what ends a residual branch is scaled by depth."""
        for name, parameter in nn.state.get_state_dict(self).items():
            if name.endswith("bias"):
                parameter.assign(Tensor.zeros(*parameter.shape))
            elif parameter.ndim == 2:
                residual = name.endswith("c_proj.weight")
                deviation = 0.02 / math.sqrt(2 * self.config.layers) if residual else 0.02
                parameter.assign(Tensor.randn(*parameter.shape) * deviation)

    def features(self, ids: Tensor) -> Tensor:
        """What the last layer knows of each position: (batch, length, dim)."""
        length = ids.shape[1]
        if length > self.config.context:
            raise ValueError(
                f"{length} tokens are more than the model's context of {self.config.context}: "
                "give it the last ones only"
            )
        x = self.wte(ids) + self.wpe(Tensor.arange(length))
        x = x.dropout(self.config.dropout)
        for block in self.h:
            x = block(x)
        return self.ln_f(x)

    def unembed(self, features: Tensor) -> Tensor:
        """Logits: how well each token's embedding matches (output and embedding weights are one)."""
        return features.linear(self.wte.weight.T)

    def __call__(self, ids: Tensor) -> Tensor:
        return self.unembed(self.features(ids))

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats per token, a scalar; targets (batch, length) of integers."""
        return self(ids).flatten(0, 1).cross_entropy(targets.flatten())

    def next_logits(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Logits (rows, vocabulary) of the token after each row; only it meets the output layer.

        Rows are cut to their last `context` tokens, and padded at the right to a power of two, so
        that few different programs are compiled; causal attention never looks at the padding.
        """
        context = self.config.context
        windows = [list(row[-context:]) for row in rows]
        longest = max(len(window) for window in windows)
        width = min(1 << (longest - 1).bit_length(), context)
        ids = Tensor([window + [0] * (width - len(window)) for window in windows])
        last = Tensor([[[len(window) - 1]] for window in windows])
        features = self.features(ids)
        final = features.gather(1, last.expand(len(rows), 1, self.config.dim)).squeeze(1)
        return self.unembed(final)

    def generate(
        self,
        ids: Prompt | Sequence[Prompt] | Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stop: Collection[int] = (),
    ) -> Iterator[Any]:
        """New token ids one by one, as they are drawn; what was given is not repeated.

        For a prompt (ids in a list, at least one) each is an int. For a batch of prompts, whose
        lengths may differ, each is a list with one id per prompt, None where it has ended. A token
        of `stop` is given and ends its prompt. Temperature 0 takes the likeliest token; see
        `sampling.probabilities` for the others. Past the context the model sees the last tokens.
        Row i draws from the generator (seed, i), whatever the other rows do. Raises ValueError for
        settings that make no sense and for an empty prompt.
        """
        sampling.check(temperature, top_k, top_p)
        given = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        single = not given or isinstance(given[0], int)
        rows = [[int(token) for token in row] for row in ([given] if single else given)]
        for row in rows:
            if not row:
                raise ValueError("a prompt is empty: give at least one token")
            if not 0 <= min(row) <= max(row) < self.config.vocabulary:
                raise ValueError(f"a prompt has tokens outside 0 … {self.config.vocabulary - 1}")
        tokens = self._generate(rows, max_new_tokens, (temperature, top_k, top_p), seed, stop)
        return (new[0] for new in tokens) if single else tokens

    def _generate(
        self,
        rows: list[list[int]],
        count: int,
        settings: tuple[float, int | None, float | None],
        seed: int,
        stop: Collection[int],
    ) -> Iterator[list[int | None]]:
        import numpy as np

        generators = [np.random.default_rng((seed, number)) for number in range(len(rows))]
        alive = [True] * len(rows)
        for _ in range(count):
            logits = self.next_logits(rows).numpy()
            new: list[int | None] = [None] * len(rows)
            for number, row in enumerate(rows):
                if alive[number]:
                    token = sampling.choose(logits[number], generators[number], *settings)
                    new[number] = token
                    row.append(token)
                    alive[number] = token not in stop
            yield new
            if not any(alive):
                return


def save_checkpoint(path: Path, model: GPT, tokenizer: CharacterTokenizer) -> None:
    """Weights under GPT-2's names; config and tokenizer in the metadata of the same file."""
    metadata = {"config": json.dumps(asdict(model.config)), "tokenizer": tokenizer.to_json()}
    checkpoint.save(path, nn.state.get_state_dict(model), metadata)


def load_checkpoint(path: Path) -> tuple[GPT, CharacterTokenizer]:
    """What `save_checkpoint` wrote; InputError where the file is damaged or something else."""
    tensors, metadata = checkpoint.load(path)
    try:
        config = GPTConfig(**json.loads(metadata["config"]))
        tokenizer = CharacterTokenizer.from_json(metadata["tokenizer"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is no checkpoint of models/gpt.py: {error}") from None
    model = GPT(config)
    nn.state.load_state_dict(model, tensors)
    return model, tokenizer


def parser() -> argparse.ArgumentParser:
    """The flags of the commands `train` (also when no command is given) and `sample`."""
    top = argparse.ArgumentParser(
        description="Train a GPT on text, or let one write. Without a command: train.",
        formatter_class=console.Help,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="{train,sample}")

    train = commands.add_parser(
        "train", help="learn from a text", description="Train a GPT on text.",
        formatter_class=console.Help,
    )  # fmt: skip
    train.add_argument("--text", metavar="FILE", help="UTF-8 text; Shakespeare's plays if not given")
    train.add_argument("--tokenizer", choices=["character"], default="character",
                       help="what a token is")  # fmt: skip
    train.add_argument("--layers", type=console.positive_int, default=4, help="blocks")
    train.add_argument("--heads", type=console.positive_int, default=4, help="heads per block")
    train.add_argument("--dim", type=console.positive_int, default=128, help="width of the model")
    train.add_argument("--context", type=console.positive_int, default=64, help="tokens it sees")
    train.add_argument("--dropout", type=console.natural_float, default=0.0, help="share dropped")
    train.add_argument("--steps", type=console.positive_int, default=2000, help="updates")
    train.add_argument("--batch", type=console.positive_int, default=12, help="windows per step")
    train.add_argument("--lr", type=console.positive_float, default=3e-3,
                       help="peak of the learning rate: 100 steps of warm-up, then cosine to 10 %%")  # fmt: skip
    train.add_argument("--checkpoint", metavar="FILE", default="gpt.safetensors",
                       help="where the trained model goes; the loss curves go beside it")  # fmt: skip
    train.add_argument("--metrics", metavar="FILE", help="JSON lines, one per step")
    console.add_common_flags(train)

    sample = commands.add_parser(
        "sample", help="let a trained model write", description="Continue a prompt.",
        formatter_class=console.Help,
    )  # fmt: skip
    sample.add_argument("--checkpoint", metavar="FILE", default="gpt.safetensors",
                        help="what `train` wrote")  # fmt: skip
    sample.add_argument("--prompt", default="\n", help="text to continue")
    sample.add_argument("--tokens", type=console.positive_int, default=500, help="how many")
    sample.add_argument("--temperature", type=console.natural_float, default=0.8,
                        help="0: always the likeliest token; above 1: wilder")  # fmt: skip
    sample.add_argument("--top-k", type=console.positive_int, help="draw from the k likeliest")
    sample.add_argument("--top-p", type=console.positive_float, help="draw from the share p")
    console.add_common_flags(sample)
    return top


def train_command(flags: argparse.Namespace) -> None:
    """`train`: ends with validation loss, a sample, the checkpoint and the curves."""
    text = load_text(flags.text)
    tokenizer = CharacterTokenizer.of(text)
    training, validation = split(tokenizer.encode_array(text))
    try:
        config = GPTConfig(flags.layers, flags.heads, flags.dim, flags.context, len(tokenizer),
                           flags.dropout)  # fmt: skip
    except ValueError as error:
        raise InputError(str(error)) from None
    path = Path(flags.checkpoint)
    checkpoint.check_writable(path)
    Tensor.manual_seed(flags.seed)
    model = GPT(config)
    parameters = sum(tensor.numel() for tensor in nn.state.get_parameters(model))
    print(f"{len(text):,} characters, {len(tokenizer)} of them different; {parameters:,} parameters")

    plan = TrainingPlan(steps=flags.steps, batch=flags.batch, lr=flags.lr, seed=flags.seed)
    with Metrics(flags.metrics) as metrics:
        loss = train_language_model(
            model,
            Windows(training, config.context, "the training part"),
            Windows(validation, config.context, "the validation part (its last tenth)"),
            plan,
            metrics,
        )
    save_checkpoint(path, model, tokenizer)
    picture = path.with_suffix(".png")
    save_curves(metrics, picture, f"GPT: {config.layers} layers, {config.dim} dims")
    print(f"\nvalidation loss {loss:.4f} nats per character\n")
    write(model, tokenizer, "\n" if "\n" in tokenizer.vocabulary else text[0], 500, 0.8, flags.seed)
    print(f"\ncheckpoint {path}\nloss curves {picture}")


def write(
    model: GPT,
    tokenizer: CharacterTokenizer,
    prompt: str,
    tokens: int,
    temperature: float,
    seed: int,
    top_k: int | None = None,
    top_p: float | None = None,
) -> None:
    """Print a continuation, each token as soon as it is drawn."""
    ids = tokenizer.encode(prompt)
    for token in model.generate(ids, tokens, temperature, top_k, top_p, seed):
        print(tokenizer.decode([token]), end="", flush=True)
    print()


def sample_command(flags: argparse.Namespace) -> None:
    """`sample`: the prompt and its continuation on standard output."""
    if not flags.prompt:
        raise InputError("--prompt is empty: give at least one character")
    if flags.top_p is not None and flags.top_p > 1:
        raise InputError(f"--top-p is {flags.top_p}: expected more than 0 and at most 1")
    model, tokenizer = load_checkpoint(Path(flags.checkpoint))
    print(flags.prompt, end="")
    write(model, tokenizer, flags.prompt, flags.tokens, flags.temperature, flags.seed,
          flags.top_k, flags.top_p)  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    """Read the command line and do what it says."""
    known = ("train", "sample", "-h", "--help")
    given = list(arguments)
    if not given or given[0] not in known:
        given.insert(0, "train")
    flags = parser().parse_args(given)
    console.apply_common_flags(flags)
    {"train": train_command, "sample": sample_command}[flags.command](flags)


if __name__ == "__main__":
    sys.exit(console.run(main))
