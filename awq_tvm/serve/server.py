"""A server process: the port first, then the bundle, then requests."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn

from awq_tvm.errors import ResourceError, UsageError
from awq_tvm.runtime.engine import Engine
from awq_tvm.runtime.executor import Executor
from awq_tvm.serve.answers import Answers
from awq_tvm.serve.app import AppOptions, make_app
from awq_tvm.serve.constraint import JsonGrammars
from awq_tvm.serve.scheduler import Scheduler, SchedulerLimits
from awq_tvm.serve.worker import Worker

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_LEAST_KEY = 16
_MOST_KEY_FILE = 1 << 20


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What the server is told.

    Attributes:
        host: address to listen at.
        port: 0 for any that is free.
        api_key_file: a key a line; None serves everybody, which only a loopback address may.
        model_name: name that requests must give; None for the bundle folder's.
        threads: of the CPU; None for one a core.
        limits: of the scheduler.
        request_seconds: longest time a request may take.
        connections: at once; a further one is answered 503.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key_file: Path | None = None
    model_name: str | None = None
    threads: int | None = None
    limits: SchedulerLimits = field(default_factory=SchedulerLimits)
    request_seconds: float = 600.0
    connections: int = 1024


def run_server(bundle: Path, options: ServerOptions, ready: Callable[[str, str], None]) -> None:
    """Serve a bundle until a signal ends it.

    Args:
        bundle: a directory that `compile` wrote.
        options: what the server is told.
        ready: called with the URL and the model's name as soon as requests are taken.

    Raises:
        UsageError: options out of range, keys that cannot be meant, or an open address without any.
        ResourceError: the address cannot be listened at.
        BundleError: the bundle is damaged.
        TargetError: it is for another machine.
    """
    if not options.request_seconds > 0 or options.connections < 1 or options.limits.waiting < 1:
        raise UsageError("A limit is not above 0.", where="limits", why="nothing would be served")
    keys = () if options.api_key_file is None else read_keys(options.api_key_file)
    if not keys and options.host not in _LOOPBACK:
        raise UsageError(
            "Whoever reaches this address could use the server.",
            where="--host",
            why=f"{options.host} is not a loopback address, and there is no API key",
            fix="give --api-key-file FILE, or listen at 127.0.0.1",
        )
    with (
        _listen(options.host, options.port) as listener,
        Engine.load(bundle, threads=options.threads) as engine,
    ):
        if not isinstance(engine.executor, Executor):
            raise TypeError("a bundle is run by another executor")
        with Worker(Scheduler(engine.executor, options.limits)) as worker:
            # Verified with the rest when the engine was loaded.
            tokenizer = (bundle / "tokenizer.json").read_bytes()
            grammars = JsonGrammars(tokenizer, engine.vocab_size, min(engine.end_tokens, default=None))
            answers = Answers(engine, worker, grammars, seconds=options.request_seconds)
            name = options.model_name or bundle.resolve().name
            app = make_app(answers, worker, AppOptions(model=name, keys=keys))
            host, port = listener.getsockname()[:2]
            url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            config = uvicorn.Config(
                app,
                lifespan="off",
                log_level="warning",
                access_log=False,
                limit_concurrency=options.connections,
                timeout_graceful_shutdown=5,
                server_header=False,
            )
            _Server(config, lambda: ready(url, name)).run(sockets=[listener])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()


def read_keys(path: Path) -> tuple[str, ...]:
    """API keys, one a line; empty lines and those that begin with # are none.

    Raises:
        UsageError: the file cannot be read, holds no key, or one that is short or has blanks.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_KEY_FILE).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("The API keys cannot be read.", where=str(path), why=str(error)) from None
    lines = (line.strip() for line in text.splitlines())
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys or any(len(key) < _LEAST_KEY or not key.isascii() or " " in key for key in keys):
        raise UsageError(
            "The API keys cannot be meant.",
            where=str(path),
            why=f"there must be one, each a line of at least {_LEAST_KEY} ASCII characters without blanks",
            fix="make one with `python -c 'import secrets; print(secrets.token_urlsafe())'`",
        )
    return keys


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise ResourceError(
            "The address cannot be listened at.",
            where=f"{host} port {port}",
            why=str(error),
            fix="choose another --port, or 0 for any that is free",
        ) from None
