"""Many answers at once from a compiled bundle: the same as one by one, and nothing left behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from awq_tvm.errors import AwqTvmError, BundleError, ResourceError, UsageError
from awq_tvm.runtime.engine import Engine
from awq_tvm.runtime.executor import Executor
from awq_tvm.runtime.sampler import SamplingOptions
from awq_tvm.serve.job import Failure, Job, Progress, pages_to_come
from awq_tvm.serve.scheduler import BusyError, Scheduler, SchedulerLimits
from awq_tvm.serve.worker import Worker
from tests.support import tiny_decoder as tiny
from tests.support.fewer_pages import FewerPages


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine.load(tiny.quantized_llama(tmp_path_factory).bundle, threads=1) as engine:
        yield engine


@pytest.fixture
def make_scheduler(engine: Engine) -> Iterator[Callable[..., Scheduler]]:
    """Makes schedulers, one after the other, by their limits."""
    executor = _executor(engine)
    free = executor.free_pages
    made: list[Scheduler] = []

    def make(**limits: Any) -> Scheduler:
        made.append(Scheduler(executor, SchedulerLimits(**limits)))
        return made[-1]

    yield make
    for scheduler in made:
        if scheduler.prefixes is not None:
            scheduler.prefixes.clear()
    assert executor.free_pages == free, "pages are still in use"
    for _ in range(executor.max_sequences):  # no sequence is, either
        executor.remove_sequence(executor.new_sequence())


@pytest.fixture
def scheduler(make_scheduler: Callable[..., Scheduler]) -> Scheduler:
    return make_scheduler()


def _executor(engine: Engine) -> Executor:
    assert isinstance(engine.executor, Executor)
    return engine.executor


class Ask:
    """A job, and what its listener was told."""

    def __init__(
        self, engine: Engine, prompt: list[int], n: int = 1, seconds: float | None = None, **options: Any
    ):
        self.told: list[Progress] = []
        self.failure: AwqTvmError | None = None
        self.prompt = prompt
        self.options = [SamplingOptions(**{"max_tokens": 12, **options}) for _ in range(n)]
        writers = [engine.start(prompt, each) for each in self.options]
        self.job = Job(prompt, writers, self.listen, seconds=seconds)

    def listen(self, event: Progress | Failure) -> None:
        if isinstance(event, Failure):
            self.failure = event.error
        else:
            self.told.append(event)

    def tokens(self, answer: int = 0) -> list[int]:
        return [event.token.id for event in self.told if event.answer == answer]

    def text(self, answer: int = 0) -> str:
        return "".join(event.text for event in self.told if event.answer == answer)

    @property
    def finished(self) -> bool:
        return all(branch.writer.finish_reason for branch in self.job.branches)


def _run(scheduler: Scheduler, *asks: Ask, before_step: Callable[[int], None] | None = None) -> int:
    for ask in asks:
        scheduler.submit(ask.job)
    steps = 0
    while not scheduler.idle:
        if before_step is not None:
            before_step(steps)
        scheduler.step()
        steps += 1
        assert steps < 10_000
    return steps


def test_answers_are_those_of_single_runs(engine: Engine, make_scheduler: Callable[..., Scheduler]) -> None:
    """Three times as many as fit at once, of all lengths, prompts longer than a part among them."""
    scheduler = make_scheduler(prefill_chunk=48)
    asks = [
        Ask(engine, tiny.tokens(1 + 7 * n, seed=n), max_tokens=3 + (n * 5) % 17)
        for n in range(3 * scheduler.max_sequences)
    ]
    alone = [engine.generate_tokens(ask.prompt, ask.options[0]) for ask in asks]
    _run(scheduler, *asks)
    for ask, single in zip(asks, alone, strict=True):
        assert ask.tokens() == list(single.token_ids)
        assert ask.text() == single.text
        assert ask.told[-1].finish_reason == "length"
    assert scheduler.counts.prompt_tokens == sum(len(ask.prompt) for ask in asks)
    assert scheduler.counts.generated_tokens == sum(len(ask.told) for ask in asks)
    # That many calls would be needed one by one: batching is what this is about.
    assert scheduler.counts.decode_calls < 0.3 * scheduler.counts.generated_tokens


def test_prompts_are_read_in_parts_between_which_answers_go_on(
    engine: Engine, make_scheduler: Callable[..., Scheduler]
) -> None:
    first, long = Ask(engine, [5], max_tokens=30), Ask(engine, tiny.tokens(160), max_tokens=2)
    scheduler = make_scheduler(prefill_chunk=16)
    progress: list[tuple[int, int]] = []

    def watch(step: int) -> None:
        if step == 2:
            scheduler.submit(long.job)
        progress.append((len(first.told), len(long.told)))

    _run(scheduler, first, before_step=watch)
    began = next(n for n, (_, of_long) in enumerate(progress) if of_long)
    assert progress[began][0] >= 10  # ten parts of the long prompt, a token of the first answer after each
    assert long.tokens() == list(engine.generate_tokens(long.prompt, long.options[0]).token_ids)


def test_several_answers_share_the_prompt(engine: Engine, scheduler: Scheduler) -> None:
    prompt = tiny.tokens(37)
    alone = [
        engine.generate_tokens(prompt, SamplingOptions(max_tokens=9, temperature=1.5, seed=seed)).token_ids
        for seed in range(3)
    ]
    ask = Ask(engine, prompt, n=3, max_tokens=9, temperature=1.5)
    for seed, branch in enumerate(ask.job.branches):
        branch.writer = engine.start(prompt, SamplingOptions(max_tokens=9, temperature=1.5, seed=seed))
    free = scheduler.executor.free_pages
    seen: list[int] = []
    _run(scheduler, ask, before_step=lambda _: seen.append(free - scheduler.executor.free_pages))
    assert [tuple(ask.tokens(n)) for n in range(3)] == alone
    assert len(set(alone)) == 3
    assert scheduler.counts.prompt_tokens == 37  # read once
    assert max(seen) <= 2 + 3 * 1  # two whole pages shared, five tokens and eight more in a page each


def test_worst_case_of_pages_is_kept(engine: Engine, scheduler: Scheduler) -> None:
    """At every step what a job holds and what it may still take is no more than it was admitted for."""
    for length, n, limit in (
        (1, 1, 1),
        (16, 2, 1),
        (16, 3, 2),
        (17, 3, 16),
        (31, 2, 18),
        (48, 4, 33),
        (190, 1, 3),
    ):
        ask = Ask(engine, tiny.tokens(length), n=n, max_tokens=limit)
        admitted, free = pages_to_come(ask.job, scheduler.executor.page_size), scheduler.executor.free_pages
        most = 0

        def check(_: int, ask: Ask = ask, admitted: int = admitted, free: int = free) -> None:
            nonlocal most
            held = free - scheduler.executor.free_pages
            most = max(most, held)
            # Answers that ended gave back what they held, so the sum may fall, never rise.
            assert held + pages_to_come(ask.job, scheduler.executor.page_size) <= admitted

        _run(scheduler, ask, before_step=check)
        assert most <= admitted
        assert len(ask.told) == n * limit


def test_admission_goes_by_pages(engine: Engine, scheduler: Scheduler) -> None:
    """Places are free, yet a job waits until the pages that it may need are, and overtakes nobody."""
    scheduler.executor = FewerPages(_executor(engine), 16)
    asks = [Ask(engine, tiny.tokens(90, seed=n), max_tokens=30) for n in range(3)]  # eight pages each
    small = Ask(engine, [1], max_tokens=2)
    at_once = 0
    lowest = 16

    def watch(_: int) -> None:
        nonlocal at_once, lowest
        at_once = max(at_once, len(scheduler.running))
        lowest = min(lowest, scheduler.executor.free_pages)
        assert scheduler.waiting == 0 or not small.told

    _run(scheduler, *asks, small, before_step=watch)
    assert at_once == 2
    assert 0 <= lowest <= 1
    for ask in (*asks, small):
        assert ask.tokens() == list(engine.generate_tokens(ask.prompt, ask.options[0]).token_ids)


def test_cancelled_jobs_leave_no_page(engine: Engine, make_scheduler: Callable[..., Scheduler]) -> None:
    """200 jobs, each cancelled at some point of its life or not at all; the others are not disturbed."""
    rng = np.random.default_rng(0)
    asks = [
        Ask(engine, tiny.tokens(int(rng.integers(1, 120)), seed=n), n=int(rng.integers(1, 4)), max_tokens=8)
        for n in range(200)
    ]
    doomed = {int(n): int(rng.integers(0, 150)) for n in rng.choice(200, 120, replace=False)}
    scheduler = make_scheduler(waiting=len(asks), prefill_chunk=32)

    def cancel(step: int) -> None:
        for number, moment in doomed.items():
            if moment == step:
                asks[number].job.cancel()

    _run(scheduler, *asks, before_step=cancel)
    for number, ask in enumerate(asks):
        if number not in doomed:
            assert ask.finished
            assert len({tuple(ask.tokens(n)) for n in range(len(ask.job.branches))}) == 1
    assert sum(not ask.finished for ask in asks) > 50
    for ask in [ask for ask in asks if ask.finished][::20]:
        assert ask.tokens() == list(engine.generate_tokens(ask.prompt, ask.options[0]).token_ids)


def test_a_full_queue_refuses(engine: Engine, scheduler: Scheduler) -> None:
    scheduler.max_waiting = 2
    asks = [Ask(engine, [n]) for n in range(3)]
    for ask in asks[:2]:
        scheduler.submit(ask.job)
    with pytest.raises(BusyError, match="2 requests are waiting"):
        scheduler.submit(asks[2].job)
    _run(scheduler)
    _run(scheduler, asks[2])
    assert all(ask.finished for ask in asks)


def test_what_never_fits_is_refused(engine: Engine, scheduler: Scheduler) -> None:
    with pytest.raises(UsageError, match=f"has room for {scheduler.max_sequences}"):
        scheduler.submit(Ask(engine, [1], n=scheduler.max_sequences + 1).job)
    scheduler.total_pages = 3
    _run(scheduler, Ask(engine, tiny.tokens(40), max_tokens=9))
    with pytest.raises(UsageError, match="may take 4 pages of 16 tokens, there are 3"):
        scheduler.submit(Ask(engine, tiny.tokens(40), max_tokens=10).job)


@pytest.mark.parametrize("field", ["sequences", "prefill_chunk"])
@pytest.mark.parametrize("value", [0, -1, 10**9])
def test_limits_that_the_bundle_cannot_keep(engine: Engine, field: str, value: int) -> None:
    Scheduler(_executor(engine), SchedulerLimits(**{field: 1}))
    with pytest.raises(UsageError, match=f"found {value}, this bundle takes 1 to"):
        Scheduler(_executor(engine), SchedulerLimits(**{field: value}))


def test_a_job_that_takes_too_long_is_told_so(engine: Engine, scheduler: Scheduler) -> None:
    late, other = Ask(engine, [1], seconds=0.05, max_tokens=150), Ask(engine, [2], max_tokens=4)
    scheduler.submit(late.job)
    scheduler.step()
    time.sleep(0.06)
    _run(scheduler, other)
    assert isinstance(late.failure, ResourceError)
    assert "took too long" in str(late.failure)
    assert other.finished


class _Broken:
    """The bundle's executor, whose model goes wrong once, after some calls."""

    def __init__(self, executor: Executor, calls: int, error: Exception | None = None) -> None:
        self._executor, self._calls, self._error = executor, calls, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)

    def step(
        self, sequences: list[int], tokens: list[list[int]], _temperatures: list[float]
    ) -> list[np.ndarray]:
        rows = list(self._executor.forward(sequences, tokens).copy())
        self._calls -= 1
        if self._calls == -1:
            if self._error is not None:
                raise self._error
            rows[0][:] = np.nan
        return rows


def test_an_answer_that_fails_does_not_disturb_others(engine: Engine, scheduler: Scheduler) -> None:
    bad, good = Ask(engine, [1], n=2), Ask(engine, [2, 3])
    scheduler.executor = _Broken(_executor(engine), 4)
    _run(scheduler, bad, good)
    assert isinstance(bad.failure, BundleError)
    assert "not a number" in str(bad.failure)
    assert good.failure is None
    assert good.tokens() == list(engine.generate_tokens(good.prompt, good.options[0]).token_ids)


def test_worker_runs_jobs_and_ends_them(engine: Engine) -> None:
    executor = _executor(engine)
    free = executor.free_pages
    asks = [Ask(engine, tiny.tokens(5 + n), max_tokens=20) for n in range(20)]
    with Worker(Scheduler(executor)) as worker:
        for ask in asks:
            worker.submit(ask.job)
        deadline = time.monotonic() + 60
        while not all(ask.finished for ask in asks) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert all(ask.finished for ask in asks)
        endless = [Ask(engine, [1], max_tokens=150) for _ in range(3 * worker.scheduler.max_sequences)]
        for ask in endless:
            worker.submit(ask.job)
    assert {str(ask.failure.what) for ask in endless if ask.failure} == {"The server is shutting down."}
    with pytest.raises(ResourceError, match="shutting down"):
        worker.submit(asks[0].job)
    assert executor.free_pages == free


def test_worker_survives_nothing_of_a_broken_model(engine: Engine) -> None:
    executor = _executor(engine)
    free = executor.free_pages
    ask = Ask(engine, [1])
    with Worker(Scheduler(_Broken(executor, 3, RuntimeError("boom")))) as worker:
        worker.submit(ask.job)
        deadline = time.monotonic() + 60
        while ask.failure is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert "boom" in str(ask.failure)
        with pytest.raises(AwqTvmError, match="cannot go on"):
            worker.submit(Ask(engine, [1]).job)
    assert len(ask.told) == 3
    assert executor.free_pages == free
