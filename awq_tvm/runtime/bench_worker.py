"""Measures one bundle with one thread count; `bench.py` runs it in a process of its own.

A request in JSON on standard input, the rows in JSON on the last line of standard output.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from awq_tvm.bundle.reader import open_bundle
from awq_tvm.errors import AwqTvmError
from awq_tvm.memory import peak_memory
from awq_tvm.runtime.engine import ExecutorLike, load_executor
from awq_tvm.runtime.logit_row import likeliest


def measure(
    executor: ExecutorLike,
    *,
    prompt_tokens: list[int],
    generate_tokens: int,
    repetitions: int,
    vocab_size: int,
    chunk: int,
) -> list[dict[str, Any]]:
    """Rows of a loaded model, without "threads" and "peak_memory_bytes"; see `bench.bench_bundle`.

    Args:
        executor: the model.
        prompt_tokens: lengths of prompts.
        generate_tokens: tokens to generate; 0 for none.
        repetitions: of each test that count.
        vocab_size: token ids are below it.
        chunk: most tokens one pass over the model reads.
    """
    # Any tokens do: the work does not depend on them. A fixed seed makes runs alike.
    tokens = np.random.default_rng(0).integers(0, vocab_size, max([*prompt_tokens, 1])).tolist()
    rows = [
        _row(
            executor,
            f"pp{count}",
            count,
            -(-count // chunk),
            [_read(executor, tokens[:count]) for _ in range(repetitions + 1)],
        )
        for count in prompt_tokens
    ]
    if generate_tokens:
        times = [_generate(executor, tokens[0], generate_tokens) for _ in range(repetitions + 1)]
        rows.append(_row(executor, f"tg{generate_tokens}", generate_tokens, generate_tokens, times))
    return rows


def _read(executor: ExecutorLike, tokens: list[int]) -> float:
    sequence = executor.new_sequence()
    try:
        start = time.perf_counter()
        executor.forward([sequence], [tokens])
        return time.perf_counter() - start
    finally:
        executor.remove_sequence(sequence)


def _generate(executor: ExecutorLike, token: int, count: int) -> float:
    sequence = executor.new_sequence()
    try:
        executor.forward([sequence], [[token]])
        start = time.perf_counter()
        for _ in range(count):
            (row,) = executor.step([sequence], [[token]], [0.0])
            token = likeliest(row)
        return time.perf_counter() - start
    finally:
        executor.remove_sequence(sequence)


def _row(executor: ExecutorLike, test: str, tokens: int, passes: int, times: list[float]) -> dict[str, Any]:
    seconds = times[1:]  # the first run touches memory for the first time
    median = statistics.median(seconds)
    return {
        "test": test,
        "tokens_per_second": tokens / median,
        "spread": (max(seconds) - min(seconds)) / median,
        "gigabytes_per_second": executor.weight_bytes * passes / median / 1e9,
    }


def main() -> None:
    """Answer the one request on standard input."""
    request = json.loads(sys.stdin.read())
    options = request["options"]
    try:
        bundle = open_bundle(Path(request["bundle"]))
        executor = load_executor(bundle, request["threads"])
        rows = measure(
            executor,
            prompt_tokens=options["prompt_tokens"],
            generate_tokens=options["generate_tokens"],
            repetitions=options["repetitions"],
            vocab_size=bundle.manifest.model.vocab_size,
            chunk=bundle.manifest.model.prefill_chunk_size,
        )
    except AwqTvmError as error:
        parts = {"what": error.what, "where": error.where, "why": error.why, "fix": error.fix}
        print(json.dumps({"error": parts}))
        return
    peak = peak_memory()
    print(
        json.dumps(
            {"rows": [{**row, "threads": request["threads"], "peak_memory_bytes": peak} for row in rows]}
        )
    )


if __name__ == "__main__":
    main()
