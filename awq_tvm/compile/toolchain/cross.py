"""Linking for another machine: a cross g++ where there is one, else the linker inside the package ziglang."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from pathlib import Path

from awq_tvm.compile.toolchain.host import architecture_of, is_apple, is_ios
from awq_tvm.compile.toolchain.linker import Linker
from awq_tvm.compile.toolchain.static import Archiver
from awq_tvm.errors import TargetError

ZIG = (sys.executable, "-m", "ziglang", "cc")
ZIG_FIX = "pip install 'awq-tvm[cross]'   (or: pip install ziglang)"
GNU_ARCHITECTURES = ("aarch64", "x86_64", "riscv64")


def cross_linker(mtriple: str) -> Linker:
    """The linker for an LLVM triple that is not this machine's.

    Raises:
        TargetError: none is installed, or there is none for the platform.
    """
    parts = mtriple.split("-")
    if is_ios(mtriple):
        return _ios_archiver(mtriple)
    if is_apple(mtriple):
        return _apple_linker(mtriple)
    if any(part.startswith("android") for part in parts):
        return _android_linker(mtriple)
    if "linux" in parts and architecture_of(mtriple) in GNU_ARCHITECTURES:
        return _gnu_linker(mtriple)
    raise TargetError(
        "There is no linker for this platform",
        where=f"triple {mtriple}",
        why="libraries can be linked for Linux, Android and macOS on aarch64 and x86_64, and archived for iOS",
        fix="compile on that platform itself",
    )


def has_zig() -> bool:
    """Whether the package ziglang is installed for this Python."""
    return importlib.util.find_spec("ziglang") is not None


def _zig(mtriple: str, zig_target: str, options: tuple[str, ...], extension: str, instead: str) -> Linker:
    if not has_zig():
        raise TargetError(
            "The compiled model cannot be linked for this platform here",
            where=f"triple {mtriple}",
            why=f"neither {instead} nor the package ziglang is installed",
            fix=ZIG_FIX,
        )
    return Linker((*ZIG, "-target", zig_target), options, extension, f"linked with ziglang for {zig_target}")


def _gnu_linker(mtriple: str) -> Linker:
    architecture = architecture_of(mtriple)
    name = f"{architecture}-linux-gnu-g++"
    path = shutil.which(name)
    if path:
        return Linker((path,), (), ".so", f"linked with {name}")
    return _zig(mtriple, f"{architecture}-linux-gnu", (), ".so", name)


def _apple_linker(mtriple: str) -> Linker:
    # The runtime's symbols are found when the library is loaded, as on macOS itself. Without a name of its own the
    # library would be called by the path it was linked at.
    return _zig(
        mtriple,
        f"{architecture_of(mtriple)}-macos.11.0-none",
        ("-undefined", "dynamic_lookup", "-install_name", "@rpath/model.dylib"),
        ".dylib",
        "a macOS linker",
    )


def _ios_archiver(mtriple: str) -> Archiver:
    if not has_zig():
        raise TargetError(
            "The compiled model cannot be archived for iOS here",
            where=f"triple {mtriple}",
            why="the package ziglang, which has the archiver, is not installed",
            fix=ZIG_FIX,
        )
    # Without the option the index is in the form of GNU, which Apple's linker does not read.
    note = (
        "a static archive made with ziglang: link it whole (-force_load) into an app that has TVM's runtime"
    )
    return Archiver((*ZIG[:-1], "ar"), ("--format=darwin",), ".a", note)


def _android_linker(mtriple: str) -> Linker:
    """The newest clang++ of the Android NDK on the path, whose names end in the API level."""
    architecture = architecture_of(mtriple)
    pattern = f"{architecture}-linux-android*-clang++"
    found = {path.name: path for folder in _path_folders() for path in sorted(folder.glob(pattern))}
    if not found:
        raise TargetError(
            "The compiled model cannot be linked for Android here",
            where=f"triple {mtriple}",
            why=f"no {pattern} is on the path, and other linkers lack Android's C library",
            fix="install the Android NDK and put its toolchains/llvm/prebuilt/*/bin on the path",
        )
    name = max(found, key=lambda tool: [int(level) for level in re.findall(r"android(\d+)-", tool)])
    # Without it the library asks for libc++_shared.so, which few programs carry.
    return Linker((str(found[name]),), ("-static-libstdc++",), ".so", f"linked with {name}")


def _path_folders() -> list[Path]:
    return [folder for folder in map(Path, os.get_exec_path()) if folder.is_dir()]
