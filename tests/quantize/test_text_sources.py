"""Text is read from files, JSON lines and data sets; what cannot be read is named."""

from __future__ import annotations

import json
import sys
import types

import pytest

from awq_tvm.errors import ResourceError, UsageError
from awq_tvm.quantize import text_sources
from awq_tvm.quantize.text_sources import python_help_topics, read_data_set, read_json_lines, read_text


def test_text_that_is_not_text(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(b"hello \xff\xfe")
    with pytest.raises(UsageError, match=r"(?s)UTF-8.*byte 6"):
        read_text(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_text(tmp_path)


def test_large_text_is_read_in_pieces_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.setattr(text_sources, "_LARGEST_TEXT", 64 * 100)
    path = tmp_path / "large"
    path.write_text(" ".join(f"wörd{number}" for number in range(20_000)), encoding="utf-8")
    words = read_text(path).split()
    assert set(words) <= {f"wörd{number}" for number in range(20_000)}
    numbers = [int(word[4:]) for word in words]
    assert numbers == sorted(numbers)
    assert numbers[0] < 500
    assert numbers[-1] > 19_500


def test_help_topics_are_english_prose():
    text = python_help_topics()
    assert len(text) > 200_000
    assert text.count(" the ") > 2000


def test_python_without_help_topics(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(ResourceError, match="pydoc_data"):
        python_help_topics()


def _data_sets(monkeypatch, rows):
    """A package of that name that hands rows out; the real one needs the network."""
    package = types.ModuleType("datasets")

    def load_dataset(path, config, split, streaming):
        assert (path, config, split, streaming) == ("org/name", "part", "train", True)
        if isinstance(rows, Exception):
            raise rows
        return iter(rows)

    package.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", package)


def test_data_set_is_read_row_by_row(monkeypatch):
    _data_sets(monkeypatch, [{"text": "a"}, {"text": "b"}])
    assert list(read_data_set("org/name@part")) == [
        ("hf:org/name@part, row 1", {"text": "a"}),
        ("hf:org/name@part, row 2", {"text": "b"}),
    ]


def test_data_set_out_of_reach(monkeypatch):
    _data_sets(monkeypatch, ConnectionError("offline"))
    with pytest.raises(ResourceError, match="offline"):
        list(read_data_set("org/name@part"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ResourceError, match="pip install datasets"):
        list(read_data_set("org/name@part"))


def test_json_lines_come_each_once_with_their_places(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"text": f"höhe {index}"}, ensure_ascii=False) for index in range(50)]
    path.write_text("\ufeff" + "\n\n".join(lines), encoding="utf-8")
    rows = list(read_json_lines(path, 0))
    assert sorted(rows, key=lambda row: int(row[0].split()[-1])) == [
        (f"rows.jsonl, line {2 * index + 1}", {"text": f"höhe {index}"}) for index in range(50)
    ]
    assert rows == list(read_json_lines(path, 0))
    assert rows != list(read_json_lines(path, 1))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{", "Expecting property name"),
        (b"[1]", "type list, needed an object"),
        (b'{"text": "\xff"}', "can't decode byte 0xff"),
        (b"[" * 200_000, "recursion"),
    ],
)
def test_a_line_that_is_no_object_is_named(tmp_path, line, why):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "a"}\n' + line + b"\n")
    with pytest.raises(UsageError, match=rf"(?s)rows\.jsonl, line 2.*{why}"):
        list(read_json_lines(path, 0))


def test_json_lines_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="cannot be read"):
        list(read_json_lines(tmp_path, 0))
    monkeypatch.setattr(text_sources, "_LONGEST_LINE", 20)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n' + '{"text": "12345678901234567890"}\n')
    with pytest.raises(UsageError, match=r"(?s)too long.*line 2"):
        list(read_json_lines(path, 0))
