from __future__ import annotations

import importlib.metadata
import importlib.util
import json

import pytest

from awq_tvm.cli import doctor
from awq_tvm.cli.main import run


def test_targets(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["targets", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"targets", "aliases", "this_machine"} <= found.keys()
    names = {target["name"] for target in found["targets"]}
    assert set(found["aliases"].values()) <= names
    assert run(["targets"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in names)


def test_one_target(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["targets", "cuda", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "cuda"
    assert run(["targets", "cuda"]) == 0
    assert '"cuda"' in capsys.readouterr().out
    assert run(["targets", "abacus"]) == 5
    assert "abacus" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("tvm") is None, reason="needs TVM")
def test_doctor_here(capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    by_name = {check["name"]: check for check in found["checks"]}
    assert found["ok"] is (code == 0)
    assert by_name["tvm self-test"]["status"] == "ok"
    assert by_name["apache-tvm"]["found"].startswith(importlib.metadata.version("apache-tvm"))
    assert {"python", "cpu", "nvcc", "ziglang", "disk", "demo model"} <= by_name.keys()


def test_doctor_that_finds_a_fault_ends_with_5(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checks = (lambda: doctor.Check("a", "ok", "fine"), lambda: doctor.Check("b", "warn", "gone", "get b"))
    monkeypatch.setattr(doctor, "CHECKS", checks)
    assert run(["doctor"]) == 0
    assert "fix: get b" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "CHECKS", (*checks, lambda: doctor.Check("c", "fail", "broken")))
    assert run(["doctor"]) == 5
    assert "FAIL  c" in capsys.readouterr().out


def test_versions_other_than_the_pinned_pair_fail() -> None:
    installed = importlib.metadata.version("pytest")
    assert doctor._version("pytest", installed).status == "ok"
    other = doctor._version("pytest", "0.0.1")
    assert (other.status, other.fix) == ("fail", "pip install pytest==0.0.1")
    assert doctor._version("no-such-distribution", "1").status == "fail"


def test_self_test_that_dies_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_SELF_TEST", "import os; os.abort()")
    check = doctor._self_test()
    assert check.status == "fail"
    assert "exit status -6" in check.found
    monkeypatch.setattr(doctor, "_SELF_TEST", "print('ok')")
    assert doctor._self_test().status == "ok"


def test_missing_tools_and_packages_are_notes() -> None:
    assert doctor._tool("no-such-tool-anywhere", "get it") == doctor.Check(
        "no-such-tool-anywhere", "warn", "not found", "get it"
    )
    assert doctor._tool("sh", "").status == "ok"
    assert doctor._package("no_such_package", "nothing", "x").status == "warn"
    assert doctor._package("pytest", "this", "x").status == "ok"


def test_pinned_pair_is_the_one_the_project_asks_for() -> None:
    wanted = importlib.metadata.requires("apache-tvm") or []
    assert any(line.startswith("apache-tvm-ffi") for line in wanted)
    assert importlib.metadata.version("apache-tvm") == doctor.TVM_VERSION
    assert importlib.metadata.version("apache-tvm-ffi") == doctor.TVM_FFI_VERSION
