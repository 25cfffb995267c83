"""Generated Metal source to a C++ translation unit: threadgroup memory, attributes, a wrapper for each kernel."""

from __future__ import annotations

import re

from awq_tvm.emulate.unit import FIRST_ARRAY, in_units, place_array, wrapper
from awq_tvm.errors import UnsupportedError

_KERNEL = re.compile(r"^kernel void (\w+)\((.*?)\) \{$", re.M | re.S)
_STRUCT = re.compile(r"^struct (\w+) \{\n(.*?)\};$", re.M | re.S)
_FIELD = re.compile(r"(\w+) (\w+)(\[2\])?;")
_ARRAY = re.compile(r"^\s*threadgroup (?:alignas\(\d+\) )?([\w:]+) (\w+)\[(\d+)\];$", re.M)
_NAKED_POINTER = re.compile(
    r"\((?!(?:volatile )?(?:device|threadgroup|thread|constant)\b)[A-Za-z_][\w ]*\*\)"
)
"""A cast to a pointer that does not say what it points into, which C++ takes and Metal does not."""
_AXES = "xyz"


def metal_units(source: str) -> list[str]:
    """The C++ of a Metal source as TVM's code generator writes it: each kernel in a namespace, some in each unit.

    Raises:
        UnsupportedError: it holds something that is not known here.
    """
    kernels = [_kernel(number, text) for number, text in enumerate(source.split("// Function: ")[1:])]
    return ["\n".join(["#include <metal_stdlib>", *unit]) for unit in in_units(kernels)]


def _kernel(number: int, text: str) -> str:
    match = _KERNEL.search(text)
    if not match:
        raise UnsupportedError(
            "the emulator finds no kernel in a function", where="Metal source", why=text[:120].strip()
        )
    name = match.group(1)
    if naked := _NAKED_POINTER.search(text):
        raise UnsupportedError(
            "a pointer in Metal says what memory it points into", where=f"kernel {name}", why=naked[0]
        )
    structs = {found: _FIELD.findall(body) for found, body in _STRUCT.findall(text)}
    names: list[str] = []
    values: list[str] = []
    setup = ""
    for part in match.group(2).split(",\n"):
        kind, parameter = part.split("[[")[0].strip().rsplit(" ", 1)
        if "[[threadgroup_position_in_grid]]" in part or "[[thread_position_in_threadgroup]]" in part:
            what = "block" if "threadgroup_position" in part else "thread"
            axes = _AXES[: int(kind[-1])] if kind[-1].isdigit() else _AXES[:1]
            index = ", ".join(f"emulator::{what}_index().{axis}" for axis in axes)
            values.append(f"{kind}{{{index}}}")
        elif kind.startswith("constant"):
            struct = kind.removeprefix("constant").strip(" &")
            fields = structs[struct]
            # Each takes 8 bytes: a narrow one is the first of two.
            numbers = ", ".join(f"{{*({field[0]}*)a[{len(names) + i}]}}" for i, field in enumerate(fields))
            setup = f"{struct} scalars{{{numbers}}}; "
            values.append("scalars")
            names += [field[1] for field in fields]
        elif kind.startswith("device"):
            values.append(f"*({kind.removeprefix('device').strip()}*)a[{len(names)}]")
            names.append(parameter)
        else:
            raise UnsupportedError(
                "the emulator does not know a parameter", where=f"kernel {name}", why=part.strip()
            )
    body = text.split("\n", 1)[1].replace("using namespace metal;", "").replace("#include <metal_stdlib>", "")
    call = wrapper(name, names, f"{setup}{name}({', '.join(values)});")
    return f"namespace unit{number} {{\nusing namespace metal;\n{_place_arrays(body)}\n{call}}}\n"


def _place_arrays(body: str) -> str:
    before = FIRST_ARRAY

    def place(match: re.Match[str]) -> str:
        nonlocal before
        placed, before = place_array(match[1], match[2], match[3], before)
        return placed

    return _ARRAY.sub(place, body)
