"""What is asked of the scheduler, and what it answers with."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from awq_tvm.errors import AwqTvmError
from awq_tvm.runtime.answer import AnswerWriter, DrawnToken, FinishReason


@dataclass(frozen=True, slots=True)
class Progress:
    """What one token brought.

    Attributes:
        answer: which of the job's answers goes on.
        text: that is now certain, maybe none.
        token: that was drawn.
        finish_reason: None while the answer goes on.
    """

    answer: int
    text: str
    token: DrawnToken
    finish_reason: FinishReason | None


@dataclass(frozen=True, slots=True)
class Failure:
    """Nothing more comes: why the job ended before its answers did."""

    error: AwqTvmError


Listener = Callable[[Progress | Failure], None]


class Branch:
    """One answer of a job and its place in the cache.

    Attributes:
        writer: of the answer.
        sequence: in the cache; None before it has one and after it gave it back.
        length: tokens of it that are in the cache.
    """

    def __init__(self, writer: AnswerWriter) -> None:
        self.writer = writer
        self.sequence: int | None = None
        self.length = 0


class Job:
    """A prompt and the answers wanted to it.

    Args:
        prompt: tokens, at least one.
        writers: one for each answer, all begun with this prompt.
        listener: told of every token; called by the thread that runs the scheduler, and must not wait.
        seconds: longest time from now until all answers are there; None for any.

    Attributes:
        cached: tokens of the prompt that were in the cache already when its place was given.
        names: of its prompt's whole parts, see `PrefixCache`; set when it is submitted, where beginnings are kept.
        runs: pieces of the cache these parts lie in.
        cancelled: whether nobody wants the answers any more; set by `cancel`.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        writers: Sequence[AnswerWriter],
        listener: Listener,
        *,
        seconds: float | None = None,
    ) -> None:
        self.prompt = list(prompt)
        self.branches = [Branch(writer) for writer in writers]
        self.listener = listener
        self.seconds = seconds
        self.cached = 0
        self.names: tuple[bytes, ...] = ()
        self.runs: tuple[int, ...] = ()
        self.cancelled = False
        self._deadline = None if seconds is None else time.monotonic() + seconds

    @property
    def prefilling(self) -> bool:
        """Whether a part of the prompt is still to be read."""
        return self.branches[0].length < len(self.prompt)

    @property
    def overdue(self) -> bool:
        """Whether its time is over."""
        return self._deadline is not None and time.monotonic() > self._deadline

    @property
    def open_branches(self) -> list[Branch]:
        """Answers that go on."""
        return [branch for branch in self.branches if branch.writer.finish_reason is None]

    def cancel(self) -> None:
        """Want nothing more; the scheduler frees its places before its next step. From any thread."""
        self.cancelled = True


def pages_to_come(job: Job, page_size: int, shared_tokens: int = 0) -> int:
    """Pages that the job may still take in the worst case, from what its sequences hold now.

    Args:
        job: that waits or runs.
        page_size: tokens of a page.
        shared_tokens: of the prompt that it will find in whole pages of the cache; for one that waits.

    An answer of `limit` tokens puts all but its last into the cache. Answers of one prompt share its whole pages;
    of the page in which it ends each has a copy.
    """

    def pages(tokens: int) -> int:
        return -(-tokens // page_size)

    length = len(job.prompt)
    if job.prefilling:
        shared, own = divmod(length, page_size)
        after = sum(pages(own + branch.writer.limit - 1) for branch in job.branches)
        return shared + after - pages(max(job.branches[0].length, shared_tokens))
    return sum(pages(length + branch.writer.limit - 1) - pages(branch.length) for branch in job.open_branches)
