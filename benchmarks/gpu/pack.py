"""What a pack holds, as its pack.json says it. No more than the standard library: both sides read it."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from awq_tvm.compile.toolchain.launch import Launch
from awq_tvm.errors import BundleError

SCHEMA_VERSION = 2
PACK_NAME = "pack.json"

OURS, WITH_MMA, IN_TURN = "ours", "ours by mma", "ours in turn"
"""Kernels of ours: what a GPU's target ships, for Hopper what `mma` computes of the same, and those of the first
where none begins before the one before it has ended."""


@dataclass(frozen=True)
class Case:
    """One linear for one architecture, by one family of kernels.

    Attributes:
        name: ``OURS`` or ``WITH_MMA``.
        spec: the fields of its ``MatmulSpec``.
        layout: of its weight.
        arch: of GPUs: "sm_90" and the like, also where the binary is for sm_90a.
        sms: streaming multiprocessors that its launches were made for.
        image: the binary, in the pack.
        source: the CUDA source, in the pack.
        launches: by M, what runs in order.
        workspaces: bytes of the buffers that launches share, by name.
        rounds_weights_at: M whose kernels multiply by weights rounded to float16, as `wgmma` takes them.
        kernels: of each kernel what compiler and disassembler say.
        counts: by M, what is read, copied and multiplied, see ``counts.py``.
    """

    name: str
    spec: dict[str, Any]
    layout: str
    arch: str
    sms: int
    image: str
    source: str
    launches: dict[int, tuple[Launch, ...]]
    workspaces: dict[str, int]
    rounds_weights_at: tuple[int, ...] = ()
    kernels: dict[str, dict[str, int]] = field(default_factory=dict)
    counts: dict[int, dict[str, int]] = field(default_factory=dict)

    @property
    def shape(self) -> str:
        """K x N."""
        return f"{self.spec['in_features']}x{self.spec['out_features']}"

    def at(self, tokens: Collection[int]) -> Case:
        """The same for no other M than these."""
        launches = {m: found for m, found in self.launches.items() if m in tokens}
        return replace(self, launches=launches, counts={m: self.counts[m] for m in launches})

    @staticmethod
    def of(fields: dict[str, Any]) -> Case:
        """Read back what ``asdict`` and JSON made."""
        launches = {int(m): tuple(map(_launch, found)) for m, found in fields["launches"].items()}
        counts = {int(m): found for m, found in fields["counts"].items()}
        rounds = tuple(fields["rounds_weights_at"])
        return Case(**{**fields, "launches": launches, "counts": counts, "rounds_weights_at": rounds})


@dataclass(frozen=True)
class Pack:
    """All of it.

    Attributes:
        folder: where it is.
        made_with: versions, and the revision of the sources.
        limits: the binary that measures the machine, by architecture.
        cases: every linear for every architecture; what ships stands before what is measured beside it.
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
