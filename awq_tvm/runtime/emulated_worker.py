"""Runs one bundle in the emulator; ``emulated.run_emulated`` starts it as a process of its own.

A request in JSON on standard input, the run or the error in JSON on the last line of standard output. A kernel that
ends the process is named on standard error, see ``emulate/native/device.cc``.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from awq_tvm.errors import AwqTvmError
from awq_tvm.runtime.emulated import run_emulated_here


def main() -> None:
    """Answer the one request."""
    request = json.loads(sys.stdin.read())
    try:
        run = run_emulated_here(Path(request["bundle"]), request["prompt"], request["max_tokens"])
    except AwqTvmError as error:
        parts = {key: getattr(error, key) for key in ("what", "where", "why", "fix")}
        print(json.dumps({"error": {"kind": type(error).__name__, **parts}}))
        return
    print(json.dumps({"run": dataclasses.asdict(run)}))


if __name__ == "__main__":
    main()
