"""Has a library for CUDA capture a function that does what a driver refuses then, and prints what the emulator says.

The library's function calls ``tests.planted`` of 64 numbers; what that does is planted here, one fault after another.

    python -m tests.support.emulated_captures LIBRARY SOURCE
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from awq_tvm.emulate import build_device
from awq_tvm.runtime.tvm_library import TvmRuntime, find_runtime_library, load_runtime_library


def faults(tvm: TvmRuntime) -> dict[str, Callable[[Any], object]]:
    """What is done with x, by name; nothing comes first."""
    ones = np.ones(64, np.float32)
    other = tvm.tensor(ones)
    # One for each call: the function runs before it is captured as well.
    to_free = [tvm.tensor(ones) for _ in range(2)]
    copy, synchronize = map(tvm.function, ("runtime.TVMTensorCopyFromTo", "runtime.Device_StreamSync"))
    return {
        "nothing": lambda x: None,
        "copy": lambda x: copy(other, x),
        "synchronize": lambda x: synchronize(x.device, 0),
        "free": lambda x: to_free.pop() and None,
    }


def main(library: str, source: str) -> None:
    """The child."""
    tvm_ffi = load_runtime_library("cpu")  # without PyTorch, which takes seconds
    with tempfile.TemporaryDirectory() as folder:
        device = build_device(Path(source).read_text(), "cuda", Path(folder), find_runtime_library())
        tvm = TvmRuntime("cuda", device)
        x = tvm.tensor(np.ones(64, np.float32))
        found = {}
        for name, fault in faults(tvm).items():

            def planted(given: Any, fault: Callable[[Any], object] = fault) -> Any:
                fault(given)
                return given

            tvm_ffi.register_global_func("tests.planted", planted, override=True)
            try:
                tvm.load_machine(Path(library))["main"](x)
                found[name] = ""
            except RuntimeError as error:
                found[name] = str(error)
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
