"""Building for NVIDIA GPUs without a GPU: code for every architecture by nvcc, inside one library.

TVM generates CUDA source in a child process that believes a driver is installed (see ``driver_stub``); our
own compile callback there runs nvcc and keeps its binaries and reports. A source-only build leaves nvcc out and keeps
what the child was given, so that a machine with nvcc can do the same again.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from awq_tvm import errors
from awq_tvm.compile.toolchain.driver_stub import write_stubs
from awq_tvm.compile.toolchain.linker import MESSAGE_LINES
from awq_tvm.compile.toolchain.linkers import linker_for
from awq_tvm.compile.toolchain.nvcc import Nvcc
from awq_tvm.compile.toolchain.result import BuiltLibrary, Kernel
from awq_tvm.disk import refuse_full_disk, require_room_to_compile
from awq_tvm.errors import TargetError
from awq_tvm.process_group import run_group

if TYPE_CHECKING:
    from awq_tvm.targets import Target

CHILD = "awq_tvm.compile.toolchain.cuda_child"
MODULE_NAME, JOB_NAME, RESULT_NAME = "module.json", "job.json", "result.json"
UNFINISHED_JOB_NAME, UNFINISHED_MODULE_NAME = "unfinished_job.json", "unfinished_module.json.gz"
"""What a source-only build leaves beside its library, for ``finish_cuda``."""

TVM_CUDA_LIBRARY = "libtvm_runtime_cuda.so"


@dataclasses.dataclass(frozen=True)
class CudaJob:
    """What the child process is asked to build, wherever it runs.

    Attributes:
        target: what ``tvm.target.Target`` takes, the host inside.
        archs: "sm_80" and the like, for binary code.
        ptx_arch: "compute_90" and the like, or None.
        host_triple: LLVM triple of the host part.
        fast_math: adds ``--use_fast_math``.
    """

    target: dict[str, Any]
    archs: tuple[str, ...]
    ptx_arch: str | None
    host_triple: str
    fast_math: bool

    def to_json(self) -> str:
        """For ``from_json``."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> CudaJob:
        """Read what ``to_json`` wrote."""
        fields = json.loads(text)
        fields["archs"] = tuple(fields["archs"])
        return cls(**fields)


def build_cuda(
    mod: Any,
    target: Target,
    out_dir: Path,
    *,
    pipeline: Any = None,
    fast_math: bool = False,
    source_only: bool = False,
) -> BuiltLibrary:
    """See ``build_library``.

    Beside the library it leaves ``kernels.cu``, ``kernels.<arch>.cubin`` for each architecture, the PTX, the
    fat binary and ``kernels.json``, the resource usage of every kernel. With ``source_only`` there are no binaries
    and no report; the library has a host part and launches nothing, and what ``finish_cuda`` takes lies beside it.
    """
    import tvm

    from awq_tvm.compile.toolchain.lower import lower_relax

    host_triple = str((target.host or {}).get("mtriple", ""))
    job = CudaJob(target.tvm_target_with_host, target.cuda_archs, target.ptx_arch, host_triple, fast_math)
    # What is missing is found before the minutes of compiling.
    _require_tools(job, source_only)
    module = tvm.ir.save_json(lower_relax(mod, job.target, pipeline))
    built = _run_job(job, module, out_dir, source_only)
    if not source_only:
        return built
    left = {
        UNFINISHED_JOB_NAME: job.to_json().encode(),
        # Without the time, so that the same model gives the same bytes.
        UNFINISHED_MODULE_NAME: gzip.compress(module.encode(), mtime=0),
    }
    for name, content in left.items():
        (out_dir / name).write_bytes(content)
    return dataclasses.replace(built, files=(*built.files, *(out_dir / name for name in left)))


def finish_cuda(job: CudaJob, module: str, out_dir: Path) -> BuiltLibrary:
    """Do with nvcc what a source-only build did without it, with the same result as building with nvcc at once.

    Args:
        job: that the source-only build left.
        module: likewise, as JSON.
        out_dir: as of ``build_library``.

    Raises:
        TargetError: nvcc is missing or rejects a kernel, or TVM rejects the module.
    """
    _require_tools(job, source_only=False)
    return _run_job(job, module, out_dir, source_only=False)


def _require_tools(job: CudaJob, source_only: bool) -> None:
    require_room_to_compile()
    if not source_only:
        Nvcc.find()
    linker_for(job.host_triple)
    tvm_cuda_library()


def _run_job(job: CudaJob, module: str, out_dir: Path, source_only: bool) -> BuiltLibrary:
    with tempfile.TemporaryDirectory(prefix="awq-tvm-cuda-") as name:
        folder = Path(name)
        stubs = folder / "stubs"
        stubs.mkdir()
        write_stubs(tvm_cuda_library(), stubs)
        (folder / MODULE_NAME).write_text(module, encoding="utf-8")
        (folder / JOB_NAME).write_text(job.to_json(), encoding="utf-8")
        options = ("--source-only",) if source_only else ()
        return _read_result(_run_child(folder, stubs, [str(out_dir.resolve()), *options]), out_dir)


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


def _run_child(folder: Path, stubs: Path, arguments: list[str]) -> dict[str, Any]:
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
    done = run_group([sys.executable, "-m", CHILD, str(folder), *arguments], env=environment)
    result_path = folder / RESULT_NAME
    result = json.loads(result_path.read_text(encoding="utf-8")) if result_path.is_file() else {}
    if "error" in result:
        found = result["error"]
        kind: type[errors.AwqTvmError] = getattr(errors, found.pop("kind"))
        raise kind(found.pop("what"), **found)
    if done.returncode or not result:
        refuse_full_disk(done.stdout + done.stderr, str(folder))
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
