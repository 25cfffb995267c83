"""What nvcc said of each kernel of a bundle for CUDA, which travels in it."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from awq_tvm.bundle.manifest import Manifest
from awq_tvm.bundle.verify import check_hash
from awq_tvm.errors import BundleError

NAME = "kernels.json"


class KernelUse(BaseModel):
    """What one kernel takes, compiled for one architecture.

    Attributes:
        name: of the kernel.
        arch: "sm_80" and the like.
        registers: of a thread.
        spill_store_bytes: of a thread, that did not fit the registers.
        spill_load_bytes: likewise, read back.
        shared_bytes: static shared memory of a block; what a launch asks for comes to it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str
    arch: str
    registers: int | None
    spill_store_bytes: int | None
    spill_load_bytes: int | None
    shared_bytes: int | None


_REPORT = TypeAdapter(list[KernelUse])


def read_kernel_report(path: Path, manifest: Manifest) -> list[KernelUse]:
    """The report in a bundle; empty where it has none.

    Raises:
        BundleError: it is not the one that the manifest describes.
    """
    if NAME not in manifest.files:
        return []
    check_hash(path, manifest, NAME)
    try:
        return _REPORT.validate_json((path / NAME).read_bytes())
    except ValidationError as error:
        raise BundleError(
            "The report of kernels is damaged.",
            where=str(path / NAME),
            why=str(error.errors(include_url=False)[0]["msg"]),
            fix="build the bundle again with `python -m awq_tvm compile`",
        ) from None
