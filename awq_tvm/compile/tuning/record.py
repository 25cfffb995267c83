"""What one line of a file of tuned records may say: closed, typed, bounded, and free of NaN.

A record answers a key with a configuration and with how that was found. The key holds what decides which of them is
best and nothing else: no hash of an IR, no version of a library, so that records outlive both. A schedule family that
changes what its configurations mean raises its version, and thereby leaves the older records behind.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

SCHEMA_VERSION: Literal[1] = 1
MAX_LINE_BYTES = 1 << 16

Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,127}$")]
Text = Annotated[str, Field(max_length=512)]
Size = Annotated[int, Field(ge=1, le=1 << 24)]
Microseconds = Annotated[float, Field(gt=0, lt=1e12, allow_inf_nan=False)]
Number = Annotated[int, Field(ge=-(1 << 40), le=1 << 40)]
Activations = Literal["float", "bfloat16", "int8"]
Fields = dict[Word, bool | Number | Word]


class Closed(BaseModel):
    """Takes what it names and nothing else, and of its very types."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)


class KernelKey(Closed):
    """What is tuned, on which hardware: equal keys ask the same question.

    Attributes:
        op: "dequantize_matmul" or "dense_matmul".
        target: fingerprint of the target.
        rule: the schedule family, "x86.int8" say.
        rule_version: of the family.
        layout: of the weights.
        weights: what a weight is stored as: "codes", or the dtype of unquantized ones.
        bits: of a code; 16 or 32 for unquantized weights.
        group_size: inputs that share a scale; 0 for unquantized weights.
        activations: "int8", "bfloat16", or "float" for the dtype that the target computes in by itself.
        in_features: K.
        out_features: N.
        rows: the range of M, "1", "2-8" or "9+".
    """

    op: Word
    target: Word
    rule: Word
    rule_version: Annotated[int, Field(ge=1, le=1 << 20)]
    layout: Word
    weights: Word
    bits: Annotated[int, Field(ge=1, le=64)]
    group_size: Annotated[int, Field(ge=0, le=1 << 24)]
    activations: Activations
    in_features: Size
    out_features: Size
    rows: Annotated[str, Field(max_length=32)]

    @field_validator("rows")
    @classmethod
    def _rows_are_a_range(cls, rows: str) -> str:
        range_of_rows(rows)
        return rows

    @property
    def family(self) -> tuple[Any, ...]:
        """All of the key but the shape: records of one family can stand in for each other."""
        return tuple(value for name, value in self if name not in ("in_features", "out_features"))

    @property
    def title(self) -> str:
        """The key in words, without the target."""
        weights = f"w{self.bits} g{self.group_size}" if self.group_size else self.weights
        shape = f"{self.out_features}x{self.in_features}"
        return f"{shape} {weights} {self.activations}, M {self.rows}, {self.rule} v{self.rule_version}"


class Times(Closed):
    """Of one call: the lower quartile of many short stretches; of several M the geometric mean.

    Attributes:
        cold: with weights that come from memory.
        hot: with the weights of the call before.
    """

    cold: Microseconds
    hot: Microseconds


class Measured(Closed):
    """How a record came to be.

    Attributes:
        at: UTC, "2026-11-26T12:00:00Z".
        by: the back end.
        machine: what the machine calls its processor.
        threads: that the kernel ran on.
        rows: M that were timed.
        trials: candidates that were measured for it.
        load: processes that wanted to run on the machine besides, on average; None where it is not known.
        tvm: version that compiled the candidates.
    """

    at: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
    by: Literal["local", "rpc", "pack"]
    machine: Text
    threads: Annotated[int, Field(ge=1, le=1 << 16)]
    rows: Annotated[tuple[Size, ...], Field(min_length=1, max_length=64, strict=False)]
    trials: Annotated[int, Field(ge=1, le=1 << 30)]
    load: Annotated[float, Field(ge=0, lt=1e6, allow_inf_nan=False)] | None = None
    tvm: Word


class TunedRecord(Closed):
    """One line.

    Attributes:
        key: what was tuned.
        config: fields of the family's configuration that were chosen; what is not named stays as it is by default.
        microseconds: of the chosen configuration.
        default_microseconds: of the family's default, from the same run.
        roof_microseconds: what the hardware would allow, cold, where that is known.
        measured: how.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    key: KernelKey
    config: dict[Word, bool | Number | Word | Fields] = Field(min_length=1, max_length=64)
    microseconds: Times
    default_microseconds: Times
    roof_microseconds: Microseconds | None = None
    measured: Measured

    def to_line(self) -> bytes:
        """The record as one line of JSON with its line break."""
        return self.model_dump_json(exclude_none=True).encode() + b"\n"


def parse_line(line: bytes) -> TunedRecord:
    """Read what ``to_line`` wrote.

    Raises:
        ValueError: in words for people, whatever is wrong with it.
    """
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"the line has {len(line)} bytes, a record has at most {MAX_LINE_BYTES}")
    try:
        return TunedRecord.model_validate_json(line)
    except ValidationError as error:
        raise ValueError(first_fault(error)) from None


def first_fault(error: ValidationError) -> str:
    """What is wrong, in words for people: the first field that does not fit, and why."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(map(str, first["loc"]))
    return f"{field}: {first['msg']}" if field else str(first["msg"])


def range_of_rows(text: str) -> tuple[int, int | None]:
    """Read "1", "2-8" or "9+": the smallest and the largest M, None for no end.

    Raises:
        ValueError: it is none of these.
    """
    found = re.fullmatch(r"([1-9]\d{0,7})(?:(\+)|-([1-9]\d{0,7}))?", text)
    if found is None or (found[3] and int(found[3]) <= int(found[1])):
        raise ValueError(f'{text[:40]!r} is not a range of rows such as "1", "2-8" or "9+"')
    first = int(found[1])
    return first, None if found[2] else int(found[3] or first)


def name_of_rows(first: int, last: int | None) -> str:
    """The inverse of ``range_of_rows``."""
    return f"{first}+" if last is None else str(first) if first == last else f"{first}-{last}"
