"""The files of a checkpoint folder: which may be opened, and where each tensor lies."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from awq_tvm.checkpoint.base import TensorInfo
from awq_tvm.checkpoint.json_file import parse_json_object, read_bounded
from awq_tvm.checkpoint.safetensors_file import SafetensorsFile
from awq_tvm.errors import CheckpointError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_INDEX_BYTES = 64_000_000

# What travels along with the weights, and how large each may be.
SIDE_FILES = {
    "tokenizer.json": 256_000_000,
    "tokenizer.model": 64_000_000,
    "vocab.json": 64_000_000,
    "merges.txt": 64_000_000,
    "tokenizer_config.json": 16_000_000,
    "special_tokens_map.json": 4_000_000,
    "added_tokens.json": 16_000_000,
    "generation_config.json": 1_000_000,
    "chat_template.jinja": 1_000_000,
    "chat_template.json": 1_000_000,
    "preprocessor_config.json": 1_000_000,
    "processor_config.json": 1_000_000,
    "video_preprocessor_config.json": 1_000_000,
    "recipe.json": 1_000_000,
    "LICENSE": 1_000_000,
}


class WeightFolder:
    """All safetensors of a folder, opened and verified.

    Args:
        folder: holds model.safetensors, or model.safetensors.index.json and its shards, or one *.safetensors.

    Attributes:
        tensors: name -> TensorInfo over all shards.

    Raises:
        CheckpointError: if a file is missing, is a link, lies outside the folder, or is damaged; if the index
            and the shards disagree; if there are pickles only.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors: dict[str, TensorInfo] = {}
        self._files: dict[str, SafetensorsFile] = {}
        self._read_last: SafetensorsFile | None = None
        names, weight_map = _shards(folder)
        paths = [safe_file(folder, name) for name in names]
        for name, path in zip(names, paths, strict=True):
            self._add(name, SafetensorsFile(path), weight_map)
        if weight_map is not None and (absent := [name for name in weight_map if name not in self.tensors]):
            raise CheckpointError(
                f"{len(absent)} tensors of the index are not in their shard",
                where=str(folder / INDEX),
                why=", ".join(f"{name} in {weight_map[name]}" for name in absent[:20]),
            )

    def read(self, name: str) -> NDArray[Any]:
        """Return one tensor as a read-only view of its file.

        Memory that earlier reads took is given back; their views stay good, and are read from the file again.
        """
        if self._read_last is not None:
            self._read_last.give_back()
        self._read_last = self._files[name]
        return self._files[name].read(name)

    def _add(self, shard: str, file: SafetensorsFile, weight_map: dict[str, str] | None) -> None:
        for name, info in file.tensors.items():
            if weight_map is not None and weight_map.get(name) != shard:
                raise CheckpointError(
                    "a tensor is not where the index says",
                    where=str(self.folder / INDEX),
                    why=f"{name} is in {shard}; the index says {weight_map.get(name, 'nothing about it')}",
                )
            self.tensors[name] = info
            self._files[name] = file


def read_side_files(folder: Path) -> dict[str, bytes]:
    """Return the content of every file of `SIDE_FILES` that the folder has.

    Raises:
        CheckpointError: if one is a link, not a regular file, or too large.
    """
    found = {}
    for name, limit in SIDE_FILES.items():
        if os.path.lexists(folder / name):
            found[name] = read_bounded(safe_file(folder, name), limit)
    return found


def safe_file(folder: Path, name: str) -> Path:
    """Return folder/name if it is a plain file of that folder, opening nothing.

    Links are refused: a downloaded folder could make us read, and later publish, any file of the user.
    The one exception is what huggingface_hub itself makes: snapshots/<revision>/x -> ../../blobs/<hash>.

    Raises:
        CheckpointError: if the name leaves the folder, or the file is missing, a link, or not regular.
    """
    if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise CheckpointError(
            "a file name leaves the checkpoint folder",
            where=str(folder),
            why=f"found {name!r}; only plain names without a folder are opened",
        )
    path = folder / name
    try:
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            return _hub_blob(path)
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            "a file of the checkpoint is missing", where=str(path), why=str(error)
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError("not a regular file", where=str(path))
    if status.st_nlink > 1:
        raise CheckpointError(
            "a file of the checkpoint is a hardlink",
            where=str(path),
            why=f"it has {status.st_nlink} names, so it may be, or be changed as, a file from elsewhere",
            fix=f"make a copy of its own: cp {name} {name}.copy && mv {name}.copy {name}",
        )
    return path


def _hub_blob(link: Path) -> Path:
    target = link.resolve(strict=True)
    blobs = link.parent.resolve().parent.parent / "blobs"
    if link.parent.resolve().parent.name == "snapshots" and target.parent == blobs and target.is_file():
        return target
    raise CheckpointError(
        "a file of the checkpoint is a symlink",
        where=str(link),
        why=f"it points to {target}",
        fix="copy the file into the folder in its place",
    )


def _shards(folder: Path) -> tuple[list[str], dict[str, str] | None]:
    """Return the shard names and, if there is an index, its map of tensor -> shard."""
    if os.path.lexists(folder / INDEX):
        if os.path.lexists(folder / SINGLE):
            raise CheckpointError(
                "the folder holds two sets of weights",
                where=str(folder),
                why=f"both {SINGLE} and {INDEX} exist",
                fix="remove the one that is not meant",
            )
        weight_map = _weight_map(folder)
        return sorted(set(weight_map.values())), weight_map
    if os.path.lexists(folder / SINGLE):
        return [SINGLE], None
    raise _no_weights(folder)


def _weight_map(folder: Path) -> dict[str, str]:
    path = safe_file(folder, INDEX)
    weight_map = parse_json_object(read_bounded(path, MAX_INDEX_BYTES), str(path)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("the index has no weight_map", where=str(path))
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not shard.endswith(".safetensors"):
            raise CheckpointError(
                "the index names a shard that is not a .safetensors file",
                where=str(path),
                why=f"{tensor}: {shard!r:.80}",
            )
    return weight_map


def _no_weights(folder: Path) -> CheckpointError:
    names = sorted(entry.name for entry in folder.iterdir())
    if pickles := [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]:
        return CheckpointError(
            "the weights are pickles, which run code when opened",
            where=str(folder),
            why=f"found {', '.join(pickles[:5])} and no .safetensors",
            fix="where you trust the files, convert them once: AutoModelForCausalLM.from_pretrained(folder)"
            ".save_pretrained(new_folder), or take a safetensors revision of the model",
        )
    loose = [name for name in names if name.endswith(".safetensors")]
    why = f"found {', '.join(loose[:5])} but no {INDEX}" if loose else f"neither {SINGLE} nor {INDEX}"
    return CheckpointError(
        "the folder holds no complete set of weights",
        where=str(folder),
        why=why,
        fix="download the whole model again",
    )
