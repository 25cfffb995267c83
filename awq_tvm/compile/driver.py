"""From a quantized checkpoint to a bundle: the order of the stages."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import tvm

from awq_tvm import ir_attrs
from awq_tvm.bundle.writer import write_bundle
from awq_tvm.checkpoint import Checkpoint, open_checkpoint
from awq_tvm.compile.description import card, describe, recipe_fields, special_tokens
from awq_tvm.compile.number_formats import choose_activations, choose_precision
from awq_tvm.compile.toolchain import BuiltLibrary, build_library, require_tools
from awq_tvm.compile.tuning.choice import RecordedChoice, recorded_choice
from awq_tvm.compile.vocabulary import round_vocabulary
from awq_tvm.compile.weights import packed_weights
from awq_tvm.errors import CheckpointError, ResourceError, UsageError
from awq_tvm.models.config import ModelConfig
from awq_tvm.models.export import Limits, export_model, require_family
from awq_tvm.output_folder import check_output
from awq_tvm.passes import pipeline
from awq_tvm.progress import ProgressCallback, ProgressEvent, ignore_progress
from awq_tvm.schedules.parameter_plan import ParameterPlan
from awq_tvm.targets import Target, resolve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from awq_tvm.bundle.manifest import Manifest
    from awq_tvm.compile.tuning.record_file import BadLine
    from awq_tvm.models.precision import Precision

DEFAULT_CONTEXT_LENGTH = 2048
DEFAULT_MAX_SEQUENCES = 8
_MOST_SEQUENCES = 128  # logits of that many tokens come out of one call


@dataclass(frozen=True)
class CompileReport:
    """What a compilation did.

    Attributes:
        bundle: the directory written.
        target: name of the target.
        activations: "float" or "int8", what was compiled in.
        kernels: coverage of the fused kernels: name, count, source and reason of each.
        seconds: by stage.
        notes: sentences about the build, for example which linker was used.
    """

    bundle: Path
    target: str
    activations: str
    kernels: tuple[dict[str, Any], ...]
    seconds: dict[str, float]
    notes: tuple[str, ...]


def compile_model(
    model: str,
    out: Path,
    *,
    target: str | Target = "auto",
    activations: str = "auto",
    dtype: str = "auto",
    vocabulary_bits: int = 8,
    kv_cache: str = "auto",
    context_length: int | None = None,
    max_sequences: int = DEFAULT_MAX_SEQUENCES,
    opt: int = 2,
    tuned: bool = True,
    records: Sequence[Path] = (),
    debug_dump: Path | None = None,
    source_only: bool = False,
    progress: ProgressCallback = ignore_progress,
) -> CompileReport:
    """Compile a quantized checkpoint into a bundle.

    Args:
        model: what ``open_checkpoint`` takes; linears of the blocks that it holds unquantized stay so.
        out: the bundle's directory, which must not exist.
        target: a name of ``awq_tvm.targets``, or a description.
        activations: "float", "int8", or "auto" for the target's default.
        dtype: what is computed in between kernels, "bfloat16" where a GPU has it, or "auto": float32 on CPUs,
            float16 on GPUs.
        vocabulary_bits: what an unquantized embedding and head are stored in: 8 or 4, or 16 for float16.
        kv_cache: "float32", "float16", "int8" on CPUs, or "auto": float16 with int8 activations, else ``dtype``.
            With "int8", queries and what attention makes are as with "auto".
        context_length: tokens of the longest sequence; by default the model's own, at most 2048.
        max_sequences: sequences at once, 1 to 128. The cache has room for all of them at their longest.
        opt: optimization level, see ``awq_tvm.passes.pipeline``.
        tuned: use tuned records, those that came with the program and the user's own.
        records: files, or folders of them, with more.
        debug_dump: folder for the IR after every pass.
        source_only: leave the kernels of a CUDA target as source, for ``finish_bundle``.
        progress: told about each stage.

    Raises:
        AwqTvmError: one of its kinds, by what was wrong.
    """
    chip = target if isinstance(target, Target) else resolve(target)
    check_output(out)
    require_tools(chip, source_only=source_only)
    source = read_source(
        model,
        chip,
        activations,
        dtype,
        vocabulary_bits=vocabulary_bits,
        kv_cache=kv_cache,
        context_length=context_length,
        max_sequences=max_sequences,
    )
    checkpoint, rounded, config, limits, precision = source
    chosen: Literal["float", "int8"] = "int8" if precision.activations == "int8" else "float"
    pipeline.passes(chip, opt)
    _require_tokenizer(checkpoint)
    special, recipe = special_tokens(checkpoint), recipe_fields(checkpoint)
    chooser, bad = recorded_choice(chip, records) if tuned else (RecordedChoice(), ())
    _make_folder(debug_dump)

    clock = _Clock(progress)
    with clock.stage("export"), tvm.target.Target(chip.tvm_target_with_host) as tvm_target:
        mod = export_model(config, precision, limits, tvm_target, chip.num_sms)
    with clock.stage("passes"):
        mod = pipeline.run(
            mod,
            chip,
            opt,
            debug_dump=debug_dump,
            chooser=chooser,
            on_pass=lambda name, done, total: progress(ProgressEvent("passes", done, total, name)),
        )
    plan = ParameterPlan.from_json(mod.attrs[ir_attrs.PARAMETER_PLAN])
    kernels = json.loads(mod.attrs[ir_attrs.COVERAGE])
    with tempfile.TemporaryDirectory(prefix="awq_tvm-") as folder:
        with clock.stage("build"):
            library = build_library(mod, chip, Path(folder), source_only=source_only, name=out.name)
        with clock.stage("weights"):
            about = (checkpoint, config, limits, chip, precision, plan, kernels, library, special, recipe)
            draft = describe(*about, source_only=source_only)
            manifest = write_bundle(
                out,
                draft,
                library.path,
                packed_weights(rounded, plan),
                {**_side_files(checkpoint), **kernel_files(library)},
                card(draft),
            )
    return CompileReport(
        out, chip.name, chosen, tuple(kernels), clock.seconds, _notes(library, manifest, chooser, bad)
    )


class Source(NamedTuple):
    """What a model is made from.

    Attributes:
        checkpoint: as it was opened.
        rounded: the same with its vocabulary in the width asked for.
        config: of the model.
        limits: what the library is to have room for.
        precision: what is computed and stored in which width.
    """

    checkpoint: Checkpoint
    rounded: Checkpoint
    config: ModelConfig
    limits: Limits
    precision: Precision


def read_source(
    model: str,
    target: Target,
    activations: str = "auto",
    dtype: str = "auto",
    vocabulary_bits: int = 8,
    kv_cache: str = "auto",
    context_length: int | None = None,
    max_sequences: int = DEFAULT_MAX_SEQUENCES,
) -> Source:
    """Open a checkpoint and settle what is computed how; see ``compile_model`` for the arguments."""
    chosen = choose_activations(target, activations)
    checkpoint = open_checkpoint(model)
    require_family(checkpoint.config["model_type"])
    config = ModelConfig.from_hugging_face(checkpoint.config)
    limits = Limits(_context_length(config, context_length), _max_sequences(max_sequences))
    rounded = round_vocabulary(checkpoint, vocabulary_bits)
    precision = choose_precision(rounded, target, chosen, dtype, kv_cache)
    return Source(checkpoint, rounded, config, limits, precision)


class _Clock:
    """Times the stages and announces each."""

    def __init__(self, progress: ProgressCallback) -> None:
        self.progress, self.seconds = progress, dict[str, float]()

    def stage(self, name: str) -> _Stage:
        return _Stage(self, name)


@dataclass
class _Stage:
    clock: _Clock
    name: str
    started: float = 0.0

    def __enter__(self) -> None:
        self.started = time.perf_counter()
        self.clock.progress(ProgressEvent(self.name, 0, 1))

    def __exit__(self, *_: object) -> None:
        self.clock.seconds[self.name] = time.perf_counter() - self.started
        self.clock.progress(ProgressEvent(self.name, 1, 1))


def _context_length(config: ModelConfig, asked: int | None) -> int:
    longest = config.max_position_embeddings
    if asked is None:
        return min(longest, config.sliding_window or longest, DEFAULT_CONTEXT_LENGTH)
    if not 1 <= asked <= longest:
        raise UsageError(
            f"context length {asked} is out of range",
            where="--context-length",
            why=f"the model was made for 1 to {longest} tokens",
            fix="choose a number in that range, or leave out --context-length",
        )
    return asked


def _max_sequences(asked: int) -> int:
    if not 1 <= asked <= _MOST_SEQUENCES:
        raise UsageError(
            f"{asked} sequences at once are not possible",
            where="--max-sequences",
            why=f"legal is from 1 to {_MOST_SEQUENCES}",
            fix="choose a number in that range",
        )
    return asked


def _make_folder(path: Path | None) -> None:
    try:
        if path is not None:
            path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            "the folder for the dumps cannot be made", where=str(path), why=error.strerror or str(error)
        ) from None


def _require_tokenizer(checkpoint: Checkpoint) -> None:
    if "tokenizer.json" not in checkpoint.side_files:
        raise CheckpointError(
            "the checkpoint has no tokenizer.json",
            where=str(checkpoint.path),
            fix="save the tokenizer with transformers' save_pretrained (fast tokenizer) beside the weights",
        )


def _side_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    return {**checkpoint.side_files, "config.json": json.dumps(checkpoint.config, indent=2).encode()}


def kernel_files(library: BuiltLibrary) -> dict[str, bytes]:
    """What a bundle keeps of a build beside the library: sources and reports, and what finishing it takes."""
    kept = (".cu", ".metal", ".json", ".gz")
    return {path.name: path.read_bytes() for path in library.files if path.suffix in kept}


def _notes(
    library: BuiltLibrary, manifest: Manifest, chooser: RecordedChoice, bad: Sequence[BadLine]
) -> tuple[str, ...]:
    fallbacks = sum(kernel.count for kernel in manifest.tuning.kernels if kernel.source == "fallback")
    note = (f"{fallbacks} linears run on the plain fallback schedule",) if fallbacks else ()
    aside = (f"{len(bad)} bad lines of tuned records were left out: {bad[0].title}",) if bad else ()
    unfit = [f"a tuned record is not used: {title}: {why}" for title, why in chooser.unfit.items()]
    more = [f"and {len(unfit) - 3} more"] if len(unfit) > 3 else []
    return (*library.notes, *note, *aside, *unfit[:3], *more)
