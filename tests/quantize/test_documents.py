"""Rows become the tokens that transformers makes of them; what is wrong is named by file and line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from awq_tvm.checkpoint import open_checkpoint
from awq_tvm.errors import CheckpointError, UsageError
from awq_tvm.quantize.documents import DocumentEncoder
from tests.quantize.tiny_models import save_tiny_model

CHATML = (
    "{% for message in messages %}{% if message.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = [("system", "Be brief."), ("user", "Hi <|im_end|>"), ("assistant", "Hello.")]
MESSAGES = [{"role": role, "content": content} for role, content in TURNS]


def _byte_level():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
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
