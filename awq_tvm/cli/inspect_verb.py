"""`inspect MODEL_OR_BUNDLE`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from awq_tvm.cli.options import Json, is_bundle
from awq_tvm.cli.output import in_bytes, print_json, table


def command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL_OR_BUNDLE", show_default=False, help="What to look at.")
    ],
    json_output: Json = False,
) -> None:
    """Show what a checkpoint or a bundle holds; nothing of it is loaded or run."""
    found = _bundle(Path(model)) if is_bundle(model) else _checkpoint(model)
    if json_output:
        print_json(found)
        return
    if "kernels" in found:
        found["kernels"] = _by_name(found["kernels"])
    for key, value in found.items():
        print(f"{key}:")
        print(_block(value))


def _bundle(path: Path) -> dict[str, Any]:
    from awq_tvm.bundle.kernel_report import read_kernel_report
    from awq_tvm.bundle.verify import check_listing, read_manifest

    manifest = read_manifest(path)
    check_listing(path, manifest)
    plain = manifest.model_dump(mode="json")
    keys = ("target", "model", "recipe", "versions", "tuning", "files")
    kernels = [one.model_dump(mode="json") for one in read_kernel_report(path, manifest)]
    return {
        "kind": "bundle, kernels as source only" if manifest.source_only else "bundle",
        **{key: plain[key] for key in keys},
        "parameters": len(manifest.parameters),
        **({"kernels": kernels} if kernels else {}),
    }


def _by_name(kernels: list[dict[str, Any]]) -> dict[str, str]:
    """A line a kernel: the most that it takes of any architecture."""
    most: dict[str, str] = {}
    for name in sorted({one["name"] for one in kernels}):
        here = [one for one in kernels if one["name"] == name]
        registers, spills, shared = (
            max(one[key] or 0 for one in here) for key in ("registers", "spill_store_bytes", "shared_bytes")
        )
        most[name] = (
            f"{registers} registers, {spills} bytes spilled, {in_bytes(shared)} of static shared memory"
        )
    return most


def _checkpoint(model: str) -> dict[str, Any]:
    from awq_tvm.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(model)
    stored = Counter(info.stored_as for info in checkpoint.tensors.values())
    scheme = checkpoint.scheme
    widths = Counter(scheme.of(name).bits for name in checkpoint.quantized) if scheme else Counter()
    config = {
        key: value
        for key, value in checkpoint.config.items()
        if isinstance(value, (str, int, float, bool)) or key in ("rope_scaling", "rope_parameters")
    }
    return {
        "kind": "checkpoint",
        "source": checkpoint.source,
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        "model": config,
        "quantization": None
        if scheme is None
        else {"bits": scheme.bits, "group_size": scheme.group_size, "zero_point": scheme.zero_point},
        "quantized_linears": len(checkpoint.quantized),
        "quantized_linears_by_bits": {f"{bits} bits": count for bits, count in sorted(widths.items())},
        "dense_tensors": {
            "count": len(checkpoint.tensors),
            "bytes": sum(info.stored_bytes for info in checkpoint.tensors.values()),
            "stored_as": dict(stored),
        },
        "files": {name: len(content) for name, content in checkpoint.side_files.items()},
    }


def _block(value: Any) -> str:
    if isinstance(value, dict) and value:
        rows = []
        for key, inner in value.items():
            is_file = isinstance(inner, dict) and {"size", "sha256"} <= inner.keys()
            rows.append(
                ("  " + key, f"{in_bytes(inner['size'])}  {inner['sha256']}" if is_file else _cell(inner))
            )
        return table(rows)
    return "  " + _cell(value)


def _cell(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict) and "source" in value[0]:
        return "\n" + table(
            [(f"    {row['name']}", row["count"], row["source"], row["reason"]) for row in value], right=(1,)
        )
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
