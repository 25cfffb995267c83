"""Calls ``main`` of a library for CUDA on 64 ones in the emulator, and prints the error.

python -m tests.support.emulated_main LIBRARY SOURCE
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from awq_tvm.emulate import build_device
from awq_tvm.runtime.tvm_library import TvmRuntime, find_runtime_library


def main(library: str, source: str) -> None:
    """The child."""
    with tempfile.TemporaryDirectory() as folder:
        device = build_device(Path(source).read_text(), "cuda", Path(folder), find_runtime_library())
        tvm = TvmRuntime("cuda", device)
        try:
            tvm.load_machine(Path(library))["main"](tvm.tensor(np.ones(64, np.float32)))
        except RuntimeError as error:
            print(error)


if __name__ == "__main__":
    main(*sys.argv[1:])
