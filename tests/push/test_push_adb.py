"""Pushing to Android, by a program with adb's command line; no Android has been pushed to here."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from awq_tvm.errors import BundleError, ResourceError, UnsupportedError
from awq_tvm.push.address import Address, parse_url
from awq_tvm.push.push import push_bundle
from tests.bundle.conftest import make_bundle
from tests.support import native_runner as native
from tests.support import tiny_decoder as tiny
from tests.support.devices import make_adb, put_tool

SERIAL = "emulator-5554"


@pytest.fixture
def android(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of the device's files."""
    programs, root = make_adb(tmp_path, SERIAL)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return root


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "tiny.bundle")


DEVICE = parse_url(f"adb://{SERIAL}")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def pushes(android: Path) -> int:
    return (android / "log").read_text().count(f"-s {SERIAL} push ")


def test_a_second_push_sends_nothing_and_a_change_alone(android: Path, bundle: Path, tmp_path: Path) -> None:
    first = push_bundle(bundle, DEVICE, smoke_test=False)
    assert first.folder == "/data/local/tmp/awq_tvm/tiny.bundle"
    there = android / first.folder[1:]
    assert contents(there) == contents(bundle)
    assert pushes(android) == first.files_sent == first.files
    second = push_bundle(bundle, DEVICE, smoke_test=False)
    assert (second.files_sent, second.bytes_sent, pushes(android)) == (0, 0, first.files)
    other = make_bundle(tmp_path / "new" / "tiny.bundle", tokenizer=b"[]")
    assert push_bundle(other, DEVICE, smoke_test=False).files_sent == 2
    assert contents(there) == contents(other)
    assert [path.name for path in there.parent.iterdir()] == ["tiny.bundle"]


def test_whole_files_that_arrived_are_not_sent_again(android: Path, bundle: Path) -> None:
    put_tool(android / "tools", "sync", "exit 1")
    with pytest.raises(ResourceError):
        push_bundle(bundle, parse_url("adb:///nowhere/a"), smoke_test=False)
    partial = android / "data/local/tmp/awq_tvm/tiny.bundle.partial"
    partial.mkdir(parents=True)
    (partial / ".being-pushed-by-awq_tvm").touch()
    shutil.copy(bundle / "weights.safetensors", partial / ".arriving-weights.safetensors")
    (partial / ".arriving-model.so").write_bytes((bundle / "model.so").read_bytes()[:99])
    (android / "tools" / "sync").unlink()
    report = push_bundle(bundle, DEVICE, smoke_test=False)
    assert report.files_sent == report.files - 1
    assert contents(android / report.folder[1:]) == contents(bundle)


def test_the_device_generates_what_this_machine_does(
    android: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bundle = tiny.quantized_llama(tmp_path_factory).bundle
    address = Address("adb://", "adb", SERIAL, runner=native.installed_runner(tmp_path_factory))
    report = push_bundle(bundle, address, prompt="w5 w7 w11", max_tokens=12)
    assert report.test is not None
    assert (report.test.ran, report.test.same_as_here, len(report.test.token_ids)) == (
        "awq_tvm_run",
        True,
        12,
    )
    assert (android / "data/local/tmp/awq_tvm/awq-tvm-runner/lib/libawq_tvm.so").is_file()


def test_no_such_device(android: Path, bundle: Path) -> None:
    with pytest.raises(ResourceError, match="'other' not found"):
        push_bundle(bundle, parse_url("adb://other"), smoke_test=False)


def test_trouble_there(android: Path, bundle: Path) -> None:
    put_tool(android / "tools", "mkdir", "exit 0")
    with pytest.raises(ResourceError, match=r"refused|couldn't create"):
        push_bundle(bundle, DEVICE, smoke_test=False)
    (android / "tools" / "mkdir").unlink()
    put_tool(android / "tools", "sha256sum", "echo 00  -")
    with pytest.raises(BundleError, match="arrived damaged"):
        push_bundle(bundle, DEVICE, smoke_test=False)


def test_no_sha256_on_the_device(android: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A path with all that is needed but the two programs.
    tools = android / "tools"
    for name in ("uname", "cat", "ls", "find", "wc", "sh", "dirname", "df"):
        (tools / name).symlink_to(shutil.which(name) or name)
    adb = shutil.which("adb")
    assert adb is not None
    script = Path(adb).read_text().replace(":{os.environ['PATH']}\"", '"')
    Path(adb).write_text(script)
    with pytest.raises(UnsupportedError, match="neither sha256sum nor shasum"):
        push_bundle(bundle, DEVICE, smoke_test=False)


def test_no_adb(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UnsupportedError, match="adb is not installed"):
        push_bundle(bundle, DEVICE, smoke_test=False)
