"""What `manifest.json` may say: closed, typed, bounded, and sealed by a digest of its own bytes.

The digest finds damage (a flipped bit, a hand edit); it is no signature and proves nothing about the writer.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from awq_tvm.errors import BundleError

SCHEMA_VERSION: Literal[1] = 1
MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 16 << 20
_UNSEALED = "0" * 64
_SEAL = re.compile(rb'"manifest_sha256": "([0-9a-f]{64})"\n\}\n\Z')

Text = Annotated[str, Field(max_length=4096)]
Name = Annotated[str, Field(min_length=1, max_length=512)]
# One flat directory, no hidden files: a name cannot climb out of the bundle.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,127}$")]
Feature = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
TokenId = Annotated[int, Field(ge=0, lt=1 << 24)]


class _Closed(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)


class Versions(_Closed):
    """Exact versions the bundle was built with; tvm and tvm_ffi must be the ones that load it."""

    awq_tvm: Name
    tvm: Name
    tvm_ffi: Name


class ModelInfo(_Closed):
    """The model and the shapes the runtime needs. Lengths are in tokens."""

    name: Name
    architecture: Name
    vocab_size: int = Field(ge=1, le=1 << 24)
    num_hidden_layers: int = Field(ge=1, le=4096)
    hidden_size: int = Field(ge=1, le=1 << 20)
    context_length: int = Field(ge=1, le=1 << 24)
    prefill_chunk_size: int = Field(ge=1, le=1 << 24)
    max_sequences: int = Field(ge=1, le=1 << 16)
    eos_token_ids: tuple[TokenId, ...] = Field(max_length=256, strict=False)
    bos_token_id: TokenId | None = None

    @model_validator(mode="after")
    def _ids_are_in_the_vocabulary(self) -> Self:
        ids = (*self.eos_token_ids, *(() if self.bos_token_id is None else (self.bos_token_id,)))
        if any(token >= self.vocab_size for token in ids):
            raise ValueError(f"token ids {sorted(ids)} reach past vocab_size {self.vocab_size}")
        return self


class RecipeInfo(_Closed):
    """How the weights were made. `extra` is free text: "source" there is what a rebuild line names."""

    method: Name
    bits: int = Field(ge=1, le=32)
    group_size: int = Field(
        ge=0, le=1 << 20, description="of most weights; 0 where they are not quantized in groups"
    )
    activations: Literal["float", "int8"]
    extra: dict[Name, Text] = Field(default_factory=dict, max_length=256)


class TargetInfo(_Closed):
    """What the library was compiled for; features have LLVM's names, GPUs nvcc's (one of them is enough)."""

    name: Name
    kind: Literal["cpu", "cuda", "metal"]
    fingerprint: Name
    triple: Name
    required_features: tuple[Feature, ...] = Field(default=(), max_length=512, strict=False)


class KernelInfo(_Closed):
    """One kernel of the library and where its schedule came from."""

    name: Name
    count: int = Field(ge=1, le=1 << 20)
    source: Literal["tuned", "nearest", "default", "fallback"]
    reason: Text = ""


class TuningInfo(_Closed):
    """Tuning coverage of the whole library."""

    kernels: tuple[KernelInfo, ...] = Field(default=(), max_length=65536, strict=False)


class FileInfo(_Closed):
    """Size in bytes and SHA-256 of one file."""

    sha256: Sha256
    size: int = Field(ge=0, le=1 << 50)


class ManifestDraft(_Closed):
    """A manifest before its files exist: what the compiler hands to the writer.

    With `source_only` nvcc has not compiled the kernels yet, and nothing can run the library; a finished bundle does
    not have the field.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    versions: Versions
    model: ModelInfo
    recipe: RecipeInfo
    target: TargetInfo
    library: FileName
    weights: FileName
    parameters: tuple[Name, ...] = Field(max_length=1 << 17, strict=False)
    tuning: TuningInfo = TuningInfo()
    source_only: bool = False

    @model_serializer(mode="wrap")
    def _without_what_goes_without_saying(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        if not self.source_only:
            del fields["source_only"]
        return fields

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        if len(set(self.parameters)) != len(self.parameters):
            raise ValueError("parameters names a tensor twice")
        if self.library == self.weights:
            raise ValueError("library and weights are one file")
        if MANIFEST_NAME in (self.library, self.weights):
            raise ValueError(f"{MANIFEST_NAME} cannot be the library or the weights")
        return self


class Manifest(ManifestDraft):
    """`manifest.json` of a finished bundle: the draft and the closed list of its files."""

    files: dict[FileName, FileInfo] = Field(max_length=1024)
    manifest_sha256: Sha256 = _UNSEALED

    @model_validator(mode="after")
    def _files_hold_the_parts(self) -> Self:
        missing = [name for name in (self.library, self.weights) if name not in self.files]
        if missing:
            raise ValueError(f"files does not list {missing}")
        if MANIFEST_NAME in self.files:
            raise ValueError(f"files lists {MANIFEST_NAME} itself")
        return self

    def to_bytes(self) -> bytes:
        """The sealed JSON: its last field is the SHA-256 of the text with that field all zeros."""
        unsealed = self.model_copy(update={"manifest_sha256": _UNSEALED}).model_dump_json(indent=2) + "\n"
        seal = hashlib.sha256(unsealed.encode()).hexdigest()
        head, _, tail = unsealed.rpartition(_UNSEALED)
        return f"{head}{seal}{tail}".encode()


def parse_manifest(raw: bytes, where: Path) -> Manifest:
    """Read and check the bytes of a manifest.

    Raises:
        BundleError: not JSON, another schema version, a broken seal, or a field out of its bounds.
    """
    rebuild = "copy the bundle again, or build it again with `python -m awq_tvm compile`"
    version = _schema_version(raw, where, rebuild)
    if version != SCHEMA_VERSION:
        raise BundleError(
            "The bundle has another schema version.",
            where=str(where),
            why=f"found schema_version {version!r}, this program reads {SCHEMA_VERSION}",
            fix="build it again with this version: `python -m awq_tvm compile MODEL -o BUNDLE`",
        )
    seal = _SEAL.search(raw)
    found = "none" if seal is None else seal.group(1).decode()
    # The zeros stand where the digest stands: the last 64 characters before the closing quote.
    unsealed = raw if seal is None else raw[: seal.start(1)] + _UNSEALED.encode() + raw[seal.end(1) :]
    expected = hashlib.sha256(unsealed).hexdigest()
    if found != expected:
        raise BundleError(
            "The manifest was changed after it was written.",
            where=str(where),
            why=f"manifest_sha256 says {found}, the text has {expected}",
            fix=rebuild,
        )
    try:
        return Manifest.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise BundleError(
            "The manifest does not fit its schema.",
            where=f"{where}, {field}",
            why=f"{first['msg']} ({error.error_count()} problem(s) in all)",
            fix=rebuild,
        ) from None


def _schema_version(raw: bytes, where: Path, fix: str) -> Any:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BundleError(
            "The manifest is not JSON.", where=str(where), why=str(error)[:200], fix=fix
        ) from None
    if not isinstance(value, dict):
        raise BundleError(
            "The manifest is not a JSON object.",
            where=str(where),
            why=f"found {type(value).__name__}",
            fix=fix,
        )
    return value.get("schema_version")
