"""Which configuration a kernel is compiled with: a record's, that of the nearest shape, or the family's default."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from math import log2
from pathlib import Path
from typing import Any, Literal

from awq_tvm.compile.tuning.places import usual_files
from awq_tvm.compile.tuning.problem import Problem, Spec, plain
from awq_tvm.compile.tuning.record import KernelKey, TunedRecord, name_of_rows
from awq_tvm.compile.tuning.record_file import BadLine, existing, read_records
from awq_tvm.errors import UnsupportedError
from awq_tvm.schedules.config_fields import from_fields
from awq_tvm.schedules.rule import Choice, Part, Rule, versions
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import Target

FARTHEST = 2.0
"""Doublings of K and N together by which a shape may differ that lends its tiles."""

Source = Literal["tuned", "nearest", "default"]
_SURE: tuple[Source, ...] = ("tuned", "nearest", "default")


class RecordedChoice:
    """Answers from records; the ``Chooser`` of `compile`.

    Args:
        records: any; only those whose keys fit are used.

    Attributes:
        unfit: titles of records that this version cannot use, and why.
    """

    def __init__(self, records: Iterable[TunedRecord] = ()) -> None:
        self._records = {record.key: record for record in records}
        self._families: defaultdict[tuple[Any, ...], list[TunedRecord]] = defaultdict(list)
        for record in self._records.values():
            self._families[record.key.family].append(record)
        self.unfit = {key.title: why for key in self._records if (why := retired(key)) is not None}

    def choose(self, rule: Rule, spec: Spec, target: Target, default: Any) -> Choice:
        """See ``Chooser.choose``: each range of M has a record of its own."""
        problem = Problem(plain(spec) if isinstance(spec, MatmulSpec) else spec, target, rule.name)
        config, sources, words = default, list[Source](), list[str]()
        for part in problem.parts if self._records else ():
            config, source, said = self._part(problem, part, config)
            sources.append(source)
            words.append(f"M {name_of_rows(part.first_rows, part.last_rows)} {said}")
        if set(sources) <= {"default"}:
            return Choice(default, "default", rule.name)
        # As sure as the least sure of its parts.
        worst: Source = next(source for source in reversed(_SURE) if source in sources)
        return Choice(config, worst, f"{rule.name}: {', '.join(words)}")

    def _part(self, problem: Problem, part: Part, config: Any) -> tuple[Any, Source, str]:
        """The configuration with this part's fields, where they come from, and that in words."""
        key = problem.key(part)
        for record in self._candidates(key):
            changed = self._checked(problem, part, config, record)
            if changed is None:
                continue
            if record.key == key:
                return changed, "tuned", "tuned"
            return changed, "nearest", f"as {record.key.out_features}x{record.key.in_features}"
        return config, "default", "by default"

    def _checked(self, problem: Problem, part: Part, config: Any, record: TunedRecord) -> Any:
        """The configuration with a record's fields, or None: what the family would not try is not built."""
        try:
            if from_fields(problem.default, record.config, part.fields) in part.configs:
                return from_fields(config, record.config, part.fields)
            why = "it is not in the space of its family"
        except UnsupportedError as error:
            why = error.what
        if record.key == problem.key(part):
            self.unfit[record.key.title] = why
        return None

    def _candidates(self, key: KernelKey) -> list[TunedRecord]:
        """The record of a key, then those of other shapes that are near enough, the nearest first."""
        found = [self._records[key]] if key in self._records else []
        near = [(distance(record.key, key), record) for record in self._families.get(key.family, ())]
        near.sort(key=lambda pair: (pair[0], pair[1].key.in_features, pair[1].key.out_features))
        return found + [record for far, record in near if 0 < far <= FARTHEST]


def distance(one: KernelKey, other: KernelKey) -> float:
    """Doublings of K and of N from one shape to the other."""
    return abs(log2(one.in_features / other.in_features)) + abs(log2(one.out_features / other.out_features))


def retired(key: KernelKey) -> str | None:
    """Why no kernel asks for this record any more, in words; None if one may."""
    current = versions(key.target.partition("-")[0])
    if key.rule not in current:
        return f"there is no schedule family {key.rule}"
    if key.rule_version != current[key.rule]:
        return f"{key.rule} is at version {current[key.rule]}"
    return None


def recorded_choice(
    target: Target, places: Collection[Path] = ()
) -> tuple[RecordedChoice, tuple[BadLine, ...]]:
    """What the records know of a target: those that came with the program, the user's own, and more.

    Args:
        target: records of others are left aside.
        places: more files, or folders of them.

    Returns:
        the chooser, and the lines that were set aside.

    Raises:
        UsageError: there are no records in one of the places.
        ResourceError: a file cannot be read.
    """
    more = (path for place in places for path in existing(place))
    found = read_records(dict.fromkeys((*usual_files(), *more)))
    mine = (record for record in found.by_key().values() if record.key.target == target.fingerprint)
    return RecordedChoice(mine), found.bad
