"""Launch emulated kernels on numpy arrays."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from awq_tvm.errors import BundleError

_MESSAGE_BYTES = 2048


class EmulatedKernels:
    """The kernels of a library that ``build_kernels`` made.

    Args:
        library: its path.
    """

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.awq_emulate_kernels.restype = ctypes.c_char_p
        lines = self._library.awq_emulate_kernels().decode().splitlines()
        self.parameters: dict[str, tuple[str, ...]] = {
            name: tuple(names) for name, *names in (line.split(" ") for line in lines)
        }
        """Names of each kernel's parameters, in the order of its arguments."""

    def launch(
        self,
        kernel: str,
        arguments: Sequence[np.ndarray[Any, Any] | int | float],
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        dynamic_shared_bytes: int = 0,
        *,
        overlaps: bool = False,
        cluster: int = 1,
    ) -> None:
        """Run one launch.

        Args:
            kernel: its name.
            arguments: arrays, changed in place, and scalars; an integer is passed in 64 bits.
            grid: blocks along x, y and z.
            block: threads of a block.
            dynamic_shared_bytes: shared memory that the launch asks for.
            overlaps: it may begin before those before it have ended, and has to wait for them itself; the arrays
                that these wrote are to be still there.
            cluster: blocks along x that run together.

        Raises:
            BundleError: the kernel does what real hardware punishes; the reason names block and thread.
        """
        values: list[Any] = []
        arrays = [argument for argument in arguments if isinstance(argument, np.ndarray)]
        for argument in arguments:
            if isinstance(argument, np.ndarray):
                values.append(ctypes.c_void_p(argument.ctypes.data))
            else:
                values.append(
                    ctypes.c_float(argument) if isinstance(argument, float) else ctypes.c_int64(argument)
                )
        pointers = (ctypes.c_void_p * max(1, len(values)))(*(ctypes.addressof(value) for value in values))
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        for array in arrays:
            self._library.awq_emulate_register(
                ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
            )
        if overlaps:
            self._library.awq_emulate_overlap()
        self._library.awq_emulate_cluster(ctypes.c_uint32(cluster))
        try:
            failed = self._library.awq_emulate_launch(
                kernel.encode(),
                pointers,
                (ctypes.c_uint32 * 3)(*grid),
                (ctypes.c_uint32 * 3)(*block),
                ctypes.c_uint32(dynamic_shared_bytes),
                message,
                ctypes.c_size_t(_MESSAGE_BYTES),
            )
        finally:
            for array in arrays:
                self._library.awq_emulate_unregister(ctypes.c_void_p(array.ctypes.data))
        if failed:
            raise BundleError("a kernel went wrong in the emulator", where=kernel, why=message.value.decode())

    def synchronize(self) -> None:
        """Wait, as a host does, until all launches have ended: the next one finds none of them unfinished."""
        self._library.awq_emulate_synchronize()
