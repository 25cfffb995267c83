"""HQQ: scales and zero points that fit the weights, without calibration (Badri and Shaji, 2023).

Its own zero points are fractions. To have them as all other quantizers do, they are rounded to integers and the
weights rounded anew; `--hqq-zeros float` leaves both as they are.
"""

from __future__ import annotations

import argparse

import torch
from hqq.core.quantize import Quantizer

from peers.interface import read_job, snap


def main() -> None:
    """Quantize by HQQ."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--hqq-zeros", choices=("integer", "float"), default="integer")
    job = read_job(parser)
    model = job.load_model()
    weights = {}
    for name in job.linears:
        weight = model.get_submodule(name).weight.detach()
        q, meta = Quantizer.quantize(
            weight, nbits=job.bits, group_size=job.group_size, axis=1, bitpack=False, device="cpu"
        )
        scales, zeros = meta["scale"].half().float(), meta["zero"].float()
        if job.options.hqq_zeros == "integer":
            zeros = zeros.round().clamp(0, 2**job.bits - 1)
            weights[f"{name}.weight"] = snap(weight, scales, zeros, job.bits)
        else:
            rows = q.float().reshape(scales.numel(), -1)
            found = (rows - zeros.reshape(-1, 1)) * scales.reshape(-1, 1)
            weights[f"{name}.weight"] = found.reshape(weight.shape)
    job.write(weights)


if __name__ == "__main__":
    with torch.no_grad():
        main()
