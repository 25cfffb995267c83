"""The command line's verbs in Python: `awq_tvm.quantize`, `awq_tvm.compile`, `awq_tvm.load`, with the same words.

    import awq_tvm

    awq_tvm.quantize("hf:org/model@revision", "model-w4")
    awq_tvm.compile("model-w4", "model.bundle", target="auto")
    with awq_tvm.load("model.bundle") as model:
        print(model.generate("The capital of France is", max_tokens=16).text)
        for piece in model.stream("Once upon a time", temperature=0.8, seed=1):
            print(piece, end="", flush=True)

What goes wrong is an `awq_tvm.errors.AwqTvmError`, of the kind that the command line has an exit code for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from awq_tvm.errors import UsageError
from awq_tvm.progress import ProgressCallback, ProgressEvent, ignore_progress

if TYPE_CHECKING:
    from awq_tvm.compile.driver import CompileReport
    from awq_tvm.prompt.chat_template import Message
    from awq_tvm.quantize.report import QuantizeReport
    from awq_tvm.runtime.engine import Answer, Engine, Generation
    from awq_tvm.runtime.sampler import SamplingOptions
    from awq_tvm.targets import Target

Method = Literal["awq+", "awq", "rtn"]


def quantize(
    model: str | Path,
    out: str | Path,
    *,
    method: Method = "awq+",
    bits: int | str = 4,
    group_size: int | str = "auto",
    symmetric: bool = False,
    quantize_embedding: int | None = None,
    quantize_lm_head: int | None = None,
    calibration: str = "default",
    samples: int | None = None,
    sequence_length: int = 512,
    seed: int = 0,
    device: str = "auto",
    scale_steps: int | None = None,
    clip: Literal["two-sided", "paper", "none"] | None = None,
    learn_steps: int | None = None,
    learn_norm_steps: int | None = None,
    report: str | Path | None = None,
    report_text: str | Path | None = None,
    resume: bool = False,
    progress: ProgressCallback = ignore_progress,
) -> QuantizeReport:
    """Quantize a model's weights, activation-aware, into a checkpoint that other tools load too.

    Args:
        model: a folder, a .gguf file, "hf:org/name@revision", or "demo".
        out: the folder to make, which must not exist.
        method: "awq+"; "awq", ten times as fast and less exact; or "rtn" for rounding to nearest.
        bits: of a weight, 2 to 8; or "auto:3.5", so many on average, chosen by linear.
        group_size: inputs that share a scale: "auto", a number, or -1 for one group a row.
        symmetric: no zero points.
        quantize_embedding: 4 or 8 bits for the embedding too.
        quantize_lm_head: 4 or 8 bits for the head too.
        calibration: text to calibrate on: "default", "self", "topics", a file, or "hf:NAME".
        samples: of that text; None for 64, with "awq" 16.
        sequence_length: tokens of each.
        seed: of the places where the text is cut.
        device: where PyTorch works: "auto", "cpu", "cuda" or "cuda:1".
        scale_steps: steps of the grid of scales, 0 for none; None, here and below, for what the method has.
        clip: ranges: "two-sided", "paper" or "none".
        learn_steps: steps of learned rounding, 0 for none.
        learn_norm_steps: steps of fitting the norm before the head, 0 for none.
        report: a folder to make, with a page about what was done; the model is scored for it.
        report_text: text to score; None for Python's help topics.
        resume: go on from the last finished block of a run that was stopped.
        progress: told what is being done.

    Raises:
        UsageError: an argument that cannot be meant.
        UnsupportedError: a family or a value that cannot be quantized.
        CheckpointError: a damaged model.
        ResourceError: no room, an output that exists, or no such device.
    """
    from awq_tvm.quantize.options import METHODS, AwqOptions
    from awq_tvm.quantize.quantize import quantize_checkpoint

    steps = {
        "scale_steps": scale_steps,
        "clip": clip,
        "learn_steps": learn_steps,
        "learn_norm_steps": learn_norm_steps,
    }
    changes: dict[str, Any] = {name: value for name, value in steps.items() if value is not None}
    return quantize_checkpoint(
        str(model),
        Path(out),
        method=method,
        bits=bits,
        group_size=group_size,
        symmetric=symmetric,
        quantize_embedding=quantize_embedding,
        quantize_lm_head=quantize_lm_head,
        calibration=calibration,
        samples=samples,
        sequence_length=sequence_length,
        seed=seed,
        device=device,
        resume=resume,
        options=replace(METHODS.get(method, AwqOptions()), **changes),
        report_folder=None if report is None else Path(report),
        report_text=None if report_text is None else Path(report_text),
        progress=progress,
    )


def compile(
    model: str | Path,
    out: str | Path,
    *,
    target: str = "auto",
    activations: str = "auto",
    dtype: str = "auto",
    vocabulary_bits: int = 8,
    kv_cache: str = "auto",
    context_length: int | None = None,
    max_sequences: int = 8,
    opt: int = 2,
    tuned: bool = True,
    records: Sequence[str | Path] = (),
    debug_dump: str | Path | None = None,
    source_only: bool = False,
    host_here: bool = False,
    progress: ProgressCallback = ignore_progress,
) -> CompileReport:
    """Compile a model into a bundle for one target.

    Args:
        model: as of `quantize`; one that is not quantized is quantized first, by "awq" with 4 bits, into
            `<out>.quantized`.
        out: the bundle's directory, which must not exist.
        target: "auto" for this machine, or a name that `python -m awq_tvm targets` lists.
        activations: "float", "int8", or "auto" for the target's default.
        dtype: what is computed in: "auto" for float32 on CPUs and float16 on GPUs, or "bfloat16" for CUDA.
        vocabulary_bits: of an unquantized embedding and head: 8, 4, or 16 for float16.
        kv_cache: "float32", "float16", "int8" on CPUs, or "auto": as `dtype` on GPUs.
        context_length: tokens of the longest sequence; None for the model's own, at most 2048.
        max_sequences: sequences that `serve` answers at once, 1 to 128.
        opt: optimization level, 0 to 3.
        tuned: use tuned records.
        records: files or folders with more of them.
        debug_dump: a folder for the IR after every pass.
        source_only: leave the kernels of a CUDA target as source, for `python -m awq_tvm finish`.
        host_here: the kernels of a GPU are called from this machine, for `python -m awq_tvm verify --emulate`.
        progress: told what is being done.

    Raises:
        AwqTvmError: one of its kinds, by what was wrong.
    """
    from awq_tvm.compile.toolchain import require_tools
    from awq_tvm.output_folder import check_output
    from awq_tvm.targets import resolve, with_host_here

    check_output(Path(out))
    chip = with_host_here(resolve(target)) if host_here else resolve(target)
    require_tools(chip, source_only=source_only)
    formats: dict[str, Any] = {
        "activations": activations,
        "dtype": dtype,
        "vocabulary_bits": vocabulary_bits,
        "kv_cache": kv_cache,
        "context_length": context_length,
        "max_sequences": max_sequences,
    }
    source, made = quantized_first(
        str(model),
        Path(out),
        progress,
        lambda text: progress(ProgressEvent("quantize", 0, 0, text)),
        target=chip,
        **formats,
    )
    from awq_tvm.compile.driver import compile_model

    report = compile_model(
        source,
        Path(out),
        target=chip,
        **formats,
        opt=opt,
        tuned=tuned,
        records=[Path(record) for record in records],
        debug_dump=None if debug_dump is None else Path(debug_dump),
        source_only=source_only,
        progress=progress,
    )
    return report if made is None else replace(report, notes=(f"quantized first, into {made}", *report.notes))


def load(
    bundle: str | Path, *, threads: int | None = None, require_signature: str | Path | None = None
) -> Model:
    """Verify a bundle in full, then load it.

    Args:
        bundle: the directory that `compile` wrote.
        threads: of the CPU, 1 to 1024; None for one a core.
        require_signature: a public key; only what it signed is loaded, as `<bundle>.sig` says.

    Raises:
        UsageError: threads that cannot be meant, or no such key.
        UnsupportedError: a signature is required and the library for them is not installed.
        BundleError: the bundle is damaged, incomplete, of another version, or not what was signed.
        TargetError: it is for another machine.
    """
    from awq_tvm.runtime.engine import Engine

    if require_signature is not None:
        from awq_tvm.bundle.signature import check_signature

        check_signature(Path(bundle), Path(require_signature))
    return Model(Engine.load(bundle, threads=threads))


class Model:
    """A loaded bundle; use in a `with` block, or `close` it.

    Prompts are a text, or a conversation: `[{"role": "user", "content": "Hello"}]`. The options of an answer are
    those of `generate` on the command line.

    Attributes:
        engine: what is below, with token ids and log-probabilities.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def generate(
        self,
        prompt: str | Sequence[Mapping[str, str] | Message],
        *,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
        chat: bool = False,
    ) -> Generation:
        """Generate one answer.

        Args:
            prompt: a text to continue, or a conversation to answer.
            max_tokens: most tokens of the answer; None for as many as the context holds, 256 at most.
            temperature: 0 always takes the most likely token.
            top_k: draw among the k most likely; 0 for all.
            top_p: draw among the most likely with this probability.
            min_p: drop tokens below this part of the best one.
            repetition_penalty: above 1: repeat less.
            seed: of the draws.
            stop: texts before which the answer ends.
            chat: put a text through the model's chat template; a conversation always is.

        Returns:
            `text`, `token_ids`, `finish_reason` and `timings`.

        Raises:
            UsageError: a value out of its range, or a prompt that is empty or too long.
            UnsupportedError: a conversation, and the model has no chat template.
        """
        options = _sampling(max_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed, stop)
        return self.engine.generate(_prompt(prompt), options, chat=chat)

    def stream(
        self,
        prompt: str | Sequence[Mapping[str, str] | Message],
        *,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
        chat: bool = False,
    ) -> Answer:
        """Generate one answer piece by piece: iterate over its text; arguments and errors as of `generate`.

        Returns:
            An iterator; when it ends its `generation` is what `generate` returns. Closing it, also by leaving a
            `with` block, ends the answer early.
        """
        options = _sampling(max_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed, stop)
        return self.engine.stream(_prompt(prompt), options, chat=chat)

    def close(self) -> None:
        """End what runs beside the model."""
        self.engine.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def quantized_first(
    model: str,
    out: Path,
    progress: ProgressCallback,
    tell: Callable[[str], None],
    *,
    target: Target,
    **formats: Any,
) -> tuple[str, str | None]:
    """What to compile, and the checkpoint that had to be made for it, None if the model was quantized.

    Args:
        model: what to compile.
        out: the bundle, beside which the checkpoint is made.
        progress: told what is being done.
        tell: told that this takes its time, before it does.
        target: what it is compiled for.
        formats: further arguments of ``read_source``; what they refuse is refused before anything is quantized.
    """
    from awq_tvm.checkpoint import open_checkpoint

    if open_checkpoint(model).quantized:
        return model, None
    from awq_tvm.compile.driver import read_source

    read_source(model, target, **formats)
    made = out.with_name(out.name + ".quantized")
    tell(f"{model} is not quantized: quantizing it first, awq with 4 bits, into {made}")
    # Rounding is not learned here: who compiles waits, and `quantize` is there for the best weights.
    quantize(model, made, method="awq", resume=True, progress=progress)
    return str(made), str(made)


def _sampling(
    max_tokens: int | None,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repetition_penalty: float,
    seed: int | None,
    stop: Sequence[str],
) -> SamplingOptions:
    from awq_tvm.runtime.sampler import SamplingOptions

    return SamplingOptions(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
    )


def _prompt(prompt: str | Sequence[Mapping[str, str] | Message]) -> str | list[Message]:
    """The prompt with its messages as `Message`.

    Raises:
        UsageError: a message without role or content, or with more.
    """
    if isinstance(prompt, str):
        return prompt
    from awq_tvm.prompt.chat_template import Message

    try:
        return [turn if isinstance(turn, Message) else Message(**turn) for turn in prompt]
    except TypeError as error:
        raise UsageError(
            "This is no conversation.",
            where="prompt",
            why=str(error)[:200],
            fix='[{"role": "user", "content": "Hello"}]',
        ) from None
