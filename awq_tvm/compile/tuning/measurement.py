"""What is asked of whatever measures candidates, and what it answers."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from awq_tvm.compile.tuning.problem import Problem

Failure = Literal["refused", "wrong", "died", "slow"]


@dataclass(frozen=True)
class Trial:
    """Configurations to build, check and time beside each other.

    Attributes:
        problem: the linear.
        configs: fields that differ from the default, for each candidate.
        rows: each M to time.
        checked_rows: M at which numbers are checked first.
        seconds: of timing, for each candidate, cold and hot together.
    """

    problem: Problem
    configs: tuple[dict[str, Any], ...]
    rows: tuple[int, ...]
    checked_rows: tuple[int, ...]
    seconds: float = 0.2

    def to_json(self) -> str:
        """One line, for another process."""
        return json.dumps(
            {
                "problem": self.problem.to_json(),
                "configs": self.configs,
                "rows": self.rows,
                "checked_rows": self.checked_rows,
                "seconds": self.seconds,
            }
        )

    @staticmethod
    def from_json(text: str) -> Trial:
        """Read back what ``to_json`` wrote."""
        found = json.loads(text)
        return Trial(
            Problem.from_json(found["problem"]),
            tuple(found["configs"]),
            tuple(found["rows"]),
            tuple(found["checked_rows"]),
            float(found["seconds"]),
        )


@dataclass(frozen=True)
class Timed:
    """Microseconds of a call, for each candidate of a trial and each M: all of them computed the right numbers.

    Attributes:
        cold: with weights that come from memory.
        hot: with the weights of the call before.
    """

    cold: tuple[tuple[float, ...], ...]
    hot: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Failed:
    """That a trial has no times.

    Attributes:
        kind: "refused" (it could not be built), "wrong" (its numbers), "died" (its process) or "slow" (the time
            limit).
        why: in words.
    """

    kind: Failure
    why: str


Outcome = Timed | Failed


def outcome_to_json(outcome: Outcome) -> str:
    """One line, for another process."""
    return json.dumps(asdict(outcome))


def outcome_from_json(text: str) -> Outcome:
    """Read back what ``outcome_to_json`` wrote.

    Raises:
        ValueError: it is nothing of the kind.
    """
    try:
        found = json.loads(text)
        if "kind" in found:
            return Failed(found["kind"], str(found["why"]))
        return Timed(_floats(found["cold"]), _floats(found["hot"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"no outcome of a trial: {text[:100]!r}") from error


def _floats(rows: list[list[float]]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(map(float, row)) for row in rows)


class Machine(Protocol):
    """What measures, as records name it."""

    @property
    def name(self) -> Literal["local", "rpc", "pack"]:
        """Of the kind of back end."""

    @property
    def threads(self) -> int:
        """That kernels run on."""

    @property
    def machine(self) -> str:
        """What the machine calls its processor."""

    def load(self) -> float | None:
        """Processes that want to run on the machine besides, on average; None where that is not known."""


class Measurer(Machine, Protocol):
    """A back end: this machine, or a way to another one."""

    def measure(self, trial: Trial) -> Outcome:
        """Build, check and time; never raises for what a candidate does.

        Raises:
            TargetError: the machine itself was lost. Nothing more can be measured; what was found stays.
        """
