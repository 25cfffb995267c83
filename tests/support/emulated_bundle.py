"""Runs a GPU's bundle in the emulator, in a process of its own: its tokens, logits and launches.

    python -m tests.support.emulated_bundle BUNDLE PLAN.json INTO.npz

The plan: "parts", what is read at once, each a number of tokens and the rows of logits that are wanted ("last" or
"all"); "greedy", how many tokens are generated after them; "vocabulary", from which the tokens read are drawn;
"fork", how many of these tokens a second sequence shares, to which the last of them is appended again, 0 for none;
"alone", linears that are called by themselves.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tests.support.child import output_of
from tests.support.emulated_linear import Linear, call_alone

Array = np.ndarray[Any, Any]
Part = tuple[int, Literal["last", "all"]]

TOLERANCE = 1e-2
"""Bound of |emulated - torch| / max |torch|: float16 activations, unit roundoff 5e-4, at some 20 steps."""


@dataclass(frozen=True)
class Emulated:
    """What came of it.

    Attributes:
        ids: what was read and then generated.
        logits: the rows that were wanted, then one for each generated token.
        rows: after which of ``ids`` each row of logits comes.
        forked: logits after the second sequence's last token.
        alone: what each linear by itself has given, [M, N].
        launches: how often each kernel was launched.
        overlapped: how many of the launches might begin before those before them had ended.
    """

    ids: list[int]
    logits: Array
    rows: list[int]
    forked: Array
    alone: list[Array]
    launches: dict[str, int]
    overlapped: int


def run_in_emulator(
    bundle: Path,
    folder: Path,
    *,
    parts: list[Part],
    greedy: int,
    vocabulary: int,
    fork: int = 0,
    alone: Sequence[Linear] = (),
) -> Emulated:
    """Read tokens drawn by chance, generate more, in a child process; ``folder`` takes what it needs."""
    plan, into = folder / "plan.json", folder / "found.npz"
    what = {"parts": parts, "greedy": greedy, "vocabulary": vocabulary, "fork": fork}
    plan.write_text(json.dumps({**what, "alone": [asdict(linear) for linear in alone]}))
    output_of(__name__, bundle, plan, into)
    with np.load(into) as found:
        launches = json.loads(str(found["launches"]))
        ids, rows = found["ids"].tolist(), found["rows"].tolist()
        apart = [found[f"alone{i}"] for i in range(len(alone))]
        return Emulated(
            ids, found["logits"], rows, found["forked"], apart, launches, int(found["overlapped"])
        )


def main(bundle: str, plan_path: str, into: str) -> None:
    """The child."""
    from awq_tvm.bundle.reader import open_bundle
    from awq_tvm.runtime.emulated import emulated_executor, launches
    from awq_tvm.runtime.logit_row import DeviceRow, likeliest
    from awq_tvm.runtime.tvm_library import load_runtime_library

    plan = json.loads(Path(plan_path).read_text())
    counts = [count for count, _ in plan["parts"]]
    drawn = np.random.default_rng(0).integers(0, plan["vocabulary"], sum(counts))
    ids, rows, logits = [int(token) for token in drawn], list[int](), []
    opened, forked = open_bundle(Path(bundle), target=False), np.zeros(0)
    with emulated_executor(opened) as executor:
        sequence, at = executor.new_sequence(), 0
        for count, wanted in plan["parts"]:
            logits.append(executor.forward([sequence], [ids[at : at + count]], logits=wanted))
            at += count
            rows += range(at - count if wanted == "all" else at - 1, at)
        for _ in range(plan["greedy"]):
            ids.append(int(logits[-1][-1].argmax()))
            rows.append(len(ids) - 1)
            (row,) = executor.step([sequence], [ids[-1:]], [0.0])
            assert isinstance(row, DeviceRow)
            logits.append(row.whole()[None])
            assert likeliest(row) == int(row.whole().argmax())
        if plan["fork"]:
            other = executor.fork_sequence(sequence, plan["fork"])
            (forked,) = executor.forward([other], [ids[-1:]])
        linears = [Linear(**{**one, "modules": tuple(one["modules"])}) for one in plan["alone"]]
        alone = {f"alone{i}": call_alone(opened, executor, linear) for i, linear in enumerate(linears)}
        found = {"ids": np.array(ids), "rows": np.array(rows), "forked": forked, **alone}
    # The process has what a device has: neither the compiler nor PyTorch.
    assert not {"torch", "tvm"} & sys.modules.keys()
    overlapped = int(load_runtime_library("cpu").get_global_func("awq_emulate.overlapped_launches")())
    counted = {"launches": np.array(json.dumps(launches())), "overlapped": np.array(overlapped)}
    np.savez(into, logits=np.concatenate(logits), **found, **counted)


if __name__ == "__main__":
    main(*sys.argv[1:])
