from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from awq_tvm.prompt.tokenizer import Tokenizer
from awq_tvm.runtime.detokenizer import Detokenizer, StopStrings
from tests.prompt.tokenizers_for_tests import byte_fallback, byte_level

BOTH = [byte_level, byte_fallback]


def _stream(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.push(token) for token in tokens), detokenizer.finish()]


@pytest.mark.parametrize("make", BOTH)
@given(data=st.data())
def test_any_tokens_join_to_the_full_decoding(make: type, data: st.DataObject) -> None:
    tokenizer = make()
    tokens = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=24))
    assert "".join(_stream(tokenizer, tokens)) == tokenizer.decode(tokens)


@given(tokens=st.lists(st.integers(3, 258), max_size=16))
def test_byte_tokens_alone(tokens: list[int]) -> None:
    tokenizer = byte_fallback()
    assert "".join(_stream(tokenizer, tokens)) == tokenizer.decode(tokens)


@pytest.mark.parametrize("make", BOTH)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_any_text_comes_back(make: type, text: str) -> None:
    tokenizer = make()
    # "▁" is this vocabulary's spelling of a blank: it cannot come back as itself.
    text = text.replace("▁", "_")
    assert "".join(_stream(tokenizer, tokenizer.encode(text))) == text


def test_no_piece_shows_half_a_code_point() -> None:
    tokenizer = byte_level()
    pieces = _stream(tokenizer, tokenizer.encode("a🦜b🦊c"))
    assert "".join(pieces) == "a🦜b🦊c"
    assert not any("\ufffd" in piece for piece in pieces)
    assert len([piece for piece in pieces if piece]) == 5


def test_text_is_shown_at_once_where_nothing_can_change() -> None:
    tokenizer = byte_level()
    tokens = tokenizer.encode("Once upon a time")
    pieces = _stream(tokenizer, tokens)
    assert all(pieces[:-1])
    assert pieces[-1] == ""


def test_cut_off_code_point_is_shown_as_replacement_at_the_end() -> None:
    tokenizer = byte_level()
    tokens = tokenizer.encode("ok 🦜")[:-1]
    pieces = _stream(tokenizer, tokens)
    assert pieces[-1] == "\ufffd"
    assert "".join(pieces) == "ok \ufffd"


def test_endless_broken_bytes_are_shown_as_they_come() -> None:
    tokenizer = byte_level()
    broken = tokenizer.encode("🦜")[0]
    pieces = _stream(tokenizer, [broken] * 50)
    assert "".join(pieces) == "\ufffd" * 50
    assert sum(map(bool, pieces)) == 50


@given(
    text=st.text("abc", max_size=30),
    cuts=st.lists(st.integers(0, 30), max_size=8),
    stops=st.lists(st.text("abc", min_size=1, max_size=5), max_size=3),
)
def test_stop_strings_cut_as_a_search_in_the_whole_text(text: str, cuts: list[int], stops: list[str]) -> None:
    places = [text.find(stop) for stop in stops if stop in text]
    matcher = StopStrings(tuple(stops))
    out, stopped = "", False
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    for start, end in itertools.pairwise(edges):
        piece, stopped = matcher.push(text[start:end])
        out += piece
        if stopped:
            break
    if not stopped:
        out += matcher.finish()
    # The first stop string to be complete ends the stream; with one, that is its first place.
    assert stopped is bool(places)
    if not places:
        assert out == text
    elif len(stops) == 1:
        assert out == text[: min(places)]
    else:
        assert text.startswith(out)
        assert not any(stop in out for stop in stops)


def test_stop_string_over_three_pieces() -> None:
    matcher = StopStrings(("<end>",))
    assert matcher.push("a<") == ("a", False)
    assert matcher.push("en") == ("", False)
    assert matcher.push("d>b") == ("", True)


def test_near_miss_is_let_go() -> None:
    matcher = StopStrings(("<end>",))
    assert matcher.push("a<en") == ("a", False)
    assert matcher.push("vy") == ("<envy", False)
    assert matcher.finish() == ""
