"""Packs: built here, run by a process that has TVM's runtime and NumPy alone, and brought back as records."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tests.support.faulty_rules  # noqa: F401  (registers the family here too)
from awq_tvm.cli.main import run
from awq_tvm.compile.tuning.choice import recorded_choice
from awq_tvm.compile.tuning.pack import write_pack
from awq_tvm.compile.tuning.pack_results import import_results, read_results
from awq_tvm.compile.tuning.problem import Problem
from awq_tvm.compile.tuning.record import TunedRecord
from awq_tvm.compile.tuning.record_file import append_record, read_records
from awq_tvm.compile.tuning.run_pack import CONTENT, CONTENT_SEAL, Pack, main
from awq_tvm.compile.tuning.sealed_line import sealed, unsealed
from awq_tvm.errors import AwqTvmError, BundleError, ResourceError, TargetError, UsageError
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import detect, resolve

HERE = detect()
FAULTY = Problem(MatmulSpec(88, 24, 4, 8, "float32"), HERE, "test.faulty")
SPEC = MatmulSpec(64, 48, 4, 32, "float32", activations=HERE.default_activations)
NEEDED = ("tvm", "tvm_ffi", "numpy", "numpy.libs", "typing_extensions.py")


def real() -> Problem:
    found = Problem.of(SPEC, HERE)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def runtime_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of modules in which there is nothing but TVM and NumPy."""
    folder = tmp_path_factory.mktemp("modules")
    for name in NEEDED:
        spec = importlib.util.find_spec(name.partition(".")[0])
        assert spec is not None
        assert spec.origin is not None
        place = Path(spec.origin).parent if name.endswith(".py") else Path(spec.origin).parents[1]
        if (place / name).exists():
            (folder / name).symlink_to(place / name)
    return folder


def run_pack(modules: Path, pack: Path, *arguments: Path | str) -> subprocess.CompletedProcess[str]:
    """Python without our package, as it would be on a device."""
    environment = {"PYTHONPATH": str(modules), "PATH": "/nowhere", "HOME": str(pack.parent)}
    command = [sys.executable, "-S", "-P", str(pack), *map(str, arguments)]
    return subprocess.run(
        command, env=environment, cwd=pack.parent, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Candidates of all faults, and of one part of a real linear."""
    file = tmp_path_factory.mktemp("pack") / "tuning.pack"
    _, *others = real().parts
    known = [real().key(part) for part in others]
    report = write_pack([FAULTY, real()], HERE, file, known=known, trials=9, limit=4.0, seconds=0.01)
    assert (report.parts, report.known) == (2, len(others))
    assert len(report.refused) == 1
    assert "this candidate cannot be built" in report.refused[0]
    assert report.bytes == file.stat().st_size
    return file


@pytest.fixture(scope="module")
def results(packed: Path, runtime_only: Path) -> Path:
    done = run_pack(runtime_only, packed)
    assert done.returncode == 0, done.stderr
    return packed.with_name("tuning.pack.results.jsonl")


@pytest.fixture
def lines(results: Path) -> list[dict[str, Any]]:
    """The lines, for a test to spoil."""
    return [unsealed(line) for line in results.read_bytes().splitlines()]


def test_every_fault_is_survived_and_what_works_becomes_a_record(results: Path) -> None:
    saved: list[TunedRecord] = []
    report = import_results(read_results(results), saved.append)
    assert saved == report.records
    assert (report.left, report.failed) == (0, [])
    faulty, record = saved
    assert faulty.config == {"fault": "none"}
    kinds = [line.rpartition("): ")[2] for line in report.refused]
    for kind in ("slow", "died, ended by SIGABRT", "died, ended by SIGSEGV", "died, ended with code 0",
                 "wrong", "wrong, off by nan", "refused"):  # fmt: skip
        assert any(found.startswith(kind) for found in kinds), (kind, kinds)
    assert record.key == real().key(real().parts[0])
    assert record.key.target == HERE.fingerprint
    assert record.measured.by == "pack"
    assert record.measured.trials == min(9, len(real().parts[0].configs))


def test_compile_uses_them_for_that_target_and_for_nothing_else(results: Path, tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    import_results(read_results(results), lambda record: append_record(file, record))
    choice, bad = recorded_choice(HERE, [file])
    assert bad == ()
    assert choice.unfit == {}
    problem = real()
    assert "M 1 tuned" in choice.choose(problem.family, SPEC, HERE, problem.default).reason
    other = resolve("x86-64-v4-vnni" if HERE.name != "x86-64-v4-vnni" else "x86-64-v3")
    elsewhere, _ = recorded_choice(other, [file])
    theirs = Problem.of(SPEC, other)
    assert theirs is not None
    assert "M 1 tuned" not in elsewhere.choose(theirs.family, SPEC, other, theirs.default).reason


def test_a_run_that_was_broken_off_goes_on(
    packed: Path, results: Path, runtime_only: Path, tmp_path: Path
) -> None:
    before = results.read_bytes().splitlines(keepends=True)
    file = tmp_path / "results.jsonl"
    file.write_bytes(b"".join(before[:2]) + before[2][:70])
    torn = read_results(file)
    report = import_results(torn, lambda record: None)
    assert (report.left, len(report.records), len(torn.bad)) == (1, 1, 1)
    done = run_pack(runtime_only, packed, file)
    assert done.returncode == 0, done.stderr
    assert "1/2" not in done.stderr
    assert "2/2" in done.stderr
    assert file.read_bytes().startswith(b"".join(before[:2]))
    again = import_results(read_results(file), lambda record: None)
    assert (again.left, len(again.records)) == (0, 2)
    other = tmp_path / "other.jsonl"
    other.write_bytes(sealed({**unsealed(before[0]), "pack": "0" * 64}))
    assert "results of another pack" in run_pack(runtime_only, packed, other).stderr


def respoil(
    packed: Path, copy: Path, change: Callable[[dict[str, bytes]], None], *, seal: bool = True
) -> Path:
    """A copy of a pack with other files, its table sealed again or not."""
    with zipfile.ZipFile(packed) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    if seal:
        files[CONTENT_SEAL] = hashlib.sha256(files[CONTENT]).hexdigest().encode()
    with zipfile.ZipFile(copy, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return copy


def in_table(**changes: Any) -> Callable[[dict[str, bytes]], None]:
    def change(files: dict[str, bytes]) -> None:
        files[CONTENT] = json.dumps({**json.loads(files[CONTENT]), **changes}).encode()

    return change


def flip(name: str) -> Callable[[dict[str, bytes]], None]:
    def change(files: dict[str, bytes]) -> None:
        files[name] = bytes([files[name][0] ^ 1]) + files[name][1:]

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (flip("part-0.so"), "part-0.so was changed"),
        (flip("problem-0/1.npy"), "problem-0/1.npy was changed"),
        (flip("awq_tvm/compile/tuning/run_pack.py"), "run_pack.py was changed"),
        (flip(CONTENT), "pack.json was changed"),
        (lambda files: files.update({"more.so": b"x"}), "more.so"),
        (lambda files: files.pop("part-1.so"), "part-1.so"),
        (lambda files: files.pop(CONTENT), CONTENT),
        (in_table(schema_version=2), "its version is 2"),
    ],
)
def test_a_damaged_pack_is_refused(packed: Path, tmp_path: Path, change: Any, says: str) -> None:
    Pack(packed)
    seal = "was changed" not in says
    files = tmp_path / "spoiled.pack"
    if says == CONTENT:
        seal = False
    with pytest.raises(BundleError, match="damaged") as error:
        Pack(respoil(packed, files, change, seal=seal))
    assert says in str(error.value)


@pytest.mark.parametrize("size", [0, 100, 30_000])
def test_a_torn_pack_is_refused(packed: Path, tmp_path: Path, size: int) -> None:
    torn = tmp_path / "torn.pack"
    torn.write_bytes(packed.read_bytes()[:size])
    with pytest.raises(BundleError, match="damaged"):
        Pack(torn)
    with pytest.raises(BundleError, match="damaged"):
        Pack(tmp_path / "no such file")


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({"architecture": "sparc"}, 5, "it is for sparc"),
        ({"features": ["avx1024"]}, 5, "this machine lacks avx1024"),
        ({"tvm": "0.1.0"}, 6, "the pack was built by 0.1.0"),
    ],
)
def test_a_pack_for_something_else_is_refused(
    packed: Path, runtime_only: Path, tmp_path: Path, changes: dict[str, Any], code: int, says: str
) -> None:
    done = run_pack(runtime_only, respoil(packed, tmp_path / "other.pack", in_table(**changes)))
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.pack"]


def test_a_device_without_tvm_says_what_to_install(packed: Path, tmp_path: Path) -> None:
    done = run_pack(tmp_path, packed)
    assert done.returncode == 5
    assert "pip install apache-tvm==" in done.stderr


def test_results_that_cannot_be_written_are_refused(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TVM_USE_RUNTIME_LIB", "1")  # it sets that, and other tests must not see it
    assert main([str(packed), "-x"]) == 2
    assert main([str(packed), "--help"]) == 0
    file = tmp_path / "notes.txt"
    file.write_text("something else\n")
    for place, code, says in (
        (tmp_path / "none" / "results", 7, "cannot be written"),
        (file, 2, "holds something else"),
    ):
        assert main([str(packed), str(place)]) == code
        assert says in capsys.readouterr().err
    assert file.read_text() == "something else\n"


def written(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_bytes(b"".join(map(sealed, lines)))
    return path


def header(**changes: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda lines: lines[0].update(changes)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda lines: lines.clear(), UsageError, "no results"),
        (header(kind="other"), UsageError, "kind"),
        (header(schema_version=2), UsageError, "schema_version"),
        (header(more=1), UsageError, "more"),
        (header(target={"name": "x"}), UsageError, "no results"),
        (header(target=7), UsageError, "target"),
        (header(features=["sse2"]), TargetError, "it lacks"),
    ],
)
def test_results_of_something_else_are_refused(
    lines: list[dict[str, Any]], tmp_path: Path, change: Any, error: type[AwqTvmError], says: str
) -> None:
    read_results(written(tmp_path / "good", lines))
    change(lines)
    with pytest.raises(error) as found:
        read_results(written(tmp_path / "bad", lines))
    assert says in str(found.value)


def in_final(change: Callable[[dict[str, Any]], Any]) -> Callable[[list[dict[str, Any]]], None]:
    return lambda lines: change(lines[2]["final"])


def plan(**changes: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda lines: lines[0]["parts"][1].update(changes)


def spaced(lines: list[dict[str, Any]]) -> None:
    """A tile that the family could build and does not try."""
    lines[0]["parts"][1]["configs"][1]["one_row"]["ahead"] = 12345


def of_other_target(lines: list[dict[str, Any]]) -> None:
    problem = json.loads(lines[0]["problems"][1]["problem"])
    problem["target"] = resolve("x86-64-v3" if HERE.name != "x86-64-v3" else "x86-64-v4").as_dict()
    lines[0]["problems"][1]["problem"] = json.dumps(problem)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda lines: lines[2].update(pack="0" * 64), "of another pack"),
        (lambda lines: lines[2].update(part=7), "no such part"),
        (lambda lines: lines[2].update(at="yesterday"), "at"),
        (in_final(lambda final: final["outcome"]["cold"][0].__setitem__(0, -1.0)), "greater than 0"),
        (in_final(lambda final: final["outcome"]["cold"][0].append(1.0)), "not one time for each"),
        (in_final(lambda final: final["outcome"]["hot"].pop()), "not one time for each"),
        (in_final(lambda final: final["places"].__setitem__(0, 1)), "does not have"),
        (in_final(lambda final: final["places"].__setitem__(-1, 99)), "does not have"),
        (lambda lines: lines[0]["parts"][1]["configs"][1].update(colour=1), "fields that are not tuned"),
        (spaced, "not in the space"),
        (lambda lines: lines[0]["parts"][1]["configs"].reverse(), "begin with the default"),
        (plan(rows=[3]), "other M were timed"),
        (lambda lines: lines[0]["parts"][1]["key"].update(rule_version=999), "has other schedules"),
        (of_other_target, "of another target"),
    ],
)
def test_a_bad_line_is_set_aside_and_the_others_count(
    lines: list[dict[str, Any]], tmp_path: Path, change: Any, says: str
) -> None:
    change(lines)
    report = import_results(read_results(written(tmp_path / "bad", lines)), lambda record: None)
    assert [record.key.rule for record in report.records] == ["test.faulty"]
    assert any(says in line for line in report.refused), report.refused
    assert report.left == 1


def test_a_line_of_nan_or_with_another_number_is_set_aside(results: Path, tmp_path: Path) -> None:
    first, second, third = results.read_bytes().splitlines()
    file = tmp_path / "spoiled"
    time = json.loads(third)["final"]["outcome"]["cold"][0][0]
    for bad in (
        third.replace(json.dumps(time).encode(), b"NaN"),
        third.replace(json.dumps(time).encode(), b"0.001"),
        third.replace(b'"part"', b"\xff"),
        b"[" * 100_000,
        b"null",
        b"\0",
        b"",
    ):
        assert bad != third
        file.write_bytes(b"\n".join([first, second, bad, b""]))
        report = import_results(read_results(file), lambda record: None)
        assert (len(report.records), report.left) == (1, 1)
        assert sum("line 3" in line for line in report.refused) == (bad != b"")


def test_an_output_that_is_there_is_kept(packed: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine"
    file.write_text("kept")
    with pytest.raises(ResourceError, match="exists already"):
        write_pack([FAULTY], HERE, file)
    assert file.read_text() == "kept"
    with pytest.raises(ResourceError, match="cannot be written"):
        write_pack([FAULTY], HERE, file / "below")
    keys = [FAULTY.key(part) for part in FAULTY.parts]
    report = write_pack([FAULTY], HERE, tmp_path / "none", known=keys)
    assert (report.parts, report.known) == (0, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


@pytest.mark.parametrize(
    ("target", "instead"),
    [("metal", "nothing measures Apple's GPUs yet"), ("apple-m1-cpu", "run `tune` there")],
)
def test_a_target_that_no_pack_can_measure_is_refused(tmp_path: Path, target: str, instead: str) -> None:
    with pytest.raises(TargetError, match="cannot be measured from another machine") as caught:
        write_pack([], resolve(target), tmp_path / "pack")
    assert instead in (caught.value.fix or "")


def test_the_verb_builds_and_imports(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    file = tmp_path / "made.pack"
    assert (
        run(
            [
                "tune",
                "64x48",
                "--group-size",
                "32",
                "--trials",
                "1",
                "--limit",
                "90",
                "--pack",
                str(file),
                "--json",
            ]
        )
        == 0
    )
    document = json.loads(capsys.readouterr().out)
    assert (document["file"], document["bytes"]) == (str(file), file.stat().st_size)
    assert Pack(file).content["limit"] == 90
    assert len(Pack(file).content["parts"]) == document["parts"] == document["candidates"]
    assert run(["tune", "--import", str(results), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    records = tmp_path / "data" / "awq_tvm" / "tuned" / f"{HERE.fingerprint}.jsonl"
    assert document["file"] == str(records)
    assert len(document["records"]) == len(read_records([records]).records) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "nothing to tune"),
        (["64x48", "--import", "RESULTS"], 2, "--import takes no model"),
        (["--import", "/no/such/file"], 7, "cannot be read"),
        (["--import", "RESULTS", "--target", "graviton-3"], 5, "of another target"),
        (["64x48", "--pack", "p", "--seconds", "3"], 2, "no --seconds"),
        (["64x48", "--pack", "p", "--target", "metal"], 5, "cannot be measured from another machine"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    results: Path, arguments: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["tune", *(str(results) if word == "RESULTS" else word for word in arguments)]) == code
    assert says in capsys.readouterr().err


def test_results_without_a_kernel_are_refused(
    lines: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / "empty", lines[:1])
    assert run(["tune", "--import", str(file)]) == 2
    assert "not run to the end of its first kernel" in capsys.readouterr().err


@pytest.mark.slow
def test_a_fresh_environment_runs_a_pack_with_the_runtime_alone(packed: Path, tmp_path: Path) -> None:
    """Wheels from a package index, and nothing of ours."""
    folder = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    install = Pack(packed).content["install"].split()
    quiet = ["-qq", "--disable-pip-version-check"]
    subprocess.run([folder / "bin" / "python", "-m", "pip", "install", *quiet, *install], check=True)
    file = tmp_path / "results.jsonl"
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [folder / "bin" / "python", packed, file], env=clean, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(import_results(read_results(file), lambda record: None).records) == 2
