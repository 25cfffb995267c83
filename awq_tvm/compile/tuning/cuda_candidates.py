"""Candidates of one linear for an NVIDIA GPU: a binary for each, and what is launched of it at each M."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from awq_tvm.compile.toolchain.launches import HostPart
from awq_tvm.compile.toolchain.nvcc import Nvcc
from awq_tvm.compile.tuning.device_library import DeviceLibrary
from awq_tvm.compile.tuning.measurement import Failed
from awq_tvm.compile.tuning.numbers import linear
from awq_tvm.compile.tuning.problem import Problem
from awq_tvm.schedules.rule import Part


def build_cuda_candidates(
    problem: Problem, part: Part, configs: Sequence[Mapping[str, Any]], path: Path
) -> tuple[DeviceLibrary, tuple[Path, ...]]:
    """Build candidates; those that cannot be built are left out.

    Args:
        problem: the linear.
        part: the range of M.
        configs: fields that differ from the default, for each candidate.
        path: of the table of candidates to write; binaries and sources go beside it.

    Returns:
        the table, in which candidates have numbers as in a library; and all files.
    """
    spec, target = linear(problem), problem.target
    kernels: dict[int, int] = {}
    refused: dict[int, Failed] = {}
    candidates: list[dict[str, Any]] = []
    files = [path]
    for place, fields in enumerate(configs):
        source = path.with_name(f"{path.stem}-{place}.cu")
        try:
            func = problem.build(dict(fields)).with_attr("global_symbol", "linear")
            host = HostPart(func, target)
            source.write_text(host.source, encoding="utf-8")
            _, (binary,), _ = Nvcc.find().compile(source, (target.own_cuda_arch,), None)
        except Exception as error:
            # Whatever TVM raises, and nvcc: a candidate that cannot be built is no reason to end.
            refused[place] = Failed("refused", str(error)[:400])
            continue
        rows = dict.fromkeys((*part.checked_rows, *part.timed_rows))
        kernels[place] = len(candidates)
        candidates.append(
            {
                "image": binary.name,
                "source": source.name,
                "launches": {m: [asdict(launch) for launch in host.launches({"m": m})] for m in rows},
                "workspaces": host.workspaces,
            }
        )
        files += [source, binary]
    layout = problem.family.layout(spec, target)
    names = [array.suffix for array in layout.arrays(spec)]
    table = {"arch": target.sm_arch, "weights": names, "candidates": candidates}
    path.write_text(json.dumps(table), encoding="utf-8")
    return DeviceLibrary(path, kernels, refused), tuple(files)
