"""Building for NVIDIA GPUs without a GPU: code for every architecture by nvcc, inside one library.

TVM generates CUDA source in a child process that believes a driver is installed (see ``driver_stub``); our
own compile callback there runs nvcc and keeps its binaries and reports.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from awq_tvm.compile.toolchain.driver_stub import write_stubs
from awq_tvm.compile.toolchain.linker import MESSAGE_LINES, linker_for
from awq_tvm.compile.toolchain.nvcc import Nvcc
from awq_tvm.compile.toolchain.result import BuiltLibrary, Kernel
from awq_tvm.errors import TargetError

if TYPE_CHECKING:
    from awq_tvm.targets import Target

CHILD = "awq_tvm.compile.toolchain.cuda_child"
MODULE_NAME, JOB_NAME, RESULT_NAME = "module.json", "job.json", "result.json"
TVM_CUDA_LIBRARY = "libtvm_runtime_cuda.so"


@dataclasses.dataclass(frozen=True)
class CudaJob:
    """What the child process is asked to build.

    Attributes:
        target: what ``tvm.target.Target`` takes, the host inside.
        archs: "sm_80" and the like, for binary code.
        ptx_arch: "compute_90" and the like, or None.
        host_triple: LLVM triple of the host part.
        out_dir: where the library, sources, binaries and reports go.
        fast_math: adds ``--use_fast_math``.
    """

    target: dict[str, Any]
    archs: tuple[str, ...]
    ptx_arch: str | None
    host_triple: str
    out_dir: str
    fast_math: bool

    @classmethod
    def from_json(cls, text: str) -> CudaJob:
        """Read what ``json.dumps(dataclasses.asdict(job))`` wrote."""
        fields = json.loads(text)
        fields["archs"] = tuple(fields["archs"])
        return cls(**fields)


def build_cuda(
    mod: Any, target: Target, out_dir: Path, *, pipeline: Any = None, fast_math: bool = False
) -> BuiltLibrary:
    """See ``build_library``.

    Beside the library it leaves ``kernels.cu``, ``kernels.<arch>.cubin`` for each architecture, the PTX, the
    fat binary and ``kernels.json``, the resource usage of every kernel.
    """
    import tvm

    from awq_tvm.compile.toolchain.lower import lower_relax

    # What is missing is found before the minutes of compiling.
    Nvcc.find()
    linker_for(_host_triple(target))
    library = tvm_cuda_library()
    job = CudaJob(
        target.tvm_target_with_host,
        target.cuda_archs,
        target.ptx_arch,
        _host_triple(target),
        str(out_dir.resolve()),
        fast_math,
    )
    lowered = lower_relax(mod, job.target, pipeline)
    with tempfile.TemporaryDirectory(prefix="awq-tvm-cuda-") as name:
        folder = Path(name)
        stubs = folder / "stubs"
        stubs.mkdir()
        write_stubs(library, stubs)
        (folder / MODULE_NAME).write_text(tvm.ir.save_json(lowered), encoding="utf-8")
        (folder / JOB_NAME).write_text(json.dumps(dataclasses.asdict(job)), encoding="utf-8")
        return _read_result(_run_child(folder, stubs), out_dir)


def tvm_cuda_library() -> Path:
    """TVM's own CUDA library.

    Raises:
        TargetError: this TVM was built without it.
    """
    import tvm

    path = Path(tvm.__file__).parent / "lib" / TVM_CUDA_LIBRARY
    if not path.is_file():
        raise TargetError(
            "This TVM cannot build for CUDA",
            where=str(path.parent),
            why=f"it comes without {TVM_CUDA_LIBRARY}",
            fix="install the wheel for Linux: pip install apache-tvm",
        )
    return path


def _host_triple(target: Target) -> str:
    return str((target.host or {}).get("mtriple", ""))


def _run_child(folder: Path, stubs: Path) -> dict[str, Any]:
    """Run the child on a prepared folder and return its result, or raise the error it reports."""
    # The child needs every import path this process has, wherever it was started from.
    paths = [path for path in sys.path if path]
    paths.append(str(Path(__file__).resolve().parents[3]))
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join([str(stubs), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]),
        "PYTHONPATH": os.pathsep.join(paths),
        # This process's directory must not be searched for modules.
        "PYTHONSAFEPATH": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", CHILD, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    result_path = folder / RESULT_NAME
    result = json.loads(result_path.read_text(encoding="utf-8")) if result_path.is_file() else {}
    if "error" in result:
        raise TargetError(
            result["error"]["what"], **{key: result["error"][key] for key in ("where", "why", "fix")}
        )
    if done.returncode or not result:
        lines = (done.stdout + done.stderr).strip().splitlines()
        raise TargetError(
            "TVM could not generate code for this CUDA target",
            where="the build process",
            why="\n".join(lines[-MESSAGE_LINES:]) or f"it ended with code {done.returncode}",
        )
    return dict(result)


def _read_result(result: dict[str, Any], out_dir: Path) -> BuiltLibrary:
    return BuiltLibrary(
        out_dir / result["library"],
        tuple(Kernel(**kernel) for kernel in result["kernels"]),
        tuple(result["notes"]),
        tuple(out_dir / name for name in result["files"]),
    )
