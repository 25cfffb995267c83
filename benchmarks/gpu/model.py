"""A compiled model where it is measured: a bundle with random weights is written, and the runtime's bench runs it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

DRAFT_NAME, PARAMETERS_NAME = "draft.json", "parameters.json"
PROMPT_TOKENS, GENERATED_TOKENS = (128, 512, 2000), 128


@dataclass(frozen=True)
class Parameter:
    """One weight array of the model.

    Attributes:
        name: of the parameter.
        shape: of the array.
        dtype: of the array.
        kind: "qweight", "scales" or "zeros" of a quantized weight, or "dense".
        bits: of a code.
        in_features: K.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    bits: int
    in_features: int


def random_weights(parameters: Sequence[Parameter], seed: int = 0) -> Iterator[tuple[str, Array]]:
    """Weights under which activations keep their size: W has a variance of 1 / K, norms are ones."""
    rng = np.random.default_rng(seed)
    for one in parameters:
        deviation = one.in_features**-0.5
        if one.kind == "qweight":
            array = np.frombuffer(rng.bytes(int(np.prod(one.shape))), np.uint8).reshape(one.shape)
        elif one.kind == "zeros":
            array = np.full(one.shape, 1 << (one.bits - 1), one.dtype)
        elif one.kind == "scales":
            # Codes are as likely as each other: their deviation is that of a uniform distribution.
            array = np.full(one.shape, deviation * 12**0.5 / (1 << one.bits), one.dtype)
        elif len(one.shape) == 1:
            array = np.ones(one.shape, one.dtype)
        else:
            array = (rng.standard_normal(one.shape, dtype=np.float32) * deviation).astype(one.dtype)
        yield one.name, array


def write_random_bundle(model: Path, out: Path) -> None:
    """Write the bundle of a model that ``model_build`` compiled, its weights made up."""
    from awq_tvm.bundle.manifest import ManifestDraft
    from awq_tvm.bundle.writer import write_bundle

    draft = ManifestDraft.model_validate_json((model / DRAFT_NAME).read_bytes())
    plain = json.loads((model / PARAMETERS_NAME).read_text(encoding="utf-8"))
    parameters = [Parameter(**{**one, "shape": tuple(one["shape"])}) for one in plain]
    sources = {path.name: path.read_bytes() for path in model.glob("*.cu")}
    card = "Random weights: nothing that this says means anything.\n"
    write_bundle(out, draft, model / draft.library, random_weights(parameters), sources, card)


def measure_model(
    model: Path,
    prompt_tokens: tuple[int, ...] = PROMPT_TOKENS,
    generate_tokens: int = GENERATED_TOKENS,
    repetitions: int = 5,
) -> list[dict[str, Any]]:
    """Tokens a second of reading prompts and of generating, as ``awq_tvm bench`` has them.

    Generating is measured again where the bundle is for CUDA: with kernels launched one by one, not as graphs; and
    where they may begin before the one before has ended, once more with none that does.

    Raises:
        ImportError: TVM's runtime, or another package that the runtime needs, is not here.
        AwqTvmError: the bundle does not run here.
    """
    from awq_tvm.bundle.reader import open_bundle
    from awq_tvm.runtime.bench import BenchOptions, bench_bundle

    options = BenchOptions(prompt_tokens, generate_tokens, (1,), repetitions)
    with TemporaryDirectory(prefix="awq_tvm-") as folder:
        print("Writing a bundle with random weights ...", file=sys.stderr, flush=True)
        bundle = Path(folder) / "bundle"
        write_random_bundle(model, bundle)
        rows = bench_bundle(bundle, options)
        target = open_bundle(bundle).manifest.target
        for variable, what in _left_out(target.name) if target.kind == "cuda" else ():
            with _off(variable):
                again = bench_bundle(bundle, replace(options, prompt_tokens=()))
            rows += [{**row, "test": f"{row['test']}, {what}"} for row in again]
        return rows


def _left_out(target: str) -> Iterator[tuple[str, str]]:
    """What generating on a GPU is measured without: a variable of the environment, and words for it."""
    from awq_tvm.runtime.executor import GRAPHS_VARIABLE, OVERLAP_VARIABLE
    from awq_tvm.targets import resolve

    yield GRAPHS_VARIABLE, "no graphs"
    if resolve(target).overlaps_launches:
        yield OVERLAP_VARIABLE, "no overlap"


@contextmanager
def _off(variable: str) -> Iterator[None]:
    before = os.environ.get(variable)
    os.environ[variable] = "0"
    try:
        yield
    finally:
        os.environ.pop(variable)
        if before is not None:
            os.environ[variable] = before


def lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A table in Markdown."""
    return [
        "| test | tokens/s | spread | GB/s of weights |",
        "|---|---|---|---|",
        *(
            f"| {row['test']} | {row['tokens_per_second']:.1f} | {row['spread']:.0%} "
            f"| {row['gigabytes_per_second']:.0f} |"
            for row in rows
        ),
    ]
