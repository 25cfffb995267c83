"""A folder on a device made equal to one here: only what changed is sent, and it appears whole or not at all.

The folder is filled beside its place, as `<folder>.partial`, out of what is there already and of what is sent.
Every file has its SHA-256 taken on the device before the folder is renamed.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from awq_tvm.errors import BundleError, ResourceError, UnsupportedError
from awq_tvm.progress import ProgressCallback
from awq_tvm.push.device import Device, quote

# In a folder that is being filled: tells it from one of the user that happens to have the name.
_MARKER = ".being-pushed-by-awq_tvm"
# In front of the name of a file that has not arrived whole; no file of ours begins with a dot.
_ARRIVING = ".arriving-"
# Left on the disk beside what is sent, for what file systems keep of their own.
_SPARE_BYTES = 1 << 20

_LOOK = """
command -v sha256sum >/dev/null 2>&1 || command -v shasum >/dev/null 2>&1 || { echo no-sha256; exit 0; }
sum() { if command -v sha256sum >/dev/null 2>&1; then sha256sum; else shasum -a 256; fi; }
look() {
  if [ -L "$2" ]; then echo "$1 foreign it is a link"; return; fi
  [ -e "$2" ] || return 0
  if [ ! -d "$2" ]; then echo "$1 foreign it is no folder"; return; fi
  cd "$2" || exit 1
  if [ -n "$(ls -A)" ] && [ ! -e "$3" ] && [ ! -e MARKER ]; then
    echo "$1 foreign it holds other files"; return
  fi
  echo "$1 folder"
  find . ! -type d | while IFS= read -r f; do
    if [ -L "$f" ] || [ ! -f "$f" ]; then echo "$1 foreign it holds $f, which is no regular file"; continue; fi
    h=$(sum < "$f"); s=$(wc -c < "$f")
    echo "$1 file" $s "${h%% *}" "$f"
  done
}
""".replace("MARKER", _MARKER)
_ROOM = """
p=FOLDER
while [ ! -d "$p" ]; do p=$(dirname "$p"); done
[ -w "$p" ] || { echo "$p cannot be written to" >&2; exit 1; }
df -Pk "$p"
"""


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file to have there."""

    path: Path
    size: int
    sha256: str
    program: bool = False


@dataclass(frozen=True)
class Tree:
    """A folder to have there.

    Attributes:
        files: by path inside the folder.
        mark: the one of them by which such a folder is recognized.
        names: what paths inside such folders look like; a folder with others is not replaced.
    """

    files: Mapping[str, LocalFile]
    mark: str
    names: re.Pattern[str]


@dataclass(frozen=True, slots=True)
class Sent:
    """What was sent: files, and bytes of them."""

    files: int
    bytes: int


@dataclass
class _Found:
    """A folder there: size and SHA-256 of every file, by path; why it is not ours, if it is not."""

    files: dict[str, tuple[int, str]]
    exists: bool = False
    foreign: str = ""


class RemoteTree:
    """The folder on the device, and the two beside it: the one being filled and the one being replaced.

    Args:
        device: where it is.
        folder: its path there.
        tree: what it shall be.
    """

    def __init__(self, device: Device, folder: str, tree: Tree) -> None:
        self.device, self.folder, self.tree = device, folder, tree
        self.partial, self._old = f"{folder}.partial", f"{folder}.old"
        self.complete = False

    @property
    def filled(self) -> str:
        """Where the files are after `fill`: in place already, or beside it."""
        return self.folder if self.complete else self.partial

    def fill(self, progress: ProgressCallback) -> Sent:
        """Bring every file there, and check it there.

        Raises:
            ResourceError: the device cannot be reached, has no room, or a folder there is not ours.
            UnsupportedError: the device cannot compute SHA-256.
            BundleError: a file arrived damaged.
        """
        here, partial, old = self._look()
        wanted = {name: (file.size, file.sha256) for name, file in self.tree.files.items()}
        self.complete = here.files == wanted
        if self.complete:
            return Sent(0, 0)
        arrived = {name for name, found in partial.files.items() if wanted.get(name) == found}
        there = {found: f"{folder}/{name}" for folder, state in ((self._old, old), (self.folder, here))
                 for name, found in state.files.items()}  # fmt: skip
        reused = {
            name: there[found] for name, found in wanted.items() if name not in arrived and found in there
        }
        missing = sorted(wanted.keys() - arrived - reused.keys())
        offsets = {name: self._offset(name, partial) for name in missing}
        to_send = sum(wanted[name][0] - offset for name, offset in offsets.items())
        self._check_room(to_send)
        self._prepare(partial, arrived, reused, offsets)
        for name, offset in offsets.items():
            if offset < wanted[name][0] or not wanted[name][0]:
                self.device.append(self.tree.files[name].path, offset, self._arriving(name), progress)
        self._settle(missing)
        return Sent(sum(offset < wanted[name][0] for name, offset in offsets.items()), to_send)

    def put_in_place(self) -> None:
        """Give the filled folder its name; what had it before is removed."""
        if self.complete:
            return
        folder, partial, old = quote(self.folder), quote(self.partial), quote(self._old)
        self.device.check(
            f"sync; rm -rf {old} || exit 1\n"
            f"if [ -e {folder} ]; then mv {folder} {old} || exit 1; fi\n"
            f"mv {partial} {folder} || {{ [ ! -e {old} ] || mv {old} {folder}; exit 1; }}\n"
            f"rm -rf {old}; sync"
        )
        self.complete = True

    def _look(self) -> tuple[_Found, _Found, _Found]:
        """The three folders as they are.

        Raises:
            ResourceError: one of them is not ours.
            UnsupportedError: the device cannot compute SHA-256.
        """
        folders = {"here": self.folder, "partial": self.partial, "old": self._old}
        calls = [
            f"(look {key} {quote(path)} {quote(self.tree.mark)}) || exit 1" for key, path in folders.items()
        ]
        states = {key: _Found({}) for key in folders}
        for line in self.device.check("\n".join([_LOOK, *calls])).splitlines():
            if line == "no-sha256":
                raise UnsupportedError(
                    "The device cannot compute SHA-256.",
                    where=self.device.name,
                    why="it has neither sha256sum nor shasum",
                    fix="install coreutils, busybox or perl there",
                )
            key, kind, *rest = line.split(" ", 2)
            state = states.get(key)
            if state is None:
                continue  # The rest of a name with a line end in it, which is foreign below.
            state.exists = True
            if kind == "foreign":
                state.foreign = state.foreign or "".join(rest)
            elif kind == "file":
                size, digest, name = "".join(rest).split(" ", 2)
                state.files[name.removeprefix("./")] = (int(size), digest)
        for key, state in states.items():
            strange = [name for name in state.files if not self._is_ours(name)]
            why = state.foreign or (f"it holds {strange[0][:80]}" if strange else "")
            if why:
                raise ResourceError(
                    "A folder of the device is in the way.",
                    where=f"{self.device.name}, {folders[key]}",
                    why=f"{why}, and would be replaced",
                    fix="name another folder, or move it away",
                )
            state.files.pop(_MARKER, None)
        return states["here"], states["partial"], states["old"]

    def _is_ours(self, name: str) -> bool:
        path = PurePosixPath(name)
        plain = str(path.with_name(path.name.removeprefix(_ARRIVING)))
        return name == _MARKER or self.tree.names.fullmatch(plain) is not None

    def _offset(self, name: str, partial: _Found) -> int:
        """How many bytes of a file have arrived, rightly."""
        file = self.tree.files[name]
        size, digest = partial.files.get(_arriving(name), (0, ""))
        if (size, digest) == (file.size, file.sha256):
            return size
        if not self.device.can_append or not 0 < size < file.size:
            return 0
        return size if _digest(file.path, size) == digest else 0

    def _arriving(self, name: str) -> str:
        return f"{self.partial}/{_arriving(name)}"

    def _check_room(self, needed: int) -> None:
        listing = self.device.check(_ROOM.replace("FOLDER", quote(self.folder)))
        # The name of a file system may hold blanks: the numbers stand before the percentage.
        found = re.search(r"(\d+)\s+\d+%", listing)
        if found and int(found[1]) * 1024 < needed + _SPARE_BYTES:
            raise ResourceError(
                "The device has too little room.",
                where=f"{self.device.name}, {self.folder}",
                why=f"{needed + _SPARE_BYTES} bytes are needed, {int(found[1]) * 1024} are free",
                fix="free some space there, or name a folder on another disk",
            )

    def _prepare(
        self, partial: _Found, arrived: set[str], reused: Mapping[str, str], offsets: Mapping[str, int]
    ) -> None:
        """Make the folder, take into it what is elsewhere on the device, and remove what is of no use."""
        kept = arrived | {_arriving(name) for name, offset in offsets.items() if offset}
        folders = {str(PurePosixPath(f"{self.partial}/{name}").parent) for name in self.tree.files}
        lines = [f"mkdir -p {quote(folder)} || exit 1" for folder in sorted({self.partial, *folders})]
        lines += [f": > {quote(f'{self.partial}/{_MARKER}')} || exit 1"]
        lines += [f"rm -f {quote(f'{self.partial}/{name}')}" for name in partial.files if name not in kept]
        for name, source in reused.items():
            # A second name for the file; where the file system knows none, a copy.
            pair = f"{quote(source)} {quote(f'{self.partial}/{name}')}"
            lines.append(f"ln {pair} 2>/dev/null || cp {pair} || exit 1")
        self.device.check("\n".join(lines))

    def _settle(self, sent: list[str]) -> None:
        """Give each file that was sent its name if it is right there; the others go.

        Raises:
            BundleError: one is not.
        """
        lines = [_LOOK, "bad="]
        for name in sent:
            path, file = quote(self._arriving(name)), self.tree.files[name]
            lines.append(
                f'h=$(sum < {path}); if [ "${{h%% *}}" = {file.sha256} ]; then '
                f"{f'chmod +x {path} && ' if file.program else ''}"
                f"mv {path} {quote(f'{self.partial}/{name}')} || exit 1; "
                f"else echo {quote(name)}; rm -f {path}; bad=1; fi"
            )
        lines.append(f'[ -n "$bad" ] || rm -f {quote(f"{self.partial}/{_MARKER}")}')
        damaged = self.device.check("\n".join(lines)).splitlines()
        if damaged:
            raise BundleError(
                "A file arrived damaged.",
                where=f"{self.device.name}, {damaged[0]}",
                why="its SHA-256 on the device is not that of the file here",
                fix="push again: only such files are sent again",
            )


def local_file(path: Path) -> LocalFile:
    """A file with its size and hash."""
    size = path.stat().st_size
    return LocalFile(path, size, _digest(path, size), os.access(path, os.X_OK))


def _arriving(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.with_name(_ARRIVING + path.name))


def _digest(path: Path, size: int) -> str:
    """SHA-256 of the first bytes of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (piece := file.read(min(size, 1 << 20))):
            digest.update(piece)
            size -= len(piece)
    return digest.hexdigest()
