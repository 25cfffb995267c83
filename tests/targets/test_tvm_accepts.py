"""TVM and its LLVM know every target that we describe."""

from __future__ import annotations

import pytest

from awq_tvm.targets import Target, all_targets, detect

tvm_target = pytest.importorskip("tvm.target")

EVERY = (*all_targets(), detect())
CPUS = tuple(target for target in EVERY if target.kind == "cpu")


@pytest.mark.parametrize("target", EVERY, ids=lambda target: target.name)
def test_tvm_takes_the_target(target: Target) -> None:
    taken = tvm_target.Target(target.tvm_target_with_host)
    assert str(taken.kind) == target.tvm_target["kind"]
    for key in ("mcpu", "mtriple", "arch"):
        if key in target.tvm_target:
            assert taken.attrs[key] == target.tvm_target[key]
    assert (taken.host is not None) == (target.kind != "cpu")


@pytest.mark.parametrize("target", CPUS, ids=lambda target: target.name)
def test_llvm_gives_the_cpu_exactly_the_features_we_compare(target: Target) -> None:
    from tvm.target import codegen

    from awq_tvm.targets import arm, x86

    known = x86.V4_FEATURES | x86.EXTRA_FEATURES if target.family == "x86" else arm.KNOWN_FEATURES
    in_llvm = {str(name) for name in codegen.llvm_get_cpu_features(tvm_target.Target(target.tvm_target))}
    assert in_llvm & known == target.features


@pytest.mark.parametrize(
    "host", [t for t in all_targets() if t.kind != "cpu"], ids=lambda target: target.name
)
def test_llvm_knows_the_host_of_a_gpu(host: Target) -> None:
    from tvm.target import codegen

    named = codegen.llvm_get_cpu_features(tvm_target.Target(host.host))
    nonsense = codegen.llvm_get_cpu_features(tvm_target.Target({**(host.host or {}), "mcpu": "no-such-cpu"}))
    # LLVM falls back to a generic CPU for a name it does not know: a known one has more features than that.
    assert len(named) > len(nonsense) or "mcpu" not in (host.host or {})
