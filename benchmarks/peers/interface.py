"""How a quantizer is called, whoever wrote it: a float model and token ids in, dequantized weights out.

    python -m peers.NAME --model FOLDER --tokens IDS.npy --linears LIST.json --bits 4 --group-size 64 --out FILE

Imports nothing of awq_tvm: it runs in the quantizer's own environment. FILE holds the weight of every linear of the
list, and of any other parameter that was changed, as float32 under the names of the model's parameters.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor


@dataclass(frozen=True)
class Job:
    """What a quantizer is asked.

    Attributes:
        model: a Hugging Face folder, weights in float32.
        token_ids: calibration samples, int64 [samples, sequence_length].
        linears: full names of the linears to quantize.
        bits: of a weight; zero points are integers of as many bits.
        group_size: inputs that share a scale and a zero point.
        seed: of whatever is drawn.
        out: the file to write.
        options: what else was on the command line.
    """

    model: Path
    token_ids: Tensor
    linears: tuple[str, ...]
    bits: int
    group_size: int
    seed: int
    out: Path
    options: argparse.Namespace

    def load_model(self) -> Any:
        """The float model, in evaluation mode."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(
            self.model, dtype=torch.float32, local_files_only=True, trust_remote_code=False
        ).eval()

    def write(self, weights: Mapping[str, Tensor]) -> None:
        """Write the weights, by parameter name."""
        ready = {name: weight.detach().float().contiguous().clone() for name, weight in weights.items()}
        save_file(ready, self.out)


def read_job(parser: argparse.ArgumentParser) -> Job:
    """Parse the command line; a parser may have options of its own already."""
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--linears", type=Path, required=True)
    parser.add_argument("--bits", type=int, required=True)
    parser.add_argument("--group-size", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    return Job(
        model=options.model,
        token_ids=torch.from_numpy(np.load(options.tokens, allow_pickle=False)),
        linears=tuple(json.loads(options.linears.read_text(encoding="utf-8"))),
        bits=options.bits,
        group_size=options.group_size,
        seed=options.seed,
        out=options.out,
        options=options,
    )


def snap(weight: Tensor, scales: Tensor, zeros: Tensor, bits: int) -> Tensor:
    """The nearest of the values that scales and integer zero points allow, in float32.

    Args:
        weight: [N, K].
        scales: [N, G] or of N * G elements in that order, > 0.
        zeros: of as many elements, integers 0..2 ** bits - 1.
        bits: of a weight.

    Returns:
        float32 [N, K].
    """
    groups = weight.detach().float().reshape(scales.numel(), -1)
    scale, zero = scales.float().reshape(-1, 1), zeros.float().reshape(-1, 1)
    q = torch.round(groups / scale + zero).clamp(0, 2**bits - 1)
    return ((q - zero) * scale).reshape(weight.shape)
