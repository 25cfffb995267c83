"""One refusal a row of the list of bad bundles; the `bundle` fixture is the good twin of each."""

from __future__ import annotations

import importlib.metadata
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from awq_tvm.bundle import machine
from awq_tvm.bundle.manifest import MAX_MANIFEST_BYTES, TargetInfo, Versions
from awq_tvm.bundle.reader import open_bundle
from awq_tvm.bundle.verify import check_target, read_manifest, verify_bundle
from awq_tvm.errors import BundleError, TargetError

from .conftest import host_triple, make_bundle

FILES = [
    "README.md",
    "manifest.json",
    "model.so",
    "tokenizer.json",
    "tokenizer_config.json",
    "weights.safetensors",
]


def test_every_file_is_listed_above(bundle: Path) -> None:
    assert sorted(path.name for path in bundle.iterdir()) == FILES


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_one_byte_flipped(bundle: Path, name: str, place: float) -> None:
    raw = bytearray((bundle / name).read_bytes())
    raw[round(place * (len(raw) - 1))] ^= 1
    (bundle / name).write_bytes(raw)
    with pytest.raises(BundleError) as caught:
        open_bundle(bundle)
    assert name in (caught.value.where or "")


@pytest.mark.parametrize("name", FILES)
def test_truncated(bundle: Path, name: str) -> None:
    raw = (bundle / name).read_bytes()
    (bundle / name).write_bytes(raw[:-1])
    with pytest.raises(BundleError) as caught:
        open_bundle(bundle)
    assert name in (caught.value.where or "")


@pytest.mark.parametrize("name", FILES)
def test_missing_file(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=name):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["extra.so", ".hidden"])
def test_extra_file(bundle: Path, name: str) -> None:
    (bundle / name).write_bytes(b"")
    with pytest.raises(BundleError, match=f"extra: {name}"):
        open_bundle(bundle)


def test_extra_directory(bundle: Path) -> None:
    (bundle / "sub").mkdir()
    with pytest.raises(BundleError, match="extra: sub"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", FILES)
def test_symbolic_link(bundle: Path, tmp_path: Path, name: str) -> None:
    (bundle / name).rename(tmp_path / "elsewhere")
    (bundle / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="regular file"):
        open_bundle(bundle)


def test_directory_in_place_of_a_file(bundle: Path) -> None:
    (bundle / "model.so").unlink()
    (bundle / "model.so").mkdir()
    with pytest.raises(BundleError, match="not a regular file"):
        open_bundle(bundle)


def test_fifo_in_place_of_the_manifest(bundle: Path) -> None:
    (bundle / "manifest.json").unlink()
    os.mkfifo(bundle / "manifest.json")
    with pytest.raises(BundleError, match="no regular file"):
        open_bundle(bundle)


def test_foreign_library_of_the_same_size(bundle: Path) -> None:
    size = (bundle / "model.so").stat().st_size
    (bundle / "model.so").write_bytes(b"\0" * size)
    with pytest.raises(BundleError, match="changed after it was written"):
        open_bundle(bundle)


def test_huge_manifest_is_not_read(bundle: Path) -> None:
    with (bundle / "manifest.json").open("r+b") as file:
        file.truncate(MAX_MANIFEST_BYTES + 1)
    with pytest.raises(BundleError, match=f"at most {MAX_MANIFEST_BYTES}"):
        open_bundle(bundle)


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        open_bundle(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="not a directory"):
        open_bundle(str(tmp_path / "file"))


@pytest.mark.parametrize("field", ["tvm", "tvm_ffi"])
def test_other_version(tmp_path: Path, field: str) -> None:
    good = read_manifest(make_bundle(tmp_path / "good")).versions
    verify_bundle(tmp_path / "good")
    other = Versions(**{**good.model_dump(), field: "0.0.1"})
    with pytest.raises(BundleError) as caught:
        open_bundle(make_bundle(tmp_path / "other", versions=other))
    installed = importlib.metadata.version("apache-" + field.replace("_", "-"))
    assert f"0.0.1 is needed, {installed} is installed" in (caught.value.why or "")
    assert "python -m awq_tvm compile hf:org/tiny" in (caught.value.fix or "")


def test_runtime_is_not_installed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", none)
    with pytest.raises(BundleError, match="none is installed"):
        open_bundle(bundle)


def _target(**changes: object) -> TargetInfo:
    fields = {"name": "other", "kind": "cpu", "fingerprint": "f", "triple": host_triple()}
    return TargetInfo(**{**fields, **changes})


def test_other_instruction_set(tmp_path: Path) -> None:
    other = "aarch64" if machine.architecture() == "x86_64" else "x86_64"
    path = make_bundle(tmp_path / "other", target=_target(triple=f"{other}-unknown-linux-gnu"))
    verify_bundle(path, target=False)
    with pytest.raises(TargetError) as caught:
        open_bundle(path)
    assert f"instruction set {other}; found {machine.architecture()}" in (caught.value.why or "")
    assert "python -m awq_tvm compile hf:org/tiny --target auto" in (caught.value.fix or "")


def test_other_operating_system(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "other", target=_target(triple=f"{machine.architecture()}-pc-windows-msvc"))
    with pytest.raises(TargetError, match="operating system windows"):
        open_bundle(path)


def test_missing_cpu_feature_names_it(tmp_path: Path) -> None:
    baseline = "sse2" if machine.architecture() == "x86_64" else "neon"
    open_bundle(make_bundle(tmp_path / "good", target=_target(required_features=[baseline])))
    wanted = [baseline, "feature-of-tomorrow"]
    with pytest.raises(TargetError) as caught:
        open_bundle(make_bundle(tmp_path / "other", target=_target(required_features=wanted)))
    assert "a CPU without feature-of-tomorrow" in (caught.value.why or "")


def test_cuda_bundle_and_the_gpus_found(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "gpu", target=_target(kind="cuda", required_features=["sm_86", "sm_90a"]))
    manifest = read_manifest(path)
    here = machine.this_machine(gpus=False)
    check_target(path, manifest, device=replace(here, gpus=("sm_75", "sm_89")))
    with pytest.raises(TargetError, match="needs sm_86 or sm_90a; found sm_80"):
        check_target(path, manifest, device=replace(here, gpus=("sm_80",)))
    check_target(path, manifest, device=replace(here, gpus=("sm_90",)))
    with pytest.raises(TargetError, match="CUDA GPU and its driver; found none") as caught:
        check_target(path, manifest, device=here)
    assert f"python -m awq_tvm verify {path} --emulate" in (caught.value.fix or "")


@pytest.mark.skipif(machine.operating_system() == "darwin", reason="Apple machines have the GPU")
def test_metal_bundle_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="an Apple GPU") as caught:
        open_bundle(make_bundle(tmp_path / "gpu", target=_target(kind="metal")))
    assert "--emulate" in (caught.value.fix or "")
    # What the emulator cannot load is looked at, and not run.
    mac = _target(kind="metal", triple="arm64-apple-macos11")
    with pytest.raises(TargetError) as caught:
        open_bundle(make_bundle(tmp_path / "mac", target=mac))
    assert f"python -m awq_tvm verify {tmp_path / 'mac'} --any-target" in (caught.value.fix or "")


def test_manifest_is_plain_json_to_others(bundle: Path) -> None:
    document = json.loads((bundle / "manifest.json").read_bytes())
    assert document["schema_version"] == 1
    assert set(document["files"]) == set(FILES) - {"manifest.json"}
