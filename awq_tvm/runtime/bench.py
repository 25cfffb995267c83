"""Speed and memory of a bundle: prompt reading and generation, each thread count in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from awq_tvm.bundle.reader import open_bundle
from awq_tvm.errors import BundleError, ResourceError, UsageError
from awq_tvm.progress import ProgressCallback, ProgressEvent, ignore_progress

MAX_REPETITIONS = 1000


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What to measure.

    Attributes:
        prompt_tokens: lengths of prompts; each is a row "pp<length>".
        generate_tokens: tokens drawn one after the other, a row "tg<length>"; 0 for none.
        threads: thread counts, each measured in a fresh process.
        repetitions: of every test, after one that is not counted; 1 to 1000.

    Raises:
        UsageError: a value out of its range.
    """

    prompt_tokens: tuple[int, ...] = (128, 512)
    generate_tokens: int = 64
    threads: tuple[int, ...] = (1, 2)
    repetitions: int = 5

    def __post_init__(self) -> None:
        for name, values, low, high in (
            ("prompt-tokens", self.prompt_tokens, 1, 1 << 24),
            ("generate-tokens", (self.generate_tokens,), 0, 1 << 20),
            ("threads", self.threads, 1, 1024),
            ("repetitions", (self.repetitions,), 1, MAX_REPETITIONS),
        ):
            for value in values:
                if not low <= value <= high:
                    raise UsageError(
                        f"--{name} {value} cannot be meant.",
                        where=f"--{name}",
                        why=f"found {value}, legal is from {low} to {high}",
                        fix="give a number in that range",
                    )
        if not self.threads or not (self.prompt_tokens or self.generate_tokens):
            raise UsageError(
                "There is nothing to measure.",
                where="--threads, --prompt-tokens, --generate-tokens",
                why=f"found {len(self.threads)} thread counts and "
                f"{len(self.prompt_tokens) + bool(self.generate_tokens)} tests, need 1 of each",
                fix="name at least one thread count and one test",
            )


def bench_bundle(
    bundle_path: Path, options: BenchOptions, *, progress: ProgressCallback = ignore_progress
) -> list[dict[str, Any]]:
    """Measure a bundle.

    Returns:
        a row a test and thread count: "test" ("pp128", "tg64"), "threads", "tokens_per_second" (median),
        "spread" (largest less smallest, over the median), "gigabytes_per_second" (10^9 bytes of weights a
        second; each pass over the model reads them once), "peak_memory_bytes" (of the whole process).

    Raises:
        UsageError: a test that does not fit the context.
        BundleError, TargetError: the bundle cannot be loaded.
        ResourceError: a process ended before it had measured.
    """
    context = open_bundle(bundle_path).manifest.model.context_length
    longest = max((*options.prompt_tokens, options.generate_tokens + 1))
    if longest > context:
        raise UsageError(
            "A test is longer than the bundle's context.",
            where="--prompt-tokens, --generate-tokens",
            why=f"it needs {longest} tokens, the context holds {context}",
            fix="measure fewer tokens, or compile with a larger --context-length",
        )
    rows: list[dict[str, Any]] = []
    for index, threads in enumerate(options.threads):
        progress(ProgressEvent("bench", index, len(options.threads), f"{threads} thread(s)"))
        rows += _measure_apart(bundle_path, options, threads)
    progress(ProgressEvent("bench", len(options.threads), len(options.threads)))
    return rows


def _measure_apart(bundle_path: Path, options: BenchOptions, threads: int) -> list[dict[str, Any]]:
    """Run `bench_worker` with TVM's thread count set: TVM reads it once, when its pool starts."""
    root = str(Path(__file__).parents[2])
    inherited = os.environ.get("PYTHONPATH")
    environment = {
        **os.environ,
        "TVM_NUM_THREADS": str(threads),
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join([root, inherited] if inherited else [root]),
    }
    request = {"bundle": str(bundle_path.resolve()), "options": asdict(options), "threads": threads}
    result = subprocess.run(
        [sys.executable, "-m", "awq_tvm.runtime.bench_worker"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    try:
        answer: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise ResourceError(
            "The process that measures ended early.",
            where=f"{threads} thread(s)",
            why=f"exit status {result.returncode}: {result.stderr.strip()[-500:] or 'no message'}",
            fix="run `python -m awq_tvm doctor`; too little memory is the usual cause",
        ) from None
    if "error" in answer:
        raise BundleError(
            answer["error"]["what"],
            where=answer["error"]["where"],
            why=answer["error"]["why"],
            fix=answer["error"]["fix"],
        )
    rows: list[dict[str, Any]] = answer["rows"]
    return rows
