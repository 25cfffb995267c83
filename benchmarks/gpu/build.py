"""Make a pack for a machine with a GPU: ``python -m benchmarks.gpu.build -o PACK``. Needs nvcc, and no GPU.

It holds the kernels of every linear for every architecture, their sources, what is launched for each M, counts, a
model of Llama-3-8B's shape without weights, a copy of this program, and run.py, which measures.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from awq_tvm import ir_attrs
from awq_tvm.compile.toolchain.launches import HostPart
from awq_tvm.compile.toolchain.nvcc import Nvcc
from awq_tvm.errors import AwqTvmError, UnsupportedError
from awq_tvm.output_folder import output_folder
from awq_tvm.schedules.cuda.hopper import HopperRule
from awq_tvm.schedules.cuda.hopper_config import WarpgroupConfig
from awq_tvm.schedules.cuda.tensor_core import TensorCoreRule
from awq_tvm.schedules.rule import Match
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import Target, resolve

from .counts import Config, config_for, counts_of
from .machine_code import disassemble, read_listing
from .model_build import LLAMA_3_8B, build_model
from .pack import OURS, WITH_MMA, Case, Pack

SHAPES = ((4096, 4096), (4096, 11008), (4096, 14336), (8192, 8192), (8192, 28672))
"""(K, N)."""

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 512, 2048)
TARGETS = ("nvidia-a100", "nvidia-h100")

ROOT = Path(__file__).resolve().parents[2]
RUN = '''"""Measures this pack; see --help."""

import sys
from pathlib import Path

PACK = Path(__file__).resolve().parent
sys.path.insert(0, str(PACK / "program"))

from benchmarks.gpu.run import main

sys.exit(main(PACK))
'''


def build_cases(spec: MatmulSpec, target: Target, tokens: Sequence[int], folder: Path) -> tuple[Case, ...]:
    """Compile the kernels of one linear that ship for a target, and for Hopper those of `mma` for the M of `wgmma`.

    Raises:
        UnsupportedError: the tensor-core kernels do not serve it.
        TargetError: nvcc is missing or rejects the source.
    """
    ours = _build_case(OURS, spec, target, target.own_cuda_arch, tokens, folder)
    if not ours.rounds_weights_at:
        return (ours,)
    # Of the same target, so that the instructions alone are compared.
    arch = str(target.sm_arch)
    return (ours, _build_case(WITH_MMA, spec, target, arch, ours.rounds_weights_at, folder))


def rule_of(name: str, spec: MatmulSpec, target: Target) -> tuple[TensorCoreRule, Config]:
    """What builds a case, and how: what ships, or the kernels of `mma` beside it.

    Raises:
        UnsupportedError: the tensor-core kernels do not serve the linear.
    """
    hopper = HopperRule()
    match = hopper.applies(spec, target)
    if name == OURS and isinstance(match, Match):
        return hopper, match.config
    others = TensorCoreRule()
    match = others.applies(spec, target)
    if not isinstance(match, Match):
        raise UnsupportedError("The tensor-core kernels do not serve this linear", why=match.reason)
    return others, match.config


def _build_case(
    name: str,
    spec: MatmulSpec,
    target: Target,
    arch: str,
    tokens: Sequence[int],
    folder: Path,
) -> Case:
    rule, config = rule_of(name, spec, target)
    func = rule.build(spec, target, config).with_attr("global_symbol", "matmul")
    host, layout = HostPart(func, target), str(func.attrs[ir_attrs.LAYOUT])
    source = folder / f"{spec.in_features}x{spec.out_features}-w{spec.bits}-g{spec.group_size}-{arch}.cu"
    source.write_text(host.source, encoding="utf-8")
    image, kernels = compile_cubin(source, arch)
    launches = {m: host.launches({"m": m}) for m in tokens}
    return Case(
        name=name,
        spec=asdict(spec),
        layout=layout,
        arch=str(target.sm_arch),
        sms=config.sms,
        image=image.name,
        source=source.name,
        launches=launches,
        workspaces=host.workspaces,
        rounds_weights_at=tuple(
            m for m in tokens if isinstance(config_for(spec, config, m), WarpgroupConfig)
        ),
        kernels=kernels,
        counts={m: counts_of(spec, layout, config, m, launches[m]) for m in tokens},
    )


def build_limits(arch: str, folder: Path) -> str:
    """Compile what measures the machine itself, `wgmma` where there is one; returns the binary's name."""
    parts = ["limits.cu", *(["limits_hopper.cu"] if arch.endswith("a") else [])]
    source = folder / f"limits-{arch}.cu"
    source.write_text(
        "\n".join(Path(__file__).with_name(part).read_text(encoding="utf-8") for part in parts),
        encoding="utf-8",
    )
    return compile_cubin(source, arch)[0].name


def compile_cubin(source: Path, arch: str) -> tuple[Path, dict[str, dict[str, int]]]:
    """Compile a source beside itself; the binary, and by kernel what compiler and disassembler say of it."""
    fat, (built,), found = Nvcc.find().compile(source, (arch,), None)
    fat.unlink()
    image = source.with_suffix(".cubin")
    built.rename(image)
    listing = disassemble(image)
    machine_code = read_listing(listing) if listing else {}
    kernels = {
        kernel.name: {
            "registers": kernel.registers or 0,
            "spill_bytes": (kernel.spill_store_bytes or 0) + (kernel.spill_load_bytes or 0),
            "shared_bytes": kernel.shared_bytes or 0,
            **(machine_code[kernel.name].counts() if machine_code else {}),
        }
        for kernel in found
    }
    return image, kernels


def build_pack(
    out: Path,
    shapes: Sequence[tuple[int, int]],
    tokens: Sequence[int],
    targets: Sequence[str],
    group_size: int = 128,
    model: dict[str, Any] | None = None,
) -> Pack:
    """Write a pack.

    Args:
        out: the folder, which must not exist.
        shapes: (K, N) of the linears.
        tokens: M.
        targets: names of GPUs.
        group_size: of the linears, in 4 bits.
        model: config.json of a Llama that is compiled too.
    """
    with output_folder(out, needed_bytes=64 << 20) as folder:
        cases: list[Case] = []
        limits, models = {}, {}
        for target in map(resolve, targets):
            arch = str(target.sm_arch)
            limits[arch] = build_limits(target.own_cuda_arch, folder)
            for k, n in shapes:
                print(f"{target.name}: {k}x{n}", file=sys.stderr, flush=True)
                cases += build_cases(MatmulSpec(k, n, 4, group_size, "float16"), target, tokens, folder)
            if model is not None:
                ships = model_target(target)
                layers = model["num_hidden_layers"]
                print(f"{ships.name}: a model of {layers} layers", file=sys.stderr, flush=True)
                models[arch] = f"model-{arch}"
                build_model(folder / models[arch], ships, model, group_size)
        copy_program(folder / "program")
        (folder / "run.py").write_text(RUN, encoding="utf-8")
        made_with = {"apache-tvm": version("apache-tvm"), "nvcc": nvcc_version(), "revision": _revision()}
        pack = Pack(folder, made_with, limits, tuple(cases), models)
        pack.write()
    return Pack.read(out)


def model_target(target: Target) -> Target:
    """What one would compile a model for: Hopper by its name, others as `cuda`, which all of a kind can run."""
    return target if target.own_cuda_arch.endswith("a") else resolve("cuda")


def copy_program(into: Path) -> None:
    """Copy what runs on the other machine: our own Python, links followed."""
    unwanted = shutil.ignore_patterns("__pycache__", "*.pyc", "tuned")
    shutil.copytree(ROOT / "awq_tvm", into / "awq_tvm", symlinks=False, ignore=unwanted)
    shutil.copytree(ROOT / "benchmarks" / "gpu", into / "benchmarks" / "gpu", ignore=unwanted)


def nvcc_version() -> str:
    """Of the compiler on the path, as it says it."""
    text = subprocess.run([Nvcc.find().nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release [\d.]+, V([\d.]+)", text)
    return found[1] if found else "unknown"


def _revision() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--shapes", default=",".join(f"{k}x{n}" for k, n in SHAPES), help="KxN,KxN,...")
    parser.add_argument("--m", default=",".join(map(str, TOKENS)), help="tokens")
    parser.add_argument(
        "--targets", default=",".join(TARGETS), help="names of GPUs, for their SMs and architecture"
    )
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--no-model", action="store_true", help="linears alone")
    options = parser.parse_args(arguments)
    shapes = [(int(k), int(n)) for k, n in (shape.split("x") for shape in options.shapes.split(","))]
    tokens = [int(m) for m in options.m.split(",")]
    try:
        pack = build_pack(
            options.out,
            shapes,
            tokens,
            options.targets.split(","),
            options.group_size,
            None if options.no_model else LLAMA_3_8B,
        )
    except AwqTvmError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    size = sum(path.stat().st_size for path in pack.folder.rglob("*") if path.is_file())
    print(f"{pack.folder}: {len(pack.cases)} linears, {size / 2**20:.1f} MiB")
    print(f"Copy it to the machine with a GPU, and there: python {pack.folder.name}/run.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
