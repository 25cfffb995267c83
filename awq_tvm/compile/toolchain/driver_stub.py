"""Stand-ins for the CUDA driver and runtime, so that TVM's CUDA part loads where neither is installed.

TVM calls nvcc only when its own CUDA library is loaded, and that library is linked against ``libcuda.so.1``,
which comes with a GPU's driver. The stand-ins define the symbols it asks for and answer every call with "no
device". They live in a temporary folder, are seen by one child process alone, and never reach a GPU machine.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from awq_tvm.compile.toolchain.host import host_linker
from awq_tvm.compile.toolchain.linker import run_tool

NO_DEVICE = 100
"""CUDA_ERROR_NO_DEVICE and cudaErrorNoDevice are both 100."""

DRIVER_LIBRARY = "libcuda.so.1"
_SYMBOL = re.compile(r"\bU (cu[A-Z]\w+|cuda[A-Z]\w+)(?:@+(\S+))?$")


def undefined_symbols(library: Path) -> dict[str, list[str]]:
    """The CUDA functions a library asks for, by the library that should have them.

    Symbols of the CUDA runtime carry the name of their library as a version; those of the driver carry none.
    """
    listing = run_tool(
        ["nm", "-D", "--undefined-only", "--with-symbol-versions", str(library)],
        "TVM's CUDA library could not be read",
    )
    symbols: dict[str, list[str]] = defaultdict(list)
    for line in listing.splitlines():
        if found := _SYMBOL.search(line):
            symbols[found.group(2) or DRIVER_LIBRARY].append(found.group(1))
    return dict(symbols)


def write_stubs(library: Path, folder: Path) -> tuple[Path, ...]:
    """Build a stand-in for every CUDA library that ``library`` needs.

    Args:
        library: TVM's CUDA runtime library.
        folder: where they go; put it on ``LD_LIBRARY_PATH`` of the child process.

    Returns:
        The files written.

    Raises:
        TargetError: there is no C++ compiler or no ``nm``.
    """
    compiler = host_linker().command[0]
    written = []
    for name, symbols in sorted(undefined_symbols(library).items()):
        source = folder / f"{name}.cc"
        source.write_text("".join(_definition(symbol) for symbol in sorted(symbols)), encoding="utf-8")
        output = folder / name
        command = [compiler, "-shared", "-fPIC", "-o", str(output), str(source), f"-Wl,-soname,{name}"]
        if name != DRIVER_LIBRARY:
            versions = folder / f"{name}.map"
            versions.write_text(f"{name} {{ global: *; }};\n", encoding="utf-8")
            command.append(f"-Wl,--version-script,{versions}")
        run_tool(command, "The stand-in for the CUDA driver could not be built")
        written.append(output)
    return tuple(written)


def _definition(symbol: str) -> str:
    if symbol in ("cudaGetErrorName", "cudaGetErrorString"):
        return f'extern "C" const char* {symbol}(int) {{ return "no CUDA device"; }}\n'
    if symbol in ("cuGetErrorName", "cuGetErrorString"):
        return f'extern "C" int {symbol}(int, const char** text) {{ *text = "no CUDA device"; return 0; }}\n'
    return f'extern "C" int {symbol}() {{ return {NO_DEVICE}; }}\n'
