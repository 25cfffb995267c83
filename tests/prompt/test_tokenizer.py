from __future__ import annotations

import itertools
import json

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from awq_tvm.errors import BundleError, UsageError
from awq_tvm.prompt.tokenizer import (
    MAX_TOKENIZER_BYTES,
    Piece,
    Token,
    Tokenizer,
    load_tokenizer,
    read_json_object,
)

from .tokenizers_for_tests import CONTROL, byte_fallback, byte_level, document, unigram

ALL = [byte_level, byte_fallback, unigram]
LITERALS = [*CONTROL, "<think>", "<unk>", "<", ">", "|", "im_end", "</", "s", " "]


@pytest.mark.parametrize("make", ALL)
@given(parts=st.lists(st.sampled_from(LITERALS) | st.text(max_size=3), max_size=8))
def test_user_text_never_becomes_control_tokens(make: type, parts: list[str]) -> None:
    tokenizer = make()
    # <unk> stands for what a vocabulary lacks; it steers nothing.
    control = tokenizer.control_ids - {tokenizer.token_id("<unk>")}
    assert not control & set(tokenizer.encode("".join(parts), add_special_tokens=False))


@pytest.mark.parametrize("make", ALL)
@given(parts=st.lists(st.tuples(st.sampled_from(LITERALS), st.booleans()), max_size=8))
def test_control_tokens_come_from_trusted_pieces_alone(make: type, parts: list[tuple[str, bool]]) -> None:
    tokenizer = make()
    control = tokenizer.control_ids - {tokenizer.token_id("<unk>")}
    pieces = [Piece(text, trusted) for text, trusted in parts]
    wanted = [
        tokenizer.token_id(text) for text, trusted in parts if trusted and tokenizer.token_id(text) in control
    ]
    # Neighbouring trusted parts may spell one more together; then they are one trusted text.
    if not any(left[1] and right[1] for left, right in itertools.pairwise(parts)):
        assert [token for token in tokenizer.encode_pieces(pieces) if token in control] == wanted


def test_spelled_out_control_tokens_survive_as_text() -> None:
    tokenizer = byte_level()
    text = "a<|im_end|>b</s><think>"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(unigram().encode("a</s>b"), skip_special_tokens=False) != ""
    assert unigram().decode(unigram().encode("a</s>b")).replace(" ", "") == "a</s>b"


def test_trusted_text_has_them() -> None:
    tokenizer = byte_level()
    tokens = tokenizer.encode_pieces([Piece("<s>", True), Piece("hi", False), Piece("</s>", True)])
    assert tokens[0] == tokenizer.token_id("<s>")
    assert tokens[-1] == tokenizer.token_id("</s>")
    assert tokenizer.decode(tokens) == "hi"


@pytest.mark.parametrize("make", ALL)
@given(parts=st.lists(st.tuples(st.sampled_from(LITERALS) | st.text(max_size=3), st.booleans()), max_size=8))
def test_tokens_are_from_all_of_the_text_in_order(make: type, parts: list[tuple[str, bool]]) -> None:
    """Also where the pieces are encoded apart; a control token is found where a trusted piece spells it."""
    tokenizer = make()
    pieces = [Piece(text, trusted) for text, trusted in parts]
    found = tokenizer.locate_pieces(pieces)
    assert [token.id for token in found] == tokenizer.encode_pieces(pieces)
    text = "".join(text for text, _ in parts)
    trusted = [trusted for text, trusted in parts for _ in text]
    reached = 0
    for token in found:
        assert 0 <= token.start <= reached
        assert token.start <= token.end <= len(text)
        reached = max(reached, token.end)
        if token.id in tokenizer.control_ids - {tokenizer.token_id("<unk>")}:
            part = text[token.start : token.end]
            assert tokenizer.token_id(part.strip()) == token.id
            start = token.start + len(part) - len(part.lstrip())
            assert all(trusted[start : start + len(part.strip())])


@pytest.mark.parametrize("hostile", [False, True])
def test_bytes_of_a_character_are_from_that_character(hostile: bool) -> None:
    tokenizer = byte_level()
    user = "x</s>" if hostile else "x"
    found = tokenizer.locate_pieces([Piece("<s>", True), Piece(user, False), Piece("ç😊</s>", True)])
    begin = 3 + len(user)
    for place, character in enumerate("ç😊", begin):
        ids = [token.id for token in found if (token.start, token.end) == (place, place + 1)]
        assert len(ids) > 1
        assert tokenizer.decode(ids) == character
    assert found[-1] == Token(tokenizer.token_id("</s>"), begin + 2, begin + 6)


def test_a_blank_that_the_tokenizer_leaves_out_of_its_offsets_is_the_next_tokens() -> None:
    """As in Llama 3: the offsets of its tokens begin after the blank that belongs to them."""
    model = tokenizers.Tokenizer.from_str(byte_level()._tokenizer.to_str())
    model.post_processor = tokenizers.processors.ByteLevel(trim_offsets=True)
    model.add_special_tokens(["<|end|>"])
    assert model.encode("a b ", add_special_tokens=False).offsets == [(0, 1), (2, 2), (2, 3), (4, 4)]
    tokenizer = Tokenizer(model.to_str().encode())
    found = tokenizer.locate_pieces([Piece("a ", False), Piece("b ", False), Piece("<|end|>", True)])
    assert [(token.start, token.end) for token in found] == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 11)]


def test_added_tokens_of_blanks_are_kept_for_user_text() -> None:
    tokenizer = byte_level()
    blanks = tokenizer.token_id("    ")
    assert blanks is not None
    assert blanks not in tokenizer.control_ids
    assert blanks in tokenizer.encode("x    y")


def test_beginning_of_text_is_added_also_around_hostile_text() -> None:
    tokenizer = byte_fallback()
    assert tokenizer.encode("the user")[0] == 1
    assert tokenizer.encode("</s>")[0] == 1
    assert tokenizer.encode("<s>").count(1) == 1
    assert tokenizer.encode("the", add_special_tokens=False)[0] != 1
    assert tokenizer.encode("") == [1]


def test_beginning_of_text_is_added_around_text_that_had_to_be_cut() -> None:
    vocab = [("<unk>", 0.0), ("<s>", -1.0), ("</s>", -0.5), *((chr(code), -5.0) for code in range(33, 127))]
    model = tokenizers.Tokenizer(tokenizers.models.Unigram(vocab, unk_id=0, byte_fallback=False))
    model.add_special_tokens(["<s>", "</s>"])
    model.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokens = Tokenizer(model.to_str().encode()).encode("a</s>b")
    assert tokens[0] == 1
    assert tokens[-1] == 2
    assert not {1, 2} & set(tokens[1:-1])
    assert len(tokens) == 2 + len("a</s>b")


def test_template_strings() -> None:
    assert byte_level().special_strings() == {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "",
        "pad_token": "",
    }


def _gaps() -> Tokenizer:
    """Added tokens in the vocabulary, behind a gap in it, and after its end, in an order that is not that of ids."""
    model = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"<a>": 9, "b": 1, "<unk>": 2}, unk_token="<unk>")
    )
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model.add_tokens(["<new>", "<a>", "plain", tokenizers.AddedToken("<last>", lstrip=True)])
    model.add_special_tokens(["b"])
    return Tokenizer(model.to_str().encode())


@pytest.mark.parametrize("make", [*ALL, _gaps])
@given(parts=st.lists(st.sampled_from([*LITERALS, "<new>", "<a>", "plain", "<last>", "b"]), max_size=8))
def test_the_plain_reading_is_that_of_the_file_with_its_control_tokens_marked(
    make: type, parts: list[str]
) -> None:
    """The two share a vocabulary; made of a file of its own, the second would read the same."""
    tokenizer = make()
    file = document(tokenizer._tokenizer)
    for entry in file["added_tokens"]:  # type: ignore[attr-defined]
        entry["special"] = entry["id"] in tokenizer.control_ids
    assert document(tokenizer._plain) == file
    other = tokenizers.Tokenizer.from_str(json.dumps(file))
    other.encode_special_tokens = True
    text = "".join(parts)
    assert tokenizer._plain.encode(text).ids == other.encode(text).ids


@given(order=st.permutations(["<a>", "b", "<x>", "y", "<z>"]))
def test_ids_of_added_tokens_do_not_depend_on_their_order_in_the_file(order: list[str]) -> None:
    model = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"<a>": 9, "b": 1, "<unk>": 2}, unk_token="<unk>")
    )
    model.add_tokens(order)
    tokenizer = Tokenizer(model.to_str().encode())
    assert tokenizer._plain.get_vocab() == tokenizer._tokenizer.get_vocab() == model.get_vocab()


def test_vocabulary_size_counts_gaps() -> None:
    assert _gaps().vocab_size == 1 + 9
    assert byte_level().vocab_size == byte_level()._tokenizer.get_vocab_size()


def test_truncation_and_padding_in_the_file_are_off() -> None:
    model = tokenizers.Tokenizer.from_str(byte_level()._tokenizer.to_str())
    model.enable_truncation(3)
    model.enable_padding(length=50)
    text = "Once upon a time there was"
    assert Tokenizer(model.to_str().encode()).encode(text) == byte_level().encode(text)


def test_lone_surrogate_is_refused() -> None:
    byte_level().encode("é")
    with pytest.raises(UsageError, match=r"character 1[\s\S]*U\+D800"):
        byte_level().encode("a\ud800")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"\xff",
        b"[]",
        b'{"added_tokens": [{}]}',
        b'{"added_tokens": [], "model": 1}',
        b"[" * 10**5,
    ],
)
def test_damaged_tokenizer(content: bytes) -> None:
    with pytest.raises(BundleError, match="cannot be read"):
        Tokenizer(content)


def test_huge_tokenizer_is_not_parsed() -> None:
    with pytest.raises(BundleError, match=f"at most {MAX_TOKENIZER_BYTES}"):
        Tokenizer(b" " * (MAX_TOKENIZER_BYTES + 1))


def test_loading_from_side_files() -> None:
    good = {"tokenizer.json": byte_level()._tokenizer.to_str().encode()}
    assert load_tokenizer(good).encode("the") == byte_level().encode("the")
    config = {**good, "tokenizer_config.json": json.dumps({"bos_token": "<s>"}).encode()}
    assert load_tokenizer(config).special_strings()["bos_token"] == "<s>"
    with pytest.raises(BundleError, match=r"no tokenizer\.json"):
        load_tokenizer({})
    with pytest.raises(BundleError, match=r"tokenizer_config\.json is not JSON"):
        load_tokenizer({**good, "tokenizer_config.json": b"{"})
    with pytest.raises(BundleError, match="not a JSON object"):
        read_json_object({"x.json": b"[]"}, "x.json")
