"""Linking for this machine with its own C++ compiler."""

from __future__ import annotations

import platform
import shutil

from awq_tvm.compile.toolchain.linker import Linker
from awq_tvm.errors import TargetError

COMPILERS = ("g++", "clang++", "c++")
ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}
APPLE_SYSTEMS = ("macos", "darwin", "macosx")


def architecture_of(mtriple: str) -> str:
    """The first word of a triple, "arm64" and "amd64" under their other names."""
    first = mtriple.split("-", 1)[0]
    return ARCHITECTURES.get(first, first)


def is_apple(mtriple: str) -> bool:
    """Whether a triple names macOS."""
    return any(part.startswith(APPLE_SYSTEMS) for part in mtriple.split("-")[1:])


def is_ios(mtriple: str) -> bool:
    """Whether a triple names iOS."""
    return any(part.startswith("ios") for part in mtriple.split("-")[1:])


def is_host(mtriple: str) -> bool:
    """Whether code for the triple is linked with this machine's own compiler.

    A triple without a system ("x86_64") is taken for this one.
    """
    machine = platform.machine().lower()
    if architecture_of(mtriple) != ARCHITECTURES.get(machine, machine):
        return False
    parts = mtriple.split("-")[1:]
    if platform.system() == "Darwin":
        return is_apple(mtriple)
    foreign = ("android", "musl", "windows", "ios")
    return platform.system() == "Linux" and (
        not parts or ("linux" in parts and not any(part.startswith(foreign) for part in parts))
    )


def host_linker() -> Linker:
    """The first C++ compiler on the path.

    Raises:
        TargetError: there is none.
    """
    for name in COMPILERS:
        path = shutil.which(name)
        if path:
            apple = platform.system() == "Darwin"
            options = ("-undefined", "dynamic_lookup") if apple else ()
            return Linker((path,), options, ".dylib" if apple else ".so", f"linked with {name}")
    raise TargetError(
        "No C++ compiler is installed to link the compiled model with",
        where="this machine",
        why=f"none of {', '.join(COMPILERS)} is on the path",
        fix="install one, for example: apt-get install g++",
    )
