"""Our recipes and other quantizers side by side: the same calibration tokens, linears, grid and scoring for all.

    python -m benchmarks.quality_peers --text FILE --calibration FILE --bits 4 --group-size 64
        --peers autoround,llm-compressor-awq,hqq,gptq --tokens 16384 --context 1024 [--work DIR]

Every quantizer gets the model in float32 and the token ids that our calibration cuts, works on the linears of the
blocks with asymmetric integer zero points, and writes dequantized weights, which are scored in the same network in
float32 by the protocol of `awq_tvm.scoring`. Each runs in a process of its own, one after the other, and one that
fails is a row that says so. CPU seconds and peak memory are of that process as a whole, imports and reading the
model included.

The peers are installed by pip into environments under build/peers the first time, one or two gigabytes each. With
--work, prepared files and weights stay there and runs with the same settings are not repeated. Imports nothing heavy
itself: the peak memory of a child would start from its parent's. See docs/quality-peers.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parent
ROOT = BENCHMARKS.parent
# What pip would else take the newest of.
NEWEST = ("torch==2.13.0", "transformers==5.24.0")
REFERENCE = "paper"
COLUMNS = ("tool", "perplexity", "kl_divergence", "top1_agreement", "kl_ratio", "cpu_seconds", "peak_mib")
FORMATS = {"perplexity": ".3f", "kl_divergence": ".4f", "top1_agreement": ".3f", "kl_ratio": ".3f"}


@dataclass(frozen=True)
class Peer:
    """A quantizer that is not ours.

    Attributes:
        module: below `benchmarks/peers`.
        requirements: what pip installs.
        arguments: of the module, before those of every quantizer.
        options: names of options of this command that it gets too.
    """

    module: str
    requirements: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


_LLM_COMPRESSOR = ("torch==2.13.0", "transformers==5.17.0", "llmcompressor==0.14.0.1")
_HQQ = (*NEWEST, "hqq==0.2.8.post1")
PEERS = {
    "autoround": Peer(
        "autoround", (*NEWEST, "auto-round==0.16.1"), options=("autoround_steps", "autoround_batch")
    ),
    "llm-compressor-awq": Peer("llm_compressor", _LLM_COMPRESSOR, ("--algorithm", "awq")),
    "hqq": Peer("hqq", _HQQ, ("--hqq-zeros=integer",)),
    "hqq-float": Peer("hqq", _HQQ, ("--hqq-zeros=float",)),
    "gptq": Peer("llm_compressor", _LLM_COMPRESSOR, ("--algorithm", "gptq")),
}
OURS = ("rtn", "paper", "awq", "awq+")


class FailedError(Exception):
    """A step that did not end well; says what it said last."""


@dataclass(frozen=True)
class Finished:
    """A process that ended well.

    Attributes:
        output: what it printed.
        cpu_seconds: user and system time, its children's included.
        peak_mib: the largest resident set, MiB.
    """

    output: str
    cpu_seconds: float
    peak_mib: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; 1 if a row failed, 2 if nothing could begin."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, required=True, help="UTF-8 text to score")
    parser.add_argument("--calibration", required=True, help="a text file, or self, topics or hf:NAME")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--ours", default=",".join(OURS), help=f"of {', '.join(OURS)}; empty for none")
    parser.add_argument("--peers", default=",".join(PEERS), help=f"of {', '.join(PEERS)}; empty for none")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--autoround-steps", type=int, default=200, help="200 is AutoRound's default")
    parser.add_argument("--autoround-batch", type=int, default=8, help="8 is AutoRound's default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--timeout", type=int, default=7200, help="seconds that a quantizer may take")
    parser.add_argument("--environments", type=Path, default=ROOT / "build" / "peers")
    parser.add_argument("--work", type=Path, help="keep prepared files and weights there")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    ours, peers = _names(parser, options.ours, OURS), _names(parser, options.peers, PEERS)
    with tempfile.TemporaryDirectory() as temporary:
        options.work = Path(options.work or temporary).resolve()
        try:
            prepare(options)
        except FailedError as error:
            print(error, file=sys.stderr)
            return 2
        rows = []
        if not options.json:
            print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
        for row in measure(options, ours, peers):
            rows.append(row)
            if not options.json:
                print(format_row(row), flush=True)
    if options.json:
        print(json.dumps({"schema_version": 1, "reference": REFERENCE, "rows": rows}, indent=1))
    return int(any("failed" in row for row in rows))


def _names(parser: argparse.ArgumentParser, listed: str, known: Sequence[str] | dict[str, Peer]) -> list[str]:
    names = [name for name in listed.split(",") if name]
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"unknown {unknown[0]!r}; known are {', '.join(known)}")
    return names


def prepare(options: argparse.Namespace) -> None:
    """Write the float model, calibration tokens and the tokens to score, unless they are there.

    Raises:
        FailedError: the model or a text cannot be read.
    """
    wanted = {
        name: str(getattr(options, name))
        for name in ("model", "text", "calibration", "samples", "sequence_length", "seed", "tokens")
    }
    stamp = options.work / "prepared.json"
    if _kept(stamp) == wanted:
        return
    options.work.mkdir(parents=True, exist_ok=True)
    for old in options.work.glob("*.json"):
        old.unlink()  # results of other settings
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in _absolute(wanted).items()]
    run(_ours("prepare", *arguments, "--out", str(options.work)), options)
    stamp.write_text(json.dumps(wanted), encoding="utf-8")


def _absolute(settings: dict[str, str]) -> dict[str, str]:
    """Names of files and folders made absolute: the children run in another folder."""
    return {
        name: str(Path(value).resolve()) if Path(value).exists() else value
        for name, value in settings.items()
    }


def measure(options: argparse.Namespace, ours: list[str], peers: list[str]) -> Iterator[dict[str, Any]]:
    """Score the model itself, then every quantizer; the reference comes before what is compared with it."""
    reference: float | None = None
    try:
        yield {"tool": "full precision", **score(options, None)}
    except FailedError as error:
        yield {"tool": "full precision", "failed": str(error)}
        return
    for name in sorted(ours, key=lambda one: one != REFERENCE) + peers:
        row: dict[str, Any] = {"tool": name}
        try:
            weights, cost = quantize(options, name)
            row |= {**score(options, weights), **cost}
            if name == REFERENCE:
                reference = row["kl_divergence"]
            row["kl_ratio"] = row["kl_divergence"] / reference if reference else None
        except FailedError as error:
            row["failed"] = str(error)
        yield row


def quantize(options: argparse.Namespace, name: str) -> tuple[Path, dict[str, float]]:
    """Let one quantizer write its weights, unless an earlier run with the same settings left them.

    Returns:
        The file, and what it cost: "cpu_seconds", "peak_mib" and "threads".

    Raises:
        FailedError: it failed, took too long, or could not be installed.
    """
    out = options.work / f"{name}.safetensors"
    shared = [
        f"--model={options.work / 'float'}",
        f"--tokens={options.work / 'calibration.npy'}",
        f"--linears={options.work / 'linears.json'}",
        f"--bits={options.bits}",
        f"--group-size={options.group_size}",
        f"--seed={options.seed}",
    ]
    if name in PEERS:
        peer = PEERS[name]
        chosen = [f"--{option.replace('_', '-')}={getattr(options, option)}" for option in peer.options]
        program = [str(environment(options, peer)), "-m", f"peers.{peer.module}"]
        command, installed = [*program, *peer.arguments, *chosen, *shared], list(peer.requirements)
    else:
        calibration = _absolute({"calibration": options.calibration})["calibration"]
        command = _ours("ours", f"--recipe={name}", f"--calibration={calibration}", *shared)
        installed = []
    settings = {"arguments": command[1:], "requirements": installed, "threads": options.threads}
    record = options.work / f"{name}.json"
    kept = _kept(record)
    if kept and kept["settings"] == settings and out.is_file():
        cost: dict[str, float] = kept["cost"]
        return out, cost
    print(f"{name} ...", file=sys.stderr, flush=True)
    record.unlink(missing_ok=True)
    out.unlink(missing_ok=True)
    done = run([*command, f"--out={out}"], options, name)
    cost = {
        "cpu_seconds": round(done.cpu_seconds),
        "peak_mib": round(done.peak_mib),
        "threads": options.threads,
    }
    record.write_text(json.dumps({"settings": settings, "cost": cost}), encoding="utf-8")
    return out, cost


def environment(options: argparse.Namespace, peer: Peer) -> Path:
    """The Python of an environment that holds a peer, made if it is not there.

    Raises:
        FailedError: pip could not install it.
    """
    folder = options.environments.resolve() / peer.module
    python: Path = folder / "bin" / "python"
    stamp, wanted = folder / "requirements.txt", "\n".join(peer.requirements)
    if python.exists() and stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    print(f"installing {' '.join(peer.requirements)} into {folder} ...", file=sys.stderr, flush=True)
    venv.create(folder, clear=True, with_pip=True)
    run([str(python), "-m", "pip", "install", "--quiet", *peer.requirements], options)
    stamp.write_text(wanted, encoding="utf-8")
    return python


def score(options: argparse.Namespace, weights: Path | None) -> dict[str, Any]:
    """Perplexity, and against the float model KL divergence and top-1 agreement.

    Raises:
        FailedError: the weights are not what was asked for.
    """
    arguments = [
        f"--{name.replace('_', '-')}={getattr(options, name)}" for name in ("bits", "group_size", "context")
    ]
    if weights is not None:
        arguments.append(f"--weights={weights}")
    done = run(_ours("score", f"--folder={options.work}", *arguments), options)
    figures: dict[str, Any] = json.loads(done.output.splitlines()[-1])
    return figures


def _ours(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"peers.{module}", *arguments]


def run(command: list[str], options: argparse.Namespace, name: str | None = None) -> Finished:
    """Run a command to its end.

    Args:
        command: what to run.
        options: its threads, its time limit and its folder are used.
        name: what it is called; its messages go to NAME.log in the work folder.

    Raises:
        FailedError: it ended with an error or was stopped.
    """
    log = options.work / f"{name or 'last'}.log"
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    own = {"PYTHONPATH": str(ROOT)} if command[0] == sys.executable else {}
    threads = {f"{library}_NUM_THREADS": str(options.threads) for library in ("OMP", "MKL")}
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as messages, tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            cwd=BENCHMARKS,
            env={**inherited, **own, **threads, **offline},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=messages,
        )
        status, usage = _wait(process, started + options.timeout)
        output.seek(0)
        printed = output.read().decode(errors="replace")
    if status is None:
        raise FailedError(f"stopped after {options.timeout} s")
    if status:
        said = log.read_text(encoding="utf-8", errors="replace").strip() or printed.strip()
        raise FailedError((said.splitlines() or [f"ended with {status}"])[-1])
    peak = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return Finished(printed, usage.ru_utime + usage.ru_stime, peak)


def _wait(process: subprocess.Popen[bytes], until: float) -> tuple[int | None, Any]:
    """Exit status, None for one that was stopped, and what the process used."""
    late = False
    while True:
        found, status, usage = os.wait4(process.pid, 0 if late else os.WNOHANG)
        if found:
            process.returncode = os.waitstatus_to_exitcode(status)
            return (None if late else process.returncode), usage
        if time.monotonic() > until:
            process.kill()
            late = True
        else:
            time.sleep(0.05)


def _kept(path: Path) -> Any:
    """What a JSON file says, None where there is none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def format_row(row: dict[str, Any]) -> str:
    """One row of the Markdown table; empty where a figure does not apply."""
    if "failed" in row:
        return f"| {row['tool']} | failed: {row['failed']} |" + " |" * (len(COLUMNS) - 2)
    cells = ("" if row.get(name) is None else format(row[name], FORMATS.get(name, "")) for name in COLUMNS)
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
