"""What records make of a kernel: the one of its own shape, that of the nearest, or nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from awq_tvm.bundle.verify import read_manifest
from awq_tvm.cli.main import run
from awq_tvm.compile.driver import compile_model
from awq_tvm.compile.tuning.choice import FARTHEST, RecordedChoice, distance, recorded_choice
from awq_tvm.compile.tuning.places import file_of, user_folder
from awq_tvm.compile.tuning.problem import Problem
from awq_tvm.compile.tuning.record import TunedRecord, parse_line
from awq_tvm.compile.tuning.record_file import append_record
from awq_tvm.compile.tuning.shapes import model_wanted
from awq_tvm.errors import UsageError
from awq_tvm.schedules.config_fields import to_fields
from awq_tvm.schedules.rule import Choice
from awq_tvm.schedules.spec import DenseSpec, MatmulSpec
from awq_tvm.targets import Target, detect, resolve
from tests.support import tiny_decoder as tiny
from tests.support.tuned_records import record_of

TARGET = resolve("x86-64-v4-vnni")
SPEC = MatmulSpec(576, 960, 4, 64, "float32", activations="int8")


def problem_of(spec: MatmulSpec | DenseSpec = SPEC, target: Target = TARGET) -> Problem:
    found = Problem.of(spec, target)
    assert found is not None
    return found


def records_of(problem: Problem, place: int = 5, **fields: Any) -> list[TunedRecord]:
    """A record for every part of a problem, of the candidate at that place."""
    made = []
    for part in problem.parts:
        key = problem.key(part).model_copy(update=fields)
        made.append(record_of(to_fields(part.configs[place], part.fields), **key.model_dump()))
    return made


def chosen(
    records: list[TunedRecord], spec: MatmulSpec | DenseSpec = SPEC, target: Target = TARGET
) -> Choice:
    problem = problem_of(spec, target)
    return RecordedChoice(records).choose(problem.family, spec, target, problem.default)


def test_without_records_it_is_the_default() -> None:
    assert chosen([]) == Choice(problem_of().default, "default", "x86.int8")


def test_every_part_has_its_own_record() -> None:
    problem = problem_of()
    choice = chosen(records_of(problem))
    assert (choice.source, choice.reason) == ("tuned", "x86.int8: M 1 tuned, M 2-8 tuned, M 9+ tuned")
    for part in problem.parts:
        assert to_fields(choice.config, part.fields) == to_fields(part.configs[5], part.fields)
    partly = chosen(records_of(problem)[:1])
    assert (partly.source, partly.reason) == (
        "default",
        "x86.int8: M 1 tuned, M 2-8 by default, M 9+ by default",
    )
    assert partly.config == replace(problem.default, one_row=choice.config.one_row)


def test_an_epilogue_takes_the_record_of_its_shape() -> None:
    spec = replace(SPEC, has_bias=True, activation_function="silu", has_residual=True)
    assert chosen(records_of(problem_of()), spec).source == "tuned"


def test_dense_matmuls_have_records_too() -> None:
    spec = DenseSpec(576, 960, "float16", "float32")
    choice = chosen(records_of(problem_of(spec)), spec)
    assert choice.source == "tuned"
    assert choice.config != problem_of(spec).default
    assert chosen(records_of(problem_of(spec)), replace(spec, weight_dtype="bfloat16")).source == "default"


def test_tiles_for_float16_do_not_serve_bfloat16() -> None:
    """Keys of what the target computes in by itself name no dtype, as they did before another could be asked for."""
    target = resolve("nvidia-h100")
    half = replace(SPEC, dtype="float16", activations="float")
    brain = replace(half, dtype="bfloat16")
    records = records_of(problem_of(half, target), 1)
    assert {record.key.activations for record in records} == {"float"}
    assert chosen(records, half, target).source == "tuned"
    assert chosen(records, brain, target).source == "default"
    own = records_of(problem_of(brain, target), 1)
    assert chosen([*records, *own], brain, target).source == "tuned"
    assert "bfloat16" in own[0].key.title
    assert parse_line(own[0].to_line()) == own[0]


def test_the_nearest_shape_lends_its_tiles() -> None:
    near = problem_of(replace(SPEC, out_features=1024))
    far = problem_of(replace(SPEC, out_features=2048))
    choice = chosen([*records_of(far, 3), *records_of(near, 5)])
    assert choice.source == "nearest"
    assert "M 1 as 1024x576" in choice.reason
    assert choice.config.one_row == near.parts[0].configs[5].one_row
    own = records_of(problem_of(), 2)[:1]
    both = chosen([*records_of(near, 5), *own])
    assert both.source == "nearest"
    assert both.config.one_row == problem_of().parts[0].configs[2].one_row
    assert "M 1 tuned, M 2-8 as 1024x576" in both.reason


def test_a_shape_that_is_too_far_lends_nothing() -> None:
    far = problem_of(replace(SPEC, out_features=960 * 8))
    assert distance(far.key(far.parts[0]), problem_of().key(far.parts[0])) == 3 > FARTHEST
    assert chosen(records_of(far)).source == "default"


@pytest.mark.parametrize(
    "fields",
    [
        {"target": "x86-0123456789ab"},
        {"rule_version": 999},
        {"rule": "x86.float"},
        {"layout": "row"},
        {"bits": 3},
        {"group_size": 32},
        {"activations": "float"},
        {"op": "dense_matmul"},
        {"weights": "float16"},
        {"rows": "3-8"},
    ],
)
def test_a_record_of_something_else_is_not_used(fields: dict[str, Any]) -> None:
    records = records_of(problem_of(), **fields)
    assert chosen(records).source == "default"
    assert chosen(records_of(problem_of())).source == "tuned"


@pytest.mark.parametrize(
    "config",
    [
        {"one_row": {"blocks": 31}},
        {"one_row": {"ahead": 12345}},
        {"many_rows": {"rows": 4, "blocks": 1, "sums": 1, "ahead": 0}},
        {"registers": 1000},
        {"one_row": {"blocks": True}},
    ],
)
def test_a_configuration_outside_the_space_is_set_aside(config: dict[str, Any]) -> None:
    problem = problem_of()
    bad = record_of(config, **problem.key(problem.parts[0]).model_dump())
    chooser = RecordedChoice([bad])
    assert chooser.choose(problem.family, SPEC, TARGET, problem.default).config == problem.default
    assert list(chooser.unfit) == [bad.key.title]


def test_records_of_an_older_version_are_named() -> None:
    records = records_of(problem_of(), rule_version=999)
    assert set(RecordedChoice(records).unfit.values()) == {f"x86.int8 is at version {records_version()}"}


def records_version() -> int:
    return int(problem_of().family.version)


def test_records_are_read_from_the_users_folder_and_from_where_one_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    problem = problem_of()
    mine, others = records_of(problem), records_of(problem, target="x86-0123456789ab")
    for record in (*mine[:1], *others):
        append_record(file_of(user_folder(), TARGET.fingerprint), record)
    extra = tmp_path / "extra.jsonl"
    for record in mine[1:]:
        append_record(extra, record)
    with extra.open("ab") as file:
        file.write(b"{torn\n")
    chooser, bad = recorded_choice(TARGET, [extra])
    assert chooser.choose(problem.family, SPEC, TARGET, problem.default).source == "tuned"
    assert [line.number for line in bad] == [3]
    chooser, bad = recorded_choice(TARGET)
    assert (
        "M 1 tuned, M 2-8 by default" in chooser.choose(problem.family, SPEC, TARGET, problem.default).reason
    )
    with pytest.raises(UsageError, match="no tuned records"):
        recorded_choice(TARGET, [tmp_path / "absent"])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    model = tiny.make_model("llama")
    return model, tiny.save_quantized(model, tmp_path_factory.mktemp("choice") / "checkpoint")


def test_compile_uses_records_and_says_so(
    checkpoint: tuple[Any, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, folder = checkpoint
    file = tmp_path / "records.jsonl"
    for one in model_wanted(str(folder), detect(), activations="float", vocabulary_bits=16):
        assert one.problem is not None
        for record in (*records_of(one.problem, 2), *records_of(one.problem, 2, rule_version=999)):
            append_record(file, record)
    with file.open("ab") as opened:
        opened.write(b"null\n")
    bundle = tmp_path / "bundle"
    report = compile_model(
        str(folder), bundle, activations="float", vocabulary_bits=16, kv_cache="float32", records=[file]
    )
    assert {kernel["source"] for kernel in report.kernels} == {"tuned"}
    assert {kernel.source for kernel in read_manifest(bundle).tuning.kernels} == {"tuned"}
    assert any("1 bad lines of tuned records were left out" in note for note in report.notes)
    executor = tiny.Compiled(model, folder, bundle, report).executor()
    ids = tiny.tokens(9)
    sequence = executor.new_sequence()
    logits = executor.forward([sequence], [ids], logits="all")
    assert tiny.relative_error(np.asarray(logits), tiny.torch_logits(model, ids)) < 1e-3
    arguments = [
        "tune",
        "db",
        "coverage",
        str(folder),
        "--activations",
        "float",
        "--vocabulary-bits",
        "16",
        "--json",
    ]
    assert run([*arguments, "--records", str(file)]) == 0
    covered = json.loads(capsys.readouterr().out)
    assert {kernel["source"] for kernel in covered["kernels"]} == {"tuned"}
    assert covered["bad"] == 1
    assert covered["unused"]
    assert all("v999: " in line and "is at version" in line for line in covered["unused"])
    assert run(arguments) == 0
    bare = json.loads(capsys.readouterr().out)
    assert {kernel["source"] for kernel in bare["kernels"]} == {"default"}
    assert run(arguments[:-1]) == 0
    assert "kernel" in capsys.readouterr().out
