"""Answers of a GPU's bundle in the emulator, drawn from candidates and from all logits, one by one and together.

    python -m tests.support.emulated_sampling BUNDLE

Prints JSON: for each of ``OPTIONS`` the tokens "from_candidates", "from_all" and "together", "reads" (how often all
logits were read where there were candidates), and "launches" of each kernel.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from awq_tvm.bundle.reader import open_bundle
from awq_tvm.prompt.tokenizer import load_tokenizer
from awq_tvm.runtime.emulated import emulated_executor, launches
from awq_tvm.runtime.engine import Engine
from awq_tvm.runtime.logit_row import DeviceRow
from awq_tvm.runtime.sampler import SamplingOptions
from awq_tvm.serve.job import Job
from awq_tvm.serve.scheduler import Scheduler, SchedulerLimits

OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.8, "top_k": 8, "logprobs": 2},
    {"temperature": 0.5, "top_p": 0.8, "min_p": 0.02},
    {"repetition_penalty": 1.2, "presence_penalty": 0.5},
    {"temperature": 1.0},
)
PROMPT, TOKENS = [3, 1, 4, 1, 5], 6


def main(path: str) -> None:
    """The child."""
    bundle = open_bundle(Path(path), target=False)
    settings = [SamplingOptions(seed=7, max_tokens=TOKENS, **options) for options in OPTIONS]
    with emulated_executor(bundle) as executor:
        tokenizer = load_tokenizer(bundle.side_files())
        engine = Engine(executor, tokenizer, eos_token_ids=(), vocab_size=bundle.manifest.model.vocab_size)
        reads, whole = [0], DeviceRow.whole

        def counted(row: DeviceRow) -> Any:
            reads[-1] += 1
            return whole(row)

        DeviceRow.whole = counted  # type: ignore[method-assign]
        from_candidates = []
        for one in settings:
            from_candidates.append(engine.generate_tokens(PROMPT, one).token_ids)
            reads.append(0)
        writers = [engine.start(PROMPT, one) for one in settings]
        scheduler = Scheduler(executor, SchedulerLimits())
        for writer in writers:
            scheduler.submit(Job(PROMPT, [writer], lambda _: None))
        while not scheduler.idle:
            scheduler.step()
        counts = launches()
        executor._finder = None
        from_all = [engine.generate_tokens(PROMPT, one).token_ids for one in settings]
        after = launches()
    assert {k: v for k, v in after.items() if "candidates" in k} == {
        k: v for k, v in counts.items() if "candidates" in k
    }
    together = [writer.token_ids for writer in writers]
    answer = {"from_candidates": from_candidates, "from_all": from_all, "together": together}
    print(json.dumps({**answer, "reads": reads[: len(settings)], "launches": counts}))


if __name__ == "__main__":
    main(*sys.argv[1:])
