"""What a tuner can choose for GPUs: candidates that fit, in an order that a roofline gives, and that nvcc builds."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import fields, replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from awq_tvm.compile.toolchain.nvcc import Nvcc
from awq_tvm.compile.tuning.problem import Problem
from awq_tvm.errors import UnsupportedError
from awq_tvm.schedules.config_fields import from_fields, to_fields
from awq_tvm.schedules.cuda.config import FewConfig, TensorCoreConfig, TiledConfig
from awq_tvm.schedules.cuda.cost import Gpu, few_work, tiled_work
from awq_tvm.schedules.cuda.division import Division
from awq_tvm.schedules.cuda.hopper_config import HopperConfig
from awq_tvm.schedules.gpu.config import GpuMatmulConfig
from awq_tvm.schedules.metal.config import SimdgroupConfig
from awq_tvm.schedules.spec import MatmulSpec
from awq_tvm.targets import Target, all_targets, resolve
from tests.support.gpu_kernels import build_for
from tests.support.tuned_records import record_of

GPUS = [target.name for target in all_targets() if target.kind != "cpu"]
A100 = resolve("nvidia-a100")
SPEC = MatmulSpec(4096, 4096, 4, 128, "float16")


def problem_of(spec: MatmulSpec = SPEC, target: Target = A100) -> Problem:
    found = Problem.of(spec, target)
    assert found is not None
    return found


def shared_bytes(config: Any, spec: MatmulSpec) -> int:
    if isinstance(config, GpuMatmulConfig):
        return config.shared_bytes
    if isinstance(config, SimdgroupConfig):
        return config.threadgroup_bytes
    assert isinstance(config, TensorCoreConfig | HopperConfig)
    return config.shared_bytes(spec.bits, spec.group_size)


@pytest.mark.parametrize("name", GPUS)
@pytest.mark.parametrize("shape", [(4096, 4096, 4, 128), (576, 960, 4, 64), (96, 40, 3, 32)])
def test_every_candidate_fits_the_gpu_and_differs_where_it_may(
    name: str, shape: tuple[int, int, int, int]
) -> None:
    target = resolve(name)
    spec = MatmulSpec(*shape, "float16")
    problem = problem_of(spec, target)
    assert problem.parts[0].first_rows == 1
    assert problem.parts[-1].last_rows is None
    for before, after in itertools.pairwise(problem.parts):
        assert after.first_rows == (before.last_rows or 0) + 1
    for part in problem.parts:
        assert part.configs[0] == problem.default
        assert len(set(part.configs)) == len(part.configs) > 3
        assert set(part.timed_rows) <= set(part.checked_rows)
        assert all(part.first_rows <= m <= (part.last_rows or m) for m in part.checked_rows)
        changed = {name.partition(".")[0] for name in part.fields}
        for config in part.configs:
            others = [f.name for f in fields(config) if f.name not in changed]
            assert to_fields(config, others) == to_fields(problem.default, others)
            assert from_fields(problem.default, to_fields(config, part.fields), part.fields) == config
            assert shared_bytes(config, spec) <= (target.shared_memory_bytes or 0)


@pytest.mark.parametrize("name", ["nvidia-a100", "nvidia-h100"])
def test_warps_that_divide_k_are_tried_with_and_without(name: str) -> None:
    (part,) = [part for part in problem_of(target=resolve(name)).parts if "middle.1" in part.fields]
    assert part.configs[0].middle[1].k_warps == 2
    assert {config.middle[1].k_warps for config in part.configs} == {1, 2}
    assert {config.middle[1].stages for config in part.configs if config.middle[1].k_warps == 2} > {2, 3}


def test_a_smaller_gpu_has_a_smaller_space() -> None:
    small = replace(A100, shared_memory_bytes=99 * 1024)
    for here, there in zip(problem_of().parts, problem_of(target=small).parts, strict=True):
        assert set(there.configs) < set(here.configs)


def test_the_model_knows_what_keeps_a_kernel_from_its_roof() -> None:
    gpu = Gpu.of(A100)
    head = MatmulSpec(4096, 128256, 4, 128, "float16")
    bytes_at_least = 4096 * 128256 * 4.2 / 8
    best = few_work(head, FewConfig(1, 1, 4, 4)).seconds(gpu)
    assert 1.0 <= best / (bytes_at_least / gpu.bandwidth) < 1.3, "many blocks, much under way"
    tiny = MatmulSpec(4096, 256, 4, 128, "float16")
    wide, narrow = (few_work(tiny, FewConfig(1, tiles, 4, 4)).seconds(gpu) for tiles in (4, 1))
    assert narrow < wide, "4 blocks leave more SMs idle than 16"
    assert few_work(head, FewConfig(1, 1, 2, 2)).under_way < few_work(head, FewConfig(1, 1, 2, 4)).under_way
    whole, divided = (
        tiled_work(tiny, TiledConfig(4, 2), 64, division).seconds(gpu)
        for division in (Division(2, 0, 1), Division(0, 2, 16))
    )
    assert divided < whole, "two tiles alone do not fill 108 SMs"
    most = tiled_work(SPEC, TiledConfig(8, 4, 1, 8, 8), 128, Division(8, 0, 1))
    assert most.seconds(replace(gpu, registers=1)) == float("inf")


def test_the_model_knows_that_a_last_round_is_divided() -> None:
    gpu, tile = Gpu.of(A100), TiledConfig(8, 2)
    wide = MatmulSpec(8192, 128 * 112, 4, 128, "float16")
    seconds = {
        name: tiled_work(wide, tile, 128, division).seconds(gpu)
        for name, division in {
            "whole rounds": Division(108, 0, 1),
            "one more": Division(108, 4, 16),
            "not divided": Division(112, 0, 1),
        }.items()
    }
    assert seconds["whole rounds"] < seconds["one more"] < seconds["not divided"]


@pytest.mark.parametrize("spec", [SPEC, MatmulSpec(4096, 14336, 4, 128, "float16")])
def test_the_first_candidates_are_no_worse_than_most(spec: MatmulSpec) -> None:
    gpu = Gpu.of(A100)
    for part in problem_of(spec).parts[:1]:
        place = int(part.fields[0].removeprefix("few."))
        times = [few_work(spec, config.few[place]).seconds(gpu) for config in part.configs]
        assert times[1:] == sorted(times[1:])
        assert max(times[1:11]) < median(times)


def test_fields_name_an_element_of_a_tuple() -> None:
    default = problem_of().default
    found = to_fields(default, ["few.0", "sms"])
    assert found["few.0"] == {"eights": 1, "tiles": 2, "warps": 8, "stages": 4}
    both = {"few.0": {"tiles": 1}, "middle.1": {"stages": 3}}
    changed = from_fields(default, both, ["few.0", "middle.1"])
    assert (changed.few[0].tiles, changed.middle[1].stages) == (1, 3)
    assert record_of(found).config == found, "a record can hold it"
    for strange in ({"few.7": {"tiles": 2}}, {"few.x": {"tiles": 2}}, {"sms.0": 1}, {"few.0": 3}):
        with pytest.raises(UnsupportedError, match="another type"):
            from_fields(default, strange, list(strange))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
def test_the_first_candidates_are_built_without_spilling(tmp_path: Path) -> None:
    problem = problem_of()
    for part in problem.parts:
        for place, config in enumerate(part.configs[1:3]):
            folder = tmp_path / f"{part.first_rows}-{place}"
            folder.mkdir()
            source = build_for(problem.family, problem.spec, A100, config).source
            path = folder / "kernels.cu"
            path.write_text(source)
            _, _, kernels = Nvcc.find().compile(path, ("sm_80",), None)
            assert kernels
            for kernel in kernels:
                assert not kernel.spill_store_bytes, (part.first_rows, config)
