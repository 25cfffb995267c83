"""The runner's own tokenizer beside Hugging Face's, through ours in Python: ids, text, and text piece by piece."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from awq_tvm.prompt.tokenizer import Tokenizer
from awq_tvm.runtime.detokenizer import Detokenizer
from tests.prompt.tokenizers_for_tests import CORPUS, byte_fallback, byte_level
from tests.support import native_runner as native

pytestmark = native.needs_cmake
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = (
    "The capital of France is",
    "Once upon a time there was a little girl named Lily.",
    "def f(x):\n    return x  # \t tabs\r\n\r\n\n  end   ",
    "I'm sure they'LL say 'tis 12345 and ½ or ٣٤, won't they?",
    "Grüße aus Köln 😀👍🏽 日本語 한국어 e\u0301 A\u030a \u1e69 q\u0307\u0323 \u0958 \uac00\u11a8",
    "a\u00a0b\u2003c\u3000d\u0085e \x1f \u017f K",
    "<|im_start|>user <think> hi</think> <s>[INST]</s><unk>",
    " leading",
    "trailing ",
    "▁▁ lower ▁",
    "\x00\x01",
    "    four        eight",
    "x" * 500 + " " * 300 + "7" * 20,
)


def trained(
    cut: pre_tokenizers.PreTokenizer, normalizer: normalizers.Normalizer | None = None, **model: bool
) -> Tokenizer:
    """Byte-level BPE that cuts text by other rules; puts `<s>` in front."""
    made = tokenizers.Tokenizer(models.BPE(**model))
    made.pre_tokenizer = cut
    if normalizer is not None:
        made.normalizer = normalizer
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([*CORPUS, *TEXTS[:6]] * 2, trainer)
    made.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]),
        ]
    )
    made.add_tokens([AddedToken("<|tool|>", special=True), AddedToken("  end", normalized=False)])
    return Tokenizer(made.to_str().encode())


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def metaspace() -> Tokenizer:
    """SentencePiece's BPE as newer conversions write it: Metaspace in front and behind."""
    old = json.loads(byte_fallback()._tokenizer.to_str())
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    decoder = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, space]}
    new = {**old, "normalizer": None, "pre_tokenizer": space, "decoder": decoder}
    return Tokenizer(json.dumps(new).encode())


def unigram(*, bytes_too: bool, cut: bool = True) -> Tokenizer:
    """SentencePiece's Unigram, with or without tokens for bytes; every word's own piece or all in one."""
    made = tokenizers.Tokenizer(models.Unigram())
    made.normalizer = normalizers.Replace(tokenizers.Regex(" {2,}"), " ")
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first" if cut else "always", split=cut)
    trainer = trainers.UnigramTrainer(
        vocab_size=160, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator([*CORPUS, *TEXTS[:4]] * 2, trainer)
    old = json.loads(made.to_str())
    if bytes_too:
        old["model"]["vocab"] += [[f"<0x{byte:02X}>", -20.0] for byte in range(256)]
        old["model"]["byte_fallback"] = True
    old["decoder"] = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, old["pre_tokenizer"]]}
    if not bytes_too:
        old["decoder"] = old["pre_tokenizer"]
    return Tokenizer(json.dumps(old).encode())


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "GPT-2": byte_level,
    "Llama 2": byte_fallback,
    "Metaspace": metaspace,
    "SmolLM2": lambda: trained(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)])
    ),
    "Llama 3": lambda: trained(split(LLAMA3), ignore_merges=True),
    "Qwen 2": lambda: trained(split(QWEN2), normalizers.NFC()),
    "Mistral's Tekken": lambda: trained(split(TEKKEN)),
    "Unigram": lambda: unigram(bytes_too=False),
    "Unigram with bytes": lambda: unigram(bytes_too=True),
    "Unigram in one piece": lambda: unigram(bytes_too=True, cut=False),
    "a blank in front": lambda: trained(pre_tokenizers.ByteLevel(add_prefix_space=True)),
}
made = cache(lambda name: KINDS[name]())


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parts = (
        "bpe", "detokenizer", "json", "pattern", "piece_model", "text_steps", "tokenizer", "unicode", "unigram"
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tokenizer")
    return native.compile_check("tokenizer_check.cc", parts, folder / "check")


def ask(program: Path, tokenizer: Tokenizer, folder: Path, questions: Sequence[str]) -> list[str]:
    path = folder / "tokenizer.json"
    path.write_text(tokenizer._tokenizer.to_str(), encoding="utf-8")
    done = subprocess.run(
        [program, path], input="\n".join(questions) + "\n", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def encoded(program: Path, tokenizer: Tokenizer, folder: Path, texts: Sequence[str]) -> list[list[int]]:
    lines = ask(program, tokenizer, folder, [f"e {text.encode().hex()}" for text in texts])
    return [[int(word) for word in line.split()] for line in lines]


def decoded(
    program: Path, tokenizer: Tokenizer, folder: Path, answers: Sequence[Sequence[int]]
) -> list[list[str]]:
    lines = ask(program, tokenizer, folder, ["d " + " ".join(map(str, ids)) for ids in answers])
    return [[bytes.fromhex(word[1:]).decode() for word in line.split()] for line in lines]


@pytest.mark.parametrize("name", KINDS)
def test_texts_become_the_same_tokens(program: Path, tmp_path: Path, name: str) -> None:
    tokenizer = made(name)
    found = encoded(program, tokenizer, tmp_path, TEXTS)
    for text, ids in zip(TEXTS, found, strict=True):
        assert ids == tokenizer.encode(text), text


@pytest.mark.parametrize("name", KINDS)
def test_random_texts_become_the_same_tokens(
    program: Path, tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    tokenizer, folder = made(name), tmp_path_factory.mktemp("random")
    words = st.sampled_from(
        [*" \n\t'sTd19.,-▁éſ日😀", "<s>", "</s>", "<|tool|>", "  end", "the", "user", "\r\n"]
    )
    letters = st.characters(exclude_categories=("Cs", "Cn"))
    texts = st.lists(st.lists(words | letters, max_size=30).map("".join), min_size=40, max_size=40)

    @settings(max_examples=5, deadline=None, derandomize=True, database=None)
    @given(texts)
    def check(many: list[str]) -> None:
        found = encoded(program, tokenizer, folder, many)
        assert found == [tokenizer.encode(text) for text in many]

    check()


@pytest.mark.parametrize("name", KINDS)
def test_tokens_become_the_same_text_piece_by_piece(program: Path, tmp_path: Path, name: str) -> None:
    tokenizer = made(name)
    random_ids = random.Random(0)
    answers = [tokenizer.encode(text) for text in TEXTS]
    # Tokens in no order: bytes that are no UTF-8, special tokens in between, ids that there are not.
    answers += [
        [random_ids.randrange(tokenizer.vocab_size + 3) for _ in range(length)] for length in range(40)
    ]
    for ids, pieces in zip(answers, decoded(program, tokenizer, tmp_path, answers), strict=True):
        assert len(pieces) == len(ids) + 1
        assert "".join(pieces) == tokenizer.decode(ids)
        expected = Detokenizer(tokenizer)
        # Never later than Python shows it; but an id that there is not makes Python show bytes that may change.
        if max(ids, default=0) >= tokenizer.vocab_size:
            continue
        shown = [expected.push(token) for token in ids]
        for count in range(len(ids)):
            assert "".join(pieces[: count + 1]).startswith("".join(shown[: count + 1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalizer": {"type": "NFKD"}}, "NFKD"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace"),
        ({"decoder": {"type": "CTC"}}, "CTC"),
        ({"post_processor": {"type": "BertProcessing"}}, "BertProcessing"),
        ({"model": {"type": "WordPiece", "vocab": {"a": 0}}}, "WordPiece"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}}, "Precompiled"),
        ({"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": None}}, "no unknown token"),
        ({"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 1}}, "legal is 0 to 0"),
        ({"model": {"type": "Unigram", "vocab": [["a"]], "unk_id": 0}}, "pair"),
        ({"model": {"type": "Unigram", "vocab": [["a", "b"]], "unk_id": 0}}, "a text and a number"),
        ({"model": {"type": "Unigram", "vocab": {"a": 0}, "unk_id": 0}}, "no list"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}, "merge"),
        ({"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}, "integer"),
        *(
            (
                {
                    "pre_tokenizer": {
                        "type": "Split",
                        "pattern": {"Regex": pattern},
                        "behavior": "Isolated",
                        "invert": False,
                    }
                },
                "the pattern has",
            )
            for pattern in (
                r"(a+)+",
                r"a*?",
                r"\bword",
                r"\p{Han}",
                "[a",
                "(a",
                "a)",
                "a{3,1}",
                r"(?<=a)b",
                "^a",
            )
        ),
    ],
)
def test_what_is_not_known_is_refused(
    program: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(byte_level()._tokenizer.to_str()), **change}))
    done = subprocess.run([program, path], input="", capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert message in done.stderr
