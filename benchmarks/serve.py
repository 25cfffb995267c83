"""Tokens a second of servers with 1, 4, 8 and 16 streams at once, and the time to the first token.

    python -m benchmarks.serve BUNDLE [--streams 1,4,8,16] [--threads N] [--peer NAME=URL ...]

The bundle is served by a process of its own. A peer is any server with OpenAI's API, started by you on the same
machine: with llama-cpp-python, in an environment of its own,

    python -m llama_cpp.server --model MODEL.gguf --n_threads N --port 9000

Every stream asks the same prompts in the same order, greedily, one after the other; the servers take turns
--repetitions times over, so that other load meets all of them alike. Medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai

PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a",
    "To bake bread you need",
    "The three laws of motion are",
    "In the year 1969",
    "A good way to learn a language is",
    "The ocean is salty because",
    "Computers store numbers as",
)


def ask(client: openai.OpenAI, model: str, prompt: str, tokens: int) -> tuple[float, int]:
    """Seconds to the first piece of text, and tokens written."""
    begin, first, written = time.perf_counter(), 0.0, 0
    options: dict[str, Any] = {"stream_options": {"include_usage": True}}
    for piece in client.completions.create(
        model=model, prompt=prompt, max_tokens=tokens, temperature=0, stream=True, **options
    ):
        if piece.choices and piece.choices[0].text and not first:
            first = time.perf_counter() - begin
        written = piece.usage.completion_tokens if piece.usage else written
    return first, written


def measure(url: str, streams: int, tokens: int) -> tuple[float, float]:
    """Tokens a second of all streams together, and the median seconds to a first token."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600)
    model = next(iter(client.models.list())).id
    # Each stream begins at another prompt; a single stream asks them all.
    turns = [[PROMPTS[(stream + turn) % len(PROMPTS)] for turn in range(2)] for stream in range(streams)]
    turns = [list(PROMPTS)] if streams == 1 else turns

    def run(prompts: Sequence[str]) -> list[tuple[float, int]]:
        return [ask(client, model, prompt, tokens) for prompt in prompts]

    begin = time.perf_counter()
    with ThreadPoolExecutor(streams) as pool:
        found = [each for answers in pool.map(run, turns) for each in answers]
    seconds = time.perf_counter() - begin
    return sum(written for _, written in found) / seconds, statistics.median(first for first, _ in found)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--streams", default="1,4,8,16")
    parser.add_argument("--tokens", type=int, default=64, help="most tokens of an answer")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", default="1")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=URL")
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "awq_tvm", "serve", arguments.bundle, "--port", "0", "--json"]
    counts = [int(count) for count in arguments.streams.split(",")]
    with subprocess.Popen(
        [*command, "--threads", arguments.threads], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            urls = {"awq_tvm": json.loads(process.stdout.readline())["url"]}
            urls |= dict(peer.split("=", 1) for peer in arguments.peer)
            rows: dict[tuple[str, int], list[tuple[float, float]]] = {}
            for url in urls.values():
                measure(url, 2, 4)
            for _ in range(arguments.repetitions):
                for count in counts:
                    for name, url in urls.items():
                        rows.setdefault((name, count), []).append(measure(url, count, arguments.tokens))
        finally:
            process.terminate()
    print("server        streams  tokens/s  against 1 stream  first token, s")
    for (name, count), found in rows.items():
        rate = statistics.median(rate for rate, _ in found)
        base = statistics.median(rate for rate, _ in rows[name, counts[0]])
        first = statistics.median(first for _, first in found)
        print(f"{name:<12}  {count:>7}  {rate:>8.1f}  {rate / base:>16.2f}  {first:>14.3f}")


if __name__ == "__main__":
    main()
