"""What a pack holds, as its pack.json says it. No more than the standard library: both sides read it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from awq_tvm.compile.toolchain.launch import Launch
from awq_tvm.errors import BundleError

SCHEMA_VERSION = 1
PACK_NAME = "pack.json"


@dataclass(frozen=True)
class Case:
    """One linear for one architecture.

    Attributes:
        spec: the fields of its ``MatmulSpec``.
        layout: of its weight.
        arch: "sm_90" and the like.
        sms: streaming multiprocessors that its launches were made for.
        image: the binary, in the pack.
        source: the CUDA source, in the pack.
        launches: by M, what runs in order.
        workspaces: bytes of the buffers that launches share, by name.
        kernels: of each kernel what compiler and disassembler say.
        counts: by M, what is read, copied and multiplied, see ``counts.py``.
    """

    spec: dict[str, Any]
    layout: str
    arch: str
    sms: int
    image: str
    source: str
    launches: dict[int, tuple[Launch, ...]]
    workspaces: dict[str, int]
    kernels: dict[str, dict[str, int]] = field(default_factory=dict)
    counts: dict[int, dict[str, int]] = field(default_factory=dict)

    @property
    def shape(self) -> str:
        """K x N."""
        return f"{self.spec['in_features']}x{self.spec['out_features']}"

    @staticmethod
    def of(fields: dict[str, Any]) -> Case:
        """Read back what ``asdict`` and JSON made."""
        launches = {int(m): tuple(map(_launch, found)) for m, found in fields["launches"].items()}
        counts = {int(m): found for m, found in fields["counts"].items()}
        return Case(**{**fields, "launches": launches, "counts": counts})


@dataclass(frozen=True)
class Pack:
    """All of it.

    Attributes:
        folder: where it is.
        made_with: versions, and the revision of the sources.
        limits: the binary that measures the machine, by architecture.
        cases: every linear for every architecture.
        models: the folder of a whole model, by architecture.
    """

    folder: Path
    made_with: dict[str, str]
    limits: dict[str, str]
    cases: tuple[Case, ...]
    models: dict[str, str] = field(default_factory=dict)

    def write(self) -> None:
        """Write pack.json."""
        plain = {
            "schema_version": SCHEMA_VERSION,
            "made_with": self.made_with,
            "limits": self.limits,
            "cases": [asdict(case) for case in self.cases],
            "models": self.models,
        }
        (self.folder / PACK_NAME).write_text(json.dumps(plain, indent=1), encoding="utf-8")

    @staticmethod
    def read(folder: Path) -> Pack:
        """Read pack.json.

        Raises:
            BundleError: it is missing, no JSON, or of another schema.
        """
        path = folder / PACK_NAME
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            if plain["schema_version"] != SCHEMA_VERSION:
                raise BundleError(
                    "This pack is of another version",
                    where=str(path),
                    why=f"schema {plain['schema_version']}, and {SCHEMA_VERSION} is read",
                )
            cases = tuple(map(Case.of, plain["cases"]))
            return Pack(folder, plain["made_with"], plain["limits"], cases, plain["models"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(
                "This is no pack",
                where=str(path),
                why=f"{type(error).__name__}: {error}",
                fix="make one: python -m benchmarks.gpu.build -o PACK",
            ) from None


def _launch(fields: dict[str, Any]) -> Launch:
    """Read back what ``asdict`` and JSON made."""
    lists = {name: tuple(fields[name]) for name in ("arguments", "grid", "block")}
    return Launch(**{**fields, **lists})
