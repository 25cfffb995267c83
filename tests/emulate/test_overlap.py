"""Launches that may begin before those before them have ended: each way to use what is not there yet is found."""

from __future__ import annotations

import numpy as np
import pytest

from awq_tvm.emulate import EmulatedKernels
from awq_tvm.errors import BundleError

T = "blockIdx.x * 64 + threadIdx.x"
WAIT = 'asm volatile("griddepcontrol.wait;" : : : "memory"); '
NEXT = 'asm volatile("griddepcontrol.launch_dependents;" : : : "memory"); '
COPY = (
    '__shared__ alignas(64) float s[64]; asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" : : '
    '"r"((uint32_t)__cvta_generic_to_shared(s + threadIdx.x)), "l"(x_ptr + threadIdx.x) : "memory"); '
    'asm volatile("cp.async.wait_all;" : : : "memory"); '
)
BODIES = {
    "first": f"y_ptr[{T}] = x_ptr[{T}] + 1;",
    "first_early": f"{NEXT}y_ptr[{T}] = x_ptr[{T}] + 1;",
    "waits": f"{NEXT}{WAIT}y_ptr[{T}] = x_ptr[{T}] + w_ptr[{T}];",
    "reads_weights_early": f"{NEXT}float w = w_ptr[{T}]; {WAIT}y_ptr[{T}] = x_ptr[{T}] + w;",
    "reads_early": f"{NEXT}float x = x_ptr[{T}]; {WAIT}y_ptr[{T}] = x + w_ptr[{T}];",
    "copies_early": f"{NEXT}{COPY}{WAIT}y_ptr[{T}] = s[threadIdx.x] + w_ptr[{T}];",
    "writes_early": f"{NEXT}y_ptr[{T}] = w_ptr[{T}]; {WAIT}",
    "waits_late": f"{NEXT}y_ptr[{T}] = x_ptr[{T}] + w_ptr[{T}]; {WAIT}",
    "never_waits": f"{NEXT}y_ptr[{T}] = x_ptr[{T}] + w_ptr[{T}];",
    "touches_nothing": f"{NEXT}",
    "half_wait": f"{NEXT}if (threadIdx.x < 32) {{ {WAIT}y_ptr[{T}] = x_ptr[{T}]; }}",
    "writes_bytes": f"{NEXT}{WAIT}((unsigned char*)y_ptr)[{T}] = 1;",
}


@pytest.fixture(scope="module")
def kernels(kernels_of) -> EmulatedKernels:
    return kernels_of("float* x_ptr, float* w_ptr, float* y_ptr", BODIES)


class Stream:
    """Launches in their order, each from one array to the next."""

    def __init__(self, kernels: EmulatedKernels) -> None:
        self.kernels = kernels
        self.weight = np.full(128, 10, np.float32)
        self.arrays = [np.arange(128, dtype=np.float32)]
        kernels.synchronize()

    def launch(self, name: str, overlaps: bool = True, source: int = -1) -> None:
        y = np.zeros(128, np.float32)
        given = [self.arrays[source], self.weight, y]
        self.kernels.launch(name, given, (2, 1, 1), (64, 1, 1), overlaps=overlaps)
        self.arrays.append(y)


@pytest.mark.parametrize("first", ["first", "first_early"])
@pytest.mark.parametrize("name", ["waits", "reads_weights_early"])
def test_what_is_waited_for_is_there(first: str, name: str, kernels) -> None:
    stream = Stream(kernels)
    stream.launch(first, overlaps=False)
    for _ in range(3):
        stream.launch(name)
    assert stream.arrays[-1].tolist() == [i + 31 for i in range(128)]


FAULTS = {
    "reads_early": ("read of 4 bytes before griddepcontrol.wait", "kernel first,"),
    "copies_early": ("read of 4 bytes before griddepcontrol.wait", "kernel first,"),
    "waits_late": ("read of 4 bytes before griddepcontrol.wait", "kernel first,"),
    "writes_early": ("write of 4 bytes of global memory before griddepcontrol.wait", "kernel first,"),
    "never_waits": ("read of 4 bytes before griddepcontrol.wait", "kernel first,"),
    "touches_nothing": ("ends without griddepcontrol.wait", "kernel first,"),
    "half_wait": ("ends without griddepcontrol.wait", "kernel first,"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_and_names_both_kernels(name: str, kernels) -> None:
    stream = Stream(kernels)
    stream.launch("first", overlaps=False)
    with pytest.raises(BundleError) as error:
        stream.launch(name)
    assert error.value.why.startswith(f"kernel {name}, block (")
    for said in FAULTS[name]:
        assert said in error.value.why
    # Launched as usual, the same kernel does nothing wrong.
    stream.launch(name, overlaps=False)


def test_a_launch_between_does_not_end_what_came_before_it(kernels) -> None:
    """It lets the next begin before it has waited itself, and then the one before may still run."""
    stream = Stream(kernels)
    stream.launch("first", overlaps=False)
    stream.launch("waits")
    with pytest.raises(BundleError, match="went wrong") as error:
        stream.launch("reads_early", source=1)
    assert "kernel first, launched before, writes them" in error.value.why


def test_a_launch_that_does_not_overlap_ends_all_before_it(kernels) -> None:
    stream = Stream(kernels)
    stream.launch("first", overlaps=False)
    stream.launch("waits")
    stream.launch("first", overlaps=False)
    stream.launch("reads_early", source=2)
    with pytest.raises(BundleError, match="went wrong") as error:
        stream.launch("reads_early", source=3)
    assert "kernel first, launched before, writes them" in error.value.why


def test_a_host_that_waits_ends_all(kernels) -> None:
    stream = Stream(kernels)
    stream.launch("first", overlaps=False)
    kernels.synchronize()
    stream.launch("reads_early")


def test_bytes_that_were_written_alone_are_known(kernels) -> None:
    stream = Stream(kernels)
    stream.launch("writes_bytes", overlaps=False)
    with pytest.raises(BundleError, match="went wrong") as error:
        stream.launch("reads_early")
    assert "kernel writes_bytes, launched before, writes them" in error.value.why
