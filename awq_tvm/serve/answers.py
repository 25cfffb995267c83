"""From a parsed request to its tokens as they come, between the event loop and the scheduler's thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from awq_tvm.errors import UsageError
from awq_tvm.runtime.engine import Engine
from awq_tvm.serve.constraint import JsonConstraint, JsonGrammars
from awq_tvm.serve.job import Failure, Job, Listener, Progress
from awq_tvm.serve.requests import ChatRequest, CompletionRequest
from awq_tvm.serve.worker import Worker

Receive = Callable[[], Awaitable[object]]


class ClientGoneError(Exception):
    """The client closed its connection before its answers were there."""


@dataclass(frozen=True, slots=True)
class _Gone:
    pass


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request's prompts as tokens, and what their answers must look like."""

    prompts: list[list[int]]
    constraint: JsonConstraint | None

    def constraint_for_one(self) -> JsonConstraint | None:
        """The constraint at its beginning, for one answer alone."""
        return None if self.constraint is None else self.constraint.copy()


class Answers:
    """Makes jobs of requests.

    Args:
        engine: encodes prompts; its executor is the worker's.
        worker: runs the jobs.
        grammars: binds answers to JSON schemas.
        seconds: longest time a request may take.
    """

    def __init__(self, engine: Engine, worker: Worker, grammars: JsonGrammars, *, seconds: float) -> None:
        self.engine, self._worker, self._seconds = engine, worker, seconds
        self._grammars = grammars
        self._template = threading.Lock()  # one process renders all conversations
        self._mailbox: Mailbox | None = None

    def prepare(self, request: CompletionRequest | ChatRequest) -> Prepared:
        """What a request needs before it can start. Takes time: call it in a thread.

        Raises:
            UsageError: a prompt that is empty, too long or not of this vocabulary; a schema that is none.
            UnsupportedError: a conversation, and the model has no chat template.
        """
        prompts, schema = self._encode(request), request.schema_wanted()
        return Prepared(prompts, None if schema is None else self._grammars.constraint(schema))

    def _encode(self, request: CompletionRequest | ChatRequest) -> list[list[int]]:
        """Tokens of each of the request's prompts.

        Raises:
            UsageError: a prompt that is empty, too long or not of this vocabulary.
            UnsupportedError: a conversation, and the model has no chat template.
        """
        if isinstance(request, ChatRequest):
            with self._template:
                return [self.engine.encode([message.message() for message in request.messages])]
        return [
            self.engine.encode(prompt) if isinstance(prompt, str) else self._tokens(prompt)
            for prompt in request.prompts()
        ]

    def start(
        self, request: CompletionRequest | ChatRequest, prepared: Prepared, receive: Receive
    ) -> Running:
        """Submit the request's jobs; in the event loop.

        Raises:
            UsageError: options out of range.
            BusyError: too many requests are waiting.
        """
        loop = asyncio.get_running_loop()
        if self._mailbox is None or self._mailbox.loop is not loop:
            self._mailbox = Mailbox(loop)
        running = Running(receive, self._mailbox)
        jobs = []
        for number, prompt in enumerate(prepared.prompts):
            writers = [
                self.engine.start(prompt, request.options(answer), prepared.constraint_for_one())
                for answer in range(request.answers)
            ]
            listener = running.listener(number * request.answers)
            jobs.append(Job(prompt, writers, listener, seconds=self._seconds))
        running.open = len(jobs) * request.answers
        try:
            for job in jobs:
                self._worker.submit(job)
                running.jobs.append(job)
        except BaseException:
            running.cancel()
            raise
        return running

    def _tokens(self, prompt: list[int]) -> list[int]:
        size = self.engine.vocab_size
        if prompt and not (min(prompt) >= 0 and max(prompt) < size):
            raise UsageError(
                "A token is outside the vocabulary.",
                where="prompt",
                why=f"found tokens from {min(prompt)} to {max(prompt)}, legal is from 0 to {size - 1}",
                fix="send tokens of this model",
            )
        return prompt


Letter = tuple[int, Progress | Failure | _Gone]


class Mailbox:
    """Brings what the scheduler's thread tells into the event loop, which is woken once for all that a step brought.

    Args:
        loop: in which the letters are read.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._letters: list[tuple[asyncio.Queue[Letter], Letter]] = []
        self._lock = threading.Lock()

    def post(self, queue: asyncio.Queue[Letter], letter: Letter) -> None:
        """Put a letter into a queue of the loop; from any thread."""
        with self._lock:
            self._letters.append((queue, letter))
            asleep = len(self._letters) == 1
        if asleep:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody reads
                self.loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        with self._lock:
            letters, self._letters = self._letters, []
        for queue, letter in letters:
            queue.put_nowait(letter)


class Running:
    """The jobs of one request under way.

    Args:
        receive: of the connection; tells when the client is gone.
        mailbox: by which jobs tell their progress.

    Attributes:
        jobs: that were submitted.
        open: answers that are not finished.
    """

    def __init__(self, receive: Receive, mailbox: Mailbox) -> None:
        self.jobs: list[Job] = []
        self.open = 0
        self._mailbox = mailbox
        self._events: asyncio.Queue[Letter] = asyncio.Queue()
        self._receive = receive

    def listener(self, first: int) -> Listener:
        """What a job tells its progress to; its answers are numbered from `first`."""

        def listen(event: Progress | Failure) -> None:
            number = first + event.answer if isinstance(event, Progress) else first
            self._mailbox.post(self._events, (number, event))

        return listen

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompts that were in the cache already; certain when the answers are there."""
        return sum(job.cached for job in self.jobs)

    def cancel(self) -> None:
        """Want nothing more."""
        for job in self.jobs:
            job.cancel()

    async def events(self) -> AsyncIterator[tuple[int, Progress]]:
        """Choice and progress, token by token, until every answer is finished; cancels what is left when it ends.

        Raises:
            AwqTvmError: why a job failed.
            ClientGoneError: the connection was closed.
        """
        watch = asyncio.create_task(self._watch())
        try:
            while self.open:
                number, event = await self._events.get()
                if isinstance(event, Failure):
                    raise event.error
                if isinstance(event, _Gone):
                    raise ClientGoneError
                self.open -= event.finish_reason is not None
                yield number, event
        finally:
            self.cancel()
            watch.cancel()

    async def _watch(self) -> None:
        # The body has been read, so what comes next is the end of the connection.
        await self._receive()
        self.cancel()
        self._events.put_nowait((0, _Gone()))
