"""Our own recipes, through the interface of the peers."""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path

import torch

from awq_tvm.checkpoint import open_checkpoint
from awq_tvm.quantize.names import in_network_terms
from awq_tvm.quantize.options import METHODS, AwqOptions
from awq_tvm.quantize.quantize import quantize_checkpoint
from awq_tvm.quantize.torch_model import read_weight
from peers.interface import read_job

# "paper" is the reference: the AWQ paper's symmetric clip, its value projections left alone.
RECIPES = {
    "rtn": ("rtn", None),
    "paper": ("awq", AwqOptions(clip="paper", share_value_scales=False)),
    "awq": ("awq", METHODS["awq"]),
    "awq+": ("awq+", METHODS["awq+"]),
}


def main() -> None:
    """Run `quantize_checkpoint` and write what a reader of its folder finds, embedding and norms included."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", choices=RECIPES, required=True)
    parser.add_argument("--calibration", required=True, help="the text that the token ids were cut from")
    job = read_job(parser)
    method, search = RECIPES[job.options.recipe]
    samples, length = job.token_ids.shape
    with tempfile.TemporaryDirectory() as folder:
        report = quantize_checkpoint(
            str(job.model),
            Path(folder) / "quantized",
            method=method,  # type: ignore[arg-type]
            bits=job.bits,
            group_size=job.group_size,
            calibration=job.options.calibration,
            samples=samples,
            sequence_length=length,
            seed=job.seed,
            options=search,
        )
        wanted = hashlib.sha256(job.token_ids.numpy().astype("<i8").tobytes()).hexdigest()
        if report.calibration_sha256 not in (None, wanted):
            sys.exit("the calibration tokens are not those that the peers get")
        written = in_network_terms(open_checkpoint(str(Path(folder) / "quantized")))
        names = [*written.tensors, *(f"{linear}.weight" for linear in written.quantized)]
        with torch.no_grad():
            job.write({name: read_weight(written, name) for name in names})


if __name__ == "__main__":
    main()
