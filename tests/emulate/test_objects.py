"""Objects that are compiled once and found again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from awq_tvm.emulate import objects
from awq_tvm.emulate.objects import Job, compiled_objects
from awq_tvm.emulate.unit import UNIT_CHARACTERS, in_units
from awq_tvm.errors import TargetError

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


@pytest.fixture
def unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A translation unit, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "unit.cc"
    path.write_text("int number() { return 1; }")
    return path


def test_a_unit_is_compiled_once(unit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (made,) = compiled_objects([Job(unit, ("-O0",))])
    assert made.is_relative_to(unit.parent / "cache" / "awq_tvm")
    raw = made.read_bytes()
    monkeypatch.setattr(objects, "run_compiler", lambda _: pytest.fail("compiled again"))
    elsewhere = unit.rename(unit.with_name("other.cc"))
    assert compiled_objects([Job(elsewhere, ("-O0",))]) == [made]
    assert made.read_bytes() == raw


def test_whatever_changes_an_object_makes_a_new_one(unit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = unit.with_name("library.so")
    library.write_bytes(b"1")

    def made(*flags: str) -> Path:
        return compiled_objects([Job(unit, flags, (library,))])[0]

    found = {made("-O0"), made("-O1")}
    unit.write_text("int number() { return 2; }")
    found.add(made("-O0"))
    library.write_bytes(b"22")
    objects._version.cache_clear()
    found.add(made("-O0"))
    monkeypatch.setattr(objects, "_headers", lambda: "others")
    found.add(made("-O0"))
    assert len(found) == 5


def test_only_what_units_may_include_makes_new_objects(unit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native = unit.with_name("native")
    native.mkdir()
    monkeypatch.setattr(objects, "NATIVE", native)
    monkeypatch.setattr(objects, "_headers", objects._headers.__wrapped__)
    (made,) = compiled_objects([Job(unit, ("-O0",))])
    (native / "runtime.cc").write_text("int other() { return 1; }")
    assert compiled_objects([Job(unit, ("-O0",))]) == [made]
    (native / "emulator.h").write_text("int other();")
    assert compiled_objects([Job(unit, ("-O0",))]) != [made]


def test_a_unit_that_does_not_compile_leaves_nothing(unit: Path) -> None:
    unit.write_text("int number() { return missing; }")
    with pytest.raises(TargetError, match="does not compile") as error:
        compiled_objects([Job(unit, ("-O0",))])
    assert "missing" in error.value.why
    assert list(objects.cache_folder().iterdir()) == []


def test_objects_used_long_ago_make_room(unit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (old,) = compiled_objects([Job(unit, ("-O0",))])
    (used,) = compiled_objects([Job(unit, ("-O1",))])
    os.utime(old, (1, 1))
    os.utime(used, (2, 2))
    monkeypatch.setattr(objects, "KEPT_BYTES", used.stat().st_size * 5 // 2)
    compiled_objects([Job(unit, ("-O1",))])
    assert old.exists()
    compiled_objects([Job(unit, ("-O2",))])
    assert not old.exists()
    assert used.exists()


def test_an_object_that_another_process_discards_meanwhile_is_no_error(unit: Path) -> None:
    folder = objects.cache_folder()
    folder.mkdir(parents=True)
    (folder / "listed.o").symlink_to(folder / "gone.o")
    (found,) = compiled_objects([Job(unit, ("-O0",))])
    assert found.exists()


def test_kernels_are_cut_into_units_in_their_order() -> None:
    long = "a" * UNIT_CHARACTERS
    assert in_units([]) == [[]]
    assert in_units(["x", "y", long, "z"]) == [["x", "y", long], ["z"]]
