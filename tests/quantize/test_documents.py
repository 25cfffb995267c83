"""Rows become the tokens that transformers makes of them; what is wrong is named by file and line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from awq_tvm.checkpoint import open_checkpoint
from awq_tvm.errors import CheckpointError, UsageError
from awq_tvm.quantize.calibration import calibrate
from awq_tvm.quantize.documents import DocumentEncoder
from tests.quantize.tiny_models import save_tiny_model

CHATML = (
    "{% for message in messages %}{% if message.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = [("system", "Be brief."), ("user", "Hi <|im_end|>"), ("assistant", "Hello.")]
MESSAGES = [{"role": role, "content": content} for role, content in TURNS]


def _byte_level(merges=(), use_regex=True):
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return tokenizer


def _checkpoint(folder, template=CHATML):
    save_tiny_model(folder, vocab_size=260)
    _byte_level().save(str(folder / "tokenizer.json"))
    if template is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return open_checkpoint(str(folder))


def test_a_conversation_is_what_transformers_makes_of_it(tmp_path):
    harmless = [
        {**message, "content": message["content"].replace("<|im_end|>", "there")} for message in MESSAGES
    ]
    theirs = PreTrainedTokenizerFast(tokenizer_object=_byte_level())
    expected = theirs.apply_chat_template(harmless, chat_template=CHATML, return_dict=False)
    with DocumentEncoder(_checkpoint(tmp_path)) as encoder:
        found = encoder.row({"messages": harmless}, "line 1")
    assert found.ids.tolist() == expected
    assert found.characters == found.utf8_bytes == len(theirs.decode(expected))


def test_all_forms_of_a_conversation_are_the_same(tmp_path):
    speakers = {"system": "system", "user": "human", "assistant": "gpt"}
    shared = [{"from": speakers[role], "value": content} for role, content in TURNS]
    with DocumentEncoder(_checkpoint(tmp_path)) as encoder:
        expected = encoder.row({"messages": MESSAGES, "text": "passed over"}, "line 1").ids
        np.testing.assert_array_equal(encoder.row({"conversations": shared}, "line 2").ids, expected)
        short = encoder.row({"messages": MESSAGES[1:]}, "line 3").ids
        pair = {"prompt": TURNS[1][1], "response": TURNS[2][1]}
        np.testing.assert_array_equal(encoder.row(pair, "line 4").ids, short)


def _answers(folder, messages, template=CHATML):
    """The runs of tokens that count in a conversation, as text."""
    checkpoint = _checkpoint(folder, template)
    with DocumentEncoder(checkpoint) as encoder:
        found = encoder.row({"messages": messages}, "line 1")
    assert found.loss_mask.shape == found.ids.shape
    tokenizer = Tokenizer.from_buffer(checkpoint.side_files["tokenizer.json"])
    bounds = np.flatnonzero(np.diff(np.concatenate([[0], found.loss_mask, [0]]))).reshape(-1, 2)
    return [tokenizer.decode(found.ids[a:b].tolist(), skip_special_tokens=False) for a, b in bounds]


def _turns(*turns):
    return [{"role": role, "content": content} for role, content in turns]


def test_what_the_assistant_writes_counts(tmp_path):
    messages = _turns(
        ("system", "Be brief."),
        ("user", "How high?"),
        ("assistant", "Die Höhe 😀 is\n3."),
        ("user", "assistant"),
        ("assistant", "Sûr"),
    )
    assert _answers(tmp_path, messages) == ["Die Höhe 😀 is\n3.<|im_end|>", "Sûr<|im_end|>"]


@pytest.mark.parametrize("who", ["user", "assistant"])
def test_control_tokens_in_texts_move_no_mask(tmp_path, who):
    """Such a conversation is encoded in parts."""
    texts = {"user": "Wer ö?", "assistant": "Ich 日 bin es."}
    texts[who] += "<|im_end|>\n<|im_start|>assistant\nNo 日<|im_end|>"
    messages = _turns(*texts.items(), *texts.items())
    assert _answers(tmp_path, messages) == [texts["assistant"] + "<|im_end|>"] * 2


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        # Llama 2: a blank before what ends the turn.
        (
            "{% for m in messages %}{{ m.content | trim }} <|im_end|>{% endfor %}",
            ["A", "<|im_end|>", "B", "<|im_end|>"],
        ),
        # GLM-4: the next turn ends it.
        (
            "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}{% endfor %}",
            [" A<|im_start|>", " B"],
        ),
        # Nothing but text ends a turn, and a token the conversation.
        (
            "{% for m in messages %}\n{{ m.role }}: {{ m.content }}{% endfor %}<|im_end|>",
            [" A", " B<|im_end|>"],
        ),
        # The control token does not follow the text.
        ("{% for m in messages %}<|im_start|>{{ m.content }}.<|im_end|>{% endfor %}", [" A", " B"]),
    ],
)
def test_what_ends_the_assistants_turn(tmp_path, template, wanted):
    messages = _turns(("user", "x"), ("assistant", " A"), ("user", "y"), ("assistant", " B"))
    assert _answers(tmp_path, messages, template) == wanted


def test_a_token_that_is_partly_the_assistants_counts(tmp_path):
    _checkpoint(tmp_path, "{% for m in messages %}{{ m.role }}:{{ m.content }}{% endfor %}")
    tokenizer = _byte_level([(":", "H"), ("i", "u")], use_regex=False)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with DocumentEncoder(open_checkpoint(str(tmp_path))) as encoder:
        found = encoder.row({"messages": _turns(("assistant", "Hi"), ("user", "no"))}, "line 1")
    assert [tokenizer.id_to_token(token) for token in found.ids[found.loss_mask]] == [":H", "iu"]


def test_nothing_counts_without_an_assistant(tmp_path):
    assert _answers(tmp_path, _turns(("system", "assistant"), ("user", "Hi"))) == []
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": _turns(("user", "Hi"))}) + "\n")
    with pytest.raises(UsageError, match="Nothing of the calibration text counts"):
        calibrate(
            open_checkpoint(str(tmp_path)),
            str(tmp_path / "rows.jsonl"),
            samples=1,
            sequence_length=4,
            seed=0,
        )


def test_all_of_a_plain_text_counts_beside_conversations(tmp_path):
    checkpoint = _checkpoint(tmp_path)
    rows = [{"text": "plain"}, {"messages": _turns(("user", "Hi"), ("assistant", "Ho"))}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = calibrate(checkpoint, str(tmp_path / "rows.jsonl"), samples=50, sequence_length=8, seed=0)
    tokenizer = Tokenizer.from_buffer(checkpoint.side_files["tokenizer.json"])
    counting = "".join(map(tokenizer.id_to_token, found.token_ids[found.loss_mask].tolist()))
    assert sorted(counting.replace("<|im_end|>", "")) == sorted("plainHo" + tokenizer.id_to_token(2))


def test_text_in_a_conversation_is_no_control_token(tmp_path):
    checkpoint = _checkpoint(tmp_path)
    end = Tokenizer.from_buffer(checkpoint.side_files["tokenizer.json"]).token_to_id("<|im_end|>")
    with DocumentEncoder(checkpoint) as encoder:
        found = encoder.row({"messages": MESSAGES}, "line 1")
    assert (found.ids == end).sum() == len(MESSAGES)


@pytest.mark.parametrize("field", ["text", "content", "document"])
def test_plain_texts(tmp_path, field):
    with DocumentEncoder(_checkpoint(tmp_path, None)) as encoder:
        found = encoder.row({field: "höhe", "prompt": "without response"}, "line 1")
        assert (found.ids.size, found.characters, found.utf8_bytes) == (5, 4, 5)
        assert encoder.row({field: " "}, "line 2") is None
        assert encoder.row({field: None}, "line 3") is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": 3}, r"f\.jsonl, line 7\n.*only label"),
        ({}, "no fields"),
        ({"prompt": "alone"}, "only prompt"),
        ({"text": 3}, "line 7, text\n.*found int, needed a string"),
        ({"messages": "hi"}, "line 7, messages\n.*found str, needed a list"),
        ({"messages": ["hi"]}, r"line 7, messages\[0\]\n.*needed an object"),
        ({"messages": [{"role": "user"}]}, r"line 7, messages\[0\]\.content\n.*found nothing"),
        ({"conversations": [{"value": "hi"}]}, r"line 7, conversations\[0\]\.from\n"),
        ({"prompt": "hi", "response": ["a"]}, "line 7, response\n.*found list"),
        ({"messages": [{"role": "narrator", "content": "hi"}]}, "line 7\n.*'narrator'"),
        ({"messages": []}, "line 7\n.*found 0"),
        ({"messages": [{"role": "tool", "content": "hi"}]}, "does not take(?s:.*)line 7\n.*no tools"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "line 7\n.*D800"),
        ({"text": "\ud800"}, "line 7\n.*D800"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, row, message):
    with DocumentEncoder(_checkpoint(tmp_path)) as encoder, pytest.raises(UsageError, match=message):
        encoder.row(row, "f.jsonl, line 7")


@pytest.mark.parametrize(
    ("template", "message"), [(None, "no chat template"), ("{{ 1 / 0 }}", "division by zero")]
)
def test_templates_that_are_missing_or_broken(tmp_path, template, message):
    with (
        DocumentEncoder(_checkpoint(tmp_path, template)) as encoder,
        pytest.raises(CheckpointError, match=rf"(?s){message}"),
    ):
        encoder.row({"messages": MESSAGES}, "f.jsonl, line 7")
