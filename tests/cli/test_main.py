from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import threading

import pytest

from awq_tvm import __version__
from awq_tvm.cli import main
from awq_tvm.cli.verbs import VERBS
from awq_tvm.errors import (
    AwqTvmError,
    BundleError,
    CheckpointError,
    ResourceError,
    TargetError,
    UnsupportedError,
    UsageError,
)

from .conftest import ROOT, awq_tvm

HEAVY = {
    "torch",
    "transformers",
    "tvm",
    "tvm_ffi",
    "numpy",
    "typer",
    "rich",
    "pydantic",
    "tokenizers",
    "jinja2",
}


def _modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sys.modules, sep='\\n', file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in done.stderr.splitlines()}


def test_help_imports_nothing_heavy() -> None:
    assert not HEAVY & _modules_after("from awq_tvm.cli.main import run\nrun(['--help'])")


@pytest.mark.parametrize("verb", [verb.name for verb in VERBS])
def test_help_of_a_verb_loads_no_libraries(verb: str) -> None:
    loaded = _modules_after(f"from awq_tvm.cli.main import run\nassert run([{verb!r}, '--help']) == 0")
    assert "typer" in loaded
    assert not {"torch", "transformers", "tvm", "tvm_ffi", "numpy"} & loaded


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--help"]) == 0
    out = capsys.readouterr()
    assert all(f"\n  {verb.name} " in out.out for verb in VERBS)
    assert out.err == ""
    assert main.run([]) == 2
    assert "Verbs:" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--version"]) == 0
    assert capsys.readouterr().out == f"awq_tvm {__version__}\n"


def test_module_runs() -> None:
    done = awq_tvm("--version")
    assert done.returncode == 0
    assert done.stdout == f"awq_tvm {__version__}\n"


def test_unknown_verb_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["genrate"]) == 2
    err = capsys.readouterr().err
    assert "There is no verb 'genrate'" in err
    assert "fix: `python -m awq_tvm generate`" in err
    assert main.run(["xyzzy"]) == 2
    assert "fix: `python -m awq_tvm --help`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["generate"], "Missing"),
        (["generate", "b"], "--prompt"),
        (["generate", "b", "--prompt", "x", "--surprise"], "--surprise"),
        (["generate", "b", "--prompt", "x", "--max-tokens", "many"], "--max-tokens"),
        (["compile", "m", "-o", "out", "--opt", "4"], "--opt"),
        (["bench", "b", "--threads", "1,x"], "--threads"),
        (["quantize", "m", "-o", "out", "--group-size", "big"], "--group-size"),
    ],
)
def test_usage_errors_in_both_forms(
    arguments: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(arguments) == 2
    plain = capsys.readouterr()
    assert plain.out == ""
    assert what in plain.err
    assert "Traceback" not in plain.err
    assert main.run([*arguments, "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["schema_version"] == 1
    assert what in document["error"]["what"]
    assert document["error"]["exit_code"] == 2
    assert set(document["error"]) == {"kind", "exit_code", "what", "where", "why", "fix"}


def _raise(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def dispatch(arguments: list[str]) -> int:
        raise error

    monkeypatch.setattr(main, "_dispatch", dispatch)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("x"), 2),
        (CheckpointError("x"), 3),
        (UnsupportedError("x"), 4),
        (TargetError("x"), 5),
        (BundleError("x"), 6),
        (ResourceError("x"), 7),
        (KeyboardInterrupt(), 130),
        (main.TerminatedError(), 143),
        (MemoryError("no room"), 7),
        (OSError(errno.ENOSPC, "No space left on device"), 7),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 4),
        (ModuleNotFoundError("No module named 'x'", name="x"), 1),
        (RuntimeError("surprise"), 1),
    ],
)
def test_every_error_has_its_exit_code_and_no_traceback(
    error: BaseException,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv(main.TRACEBACK_VARIABLE, raising=False)
    _raise(monkeypatch, error)
    assert main.run(["verb"]) == code
    err = capsys.readouterr().err
    assert err
    assert "Traceback" not in err


def test_bugs_are_called_bugs_and_can_be_traced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(main.TRACEBACK_VARIABLE, raising=False)
    _raise(monkeypatch, RuntimeError("surprise"))
    assert main.run(["verb", "--json"]) == AwqTvmError.exit_code
    out = capsys.readouterr()
    assert "RuntimeError: surprise" in json.loads(out.out)["error"]["why"]
    monkeypatch.setenv(main.TRACEBACK_VARIABLE, "1")
    with pytest.raises(RuntimeError, match="surprise"):
        main.run(["verb"])


def test_missing_pytorch_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _raise(monkeypatch, ModuleNotFoundError("No module named 'torch'", name="torch"))
    assert main.run(["quantize"]) == 4
    assert "pip install 'awq-tvm[quantize]'" in capsys.readouterr().err


def test_sigterm_unwinds() -> None:
    script = """
import os, signal, sys
from awq_tvm.cli import main
def dispatch(arguments):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    finally:
        print("cleaned up", flush=True)
main._dispatch = dispatch
sys.exit(main.run(["verb"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 143
    assert done.stdout == "cleaned up\n"
    assert done.stderr == "terminated\n"


def test_handler_of_sigterm_is_put_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    main.run(["--help"])
    assert signal.getsignal(signal.SIGTERM) is before


def test_runs_in_a_thread_too(capsys: pytest.CaptureFixture[str]) -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main.run(["--version"])))
    thread.start()
    thread.join()
    assert codes == [0]


def test_closed_pipe_is_no_error() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "awq_tvm", "targets", "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGPIPE, signal.SIG_IGN),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        stderr = process.stderr.read()
        assert process.wait(60) == 141
    assert stderr == b""
