"""English text that every Python carries: the prose of the standard library's docstrings.

The demo measures perplexity on it, so that it needs no data set. It is the same text in every run with
one version of Python. It is plain technical English: perplexities on it compare models with each other,
not with published figures.
"""

from __future__ import annotations

import ast
import inspect
import sysconfig
from collections.abc import Iterator
from pathlib import Path

# Modules with long docstrings written as prose, of many authors and subjects.
MODULES = (
    "statistics", "argparse", "difflib", "optparse", "configparser", "email/_header_value_parser",
    "random", "tempfile", "concurrent/futures/process", "heapq", "fractions", "csv", "datetime",
    "unittest/case", "logging/__init__", "asyncio/base_events", "threading", "subprocess", "zipfile",
    "calendar", "urllib/request", "http/client", "http/cookiejar", "locale", "textwrap", "shutil",
    "pickletools", "sched", "selectors", "ssl", "mailbox", "gettext", "cmd", "doctest", "functools",
    "collections/__init__", "contextlib", "copy", "enum", "fileinput", "getopt", "inspect", "ipaddress",
    "nntplib", "pdb", "profile", "queue", "socketserver", "tarfile", "trace", "turtle", "typing",
    "weakref", "dataclasses", "decimal", "_pydecimal", "smtplib",
)  # fmt: skip

_FEWEST_WORDS = 20
_LEAST_LETTERS = 0.93  # of the characters: letters, spaces and the signs of plain sentences
_SENTENCE_SIGNS = frozenset(" .,;'\"-")


def standard_library_prose(characters: int) -> str:
    """The first paragraphs of docstring prose, cut at the last whole one within `characters` characters.

    Raises:
        ValueError: the standard library holds less than half of that.
    """
    kept: list[str] = []
    size = 0
    seen = set()
    folder = Path(sysconfig.get_path("stdlib"))
    for module in MODULES:
        file = folder / f"{module}.py"
        if not file.is_file():
            continue  # removed in a later version of Python
        for paragraph in _paragraphs(file.read_text(encoding="utf-8")):
            if paragraph in seen:
                continue
            if size + len(paragraph) + 2 > characters:
                return "\n\n".join(kept) + "\n"
            seen.add(paragraph)
            kept.append(paragraph)
            size += len(paragraph) + 2
    if 2 * size < characters:
        raise ValueError(f"the standard library in {folder} holds only {size} characters of prose")
    return "\n\n".join(kept) + "\n"


def _paragraphs(source: str) -> Iterator[str]:
    """Paragraphs of English in the docstrings of a module, lines joined, in the order of the source."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        docstring = ast.get_docstring(node, clean=False)
        if docstring is None:
            continue
        for block in inspect.cleandoc(docstring).split("\n\n"):
            paragraph = " ".join(block.split())
            if _is_prose(paragraph):
                yield paragraph


def _is_prose(paragraph: str) -> bool:
    if len(paragraph.split()) < _FEWEST_WORDS or not paragraph[0].isupper() or not paragraph.endswith("."):
        return False
    plain = sum(1 for sign in paragraph if sign.isalpha() or sign in _SENTENCE_SIGNS)
    return ">>>" not in paragraph and ": " not in paragraph and plain >= _LEAST_LETTERS * len(paragraph)
