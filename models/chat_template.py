"""A model's chat template: Jinja, run in a sandbox. Special tokens in messages stay text."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

from minigrad.models.console import require
from minigrad.models.errors import InputError
from minigrad.models.tokenizer import Tokenizer, cut

Message = Mapping[str, Any]
NOTHING: Message = {}
ABSENT: Message = {"tools": None, "documents": None}  # templates may ask whether these are None
# Put into names of special tokens in messages while the template runs. It is in a private area of
# Unicode, and is first removed from messages.
MARK = "\ue0f0"
MOST = 4_000_000  # characters that a template may produce
# Tokens that end an answer, in addition to those that a file names.
ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "</s>", "<eos>",
        "<|end_of_text|>")  # fmt: skip
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + "
    "'<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)


class ChatTemplate:
    """text: a template in Jinja. names: the values of bos_token and eos_token in it.

    InputError if it is invalid or raises; needs the package jinja2.
    """

    def __init__(self, text: str, names: Mapping[str, str]) -> None:
        sandbox: Any = require("jinja2.sandbox")
        self.failures: Any = require("jinja2").TemplateError
        environment = sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _generation()],
        )
        environment.globals.clear()
        environment.globals |= {
            "dict": dict, "range": sandbox.safe_range, "raise_exception": _refuse,
            "namespace": require("jinja2.utils").Namespace, "strftime_now": _now,
        }  # fmt: skip
        environment.filters["tojson"] = _json
        self.names = dict(names)
        try:
            self.template = environment.from_string(text)
        except self.failures as error:
            raise InputError(f"its chat template is not valid Jinja: {error}") from None

    def render(
        self, messages: Sequence[Message], answer: bool = True, more: Mapping[str, Any] = NOTHING
    ) -> str:
        """The text for the model.

        answer: it ends where the model's answer begins. more: values of other names in the
        template.
        """
        told = {**ABSENT, **self.names, **more}
        told |= {"messages": list(messages), "add_generation_prompt": answer}
        pieces, length = [], 0
        try:
            for piece in self.template.generate(told):
                pieces.append(piece)
                length += len(piece)
                if length > MOST:
                    raise InputError(f"the chat template produces more than {MOST:,} characters")
        except InputError:
            raise
        except (self.failures, TypeError, ValueError, LookupError, ArithmeticError,
                AttributeError, RecursionError) as error:  # fmt: skip
            raise InputError(f"the chat template failed: {error}") from None
        return "".join(pieces)

    def encode(
        self, tokenizer: Tokenizer, messages: Sequence[Message], more: Mapping[str, Any] = NOTHING
    ) -> list[int]:
        """The ids of `render`; only the template's special tokens count as special."""
        said, more = guarded(tokenizer, messages), guarded(tokenizer, more)
        return tokens_of(tokenizer, self.render(said, more=more))


def guarded(tokenizer: Tokenizer, value: Any) -> Any:
    """Messages or a text without names of special tokens; `tokens_of` restores the names."""
    if isinstance(value, str):
        value = value.replace(MARK, "")
        for name in tokenizer.special:
            value = value.replace(name, name[0] + MARK + name[1:])
        return value
    if isinstance(value, Mapping):
        return {guarded(tokenizer, key): guarded(tokenizer, inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [guarded(tokenizer, inner) for inner in value]
    return value


def tokens_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text that a template made of guarded messages, without a first token."""
    if MARK not in text:
        return tokenizer.encode_bare(text, special=True)
    ids: list[int] = []
    for piece in cut(text, tokenizer.special):
        if piece in tokenizer.special:
            ids.append(tokenizer.special[piece])
        elif piece:
            ids += tokenizer.encode_array(piece.replace(MARK, "")).tolist()
    return ids


def template_of(tokenizer: Tokenizer) -> ChatTemplate:
    """A tokenizer's template; else ChatML if it has its tokens; else InputError."""
    text = tokenizer.template
    if text is None and {"<|im_start|>", "<|im_end|>"} <= set(tokenizer.special):
        text = CHATML
    if text is None:
        raise InputError("the model has no chat template: use `sample`, or a model trained to chat")
    return ChatTemplate(text, tokenizer.names)


def ends_of(tokenizer: Tokenizer) -> set[int]:
    """Ids that end an answer: those that the file names, and well-known names."""
    special = tokenizer.special
    return {special[name] for name in ENDS if name in special} | tokenizer.ends


def _refuse(message: str) -> str:
    raise InputError(f"the chat template rejects this conversation: {message}")


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None,
    separators: tuple[str, str] | None = None, sort_keys: bool = False,
) -> str:  # fmt: skip
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)  # fmt: skip


def _generation() -> Any:
    """Jinja's extension for `{% generation %}`, which marks text that models learn to produce."""
    nodes: Any = require("jinja2.nodes")
    base: Any = require("jinja2.ext").Extension

    class Generation(base):  # type: ignore[misc]
        tags = frozenset(["generation"])

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            inside = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return nodes.Scope(inside, lineno=line)

    return Generation
