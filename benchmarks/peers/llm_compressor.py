"""llm-compressor: its AWQ (arXiv:2306.00978, no clip search) or its GPTQ (arXiv:2210.17323), at their defaults."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from compressed_tensors.quantization import fake_quantize
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier

from peers.interface import Job, read_job


def recipe(job: Job) -> list[Any]:
    """The modifiers for a job."""
    scheme = {
        "targets": ["Linear"],
        "weights": {
            "num_bits": job.bits,
            "type": "int",
            "symmetric": False,
            "strategy": "group",
            "group_size": job.group_size,
        },
    }
    settings = {"config_groups": {"group_0": scheme}, "ignore": ["lm_head"]}
    if job.options.algorithm == "awq":
        return [AWQModifier(), QuantizationModifier(**settings)]
    return [GPTQModifier(**settings)]


def main() -> None:
    """Quantize by llm-compressor; what AWQ scales beside the linears is written too."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--algorithm", choices=("awq", "gptq"), required=True)
    job = read_job(parser)
    # It pins what it caches, which needs an accelerator's driver.
    torch.Tensor.pin_memory = lambda tensor, *_: tensor  # type: ignore[method-assign,assignment]
    torch.manual_seed(job.seed)
    model = job.load_model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    samples, length = job.token_ids.shape
    rows = job.token_ids.tolist()
    oneshot(
        model=model,
        dataset=Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * length] * samples}),
        recipe=recipe(job),
        num_calibration_samples=samples,
        max_seq_length=length,
        shuffle_calibration_samples=False,
    )
    weights = {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if name in before and not torch.equal(parameter.detach(), before[name])
    }
    for name in job.linears:
        linear = model.get_submodule(name)
        weights[f"{name}.weight"] = fake_quantize(
            linear.weight.detach(),
            linear.weight_scale,
            linear.weight_zero_point,
            linear.quantization_scheme.weights,
        )
    job.write(weights)


if __name__ == "__main__":
    main()
