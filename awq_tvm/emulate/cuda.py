"""Generated CUDA source to a C++ translation unit: shared memory, asm statements, a wrapper for each kernel."""

from __future__ import annotations

import re

from awq_tvm.emulate.ptx import translate_asm
from awq_tvm.emulate.unit import FIRST_ARRAY, in_units, place_array, wrapper
from awq_tvm.errors import UnsupportedError

_KERNEL = re.compile(
    r'^extern "C" __global__ void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\(([^{;]*)\)\s*\{', re.M
)
_QUALIFIED = (
    r"__shared__ (?:__align__\(\d+\) )?(?:alignas\(\d+\) )?(?P<kind>(?:unsigned )?[\w:]+) (?P<name>\w+)"
)
_DYNAMIC = re.compile(rf"extern {_QUALIFIED}\[\];")
_STATIC = re.compile(rf"(?<!extern ){_QUALIFIED}\[(?P<length>\d+)\];")


def cuda_units(source: str) -> list[str]:
    """The C++ of a CUDA source as TVM's code generator writes it: what all kernels share, and some of them, in each.

    Raises:
        UnsupportedError: it holds something that is not known here.
    """
    source = _DYNAMIC.sub(
        r"\g<kind>* const \g<name> = reinterpret_cast<\g<kind>*>(emulator::dynamic_shared());", source
    )
    source = _place_static_arrays(source)
    for line in source.splitlines():
        if "__shared__" in line:
            raise UnsupportedError(
                "the emulator does not know a declaration of shared memory",
                where="CUDA source",
                why=line.strip(),
            )
    source = translate_asm(source)
    starts = [match.start() for match in _KERNEL.finditer(source)]
    shared = '#include "cuda.h"\n' + source[: starts[0] if starts else None]
    kernels = [source[at:end] for at, end in zip(starts, [*starts[1:], None], strict=False)]
    return [shared + "".join(text) for text in in_units([kernel + _wrapper(kernel) for kernel in kernels])]


def _wrapper(kernel: str) -> str:
    ((name, parameters),) = _KERNEL.findall(kernel)
    kinds, names = zip(*map(_parameter, parameters.split(",")), strict=True)
    values = ", ".join(f"*({kind}*)a[{i}]" for i, kind in enumerate(kinds))
    return "\n" + wrapper(name, names, f"{name}({values});")


def _place_static_arrays(source: str) -> str:
    before = FIRST_ARRAY

    def place(match: re.Match[str]) -> str:
        nonlocal before
        if match["kind"] is None:
            before = FIRST_ARRAY
            return match[0]
        placed, before = place_array(match["kind"], match["name"], match["length"], before)
        return placed

    return re.sub(rf'extern "C" __global__|{_STATIC.pattern}', place, source)


def _parameter(text: str) -> tuple[str, str]:
    """Type and name of a kernel's parameter."""
    kind, name = text.replace("__restrict__", " ").strip().rsplit(None, 1)
    while name.startswith("*"):
        kind, name = kind + "*", name[1:]
    return kind.removesuffix(" "), name
