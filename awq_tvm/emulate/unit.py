"""What the translation units of both dialects have in common: arrays in shared memory, a wrapper for each kernel."""

from __future__ import annotations

from collections.abc import Sequence

UNIT_CHARACTERS = 64 * 1024
"""From this length on a unit takes no more kernels: several are compiled at a time, and few are when one changes."""

FIRST_ARRAY = "emulator::kStatic"
"""Where static arrays begin, a C++ constant."""


def in_units(kernels: Sequence[str]) -> list[list[str]]:
    """Kernels in their order, cut into runs for one translation unit each; one empty run where there is none."""
    units: list[list[str]] = [[]]
    for kernel in kernels:
        if sum(map(len, units[-1])) >= UNIT_CHARACTERS:
            units.append([])
        units[-1].append(kernel)
    return units


def wrapper(name: str, parameters: Sequence[str], call: str) -> str:
    """Make a kernel known to the runtime.

    Args:
        name: of the kernel.
        parameters: their names, in the order of the arguments.
        call: C++ that calls it with ``a[i]``, pointers to the arguments' values.
    """
    return (
        f'__attribute__((no_sanitize("thread"))) static void awq_call_{name}(void** a) {{ {call} }}\n'
        f'static emulator::Kernel awq_kernel_{name}("{name}", "{" ".join(parameters)}", awq_call_{name});\n'
    )


def place_array(kind: str, name: str, length: str, before: str) -> tuple[str, str]:
    """Declare an array in shared memory behind another, with room between them that nobody may touch.

    Args:
        kind: of its elements.
        name: its name.
        length: its length.
        before: a C++ constant, where the array before it ends: ``FIRST_ARRAY`` for the first.

    Returns:
        The declaration, and the constant where this one ends.
    """
    array = f"{kind}[{length}]"
    declaration = (
        f"constexpr unsigned {name}_at = emulator::aligned({before} + emulator::kRedZone, 64); "
        f"constexpr unsigned {name}_end = {name}_at + sizeof({array}); "
        f'static_assert({name}_end <= emulator::kArenaBytes, "too much shared memory"); '
        f"{kind} (&{name})[{length}] = *reinterpret_cast<{kind}(*)[{length}]>"
        f"(emulator::shared_array({name}_at, sizeof({array})));"
    )
    return declaration, f"{name}_end"
