from __future__ import annotations

from pathlib import Path

import pytest

from awq_tvm.compile.tuning.shapes import are_shapes, model_wanted, shapes_wanted
from awq_tvm.errors import UnsupportedError, UsageError
from awq_tvm.schedules.attention.rule import AttentionSpec
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import detect, resolve
from tests.support import tiny_decoder as tiny


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny.make_model("llama", attention_bias=True, mlp_bias=True)
    return tiny.save_quantized(model, tmp_path_factory.mktemp("tuned") / "checkpoint")


def test_a_model_is_asked_for_its_linears_and_attention(checkpoint: Path) -> None:
    everything = model_wanted(str(checkpoint), detect(), activations="float")
    attention = [one for one in everything if isinstance(one.spec, AttentionSpec)]
    assert sorted(one.spec.kernel for one in attention) == ["decode", "prefill_paged", "prefill_ragged"]
    assert all(one.count == tiny.LAYERS and one.problem and not one.problem.is_linear for one in attention)
    wanted = [one for one in everything if one not in attention]
    # Queries, keys and values together, their output, gate and up together, down; and the head.
    assert sum(one.count for one in wanted) == 4 * tiny.LAYERS + 1
    assert {(one.spec.out_features, one.count) for one in wanted if one.count == 1} == {(tiny.VOCAB, 1)}
    for one in wanted:
        assert isinstance(one.spec, MatmulSpec)
        assert (one.spec.has_bias, one.spec.has_residual, one.spec.activation_function) == (
            False,
            False,
            None,
        )
        assert one.spec.activations == "float"
        assert one.problem is not None
        assert one.problem.spec == one.spec
    sizes = [one.count * one.spec.in_features * one.spec.out_features for one in wanted if one.spec.bits == 4]
    assert sizes == sorted(sizes, reverse=True)


def test_an_unquantized_model_is_refused(tmp_path: Path) -> None:
    folder = tiny.save_dense(tiny.make_model("llama"), tmp_path / "dense")
    with pytest.raises(UsageError, match="not quantized"):
        model_wanted(str(folder), detect())


def test_shapes_are_inputs_times_outputs() -> None:
    target = resolve("x86-64-v4-vnni")
    wanted = shapes_wanted("576x960,64x48,576x960", target, bits=8, group_size=32)
    assert [one.spec for one in wanted] == [
        MatmulSpec(576, 960, 8, 32, "float32", activations="int8"),
        MatmulSpec(64, 48, 8, 32, "float32", activations="int8"),
    ]
    assert [one.spec.activations for one in shapes_wanted("64x48", target, activations="float")] == ["float"]
    # Groups of 20 do not fit the vectors of any family but the generic one, which has nothing to choose.
    assert shapes_wanted("60x48", target, bits=4, group_size=20)[0].problem is None


def test_shapes_that_cannot_be() -> None:
    target = resolve("x86-64-v4-vnni")
    with pytest.raises(UsageError):
        shapes_wanted("0x5", target)
    with pytest.raises(UnsupportedError, match="does not divide"):
        shapes_wanted("100x64", target)
    assert are_shapes("576x960")
    for text in ("model", "576", "576x", "576x960,", "/a/576x960", "576X960"):
        assert not are_shapes(text)
