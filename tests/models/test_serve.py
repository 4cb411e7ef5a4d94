"""The server on loopback, with the public client `openai`: protocol, limits, and that requests that
share steps get the same answers as alone.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import CONTEXT, serving, strong_model, tokenizer

from minigrad import Tensor
from minigrad.models import server as server_module
from minigrad.models.engine import Busy, Drawn, Ended, Engine, Request
from minigrad.models.errors import InputError
from minigrad.models.gpt import GPT
from minigrad.models.gpt_checkpoint import save_checkpoint
from minigrad.models.gpt_config import GPTConfig
from minigrad.models.gpt_flags import parser
from minigrad.models.protocol import Refused, Text, completion_logprobs, wanted
from minigrad.models.sampling import Sampling
from minigrad.models.server import Answer, Events, make_engine, taken
from minigrad.models.slots import Slots
from minigrad.models.speculation import Guesses
from minigrad.models.weights_quantize import quantize_file

SLOTS, QUEUE, KEY = 4, 3, "secret"


def random_prompts(count: int, longest: int = 90) -> list[list[int]]:
    generator = np.random.default_rng(6)
    print("seed 6")
    return [generator.integers(32, 96, generator.integers(1, longest)).tolist()
            for _ in range(count)]  # fmt: skip


class Caller:
    """A request and the events that its engine has sent."""

    def __init__(self, prompt: list[int], tokens: int = 12, **more: Any) -> None:
        self.events: list[Drawn | Ended] = []
        self.done = threading.Event()
        settings = more.pop("settings", Sampling(0.0))
        self.request = Request(prompt, tokens, settings, self.tell, **more)

    def tell(self, event: Drawn | Ended) -> None:
        self.events.append(event)
        if isinstance(event, Ended):
            self.done.set()

    def tokens(self) -> list[int]:
        assert self.done.wait(120)
        return [event.token for event in self.events if isinstance(event, Drawn)]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    made = Engine(strong_model(), SLOTS, CONTEXT, QUEUE, guesses=3)
    made.start()
    made.slots.checks = {1: 1.0}  # as if a check cost no more than a step
    yield made
    made.close()


def test_requests_that_share_steps_get_what_they_get_alone(engine: Engine) -> None:
    prompts = random_prompts(QUEUE + SLOTS)
    prompts[1] = [*prompts[0][:70], *[65] * 70, 66]  # some pieces are already cached
    prompts[2] = [*prompts[1][:130], 67]
    sampled = {"settings": Sampling(0.9, top_k=20), "seed": 5}
    more = [sampled if number % 3 == 2 else {} for number in range(len(prompts))]
    alone = []
    for prompt, each in zip(prompts, more, strict=True):
        caller = Caller(prompt, **each)
        engine.submit(caller.request)
        alone.append(caller.tokens())
        settings = {"temperature": 0.9, "top_k": 20, "seed": 5} if each else {"temperature": 0}
        model = engine.slots.model
        assert list(model.generate(prompt, 12, **settings)) == alone[-1]
    for order in (range(len(prompts)), range(len(prompts) - 1, -1, -1)):
        callers = {n: Caller(prompts[n], **more[n]) for n in order}
        for caller in callers.values():
            engine.submit(caller.request)
        for number, caller in callers.items():
            assert caller.tokens() == alone[number], number
    assert max(caller.request.shared for caller in callers.values()) >= 64
    (draws,) = engine._draws.values()  # all samplers share it
    assert draws._replays  # the engine's own thread replays it


@pytest.mark.parametrize("quantized", [False, True])
def test_rows_do_not_depend_on_their_neighbours(quantized: bool, tmp_path: Path) -> None:
    model = strong_model()
    if quantized:
        model = small_and_quantized(tmp_path)
    slots, prompt = Slots(model, 4, CONTEXT, guesses=1), random_prompts(1)[0][:30]
    slots.warm()
    assert slots.widths and set(slots.checks) == {1, 2}
    for slot, tokens in enumerate((prompt, [70] * 50, prompt, [71] * 9)):
        slots.read(slot, tokens, 0)
    place = len(prompt)
    wanted = slots.step({0: (80, place)})[0].logits
    assert np.ptp(wanted) > 0.5
    full = {3: (4, 9), 1: (5, 50), 2: (80, place), 0: (80, place)}
    for others in ({2: (80, place)}, {1: (3, 50), 2: (80, place)}, full):
        assert np.array_equal(slots.step(others)[2].logits, wanted), others
    slots.copy(2, 1, place)
    assert np.array_equal(slots.step({3: (1, 10), 1: (80, place)})[1].logits, wanted)
    one_by_one = [slots.step({0: (token, place + n)})[0].logits for n, token in enumerate((80, 81))]
    for others in ({}, {3: ([4, 5], 9)}, {3: ([4], 9)}):  # also after guesses for other slots
        assert slots.check({**others, 2: ([80, 9], place)})[2][1].logits.size > 1
        checked = slots.check({2: ([80, 81], place), **others})[2]
        assert np.array_equal([row.logits for row in checked], one_by_one), others
        assert [row.likeliest for row in checked] == np.argmax(one_by_one, 1).tolist()
    slots.widths = [1]  # as if no two widths gave the same logits
    assert set(slots.step({3: (1, 10), 1: (80, place)})) == {1, 3}


def small_and_quantized(folder: Path) -> GPT:
    from model_judges import LLAMA, random_llama, save_folder

    facts = {**LLAMA, "vocab_size": 96, "hidden_size": 64, "max_position_embeddings": CONTEXT}
    save_folder(folder, random_llama(np.random.default_rng(5), facts), facts)
    stored = {"model": {"type": "BPE", "vocab": {chr(65 + n): n for n in range(26)}, "merges": []},
              "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}}  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    quantize_file(folder, folder / "m.gguf", "Q4_0", pure=True)
    return GPT.from_pretrained(folder / "m.gguf")


def test_short_prompts_are_read_in_one_turn() -> None:
    """As many as fit into one piece; what comes first is read first."""
    made = Engine(strong_model(), SLOTS, CONTEXT)
    callers = [Caller(prompt) for prompt in ([40] * 80, [41] * 20, [42] * 10, [43] * 17)]
    for caller in callers:
        made.submit(caller.request)
    read, said = list[list[int]](), list[int]()
    for _ in range(3):
        made._turn()
        read.append([caller.request.read for caller in callers])
        said.append(sum(len(caller.request.said) for caller in callers))
    assert read == [[64, 0, 0, 0], [79, 19, 9, 0], [79, 19, 9, 16]] and said == [0, 3, 7]


def test_a_beginning_is_copied_from_a_slot_that_is_busy() -> None:
    made = Engine(strong_model(), 2, CONTEXT)
    begin = [35 + n % 50 for n in range(70)]
    callers = [Caller([*begin, last], 20) for last in (40, 41)]
    for caller in callers:
        made.submit(caller.request)
        made._turn()
    while not all(caller.done.is_set() for caller in callers):
        made._turn()
    assert [caller.request.shared for caller in callers] == [0, 64]
    for caller, last in zip(callers, (40, 41), strict=True):
        wanted = made.slots.model.generate([*begin, last], 20, temperature=0)
        assert caller.tokens() == list(wanted)


def test_the_queue_is_bounded_and_the_cancelled_leave_it(engine: Engine) -> None:
    callers = [Caller([65], 200) for _ in range(SLOTS + QUEUE)]
    for caller in callers:
        engine.submit(caller.request)
    with pytest.raises(Busy, match="requests are already waiting"):
        for _ in range(SLOTS + 1):
            late = Caller([65], 1)
            callers.append(late)
            engine.submit(late.request)
    callers.pop()
    for caller in callers:
        caller.request.cancel()
    for caller in callers:
        caller.tokens()
        assert caller.events[-1] in (Ended("cancelled"), Ended("length"))
    after = Caller([65], 3)
    engine.submit(after.request)
    assert len(after.tokens()) == 3 and after.events[-1] == Ended("length")
    full = Caller([65] * (CONTEXT - 3), 50)
    engine.submit(full.request)
    assert len(full.tokens()) == 2


def test_guesses() -> None:
    guesses = Guesses([1, 2, 3, 4, 5, 6, 9, 2, 3, 4, 7], most=3)
    assert guesses.next() == []
    for token in (2, 3):
        guesses.add(token)
        assert guesses.next() == []
    guesses.add(4)
    assert guesses.next() == [7, 2, 3]  # the latest continuation
    guesses.add(5)
    assert guesses.next() == [6, 9, 2] and guesses.luck == 1.125  # nothing of 7, 2, 3 was right
    for token in (6, 9, 2):
        guesses.add(token)
    assert guesses.luck == 1.59375
    longest = Guesses([8, 1, 2, 3, 4, 0, 1, 2, 3, 5, 8, 1, 2, 3], most=2)
    assert longest.next() == [4, 0]


def test_guesses_change_nothing_but_the_number_of_steps(engine: Engine) -> None:
    """Greedy requests get the same log probabilities, to the end of the context."""
    repeated = [65, 66, 67, 68] * 9
    cases: list[tuple[list[int], int, dict[str, Any]]] = [
        (prompt, CONTEXT, {}) for prompt in (*random_prompts(3), repeated)
    ]
    cases += [(repeated, tokens, {}) for tokens in range(40, 44)]
    said = engine.slots.model.generate(repeated, 60, temperature=0)
    cases += [(repeated, CONTEXT, {"ends": [token]}) for token in {*said}]
    found: list[list[list[Drawn | Ended]]] = []
    steps, accepted = [], engine.accepted
    costs = engine.slots.checks
    for checks in ({}, costs):
        engine.slots.checks = checks
        begun, callers = engine.steps, []
        for prompt, tokens, more in cases:
            callers.append(Caller(prompt, tokens, logprobs=2, **more))
            engine.submit(callers[-1].request)
            callers[-1].tokens()
        found.append([caller.events for caller in callers])
        steps.append(engine.steps - begun)
    assert found[0] == found[1]
    right = sum(caller.request.accepted for caller in callers)
    assert engine.accepted - accepted == right == steps[0] - steps[1] > 50
    assert all(caller.request.guessed >= caller.request.accepted for caller in callers)
    sampled = Caller(repeated, 9, settings=Sampling(1.0))
    engine.submit(sampled.request)
    assert len(sampled.tokens()) == 9 and not sampled.request.guessed


def test_guesses_must_pay(engine: Engine) -> None:
    costs, engine.slots.checks = engine.slots.checks, {1: 4.0}  # 3 right guesses save no more
    caller = Caller([65, 66, 67, 68] * 9, 60)
    engine.submit(caller.request)
    assert len(caller.tokens()) == 60 and not caller.request.guessed
    engine.slots.checks = costs


@pytest.mark.parametrize(("slots", "speculate", "said"), [
    (3, 3, "--slots: expected a power of two, at most 64, got 3"),
    (2, 16, "--speculate: expected at most 15, got 16"),
])  # fmt: skip
def test_wrong_flags(slots: int, speculate: int, said: str, engine: Engine) -> None:
    flags = argparse.Namespace(slots=slots, speculate=speculate, queue=1)
    with pytest.raises(InputError, match=said):
        make_engine(engine.slots.model, flags)


@pytest.mark.parametrize("context", [1, 2, 3])
def test_a_context_without_room_is_refused_at_the_start(context: int) -> None:
    """Instead of by each request."""
    flags = argparse.Namespace(slots=2, speculate=0, queue=1)
    model = GPT(GPTConfig(layers=1, heads=1, dim=8, context=context, vocabulary=11))
    if context == 3:
        assert make_engine(model, flags).most == 2
        return
    with pytest.raises(InputError, match=r"has no room for a prompt and an answer: .* at least 3"):
        make_engine(model, flags)


def test_a_failed_engine_ends_all_requests() -> None:
    made = Engine(strong_model(), 1, 16, 2)
    made.start()

    def broken(*_: Any) -> Any:
        raise RuntimeError("no")

    threading.excepthook, before = (lambda *_: None), threading.excepthook
    try:
        made.slots.step = broken  # type: ignore[method-assign]
        caller = Caller([65], 3)
        made.submit(caller.request)
        assert caller.tokens() == []
        assert isinstance(caller.events[-1], Ended) and caller.events[-1].reason == "error"
        with pytest.raises(Busy, match="the server is shutting down"):
            made.submit(Caller([65], 3).request)
    finally:
        threading.excepthook = before
    made.close()


def test_stop_texts() -> None:
    for pieces, stop, whole in (
        ("ab|cd|ef", ["cde"], "ab"), ("ab|cd|xef", ["cde"], "abcdxef"), ("aa|ab", ["aab"], "a"),
        ("abc", ["c", "bc"], "a"), ("x|y", [], "xy"), ("ab|a", ["abc"], "aba"),
    ):  # fmt: skip
        text, shown = Text(tokenizer(), stop), ""
        for character in pieces.replace("|", ""):
            shown += text.add(ord(character))
            if text.stopped:
                break
        else:
            shown += text.end()
        assert shown == whole
    text = Text(tokenizer(), ["€"])
    assert [text.add(byte) for byte in "a€".encode()] == ["a", "", "", ""] and text.stopped


@pytest.mark.parametrize("chat", [True, False])
def test_tokens_that_come_together_are_one_event(chat: bool) -> None:
    server: Any = argparse.Namespace(name='a "name" of {} \u2026', tokenizer=tokenizer())
    job: Any = argparse.Namespace(cancel=lambda: None)
    body = {"stream": True, "stream_options": {"include_usage": False}}

    async def events(reason: str) -> list[str]:
        answer = Answer(server, job, wanted(body, "chat" if chat else "completion"), chat,
                        queue := Events())  # fmt: skip
        told = [*map(Drawn, 'a"\\\n\u00e9'.encode()), Ended(reason, "it failed")]
        asyncio.get_running_loop().call_soon(lambda: [queue.put_nowait(one) for one in told])
        return [event async for event in answer.stream()]

    failed = asyncio.run(events("error"))
    assert "it failed" in failed[-2] and "\u00e9" in failed[-3]

    *first, text, end, done = asyncio.run(events("length"))
    assert len(first) == chat and done == "data: [DONE]\n\n"
    said, last = (json.loads(event.removeprefix("data: ")) for event in (text, end))
    (choice,), (ending,) = said.pop("choices"), last.pop("choices")
    assert said == last and said["model"] == server.name
    shown = choice["delta"]["content"] if chat else choice["text"]
    assert shown == 'a"\\\n\u00e9' and choice.keys() == ending.keys()
    assert (choice["finish_reason"], ending["finish_reason"]) == (None, "length")


def test_offsets_are_those_of_the_text() -> None:
    """One character may have several tokens."""
    server: Any = argparse.Namespace(name="tiny", tokenizer=tokenizer())
    job: Any = argparse.Namespace(cancel=lambda: None)
    told = Answer(server, job, wanted({"logprobs": 0}, "completion"), False, Events())
    drawn = [*map(Drawn, "aé€b".encode())]
    parts = [told.logprobs(drawn[:2]), told.logprobs(drawn[2:])]
    assert [place for part in parts for place in part["text_offset"]] == [0, 1, 1, 2, 2, 2, 3]


def test_of_tokens_with_equal_text_the_likelier_is_reported() -> None:
    """Parts of characters, for example, have the same text."""
    drawn = [Drawn(0xC3, -0.5, [(0xC3, -0.5), (0xE2, -2.0), (97, -3.0)])]
    told = completion_logprobs(tokenizer(), drawn, [0])
    assert told["tokens"] == ["\ufffd"]
    assert told["top_logprobs"] == [{"\ufffd": -0.5, "a": -3.0}]


def test_usage_is_of_the_tokens_up_to_a_stop_text() -> None:
    """Accepted guesses may have added more tokens in the same step."""
    server: Any = argparse.Namespace(name="tiny", tokenizer=tokenizer())
    job: Any = argparse.Namespace(cancel=lambda: None, prompt=[1], shared=0, accepted=3, guessed=3)

    async def usage() -> Any:
        answer = Answer(server, job, wanted({"stop": "b"}, "completion"), False, queue := Events())
        for one in map(Drawn, b"abcd"):
            queue.put_nowait(one)
        assert await answer.piece() == ("a", [Drawn(97), Drawn(98)], "stop")
        return answer.usage()

    assert asyncio.run(usage())["completion_tokens"] == 2


def test_the_engine_goes_on_when_clients_were_written_to(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits until they have taken the events, but not if the loop has ended."""
    pytest.importorskip("starlette", reason="starlette is not installed: pip install '.[serve]'")
    monkeypatch.setattr(server_module, "PATIENCE", 60)
    server = server_module.Server(engine, tokenizer(), "tiny", server_module.Limits())
    loop, queue, written = asyncio.new_event_loop(), Events(), list[Any]()

    async def client() -> None:
        while not (written and isinstance(written[-1], Ended)):
            written.extend(await taken(queue))

    thread = threading.Thread(target=loop.run_until_complete, args=(client(),))
    thread.start()
    for event in (Drawn(1), Drawn(2), Ended("length")):
        server.posted.append(partial(queue.put_nowait, event))
        server._hand_on(loop)
        assert written[-1] == event and not server.posted
    thread.join()
    loop.close()
    server.posted.append(partial(queue.put_nowait, Drawn(3)))
    server._hand_on(loop)


def test_a_client_that_disconnects_while_sending(engine: Engine) -> None:
    """The client gets no answer, and there is no traceback."""
    requests: Any = pytest.importorskip(
        "starlette.requests", reason="starlette is not installed: pip install '.[serve]'"
    )
    server = server_module.Server(engine, tokenizer(), "tiny", server_module.Limits())
    messages = iter([{"type": "http.request", "body": b"{", "more_body": True},
                     {"type": "http.disconnect"}])  # fmt: skip

    async def receive() -> Any:
        return next(messages)

    headers = [(b"content-type", b"application/json")]
    request = requests.Request({"type": "http", "method": "POST", "headers": headers}, receive)
    with pytest.raises(Refused, match="the client has closed the request"):
        asyncio.run(server._completion(request))


# --- over HTTP ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(engine: Engine) -> Iterator[str]:
    """http://127.0.0.1:PORT of a server with a key."""
    with serving(engine, KEY) as found:
        yield found


@pytest.fixture
def client(place: str) -> Any:
    openai = pytest.importorskip("openai", reason="openai is not installed: pip install openai")
    return openai.OpenAI(base_url=f"{place}/v1", api_key=KEY, max_retries=0)


def test_models_and_completions(client: Any, engine: Engine) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "minigrad"
    prompt = "To be, or not"
    wanted = list(engine.slots.model.generate(list(prompt.encode()), 12, temperature=0))
    text = bytes(token for token in wanted if token < 256).decode("utf-8", "replace")
    answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=12, temperature=0)
    assert answer.choices[0].text == text and answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(prompt), 12)
    assert answer.usage.completion_tokens_details.rejected_prediction_tokens >= 0
    parts = list(client.completions.create(
        model="tiny", prompt=list(prompt.encode()), max_tokens=12, temperature=0, stream=True,
        stream_options={"include_usage": True}))  # fmt: skip
    assert "".join(part.choices[0].text for part in parts[:-1]) == text
    assert parts[-1].usage.completion_tokens == 12 and parts[-2].choices[0].finish_reason
    stop = text[3:5]
    short = client.completions.create(
        model="tiny", prompt=prompt, max_tokens=12, temperature=0, stop=[stop]
    )
    assert short.choices[0].text == text[: text.find(stop)]
    assert short.choices[0].finish_reason == "stop"
    seeds = [client.completions.create(model="tiny", prompt=prompt, max_tokens=12, seed=seed,
                                       temperature=1.5).choices[0].text
             for seed in (1, 1, 2)]  # fmt: skip
    assert seeds[0] == seeds[1] != seeds[2]


def test_chat_and_logprobs(client: Any, engine: Engine) -> None:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    ids = [256, *b"system\nBe kind.", 257, 10, 256, *b"user\nHi", 257, 10, 256, *b"assistant\n"]
    wanted = list(engine.slots.model.generate(ids, 8, temperature=0, stop=[257]))
    shown = [token for token in wanted if token != 257]
    answer = client.chat.completions.create(
        model="tiny", messages=messages, max_tokens=8, temperature=0, logprobs=True, top_logprobs=3
    )
    choice = answer.choices[0]
    joined = b"".join(tokenizer().token_bytes(token) for token in shown)
    assert choice.message.content == joined.decode("utf-8", "replace")
    assert [bytes(one.bytes) for one in choice.logprobs.content] == [
        tokenizer().token_bytes(token) for token in shown
    ]
    logits = engine.slots.model(Tensor([ids])).numpy()[0, -1].astype(np.float64)
    best = (logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())).max()
    assert choice.logprobs.content[0].logprob == pytest.approx(best, abs=1e-4)
    assert choice.logprobs.content[0].top_logprobs[0].logprob == choice.logprobs.content[0].logprob
    assert [len(one.top_logprobs) for one in choice.logprobs.content] == [3] * len(shown)
    parts = list(client.chat.completions.create(
        model="tiny", messages=messages, max_tokens=8, temperature=0, stream=True, logprobs=True))
    assert parts[0].choices[0].delta.role == "assistant"
    assert "".join(part.choices[0].delta.content or "" for part in parts) == choice.message.content
    told = [one for part in parts if part.choices[0].logprobs
            for one in part.choices[0].logprobs.content]  # fmt: skip
    assert [one.logprob for one in told] == [one.logprob for one in choice.logprobs.content]
    plain = client.completions.create(
        model="tiny", prompt="ab", max_tokens=3, temperature=0, logprobs=2
    ).choices[0].logprobs
    assert len(plain.tokens) == 3 and plain.text_offset[0] == 0
    assert [len(top) for top in plain.top_logprobs] <= [2, 2, 2]


MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(("body", "param", "code"), [
    ({"n": 2}, "n", "unsupported_parameter"), ({"tools": [{}]}, "tools", "unsupported_parameter"),
    ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
    ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported_parameter"),
    ({"presence_penalty": 0.5}, "presence_penalty", "unsupported_parameter"),
    ({"tempreature": 1}, "tempreature", "unknown_parameter"),
    ({"temperature": 3}, "temperature", "invalid_value"),
    ({"temperature": True}, "temperature", "invalid_value"), ({"stop": 5}, "stop", "invalid_type"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"), ({"user": 5}, "user", "invalid_type"),
    ({"max_tokens": 101}, "max_tokens", "invalid_value"),
    ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
    ({"model": "gpt-9"}, "model", "model_not_found"), ({"messages": []}, "messages", None),
    ({"messages": [{"role": "tool", "content": ""}]}, "messages[0]", "unsupported_value"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content",
     "unsupported_value"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
     "messages[0].content", "invalid_type"),
    ({"n": True}, "n", "unsupported_parameter"),
    ({"chat_template_kwargs": 0}, "chat_template_kwargs", "invalid_value"),
    ({"messages": [{"role": "user", "content": "x" * 300}]}, "messages", "context_length_exceeded"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
])  # fmt: skip
def test_what_is_refused(
    body: dict[str, Any], param: str, code: str | None, place: str
) -> None:
    status, answer = post(place, json.dumps({"messages": MESSAGES, **body}))
    error = answer["error"]
    assert status == (404 if code == "model_not_found" else 400)
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
    assert param.split("[")[0] in error["message"] or code == "context_length_exceeded"


def post(
    place: str, raw: str, path: str = "/v1/chat/completions", **headers: str
) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(place.removeprefix("http://"), timeout=60)
    sent = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}", **headers}
    connection.request("POST" if raw else "GET", path, raw.encode() or None, sent)
    response = connection.getresponse()
    text = response.read().decode()
    kind = response.getheader("content-type", "")
    return response.status, json.loads(text) if "json" in kind else text


def test_what_changes_nothing(place: str) -> None:
    usual = {"messages": MESSAGES, "temperature": 0, "max_tokens": 4}
    names = {"tokenizer": 1, "self": 1, "func": 1, "answer": False}  # not in the template
    answers = [post(place, json.dumps({**usual, **more})) for more in (
        {}, {"presence_penalty": 0.0, "n": 1}, {"chat_template_kwargs": names}
    )]  # fmt: skip
    assert [status for status, _ in answers] == [200] * 3
    assert len({answer["choices"][0]["message"]["content"] for _, answer in answers}) == 1


def test_limits_keys_and_paths(place: str) -> None:
    assert post(place, json.dumps({"messages": MESSAGES, "\ud800": 1}))[0] == 400
    assert post(place, json.dumps({"messages": [{"role": "user", "content": "\ud800"}]}))[0] == 400
    assert post(place, "{" + " " * 20_000)[0] == 413
    assert post(place, "{")[1]["error"]["message"].startswith("the request body is not valid JSON")
    assert post(place, "[]")[0] == 400
    assert post(place, "[" * 9_000)[0] == 400
    deep = '{"messages": [{"role": "user", "content": "Hi"}], "chat_template_kwargs": {"a": …}}'
    for levels in (800, 2000):  # what 3.11 still parses; more than the stack of any version
        assert post(place, deep.replace("…", "[" * levels + "]" * levels))[0] in (200, 400)
    wrong = {"Authorization": "Bearer no"}
    status, answer = post(place, "{}", **wrong)
    assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
    assert post(place, "", "/v1/models", **wrong)[0] == 401
    assert post(place, "{}", **{"Content-Type": "text/plain"})[0] == 415
    assert post(place, "{}", "/v1/embeddings")[1]["error"]["code"] == "unknown_url"
    assert post(place, "", "/v1/completions")[0] == 405
    assert post(place, "", "/health")[1]["status"] == "ok"
    assert post(place, "", "/v1/models", Host="evil.example")[0] == 400
    status, page = post(place, "", "/")
    assert status == 200 and "/v1/chat/completions" in page and "//" not in re.sub(
        r"https?://127|// ", "", page.partition("<script>")[0]
    )
    for prompt in ([], "", [300], ["a", "b"], 5, [True]):
        status, answer = post(place, json.dumps({"prompt": prompt}), "/v1/completions")
        assert (status, answer["error"]["param"]) == (400, "prompt"), prompt


def idle(place: str) -> dict[str, Any]:
    """/health once nothing is active, within 60 s."""
    for _ in range(600):
        health: dict[str, Any] = post(place, "", "/health")[1]
        if not health["active"] and not health["waiting"]:
            return health
        threading.Event().wait(0.1)
    raise AssertionError(health)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_has_gone_costs_nothing(stream: bool, place: str) -> None:
    before = idle(place)["tokens"]
    host, port = place.removeprefix("http://").split(":")
    body = json.dumps({"prompt": "a", "max_tokens": 100, "stream": stream, "temperature": 0})
    for _ in range(3):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(
                f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}"
                f"\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
                f"{body}".encode()
            )
            if stream:
                connection.recv(100)
    assert idle(place)["tokens"] - before < 300


def test_concurrent_requests_are_not_mixed_up(place: str) -> None:
    openai = pytest.importorskip("openai", reason="openai is not installed: pip install openai")
    prompts = random_prompts(24, 80)

    async def ask(client: Any, prompt: list[int]) -> str:
        while True:
            try:
                answer = await client.completions.create(
                    model="tiny", prompt=prompt, max_tokens=6, temperature=0
                )
                return str(answer.choices[0].text)
            except openai.RateLimitError as error:
                assert error.code == "server_busy"
                await asyncio.sleep(0.02)

    async def all_of_them(together: bool) -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=f"{place}/v1", api_key=KEY, max_retries=0
        ) as client:
            if together:
                return list(await asyncio.gather(*(ask(client, prompt) for prompt in prompts)))
            return [await ask(client, prompt) for prompt in prompts]

    assert asyncio.run(all_of_them(True)) == asyncio.run(all_of_them(False))


def test_a_port_in_use_is_reported_before_compiling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uvicorn = pytest.importorskip(
        "uvicorn", reason="uvicorn is not installed: pip install '.[serve]'"
    )
    save_checkpoint(tmp_path / "tiny.safetensors", strong_model(), tokenizer())
    monkeypatch.setattr(Engine, "start", lambda _: pytest.fail("it compiles"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        places = [["--port", str(taken.getsockname()[1])], ["--host", "\udc80", "--port", "0"]]
        for place in places:  # the second one is how Python reads a name in another encoding
            flags = parser().parse_args(["serve", "--checkpoint",
                                         str(tmp_path / "tiny.safetensors"), "--slots", "1",
                                         *place])  # fmt: skip
            with pytest.raises(InputError, match="cannot listen at"):
                server_module.serve_command(flags)
    monkeypatch.setattr(uvicorn.Server, "run", lambda *_, **__: None)
    monkeypatch.setattr(Engine, "start", lambda _: None)
    flags.host = "::1"
    server_module.serve_command(flags)
    assert "at http://[::1]:" in capsys.readouterr().out


def test_sigterm_lets_running_requests_finish(tmp_path: Path) -> None:
    pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install '.[serve]'")
    path = tmp_path / "tiny.safetensors"
    save_checkpoint(path, strong_model(), tokenizer())
    process = subprocess.Popen(
        [sys.executable, "-m", "minigrad.models.gpt", "serve", "--checkpoint", str(path), "--port",
         "0", "--slots", "2", "--context", "256"],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        found = re.search(r"serving tiny at http://(127\.0\.0\.1:\d+)", lines[1])
        assert found, lines
        connection = http.client.HTTPConnection(found[1], timeout=60)
        body = json.dumps({"prompt": "a", "max_tokens": 200, "stream": True, "temperature": 0,
                           "stream_options": {"include_usage": True}})  # fmt: skip
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        first = response.readline()
        process.send_signal(signal.SIGTERM)
        rest = response.read()
        assert first.startswith(b"data: {") and rest.endswith(b"data: [DONE]\n\n")
        told = json.loads(rest.split(b"data: ")[-2])["usage"]["completion_tokens"]
        assert told == 200 or b'"stop"' in rest
        assert process.wait(60) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.wait()
