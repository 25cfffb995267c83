"""Score weights that a quantizer wrote, in the float model's place; prints one JSON object."""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from awq_tvm.checkpoint import open_checkpoint
from awq_tvm.quantize.evaluate import score_tokens
from awq_tvm.quantize.torch_model import build_model, quiet_transformers


def put_in_place(
    model: nn.Module, weights: dict[str, Tensor], linears: list[str], bits: int, group_size: int
) -> None:
    """Replace a model's parameters by a quantizer's.

    Raises:
        ValueError: a linear is missing, a parameter is unknown or has another shape, a value is not finite, or a
            group has more different values than its bits allow.
    """
    missing = [name for name in linears if f"{name}.weight" not in weights]
    if missing:
        raise ValueError(f"{len(missing)} linears are missing, the first is {missing[0]}")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, weight in weights.items():
        if name not in parameters or parameters[name].shape != weight.shape:
            raise ValueError(f"{name} {list(weight.shape)} is not a parameter of the model")
        if not torch.isfinite(weight).all():
            raise ValueError(f"{name} is not finite")
        if name.removesuffix(".weight") in linears and most_values(weight, group_size) > 2**bits:
            raise ValueError(
                f"a group of {name} has {most_values(weight, group_size)} values, {bits} bits are {2**bits}"
            )
        parameters[name].data.copy_(weight)


def most_values(weight: Tensor, group_size: int) -> int:
    """How many different values the group with the most of them has."""
    ordered = weight.reshape(-1, group_size).sort(dim=1).values
    return int((ordered.diff(dim=1) != 0).sum(dim=1).max()) + 1


def main() -> int:
    """Score the float model alone, or the weights of --weights against it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True, help="what `prepare` made")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--bits", type=int, required=True)
    parser.add_argument("--group-size", type=int, required=True)
    parser.add_argument("--context", type=int, required=True)
    options = parser.parse_args()
    quiet_transformers()
    ids = np.load(options.folder / "text.npy", allow_pickle=False)
    original = build_model(open_checkpoint(str(options.folder / "float")))
    if options.weights is None:
        print(json.dumps(score_tokens(original, ids, context=options.context)))
        return 0
    linears = json.loads((options.folder / "linears.json").read_text(encoding="utf-8"))
    model = copy.deepcopy(original)
    try:
        put_in_place(model, load_file(options.weights), linears, options.bits, options.group_size)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(score_tokens(model, ids, context=options.context, reference=original)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
