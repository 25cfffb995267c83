"""A schedule family that changes must raise its version, or old times would be believed of new kernels."""

from __future__ import annotations

import pytest

from awq_tvm.errors import UnsupportedError
from awq_tvm.schedules.rule import versions
from tests.support import rule_digests

FIX = "`python -m tests.support.rule_digests` accepts the kernels as they are now"


def test_every_family_has_a_digest() -> None:
    named = {name.partition(",")[0] for name in rule_digests.read()}
    known = {name for family in ("x86", "arm", "cuda", "metal") for name in versions(family)}
    assert named == {name for name in known if not name.startswith("test.")}


@pytest.mark.parametrize("name", rule_digests.problems())
def test_a_changed_kernel_raises_the_version_of_its_family(name: str) -> None:
    problem, accepted = rule_digests.problems()[name], rule_digests.read()[name]
    version, rule = accepted["version"], problem.rule
    retired = f"{rule_digests.shipped_of(rule, version)} shipped records"
    assert problem.family.version == version, (
        f"{rule} is now at version {problem.family.version}, which retires {retired} of version {version}; {FIX}"
    )
    try:
        now = rule_digests.entry(problem, accepted["config"])
    except UnsupportedError as error:
        pytest.fail(f"{rule} no longer builds {accepted['config']}: raise its version; {error}")
    assert now["digest"] == accepted["digest"], (
        f"The kernels of {rule} have changed. If their times may have too, raise its version in its rule: that "
        f"retires {retired}, to be measured again. Otherwise the version stays. Then {FIX}"
    )


def test_the_digest_is_of_the_kernel_and_its_configuration() -> None:
    name, problem = next(iter(rule_digests.problems().items()))
    accepted = rule_digests.read()[name]["config"]
    one, other = rule_digests.entry(problem, accepted), rule_digests.entry(problem, accepted)
    assert one == other
    tile = accepted["one_row"]
    changed = {**accepted, "one_row": {**tile, "blocks": tile["blocks"] + 1}}
    assert rule_digests.entry(problem, changed)["digest"] != one["digest"]
