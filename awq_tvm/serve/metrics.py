"""What Prometheus is shown."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from awq_tvm.errors import AwqTvmError
from awq_tvm.serve.job import Progress
from awq_tvm.serve.scheduler import Scheduler

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """Counts requests and shows what the scheduler counts.

    Args:
        scheduler: is looked at whenever somebody asks, from another thread than its own.

    Attributes:
        registry: what is shown.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.registry = CollectorRegistry()
        self._scheduler = scheduler
        self._requests = Counter(
            "awq_tvm_requests", "Requests that reached the scheduler", ["outcome"], registry=self.registry
        )
        self._first_token = Histogram(
            "awq_tvm_time_to_first_token_seconds", "From request to first token",
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self._whole = Histogram(
            "awq_tvm_request_seconds", "From request to last token", buckets=_SECONDS, registry=self.registry
        )
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """What the scheduler holds at this moment."""
        scheduler, counts = self._scheduler, self._scheduler.counts
        prefixes = scheduler.prefixes
        kept = 0 if prefixes is None else prefixes.pages
        used = scheduler.total_pages - scheduler.executor.free_pages - kept
        for name, text, gauge in (
            ("running", "Requests with a place in the cache", len(scheduler.running)),
            ("waiting", "Requests without one", scheduler.waiting),
            ("cache_pages_used", "Pages of the cache that requests under way hold alone", used),
            ("cache_pages_kept", "Pages kept for prompts that begin like an earlier one", kept),
            (
                "prefixes_kept",
                "Beginnings of prompts that are kept",
                0 if prefixes is None else len(prefixes),
            ),
            ("cache_pages", "Pages of the cache", scheduler.total_pages),
        ):
            yield GaugeMetricFamily(f"awq_tvm_{name}", text, value=gauge)
        for name, text, count in (
            ("prompt_tokens", "Tokens read", counts.prompt_tokens),
            ("cached_tokens", "Tokens of prompts that were kept and not read again", counts.cached_tokens),
            (
                "prefix_evictions",
                "Kept beginnings given up for want of pages",
                0 if prefixes is None else prefixes.evictions,
            ),
            ("generated_tokens", "Tokens written", counts.generated_tokens),
            ("prefill_calls", "Calls of the model that read prompts", counts.prefill_calls),
            ("decode_calls", "Calls of the model that wrote", counts.decode_calls),
        ):
            yield CounterMetricFamily(f"awq_tvm_{name}", text, value=count)

    async def watch(
        self, events: AsyncIterator[tuple[int, Progress]], begin: float
    ) -> AsyncIterator[tuple[int, Progress]]:
        """Pass on a request's events, timed from `begin`, a reading of time.perf_counter."""
        outcome, first = "cancelled", True
        try:
            async for event in events:
                if first:
                    self._first_token.observe(time.perf_counter() - begin)
                    first = False
                yield event
            outcome = "done"
            self._whole.observe(time.perf_counter() - begin)
        except AwqTvmError:
            outcome = "failed"
            raise
        finally:
            self._requests.labels(outcome).inc()
