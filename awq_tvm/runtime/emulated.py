"""A bundle for a GPU, run without one: its own library and weights, its kernels in the emulator.

A process that does it has a stand-in for the GPU in TVM's runtime from then on, and a kernel can end it: so
``run_emulated`` starts one of its own, ``emulated_worker``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from awq_tvm import errors
from awq_tvm.bundle import machine
from awq_tvm.bundle.reader import Bundle, open_bundle
from awq_tvm.bundle.verify import rebuild_line
from awq_tvm.emulate import build_device
from awq_tvm.emulate.build import Dialect
from awq_tvm.errors import BundleError, TargetError, UsageError
from awq_tvm.process_group import run_group
from awq_tvm.prompt.tokenizer import load_tokenizer
from awq_tvm.runtime.engine import Engine
from awq_tvm.runtime.executor import Executor
from awq_tvm.runtime.sampler import SamplingOptions
from awq_tvm.runtime.tvm_library import find_runtime_library, load_runtime_library

_SOURCES: dict[str, tuple[Dialect, str]] = {
    "cuda": ("cuda", "kernels.cu"),
    "metal": ("metal", "kernels.metal"),
}
_SAYS_EMULATOR = "emulator: "


@dataclass(frozen=True)
class EmulatedRun:
    """What came of it.

    Attributes:
        target: of the bundle.
        prompt_tokens: how many were read.
        token_ids: what was generated, greedily.
        text: the same as text.
        launches: how often each kernel was launched.
        seconds: of running, without compiling.
    """

    target: str
    prompt_tokens: int
    token_ids: tuple[int, ...]
    text: str
    launches: dict[str, int]
    seconds: float


def run_emulated(path: Path, prompt: str, max_tokens: int) -> EmulatedRun:
    """``run_emulated_here`` in a process of its own; a kernel that ends it is a ``BundleError`` too."""
    root = str(Path(__file__).parents[2])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
    }
    done = run_group(
        [sys.executable, "-m", "awq_tvm.runtime.emulated_worker"],
        env=environment,
        text=json.dumps({"bundle": str(path), "prompt": prompt, "max_tokens": max_tokens}),
    )
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise _ended(path, done.returncode, done.stderr) from None
    if "error" in answer:
        found = answer["error"]
        kind: type[errors.AwqTvmError] = getattr(errors, found.pop("kind"))
        raise kind(found.pop("what"), **found)
    run = answer["run"]
    return EmulatedRun(**{**run, "token_ids": tuple(run["token_ids"])})


def _ended(path: Path, status: int, said: str) -> BundleError:
    """The error for a worker that gave no answer."""
    how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    kernel = [
        line.removeprefix(_SAYS_EMULATOR) for line in said.splitlines() if line.startswith(_SAYS_EMULATOR)
    ]
    return BundleError(
        "The process that emulates the bundle's kernels ended early.",
        where=str(path),
        why=f"{how}: {kernel[-1] if kernel else said.strip()[-500:] or 'no message'}",
        fix="read the kernel's source in the bundle; where no kernel is named, too little memory is the usual cause",
    )


def run_emulated_here(path: Path, prompt: str, max_tokens: int) -> EmulatedRun:
    """Verify a bundle for a GPU and generate a few tokens with it in the emulator.

    Args:
        path: the bundle.
        prompt: a text.
        max_tokens: how many tokens at most.

    Raises:
        UsageError: the bundle is for a CPU.
        BundleError: it is damaged, or a kernel does what real hardware punishes.
        TargetError: its host part is for another machine, or there is no C++ compiler.
        UnsupportedError: a kernel holds what the emulator does not know.
    """
    bundle = open_bundle(path, target=False)
    with emulated_executor(bundle) as executor:
        engine = Engine(
            executor,
            load_tokenizer(bundle.side_files()),
            eos_token_ids=bundle.manifest.model.eos_token_ids,
            vocab_size=bundle.manifest.model.vocab_size,
        )
        tokens = engine.encode(prompt)
        start = time.perf_counter()
        with _findings(path):
            answer = engine.generate_tokens(tokens, SamplingOptions(temperature=0, max_tokens=max_tokens))
        seconds = time.perf_counter() - start
    return EmulatedRun(
        bundle.manifest.target.name, len(tokens), answer.token_ids, answer.text, launches(), seconds
    )


def launches() -> dict[str, int]:
    """How often each kernel was launched in this process, which has had an ``emulated_executor``."""
    counted = load_runtime_library("cpu").get_global_func("awq_emulate.launches")()
    return {str(name): int(count) for name, count in counted.items()}


@contextmanager
def emulated_executor(bundle: Bundle, *, graphs: bool = True) -> Iterator[Executor]:
    """The executor of a verified bundle for a GPU, on the stand-in device; errors as ``run_emulated``.

    Args:
        bundle: verified.
        graphs: as for the executor; what is captured is recorded, and launched again as it was.
    """
    target = bundle.manifest.target
    if target.kind not in _SOURCES:
        raise UsageError(
            "Only bundles for a GPU run in the emulator.",
            where=str(bundle.path),
            why=f"this one is for {target.name}, a CPU",
            fix="leave out --emulate",
        )
    host = machine.architecture(target.triple), machine.operating_system(target.triple)
    here = machine.architecture(), machine.operating_system()
    if host != here:
        rebuild = rebuild_line(bundle.path, bundle.manifest, f"{target.name} --host-here")
        raise TargetError(
            "The host part of the bundle is for another machine.",
            where=f"{bundle.path}, target {target.name}",
            why=f"it needs {' '.join(host)}; found {' '.join(here)}",
            fix=f"`{rebuild}` makes one that runs here",
        )
    dialect, file = _SOURCES[target.kind]
    source = bundle.path / file
    if source.name not in bundle.manifest.files:
        raise BundleError(
            "The bundle does not hold the source of its kernels.",
            where=str(bundle.path),
            why=f"there is no {source.name}",
            fix="build the bundle again with `python -m awq_tvm compile`",
        )
    # Before others import tvm_ffi, which imports PyTorch unless it is loaded so.
    load_runtime_library("cpu")
    with tempfile.TemporaryDirectory(prefix="awq_tvm-emulate-") as folder:
        library = build_device(
            source.read_text(encoding="utf-8"), dialect, Path(folder), find_runtime_library()
        )
        yield Executor(bundle.library, bundle.weights, bundle.manifest, device_library=library, graphs=graphs)


@contextmanager
def _findings(path: Path) -> Iterator[None]:
    """Turn what a launch reports through TVM into our own error."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if _SAYS_EMULATOR not in text:
            raise
        raise BundleError(
            "A kernel of the bundle does what real hardware punishes.",
            where=str(path),
            why=text.partition(_SAYS_EMULATOR)[2].strip(),
            fix="do not run it on a GPU; report it, with the kernel's source in the bundle",
        ) from None
