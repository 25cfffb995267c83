"""The whole model against llama.cpp, side by side in one run.

    python -m benchmarks.llama_cpp BUNDLE --gguf MODEL.gguf [--gguf OTHER.gguf] [--threads 1,2]

Wants `llama-cpp-python`. Each contender reads a prompt of --prompt-tokens and then writes --generate-tokens
greedily, in a process of its own, for one thread count at a time; the contenders take turns --repetitions times
over, so that other load meets all of them alike. Medians, and the ratio of the first bundle to the best of the
others.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

Forward = Callable[[Sequence[int]], int]
"""Appends tokens to one sequence and returns the likeliest next token."""


def load_ours(path: Path, threads: int) -> tuple[Forward, Callable[[], None]]:
    """A bundle as (forward, start a new sequence)."""
    from awq_tvm.bundle.reader import open_bundle
    from awq_tvm.runtime.executor import Executor

    bundle = open_bundle(path)
    executor = Executor(bundle.library, bundle.weights, bundle.manifest, threads=threads)
    current: list[int] = []

    def reset() -> None:
        if current:
            executor.remove_sequence(current.pop())
        current.append(executor.new_sequence())

    return lambda tokens: int(executor.forward(current, [list(tokens)])[0].argmax()), reset


def load_llama_cpp(path: Path, threads: int, context: int) -> tuple[Forward, Callable[[], None]]:
    """A GGUF file in llama.cpp as (forward, start a new sequence)."""
    llama_cpp = importlib.import_module("llama_cpp")
    model = llama_cpp.Llama(
        str(path), n_ctx=context, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False
    )

    def forward(tokens: Sequence[int]) -> int:
        model.eval(list(tokens))
        logits = llama_cpp.llama_get_logits_ith(model.ctx, -1)
        return int(np.ctypeslib.as_array(logits, (model.n_vocab(),)).argmax())

    return forward, model.reset


def measure(
    forward: Forward, reset: Callable[[], None], prompts: Sequence[int], generate: int
) -> dict[str, float]:
    """Tokens a second by test: "pp128" for a prompt of 128, "tg64" for 64 generated tokens."""
    result = {}
    for length in prompts:
        reset()
        prompt = [1 + (7 * i) % 4000 for i in range(length)]
        started = time.perf_counter()
        token = forward(prompt)
        result[f"pp{length}"] = length / (time.perf_counter() - started)
    started = time.perf_counter()
    for _ in range(generate):
        token = forward([token])
    result[f"tg{generate}"] = generate / (time.perf_counter() - started)
    return result


def worker(arguments: argparse.Namespace) -> None:
    """One contender, one thread count: a warm-up, then one measurement as JSON."""
    path, threads = Path(arguments.worker), int(arguments.threads)
    prompts = [int(p) for p in arguments.prompt_tokens.split(",")]
    context = 2 * (max(prompts) + arguments.generate_tokens)
    forward, reset = load_ours(path, threads) if path.is_dir() else load_llama_cpp(path, threads, context)
    measure(forward, reset, prompts[:1], 8)
    print(json.dumps(measure(forward, reset, prompts, arguments.generate_tokens)))


def run_worker(contender: Path, threads: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Measure one contender in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.llama_cpp", "--worker", str(contender), "--threads", threads]
    command += [
        "--prompt-tokens",
        arguments.prompt_tokens,
        "--generate-tokens",
        str(arguments.generate_tokens),
    ]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    numbers: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return numbers


def main() -> None:
    """Compare and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundles", nargs="*", type=Path)
    parser.add_argument("--gguf", action="append", default=[], type=Path)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--prompt-tokens", default="128,512")
    parser.add_argument("--generate-tokens", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments)
        return
    contenders = [*arguments.bundles, *arguments.gguf]
    print(f"load before: {os.getloadavg()[0]:.1f}")
    print(f"{'threads':>7} {'test':>6} " + " ".join(f"{c.name[:28]:>28}" for c in contenders) + "   ratio")
    for threads in arguments.threads.split(","):
        runs: dict[Path, dict[str, list[float]]] = {c: defaultdict(list) for c in contenders}
        for _ in range(arguments.repetitions):
            for contender in contenders:
                for test, speed in run_worker(contender, threads, arguments).items():
                    runs[contender][test].append(speed)
        for test in runs[contenders[0]]:
            medians = [statistics.median(runs[c][test]) for c in contenders]
            others = medians[len(arguments.bundles) :]
            ratio = f"{medians[0] / max(others):7.2f}" if others and arguments.bundles else ""
            print(f"{threads:>7} {test:>6} " + " ".join(f"{m:28.1f}" for m in medians) + f" {ratio}")


if __name__ == "__main__":
    main()
