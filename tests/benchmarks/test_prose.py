"""The text on which the demo measures perplexity."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def prose(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("prose", repository / "benchmarks" / "prose.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_text_is_the_same_each_time_and_as_long_as_asked(prose: ModuleType) -> None:
    text = prose.standard_library_prose(24_000)
    assert text == prose.standard_library_prose(24_000)
    assert 23_000 < len(text) <= 24_000


def test_a_shorter_text_is_the_beginning_of_a_longer_one(prose: ModuleType) -> None:
    assert prose.standard_library_prose(8_000).startswith(prose.standard_library_prose(4_000).rstrip("\n"))


def test_the_text_is_sentences_and_not_code(prose: ModuleType) -> None:
    paragraphs = prose.standard_library_prose(24_000).strip().split("\n\n")
    assert len(paragraphs) == len(set(paragraphs)) > 50
    for paragraph in paragraphs:
        assert paragraph[0].isupper()
        assert paragraph.endswith(".")
        assert ">>>" not in paragraph
        assert "\n" not in paragraph


def test_more_than_there_is_is_refused(prose: ModuleType) -> None:
    with pytest.raises(ValueError, match="holds only"):
        prose.standard_library_prose(10**7)
