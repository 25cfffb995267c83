"""What the kernels of each tunable family look like, in a digest: so that no change of one goes unnoticed.

    python -m tests.support.rule_digests     writes the digests anew, and says what that retires

A digest is of the IR of a few linears, with the configuration that stands beside it. It does not change with the
family's default tiles or the order of its space, only with what a configuration is built into.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from awq_tvm.compile.tuning.places import shipped_folder
from awq_tvm.compile.tuning.problem import Problem
from awq_tvm.compile.tuning.record_file import read_records, record_files
from awq_tvm.schedules.attention.rule import AttentionSpec
from awq_tvm.schedules.attention.shape import AttentionShape
from awq_tvm.schedules.config_fields import to_fields
from awq_tvm.schedules.spec import DenseSpec, MatmulSpec
from awq_tvm.targets import resolve

FILE = Path(__file__).parents[1] / "schedules" / "rule_digests.json"

CASES = (
    ("x86-64-v4-vnni", MatmulSpec(576, 960, 4, 64, "float32", activations="int8")),
    ("x86-64-v4-vnni", MatmulSpec(576, 960, 8, 64, "float32", activations="int8")),
    ("x86-64-v3", MatmulSpec(576, 960, 4, 64, "float32", activations="int8")),
    ("x86-64-v4-vnni", MatmulSpec(576, 960, 4, 64, "float32")),
    ("x86-64-v3", MatmulSpec(576, 960, 4, 64, "float32")),
    ("x86-64-v3", DenseSpec(576, 960, "float16", "float32")),
    ("graviton-3", MatmulSpec(576, 960, 4, 64, "float32", activations="int8")),
    ("graviton-3", MatmulSpec(576, 960, 4, 64, "float32")),
    ("raspberry-pi-4", MatmulSpec(576, 960, 4, 64, "float32")),
    ("x86-64-v4-vnni", AttentionSpec("decode", AttentionShape(9, 3, 64, "float16"))),
    ("x86-64-v4-vnni", AttentionSpec("prefill_paged", AttentionShape(9, 3, 64, int8_pages=True))),
    ("raspberry-pi-5", AttentionSpec("prefill_ragged", AttentionShape(9, 3, 64, "float16"))),
    ("nvidia-a100", MatmulSpec(576, 960, 4, 64, "float16")),
    ("nvidia-h100", MatmulSpec(576, 960, 4, 64, "float16")),
    ("nvidia-t4", MatmulSpec(576, 960, 4, 64, "float16")),
    ("metal", MatmulSpec(576, 960, 4, 64, "float16")),
    # Of no whole blocks of k.
    ("metal", MatmulSpec(100, 60, 4, 20, "float16")),
)

Entry = dict[str, Any]


def problems() -> dict[str, Problem]:
    """The linears, by a name that says family and target."""
    found = {}
    for target, spec in CASES:
        problem = Problem.of(spec, resolve(target))
        assert problem is not None, spec
        found[f"{problem.rule}, {target}, {problem.title}"] = problem
    return found


def entry(problem: Problem, config: dict[str, Any] | None = None) -> Entry:
    """Version, configuration and digest of a linear's kernel; with the default where no configuration is given."""
    if config is None:
        names = [name for part in problem.parts for name in part.fields]
        config = to_fields(problem.default, names)
    script = problem.build(config).script(show_meta=True)
    digest = hashlib.sha256(script.encode()).hexdigest()[:16]
    return {"version": problem.family.version, "config": config, "digest": digest}


def shipped_of(rule: str, version: int) -> int:
    """Records that came with the program and are lost when a family leaves a version."""
    found = read_records(record_files(shipped_folder())).by_key()
    return sum(key.rule == rule and key.rule_version == version for key in found)


def read() -> dict[str, Entry]:
    """The digests as they were accepted."""
    found: dict[str, Entry] = json.loads(FILE.read_text())
    return found


def main() -> None:
    """Write them."""
    before = read() if FILE.exists() else {}
    after = {name: entry(problem) for name, problem in problems().items()}
    FILE.write_text(json.dumps(after, indent=2) + "\n")
    lost = {
        (name.partition(",")[0], old["version"])
        for name, old in before.items()
        if name in after and after[name]["version"] != old["version"]
    }
    for rule, version in sorted(lost):
        print(f"{rule} leaves version {version}: {shipped_of(rule, version)} shipped records are retired")
    print(f"{len(after)} digests written")


if __name__ == "__main__":
    main()
