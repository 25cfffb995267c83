"""A pack for a Cortex-A board: built here, run there by TVM's runtime and NumPy alone, brought back as records."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from awq_tvm.cli.main import run
from awq_tvm.compile.driver import compile_model
from awq_tvm.compile.tuning.problem import Problem
from awq_tvm.compile.tuning.record_file import read_records
from awq_tvm.compile.tuning.shapes import model_wanted
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import resolve
from tests.support import native_runner as native
from tests.support import tiny_decoder as tiny

pytestmark = pytest.mark.slow

BOARD, OTHER = resolve("raspberry-pi-5"), resolve("raspberry-pi-4")
# Where `make arm-python` puts it; AWQ_TVM_AARCH64_PYTHON names another folder.
ARM_PYTHON = Path(os.environ.get("AWQ_TVM_AARCH64_PYTHON", native.ROOT / "build" / "arm-python"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.quantized_llama(tmp_path_factory).checkpoint)


def linears(checkpoint: str) -> list[Problem]:
    """Two of the model: an emulated board takes its time."""
    wanted = model_wanted(checkpoint, BOARD, vocabulary_bits=16)
    return [one.problem for one in wanted if isinstance(one.spec, MatmulSpec) and one.problem][:2]


@pytest.fixture(scope="module")
def pack(checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    native.skip_without_aarch64()
    if not (ARM_PYTHON / "python").exists():
        pytest.skip(f"Python for ARM is not in {ARM_PYTHON}: `make arm-python`")
    folder = tmp_path_factory.mktemp("pack")
    specs = [problem.spec for problem in linears(checkpoint)]
    shapes = ",".join(f"{spec.in_features}x{spec.out_features}" for spec in specs)
    arguments = ["--group-size", str(specs[0].group_size), "--trials", "2", "--limit", "600"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(folder / "data"))
        file = folder / "board.pack"
        assert run(["tune", shapes, "--target", BOARD.name, "--pack", str(file), *arguments]) == 0
    return file


def on_board(cpu: str, pack: Path, results: Path) -> subprocess.CompletedProcess[str]:
    """The pack on an emulated machine, as a user runs it."""
    return subprocess.run(
        [ARM_PYTHON / "python", pack, results],
        env={"PATH": os.environ["PATH"], "HOME": str(pack.parent), "AWQ_TVM_ARM_CPU": cpu},
        cwd=pack.parent,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def test_records_come_back_and_are_used_for_that_target_and_for_nothing_else(
    pack: Path, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, file = tmp_path / "results.jsonl", tmp_path / "records.jsonl"
    done = on_board("cortex-a76", pack, results)
    assert done.returncode == 0, done.stderr
    again = on_board("cortex-a76", pack, results)
    assert (again.returncode, again.stderr.count("\n")) == (0, 1), "nothing was left to measure"
    capsys.readouterr()
    assert run(["tune", "--import", str(results), "--target", BOARD.name, "-o", str(file), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    keys = {record.key for record in read_records([file]).records}
    assert keys == {problem.key(part) for problem in linears(checkpoint) for part in problem.parts}
    assert (document["failed"], document["refused"], len(document["records"])) == ([], [], len(keys))
    assert {record["measured"]["by"] for record in document["records"]} == {"pack"}
    assert {key.target for key in keys} == {BOARD.fingerprint}

    def sources(target: str) -> list[str]:
        made = compile_model(
            checkpoint,
            tmp_path / target,
            target=target,
            vocabulary_bits=16,
            records=[file],
            context_length=64,
        )
        return [kernel["source"] for kernel in made.kernels]

    assert sources(BOARD.name).count("tuned") >= 2
    assert set(sources(OTHER.name)) == {"default"}


def test_a_cpu_without_the_features_is_refused(pack: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    done = on_board("cortex-a72", pack, results)
    assert done.returncode == 5
    assert "this machine lacks dotprod" in done.stderr
    assert not results.exists()
