"""Compiling CUDA source with nvcc, once per architecture, and reading what it reports."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from awq_tvm.compile.toolchain.linker import MESSAGE_LINES, run_tool
from awq_tvm.compile.toolchain.result import Kernel
from awq_tvm.disk import refuse_full_disk
from awq_tvm.errors import TargetError

FLAGS = (
    "-O3", "-std=c++17", "-Xptxas", "-v", "-diag-suppress", "177",  # TVM declares values it does not use
    "-U__CUDA_NO_HALF_OPERATORS__", "-U__CUDA_NO_HALF_CONVERSIONS__", "-U__CUDA_NO_BFLOAT16_OPERATORS__",
    "-U__CUDA_NO_BFLOAT16_CONVERSIONS__", "-U__CUDA_NO_BFLOAT162_OPERATORS__",
    "-U__CUDA_NO_BFLOAT162_CONVERSIONS__", "--expt-relaxed-constexpr",
)  # fmt: skip

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")
_ERROR_LINE = re.compile(r"\((\d+)\): (?:catastrophic |fatal )?error")
_ERROR_KERNEL = re.compile(r"(?:[Ee]ntry function|[Ff]unction|kernel) '(\w+)'")
_DEFINITION = re.compile(r'^extern "C" __global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\(.*\{\s*$')


@dataclass(frozen=True)
class Nvcc:
    """The CUDA compiler of this machine.

    Attributes:
        nvcc: path of nvcc.
        fatbinary: path of the tool that packs several architectures into one image.
    """

    nvcc: str
    fatbinary: str

    @classmethod
    def find(cls) -> Nvcc:
        """Look on the path.

        Raises:
            TargetError: nvcc or fatbinary is missing.
        """
        nvcc = shutil.which("nvcc")
        fatbinary = shutil.which("fatbinary")
        if nvcc and not fatbinary:
            beside = Path(nvcc).resolve().parent / "fatbinary"
            fatbinary = str(beside) if beside.is_file() else None
        missing = [name for name, path in (("nvcc", nvcc), ("fatbinary", fatbinary)) if not path]
        if nvcc is None or fatbinary is None:
            raise TargetError(
                "CUDA kernels cannot be compiled here",
                where="target kind cuda",
                why=f"{' and '.join(missing)} of the CUDA toolkit not found on the path",
                fix="install the CUDA toolkit (12 or newer; no GPU and no driver are needed) and put its bin "
                "folder on PATH; or `compile --source-only` here, and `finish` the bundle where the toolkit is",
            )
        return cls(nvcc, fatbinary)

    def compile(
        self, source: Path, archs: tuple[str, ...], ptx_arch: str | None, *, fast_math: bool = False
    ) -> tuple[Path, tuple[Path, ...], tuple[Kernel, ...]]:
        """Compile one source for every architecture and pack the results.

        Args:
            source: a ``.cu`` file; outputs go beside it under its name.
            archs: "sm_80" and the like, for binary code.
            ptx_arch: "compute_90" and the like, for text that newer drivers compile; or None.
            fast_math: adds ``--use_fast_math``.

        Returns:
            The fat binary, the file of every architecture, and a report of each kernel on each of ``archs``.

        Raises:
            TargetError: nvcc rejects the source; names the kernel and the architecture.
            ResourceError: the disk is full.
        """
        wanted = [*archs, *((ptx_arch,) if ptx_arch else ())]
        with ThreadPoolExecutor(max_workers=max(1, len(os.sched_getaffinity(0)))) as pool:
            jobs = [pool.submit(self._compile_one, source, arch, fast_math) for arch in wanted]
            done = [job.result() for job in jobs]
        fat = source.with_suffix(".fatbin")
        images = []
        for arch, (path, _) in zip(wanted, done, strict=True):
            form = "ptx" if arch == ptx_arch else "elf"
            images.append(f"--image3=kind={form},sm={arch.split('_')[1]},file={path}")
        run_tool([self.fatbinary, f"--create={fat}", "-64", *images], "The CUDA binaries could not be packed")
        return fat, tuple(path for path, _ in done), tuple(kernel for _, found in done for kernel in found)

    def _compile_one(self, source: Path, arch: str, fast_math: bool) -> tuple[Path, tuple[Kernel, ...]]:
        form = "ptx" if arch.startswith("compute_") else "cubin"
        output = source.with_suffix(f".{arch}.{form}")
        kernels = read_report(self._run(source, arch, output, fast_math))
        text = source.read_text(encoding="utf-8")
        changed = source.with_suffix(f".{arch}.cu")
        while spilling := [one.name for one in kernels if one.spill_store_bytes or one.spill_load_bytes]:
            # To make room for another block on an SM. These may have more of it for themselves.
            before, text = text, with_more_registers(text, spilling)
            if text == before:
                break
            changed.write_text(text, encoding="utf-8")
            kernels = read_report(self._run(changed, arch, output, fast_math))
            changed.unlink()
        return output, kernels

    def _run(self, source: Path, arch: str, output: Path, fast_math: bool) -> str:
        """Compile, and return what the compiler reports."""
        form = output.suffix.removeprefix(".")
        command = [self.nvcc, f"-{form}", f"-arch={arch}", *FLAGS, "-o", str(output), str(source)]
        if fast_math:
            command.insert(2, "--use_fast_math")
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        report = done.stdout + done.stderr
        if done.returncode:
            refuse_full_disk(report, f"nvcc, compiling {source} for {arch}")
            raise _rejected(source, arch, report)
        return report


def read_report(text: str) -> tuple[Kernel, ...]:
    """Read the resource usage that ``-Xptxas -v`` prints for one architecture."""
    kernels = []
    name = arch = ""
    spills: tuple[int | None, int | None] = (None, None)
    for line in text.splitlines():
        if entry := _ENTRY.search(line):
            name, arch = entry.group(1), entry.group(2)
            spills = (None, None)
        elif found := _SPILLS.search(line):
            spills = (int(found.group(1)), int(found.group(2)))
        elif name and (used := _USED.search(line)):
            shared = _SHARED.search(line)
            kernels.append(
                Kernel(name, arch, int(used.group(1)), *spills, int(shared.group(1)) if shared else 0)
            )
            name = ""
    return tuple(kernels)


def kernel_names(source: str) -> list[str]:
    """The kernels that a CUDA source defines, in order."""
    return [found.group(1) for text in source.splitlines() if (found := _DEFINITION.match(text))]


def with_more_registers(source: str, kernels: Sequence[str]) -> str:
    """A CUDA source in which an SM need have room for fewer blocks of some kernels: as nvcc likes, and then one.

    It is the same where they have all the registers already that a thread can have.
    """
    names = "|".join(map(re.escape, kernels))

    def fewer_blocks(bounds: re.Match[str]) -> str:
        threads, blocks = bounds.groups()
        one = ", 1" if blocks in (None, "1") else ""
        return f"__launch_bounds__({threads}{one}) "

    return re.sub(rf"__launch_bounds__\((\d+)(?:, (\d+))?\) (?=(?:{names})\()", fewer_blocks, source)


def kernel_at(source: str, line: int) -> str | None:
    """The kernel whose body line ``line`` (from 1) of a CUDA source stands in, if any."""
    before = kernel_names("\n".join(source.splitlines()[:line]))
    return before[-1] if before else None


def _rejected(source: Path, arch: str, report: str) -> TargetError:
    """The error for a source that nvcc did not take."""
    kernel = None
    if at := _ERROR_LINE.search(report):
        kernel = kernel_at(source.read_text(encoding="utf-8"), int(at.group(1)))
    elif named := _ERROR_KERNEL.search(report):
        kernel = named.group(1)
    lines = report.strip().splitlines()
    first = next((i for i, text in enumerate(lines) if "error" in text), 0)
    return TargetError(
        "nvcc rejects a generated kernel",
        where=f"kernel {kernel or 'unknown'} for {arch}, in {source.name}",
        why="\n".join(lines[first : first + MESSAGE_LINES]) or "it said nothing",
        fix="leave this architecture out of the target, or report the kernel",
    )
