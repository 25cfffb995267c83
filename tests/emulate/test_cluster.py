"""Clusters: blocks that read each other's shared memory, and each way to do it too early or too late."""

from __future__ import annotations

import numpy as np
import pytest

from awq_tvm.emulate import EmulatedKernels
from awq_tvm.errors import BundleError

BLOCKS, CLUSTER, THREADS = 8, 4, 64

ARRIVE = 'asm volatile("barrier.cluster.arrive.release.aligned;" : : : "memory"); '
WAIT = 'asm volatile("barrier.cluster.wait.acquire.aligned;" : : : "memory"); '
MEET = ARRIVE + WAIT
RANK = 'unsigned rank; asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank) :); '
SHARED = "__shared__ alignas(64) float s[64]; float sum = 0, got; unsigned mapped; "
PUT = "s[threadIdx.x] = x_ptr[blockIdx.x * 64 + threadIdx.x]; "


def read(address: str, rank: str) -> str:
    """C++ that adds the float32 at an address of a block's shared memory to the sum."""
    return (
        f'asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"({address}), "r"({rank})); '
        'asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(got) : "r"(mapped) : "memory"); sum += got; '
    )


OWN = "(uint32_t)__cvta_generic_to_shared(s + (63 - threadIdx.x))"
ALL = f"for (unsigned other = 0; other < {CLUSTER}; ++other) {{ {read(OWN, 'other')} }} "
STORE = "y_ptr[blockIdx.x * 64 + threadIdx.x] = sum * (rank + 1);"
BODIES = {
    "sums": f"{PUT}{MEET}{ALL}{MEET}{STORE}",
    "sums_twice": f"{PUT}{MEET}{ALL}{MEET}s[threadIdx.x] = 1; {MEET}{ALL}{MEET}{STORE}",
    "no_first_barrier": f"{PUT}{ALL}{MEET}{STORE}",
    "barrier_of_the_block": f"{PUT}__syncthreads(); {ALL}{MEET}{STORE}",
    "no_last_barrier": f"{PUT}{MEET}{ALL}{STORE}",
    "first_alone_reads_and_none_waits": f"{PUT}{MEET}if (rank == 0) {{ {ALL} }} {STORE}",
    "writes_too_early": f"{PUT}{MEET}{ALL}__syncthreads(); s[threadIdx.x] = 0; {MEET}{STORE}",
    "last_writes_too_early": (
        f"{PUT}{MEET}{ALL}__syncthreads(); if (rank == 3) s[threadIdx.x] = 0; {MEET}{STORE}"
    ),
    "never_written": f"if (threadIdx.x < 32) {{ {PUT} }} {MEET}{ALL}{MEET}{STORE}",
    "writes_while_arriving": f"{ARRIVE}{PUT}{WAIT}{MEET}{ALL}{MEET}{STORE}",
    "reads_while_arriving": f"{PUT}{MEET}{ARRIVE}{ALL}{WAIT}{STORE}",
    "arrives_twice": f"{ARRIVE}{ARRIVE}{WAIT}{STORE}",
    "waits_alone": f"{WAIT}{STORE}",
    "arrives_at_the_end": f"{STORE}{ARRIVE}",
    "half_a_block": f"if (threadIdx.x < 32) {{ {MEET} }} {STORE}",
    "half_a_cluster": f"if (rank < 2) {{ {MEET} }} {STORE}",
    "no_such_block": f"{PUT}{MEET}{read(OWN, str(CLUSTER))}{MEET}{STORE}",
    "behind_the_array": f"{PUT}{MEET}{read(OWN + ' + 256', '(rank + 1) % 4')}{MEET}{STORE}",
    "misaligned": f"{PUT}{MEET}{read(OWN + ' + 2', '(rank + 1) % 4')}{MEET}{STORE}",
    "reads_what_is_new": (
        f"s[threadIdx.x] = 0; {MEET}{PUT}if (rank > 0) {{ {read(OWN, '0')} }} {MEET}{STORE}"
    ),
    "fills_while_read": (
        f'asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" : : "r"((uint32_t)__cvta_generic_to_shared(s + '
        f'threadIdx.x)), "l"(x_ptr + threadIdx.x) : "memory"); {MEET}{ALL}{MEET}{STORE}'
    ),
}


@pytest.fixture(scope="module")
def kernels(kernels_of) -> EmulatedKernels:
    bodies = {name: f"{SHARED}{RANK}{body}" for name, body in BODIES.items()}
    return kernels_of("float* x_ptr, float* y_ptr", bodies)


def launched(kernels: EmulatedKernels, name: str, blocks: int = BLOCKS, cluster: int = CLUSTER) -> np.ndarray:
    x, y = np.arange(BLOCKS * THREADS, dtype=np.float32), np.zeros(BLOCKS * THREADS, np.float32)
    kernels.launch(name, [x, y], (blocks, 1, 1), (THREADS, 1, 1), cluster=cluster)
    return y.reshape(-1, CLUSTER, THREADS)


def sums() -> np.ndarray:
    """Of the blocks of each cluster, the threads turned round: what each block of the cluster finds."""
    x = np.arange(BLOCKS * THREADS, dtype=np.float32).reshape(-1, CLUSTER, THREADS)
    return x.sum(1, keepdims=True)[..., ::-1]


RANKS = np.arange(1, CLUSTER + 1, dtype=np.float32)[None, :, None]


def test_blocks_of_a_cluster_read_each_other(kernels) -> None:
    np.testing.assert_array_equal(launched(kernels, "sums"), sums() * RANKS)
    np.testing.assert_array_equal(launched(kernels, "sums_twice"), (sums() + CLUSTER) * RANKS)


FAULTS = {
    "no_first_barrier": "uninitialised",
    "barrier_of_the_block": "need not have begun",
    "no_last_barrier": "has ended, and its shared memory with it",
    "first_alone_reads_and_none_waits": "the thread ends, and another block read its shared memory",
    "writes_too_early": "missing barrier of the cluster: thread 63 of block 0 wrote its shared memory",
    "last_writes_too_early": "missing barrier of the cluster: another block read shared memory",
    "never_written": "uninitialised",
    "reads_what_is_new": "missing barrier of the cluster: thread 63 of block 0 wrote its shared memory",
    "writes_while_arriving": "write to shared memory between arriving at a barrier of the cluster and waiting",
    "reads_while_arriving": "before waiting at a barrier of the cluster",
    "arrives_twice": "has not waited at the one before",
    "waits_alone": "without arriving there",
    "arrives_at_the_end": "has not waited at a barrier of the cluster where it arrived",
    "half_a_block": "divergent",
    "half_a_cluster": "divergent",
    "no_such_block": "block 4 of a cluster that has 4",
    "behind_the_array": "outside its arrays: out of bounds",
    "misaligned": "misaligned",
    "fills_while_read": "that an asynchronous copy is about to fill",
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str, kernels) -> None:
    with pytest.raises(BundleError) as error:
        launched(kernels, name)
    assert error.value.why.startswith(f"kernel {name}, block (")
    assert FAULTS[name] in error.value.why
    # Nothing of it is left for the next launch.
    np.testing.assert_array_equal(launched(kernels, "sums"), sums() * RANKS)


@pytest.mark.parametrize(("blocks", "cluster"), [(6, 4), (8, 0), (8, 32)])
def test_clusters_that_do_not_fit_are_refused(blocks: int, cluster: int, kernels) -> None:
    with pytest.raises(BundleError) as error:
        launched(kernels, "sums", blocks, cluster)
    assert f"clusters of {cluster} in {blocks} blocks" in error.value.why


def test_a_launch_without_clusters_has_clusters_of_one(kernels) -> None:
    with pytest.raises(BundleError) as error:
        launched(kernels, "sums", cluster=1)
    assert "block 1 of a cluster that has 1" in error.value.why
