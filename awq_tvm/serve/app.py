"""The HTTP side: OpenAI's endpoints, health and metrics, in front of a worker."""

from __future__ import annotations

import hmac
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from awq_tvm import __version__
from awq_tvm.errors import AwqTvmError, ResourceError, UnsupportedError, UsageError
from awq_tvm.serve.answers import Answers, ClientGoneError, Running
from awq_tvm.serve.job import Progress
from awq_tvm.serve.metrics import Metrics
from awq_tvm.serve.replies import Reply, event
from awq_tvm.serve.requests import ChatRequest, CompletionRequest
from awq_tvm.serve.scheduler import BusyError
from awq_tvm.serve.worker import Worker

# The page loads nothing from elsewhere, and no other page may frame it.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
CLIENT_CLOSED_REQUEST = 499  # nobody reads this answer; it is what the log and the metrics call it
Parsed = TypeVar("Parsed", CompletionRequest, ChatRequest)


@dataclass(frozen=True, slots=True)
class AppOptions:
    """What the HTTP side is told.

    Attributes:
        model: name that requests must give.
        keys: one of them must come with every request but /health; none: everybody is served.
        max_body: most bytes of a request.
    """

    model: str
    keys: tuple[str, ...] = ()
    max_body: int = 8 << 20


def make_app(answers: Answers, worker: Worker, options: AppOptions) -> FastAPI:
    """The application."""
    app = FastAPI(title="awq_tvm", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    service = _Service(answers, worker, options)
    app.add_api_route("/", service.page, methods=["GET"])
    app.add_api_route("/health", service.health, methods=["GET"])
    app.add_api_route("/metrics", service.show_metrics, methods=["GET"])
    app.add_api_route("/v1/models", service.models, methods=["GET"])
    app.add_api_route("/v1/models/{name:path}", service.one_model, methods=["GET"])
    app.add_api_route("/v1/completions", service.completions, methods=["POST"])
    app.add_api_route("/v1/chat/completions", service.chat, methods=["POST"])
    app.add_exception_handler(AwqTvmError, _refused)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(ClientGoneError, _refused)
    app.add_exception_handler(Exception, _refused)
    return app


class _Service:
    def __init__(self, answers: Answers, worker: Worker, options: AppOptions) -> None:
        self._answers, self._worker, self._options = answers, worker, options
        self._keys = [key.encode() for key in options.keys]
        self._metrics = Metrics(worker.scheduler)
        self._page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
        self._created = int(time.time())

    async def page(self) -> Response:
        return HTMLResponse(self._page, headers=_PAGE_HEADERS)

    async def health(self) -> Response:
        failure = self._worker.failure
        if failure is not None:
            return JSONResponse({"status": "failed", "why": failure.why}, HTTPStatus.SERVICE_UNAVAILABLE)
        return JSONResponse({"status": "ok"})

    async def show_metrics(self, request: Request) -> Response:
        self._check_key(request)
        return Response(generate_latest(self._metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def models(self, request: Request) -> Response:
        self._check_key(request)
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def one_model(self, name: str, request: Request) -> Response:
        self._check_key(request)
        self._check_model(name)
        return JSONResponse(self._model())

    async def completions(self, request: Request) -> Response:
        asked = await self._parse(request, CompletionRequest)
        return await self._answer(request, asked, logprobs=asked.logprobs is not None)

    async def chat(self, request: Request) -> Response:
        asked = await self._parse(request, ChatRequest)
        return await self._answer(request, asked, logprobs=bool(asked.logprobs))

    async def _answer(
        self, request: Request, asked: CompletionRequest | ChatRequest, *, logprobs: bool
    ) -> Response:
        begin = time.perf_counter()
        chat = isinstance(asked, ChatRequest)
        prepared = await run_in_threadpool(self._answers.prepare, asked)
        prompts = prepared.prompts
        read = sum(map(len, prompts))
        running = self._answers.start(asked, prepared, request.receive)
        reply = Reply(self._options.model, self._answers.engine.tokenizer, chat=chat, logprobs=logprobs)
        events = self._metrics.watch(running.events(), begin)
        count = len(prompts) * asked.answers
        if asked.stream:
            closing = asked.stream_options is not None and asked.stream_options.include_usage
            pieces = _stream(running, events, reply, count, prompt_tokens=read, chat=chat, usage=closing)
            return StreamingResponse(
                pieces, media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
            )
        choices: list[list[Progress]] = [[] for _ in range(count)]
        async for number, progress in events:
            choices[number].append(progress)
        return JSONResponse(reply.whole(choices, read, running.cached_tokens))

    async def _parse(self, request: Request, kind: type[Parsed]) -> Parsed:
        self._check_key(request)
        # Only such requests make a browser ask first whether a foreign page may send them; it may not.
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Content-Type must be application/json.")
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self._options.max_body:
                raise HTTPException(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    f"The request is longer than {self._options.max_body} bytes.",
                )
        try:
            asked = kind.model_validate_json(bytes(body))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            raise UsageError(
                f"The request is not understood: {first['msg']}",
                where=".".join(map(str, first["loc"])) or "body",
                why=f"{error.error_count()} such faults" if error.error_count() > 1 else first["type"],
                fix="correct the request",
            ) from None
        self._check_model(asked.model)
        return asked

    def _check_key(self, request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        found = given.strip().encode("utf-8", "replace") if scheme.lower() == "bearer" else b""
        # Every key is compared, in a time that does not tell how much of one was right.
        if self._keys and not any([hmac.compare_digest(found, key) for key in self._keys]):
            raise HTTPException(
                HTTPStatus.UNAUTHORIZED,
                "The API key is missing or wrong.",
                {"WWW-Authenticate": "Bearer"},
            )

    def _check_model(self, name: str) -> None:
        if name != self._options.model:
            raise HTTPException(
                HTTPStatus.NOT_FOUND, f"There is no model {name[:80]!r}; this is {self._options.model!r}."
            )

    def _model(self) -> dict[str, Any]:
        return {"id": self._options.model, "object": "model", "created": self._created, "owned_by": "awq_tvm"}


async def _stream(
    running: Running,
    events: AsyncIterator[tuple[int, Progress]],
    reply: Reply,
    count: int,
    *,
    prompt_tokens: int,
    chat: bool,
    usage: bool,
) -> AsyncIterator[bytes]:
    """Server-sent events of one request; tokens that bring no text yet come with the next that does."""
    held: list[list[Progress]] = [[] for _ in range(count)]
    written = 0
    try:
        if chat:
            for number in range(count):
                yield event(reply.first(number))
        async for number, progress in events:
            written += 1
            held[number].append(progress)
            if progress.text or progress.finish_reason:
                yield event(reply.piece(number, held[number]))
                held[number] = []
        if usage:
            yield event(reply.last(prompt_tokens, written, running.cached_tokens))
        yield event("[DONE]")
    except AwqTvmError as error:  # the status has been sent: all that is left is an event
        yield event({"error": _described(error)[1]})
    except ClientGoneError:
        return
    finally:
        running.cancel()


async def _refused(request: Request, error: Exception) -> Response:
    status, body = _described(error)
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        headers["Retry-After"] = "1"
    return JSONResponse({"error": body}, status, headers)


def _described(error: Exception) -> tuple[int, dict[str, Any]]:
    """Status and body of an error, in OpenAI's form."""
    if isinstance(error, HTTPException):
        kinds = {401: "authentication_error", 404: "not_found_error"}
        return error.status_code, _body(
            str(error.detail), kinds.get(error.status_code, "invalid_request_error")
        )
    if isinstance(error, ClientGoneError):
        return CLIENT_CLOSED_REQUEST, _body("The connection was closed.", "invalid_request_error")
    if isinstance(error, BusyError):
        return HTTPStatus.TOO_MANY_REQUESTS, _body(_sentence(error), "rate_limit_error")
    if isinstance(error, (UsageError, UnsupportedError)):
        return HTTPStatus.BAD_REQUEST, _body(_sentence(error), "invalid_request_error", error.where)
    if isinstance(error, ResourceError):
        return HTTPStatus.SERVICE_UNAVAILABLE, _body(_sentence(error), "server_error")
    message = (
        _sentence(error) if isinstance(error, AwqTvmError) else "The server met something it does not know."
    )
    return HTTPStatus.INTERNAL_SERVER_ERROR, _body(message, "server_error")


def _body(message: str, kind: str, param: str | None = None) -> dict[str, Any]:
    return {"message": message, "type": kind, "param": param, "code": None}


def _sentence(error: AwqTvmError) -> str:
    parts: Sequence[str | None] = (error.what, error.why, error.fix)
    return " ".join(f"{part.rstrip('.')}." for part in parts if part)
