"""Open a verified bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from awq_tvm.bundle.manifest import Manifest
from awq_tvm.bundle.verify import verify_bundle

# No file that travels beside the weights is as large; a tokenizer.json of a 256k vocabulary has about 35 MB.
MAX_SIDE_FILE_BYTES = 64 << 20


@dataclass(frozen=True)
class Bundle:
    """A bundle that passed every check.

    Attributes:
        path: the directory.
        manifest: its checked manifest.
    """

    path: Path
    manifest: Manifest

    @property
    def library(self) -> Path:
        """The compiled library."""
        return self.path / self.manifest.library

    @property
    def weights(self) -> Path:
        """The safetensors file of the packed weights."""
        return self.path / self.manifest.weights

    def side_files(self) -> Mapping[str, bytes]:
        """Tokenizer files and the like, by name; files above 64 MiB are left out."""
        own = {self.manifest.library, self.manifest.weights}
        return {
            name: (self.path / name).read_bytes()
            for name, info in self.manifest.files.items()
            if name not in own and info.size <= MAX_SIDE_FILE_BYTES
        }


def open_bundle(path: Path | str, *, target: bool = True) -> Bundle:
    """Verify a bundle directory in full and open it.

    Args:
        path: the directory.
        target: also require that this machine can execute it.

    Raises:
        BundleError: it is damaged, incomplete or of another version.
        TargetError: it is for another machine.
    """
    path = Path(path)
    return Bundle(path, verify_bundle(path, target=target))
