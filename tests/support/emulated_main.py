"""Calls ``main`` of a library for CUDA on so many ones in the emulator, and prints the error.

Where the library has it, ``main_in_graphs`` in its stead, twice, and prints what each gives. At last it prints how
many launches might begin before those before them had ended.

    python -m tests.support.emulated_main LIBRARY SOURCE LENGTH
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from awq_tvm.emulate import build_device
from awq_tvm.runtime.executor import OVERLAP_VARIABLE
from awq_tvm.runtime.tvm_library import TvmRuntime, find_runtime_library, load_runtime_library


def main(library: str, source: str, length: str) -> None:
    """The child."""
    load_runtime_library("cpu")  # without PyTorch, which takes seconds
    with tempfile.TemporaryDirectory() as folder:
        device = build_device(Path(source).read_text(), "cuda", Path(folder), find_runtime_library())
        tvm = TvmRuntime("cuda", device)
        try:
            machine = tvm.load_machine(Path(library), overlap=os.environ.get(OVERLAP_VARIABLE) != "0")
            ones = tvm.tensor(np.ones(int(length), np.float32))
            if not machine.implements_function("main_in_graphs"):
                machine["main"](ones)
                return
            workspace = machine["main_workspace"]()
            for _ in range(2):
                print(tvm.array(machine["main_in_graphs"](ones, *workspace)).tolist())
            print(tvm.function("awq_emulate.overlapped_launches")())
        except RuntimeError as error:
            print(error)


if __name__ == "__main__":
    main(*sys.argv[1:])
