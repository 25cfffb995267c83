"""`export_checkpoint`: the same weights in the format that another program loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from awq_tvm.checkpoint.base import Checkpoint
from awq_tvm.checkpoint.formats import WRITABLE
from awq_tvm.checkpoint.gguf_write import KINDS, write_gguf
from awq_tvm.checkpoint.write import write_quantized_checkpoint
from awq_tvm.errors import UsageError

_GGUF = "gguf-"
FORMATS = (*WRITABLE, *(f"{_GGUF}{kind}" for kind in KINDS))


def export_checkpoint(out: Path, checkpoint: Checkpoint, *, format: str) -> Path:
    """Write a checkpoint in another format.

    Between the formats of quantized linears every code, scale and zero point stays as it is; for GGUF see
    `write_gguf`.

    Args:
        out: the folder, or for GGUF the file, to make; must not exist.
        checkpoint: quantized, or for GGUF of any kind.
        format: one of `FORMATS`.

    Returns: out.

    Raises:
        UsageError: for another format, one that cannot store the scheme, or a model that is not quantized.
        CheckpointError: if the checkpoint is damaged.
        UnsupportedError: if it holds what is not read, or what GGUF files cannot hold.
        ResourceError: if out exists or cannot be written, or the disk is full.
    """
    if format not in FORMATS:
        raise UsageError(
            f"no format {format!r:.80} is exported to", where="--format", why=f"known: {', '.join(FORMATS)}"
        )
    if format.startswith(_GGUF):
        return write_gguf(out, checkpoint, kind=format.removeprefix(_GGUF))
    scheme = checkpoint.scheme
    if scheme is None:
        raise UsageError(
            "the model is not quantized",
            where=str(checkpoint.path),
            why=f"the format {format!r} holds quantized linears",
            fix=f"quantize it first: python -m awq_tvm quantize {checkpoint.source} -o DIR",
        )
    if not scheme.zero_point and WRITABLE[format].refuses(scheme):
        scheme = replace(scheme, zero_point=True)  # which stores the middle as a zero point like any other
    return write_quantized_checkpoint(
        out,
        config=checkpoint.config,
        scheme=scheme,
        dense=((name, checkpoint.read(name)) for name in checkpoint.tensors),
        quantized=((name, checkpoint.read_quantized(name)) for name in checkpoint.quantized),
        side_files=checkpoint.side_files,
        card=_card(checkpoint, format),
        format=format,
    )


def _card(checkpoint: Checkpoint, format: str) -> str:
    name = (
        checkpoint.source.removeprefix("hf:") if checkpoint.source.startswith("hf:") else checkpoint.path.name
    )
    return (
        f"# {name}\n\nThe quantized weights of a checkpoint in the format {checkpoint.format}, stored as {format} "
        "by awq_tvm. No value was changed.\n"
    )
