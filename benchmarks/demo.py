"""The demo: one small real model, quantized, compiled, talking and measured, by the commands a user types.

Every stage is a public verb in a process of its own. A stage whose command, program and input are those of
the last finished run is not run again: its figures come from build/demo/results.json.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prose import standard_library_prose

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path("build/demo")
QUANTIZED = FOLDER / "quantized"
BUNDLE = FOLDER / "bundle"
TEXT = FOLDER / "text.txt"
RESULTS = FOLDER / "results.json"

PROMPT = "What is the capital of France, and what is it known for?"
TEXT_CHARACTERS = 16_000
EVAL_TOKENS = 2048
MEGABYTE = 10**6


@dataclasses.dataclass(frozen=True)
class Stage:
    """One command of the demo.

    Attributes:
        name: its row in the table.
        arguments: what follows ``python -m awq_tvm``.
        reads: files and folders the result depends on.
        writes: the folder it makes, or None.
        figures: whether it prints one JSON object to keep.
        again: whether it is worth seeing again when nothing has changed.
    """

    name: str
    arguments: tuple[str, ...]
    reads: tuple[Path, ...] = ()
    writes: Path | None = None
    figures: bool = False
    again: bool = False


def stages() -> tuple[Stage, ...]:
    """The whole demo, in order."""

    def evaluate(name: str, model: str, *reads: Path) -> Stage:
        arguments = ("eval", model, "--text", str(TEXT), "--tokens", str(EVAL_TOKENS), "--json")
        return Stage(name, arguments, reads=(TEXT, *reads), figures=True)

    return (
        Stage("quantize", ("quantize", "demo", "--method", "awq", "-o", str(QUANTIZED)), writes=QUANTIZED),
        Stage("compile", ("compile", str(QUANTIZED), "-o", str(BUNDLE)), reads=(QUANTIZED,), writes=BUNDLE),
        Stage(
            "generate",
            ("generate", str(BUNDLE), "--chat", "--prompt", PROMPT, "--max-tokens", "80"),
            reads=(BUNDLE,),
            again=True,
        ),
        evaluate("eval original", "demo"),
        evaluate("eval quantized", str(QUANTIZED), QUANTIZED),
        evaluate("eval bundle", str(BUNDLE), BUNDLE),
        Stage(
            "bench",
            (
                "bench",
                str(BUNDLE),
                "--prompt-tokens",
                "128",
                "--generate-tokens",
                "64",
                "--repetitions",
                "3",
                "--json",
            ),
            reads=(BUNDLE,),
            figures=True,
        ),
    )


def content_digest(paths: Iterable[Path]) -> str:
    """sha256 over the names and contents of files, folders taken whole in sorted order."""
    digest = hashlib.sha256()
    for path in paths:
        files = sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
        for file in files:
            digest.update(f"{file}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def program_digest() -> str:
    """sha256 over our own sources and the dependencies they pin: what may change a stage's result."""
    folders = (ROOT / name for name in ("awq_tvm", "passes", "schedules", "targets"))
    sources = sorted(
        path for folder in folders for path in folder.rglob("*") if path.suffix in (".py", ".jsonl")
    )
    return content_digest([ROOT / "pyproject.toml", *sources])


def read_results() -> dict[str, dict[str, Any]]:
    """What the last runs left; nothing where the file is absent or damaged."""
    try:
        results = json.loads(RESULTS.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return results if isinstance(results, dict) else {}


def write_results(results: dict[str, dict[str, Any]]) -> None:
    """Replace results.json whole, so that an interruption leaves the old one."""
    partial = RESULTS.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=1), encoding="utf-8")
    partial.replace(RESULTS)


def run_stage(stage: Stage, program: str, results: dict[str, dict[str, Any]]) -> None:
    """Run one stage, or take its result from the last run; record the seconds and the figures."""
    key = hashlib.sha256(f"{program} {stage.arguments} {content_digest(stage.reads)}".encode()).hexdigest()
    found = results.get(stage.name, {})
    finished = found.get("key") == key and (stage.writes is None or stage.writes.is_dir())
    shown = shlex.join(("python", "-m", "awq_tvm", *stage.arguments))
    if finished and not stage.again:
        print(f"\n$ {shown}\n  unchanged since the last run ({found['seconds']:.1f} s then)", flush=True)
        return
    resume = clear_for(stage, found.get("started") == key)
    print(f"\n$ {shown}{' --resume' if resume else ''}", flush=True)
    results[stage.name] = {"started": key}
    write_results(results)
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "awq_tvm", *stage.arguments, *(("--resume",) if resume else ())],
        stdout=subprocess.PIPE if stage.figures else None,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - begin
    if done.returncode:
        sys.exit(done.returncode)  # the verb has said what was wrong
    figures = json.loads(done.stdout) if stage.figures else None
    results[stage.name] = {"key": key, "seconds": seconds, "figures": figures, "resumed": resume}
    write_results(results)


def clear_for(stage: Stage, same: bool) -> bool:
    """Make room for what a stage writes; True if it can go on from where an interrupted run of it stopped.

    Args:
        stage: about to run.
        same: whether the run that was interrupted had the same command, program and input.
    """
    if stage.writes is None:
        return False
    if stage.writes.is_dir():
        shutil.rmtree(stage.writes)  # made by an older program or from another input
    journal = stage.writes.with_name(f"{stage.writes.name}.journal")
    if journal.is_dir() and not same:
        shutil.rmtree(journal)
    return journal.is_dir()


def folder_bytes(folder: Path) -> int:
    """Bytes of all files of a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def original_bytes() -> tuple[int, int]:
    """Bytes of the demo model: as the file it comes in, and with its weights in float16."""
    from awq_tvm.checkpoint import open_checkpoint

    checkpoint = open_checkpoint("demo")
    float16 = 0
    for info in checkpoint.tensors.values():
        elements = 1
        for extent in info.shape:
            elements *= extent
        float16 += 2 * elements
    return checkpoint.path.stat().st_size, float16


def speed(rows: list[dict[str, Any]], test: str) -> dict[str, Any]:
    """The fastest row of a test, over the numbers of threads tried."""
    return max((row for row in rows if row["test"] == test), key=lambda row: float(row["tokens_per_second"]))


def table(results: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """The figures at the end, as pairs of words and value."""
    as_file, as_float16 = original_bytes()
    bench = results["bench"]["figures"]["rows"]
    prompt, decode = speed(bench, "pp128"), speed(bench, "tg64")
    rows = [
        ("size, weights in float16", f"{as_float16 / MEGABYTE:.1f} MB"),
        ("size, the GGUF file it came in", f"{as_file / MEGABYTE:.1f} MB"),
        ("size, quantized checkpoint", f"{folder_bytes(QUANTIZED) / MEGABYTE:.1f} MB"),
        ("size, bundle with the compiled library", f"{folder_bytes(BUNDLE) / MEGABYTE:.1f} MB"),
    ]
    for name, words in (
        ("eval original", "perplexity, original"),
        ("eval quantized", "perplexity, quantized, in PyTorch"),
        ("eval bundle", "perplexity, quantized, compiled"),
    ):
        figures = results[name]["figures"]
        rows.append((words, f"{figures['perplexity']:.3f} ({figures['tokens']} tokens)"))
    rows += [
        ("prompt of 128 tokens", f"{prompt['tokens_per_second']:.1f} tokens/s, {prompt['threads']} threads"),
        ("generating 64 tokens", f"{decode['tokens_per_second']:.1f} tokens/s, {decode['threads']} threads"),
    ]
    for stage in stages():
        result = results[stage.name]
        rest = " since it was resumed" if result["resumed"] else ""
        rows.append((f"seconds, {stage.name}", f"{result['seconds']:.1f}{rest}"))
    return rows


def main() -> None:
    """Run the demo from the root of the repository and print its table."""
    os.chdir(ROOT)  # the commands below name files relative to it, as a user would
    FOLDER.mkdir(parents=True, exist_ok=True)
    TEXT.write_text(standard_library_prose(TEXT_CHARACTERS), encoding="utf-8")
    begin = time.perf_counter()
    program, results = program_digest(), read_results()
    for stage in stages():
        run_stage(stage, program, results)
    rows = table(results)
    width = max(len(words) for words, _ in rows)
    print("\n" + "\n".join(f"{words:<{width}}  {value}" for words, value in rows))
    print(f"\nThe demo took {time.perf_counter() - begin:.1f} s. Try it yourself:")
    print(f"  {Path(sys.prefix).name}/bin/awq-tvm chat {BUNDLE}")


if __name__ == "__main__":
    main()
