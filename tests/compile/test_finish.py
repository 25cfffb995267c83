"""Source-only bundles: made without nvcc, refused by what would run them, finished where nvcc is."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest

from awq_tvm.bundle.manifest import MANIFEST_NAME
from awq_tvm.bundle.reader import open_bundle
from awq_tvm.bundle.verify import verify_bundle
from awq_tvm.bundle.writer import write_bundle
from awq_tvm.compile.driver import compile_model, kernel_files
from awq_tvm.compile.finish import finish_bundle
from awq_tvm.compile.toolchain import BuiltLibrary, build_library, require_tools
from awq_tvm.compile.toolchain.cuda import UNFINISHED_JOB_NAME, UNFINISHED_MODULE_NAME
from awq_tvm.errors import AwqTvmError, BundleError, ResourceError, TargetError, UsageError
from awq_tvm.push.address import Address
from awq_tvm.push.push import push_bundle
from awq_tvm.targets import resolve
from tests.bundle.conftest import make_bundle, make_draft, make_weights
from tests.cli.conftest import awq_tvm
from tests.compile.toolchain_modules import module_with
from tests.support import native_runner as native
from tests.support import tiny_decoder as tiny

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
TARGET = resolve("nvidia-a100")


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH with what links, and without nvcc."""
    folder = tmp_path_factory.mktemp("tools")
    for name in ("g++", "nm", "as", "ld"):
        path = shutil.which(name)
        if path is None:
            pytest.skip(f"{name} is not installed")
        (folder / name).symlink_to(path)
    return str(folder)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tools: str) -> BuiltLibrary:
    """One kernel, built where nvcc is not on the path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", tools)
        with pytest.raises(TargetError, match="--source-only"):
            require_tools(TARGET)
        require_tools(TARGET, source_only=True)
        folder = tmp_path_factory.mktemp("built")
        return build_library(module_with("expf"), TARGET, folder, source_only=True)


@pytest.fixture
def unfinished(built: BuiltLibrary, tmp_path: Path) -> Path:
    """A bundle of that kernel."""
    return write(tmp_path / "unfinished", built, source_only=True)


def write(out: Path, library: BuiltLibrary, *, source_only: bool) -> Path:
    target = make_draft().target.model_copy(update={"kind": "cuda", "name": TARGET.name})
    draft = make_draft(source_only=source_only, target=target)
    write_bundle(out, draft, library.path, make_weights().items(), kernel_files(library), "# tiny\n")
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_left_for_later(built: BuiltLibrary) -> None:
    names = {path.name for path in built.files}
    assert names == {"kernels.cu", UNFINISHED_JOB_NAME, UNFINISHED_MODULE_NAME}
    assert [kernel.name for kernel in built.kernels] == ["bad_kernel"]
    assert str(built.path.parent) not in (built.path.parent / UNFINISHED_JOB_NAME).read_text()


def test_whatever_would_run_it_refuses_and_says_how_to_finish(unfinished: Path) -> None:
    verify_bundle(unfinished, target=False)
    calls = (
        lambda: open_bundle(unfinished),
        lambda: push_bundle(
            unfinished, Address("ssh://localhost/folder", "ssh", "localhost"), smoke_test=False
        ),
    )
    for call in calls:
        with pytest.raises(TargetError, match="as source only") as error:
            call()
        assert "awq_tvm finish" in (error.value.fix or "")
        assert f"verify {unfinished} --emulate` tries this one here" in (error.value.fix or "")


@needs_nvcc
def test_finished_it_is_what_nvcc_would_have_made_at_once(unfinished: Path, tmp_path: Path) -> None:
    (tmp_path / "direct").mkdir()
    library = build_library(module_with("expf"), TARGET, tmp_path / "direct")
    before = contents(unfinished)
    finish_bundle(unfinished, tmp_path / "finished")
    expected = contents(write(tmp_path / "at_once", library, source_only=False))
    found = contents(tmp_path / "finished")
    # The card is written by the compile driver, which this bundle has not seen.
    for name in ("README.md", MANIFEST_NAME):
        del found[name], expected[name]
    assert found == expected
    assert contents(unfinished) == before
    assert not verify_bundle(tmp_path / "finished", target=False).source_only


@needs_nvcc
def test_another_source_than_the_bundle_shows_is_refused(unfinished: Path, tmp_path: Path) -> None:
    (unfinished / "kernels.cu").write_text("// nothing\n")
    native.reseal(unfinished, files=files_anew(unfinished))
    with pytest.raises(BundleError, match=r"another kernels\.cu"):
        finish_bundle(unfinished, tmp_path / "finished")
    assert [path.name for path in tmp_path.iterdir()] == ["unfinished"]


@pytest.mark.parametrize(
    ("name", "content"),
    [(UNFINISHED_JOB_NAME, b"{}"), (UNFINISHED_JOB_NAME, b"\xff"), (UNFINISHED_MODULE_NAME, b"no gzip")],
)
@needs_nvcc
def test_what_is_left_to_do_cannot_be_read(
    unfinished: Path, tmp_path: Path, name: str, content: bytes
) -> None:
    (unfinished / name).write_bytes(content)
    native.reseal(unfinished, files=files_anew(unfinished))
    with pytest.raises(BundleError, match="cannot be finished"):
        finish_bundle(unfinished, tmp_path / "finished")


def files_anew(bundle: Path) -> dict[str, object]:
    from awq_tvm.push.tree import local_file

    paths = [path for path in bundle.iterdir() if path.name != MANIFEST_NAME]
    found = {path.name: local_file(path) for path in paths}
    return {name: {"sha256": file.sha256, "size": file.size} for name, file in found.items()}


def test_refusals(unfinished: Path, tmp_path: Path, tools: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cases: list[tuple[Path, Path, type[AwqTvmError], str]] = [
        (make_bundle(tmp_path / "finished"), tmp_path / "out", UsageError, "finished already"),
        (unfinished, tmp_path / "finished", ResourceError, "exists already"),
        (unfinished, tmp_path / "out", TargetError, "nvcc"),
    ]
    monkeypatch.setenv("PATH", tools)
    for bundle, out, kind, message in cases:
        with pytest.raises(kind, match=message):
            finish_bundle(bundle, out)
    (unfinished / "kernels.cu").write_bytes(b"x" * (unfinished / "kernels.cu").stat().st_size)
    with pytest.raises(BundleError, match="was changed"):
        finish_bundle(unfinished, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="Only bundles for CUDA"):
        require_tools(resolve("cpu"), source_only=True)


@pytest.mark.slow
@needs_nvcc
def test_a_whole_model(tmp_path: Path, tools: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled without nvcc, run in the emulator, finished: byte for byte the bundle that nvcc makes at once."""
    model = tiny.make_model("llama", intermediate_size=128, attention_bias=True)
    checkpoint = tiny.save_quantized(model, tmp_path / "checkpoint")
    target = dataclasses.replace(TARGET, num_sms=1)
    compile_model(str(checkpoint), tmp_path / "direct", target=target)
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", tools)
    compile_model(str(checkpoint), tmp_path / "unfinished", target=target, source_only=True)
    emulated = awq_tvm("verify", tmp_path / "unfinished", "--emulate", "--prompt", "w1 w2", "--json")
    assert emulated.returncode == 0, emulated.stderr
    generated = awq_tvm("generate", tmp_path / "unfinished", "--prompt", "w1", "--json")
    assert generated.returncode == 5
    assert "source only" in json.loads(generated.stdout)["error"]["what"]
    monkeypatch.setenv("PATH", path)
    done = awq_tvm("finish", tmp_path / "unfinished", "-o", tmp_path / "finished")
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "finished") == contents(tmp_path / "direct")
