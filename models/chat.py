"""`sample` continues a text; `chat` answers, in the format that the model was trained on."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from minigrad.models.chat_template import ends_of, guarded, template_of, tokens_of
from minigrad.models.decode import Decoder
from minigrad.models.errors import InputError
from minigrad.models.gpt import GPT
from minigrad.models.gpt_checks import CHECKPOINT, newest_checkpoint
from minigrad.models.interrupt import Interruption
from minigrad.models.pretrained import load_model, load_to_read, write
from minigrad.models.sampling import Sampler, Sampling
from minigrad.models.tokenizer import Stream, Tokenizer


def sampling_of(flags: argparse.Namespace) -> Sampling:
    """The sampling settings of the flags."""
    return Sampling(flags.temperature, flags.top_k, flags.top_p, flags.repetition_penalty)


def check_keep(flags: argparse.Namespace, model: GPT) -> None:
    """InputError if --keep has no effect, or would keep too much."""
    most = model.config.context // 2
    if flags.keep and flags.context_policy != "roll":
        raise InputError(f"--keep {flags.keep} has no effect with --context-policy error")
    if flags.keep > most:
        raise InputError(f"--keep: expected at most {most}, half of the context, got {flags.keep}")


def tell_of_a_cut(what: str, tokens: int, model: GPT, flags: argparse.Namespace) -> None:
    """Report that a text is longer than the context; with policy "error" it is refused later."""
    context = model.config.context
    if tokens > context and flags.context_policy == "roll":
        kept = f"the first {flags.keep} and the last {context - flags.keep}" if flags.keep else (
            f"the last {context}"
        )  # fmt: skip
        print(f"{what} has {tokens:,} tokens; the model reads only {kept}", file=sys.stderr)


def sample_command(flags: argparse.Namespace) -> None:
    """`sample`: print the prompt and its continuation."""
    settings = sampling_of(flags)
    path = newest_checkpoint() if flags.checkpoint is None else Path(flags.checkpoint)
    if flags.checkpoint is None and path.name != CHECKPOINT:
        print(f"using the newest checkpoint here: {path}", file=sys.stderr)
    model, tokenizer = load_model(path)
    check_keep(flags, model)
    ids = tokenizer.encode(flags.prompt)
    if not ids:
        raise InputError(f"--prompt {flags.prompt!r} has no tokens in the model's vocabulary")
    tell_of_a_cut("--prompt", len(ids), model, flags)
    print(flags.prompt, end="", flush=True)
    write(model, tokenizer, ids, flags.tokens, settings, flags.seed,
          policy=flags.context_policy, keep=flags.keep)  # fmt: skip


class Conversation:
    """A model and the conversation so far, in the format of its chat template.

    Keys and values are kept, so an answer costs only its own tokens and those of the question.
    """

    def __init__(
        self, model: GPT, tokenizer: Tokenizer, system: str | None, settings: Sampling,
        seed: int = 0, policy: str = "roll", keep: int = 0,
    ) -> None:  # fmt: skip
        self.model, self.tokenizer = model, tokenizer
        self.sampler = Sampler([settings], model.config.vocabulary, seed)
        self.template, self.ends = template_of(tokenizer), ends_of(tokenizer)
        self.policy, self.keep = policy, keep
        self.messages: list[dict[str, str]] = []
        if system is not None:
            self.messages.append({"role": "system", "content": system})
        self.text = ""  # what the decoder has read, and the answers
        self.decoder: Decoder | None = None

    def asked(self, text: str) -> str:
        """The whole text that the model reads for a new message."""
        messages = [*self.messages, {"role": "user", "content": text}]
        return self.template.render(guarded(self.tokenizer, messages))

    def question(self, text: str) -> list[int]:
        """The tokens of `asked` that the model has not read yet."""
        whole = self.asked(text)
        # if the template changed earlier text, all of it is read again
        known = self.text if whole.startswith(self.text) else ""
        return tokens_of(self.tokenizer, whole[len(known) :])

    def answer(
        self, text: str, tokens: int, show: Callable[[str], None],
        enough: Callable[[], bool] = lambda: False,
    ) -> list[int]:  # fmt: skip
        """Ask something; `show` gets the answer piece by piece. Returns its tokens.

        `enough` is called before each pass of the model; if true, the answer ends, and the
        conversation can continue.
        """
        whole, question = self.asked(text), self.question(text)
        if self.decoder is None or not whole.startswith(self.text):
            self.decoder = Decoder(self.model, [question], self.policy, self.keep, self.sampler)
        else:
            self.decoder.extend(question)
        decoder, stream, said = self.decoder, Stream(self.tokenizer), list[int]()
        while len(said) < tokens and not enough():
            (token,) = decoder.draw()
            if token in self.ends:
                break
            said.append(token)
            decoder.append([token])
            if token < len(self.tokenizer):
                show(stream.add(token))
        spoken = self.tokenizer.decode([token for token in said if token < len(self.tokenizer)])
        self.messages += [{"role": "user", "content": text},
                          {"role": "assistant", "content": spoken}]  # fmt: skip
        self.text = whole + guarded(self.tokenizer, spoken)
        return said


def chat_command(flags: argparse.Namespace) -> None:
    """`chat`: lines of a terminal one by one, or standard input as a single message."""
    settings = sampling_of(flags)
    path, model, tokenizer = load_to_read(flags.checkpoint, flags.context)
    check_keep(flags, model)
    talk = Conversation(
        model, tokenizer, flags.system, settings, flags.seed, flags.context_policy, flags.keep
    )

    def say(text: str, enough: Callable[[], bool] = lambda: False) -> None:
        tell_of_a_cut("the question", len(talk.question(text)), model, flags)
        talk.answer(text, flags.tokens, lambda piece: print(piece, end="", flush=True), enough)
        print(flush=True)

    def say_until_interrupted(text: str) -> None:
        with Interruption([signal.SIGINT], notice="") as interruption:
            say(text, lambda: interruption.number is not None)

    if flags.prompt is not None:
        if not flags.prompt.strip():
            raise InputError("--prompt is empty: give at least one word")
        say(flags.prompt)
    elif not sys.stdin.isatty():
        text = sys.stdin.read().strip()
        if not text:
            raise InputError("standard input is empty: give at least one word")
        say(text)
    if sys.stdin.isatty():
        print(f"{path.stem}: type a message. Empty line or Ctrl-D: quit. Ctrl-C: stop an answer.")
        while text := ask():
            say_until_interrupted(text)


def ask() -> str:
    """A line typed in the terminal, stripped; "" at the end of input."""
    try:
        return input("> ").strip()
    except EOFError:
        return ""
