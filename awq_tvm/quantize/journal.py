"""The journal of a run: what each finished block became, so that a killed run goes on from there.

A folder `<out>.journal` beside the output holds

    journal.json            the settings of the run, the bit widths if they were chosen, and name and
                            SHA-256 of every file that counts
    text.safetensors        the calibration text, so that a resumed run need not make it again
    block-00000.safetensors quantized linears and dense tensors of a finished block
    hidden-00001.full       a stream of hidden states that enters the next block
    ending.safetensors      what changed behind the last block

journal.json is replaced by a rename and is the last thing written for a text or a block; a file it does not
name does not count. So at whatever instant the process dies, the journal says what was whole before.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from awq_tvm.errors import AwqTvmError, CheckpointError, ResourceError, UsageError
from awq_tvm.quantize.hidden_states import HiddenStates, HiddenStatesWriter

Arrays = Mapping[str, npt.NDArray[Any]]

_SCHEMA_VERSION = 8
_INDEX = "journal.json"


class Journal:
    """The folder, held by one run at a time. Use it in a `with`; leaving frees it for the next run."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
        """Take hold of the folder.

        Args:
            folder: made if it is not there.
            settings: everything that decides the result, as JSON values; a journal with others is not
                continued.
            resume: continue what is there.

        Raises:
            ResourceError: another run holds it, or it cannot be written.
            UsageError: an unfinished run is there and resume is False, or its settings differ.
            CheckpointError: it is damaged.
        """
        self.folder = folder
        self._settings = json.loads(json.dumps(settings))
        self._text: dict[str, Any] | None = None
        self._widths: dict[str, int] | None = None
        self._blocks: list[dict[str, Any]] = []
        self._hidden: dict[str, dict[str, Any]] = {}
        self._ending: dict[str, Any] | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = self._take_hold()
        except OSError as error:
            raise ResourceError(
                "The journal cannot be written", where=str(folder), why=error.strerror or str(error)
            ) from None
        try:
            self._open(resume)
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> Journal:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free the folder. What is in it stays, unless there is nothing to keep.

        Before the first block is finished that is the text, and of use only where the run was stopped from outside.
        """
        if not self._blocks and (self._text is None or isinstance(error, AwqTvmError)):
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()

    @property
    def finished(self) -> int:
        """Blocks that are done, 0 at the start."""
        return len(self._blocks)

    def note(self, block: int) -> dict[str, Any]:
        """What was noted beside a finished block."""
        found = self._blocks[block]["note"]
        return dict(found)

    def record_text(self, arrays: Arrays, note: Mapping[str, Any]) -> None:
        """Write the calibration text.

        Args:
            arrays: its tokens, and what belongs to each.
            note: JSON values to keep with it.

        Raises:
            ResourceError: it cannot be written.
        """
        with self._writing():
            self._text = {**self._write("text.safetensors", arrays), "note": dict(note)}
            self._write_index()

    def read_text(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]] | None:
        """The calibration text and what was noted with it; None if there is none yet.

        Raises:
            CheckpointError: the file is not what was written.
        """
        return None if self._text is None else (self._read(self._text), dict(self._text["note"]))

    @property
    def widths(self) -> dict[str, int] | None:
        """The bit widths that were chosen, by name of the linear; None if none were."""
        return self._widths

    def record_widths(self, widths: Mapping[str, int]) -> None:
        """Write the bit widths that were chosen, so that a resumed run goes on with the same.

        Raises:
            ResourceError: they cannot be written.
        """
        with self._writing():
            self._widths = dict(widths)
            self._write_index()

    def begin_stream(self, name: str, block: int, shape: tuple[int, int, int]) -> HiddenStatesWriter:
        """Begin to write a stream of hidden states. It counts once it is handed to `record`.

        Args:
            name: of the stream.
            block: that it enters.
            shape: (S, L, H).

        Raises:
            ResourceError: it cannot be written.
        """
        return HiddenStatesWriter(self.folder / f"hidden-{block:05d}.{name}", shape)

    def record(
        self, arrays: Arrays, note: Mapping[str, Any], hidden: Mapping[str, HiddenStates] | None = None
    ) -> None:
        """Write the next finished block.

        Args:
            arrays: what it became.
            note: JSON values to keep with it.
            hidden: the streams that enter the block after it, by name; those of earlier blocks are deleted.

        Raises:
            ResourceError: it cannot be written.
        """
        index = self.finished
        with self._writing():
            block = self._write(f"block-{index:05d}.safetensors", arrays)
            self._hidden = {
                name: {
                    "file": stream.path.name,
                    "sha256": stream.sha256,
                    "shape": list(stream.shape),
                    "dtype": stream.dtype,
                }
                for name, stream in (hidden or {}).items()
            }
            self._blocks.append({**block, "note": dict(note)})
            self._write_index()
            counting = {entry["file"] for entry in self._hidden.values()}
            for file in self.folder.glob("hidden-*"):
                if file.name not in counting:
                    file.unlink()

    def read_block(self, block: int) -> dict[str, npt.NDArray[Any]]:
        """What a finished block became.

        Raises:
            CheckpointError: the file is not what was written.
        """
        return self._read(self._blocks[block])

    def read_hidden(self) -> dict[str, HiddenStates]:
        """The streams that enter the first block that is not finished, by name; empty before the first block.

        Raises:
            CheckpointError: a file is not what was written.
        """
        streams = {}
        for name, entry in self._hidden.items():
            samples, length, channels = entry["shape"]
            path = self.folder / entry["file"]
            self._require_sha256(path, entry["sha256"])
            streams[name] = HiddenStates(path, (samples, length, channels), entry["dtype"], entry["sha256"])
        return streams

    def record_ending(self, arrays: Arrays, note: Mapping[str, Any]) -> None:
        """Write what changed behind the last block, after it.

        Args:
            arrays: by full name; empty where nothing changed.
            note: JSON values to keep with it.

        Raises:
            ResourceError: it cannot be written.
        """
        with self._writing():
            self._ending = {**self._write("ending.safetensors", arrays), "note": dict(note)}
            self._write_index()

    def read_ending(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]] | None:
        """What changed behind the last block and what was noted with it; None if that was not recorded.

        Raises:
            CheckpointError: the file is not what was written.
        """
        return None if self._ending is None else (self._read(self._ending), dict(self._ending["note"]))

    def remove(self) -> None:
        """Delete the folder: the run has succeeded. The index goes first: without it nothing counts."""
        (self.folder / _INDEX).unlink(missing_ok=True)
        shutil.rmtree(self.folder)

    def _take_hold(self) -> IO[str]:
        lock = (self.folder / "lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            lock.close()
            raise ResourceError(
                "Another run is writing this output",
                where=str(self.folder),
                why=f"process {holder} holds it",
                fix="wait for it to end, or give another output",
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        return lock

    def _open(self, resume: bool) -> None:
        index = self.folder / _INDEX
        if not index.exists():
            return
        if not resume:
            raise UsageError(
                "An unfinished run for this output is there",
                where=str(self.folder),
                why="it was stopped before its end, and would be lost",
                fix=f"add --resume to go on from it, or delete {self.folder} to begin again",
            )
        try:
            found = json.loads(index.read_text("utf-8"))
            version, settings = found["schema_version"], found["settings"]
            text, widths = found["text"], found["widths"]
            blocks, hidden, ending = list(found["blocks"]), dict(found["hidden"]), found["ending"]
            single = [one for one in (text, ending) if one]
            entries = [*single, *blocks, *hidden.values()]
            names = [(one["file"], one["sha256"]) for one in entries]
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(_INDEX, f"{type(error).__name__}: {error}") from None
        if version != _SCHEMA_VERSION:
            raise self._damaged(
                _INDEX, f"its schema version is {version}, this program writes {_SCHEMA_VERSION}"
            )
        self._require_same(settings)
        for name, _ in names:
            if not isinstance(name, str) or Path(name).name != name:
                raise self._damaged(_INDEX, f"it names {name!r}, which is not a file of the journal")
        if widths is not None and not (
            isinstance(widths, dict) and all(type(bits) is int for bits in widths.values())
        ):
            raise self._damaged(_INDEX, "its bit widths are no numbers by name")
        self._text, self._widths = text, widths
        self._blocks, self._hidden, self._ending = blocks, hidden, ending
        for block in blocks:
            self._read(block)

    def _require_same(self, settings: Any) -> None:
        if not isinstance(settings, dict):
            raise self._damaged(_INDEX, "it has no settings")
        differing = [
            f"{key}: then {settings.get(key)!r}, now {self._settings.get(key)!r}"
            for key in sorted({*settings, *self._settings})
            if settings.get(key) != self._settings.get(key)
        ]
        if differing:
            raise UsageError(
                "The unfinished run had other settings",
                where=str(self.folder),
                why="; ".join(differing),
                fix=f"resume with the settings it had, or delete {self.folder} to begin again",
            )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ResourceError(
                "The journal cannot be written",
                where=str(self.folder),
                why=error.strerror or str(error),
                fix="make room and run again with --resume",
            ) from None

    def _write_index(self) -> None:
        content = {
            "schema_version": _SCHEMA_VERSION,
            "settings": self._settings,
            "text": self._text,
            "widths": self._widths,
            "blocks": self._blocks,
            "hidden": self._hidden,
            "ending": self._ending,
        }
        self._write_bytes(_INDEX, json.dumps(content, indent=1).encode())

    def _write(self, name: str, arrays: Arrays) -> dict[str, Any]:
        content = save({key: np.ascontiguousarray(array) for key, array in arrays.items()})
        self._write_bytes(name, content)
        return {"file": name, "sha256": hashlib.sha256(content).hexdigest()}

    def _write_bytes(self, name: str, content: bytes) -> None:
        """Write, sync, rename, sync the folder: the name is there with all of the content, or not at all."""
        partial = self.folder / f"{name}.partial"
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.folder / name)
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _read(self, entry: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
        path = self.folder / entry["file"]
        self._require_sha256(path, entry["sha256"])
        try:
            return dict(load_file(path))
        except (OSError, SafetensorError) as error:
            raise self._damaged(path.name, str(error)) from None

    def _require_sha256(self, path: Path, expected: str) -> None:
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise self._damaged(path.name, error.strerror or str(error)) from None
        if found != expected:
            raise self._damaged(path.name, "its SHA-256 is not the one noted when it was written")

    def _damaged(self, name: str, why: str) -> CheckpointError:
        return CheckpointError(
            "The journal is damaged",
            where=str(self.folder / name),
            why=why,
            fix=f"delete {self.folder} and begin again",
        )
