"""Inline PTX to C++: every instruction of an `asm` statement becomes a call of a function in `native/include/ptx.h`.

What is not known here is an error that names the instruction; nothing is skipped.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from awq_tvm.errors import UnsupportedError

_ASM = re.compile(r"\b(?:asm|__asm__)\s*(?:volatile|__volatile__)?\s*\(")
_STRING = re.compile(r'\s*"((?:[^"\\]|\\.)*)"')
_OPERAND = re.compile(r"%(\d+)")
_DECLARATION = re.compile(r"\.reg\s+\.(\w+)\s+(\w+)$")
_INSTRUCTION = re.compile(r"(?:@(!?)(\w+)\s+)?([\w.:]+)\s*(.*)$", re.S)

_REGISTER_TYPES = {
    "pred": "bool",
    "b32": "std::uint32_t",
    "u32": "std::uint32_t",
    "b64": "std::uint64_t",
    "u64": "std::uint64_t",
    "f32": "float",
}


def translate_asm(source: str) -> str:
    """Replace every asm statement of a CUDA source by C++.

    Raises:
        UnsupportedError: an instruction or a form of the statement is not known.
    """
    parts, at = [], 0
    while match := _ASM.search(source, at):
        end = _closing(source, match.end())
        parts += [source[at : match.start()], _statement(source[match.end() : end])]
        at = end + 1
    return "".join([*parts, source[at:]])


def _closing(source: str, start: int) -> int:
    """Where the parenthesis that was open at ``start`` closes; strings are skipped."""
    depth, at = 1, start
    while depth:
        string = _STRING.match(source, at)
        if string:
            at = string.end()
            continue
        if at >= len(source):
            raise _unknown("an asm statement does not end", source[start : start + 80])
        depth += {"(": 1, ")": -1}.get(source[at], 0)
        at += 1
    return at - 1


def _statement(text: str) -> str:
    """One asm statement, from after its parenthesis to before the closing one."""
    template, at = "", 0
    while match := _STRING.match(text, at):
        template += match.group(1).encode().decode("unicode_escape")
        at = match.end()
    sections = _split(text[at:], ":")
    registers = [_expression(operand) for section in sections[1:3] for operand in _split(section, ",")]
    lines = []
    for instruction in _instructions(template):
        lines.append(_translate(instruction, registers))
    return "{ " + " ".join(lines) + " }"


def _split(text: str, separator: str) -> list[str]:
    """Split outside of parentheses, braces, brackets and strings; empty parts of an empty text are dropped."""
    parts, depth, start, at = [], 0, 0, 0
    while at < len(text):
        string = _STRING.match(text, at) if text[at] == '"' else None
        if string:
            at = string.end()
            continue
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(text[at], 0)
        # "::" stands inside names of instructions and of C++.
        if depth == 0 and text[at] == separator:
            parts.append(text[start:at])
            start = at + 1
        at += 1
    parts.append(text[start:])
    return parts if separator == ":" else [part for part in parts if part.strip()]


def _expression(operand: str) -> str:
    """The C++ expression of `"=r"(expression)`."""
    match = re.fullmatch(r'\s*"[=+]?[rlhfdn]"\s*\((.*)\)\s*', operand, re.S)
    if not match:
        raise _unknown("an operand of an asm statement", operand)
    return match.group(1)


def _instructions(template: str) -> list[str]:
    text = template.strip()
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1]
    return [part.strip() for part in text.split(";") if part.strip()]


def _translate(instruction: str, registers: list[str]) -> str:
    declaration = _DECLARATION.match(instruction)
    if declaration:
        kind, name = declaration.groups()
        if kind not in _REGISTER_TYPES:
            raise _unknown("a register", instruction)
        return f"{_REGISTER_TYPES[kind]} {name};"
    match = _INSTRUCTION.match(instruction)
    if not match:
        raise _unknown("an instruction", instruction)
    negated, predicate, name, rest = match.groups()

    def register(text: str) -> str:
        return _OPERAND.sub(lambda m: f"({registers[int(m.group(1))]})", text.strip())

    operands = [
        [register(part) for part in _split(operand.strip()[1:-1], ",")]
        if operand.strip().startswith("{")
        else register(operand)
        for operand in _split(rest, ",")
    ]
    for known in _INSTRUCTIONS:
        found = known.pattern.fullmatch(name)
        if found:
            code = known.emit(found, operands)
            return f"if ({negated}{predicate}) {{ {code} }}" if predicate else code
    raise _unknown("an instruction", f"{name} {rest}")


def _unknown(what: str, text: str) -> UnsupportedError:
    return UnsupportedError(
        f"the emulator does not know {what}",
        where="inline PTX",
        why=" ".join(text.split()),
        fix="teach awq_tvm/emulate/ptx.py the instruction",
    )


Operands = list[str | list[str]]

_SPECIAL = {"%%cluster_ctarank": "emulator::cluster_rank()"}
"""Registers that the hardware fills."""


@dataclass(frozen=True)
class _Instruction:
    pattern: re.Pattern[str]
    emit: Callable[[re.Match[str], Operands], str]


def _many(operand: str | list[str]) -> list[str]:
    return operand if isinstance(operand, list) else [operand]


def _one(operand: str | list[str]) -> str:
    if isinstance(operand, list):
        raise _unknown("a list of registers", ", ".join(operand))
    return operand


def _base_and_offset(operand: str | list[str]) -> tuple[str, str]:
    """The two parts of `[%0]` or `[%0+16]`, bytes."""
    match = re.fullmatch(r"\[(.*?)(?:\+(-?\d+))?\]", _one(operand), re.S)
    if not match:
        raise _unknown("an address", _one(operand))
    return match[1], match[2] or "0"


def _address(operand: str | list[str]) -> str:
    """Of shared memory, an integer."""
    base, offset = _base_and_offset(operand)
    return f"({base} + {offset})"


def _pointer(operand: str | list[str]) -> str:
    """Of global memory."""
    base, offset = _base_and_offset(operand)
    return f"((const char*)({base}) + {offset})"


def _into_registers(operand: str | list[str], kind: str, call: str) -> str:
    """C++ that lets ``call`` fill an array ``awq_d`` of a kind, and copies it to the registers of an operand."""
    registers = _many(operand)
    stores = " ".join(f"{register} = awq_d[{i}];" for i, register in enumerate(registers))
    return f"{{ {kind} awq_d[{len(registers)}]; {call}; {stores} }}"


def _call(function: str) -> Callable[[re.Match[str], Operands], str]:
    def emit(_: re.Match[str], operands: Operands) -> str:
        target, *arguments = (_one(operand) for operand in operands)
        return f"{target} = ptx::{function}({', '.join(arguments)});"

    return emit


def _from_call(operand: str | list[str], call: str) -> str:
    """C++ that copies what a call returns, a structure with an array ``of``, to the registers of an operand."""
    stores = " ".join(f"{register} = awq_d.of[{i}];" for i, register in enumerate(_many(operand)))
    return f"{{ const auto awq_d = {call}; {stores} }}"


def _mma(found: re.Match[str], operands: Operands) -> str:
    registers = [register for operand in operands[1:] for register in _many(operand)]
    if [len(_many(operand)) for operand in operands] != [4, 4, 2, 4]:
        raise _unknown("a form of mma", found.group(0))
    return _from_call(operands[0], f"emulator::mma_{found.group(1)}({', '.join(registers)})")


def _ldmatrix(found: re.Match[str], operands: Operands) -> str:
    transposed = "true" if found.group(2) else "false"
    if len(_many(operands[0])) != int(found.group(1)):
        raise _unknown("a form of ldmatrix", found.group(0))
    call = f"emulator::load_matrices({found.group(1)}, {transposed}, {_address(operands[1])})"
    return _from_call(operands[0], call)


def _wgmma(found: re.Match[str], operands: Operands) -> str:
    """Only A in registers, B by its k in shared memory, nothing negated."""
    accumulators, a = _many(operands[0]), _many(operands[1])
    b, add, *modes = (_one(operand) for operand in operands[2:])
    if len(accumulators) != int(found.group(1)) // 2 or len(a) != 4 or modes != ["1", "1", "0"]:
        raise _unknown("a form of wgmma", f"{found.group(0)} {operands[1:]}")
    bfloat16 = "true" if found.group(2) == "bf16" else "false"
    return f"ptx::wgmma<{bfloat16}>({', '.join([*a, b, add, *accumulators])});"


_NUMBERS = r"(?:\.v(?P<count>[24]))?\.(?P<type>b32|u32|f32)"
"""How the name of a load or store ends: how many numbers, and of which type."""


def _numbers(found: re.Match[str], operand: str | list[str], what: str) -> tuple[str, int]:
    """The C++ type of the numbers, and how many there are: as many as registers, or ``what`` is not known."""
    kind = {"f32": "float", "b32": "std::uint32_t", "u32": "std::uint32_t"}[found["type"]]
    count = int(found["count"] or 1)
    if count != len(_many(operand)):
        raise _unknown(f"{what} with so many registers", found.group(0))
    return kind, count


def _load(found: re.Match[str], operands: Operands) -> str:
    kind, count = _numbers(found, operands[0], "a load")
    return _into_registers(operands[0], kind, f"ptx::load<{kind}, {count}>({_pointer(operands[1])}, awq_d)")


def _store(found: re.Match[str], operands: Operands) -> str:
    kind, count = _numbers(found, operands[1], "a store")
    shared = found.group(1).startswith("shared")
    to = f"emulator::shared_pointer({_address(operands[0])})" if shared else _pointer(operands[0])
    return f"ptx::store<{kind}, {count}>({to}, {{{', '.join(_many(operands[1]))}}});"


def _map_shared(_: re.Match[str], operands: Operands) -> str:
    target, address, rank = map(_one, operands)
    return f"{target} = emulator::map_shared({address}, {rank});"


def _load_cluster(found: re.Match[str], operands: Operands) -> str:
    kind, _ = _numbers(found, operands[0], "a load")
    call = f"emulator::load_cluster({_address(operands[1])}, sizeof awq_d, awq_d)"
    return _into_registers(operands[0], kind, call)


def _move(_: re.Match[str], operands: Operands) -> str:
    target, value = map(_one, operands)
    return f"{target} = {_SPECIAL.get(value, value)};"


def _copy(_: re.Match[str], operands: Operands) -> str:
    to, source, size = _address(operands[0]), _pointer(operands[1]), _one(operands[2])
    taken = _one(operands[3]) if len(operands) > 3 else size
    return f"emulator::copy_async({to}, {source}, {size}, {taken});"


def _instruction(pattern: str, emit: Callable[[re.Match[str], Operands], str]) -> _Instruction:
    return _Instruction(re.compile(pattern), emit)


_INSTRUCTIONS = (
    _instruction(r"lop3\.b32", _call("lop3")),
    _instruction(r"prmt\.b32", _call("prmt")),
    _instruction(r"add\.(?:rn\.)?f16x2", _call("add_f16x2")),
    _instruction(r"sub\.(?:rn\.)?f16x2", _call("sub_f16x2")),
    _instruction(r"mul\.(?:rn\.)?f16x2", _call("mul_f16x2")),
    _instruction(r"fma\.rn\.f16x2", _call("fma_f16x2")),
    _instruction(r"fma\.rn\.bf16x2", _call("fma_bf16x2")),
    _instruction(r"cvt\.rn\.f16x2\.f32", _call("pack_f16x2")),
    _instruction(r"ex2\.approx\.ftz\.f32", _call("exp2_flushed")),
    _instruction(r"cvt\.rn\.bf16x2\.f32", _call("pack_bf16x2")),
    _instruction(r"mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.(b?f16)\.\1\.f32", _mma),
    _instruction(r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k16\.f32\.(b?f16)\.\2", _wgmma),
    _instruction(r"wgmma\.fence\.sync\.aligned", lambda _, o: "emulator::wgmma_fence();"),
    _instruction(r"wgmma\.commit_group\.sync\.aligned", lambda _, o: "emulator::wgmma_commit();"),
    _instruction(r"wgmma\.wait_group\.sync\.aligned", lambda _, o: f"emulator::wgmma_wait({_one(o[0])});"),
    _instruction(r"fence\.proxy\.async(?:\.shared::cta)?", lambda _, o: "emulator::fence_proxy();"),
    _instruction(r"griddepcontrol\.wait", lambda _, o: "emulator::wait_for_launches();"),
    _instruction(r"griddepcontrol\.launch_dependents", lambda _, o: "emulator::let_next_begin();"),
    _instruction(r"mapa\.shared::cluster\.u32", _map_shared),
    _instruction(rf"ld\.shared::cluster{_NUMBERS}", _load_cluster),
    _instruction(
        r"barrier\.cluster\.arrive(?:\.release)?\.aligned", lambda _, o: "emulator::cluster_arrive();"
    ),
    _instruction(r"barrier\.cluster\.wait(?:\.acquire)?\.aligned", lambda _, o: "emulator::cluster_wait();"),
    _instruction(r"ldmatrix\.sync\.aligned\.m8n8\.x([124])(\.trans)?\.shared(?:::cta)?\.b16", _ldmatrix),
    _instruction(rf"ld\.global(?:\.nc)?(?:\.L1::\w+)?(?:\.L2::\w+)?{_NUMBERS}", _load),
    _instruction(rf"st\.(global|shared(?:::cta)?){_NUMBERS}", _store),
    _instruction(r"cp\.async\.c[ag]\.shared(?:::cta)?\.global(?:\.L2::\w+)?", _copy),
    _instruction(r"cp\.async\.commit_group", lambda _, operands: "emulator::commit_copies();"),
    _instruction(
        r"cp\.async\.wait_group", lambda _, operands: f"emulator::wait_copies({_one(operands[0])});"
    ),
    _instruction(
        r"cp\.async\.wait_all",
        lambda _, operands: "emulator::commit_copies(); emulator::wait_copies(0);",
    ),
    _instruction(r"setp\.ne\.b32", lambda _, o: f"{_one(o[0])} = {_one(o[1])} != {_one(o[2])};"),
    _instruction(r"mov\.(?:b32|u32|f32)", _move),
    _instruction(
        r"cvta\.to\.shared\.u64",
        lambda _, o: f"{_one(o[0])} = emulator::shared_address((const void*)({_one(o[1])}));",
    ),
    _instruction(r"cvt\.u32\.u64", lambda _, o: f"{_one(o[0])} = (std::uint32_t)({_one(o[1])});"),
)
