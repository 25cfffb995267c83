"""Every verb on a model that was quantized and compiled by the verbs before it."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import ROOT, awq_tvm

Paths = dict[str, Path]

# Quantizing and compiling, small as the model is, take some twenty seconds of two cores.
pytestmark = pytest.mark.slow


def _json(*arguments: object) -> dict[str, object]:
    done = awq_tvm(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    found: dict[str, object] = json.loads(done.stdout)
    assert found["schema_version"] == 1
    return found


def test_reports_of_quantize_and_compile(real: Paths) -> None:
    quantized = json.loads(real["quantize.json"].read_text())
    assert quantized["bits"] == 4
    assert quantized["group_size"] == 32
    assert 0 < quantized["bytes_after"] < quantized["bytes_before"]
    compiled = json.loads(real["compile.json"].read_text())
    assert compiled["activations"] == "float"
    assert compiled["quantized_first"] is None
    assert compiled["bytes"] > 0
    assert compiled["kernels"]


def test_generate(real: Paths) -> None:
    found = _json("generate", real["bundle"], "--prompt", "Once upon", "--max-tokens", 8)
    assert found["finish_reason"] in ("stop", "length")
    assert isinstance(found["token_ids"], list)
    assert 0 < len(found["token_ids"]) <= 8
    plain = awq_tvm("generate", real["bundle"], "--prompt", "Once upon", "--max-tokens", 8)
    assert plain.stdout == f"{found['text']}\n"
    assert "written in" in plain.stderr


def test_seed_and_chat(real: Paths) -> None:
    arguments = ("generate", real["bundle"], "--prompt", "hi", "--max-tokens", 12, "--temperature", 1.5)
    assert _json(*arguments, "--seed", 1)["text"] == _json(*arguments, "--seed", 1)["text"]
    assert _json(*arguments, "--seed", 1)["text"] != _json(*arguments, "--seed", 2)["text"]
    chat = _json("generate", real["bundle"], "--prompt", "hi", "--max-tokens", 2, "--chat")
    plain = _json("generate", real["bundle"], "--prompt", "hi", "--max-tokens", 2)
    assert chat["timings"]["prompt_tokens"] > plain["timings"]["prompt_tokens"]  # type: ignore[index]


def test_prompt_longer_than_the_context(real: Paths) -> None:
    done = awq_tvm("generate", real["bundle"], "--prompt", "x " * 200, "--json")
    assert done.returncode == 2
    assert "the context holds 128" in json.loads(done.stdout)["error"]["why"]


def test_tasks_of_both_agree(real: Paths, tmp_path: Path) -> None:
    """A task of multiple choice through the harness: the compiled module and PyTorch choose the same."""
    pytest.importorskip("lm_eval")
    rows = [{"q": f"Once upon {n}", "choices": [" a time", " little"], "answer": n % 2} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tiny.yaml").write_text(
        "task: tiny\ndataset_path: json\ntest_split: test\noutput_type: multiple_choice\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}, cache_dir: {tmp_path}/cache}}\n"
        'doc_to_text: "{{q}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: "{{answer}}"\n'
    )
    options = ("--tasks", "tiny", "--include-path", tmp_path)
    compiled, reference = (_json("eval", real[which], *options) for which in ("bundle", "quantized"))
    assert compiled["tasks"] == reference["tasks"]
    assert "acc" in compiled["tasks"]["tiny"]["metrics"]  # type: ignore[index]


def test_eval_of_both_agree(real: Paths) -> None:
    options = ("--text", real["text"], "--context", 64, "--tokens", 256)
    compiled = _json("eval", real["bundle"], *options, "--reference", real["quantized"])
    reference = _json("eval", real["quantized"], *options)
    assert {"perplexity", "kl_divergence", "top1_agreement", "tokens"} <= compiled.keys()
    assert compiled["tokens"] == reference["tokens"] == 252
    # Float activations: the same weights and arithmetic but for the order of sums and float16 tables.
    assert compiled["perplexity"] == pytest.approx(reference["perplexity"], rel=2e-3)
    assert compiled["kl_divergence"] < 1e-3  # type: ignore[operator]
    assert compiled["top1_agreement"] > 0.98  # type: ignore[operator]
    assert reference["kl_divergence"] is None


def test_bench(real: Paths) -> None:
    arguments = ("--prompt-tokens", "8,16", "--generate-tokens", 4, "--threads", "1,2", "--repetitions", 2)
    rows = _json("bench", real["bundle"], *arguments)["rows"]
    assert isinstance(rows, list)
    assert [(row["test"], row["threads"]) for row in rows] == [
        (test, threads) for threads in (1, 2) for test in ("pp8", "pp16", "tg4")
    ]
    for row in rows:
        assert row["tokens_per_second"] > 0
        assert row["gigabytes_per_second"] > 0
        assert row["peak_memory_bytes"] > 1 << 20


def test_inspect_of_all_three(real: Paths) -> None:
    assert _json("inspect", real["model"])["kind"] == "checkpoint"
    assert _json("inspect", real["quantized"])["quantization"] == {
        "bits": 4,
        "group_size": 32,
        "zero_point": True,
    }
    found = _json("inspect", real["bundle"])
    assert {"target", "model", "recipe", "files", "tuning"} <= found.keys()
    assert _json("verify", real["bundle"])["ok"] is True


def test_a_bundle_for_another_system_runs_in_the_emulator_with_its_host_part_here(
    real: Paths, tmp_path: Path
) -> None:
    bundle = tmp_path / "metal"
    compiled = _json("compile", real["quantized"], "-o", bundle, "--target", "metal", "--host-here")
    assert str(compiled["target"]).startswith("apple")
    found = _json("verify", bundle, "--emulate", "--tokens", 2)
    assert len(found["token_ids"]) == 2  # type: ignore[arg-type]
    assert found["launches"]
    # It is for an Apple GPU nevertheless.
    done = awq_tvm("generate", bundle, "--prompt", "x", "--json")
    assert done.returncode == 5
    assert "an Apple GPU" in json.loads(done.stdout)["error"]["why"]


def test_compile_refuses_an_output_that_exists(real: Paths) -> None:
    done = awq_tvm("compile", real["quantized"], "-o", real["bundle"])
    assert done.returncode == 7
    assert "exists already" in done.stderr


def test_chat_from_a_pipe(real: Paths) -> None:
    done = awq_tvm("chat", real["bundle"], "--max-tokens", 4, "--json", stdin="hello\n/stats\nagain\n")
    assert done.returncode == 0, done.stderr
    assert len([json.loads(line) for line in done.stdout.splitlines()]) == 2
    assert "1 answers" in done.stderr


@pytest.fixture
def interruptible() -> Iterator[None]:
    """What is started answers to SIGINT, although a shell that put the tests in the background had it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class _Terminal:
    """The program on a pseudo-terminal, as a person has it."""

    def __init__(self, *arguments: object) -> None:
        self.process_id, self._handle = pty.fork()
        if self.process_id == 0:
            os.chdir(ROOT)
            os.execv(sys.executable, [sys.executable, "-m", "awq_tvm", *map(str, arguments)])
        self.seen, self._taken = "", 0

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Read on until `text` comes after what the last call waited for."""
        deadline = time.monotonic() + seconds
        while text not in self.seen[self._taken :]:
            if not select.select([self._handle], [], [], max(deadline - time.monotonic(), 0))[0]:
                pytest.fail(f"{text!r} did not come; seen: {self.seen!r}")
            try:
                self.seen += os.read(self._handle, 4096).decode(errors="replace")
            except OSError:
                pytest.fail(f"the program ended before {text!r}; seen: {self.seen!r}")
        self._taken = self.seen.index(text, self._taken) + len(text)

    def read_some(self) -> None:
        """Read what comes next."""
        select.select([self._handle], [], [], 60)
        self.seen += os.read(self._handle, 4096).decode(errors="replace")

    def type(self, text: str) -> None:
        os.write(self._handle, text.encode())

    def end(self) -> int:
        while True:
            try:
                if not os.read(self._handle, 4096):
                    break
            except OSError:  # how Linux says that the other side is closed
                break
        return os.waitstatus_to_exitcode(os.waitpid(self.process_id, 0)[1])


@pytest.mark.usefixtures("interruptible")
def test_chat_on_a_terminal(real: Paths) -> None:
    terminal = _Terminal("chat", real["bundle"], "--max-tokens", 4)
    terminal.wait_for("> ")
    terminal.type("hello\n")
    terminal.wait_for("first token after")
    terminal.wait_for("written in")
    terminal.wait_for("> ")
    terminal.type("/help\n")
    terminal.wait_for("/stats")
    terminal.wait_for("> ")
    terminal.type("\x03")
    terminal.wait_for("/exit to leave")
    terminal.wait_for("> ")
    terminal.type("/stats\n")
    terminal.wait_for("1 answers, 2 turns kept")
    terminal.wait_for("> ")
    terminal.type("/reset\n")
    terminal.wait_for("forgotten")
    terminal.wait_for("> ")
    terminal.type("/stats\n")
    terminal.wait_for("1 answers, 0 turns kept")
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.end() == 0


@pytest.mark.usefixtures("interruptible")
def test_interrupt_on_a_terminal_stops_the_answer_alone(real: Paths) -> None:
    """The answer takes a tenth of a second, so it may be there before the key is; one of many is caught."""
    terminal = _Terminal("chat", real["bundle"], "--max-tokens", 100, "--threads", 1)
    for number in range(30):
        terminal.wait_for("> ")
        terminal.type(f"hello {number}\n")
        terminal.wait_for(f"hello {number}\r\n")
        terminal.read_some()  # the first piece of the answer
        terminal.type("\x03")
        terminal.wait_for("\r\n")
        terminal.type("/stats\n")
        terminal.wait_for("turns kept")
        if "[stopped]" in terminal.seen:
            break
    else:
        pytest.fail(f"no answer was stopped; seen: {terminal.seen!r}")
    terminal.wait_for("> ")
    terminal.type("once more\n")
    terminal.wait_for("first token after")
    terminal.wait_for("> ")
    terminal.type("/exit\n")
    assert terminal.end() == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.usefixtures("interruptible")
def test_signals_end_a_waiting_program(real: Paths, number: signal.Signals, code: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "awq_tvm", "chat", str(real["bundle"]), "--max-tokens", "2"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("hello\n")
        process.stdin.flush()
        process.stdout.readline()  # the first answer: it waits for the next line now
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in stderr


def test_runs_without_pytorch_and_without_the_package_tvm(real: Paths) -> None:
    script = """
import sys
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Wall())
from awq_tvm.cli.main import run
code = run(sys.argv[1:])
assert "tvm" not in sys.modules
sys.exit(code)
"""
    arguments = ["generate", str(real["bundle"]), "--prompt", "Once", "--max-tokens", "3", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["token_ids"]) > 0
