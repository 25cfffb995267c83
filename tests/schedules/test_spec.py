from __future__ import annotations

import pytest

from awq_tvm.errors import UnsupportedError
from awq_tvm.schedules.spec import LEGAL_ACTIVATION_FUNCTIONS, LEGAL_BITS, DenseSpec, MatmulSpec

GOOD = {"in_features": 64, "out_features": 24, "bits": 4, "group_size": 32, "dtype": "float32"}


@pytest.mark.parametrize("bits", LEGAL_BITS)
@pytest.mark.parametrize("function", [None, *LEGAL_ACTIVATION_FUNCTIONS])
def test_json_comes_back_as_the_same_spec(bits: int, function: str | None) -> None:
    spec = MatmulSpec(
        **{**GOOD, "bits": bits}, activation_function=function, has_bias=True, activations="int8"
    )
    assert MatmulSpec.from_json(spec.to_json()) == spec
    assert spec.groups == 2


def test_gated_outputs_are_half_as_many() -> None:
    spec = MatmulSpec(**GOOD, output_gate="silu")
    assert (spec.y_features, MatmulSpec(**GOOD).y_features) == (12, 24)
    assert MatmulSpec.from_json(spec.to_json()) == spec
    with pytest.raises(UnsupportedError, match="an odd number of sums"):
        MatmulSpec(**{**GOOD, "out_features": 23}, output_gate="silu")


def test_json_of_a_dense_spec_comes_back() -> None:
    spec = DenseSpec(64, 24, "float16", "float32")
    assert DenseSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 5}, "5-bit weights have no kernel"),
        ({"bits": 0}, "0-bit weights have no kernel"),
        ({"group_size": 0}, "group size 0 does not divide in_features 64"),
        ({"group_size": -1}, "group size -1 does not divide in_features 64"),
        ({"group_size": 48}, "group size 48 does not divide in_features 64"),
        ({"activation_function": "tanh"}, "no fused tanh epilogue"),
        ({"activations": "int4"}, "unknown activation mode 'int4'"),
        ({"output_gate": "tanh"}, "no fused tanh gate"),
        ({"output_gate": "silu", "has_bias": True}, "no kernel does more with its sums than to gate them"),
        (
            {"output_gate": "silu", "has_residual": True},
            "no kernel does more with its sums than to gate them",
        ),
    ],
)
def test_what_no_kernel_can_compute_is_refused(change: dict[str, object], message: str) -> None:
    MatmulSpec(**GOOD)
    with pytest.raises(UnsupportedError, match=message) as caught:
        MatmulSpec(**{**GOOD, **change})
    assert caught.value.where == "24x64 linear"
