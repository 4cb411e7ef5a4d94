"""OpenAI's protocol: the fields of requests, refusals, and answers.

https://platform.openai.com/docs/api-reference: completions and chat completions. A field that is
not supported, and would change the answer, is refused by name, never ignored.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from minigrad.models.engine import Drawn
from minigrad.models.sampling import Sampling
from minigrad.models.tokenizer import Stream, Tokenizer

Check = Callable[[str, Any], None]  # of a field, by name and value; raises Refused


class Refused(Exception):
    """An error answer in the protocol's format."""

    def __init__(
        self, message: str, param: str | None = None, status: int = 400, code: str | None = None,
        kind: str = "invalid_request_error",
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _unexpected(name: str, expected: str, value: Any, code: str) -> Refused:
    return Refused(f"{name}: expected {expected}, got {repr(value)[:60]}", name, code=code)


def _within(low: float, high: float, kinds: Collection[type] = (int,)) -> Check:
    whole = float not in kinds
    what = f"an int in {low} … {high}" if whole else f"a number in {low:g} … {high:g}"

    def check(name: str, value: Any) -> None:
        if type(value) not in kinds or not low <= value <= high:
            raise _unexpected(name, what, value, "invalid_value")

    return check


def _of(kind: type, what: str) -> Check:
    def check(name: str, value: Any) -> None:
        if type(value) is not kind:
            raise _unexpected(name, what, value, "invalid_type")

    return check


_flag, _text = _of(bool, "true or false"), _of(str, "a string")


def _words(name: str, value: Any) -> None:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise _unexpected(name, "a string or a list of strings", value, "invalid_type")
    if len(texts) > 4 or any(len(text) > 1000 for text in texts):
        raise Refused(f"{name}: expected at most 4 strings of 1,000 characters, got {len(texts)}",
                      name, code="invalid_value")  # fmt: skip


def _options(name: str, value: Any) -> None:
    if not isinstance(value, dict) or set(value) - {"include_usage"}:
        raise _unexpected(name, "only include_usage", value, "unsupported_value")
    for inner in value.values():
        _flag(f"{name}.include_usage", inner)


def _anything(name: str, value: Any) -> None:
    """Accept any value: the field has no effect."""


LARGEST, NUMBER = 1 << 31, (int, float)
COMMON: dict[str, Check] = {
    "model": _text, "max_tokens": _within(1, LARGEST), "temperature": _within(0, 2, NUMBER),
    "top_p": _within(0, 1, NUMBER), "top_k": _within(1, LARGEST),
    "seed": _within(-(1 << 63), (1 << 63) - 1), "stop": _words, "stream": _flag,
    "stream_options": _options, "user": _text, "repetition_penalty": _within(0.01, 100, NUMBER),
}  # fmt: skip
FIELDS = {
    "completion": {**COMMON, "prompt": _anything, "logprobs": _within(0, 20)},
    "chat": {**COMMON, "messages": _anything, "max_completion_tokens": _within(1, LARGEST),
             "logprobs": _flag, "top_logprobs": _within(0, 20), "metadata": _anything,
             "chat_template_kwargs": _anything},
}  # fmt: skip
# Accepted values of unsupported fields: those without effect.
NEUTRAL: dict[str, Collection[Any]] = {
    "n": [1], "best_of": [1], "echo": [False], "suffix": [""], "presence_penalty": [0],
    "frequency_penalty": [0], "logit_bias": [{}], "tools": [[]], "tool_choice": ["none"],
    "functions": [[]], "response_format": [{"type": "text"}], "store": [False],
    "parallel_tool_calls": [True, False], "modalities": [["text"]], "service_tier": ["auto"],
}  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """A request's fields, checked."""

    settings: Sampling
    tokens: int | None
    seed: int
    stop: Sequence[str]
    stream: bool
    usage: bool  # a stream ends with usage figures
    logprobs: int | None
    body: Mapping[str, Any] = field(default_factory=dict)


def read_body(raw: bytes) -> dict[str, Any]:
    """The JSON object of a request's body, in valid Unicode; Refused otherwise."""
    try:
        body: Any = json.loads(raw)
        json.dumps(body, ensure_ascii=False).encode()  # an escape may be half a character
    except (ValueError, RecursionError) as error:
        raise Refused(f"the request body is not valid JSON: {error}") from None
    if not isinstance(body, dict):
        raise Refused("the request body is not a JSON object")
    return body


def wanted(body: Mapping[str, Any], kind: str) -> Wanted:
    """The checked fields of a "completion" or "chat" body; Refused names an invalid field."""
    known = FIELDS[kind]
    given = {name: value for name, value in body.items() if value is not None}
    for name, value in given.items():
        if name in known:
            known[name](name, value)
        elif name in NEUTRAL:
            if not any(value == one and isinstance(value, bool) is isinstance(one, bool)
                       for one in NEUTRAL[name]):  # fmt: skip
                raise Refused(f"{name} = {repr(value)[:60]} is not supported by this server", name,
                              code="unsupported_parameter")  # fmt: skip
        else:
            raise Refused(f"unknown parameter: {name}", name, code="unknown_parameter")
    if "stream_options" in given and not given.get("stream"):
        raise Refused("stream_options needs stream: true", "stream_options", code="invalid_value")
    logprobs = given.get("logprobs")
    if kind == "chat":
        if "top_logprobs" in given and not logprobs:
            raise Refused("top_logprobs needs logprobs", "top_logprobs", code="invalid_value")
        logprobs = given.get("top_logprobs", 0) if logprobs else None
    stop = given.get("stop", [])
    top_p = given.get("top_p", 1)
    return Wanted(
        Sampling(float(given.get("temperature", 1.0)), given.get("top_k"),
                 None if top_p == 1 else max(float(top_p), 1e-9),
                 float(given.get("repetition_penalty", 1.0))),
        given.get("max_completion_tokens", given.get("max_tokens")),
        given.get("seed", secrets.randbits(63)) & ((1 << 64) - 1),
        [stop] if isinstance(stop, str) else stop, given.get("stream", False),
        given.get("stream_options", {}).get("include_usage", False), logprobs, given,
    )  # fmt: skip


ROLES = ("system", "developer", "user", "assistant")


def messages_of(body: Mapping[str, Any]) -> list[dict[str, str]]:
    """The messages of a chat, each with a role and a text; Refused for others."""
    given = body.get("messages")
    if not isinstance(given, list) or not given:
        raise Refused("messages: expected a list of at least one message", "messages")
    found = []
    for place, message in enumerate(given):
        where = f"messages[{place}]"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            role = message.get("role") if isinstance(message, dict) else message
            raise Refused(f"{where}.role: expected {', '.join(ROLES)}, got {repr(role)[:60]}",
                          where, code="unsupported_value")  # fmt: skip
        more = {name for name, value in message.items() if value is not None}
        for name in sorted(more - {"role", "content", "name"}):
            raise Refused(f"{where}.{name} is not supported by this server", f"{where}.{name}",
                          code="unsupported_parameter")  # fmt: skip
        content = message.get("content")
        if isinstance(content, list):  # parts; only texts are supported
            for part in content:
                if not isinstance(part, dict) or part.get("type") != "text":
                    raise Refused(f"{where}.content: expected only text parts", f"{where}.content",
                                  code="unsupported_value")  # fmt: skip
                _text(f"{where}.content", part.get("text"))
            content = "".join(part["text"] for part in content)
        if not isinstance(content, str):
            raise _unexpected(f"{where}.content", "a string", content, "invalid_type")
        role = "system" if message["role"] == "developer" else message["role"]
        found.append({"role": role, "content": content})
    return found


class Text:
    """The text of tokens as they arrive, up to the first of the stop texts.

    Text that may be the beginning of a stop text is held back.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.stream, self.held, self.stopped = Stream(tokenizer), "", False

    def add(self, token: int) -> str:
        """The text to show after one more token; `stopped` tells whether it is the last."""
        if token >= len(self.tokenizer):  # a table may have more rows than tokens
            return ""
        return self._shown(self.held + self.stream.add(token))

    def end(self) -> str:
        """The text that was held back."""
        rest = self._shown(self.held + self.stream.decoder.decode(b"", final=True))
        rest, self.held = rest + self.held, ""
        return rest

    def _shown(self, text: str) -> str:
        if not self.stop:
            return text
        found = [place for word in self.stop if (place := text.find(word)) >= 0]
        if found:
            self.stopped, self.held = True, ""
            return text[: min(found)]
        keep = max((size for word in self.stop for size in range(1, len(word))
                    if text.endswith(word[:size])), default=0)  # fmt: skip
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep]


def shown_token(tokenizer: Tokenizer, token: int) -> str:
    """A token as text."""
    return tokenizer.token_bytes(token).decode("utf-8", "replace") if token < len(tokenizer) else ""


def chat_logprobs(tokenizer: Tokenizer, drawn: Sequence[Drawn]) -> dict[str, Any]:
    """Log probabilities in the format of chat completions."""

    def one(token: int, logprob: float | None) -> dict[str, Any]:
        known = token < len(tokenizer)
        return {"token": shown_token(tokenizer, token), "logprob": logprob,
                "bytes": list(tokenizer.token_bytes(token)) if known else []}  # fmt: skip

    content = [
        {**one(each.token, each.logprob), "top_logprobs": [one(*pair) for pair in each.top]}
        for each in drawn
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(
    tokenizer: Tokenizer, drawn: Sequence[Drawn], offsets: Sequence[int]
) -> dict[str, Any]:
    """Log probabilities in the format of completions; offsets: where each token begins in the text.
    """
    names = [shown_token(tokenizer, each.token) for each in drawn]
    tops: list[dict[str, float]] = []
    for each in drawn:
        tops.append({})
        for token, value in each.top:  # of equal texts the likeliest, which comes first
            tops[-1].setdefault(shown_token(tokenizer, token), value)
    return {"tokens": names, "token_logprobs": [each.logprob for each in drawn],
            "top_logprobs": tops, "text_offset": list(offsets)}  # fmt: skip
