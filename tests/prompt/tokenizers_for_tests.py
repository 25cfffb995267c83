"""Two real tokenizers, trained or built here: byte-level BPE, and BPE with byte fallback."""

from __future__ import annotations

import json
from functools import cache

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from awq_tvm.prompt.tokenizer import Tokenizer

CORPUS = [
    "Once upon a time there was a little girl named Lily. She loved to play outside in the sun.",
    "The user asks and the assistant answers; système, user, assistant. Grüße aus Köln 😀 日本語.",
] * 8
CONTROL = ["<|im_start|>", "<|im_end|>", "<s>", "</s>"]
CONFIG = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "unk_token": None}


@cache
def byte_level() -> Tokenizer:
    """Byte-level BPE as GPT-2, Llama 3 and SmolLM2 have it; `<think>` is added but not called special."""
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=CONTROL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(CORPUS, trainer)
    model.add_tokens([AddedToken("<think>", special=False), AddedToken("    ", special=False)])
    return Tokenizer(model.to_str().encode(), CONFIG)


@cache
def byte_fallback() -> Tokenizer:
    """BPE with byte fallback and a blank put before each text, as Llama 2 has it; adds `<s>` in front."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = sorted({letter for line in CORPUS for letter in line.replace(" ", "▁") if ord(letter) < 0x2600})
    merges = [
        ("t", "h"),
        ("th", "e"),
        ("▁", "the"),
        ("l", "i"),
        ("▁", "a"),
        ("u", "s"),
        ("us", "e"),
        ("use", "r"),
    ]
    words += letters + [left + right for left, right in merges]
    model = tokenizers.Tokenizer(
        models.BPE(
            vocab={word: index for index, word in enumerate(words)},
            merges=merges,
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    model.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    model.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    model.add_special_tokens(["<unk>", "<s>", "</s>"])
    model.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return Tokenizer(model.to_str().encode(), CONFIG)


@cache
def unigram() -> Tokenizer:
    """A model that has the control token in its own vocabulary, not only among added tokens."""
    vocab = [("<unk>", 0.0), ("</s>", -0.5), *((chr(code), -5.0) for code in range(33, 127))]
    model = tokenizers.Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=False))
    model.add_special_tokens(["</s>"])
    return Tokenizer(model.to_str().encode())


def document(tokenizer: tokenizers.Tokenizer) -> dict[str, object]:
    """tokenizer.json of a library tokenizer, parsed."""
    parsed: dict[str, object] = json.loads(tokenizer.to_str())
    return parsed
