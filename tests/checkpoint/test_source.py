from __future__ import annotations

from pathlib import Path

import pytest

from awq_tvm.checkpoint.source import default_cache, resolve_source
from awq_tvm.errors import CheckpointError, UsageError

from .tiny_models import save_folder, tiny_config, tiny_weights


def test_folders_and_gguf_files_are_themselves(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"")
    assert resolve_source(str(tmp_path), tmp_path) == tmp_path
    assert resolve_source(str(file), tmp_path) == file
    assert default_cache().name == "awq_tvm"


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(b"")
    with pytest.raises(UsageError, match=r"neither a folder nor a .gguf"):
        resolve_source(str(tmp_path / "m.bin"), tmp_path)
    with pytest.raises(UsageError, match="no such model"):
        resolve_source(str(tmp_path / "absent"), tmp_path)


def test_a_hub_name_without_prefix_gets_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        resolve_source("org/name", tmp_path)
    assert "hf:org/name" in (caught.value.fix or "")


@pytest.mark.parametrize(
    "model", ["hf:", "hf:a b", "hf:a/b/c", "hf:../x", "hf:a/b@", "hf:a/b@../c", "hf:-a/b"]
)
def test_names_that_cannot_be_are_refused(tmp_path: Path, model: str) -> None:
    with pytest.raises(UsageError, match="not the name of a Hugging Face model"):
        resolve_source(model, tmp_path)


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and huggingface_hub told not to use the network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_offline_and_absent_is_a_clear_error(tmp_path: Path, offline_hub: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot fetch the model") as caught:
        resolve_source("hf:org/name@main", tmp_path)
    assert caught.value.where == "hf:org/name@main"


def test_offline_and_present_is_found(tmp_path: Path, offline_hub: Path) -> None:
    revision = "a" * 40
    snapshots = offline_hub / "models--org--name" / "snapshots"
    snapshots.mkdir(parents=True)
    config = tiny_config()
    save_folder(snapshots / revision, config, tiny_weights(config))
    refs = offline_hub / "models--org--name" / "refs"
    refs.mkdir()
    (refs / "main").write_text(revision)
    for model in ("hf:org/name", "hf:org/name@main", f"hf:org/name@{revision}"):
        assert resolve_source(model, tmp_path) == snapshots / revision
