"""What a bundle for a GPU can be made of, combined: most pairs of choices meet in one of these models."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pytest

from awq_tvm.checkpoint import PER_CHANNEL
from awq_tvm.targets import Target, resolve
from tests.emulate.test_bundles import GREEDY, PARTS, TIE, TOLERANCE, needs_this_machine, target_of
from tests.support import tiny_decoder as tiny
from tests.support.emulated_bundle import run_in_emulator

pytestmark = [*needs_this_machine, pytest.mark.slow]


class Made(NamedTuple):
    """One bundle.

    Attributes:
        kind: of GPU.
        bits: of the linears.
        group_size: of theirs.
        rounding: "order" is asymmetric too, with the channels of a group scattered.
        hidden_act: f of the MLPs' gates.
        opt: level of ``compile``.
    """

    kind: str
    bits: int
    group_size: int
    rounding: Literal["asymmetric", "symmetric", "order"]
    hidden_act: str
    opt: int


MADE = [
    Made("cuda", 4, 32, "asymmetric", "gelu_pytorch_tanh", 2),
    Made("cuda", 4, PER_CHANNEL, "asymmetric", "silu", 2),
    Made("cuda", 3, 16, "symmetric", "gelu", 0),
    Made("h100", 3, 16, "symmetric", "silu", 2),
    Made("h100", 8, PER_CHANNEL, "symmetric", "gelu_pytorch_tanh", 0),
    Made("h100", 4, 32, "symmetric", "gelu", 1),
    Made("h100", 3, 128, "asymmetric", "gelu_pytorch_tanh", 0),
    Made("h100", 4, 128, "order", "gelu_pytorch_tanh", 2),
    Made("h100", 8, 32, "asymmetric", "silu", 1),
    Made("metal", 3, PER_CHANNEL, "asymmetric", "gelu", 1),
    Made("metal", 4, 16, "order", "gelu", 0),
    Made("metal", 8, 128, "symmetric", "gelu", 2),
    Made("metal", 3, 32, "order", "silu", 0),
    Made("metal", 8, 16, "asymmetric", "gelu_pytorch_tanh", 1),
]


def one_of(kind: str) -> Target:
    """The target, with so few SMs that small linears fill it."""
    return dataclasses.replace(resolve("h100"), num_sms=1) if kind == "h100" else target_of(kind)


@pytest.mark.parametrize("made", MADE, ids=lambda made: "-".join(map(str, made)))
def test_any_two_choices_together(made: Made, tmp_path: Path) -> None:
    """The head stays in float16: on CUDA it is multiplied by TVM's own schedule, with nvcuda::wmma."""
    family, tied = ("mistral", "qwen2", "qwen3", "llama")[MADE.index(made) % 4], made.bits == 8
    model = tiny.make_model(
        family,
        hidden_size=128,
        intermediate_size=256,
        head_dim=32,
        hidden_act=made.hidden_act,
        tie_word_embeddings=tied,
    )
    compiled = tiny.compile_quantized(
        model,
        tmp_path,
        bits=made.bits,
        group_size=made.group_size,
        symmetric=made.rounding == "symmetric",
        act_order=made.rounding == "order",
        target=one_of(made.kind),
        kv_cache="auto",
        opt=made.opt,
        source_only=made.kind != "metal",
    )
    found = run_in_emulator(compiled.bundle, tmp_path, parts=PARTS, greedy=GREEDY, vocabulary=tiny.VOCAB)
    expected = tiny.torch_logits(model, found.ids)
    assert tiny.relative_error(found.logits, expected[found.rows]) < TOLERANCE
    choices = expected[-GREEDY - 1 : -1]
    short = choices.max(1) - choices[range(GREEDY), found.ids[-GREEDY:]]
    assert short.max() < TIE * np.abs(expected).max()
