"""What this machine can do at best: FMA, byte dot products, reading from each level of memory.

python benchmarks/limits_cpu.py [--threads 1]
"""

from __future__ import annotations

import argparse
import os

from awq_tvm.compile.tuning.limits import measure_limits
from awq_tvm.targets import detect


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    threads = parser.parse_args().threads
    # TVM reads this when its thread pool starts, at the first parallel loop.
    os.environ["TVM_NUM_THREADS"] = str(threads)
    found = measure_limits(detect(), threads)
    print(f"float32 FMA            {found.fma:8.1f} GFLOP/s")
    print(f"byte dot product       {found.dot:8.1f} GOP/s")
    for name, speed in found.read.items():
        print(f"read from {name:12} {speed:8.1f} GB/s")


if __name__ == "__main__":
    main()
