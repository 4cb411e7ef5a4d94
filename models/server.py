"""`python models/gpt.py serve`: a model behind OpenAI's protocol, on starlette and uvicorn."""

from __future__ import annotations

import argparse
import asyncio
import hmac
import ipaddress
import json
import re
import secrets
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from minigrad.graph.interned import kept
from minigrad.models import console
from minigrad.models.chat_template import ChatTemplate, ends_of, template_of
from minigrad.models.console import require
from minigrad.models.engine import Busy, Drawn, Ended, Engine, Request
from minigrad.models.errors import InputError
from minigrad.models.gpt import GPT
from minigrad.models.pretrained import load_to_read
from minigrad.models.protocol import (
    Refused,
    Text,
    Wanted,
    chat_logprobs,
    completion_logprobs,
    messages_of,
    read_body,
    wanted,
)
from minigrad.models.sizing import cache_bytes
from minigrad.models.speculation import MOST
from minigrad.models.tokenizer import Stream, Tokenizer

_JSON = json.JSONEncoder(ensure_ascii=False)
# The page at `/`: chat in the browser, in plain HTML without external resources.
PAGE = Path(__file__).with_name("chat_page.html").read_text("utf-8")
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PATIENCE = 0.005  # seconds that the engine waits until a step's tokens are written
LEAST = 3  # positions of a slot: one token each of prompt and answer, and one that stays free
DEFAULT_TOKENS = 16  # of a completion without max_tokens, as OpenAI's


@dataclass(frozen=True)
class Limits:
    """body: bytes of a request. tokens: the most that a request may ask for.

    key: the API key that requests must have, if any.
    """

    body: int = 1 << 20
    tokens: int = 4096
    key: str | None = None


class Server:
    """The application: `app` for an ASGI server. The engine must be started before requests arrive.
    """

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, name: str, limits: Limits,
        hosts: Sequence[str] = ("*",),
    ) -> None:  # fmt: skip
        applications: Any = require("starlette.applications")
        routing: Any = require("starlette.routing")
        middleware: Any = require("starlette.middleware")
        trusted: Any = require("starlette.middleware.trustedhost")
        self.responses: Any = require("starlette.responses")
        self.gone: Any = require("starlette.requests").ClientDisconnect
        self.engine, self.tokenizer, self.name, self.limits = engine, tokenizer, name, limits
        self.started, self.no_template = int(time.time()), ""
        self.template: ChatTemplate | None = None
        try:
            self.template = template_of(tokenizer)
        except InputError as error:
            self.no_template = str(error)
        self.ends = ends_of(tokenizer)
        self.posted = list[Callable[[], None]]()  # from the engine, not handed on yet

        @asynccontextmanager
        async def life(_: Any) -> AsyncIterator[None]:
            engine.after = partial(self._hand_on, asyncio.get_running_loop())
            yield
            await asyncio.to_thread(engine.close)

        def route(path: str, method: str, function: Any) -> Any:
            async def guarded(request: Any) -> Any:
                try:
                    if path.startswith("/v1"):
                        self._check_key(request)
                    return await function(request)
                except RecursionError:
                    deep = Refused("the request body is nested too deeply")
                    return self.responses.JSONResponse(deep.body, deep.status)
                except Refused as refused:
                    return self.responses.JSONResponse(refused.body, refused.status)

            return routing.Route(path, guarded, methods=[method])

        self.app: Any = applications.Starlette(
            routes=[
                route("/", "GET", self._page), route("/health", "GET", self._health),
                route("/v1/models", "GET", self._models),
                route("/v1/models/{name:path}", "GET", self._model),
                route("/v1/completions", "POST", self._completion),
                route("/v1/chat/completions", "POST", self._chat),
            ],
            middleware=[middleware.Middleware(trusted.TrustedHostMiddleware,
                                              allowed_hosts=list(hosts))],
            exception_handlers={404: self._nothing, 405: self._nothing, 500: self._broken},
            lifespan=life,
        )  # fmt: skip

    def _hand_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let the loop run posted functions, and wait until it has written to the clients.

        Called in the engine's thread after a turn. While a step runs, it uses all processors, and
        its threads wait for each other: a loop that writes at the same time stops all of them, and
        costs three times its own time (8 requests, two cores). A slow loop is waited for at most
        PATIENCE.
        """
        several, self.posted = self.posted, []
        if several:
            written = threading.Event()
            try:
                loop.call_soon_threadsafe(_call_all, several, written)
            except RuntimeError:  # the loop has ended, and so have all readers
                return
            written.wait(PATIENCE)

    async def _nothing(self, request: Any, error: Any) -> Any:
        refused = Refused(f"{request.method} {request.url.path}: no such endpoint",
                          status=error.status_code, code="unknown_url")  # fmt: skip
        return self.responses.JSONResponse(refused.body, refused.status)

    async def _broken(self, _: Any, error: Exception) -> Any:
        refused = Refused(f"internal server error: {type(error).__name__}", status=500,
                          kind="server_error")  # fmt: skip
        return self.responses.JSONResponse(refused.body, refused.status)

    async def _page(self, _: Any) -> Any:
        return self.responses.HTMLResponse(PAGE, headers={"Content-Security-Policy": POLICY})

    async def _health(self, _: Any) -> Any:
        engine = self.engine
        good = engine.failure is None
        body = {"status": "ok" if good else "failed", "active": len(engine.active),
                "waiting": len(engine.waiting), "tokens": engine.given,
                "steps": engine.steps, "guessed": engine.guessed,
                "accepted": engine.accepted}  # fmt: skip
        return self.responses.JSONResponse(body, 200 if good else 503)

    def _about(self) -> dict[str, Any]:
        return {"id": self.name, "object": "model", "created": self.started, "owned_by": "minigrad"}

    async def _models(self, _: Any) -> Any:
        return self.responses.JSONResponse({"object": "list", "data": [self._about()]})

    async def _model(self, request: Any) -> Any:
        self._check_name(request.path_params["name"])
        return self.responses.JSONResponse(self._about())

    def _check_key(self, request: Any) -> None:
        given = request.headers.get("authorization", "")
        expected = f"Bearer {self.limits.key}"
        if self.limits.key is not None and not hmac.compare_digest(
            given.encode(), expected.encode()
        ):
            raise Refused("missing or wrong API key: send Authorization: Bearer KEY", status=401,
                          code="invalid_api_key")  # fmt: skip

    def _check_name(self, name: Any) -> None:
        if name != self.name:
            raise Refused(f"unknown model {str(name)[:80]!r}: this server has {self.name}",
                          "model", 404, "model_not_found")  # fmt: skip

    async def _body(self, request: Any) -> dict[str, Any]:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refused(f"content type: expected application/json, got {kind!r}", status=415)
        raw = bytearray()
        try:
            async for part in request.stream():
                raw += part
                if len(raw) > self.limits.body:
                    raise Refused(f"the request has more than {self.limits.body} bytes", status=413,
                                  code="request_too_large")  # fmt: skip
        except self.gone:
            raise Refused("the client has closed the request", status=499) from None
        body = read_body(bytes(raw))
        if body.get("model") is not None:
            self._check_name(body["model"])
        return body

    async def _completion(self, request: Any) -> Any:
        body = await self._body(request)
        want = wanted(body, "completion")
        prompt = body.get("prompt")
        if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
            prompt = prompt[0]
        if isinstance(prompt, str):
            ids = await asyncio.to_thread(self._encoded, prompt)
        elif isinstance(prompt, list) and prompt and all(type(one) is int for one in prompt):
            ids = prompt
        else:
            raise Refused("prompt: expected one string, or a list of token ids", "prompt",
                          code="unsupported_value")  # fmt: skip
        most = self.engine.slots.model.config.vocabulary
        if not ids or not 0 <= min(ids) <= max(ids) < most:
            raise Refused(f"prompt: expected at least one token, each in 0 … {most - 1}", "prompt",
                          code="invalid_value")  # fmt: skip
        return await self._answer(request, want, ids, DEFAULT_TOKENS, chat=False)

    async def _chat(self, request: Any) -> Any:
        body = await self._body(request)
        want = wanted(body, "chat")
        messages = messages_of(body)
        if self.template is None:
            raise Refused(self.no_template, "messages", code="unsupported_value")
        more = want.body.get("chat_template_kwargs", {})
        if not isinstance(more, dict) or set(more) & {"messages", "add_generation_prompt"}:
            raise Refused("chat_template_kwargs: expected an object of template variables",
                          "chat_template_kwargs", code="invalid_value")  # fmt: skip
        try:
            ids = await asyncio.to_thread(self.template.encode, self.tokenizer, messages, more)
        except InputError as error:
            raise Refused(str(error), "messages", code="invalid_value") from None
        return await self._answer(request, want, ids, self.limits.tokens, chat=True)

    def _encoded(self, text: str) -> list[int]:
        try:
            return self.tokenizer.encode(text)
        except InputError as error:  # a character that a small vocabulary lacks
            raise Refused(str(error), "prompt", code="invalid_value") from None

    async def _answer(
        self, request: Any, want: Wanted, ids: Sequence[int], usual: int, chat: bool
    ) -> Any:
        room = self.engine.most - len(ids)
        if want.tokens is not None and want.tokens > self.limits.tokens:
            raise Refused(f"max_tokens: expected at most {self.limits.tokens}, got {want.tokens}",
                          "max_tokens", code="invalid_value")  # fmt: skip
        if room < (want.tokens or 1):
            raise Refused(
                f"the prompt has {len(ids)} tokens, and {want.tokens or 1} more were requested: "
                f"the context has {self.engine.most}", "messages" if chat else "prompt",
                code="context_length_exceeded",
            )  # fmt: skip
        events: Events = asyncio.Queue()

        def tell(event: Drawn | Ended) -> None:
            self.posted.append(partial(events.put_nowait, event))

        job = Request(ids, min(want.tokens or usual, room), want.settings, tell, want.seed,
                      self.ends, want.logprobs)  # fmt: skip
        try:
            self.engine.submit(job)
        except Busy as error:
            raise Refused(str(error), status=429, code="server_busy", kind="server_error") from None
        answer = Answer(self, job, want, chat, events)
        if want.stream:
            return self.responses.StreamingResponse(
                answer.stream(), media_type="text/event-stream",
                headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
            )  # fmt: skip
        return self.responses.JSONResponse(await answer.whole(request))


Events = asyncio.Queue[Drawn | Ended]


async def taken(events: Events) -> list[Drawn | Ended]:
    """At least one event, and all others that have arrived."""
    found = [await events.get()]
    while not events.empty():
        found.append(events.get_nowait())
    return found


class Answer:
    """A request's events as an answer of the protocol."""

    def __init__(
        self, server: Server, job: Request, want: Wanted, chat: bool, events: Events
    ) -> None:
        self.server, self.job, self.want, self.chat, self.events = server, job, want, chat, events
        kind = "chatcmpl" if chat else "cmpl"
        self.head = {"id": f"{kind}-{secrets.token_hex(12)}", "created": int(time.time()),
                     "model": server.name}  # fmt: skip
        self.text, self.said = Text(server.tokenizer, want.stop), 0
        self.placed, self.offset = Stream(server.tokenizer), 0  # text position for logprobs
        weakref.finalize(self, job.cancel)  # also if a stream never begins

    async def piece(self) -> tuple[str, list[Drawn], str | None]:
        """What has arrived: text, its tokens, and the reason if the answer has ended."""
        shown, drawn = "", list[Drawn]()
        for event in await taken(self.events):
            if isinstance(event, Drawn):
                drawn.append(event)
                self.said += 1
                shown += self.text.add(event.token)
                if self.text.stopped:
                    return shown, drawn, "stop"
            elif event.reason in ("error", "cancelled"):
                if drawn:  # these come first
                    self.events.put_nowait(event)
                    return shown, drawn, None
                raise Refused(event.message or event.reason, status=503, kind="server_error")
            else:
                shown += self.text.end()
                return shown, drawn, "stop" if self.text.stopped else event.reason
        return shown, drawn, None

    def usage(self) -> dict[str, Any]:
        """Tokens read and written; the engine may have drawn more than were needed for a stop text.
        """
        read, said = len(self.job.prompt), self.said
        right = self.job.accepted
        return {"prompt_tokens": read, "completion_tokens": said, "total_tokens": read + said,
                "prompt_tokens_details": {"cached_tokens": self.job.shared},
                "completion_tokens_details": {
                    "accepted_prediction_tokens": right,
                    "rejected_prediction_tokens": self.job.guessed - right}}  # fmt: skip

    def logprobs(self, drawn: Sequence[Drawn]) -> Any:
        """Log probabilities of the next tokens, if requested."""
        tokenizer = self.server.tokenizer
        if self.want.logprobs is None:
            return None
        if self.chat:
            return chat_logprobs(tokenizer, drawn)
        offsets = []
        for each in drawn:
            offsets.append(self.offset)
            if each.token < len(tokenizer):
                self.offset += len(self.placed.add(each.token))
        return completion_logprobs(tokenizer, drawn, offsets)

    async def whole(self, request: Any) -> dict[str, Any]:
        """The answer as one object; Refused (which nobody reads) if the client is gone."""
        gone = asyncio.create_task(self._gone(request))
        work = asyncio.create_task(self._collect())
        try:
            await asyncio.wait({gone, work}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise Refused("the client has closed the request", status=499)
            text, drawn, reason = work.result()
        finally:
            for task in (gone, work):
                task.cancel()
            self.job.cancel()
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason,
                                  "logprobs": self.logprobs(drawn)}  # fmt: skip
        if self.chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self.head, "object": kind, "choices": [choice], "usage": self.usage()}

    async def _collect(self) -> tuple[str, list[Drawn], str]:
        whole, every, reason = "", list[Drawn](), None
        while reason is None:
            text, drawn, reason = await self.piece()
            whole += text
            every += drawn
        return whole, every, reason

    async def _gone(self, request: Any) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    async def stream(self) -> AsyncIterator[str]:
        """Server-sent events: pieces of the answer, then [DONE]."""
        drawn, reason = list[Drawn](), None
        try:
            if self.chat:
                yield self._chunk({"role": "assistant", "content": ""}, None, [])
            while reason is None:
                text, more, reason = await self.piece()
                drawn += more if self.want.logprobs is not None else []
                if drawn and (text or reason):
                    yield self._chunk({"content": text} if self.chat else text, None, drawn)
                    drawn = []
                elif text:
                    yield _JSON.encode(text).join(self._around)
            yield self._chunk({} if self.chat else "", reason, [])
            if self.want.usage:
                yield _event({**self.head, "object": self._kind(), "choices": [],
                              "usage": self.usage()})  # fmt: skip
        except Refused as refused:  # the answer has begun: its status cannot change
            yield _event(refused.body)
        finally:  # also if the client is gone
            self.job.cancel()
        yield "data: [DONE]\n\n"

    @kept
    def _around(self) -> list[str]:
        """The text before and after the piece in an event."""
        mark = secrets.token_hex(12)
        return self._chunk({"content": mark} if self.chat else mark, None, []).split(f'"{mark}"')

    def _kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _chunk(self, piece: Any, reason: str | None, drawn: Sequence[Drawn]) -> str:
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason}
        choice["delta" if self.chat else "text"] = piece
        choice["logprobs"] = self.logprobs(drawn) if drawn else None
        more = {"usage": None} if self.want.usage else {}
        return _event({**self.head, "object": self._kind(), "choices": [choice], **more})


def _call_all(functions: Sequence[Callable[[], None]], after: threading.Event) -> None:
    for function in functions:
        function()
    asyncio.get_running_loop().call_soon(after.set)  # after the tasks that they have woken


def _event(value: Any) -> str:
    return f"data: {_JSON.encode(value)}\n\n"


def hosts_of(host: str) -> list[str]:
    """Allowed host names: only this machine's, if the server listens only here.

    This refuses pages of other sites whose names point here (DNS rebinding).
    """
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    return ["localhost", "127.0.0.1", "[::1]", host] if local else ["*"]


def make_engine(model: GPT, flags: argparse.Namespace) -> Engine:
    """The engine; InputError for invalid flags, or if the caches do not fit in memory."""
    if flags.slots & (flags.slots - 1) or flags.slots > 64:
        raise InputError(f"--slots: expected a power of two, at most 64, got {flags.slots}")
    if flags.speculate > MOST:
        raise InputError(f"--speculate: expected at most {MOST}, got {flags.speculate}")
    if model.config.context < LEAST:
        raise InputError(f"a context of {model.config.context} has no room for a prompt and an "
                         f"answer: expected at least {LEAST} (see --context)")  # fmt: skip
    console.check_fits(
        cache_bytes(model.config, flags.slots, itemsize=4),
        f"keys and values of --slots {flags.slots}", "use fewer, or a smaller --context",
    )  # fmt: skip
    return Engine(model, flags.slots, model.config.context, flags.queue, flags.speculate)


def serve_command(flags: argparse.Namespace) -> None:
    """`serve`: until SIGTERM or Ctrl-C, after which started requests finish."""
    if flags.api_key is not None and not re.fullmatch("[!-~]+", flags.api_key):
        raise InputError("--api-key: expected printable ASCII characters without spaces, got "
                         f"{flags.api_key!r}")  # fmt: skip
    uvicorn: Any = require("uvicorn")
    require("starlette")
    path, model, tokenizer = load_to_read(flags.checkpoint, flags.context)
    engine = make_engine(model, flags)
    name = flags.name or path.stem
    limits = Limits(flags.max_body, flags.max_tokens, flags.api_key)
    server = Server(engine, tokenizer, name, limits, hosts_of(flags.host))
    config = uvicorn.Config(
        server.app, host=flags.host, port=flags.port, log_level="warning", access_log=False,
        timeout_graceful_shutdown=flags.drain, timeout_keep_alive=30, limit_concurrency=1000,
    )  # fmt: skip
    host = f"[{flags.host}]" if ":" in flags.host else flags.host  # an IPv6 address
    try:
        socket = config.bind_socket()
    except (SystemExit, TypeError, UnicodeError):  # two of them: an invalid host name
        raise InputError(
            f"cannot listen at {host}:{flags.port}: is the port in use, or the host wrong?"
        ) from None
    print(f"compiling {name} for {flags.slots} requests at once …", flush=True)
    engine.start()
    socket.listen(1024)  # early clients wait until the server begins
    print(f"serving {name} at http://{host}:{socket.getsockname()[1]}", flush=True)
    uvicorn.Server(config).run(sockets=[socket])
    engine.close()
