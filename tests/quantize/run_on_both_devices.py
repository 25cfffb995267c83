"""Quantize one tiny model on the CPU and on the device beside it, and print the hashes of the weights.

`python -m tests.quantize.run_on_both_devices FOLDER FAMILY METHOD BITS`
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from awq_tvm.quantize import learned_rounding, quantize
from tests.quantize.tiny_models import save_tiny_model, write_text
from tests.support.second_device import NAME, register


def main(folder: Path, family: str, method: str, bits: str) -> None:
    torch.set_num_threads(1)
    devices = {"cpu": torch.device("cpu"), NAME: register()}
    save_tiny_model(folder / "model", family)
    text = write_text(folder / "text.txt")
    # On both devices the same products: in float32, and attention without kernels of the CPU's own.
    learned_rounding._has_bfloat16_products = lambda: False
    quantize.find_device = lambda name: devices[name]
    hashes = {}
    for name in devices:
        with sdpa_kernel(SDPBackend.MATH):
            quantize.quantize_checkpoint(
                str(folder / "model"),
                folder / name,
                method=method,
                bits=bits,
                group_size=32,
                calibration=str(text),
                samples=4,
                sequence_length=32,
                device=name,
            )
        weights = sorted((folder / name).glob("*.safetensors"))
        hashes[name] = [hashlib.sha256(file.read_bytes()).hexdigest() for file in weights]
    print(json.dumps(hashes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
