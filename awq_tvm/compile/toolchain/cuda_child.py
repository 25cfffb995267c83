"""The process that generates CUDA code: ``python -m awq_tvm.compile.toolchain.cuda_child FOLDER OUT [OPTION]``.

It is started by ``cuda.build_cuda`` with stand-ins for the CUDA libraries on its path. FOLDER holds the
module and the job; the result goes there too, as JSON. The library, sources, binaries and reports go into OUT.
OPTION is ``--source-only``, or missing.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from awq_tvm.compile.toolchain.cuda import JOB_NAME, MODULE_NAME, RESULT_NAME, CudaJob
from awq_tvm.compile.toolchain.linkers import linker_for
from awq_tvm.compile.toolchain.nvcc import Nvcc, kernel_names
from awq_tvm.compile.toolchain.result import Kernel
from awq_tvm.errors import AwqTvmError, TargetError


class CompileCallback:
    """What TVM calls with the CUDA source of a module: compiles it with nvcc and keeps everything.

    Args:
        job: architectures.
        out: folder for what is kept.
        nvcc: the compiler; None to keep the source alone.
    """

    def __init__(self, job: CudaJob, out: Path, nvcc: Nvcc | None) -> None:
        self.job, self.out, self.nvcc = job, out, nvcc
        self.kernels: list[Kernel] = []
        self.files: list[Path] = []
        self.error: AwqTvmError | None = None
        self.calls = 0

    def __call__(self, code: str) -> bytes:
        """Compile ``code`` and return the fat binary, which TVM stores in the library; without nvcc nothing runs."""
        # One module a target: a second appears where a function brought a target of its own.
        name = "kernels.cu" if self.calls == 0 else f"kernels_{self.calls}.cu"
        self.calls += 1
        source = self.out / name
        source.write_text(code, encoding="utf-8")
        self.files.append(source)
        if self.nvcc is None:
            self.kernels += map(Kernel, kernel_names(code))
            return b"not compiled"
        try:
            fat, parts, kernels = self.nvcc.compile(
                source, self.job.archs, self.job.ptx_arch, fast_math=self.job.fast_math
            )
        except AwqTvmError as error:
            # TVM turns exceptions that pass through it into its own.
            self.error = error
            raise
        self.files += [*parts, fat]
        self.kernels += kernels
        return fat.read_bytes()


def build(job: CudaJob, module_json: str, out: Path, source_only: bool) -> dict[str, Any]:
    """Generate, compile and link; returns what ``cuda.build_cuda`` reads.

    Args:
        job: what to build for.
        module_json: what to build.
        out: where everything goes.
        source_only: leave nvcc out.

    Raises:
        TargetError: nvcc rejects a kernel, or TVM did not call it.
    """
    import tvm
    import tvm_ffi

    from awq_tvm.compile.toolchain.lower import build_executable, device_modules

    callback = CompileCallback(job, out, None if source_only else Nvcc.find())
    tvm_ffi.register_global_func("tvm_callback_cuda_compile", callback.__call__, override=True)
    try:
        executable = build_executable(tvm.ir.load_json(module_json), job.target)
    except Exception as error:
        if callback.error:
            raise callback.error from error
        raise
    if callback.calls != len(list(device_modules(executable.mod, "cuda"))):
        raise TargetError(
            "CUDA kernels were generated but not compiled",
            where="the build process",
            why="TVM's CUDA library did not load beside the stand-in driver",
            fix="check that apache-tvm and apache-tvm-ffi are the pinned versions: python -m awq_tvm doctor",
        )
    linker = linker_for(job.host_triple)
    library = out / f"model{linker.extension}"
    executable.export_library(str(library), fcompile=linker)
    kernels = [dataclasses.asdict(kernel) for kernel in callback.kernels]
    if not source_only:
        report = out / "kernels.json"
        report.write_text(json.dumps(kernels, indent=1), encoding="utf-8")
        callback.files.append(report)
    names = {kernel.name for kernel in callback.kernels}
    archs = ", ".join([*job.archs, *((f"{job.ptx_arch} PTX",) if job.ptx_arch else ())])
    did = f"{len(names)} kernels are left as source: nvcc is to compile them" if source_only else ""
    return {
        "library": library.name,
        "kernels": kernels,
        "notes": [f"{did or f'nvcc compiled {len(names)} kernels'} for {archs}", linker.note],
        "files": [path.name for path in callback.files],
    }


def main(folder: Path, out: Path, source_only: bool) -> int:
    """Do the job in ``folder``; 0 when the library was built."""
    # The stand-ins are for this process alone, not for the compilers it starts.
    os.environ.pop("LD_LIBRARY_PATH", None)
    job = CudaJob.from_json((folder / JOB_NAME).read_text(encoding="utf-8"))
    result: dict[str, Any]
    try:
        result = build(job, (folder / MODULE_NAME).read_text(encoding="utf-8"), out, source_only)
    except AwqTvmError as error:
        fields = {key: getattr(error, key) for key in ("what", "where", "why", "fix")}
        result = {"error": {"kind": type(error).__name__, **fields}}
    (folder / RESULT_NAME).write_text(json.dumps(result), encoding="utf-8")
    return 1 if "error" in result else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), "--source-only" in sys.argv[3:]))
