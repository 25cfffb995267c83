"""From what the user typed to a path on this machine."""

from __future__ import annotations

import re
from pathlib import Path

from awq_tvm.checkpoint.demo import find_demo
from awq_tvm.errors import CheckpointError, UsageError

# Weights as safetensors, configuration, templates and tokenizers; never pickles or code.
_WANTED = ["*.safetensors", "*.json", "*.jinja", "tokenizer.*", "merges.txt", "vocab.txt", "LICENSE"]
_REPOSITORY = re.compile(r"(?P<repo>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?", re.ASCII)
_ALLOWED = "a folder, a .gguf file, hf:org/name@revision, or demo"


def default_cache() -> Path:
    """Return the user's cache folder for models; it may not exist yet."""
    return Path.home() / ".cache" / "awq_tvm"


def resolve_source(model: str, cache: Path) -> Path:
    """Return the folder or .gguf file that model means, fetching it if need be.

    Args:
        model: a folder, a .gguf file, "hf:org/name@revision" or "demo".
        cache: where the demo model is kept.

    Raises:
        UsageError: if model is none of these.
        CheckpointError: if it is not there or cannot be fetched.
    """
    if model == "demo":
        return find_demo(cache)
    if model.startswith("hf:"):
        return _fetch(model)
    path = Path(model)
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if path.exists():
        raise UsageError(
            "not a checkpoint", where=model, why=f"it is neither a folder nor a .gguf file; give {_ALLOWED}"
        )
    hint = f"hf:{model}" if _REPOSITORY.fullmatch(model) and model.count("/") == 1 else None
    raise UsageError(
        "no such model",
        where=model,
        why=f"nothing has this name; give {_ALLOWED}",
        fix=f"for the model of that name on Hugging Face, write {hint}" if hint else None,
    )


def _fetch(model: str) -> Path:
    match = _REPOSITORY.fullmatch(model.removeprefix("hf:"))
    if match is None or ".." in model:
        raise UsageError(
            "not the name of a Hugging Face model",
            where=model,
            why="needed: hf:org/name or hf:org/name@revision",
        )
    from huggingface_hub import snapshot_download  # slow to import
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(match["repo"], revision=match["revision"], allow_patterns=_WANTED))
    except HFValidationError as error:
        raise UsageError("not the name of a Hugging Face model", where=model, why=str(error)) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            "cannot fetch the model from Hugging Face",
            where=model,
            why=str(error).strip().split("\n")[0],
            fix="check the name and the connection, or download the folder elsewhere and give its path",
        ) from error
