"""Bundles of one model beside each other, in turns: what other tiles or kernels bring to prompts and tokens.

    python -m benchmarks.bundles UNTUNED TUNED
    python -m benchmarks.bundles BEFORE UNTUNED TUNED --tests pp128,all128,tg1,tg16 --repetitions 15 --threads 2

A test is ppN, a prompt of N tokens with the logits of the last; allN, with those of all; tgB, the next token of each
of B streams behind 64 tokens. Prints a JSON line for each: quartiles of its milliseconds by bundle, the median over
the turns of the first one's time by each other's, and how far their logits are from the first one's at most.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from awq_tvm.runtime.engine import Engine, ExecutorLike

TESTS = "pp16,pp128,pp512,all128,tg1,tg4,tg8,tg9,tg12,tg16,tg32"
DEPTH = 64
"""Tokens that streams have behind them."""

Logits = np.ndarray[Any, np.dtype[np.float32]]


def prompt(executor: ExecutorLike, tokens: Sequence[int], which: Any) -> tuple[float, Logits]:
    """Seconds for a prompt, and its logits."""
    sequence = executor.new_sequence()
    begin = time.perf_counter()
    logits = executor.forward([sequence], [tokens], logits=which)
    seconds = time.perf_counter() - begin
    executor.remove_sequence(sequence)
    return seconds, logits


def streams(executor: ExecutorLike, tokens: Sequence[int], count: int) -> tuple[float, Logits]:
    """Seconds for a step of so many streams, the first quartile of eight steps, and the last step's logits."""
    sequences = [executor.new_sequence() for _ in range(count)]
    for i, sequence in enumerate(sequences):
        executor.forward([sequence], [tokens[i : i + DEPTH]])
    seconds = []
    for step in range(8):
        begin = time.perf_counter()
        logits = executor.forward(sequences, [[token] for token in tokens[step : step + count]])
        seconds.append(time.perf_counter() - begin)
    for sequence in sequences:
        executor.remove_sequence(sequence)
    return statistics.quantiles(seconds, n=4)[0], logits


def test_of(name: str, tokens: Sequence[int]) -> Callable[[ExecutorLike], tuple[float, Logits]]:
    """What a test's name says.

    Raises:
        SystemExit: it says nothing.
    """
    match = re.fullmatch(r"(pp|all|tg)([1-9]\d{0,3})", name)
    if match is None:
        raise SystemExit(f"{name!r} is no test: ppN, allN or tgB")
    kind, number = match[1], int(match[2])
    if kind == "tg":
        return lambda executor: streams(executor, tokens, number)
    which = "all" if kind == "all" else "last"
    return lambda executor: prompt(executor, tokens[:number], which)


def measure(engines: Sequence[Engine], name: str, repetitions: int) -> dict[str, Any]:
    """Run a test on all bundles in turns."""
    rng = np.random.default_rng(0)
    tokens = [int(token) for token in rng.integers(0, engines[0].vocab_size, 4096)]
    test = test_of(name, tokens)
    times: list[list[float]] = [[] for _ in engines]
    far = [0.0] * len(engines)
    for turn in range(repetitions + 1):
        logits = []
        for engine, own in zip(engines, times, strict=True):
            seconds, found = test(engine.executor)
            logits.append(found)
            if turn:  # the first one warms up
                own.append(1000 * seconds)
        far = [
            max(before, float(np.abs(one - logits[0]).max())) for before, one in zip(far, logits, strict=True)
        ]
    ratios = [statistics.median(a / b for a, b in zip(times[0], own, strict=True)) for own in times]
    return {
        "test": name,
        "milliseconds": [[round(value, 3) for value in statistics.quantiles(own, n=4)] for own in times],
        "times_as_fast": [round(ratio, 3) for ratio in ratios],
        "logits_differ_by": [float(f"{value:.2g}") for value in far],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument("--tests", default=TESTS)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    engines = [Engine.load(bundle, threads=options.threads) for bundle in options.bundles]
    for name in options.tests.split(","):
        print(json.dumps(measure(engines, name, options.repetitions)), flush=True)
    for engine in engines:
        engine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
