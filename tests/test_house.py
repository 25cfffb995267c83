"""The rules of the house that no linter knows: layout, packaging, imports, links."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import awq_tvm

ROOT = Path(__file__).resolve().parent.parent
TOP_PACKAGES = ("passes", "schedules", "targets")


def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def source_files() -> list[Path]:
    folders = [ROOT / "awq_tvm", *(ROOT / name for name in TOP_PACKAGES)]
    # rglob does not follow the symlinks inside awq_tvm, so that each file comes once.
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported_modules(path: Path) -> Iterator[str]:
    """Dotted names: "tvm.runtime" for ``import tvm.runtime`` and for ``from tvm import runtime``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", TOP_PACKAGES)
def test_top_packages_are_linked_into_awq_tvm(name: str) -> None:
    assert (ROOT / "awq_tvm" / name).readlink() == Path("..") / name


@pytest.mark.parametrize("name", TOP_PACKAGES)
def test_top_packages_refuse_their_bare_name(name: str) -> None:
    bare = run_python(f"import {name}")
    assert bare.returncode != 0
    assert f"import awq_tvm.{name}, not {name}" in bare.stderr
    assert run_python(f"import awq_tvm.{name}").returncode == 0


def test_the_wheel_carries_every_package() -> None:
    on_disk = set()
    for path in source_files():
        if path.name == "__init__.py":
            parts = path.parent.relative_to(ROOT).parts
            on_disk.add(".".join(parts if parts[0] == "awq_tvm" else ("awq_tvm", *parts)))
    setuptools = project()["tool"]["setuptools"]  # type: ignore[index]
    assert set(setuptools["packages"]) == on_disk
    assert setuptools["package-dir"] == {"awq_tvm": "awq_tvm", **{f"awq_tvm.{n}": n for n in TOP_PACKAGES}}


def test_every_folder_of_sources_is_a_package() -> None:
    assert [relative(path) for path in source_files() if not (path.parent / "__init__.py").is_file()] == []


def test_the_version_is_the_same_everywhere() -> None:
    assert project()["project"]["version"] == awq_tvm.__version__  # type: ignore[index]
    assert f"## [{awq_tvm.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_command_line_starts_without_heavy_libraries() -> None:
    heavy = "{'torch', 'transformers', 'tvm', 'tvm_ffi', 'numpy'}"
    done = run_python(f"import sys, awq_tvm.cli, awq_tvm.__main__; print({heavy} & set(sys.modules))")
    assert done.stdout.strip() == "set()", done.stderr


def test_the_runtime_uses_only_the_runtime_of_tvm() -> None:
    for path in (ROOT / "awq_tvm" / "runtime").rglob("*.py"):
        for module in imported_modules(path):
            assert module.split(".")[0] != "tvm", f"{relative(path)} imports {module}"
            if module.split(".")[0] == "tvm_ffi":
                assert path.name == "tvm_library.py", f"{relative(path)} imports {module}"


def test_nothing_runs_code_from_a_file_of_the_user() -> None:
    unsafe_modules = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
    unsafe_words = re.compile(r"\btorch\.load\(|\btrust_remote_code\s*=\s*True|\byaml\.load\(|\bnp\.load\(")
    for path in source_files():
        assert not unsafe_modules & {name.split(".")[0] for name in imported_modules(path)}, relative(path)
        assert not unsafe_words.search(path.read_text(encoding="utf-8")), relative(path)


def test_files_have_one_idea() -> None:
    lengths = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in source_files()}
    assert {name: length for name, length in lengths.items() if length > 450} == {}


def test_links_between_documents_lead_somewhere() -> None:
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    broken = []
    for document in documents:
        text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if "://" not in target and not (document.parent / target).exists():
                broken.append(f"{relative(document)} -> {target}")
    assert broken == []


def test_documents_name_only_commands_of_the_makefile() -> None:
    targets = set(
        re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    )
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        named = set(re.findall(r"`make ([a-z-]+)`", document.read_text(encoding="utf-8")))
        assert named <= targets, relative(document)


def test_documents_name_only_files_that_are_there() -> None:
    places = "awq_tvm|passes|schedules|targets|tests|benchmarks|docs"
    missing = [
        f"{relative(document)} -> {name}"
        for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
        for name in re.findall(rf"`((?:{places})/[\w./-]+\.\w+)`", document.read_text(encoding="utf-8"))
        if not (ROOT / name).exists()
    ]
    assert missing == []
