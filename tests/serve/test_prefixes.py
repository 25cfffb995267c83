"""Kept beginnings of prompts: what is shared, what goes first, and that no bit of an answer depends on them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from awq_tvm.errors import AwqTvmError
from awq_tvm.runtime.engine import Engine
from awq_tvm.runtime.executor import Executor
from awq_tvm.runtime.sampler import SamplingOptions
from awq_tvm.serve.job import Failure, Job, Progress
from awq_tvm.serve.prefixes import PrefixCache, names_of_parts
from awq_tvm.serve.scheduler import Scheduler, SchedulerLimits
from tests.support import tiny_decoder as tiny
from tests.support.fewer_pages import FewerPages

PART = 64


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine.load(tiny.quantized_llama(tmp_path_factory).bundle, threads=1) as engine:
        yield engine


@pytest.fixture
def executor(engine: Engine) -> Iterator[Executor]:
    assert isinstance(engine.executor, Executor)
    free = engine.executor.free_pages
    yield engine.executor
    assert engine.executor.free_pages == free, "pages are still in use"


class _Ask:
    """A greedy job that remembers each token with its chances, to the last bit."""

    def __init__(self, engine: Engine, prompt: list[int], *, n: int = 1, tokens: int = 6) -> None:
        options = SamplingOptions(max_tokens=tokens, logprobs=5)
        self.told: list[tuple[int, Any]] = []
        self.failure: AwqTvmError | None = None
        self.job = Job(prompt, [engine.start(prompt, options) for _ in range(n)], self._listen)

    def _listen(self, event: Progress | Failure) -> None:
        if isinstance(event, Failure):
            self.failure = event.error
        else:
            self.told.append((event.answer, event.token))


def _run(scheduler: Scheduler, *asks: _Ask) -> None:
    for ask in asks:
        scheduler.submit(ask.job)
    for _ in range(10_000):
        if scheduler.idle:
            return
        scheduler.step()
    pytest.fail("it does not end")


def _told_alone(engine: Engine, executor: Executor, prompt: list[int], tokens: int = 6) -> Any:
    """What a job is told by a scheduler that has seen nothing else."""
    scheduler, ask = Scheduler(executor), _Ask(engine, prompt, tokens=tokens)
    _run(scheduler, ask)
    _clear(scheduler)
    return ask.told


def _ids(told: Any) -> list[int]:
    return [token.id for _, token in told]


def _prefixes(scheduler: Scheduler) -> PrefixCache:
    assert scheduler.prefixes is not None
    return scheduler.prefixes


def _clear(scheduler: Scheduler) -> None:
    _prefixes(scheduler).clear()
    assert _prefixes(scheduler).pages == len(_prefixes(scheduler)) == 0


def test_no_bit_depends_on_what_is_kept(engine: Engine, executor: Executor) -> None:
    """Prompts that share none, one or two parts with each other, in an order that meets all states of the cache."""
    base = tiny.tokens(170)
    ends = [tiny.tokens(25, seed=n) for n in (1, 2, 3)]
    prompts = [
        base[:keep] + end[:more]
        for keep, (end, more) in itertools.product((0, 64, 100, 128, 130), itertools.product(ends, (1, 25)))
    ]
    prompts += [base[:64], base[:65], base[:128], base[:129], base]
    alone = [_told_alone(engine, executor, prompt) for prompt in prompts]
    order = np.random.default_rng(0)
    scheduler = Scheduler(executor)
    for _ in range(2):
        for number in order.permutation(len(prompts)):
            ask = _Ask(engine, prompts[number])
            _run(scheduler, ask)
            assert ask.told == alone[number], f"prompt {number}"
    # At once, eight at a time, with sharing between those that run: kernels for more rows round differently.
    asks = [_Ask(engine, prompt) for prompt in prompts]
    _run(scheduler, *asks)
    assert [_ids(ask.told) for ask in asks] == [_ids(told) for told in alone]
    assert scheduler.counts.cached_tokens > 40 * PART
    _clear(scheduler)


def test_what_is_shared_is_not_read_again(engine: Engine, executor: Executor) -> None:
    scheduler = Scheduler(executor)
    free = executor.free_pages
    first = tiny.tokens(150)
    for prompt, cached, kept_pages in (
        (first, 0, 8),  # two parts of four pages
        (first, 128, 8),
        (first[:128], 64, 8),  # its last token is to be read
        ([*first[:70], 1, 2, 3], 64, 8),  # no whole part of its own
        (first[:64] + tiny.tokens(70, seed=1), 64, 12),  # one that is shared and one of its own
        (tiny.tokens(20), 0, 12),  # too short
    ):
        ask, before = _Ask(engine, prompt), scheduler.counts.prompt_tokens
        _run(scheduler, ask)
        assert ask.job.cached == cached
        assert scheduler.counts.prompt_tokens - before == len(prompt) - cached
        assert _prefixes(scheduler).pages == free - executor.free_pages == kept_pages
    _clear(scheduler)


def test_a_conversation_grows_on_what_was_read(engine: Engine, executor: Executor) -> None:
    scheduler, history = Scheduler(executor), tiny.tokens(70)
    cached = []
    for turn in range(3):
        ask = _Ask(engine, history)
        _run(scheduler, ask)
        cached.append(ask.job.cached)
        history = history + [token.id for _, token in ask.told] + tiny.tokens(30, seed=turn)
    assert cached == [0, 64, 64]
    assert len(_prefixes(scheduler)) == 1  # the longer one holds the shorter
    _clear(scheduler)


def test_prompts_read_at_the_same_time_each_count_their_pages(engine: Engine, executor: Executor) -> None:
    """They did not find each other; of those kept, one is enough."""
    free, prompt = executor.free_pages, tiny.tokens(140)
    scheduler = Scheduler(executor)
    _run(scheduler, *(_Ask(engine, prompt) for _ in range(4)))
    assert _prefixes(scheduler).pages == free - executor.free_pages == 8
    _clear(scheduler)


def test_the_longest_unused_goes_when_pages_are_short(engine: Engine, executor: Executor) -> None:
    smaller = FewerPages(executor, 21)
    scheduler = Scheduler(smaller)  # type: ignore[arg-type]
    prompts = [tiny.tokens(65, seed=n) for n in range(4)]  # five pages each, of which four are kept
    for prompt in prompts:
        _run(scheduler, _Ask(engine, prompt))
    assert _prefixes(scheduler).evictions == 0
    assert smaller.free_pages == 21 - 16
    used_again = _Ask(engine, prompts[0])
    _run(scheduler, used_again, _Ask(engine, tiny.tokens(65, seed=9)))
    assert _prefixes(scheduler).evictions == 1
    asks = [_Ask(engine, prompt) for prompt in (prompts[0], prompts[1])]
    _run(scheduler, asks[0])
    _run(scheduler, asks[1])
    assert [ask.job.cached for ask in asks] == [64, 0]  # the second was the oldest
    # What needs every page gets every page, what it shares included.
    whole = _Ask(engine, prompts[1] + tiny.tokens(90, seed=5), tokens=13)
    scheduler.total_pages, smaller._hidden = 11, smaller._hidden + 10
    _run(scheduler, whole)
    assert whole.job.cached == 64
    assert len(whole.told) == 13
    assert len(_prefixes(scheduler)) == 1
    _clear(scheduler)


def test_a_place_is_no_beginning(engine: Engine, executor: Executor) -> None:
    """More are kept than the bundle has places, and all places are still there for answers."""
    scheduler = Scheduler(executor)
    for seed in range(executor.max_sequences + 4):
        _run(scheduler, _Ask(engine, tiny.tokens(64, seed=seed)))
    assert len(_prefixes(scheduler)) == executor.max_sequences + 4
    asks = [_Ask(engine, tiny.tokens(9, seed=n)) for n in range(executor.max_sequences)]
    for ask in asks:
        scheduler.submit(ask.job)
    scheduler.step()
    assert len(scheduler.running) == executor.max_sequences
    _run(scheduler)
    _clear(scheduler)


def test_cancelled_and_failed_jobs_leave_only_what_is_kept(engine: Engine, executor: Executor) -> None:
    scheduler, free = Scheduler(executor), executor.free_pages
    rng = np.random.default_rng(1)
    asks = [_Ask(engine, tiny.tokens(150)[: 70 + n], n=1 + n % 2) for n in range(60)]
    for ask in asks:
        scheduler.submit(ask.job)
    while not scheduler.idle:
        asks[rng.integers(len(asks))].job.cancel()
        scheduler.step()
    assert free - executor.free_pages == _prefixes(scheduler).pages > 0
    _clear(scheduler)


def test_it_can_be_left_out(engine: Engine, executor: Executor) -> None:
    """Then prompts are read in as large parts as can be, as one process alone does."""
    scheduler = Scheduler(executor, SchedulerLimits(keep_prefixes=False))
    prompt = tiny.tokens(150)
    asks = [_Ask(engine, prompt), _Ask(engine, prompt)]
    for ask in asks:
        _run(scheduler, ask)
        assert ask.job.cached == 0
    assert scheduler.prefixes is None
    assert scheduler.counts.prefill_calls == 2 * -(-150 // executor.prefill_chunk_size)
    single = engine.generate_tokens(prompt, SamplingOptions(max_tokens=6))
    assert [token.id for _, token in asks[0].told] == list(single.token_ids)


def test_parts_are_named_by_all_that_is_before_them() -> None:
    names = names_of_parts([1, 2, 3, 4, 5], 2)
    assert len(names) == len(set(names)) == 2
    assert names_of_parts([1, 2, 3, 4], 2) == names
    assert names_of_parts([9, 2, 3, 4], 2)[1] != names[1]
    assert names_of_parts([1], 2) == ()
