"""Write what all quantizers and the scoring share: a float model, calibration tokens, tokens to score."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from awq_tvm.checkpoint import open_checkpoint
from awq_tvm.errors import AwqTvmError
from awq_tvm.quantize.architecture import linears_of
from awq_tvm.quantize.calibration import calibrate
from awq_tvm.quantize.evaluate import token_ids_of
from awq_tvm.quantize.torch_model import build_model


def main() -> int:
    """Make `float/`, `calibration.npy`, `text.npy` and `linears.json` in a folder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--samples", type=int, required=True)
    parser.add_argument("--sequence-length", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    try:
        checkpoint = open_checkpoint(options.model)
        text = calibrate(
            checkpoint,
            options.calibration,
            samples=options.samples,
            sequence_length=options.sequence_length,
            seed=options.seed,
        )
        if text.warnings or not text.loss_mask.all():
            print("the calibration text is too short: not all of its tokens would count", file=sys.stderr)
            return 2
        np.save(options.out / "text.npy", token_ids_of(checkpoint, options.text, options.tokens))
        np.save(options.out / "calibration.npy", text.token_ids)
        (options.out / "linears.json").write_text(json.dumps(list(linears_of(checkpoint.config))))
        build_model(checkpoint).save_pretrained(options.out / "float")
        for name, content in checkpoint.side_files.items():
            if name.startswith(("tokenizer", "vocab", "merges", "special_tokens", "added_tokens")):
                (options.out / "float" / name).write_bytes(content)
    except AwqTvmError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
