"""`open_checkpoint`: from what the user typed to a `Checkpoint`."""

from __future__ import annotations

from pathlib import Path

from awq_tvm.checkpoint.base import Checkpoint
from awq_tvm.checkpoint.gguf_file import open_gguf
from awq_tvm.checkpoint.huggingface import open_folder
from awq_tvm.checkpoint.source import default_cache, resolve_source


def open_checkpoint(model: str | Path, *, cache: Path | None = None) -> Checkpoint:
    """Open a checkpoint: headers and config are read and checked, weights are not.

    Args:
        model: a folder, a .gguf file, "hf:org/name@revision" (fetched if need be) or "demo".
        cache: where the demo model is kept; by default ~/.cache/awq_tvm.

    Raises:
        UsageError: if model is none of these.
        CheckpointError: if it cannot be fetched, is damaged, or contradicts itself.
        UnsupportedError: if its format is not read by this version.
    """
    path = resolve_source(str(model), cache or default_cache())
    return open_gguf(path, str(model)) if path.is_file() else open_folder(path, str(model))
