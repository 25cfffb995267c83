from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from awq_tvm.bundle.manifest import FileInfo, Manifest, ManifestDraft, ModelInfo, parse_manifest
from awq_tvm.errors import BundleError

from .conftest import make_draft

HERE = Path("b/manifest.json")


def _manifest(**changes: object) -> Manifest:
    draft = make_draft(**changes)
    files = {name: FileInfo(sha256="0" * 64, size=1) for name in ("model.so", "weights.safetensors")}
    return Manifest(**{name: getattr(draft, name) for name in ManifestDraft.model_fields}, files=files)


def _seal(document: dict[str, object]) -> bytes:
    """Seal any document as the writer would, so that a test reaches what lies behind the seal."""
    import hashlib

    text = json.dumps({**document, "manifest_sha256": "0" * 64}, indent=2, ensure_ascii=False) + "\n"
    return text.replace("0" * 64 + '"\n}', hashlib.sha256(text.encode()).hexdigest() + '"\n}').encode()


def test_round_trip_is_exact() -> None:
    manifest = _manifest()
    again = parse_manifest(manifest.to_bytes(), HERE)
    assert again.to_bytes() == manifest.to_bytes()
    assert again.parameters == ("a", "b")
    assert again.recipe.extra == {"source": "hf:org/tiny"}
    assert again.model.bos_token_id == 1


def test_only_source_only_bundles_say_so() -> None:
    assert b"source_only" not in _manifest().to_bytes()
    raw = _manifest(source_only=True).to_bytes()
    assert json.loads(raw)["source_only"] is True
    assert parse_manifest(raw, HERE).source_only


def test_test_helper_seals_as_the_writer_does() -> None:
    document = json.loads(_manifest().to_bytes())
    assert _seal(document) == _manifest().to_bytes()


@given(position=st.integers(0, len(_manifest().to_bytes()) - 1), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(position: int, bit: int) -> None:
    raw = bytearray(_manifest().to_bytes())
    raw[position] ^= 1 << bit
    with pytest.raises(BundleError):
        parse_manifest(bytes(raw), HERE)


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"nul"])
def test_not_json(raw: bytes) -> None:
    with pytest.raises(BundleError, match="not JSON"):
        parse_manifest(raw, HERE)


def test_not_an_object() -> None:
    with pytest.raises(BundleError, match="found list"):
        parse_manifest(b"[]", HERE)


def test_other_schema_version_names_both() -> None:
    raw = _manifest().to_bytes().replace(b'"schema_version": 1', b'"schema_version": 7')
    with pytest.raises(BundleError, match="found schema_version 7, this program reads 1"):
        parse_manifest(raw, HERE)


def test_unsealed_manifest_is_refused() -> None:
    document = json.loads(_manifest().to_bytes())
    del document["manifest_sha256"]
    with pytest.raises(BundleError, match="manifest_sha256 says none"):
        parse_manifest(json.dumps(document).encode(), HERE)


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (("model", "vocab_size"), 10**12, "model.vocab_size"),
        (("model", "vocab_size"), 0, "model.vocab_size"),
        (("model", "vocab_size"), "16", "model.vocab_size"),
        (("model", "context_length"), -1, "model.context_length"),
        (("model", "eos_token_ids"), [99], "model"),
        (("model", "surprise"), 1, "model.surprise"),
        (("recipe", "activations"), "int3", "recipe.activations"),
        (("target", "required_features"), ["+avx2"], "target.required_features.0"),
        (("library",), "../model.so", "library"),
        (("library",), "manifest.json", "manifest"),
        (("weights",), "model.so", "manifest"),
        (("parameters",), ["a", "a"], "manifest"),
        (("files",), {}, "manifest"),
        (("files", "manifest.json"), {"sha256": "0" * 64, "size": 1}, "manifest"),
        (("files", "a/b"), {"sha256": "0" * 64, "size": 1}, "files"),
        (("files", "x"), {"sha256": "xyz", "size": 1}, "files"),
        (("files", "x"), {"sha256": "0" * 64, "size": -1}, "files"),
    ],
)
def test_fields_out_of_bounds(path: tuple[str, ...], value: object, field: str) -> None:
    document = json.loads(_manifest().to_bytes())
    parse_manifest(_seal(document), HERE)
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(BundleError) as caught:
        parse_manifest(_seal(document), HERE)
    assert field in (caught.value.where or "")


def test_draft_takes_lists_but_not_coercions() -> None:
    draft = make_draft(parameters=["x", "y"])
    assert draft.parameters == ("x", "y")
    with pytest.raises(ValidationError):
        make_draft(parameters=[1, 2])
    with pytest.raises(ValidationError):
        ModelInfo(**{**draft.model.model_dump(), "vocab_size": 16.0})
