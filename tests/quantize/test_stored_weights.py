"""Weights that stay in the 16 bits in which they are stored while a block is quantized, and change nothing by it."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from awq_tvm.checkpoint import open_checkpoint
from awq_tvm.quantize import plain_linears
from awq_tvm.quantize.architecture import architecture_of
from awq_tvm.quantize.awq import BlockResult
from awq_tvm.quantize.group_quantize import Rounding, quantize, round_trip
from awq_tvm.quantize.names import in_network_terms
from awq_tvm.quantize.options import AwqOptions
from awq_tvm.quantize.plain_linears import StoredLinear
from awq_tvm.quantize.quantize import quantize_checkpoint
from awq_tvm.quantize.torch_model import build_model, build_skeleton, empty, fill
from tests.quantize.tiny_models import save_tiny_model, write_text

QUICK = AwqOptions(scale_steps=4, search_tokens=64)
LEARNED = AwqOptions(scale_steps=4, search_tokens=64, learn_steps=3, learn_tokens=64)


def _stored(folder, family, dtype):
    """A tiny model as files hold it in 16 bits, and a second folder with the same values in float32."""
    save_tiny_model(folder / "model", family)
    save_tiny_model(folder / "wide", family)
    weights = load_file(folder / "model" / "model.safetensors")
    for name, weight in weights.items():
        # What is no linear of a block stays as it is in some files.
        weights[name] = weight.float() if weight.dim() == 1 else weight.to(dtype)
    save_file(weights, folder / "model" / "model.safetensors", {"format": "pt"})
    wide = {name: weight.float() for name, weight in weights.items()}
    save_file(wide, folder / "wide" / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("family", "dtype", "changes"),
    [
        ("llama", torch.bfloat16, {"options": QUICK}),
        ("llama", torch.bfloat16, {"method": "awq+", "options": LEARNED}),
        ("llama", torch.float16, {"bits": "auto:3.5", "options": QUICK}),
        ("llama", torch.bfloat16, {"method": "rtn", "symmetric": True}),
        # Biases; matrices that lie transposed in the files; experts; linears that multiply in a way of their own.
        ("qwen2", torch.float16, {"method": "awq+", "options": LEARNED}),
        ("gpt2", torch.bfloat16, {"options": QUICK}),
        ("qwen2_moe", torch.bfloat16, {"options": QUICK}),
        ("falcon-rw", torch.bfloat16, {"options": QUICK}),
    ],
)
def test_the_same_values_in_16_bits_give_the_same_files(tmp_path, family, dtype, changes):
    _stored(tmp_path, family, dtype)
    text = write_text(tmp_path / "text.txt")
    settings = {
        "method": "awq",
        "calibration": str(text),
        "samples": 3,
        "sequence_length": 32,
        "group_size": 32,
        **changes,
    }
    for name in ("model", "wide"):
        quantize_checkpoint(str(tmp_path / name), tmp_path / f"q-{name}", **settings)
    found, wanted = (load_file(tmp_path / f"q-{name}" / "model.safetensors") for name in ("model", "wide"))
    assert found.keys() == wanted.keys()
    assert [name for name, tensor in wanted.items() if not torch.equal(found[name], tensor)] == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "qwen2_moe", "gpt2"])
def test_only_linears_to_be_quantized_stay_as_stored(tmp_path, family, dtype):
    _stored(tmp_path, family, dtype)
    checkpoint = in_network_terms(open_checkpoint(str(tmp_path / "model")))
    wide = build_model(open_checkpoint(str(tmp_path / "wide")))
    architecture = architecture_of(checkpoint.config)
    path = f"{architecture.blocks}.0"
    block = build_skeleton(checkpoint.config).get_submodule(path)
    fill(block, path, checkpoint, as_stored=architecture.linears)
    kept = {f"{name}.weight" for name in architecture.linears}
    for name, parameter in block.named_parameters():
        assert parameter.dtype == (dtype if name in kept else torch.float32), name
        assert torch.equal(parameter.float(), wide.get_parameter(f"{path}.{name}")), name
    empty(block)
    fill(block, path, checkpoint)
    assert {parameter.dtype for parameter in block.parameters()} == {torch.float32}


def test_a_whole_model_is_float32(tmp_path):
    """What scores a model has no use for weights that are converted again and again."""
    _stored(tmp_path, "llama", torch.bfloat16)
    model = build_model(open_checkpoint(str(tmp_path / "model")))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_quantized_and_wide_weights_of_a_block_are_float32(tmp_path):
    """A checkpoint that is quantized already, or stored as float32, has no 16 bits to keep."""
    save_tiny_model(tmp_path / "model")
    quantize_checkpoint(str(tmp_path / "model"), tmp_path / "q", method="rtn")
    for name in ("model", "q"):
        checkpoint = open_checkpoint(str(tmp_path / name))
        architecture = architecture_of(checkpoint.config)
        block = build_skeleton(checkpoint.config).model.layers[0]
        fill(block, "model.layers.0", checkpoint, as_stored=architecture.linears)
        assert {parameter.dtype for parameter in block.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_linear_computes_in_float32_whatever_it_holds(dtype, autocast):
    """Also its gradients, and under the autocast that learning may use."""
    generator = torch.Generator().manual_seed(0)
    plain, stored = torch.nn.Linear(48, 20), StoredLinear(48, 20)
    stored.weight = torch.nn.Parameter(plain.weight.detach().to(dtype), requires_grad=False)
    plain.weight = torch.nn.Parameter(stored.weight.float(), requires_grad=False)
    stored.bias = plain.bias
    found = []
    for linear in (plain, stored):
        inputs = torch.randn(7, 48, generator=generator.manual_seed(1)).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            output = linear(inputs)
            output.float().square().sum().backward()
        found.append((output, inputs.grad))
    assert found[0][0].dtype == found[1][0].dtype == (torch.bfloat16 if autocast else torch.float32)
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("rows", [64, 150, 1000])
@pytest.mark.parametrize("bias", [False, True])
def test_a_large_weight_is_converted_some_rows_at_a_time(monkeypatch, rows, bias):
    monkeypatch.setattr(plain_linears, "_WEIGHTS_AT_ONCE", rows * 48)
    converted = []
    product = torch.nn.functional.linear

    def counting(inputs, weight, bias):
        converted.append(weight.shape[0])
        return product(inputs, weight, bias)

    plain, stored = torch.nn.Linear(48, 300, bias=bias), StoredLinear(48, 300, bias=bias)
    stored.weight = torch.nn.Parameter(plain.weight.detach().bfloat16(), requires_grad=False)
    plain.weight = torch.nn.Parameter(stored.weight.float(), requires_grad=False)
    stored.bias = plain.bias
    inputs = torch.randn(1, 7, 48, generator=torch.Generator().manual_seed(1))
    wanted = plain(inputs)
    monkeypatch.setattr(torch.nn.functional, "linear", counting)
    torch.testing.assert_close(stored(inputs), wanted)
    assert converted == {64: [64] * 4 + [44], 150: [128, 128, 44], 1000: [300]}[rows]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rounding", [Rounding(4, 32), Rounding(3, 64, symmetric=True), Rounding(8, -1)])
def test_rounding_of_16_bits_is_that_of_the_same_float32(dtype, rounding):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 128, generator=generator).to(dtype)
    scales = torch.rand(128, generator=generator) + 0.5
    found, wanted = quantize(weight, rounding), quantize(weight.float(), rounding)
    assert torch.equal(found.q, wanted.q)
    assert torch.equal(found.scales, wanted.scales)
    assert torch.equal(found.zeros, wanted.zeros)
    for some in (None, scales):
        rounded = round_trip(weight, rounding, some)
        assert rounded.dtype == torch.float32
        assert torch.equal(rounded, round_trip(weight.float(), rounding, some))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_scaled_weight_leaves_the_stored_one_alone(dtype):
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    before, columns, rows = weight.clone(), torch.arange(1.0, 9.0), torch.arange(1.0, 5.0)
    scaled = BlockResult(column_scales={"a": columns}, row_scales={"a": rows})
    assert torch.equal(scaled.scaled("a", weight), before.float() * columns / rows.unsqueeze(1))
    copy = scaled.scaled("neither", weight)
    assert torch.equal(copy, before.float())
    copy.zero_()
    assert torch.equal(weight, before)
