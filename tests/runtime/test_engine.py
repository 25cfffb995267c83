from __future__ import annotations

import numpy as np
import pytest

from awq_tvm.errors import BundleError, UnsupportedError, UsageError
from awq_tvm.prompt.chat_template import Message
from awq_tvm.runtime.engine import Engine
from awq_tvm.runtime.sampler import SamplingOptions
from tests.prompt.tokenizers_for_tests import byte_level

from .bigram import Bigram, chain

TOKENIZER = byte_level()
END = TOKENIZER.token_id("</s>") or 0
FIRST = "Once"
TEXT = "Once upon a little 🦜 girl"


def _engine(executor: Bigram | None = None, **changes: object) -> Engine:
    executor = executor or chain(TOKENIZER, TEXT, end=END)
    fields = {"eos_token_ids": [END], "vocab_size": TOKENIZER.vocab_size, **changes}
    return Engine(executor, TOKENIZER, **fields)


def _first() -> list[int]:
    return TOKENIZER.encode(TEXT)[:1]


def test_greedy_answer_ends_at_the_end_token() -> None:
    engine = _engine()
    answer = engine.generate_tokens(_first())
    assert TOKENIZER.decode(_first()) + answer.text == TEXT
    assert list(answer.token_ids) == TOKENIZER.encode(TEXT)[1:]
    assert answer.finish_reason == "stop"
    assert answer.timings.prompt_tokens == 1
    assert answer.timings.generated_tokens == len(answer.token_ids) + 1
    assert answer.timings.prefill_seconds > 0
    assert engine.executor.sequences == {}


def test_prompt_as_text_reads_all_of_it() -> None:
    answer = _engine().generate("girl" + TOKENIZER.decode(_first()))
    assert TOKENIZER.decode(_first()) + answer.text == TEXT


def test_stream_joins_to_the_text_and_leaves_a_result() -> None:
    engine = _engine()
    answer = engine.stream_tokens(_first())
    pieces = list(answer)
    assert answer.generation is not None
    assert "".join(pieces) == answer.generation.text
    assert all(pieces)
    assert not any("\ufffd" in piece for piece in pieces)
    assert answer.generation.token_ids == engine.generate_tokens(_first()).token_ids


def test_max_tokens_and_full_context_end_with_length() -> None:
    tokens = TOKENIZER.encode(TEXT)
    answer = _engine().generate_tokens(_first(), SamplingOptions(max_tokens=3))
    assert list(answer.token_ids) == tokens[1:4]
    assert answer.finish_reason == "length"
    small = chain(TOKENIZER, TEXT, context_length=4)
    answer = _engine(small).generate_tokens(_first())
    # Four tokens are read, and the last of them still predicts one more.
    assert list(answer.token_ids) == tokens[1:5]
    assert answer.finish_reason == "length"
    assert _engine(small).generate_tokens(tokens[:4]).token_ids == (tokens[4],)


def test_default_length_is_bounded() -> None:
    loop = Bigram(np.zeros((TOKENIZER.vocab_size,) * 2, np.float32), context_length=10_000)
    assert len(_engine(loop, eos_token_ids=[]).generate_tokens([1]).token_ids) == 256


def test_cut_code_point_at_the_length_limit_is_shown_at_the_end() -> None:
    tokens = TOKENIZER.encode(TEXT)
    bird = next(i for i in range(len(tokens)) if TOKENIZER.decode(tokens[: i + 1]).endswith("\ufffd"))
    answer = _engine().generate_tokens(tokens[:1], SamplingOptions(max_tokens=bird))
    assert answer.text.endswith("\ufffd")
    assert answer.text == TOKENIZER.decode(tokens[: bird + 1])[len(TOKENIZER.decode(tokens[:1])) :]


def test_stop_string_across_tokens_cuts_the_text() -> None:
    answer = _engine().generate_tokens(_first(), SamplingOptions(stop=("ttle 🦜",)))
    assert (TOKENIZER.decode(_first()) + answer.text) == "Once upon a li"
    assert answer.finish_reason == "stop"


def test_stop_string_that_never_completes_is_let_out_at_the_end() -> None:
    for options in (SamplingOptions(stop=("girl!",)), SamplingOptions(stop=(" girl friend",))):
        answer = _engine().generate_tokens(_first(), options)
        assert answer.text.endswith(" girl")


def test_closing_a_stream_frees_its_sequence() -> None:
    engine = _engine()
    with engine.stream_tokens(_first()) as answer:
        next(answer)
        assert len(engine.executor.sequences) == 1
    assert engine.executor.sequences == {}
    assert answer.generation is None


def test_failing_model_frees_its_sequence() -> None:
    broken = Bigram(np.full((TOKENIZER.vocab_size,) * 2, np.nan, np.float32))
    with pytest.raises(BundleError, match="not a number"):
        _engine(broken).generate_tokens([1])
    assert broken.sequences == {}


def test_sampling_is_repeatable() -> None:
    rng = np.random.default_rng(0)
    model = Bigram(rng.normal(size=(TOKENIZER.vocab_size,) * 2).astype(np.float32))
    options = SamplingOptions(temperature=1.0, seed=3, max_tokens=20)
    engine = _engine(model)
    assert engine.generate("the", options).token_ids == engine.generate("the", options).token_ids
    other = SamplingOptions(temperature=1.0, seed=4, max_tokens=20)
    assert engine.generate("the", options).token_ids != engine.generate("the", other).token_ids


def test_repetition_penalty_knows_the_prompt() -> None:
    table = np.zeros((TOKENIZER.vocab_size,) * 2, np.float32)
    table[:, 10], table[:, 11], table[:, 12] = 5.0, 4.0, 3.0
    penalised = SamplingOptions(max_tokens=1, repetition_penalty=1.5)
    assert _engine(Bigram(table)).generate_tokens([10]).token_ids[0] == 10
    assert _engine(Bigram(table)).generate_tokens([10], penalised).token_ids == (11,)


def test_empty_prompt() -> None:
    engine = _engine()
    with pytest.raises(UsageError, match="found 0 characters"):
        engine.generate("")
    with pytest.raises(UsageError, match="found 0 tokens"):
        engine.generate_tokens([])


def test_prompt_longer_than_the_context_names_both() -> None:
    engine = _engine(chain(TOKENIZER, TEXT, context_length=4))
    engine.generate_tokens([1] * 4)
    with pytest.raises(UsageError, match="it has 5 tokens, the context holds 4"):
        engine.generate_tokens([1] * 5)
    with pytest.raises(UsageError, match="the context holds 4"):
        engine.stream(TEXT)


def test_more_tokens_asked_than_the_context_holds_names_both() -> None:
    engine = _engine()
    engine.generate_tokens(_first(), SamplingOptions(max_tokens=64))
    with pytest.raises(UsageError, match="found 65, the context holds 64"):
        engine.generate_tokens(_first(), SamplingOptions(max_tokens=65))


def test_tokenizer_larger_than_the_model() -> None:
    engine = _engine(vocab_size=TOKENIZER.vocab_size - 1)
    with pytest.raises(BundleError, match=f"the model has {TOKENIZER.vocab_size - 1}"):
        engine.generate_tokens([TOKENIZER.vocab_size - 1])


def test_chat_goes_through_the_template() -> None:
    template = "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    start = TOKENIZER.token_id("<|im_start|>")
    with _engine(chat_template=template) as engine:
        tokens = engine.encode("hi <|im_start|>", chat=True)
        assert tokens.count(start) == 1
        assert TOKENIZER.decode(tokens) == "user: hi <|im_start|>"
        both = engine.encode([Message("system", "s"), Message("user", "u")])
        assert TOKENIZER.decode(both) == "system: suser: u"
        assert engine.generate("hi", chat=True).timings.prompt_tokens == len(engine.encode("hi", chat=True))


def test_chat_without_a_template() -> None:
    engine = _engine()
    with pytest.raises(UnsupportedError, match="no chat template"):
        engine.generate("hi", chat=True)


def test_threads_out_of_range() -> None:
    for threads in (0, -1, 1025):
        with pytest.raises(UsageError, match=f"found {threads}, legal is from 1 to 1024"):
            Engine.load("nowhere", threads=threads)
    with pytest.raises(BundleError, match="does not exist"):
        Engine.load("nowhere", threads=1)


def test_timings_rates() -> None:
    timings = _engine().generate_tokens(_first(), SamplingOptions(max_tokens=5)).timings
    as_dict = timings.as_dict()
    assert as_dict["decode_tokens_per_second"] == pytest.approx(4 / timings.decode_seconds)
    assert as_dict["prefill_tokens_per_second"] == pytest.approx(1 / timings.prefill_seconds)
    single = _engine().generate_tokens(_first(), SamplingOptions(max_tokens=1)).timings
    assert single.decode_tokens_per_second is None
