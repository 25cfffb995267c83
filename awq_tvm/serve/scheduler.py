"""Continuous batching: which sequences go into which call of the model, and what is done with its logits.

A call either reads a part of some prompts or the last token of every answer under way, in turn. The two are
never mixed: attention for one new token a sequence has a kernel of its own, and an answer is to be the same
whatever else is being answered. For the same reason a prompt is always read in the same parts, kept ones included.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from awq_tvm.errors import AwqTvmError, ResourceError, UsageError
from awq_tvm.runtime.logit_row import DeviceRow
from awq_tvm.serve.job import Branch, Failure, Job, Listener, Progress, pages_to_come
from awq_tvm.serve.prefixes import PrefixCache, names_of_parts

_PART = 64  # tokens: smaller parts share more and are read slower, at 64 a tenth slower than in one piece


class PagedExecutor(Protocol):
    """What the scheduler needs of `runtime.executor.Executor`."""

    max_sequences: int
    prefill_chunk_size: int
    page_size: int

    @property
    def free_pages(self) -> int:
        """Pages of the cache that no sequence holds."""
        ...

    def new_sequence(self) -> int:
        """Start a sequence and return its id."""
        ...

    def fork_sequence(self, parent: int, length: int | None = None, *, kept: bool = False) -> int:
        """Start a sequence with the first tokens of another."""
        ...

    def remove_sequence(self, sequence: int) -> None:
        """Forget a sequence and free its pages."""
        ...

    def step(
        self, sequences: Sequence[int], tokens: Sequence[Sequence[int]], temperatures: Sequence[float]
    ) -> Sequence[np.ndarray | DeviceRow]:
        """Append tokens to sequences; of each the logits after its last, float32 [V], to draw from."""
        ...


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """How much is taken on.

    Attributes:
        sequences: answers at once; None for as many as the executor holds.
        waiting: jobs that wait for a place; a further one is refused.
        prefill_chunk: most tokens of prompts that one call reads; None for as many as the executor takes. Answers
            under way wait that long for their next token.
        keep_prefixes: whether beginnings of prompts stay in the cache for the next prompt that begins alike.
    """

    sequences: int | None = None
    waiting: int = 256
    prefill_chunk: int | None = None
    keep_prefixes: bool = True


@dataclass(slots=True)
class Counts:
    """What was done since the start."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    prefill_calls: int = 0
    decode_calls: int = 0


class BusyError(ResourceError):
    """More is waiting already than is taken on."""


class Scheduler:
    """Runs jobs; `submit` and `Job.cancel` may come from any thread, `step` from one.

    Args:
        executor: runs the model; nobody else may use it.
        limits: how much is taken on.

    Raises:
        UsageError: limits that the executor cannot keep.

    Attributes:
        running: jobs that have their places in the cache.
        prefixes: beginnings of prompts that are kept; None where none are to be.
        part: most tokens of one prompt that a call reads.
        counts: what was done since the start.
    """

    def __init__(self, executor: PagedExecutor, limits: SchedulerLimits | None = None) -> None:
        limits = limits or SchedulerLimits()
        self.executor = executor
        self.max_sequences = _within("max-sequences", limits.sequences, executor.max_sequences)
        self.prefill_chunk = _within("prefill-chunk", limits.prefill_chunk, executor.prefill_chunk_size)
        whole = min(_PART, self.prefill_chunk) // executor.page_size * executor.page_size
        kept = limits.keep_prefixes and whole > 0
        self.part = whole if kept else self.prefill_chunk
        self.prefixes = PrefixCache(executor, whole) if kept else None
        self.max_waiting = limits.waiting
        self.total_pages = executor.free_pages
        self.running: list[Job] = []
        self.counts = Counts()
        self._waiting: deque[Job] = deque()
        self._lock = threading.Lock()
        self._news: list[tuple[Listener, Progress | Failure]] = []  # told when the step is done
        self._read_last = False  # whether the last call read prompts

    @property
    def waiting(self) -> int:
        """Jobs without places."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.running and not self._waiting

    def submit(self, job: Job) -> None:
        """Take on a job.

        Raises:
            BusyError: too many are waiting.
            UsageError: it needs more than there is even when nothing else runs.
        """
        self._check_size(job)
        if self.prefixes is not None:
            # Here and once: a job may be asked many times whether there is room for it.
            job.names = names_of_parts(job.prompt, self.part)
        with self._lock:
            if len(self._waiting) >= self.max_waiting:
                raise BusyError(
                    "The server is busy.",
                    where="queue",
                    why=f"{self.max_waiting} requests are waiting already",
                    fix="try again in a while",
                )
            self._waiting.append(job)

    def step(self) -> bool:
        """Admit what there is room for and call the model once; return whether it was called.

        Listeners are told at the end, all at once: what they wake computes while the next call does, and not
        between the tokens of this one.

        Raises:
            Exception: what the model's call raised; the cache cannot be trusted, and `close` tells the jobs.
        """
        try:
            return self._step()
        finally:
            self._tell()

    def _step(self) -> bool:
        self._drop_unwanted()
        self._admit()
        reading = [job for job in self.running if job.prefilling]
        writing = [
            branch
            for job in self.running
            if not job.prefilling
            for branch in job.open_branches
            if branch.sequence is not None
        ]
        self._read_last = bool(reading) and not (writing and self._read_last)
        if self._read_last:
            self._read_prompts(reading)
        elif writing:
            self._write(writing)
        self.running = [job for job in self.running if job.prefilling or job.open_branches]
        return bool(reading or writing)

    def close(self, error: AwqTvmError) -> None:
        """End every job, telling why."""
        with self._lock:
            waiting, self._waiting = list(self._waiting), deque()
        for job in [*self.running, *waiting]:
            self._end(job, error)
        self.running = []
        self._tell()
        if self.prefixes is not None:
            self.prefixes.clear()

    def _check_size(self, job: Job) -> None:
        if len(job.branches) > self.max_sequences:
            raise UsageError(
                "More answers are wanted than fit at once.",
                where="n",
                why=f"found {len(job.branches)}, the server has room for {self.max_sequences}",
                fix="ask for fewer",
            )
        needed = pages_to_come(job, self.executor.page_size)
        if needed > self.total_pages:
            raise UsageError(
                "The request needs more of the cache than there is.",
                where="max_tokens",
                why=f"it may take {needed} pages of {self.executor.page_size} tokens, there are {self.total_pages}",
                fix="ask for fewer tokens or fewer answers",
            )

    def _drop_unwanted(self) -> None:
        with self._lock:
            gone = [job for job in self._waiting if job.cancelled or job.overdue]
            for job in gone:
                self._waiting.remove(job)
        gone += [job for job in self.running if job.cancelled or job.overdue]
        for job in gone:
            late = ResourceError(
                "The request took too long.",
                where="time limit",
                why=f"it was not done after {job.seconds} seconds",
                fix="ask for fewer tokens, or allow more time",
            )
            self._end(job, None if job.cancelled else late)
        if gone:
            self.running = [job for job in self.running if job not in gone]

    def _admit(self) -> None:
        """Give places to waiting jobs, oldest first, while they fit even if every answer grows to its limit."""
        places = self.max_sequences - sum(len(job.open_branches) for job in self.running)
        while self._waiting:
            job = self._waiting[0]  # only this thread takes from the queue
            if len(job.branches) > places or not self._place(job):
                return
            with self._lock:
                self._waiting.popleft()
            self.running.append(job)
            places -= len(job.branches)

    def _place(self, job: Job) -> bool:
        """Give a job its place in the cache, and up what is kept where pages are short; return whether it has one."""
        size, prefixes = self.executor.page_size, self.prefixes
        before_last = job.names[: (len(job.prompt) - 1) // self.part]
        promised = sum(pages_to_come(other, size) for other in self.running)
        while True:
            found = prefixes.find(before_last) if prefixes is not None else None
            kept, shared = found or (None, 0)
            if pages_to_come(job, size, shared) <= self.executor.free_pages - promised:
                break
            if prefixes is None or not (prefixes.give_up_oldest(spare=kept) or prefixes.give_up_oldest()):
                return False
        first = job.branches[0]
        if kept is None:
            first.sequence = self.executor.new_sequence()
        else:
            first.sequence = self.executor.fork_sequence(kept.sequence, shared)
            first.length = job.cached = shared
            job.runs = kept.runs[: shared // self.part]
            self.counts.cached_tokens += shared
        if prefixes is not None:
            job.runs += prefixes.new_runs(len(job.names) - len(job.runs))
        return True

    def _read_prompts(self, jobs: Sequence[Job]) -> None:
        chosen: list[Job] = []
        parts: list[list[int]] = []
        room = self.prefill_chunk
        for job in jobs:
            done = job.branches[0].length
            part = job.prompt[done : done + self.part]
            if len(part) > room:
                break  # reading less of it would change in which parts it is read
            chosen.append(job)
            parts.append(part)
            room -= len(part)
        rows = self._call([job.branches[0] for job in chosen], parts)
        self.counts.prefill_calls += 1
        self.counts.prompt_tokens += sum(map(len, parts))
        for job, row in zip(chosen, rows, strict=True):
            self._keep(job)
            if not job.prefilling:
                self._start_answers(job, row)

    def _keep(self, job: Job) -> None:
        """Keep what was read of a prompt: its first part, for what the fork does to it, and in the end all of it."""
        first = job.branches[0]
        if self.prefixes is None or first.sequence is None:
            return
        if first.length == self.part or (first.length > self.part and not job.prefilling):
            self.prefixes.keep(first.sequence, job.names[: first.length // self.part], job.runs)

    def _start_answers(self, job: Job, logits: np.ndarray | DeviceRow) -> None:
        first, *others = job.branches
        for branch in others:
            if first.sequence is not None:
                branch.sequence, branch.length = self.executor.fork_sequence(first.sequence), first.length
        for branch in job.branches:
            self._take(job, branch, logits)

    def _write(self, branches: Sequence[Branch]) -> None:
        owners = {id(branch): job for job in self.running for branch in job.branches}
        rows = self._call(branches, [[branch.writer.drawn[-1].id] for branch in branches])
        self.counts.decode_calls += 1
        for branch, row in zip(branches, rows, strict=True):
            job = owners[id(branch)]
            if branch.sequence is not None:  # the job may have failed in another of its answers
                self._take(job, branch, row)

    def _call(
        self, branches: Sequence[Branch], tokens: Sequence[list[int]]
    ) -> Sequence[np.ndarray | DeviceRow]:
        sequences = [branch.sequence for branch in branches if branch.sequence is not None]
        rows = self.executor.step(sequences, tokens, [one.writer.options.temperature for one in branches])
        for branch, new in zip(branches, tokens, strict=True):
            branch.length += len(new)
        return rows

    def _take(self, job: Job, branch: Branch, logits: np.ndarray | DeviceRow) -> None:
        writer = branch.writer
        try:
            text = writer.take(logits)
        except AwqTvmError as error:
            self._end(job, error)
            return
        self.counts.generated_tokens += 1
        if writer.finish_reason is not None:
            self._free(branch)
        number = job.branches.index(branch)
        self._news.append((job.listener, Progress(number, text, writer.drawn[-1], writer.finish_reason)))

    def _end(self, job: Job, error: AwqTvmError | None) -> None:
        for branch in job.branches:
            self._free(branch)
        job.cancelled = True
        if error is not None:
            self._news.append((job.listener, Failure(error)))

    def _tell(self) -> None:
        news, self._news = self._news, []
        for listener, event in news:
            listener(event)

    def _free(self, branch: Branch) -> None:
        if branch.sequence is not None:
            self.executor.remove_sequence(branch.sequence)
            branch.sequence = None


def _within(name: str, wanted: int | None, most: int) -> int:
    if wanted is not None and not 1 <= wanted <= most:
        raise UsageError(
            f"{name} {wanted} is not possible.",
            where=name,
            why=f"found {wanted}, this bundle takes 1 to {most}",
            fix="choose a smaller number, or compile for more",
        )
    return most if wanted is None else wanted
