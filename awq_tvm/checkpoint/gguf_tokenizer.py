"""tokenizer.json and its companions, from the metadata of a GGUF file.

Two kinds are built: byte-level BPE ("gpt2", with the splitting rules named by tokenizer.ggml.pre) and
SentencePiece BPE with byte fallback ("llama"). Ids agree with llama.cpp's own
tokenizer, but that Qwen text is first brought to NFC, as Hugging Face's tokenizer does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from awq_tvm.errors import CheckpointError, UnsupportedError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # tokenizer.ggml.token_type
_MAX_TOKENS = 1 << 23

_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SMOLLM_RULES = (r"\p{N}", _GPT2_WORDS)


@dataclass(frozen=True)
class _PreTokenizer:
    """How text is cut before BPE: each pattern splits the pieces that the one before it left."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    nfc: bool = False
    add_bos: bool = False


_LLAMA3 = _PreTokenizer((_LLAMA3_WORDS,), ignore_merges=True, add_bos=True)
_PRE_TOKENIZERS = {
    "gpt-2": _PreTokenizer((_GPT2_WORDS,)),
    "default": _PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2_WORDS, r"\p{N}+", r"[0-9][0-9][0-9]")),
    "smollm": _PreTokenizer(_SMOLLM_RULES),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _PreTokenizer((_LLAMA3_WORDS.replace("{1,3}", ""),), nfc=True),
}

# Tokens that end a turn, if the chat template uses them: GGUF's eos is often the end of a document instead.
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>")


@dataclass(frozen=True)
class _Vocabulary:
    tokens: list[str]
    types: list[int]
    special: dict[str, int]  # "bos", "eos", "unknown", "padding", "eot", "eom" -> id
    add_bos: bool
    add_eos: bool


def synthesise_side_files(
    metadata: Mapping[str, Any], config: Mapping[str, Any], where: str
) -> dict[str, bytes]:
    """Return tokenizer.json, tokenizer_config.json, generation_config.json and any chat_template.jinja.

    Raises:
        CheckpointError: if the tokenizer section is incomplete or contradicts itself or the config.
        UnsupportedError: for a kind of tokenizer that is not built here.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise UnsupportedError(
            f"a GGUF tokenizer of kind {kind!r:.80}",
            where=where,
            why="kinds read: gpt2 (byte-level BPE), llama (SentencePiece BPE)",
            fix="give the Hugging Face folder of the model instead",
        )
    rules = _rules(metadata, where) if kind == "gpt2" else None
    vocabulary = _vocabulary(metadata, config, bool(rules is None or rules.add_bos), where)
    if rules is not None:
        tokenizer = _byte_level(vocabulary, rules, metadata.get("tokenizer.ggml.merges"), where)
    else:
        tokenizer = _sentencepiece(vocabulary, metadata, where)
    _add_special_tokens(tokenizer, vocabulary)
    template = metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise CheckpointError("the chat template is not a string", where=where)
    files = {
        "tokenizer.json": tokenizer.to_str(pretty=False).encode(),
        "tokenizer_config.json": _json(_tokenizer_config(vocabulary, config, template)),
        "generation_config.json": _json(_generation_config(vocabulary, template)),
    }
    if template is not None:
        files["chat_template.jinja"] = template.encode()
    return files


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _rules(metadata: Mapping[str, Any], where: str) -> _PreTokenizer:
    name = metadata.get("tokenizer.ggml.pre", "default")
    if name not in _PRE_TOKENIZERS:
        raise UnsupportedError(
            f"a GGUF pre-tokenizer named {name!r:.80}",
            where=where,
            why=f"names known: {', '.join(_PRE_TOKENIZERS)}",
            fix="give the Hugging Face folder of the model instead",
        )
    return _PRE_TOKENIZERS[name]


def _vocabulary(
    metadata: Mapping[str, Any], config: Mapping[str, Any], add_bos: bool, where: str
) -> _Vocabulary:
    tokens, types = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise CheckpointError("the tokenizer has no list of tokens", where=where, why="tokenizer.ggml.tokens")
    if len(tokens) > min(config["vocab_size"], _MAX_TOKENS):
        raise CheckpointError(
            "the tokenizer has more tokens than the embedding has rows",
            where=where,
            why=f"{len(tokens)} tokens, vocab_size {config['vocab_size']}",
        )
    if len(set(tokens)) != len(tokens):
        raise CheckpointError("the tokenizer lists a token twice", where=where, why="tokenizer.ggml.tokens")
    types = [1] * len(tokens) if types is None else types
    if not isinstance(types, list) or len(types) != len(tokens):
        raise CheckpointError(
            "the tokenizer's lists differ in length",
            where=where,
            why="tokenizer.ggml.token_type and tokenizer.ggml.tokens",
        )
    special = {}
    for role in ("bos", "eos", "unknown", "padding", "eot", "eom"):
        index = metadata.get(f"tokenizer.ggml.{role}_token_id")
        if index is None:
            continue
        if type(index) is not int or not 0 <= index < len(tokens):
            raise CheckpointError(
                "a special token is not in the vocabulary",
                where=where,
                why=f"{role}_token_id {index!r:.80} of {len(tokens)}",
            )
        special[role] = index
    return _Vocabulary(
        tokens,
        types,
        special,
        bool(metadata.get("tokenizer.ggml.add_bos_token", add_bos)) and "bos" in special,
        bool(metadata.get("tokenizer.ggml.add_eos_token", False)) and "eos" in special,
    )


def _byte_level(vocabulary: _Vocabulary, rules: _PreTokenizer, merges: object, where: str) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

    if not isinstance(merges, list) or not all(isinstance(merge, str) for merge in merges):
        raise CheckpointError("the tokenizer has no list of merges", where=where, why="tokenizer.ggml.merges")
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    try:
        model = models.BPE(vocab=ids, merges=pairs, ignore_merges=rules.ignore_merges)
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise CheckpointError(
            "the tokenizer's merges do not fit its tokens", where=where, why=str(error)
        ) from error
    tokenizer = Tokenizer(model)
    if rules.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _splitter(rules)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _splitter(rules: _PreTokenizer) -> Any:
    from tokenizers import Regex, pre_tokenizers

    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in rules.patterns]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*splits, byte_level])


# Every rule of `_PRE_TOKENIZERS` cuts this text differently from the others.
_PROBE = (
    "Don't SHE'LL we've\tit's 1234567 3.14 x1y22  two   three\n\n four \r\n  \n!?... (a)+b=c <|x|> $5 #tag "
    "na\u00efve \u4f60\u597d\uff0c\u4e16\u754c \u0645\u0631\u062d\u0628\u0627 \U0001f600 end  "
)


def pre_tokenizer_name(tokenizer: Tokenizer, ignore_merges: bool) -> str | None:
    """Return the tokenizer.ggml.pre of a byte-level tokenizer; None if it cuts text as none that is known.

    Args:
        tokenizer: from a tokenizer.json.
        ignore_merges: what its model says.
    """
    if tokenizer.pre_tokenizer is None:
        return None
    pieces = tokenizer.pre_tokenizer.pre_tokenize_str(_PROBE)
    for name, rules in _PRE_TOKENIZERS.items():
        if rules.ignore_merges == ignore_merges and _splitter(rules).pre_tokenize_str(_PROBE) == pieces:
            return name
    return None


def _sentencepiece(vocabulary: _Vocabulary, metadata: Mapping[str, Any], where: str) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(vocabulary.tokens):
        raise CheckpointError(
            "the tokenizer has no score for every token", where=where, why="tokenizer.ggml.scores"
        )
    unknown = vocabulary.special.get("unknown", 0)
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    model = models.BPE(
        vocab=ids,
        merges=_merges_by_score(ids, vocabulary.types, scores),
        unk_token=vocabulary.tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    steps = [normalizers.Prepend("▁")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    undo: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        undo.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(undo)
    return tokenizer


def _merges_by_score(
    ids: Mapping[str, int], types: Sequence[int], scores: Sequence[float]
) -> list[tuple[str, str]]:
    """Return the merges that make BPE choose as SentencePiece does: a better-scored result merges first."""
    ranked = []
    for token, index in ids.items():
        if types[index] in (_UNKNOWN, _CONTROL):
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                ranked.append((-scores[index], index, ids[left], ids[right], left, right))
    return [(left, right) for *_, left, right in sorted(ranked)]


def _add_special_tokens(tokenizer: Tokenizer, vocabulary: _Vocabulary) -> None:
    from tokenizers import AddedToken, processors

    # All at once: each call goes over everything that was added before, and Gemma adds thousands.
    typed = list(zip(vocabulary.tokens, vocabulary.types, strict=True))
    special = [token for token, kind in typed if kind in (_UNKNOWN, _CONTROL)]
    others = [token for token, kind in typed if kind == _USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in others])
    bos = [vocabulary.tokens[vocabulary.special["bos"]]] if vocabulary.add_bos else []
    eos = [vocabulary.tokens[vocabulary.special["eos"]]] if vocabulary.add_eos else []
    if bos or eos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*bos, "$A", *eos],
            pair=[
                *bos,
                "$A",
                *eos,
                *(f"{token}:1" for token in bos),
                "$B:1",
                *(f"{token}:1" for token in eos),
            ],
            special_tokens=[(token, vocabulary.tokens.index(token)) for token in dict.fromkeys([*bos, *eos])],
        )


def _tokenizer_config(
    vocabulary: _Vocabulary, config: Mapping[str, Any], template: str | None
) -> dict[str, Any]:
    added = {
        str(index): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": kind != _USER_DEFINED,
        }
        for index, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    }
    result: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": config["max_position_embeddings"],
        "added_tokens_decoder": added,
    }
    for role, key in (
        ("bos", "bos_token"),
        ("eos", "eos_token"),
        ("unknown", "unk_token"),
        ("padding", "pad_token"),
    ):
        if role in vocabulary.special:
            result[key] = vocabulary.tokens[vocabulary.special[role]]
    if template is not None:
        result["chat_template"] = template
    return result


def _generation_config(vocabulary: _Vocabulary, template: str | None) -> dict[str, Any]:
    special = vocabulary.special
    ends = [special[role] for role in ("eos", "eot", "eom") if role in special]
    for token in _TURN_ENDS:
        if template is not None and token in template and token in vocabulary.tokens:
            ends.append(vocabulary.tokens.index(token))
    ends = list(dict.fromkeys(ends))
    result: dict[str, Any] = {}
    for role, key in (("bos", "bos_token_id"), ("padding", "pad_token_id")):
        if role in special:
            result[key] = special[role]
    if ends:
        result["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    return result
