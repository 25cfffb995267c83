"""Write what the runner in C++ must know of Unicode as its tables; CMake runs this, and any Python 3 can.

python unicode_table.py OUT
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path

_CODE_POINTS = range(0x110000)
# Composed by arithmetic.
_HANGUL = range(0xAC00, 0xD7A4)


def _runs() -> Iterable[str]:
    last = ""
    for point in _CODE_POINTS:
        category = unicodedata.category(chr(point))
        if category != last:
            yield f"{{0x{point:x},k{category}}}"
        last = category


def _canonical() -> tuple[list[str], list[str]]:
    """Full decompositions, and the pairs that compose again; each sorted."""
    whole: list[str] = []
    pairs: list[tuple[int, int, int]] = []
    for point in _CODE_POINTS:
        single = unicodedata.decomposition(chr(point))
        if not single or single.startswith("<") or point in _HANGUL:
            continue
        parts = [ord(letter) for letter in unicodedata.normalize("NFD", chr(point))]
        whole.append(f"{{0x{point:x},{{{','.join(f'0x{part:x}' for part in parts)}}}}}")
        halves = [int(half, 16) for half in single.split()]
        if len(halves) == 2 and unicodedata.normalize("NFC", chr(point)) == chr(point):
            pairs.append((halves[0], halves[1], point))
    return whole, [f"{{0x{first:x},0x{second:x},0x{made:x}}}" for first, second, made in sorted(pairs)]


def _table(name: str, kind: str, entries: Iterable[str]) -> str:
    return f"const {kind} {name} = {{\n" + ",\n".join(entries) + "};\n"


def main() -> None:
    """Write the tables to the file that is named."""
    whole, pairs = _canonical()
    classes = [
        f"{{0x{point:x},{unicodedata.combining(chr(point))}}}"
        for point in _CODE_POINTS
        if unicodedata.combining(chr(point))
    ]
    text = "".join(
        (
            f"// Unicode {unicodedata.unidata_version}, written by unicode_table.py.\n",
            _table("kRuns[]", "Run", _runs()),
            _table("kDecompositions[]", "Decomposition", whole),
            _table("kCompositions[]", "Composition", pairs),
            _table("kCombining[]", "Combining", classes),
        )
    )
    Path(sys.argv[1]).write_text(text, encoding="ascii")


if __name__ == "__main__":
    main()
