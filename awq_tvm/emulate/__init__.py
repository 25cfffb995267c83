"""Executes generated CUDA and Metal kernels on the CPU, and catches what real hardware punishes.

The source is compiled as C++ with headers that define the dialect; each thread of a block is a fiber, and every
access to memory is checked. See docs/emulator.md for what it finds and what it cannot know.
"""

from awq_tvm.emulate.build import build_device, build_kernels
from awq_tvm.emulate.kernels import EmulatedKernels

__all__ = ["EmulatedKernels", "build_device", "build_kernels"]
