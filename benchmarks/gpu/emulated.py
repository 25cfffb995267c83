"""A device of this machine's CPU: the kernels of a pack in the emulator, where there is no GPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from awq_tvm.compile.toolchain.launch import Launch
from awq_tvm.emulate import EmulatedKernels, build_kernels

from .pack import Case

Array = np.ndarray[Any, Any]


class EmulatedDevice:
    """Runs kernels from their sources, and objects to what a GPU would punish.

    Args:
        pack: the folder of the pack.
    """

    def __init__(self, pack: Path) -> None:
        self._pack = pack
        self._images: dict[str, EmulatedKernels] = {}

    def image(self, case: Case) -> EmulatedKernels:
        """See ``check.Device``."""
        if case.source not in self._images:
            source = (self._pack / case.source).read_text(encoding="utf-8")
            # The library stays loaded when its file is gone.
            with TemporaryDirectory(prefix="awq_tvm-") as folder:
                self._images[case.source] = EmulatedKernels(build_kernels(source, "cuda", Path(folder)))
        return self._images[case.source]

    def upload(self, values: Array) -> Array:
        """See ``check.Device``."""
        return values.copy()

    def download(self, buffer: Array, like: Array) -> Array:
        """See ``check.Device``."""
        for image in self._images.values():
            image.synchronize()
        return buffer.reshape(like.shape)

    def inside(self, buffer: Array, first: int, count: int, itemsize: int) -> Array:
        """See ``check.Device``."""
        part: Array = buffer.reshape(-1)[first : first + count]
        return part

    def launch(self, image: EmulatedKernels, launch: Launch, buffers: dict[str, Array]) -> None:
        """See ``check.Device``."""
        launch_emulated(image, launch, buffers)


def launch_emulated(kernels: EmulatedKernels, launch: Launch, buffers: Mapping[str, Array]) -> None:
    """Run a launch on buffers by name, after those before it."""
    kernels.launch(
        launch.kernel,
        [buffers[one] if isinstance(one, str) else one for one in launch.arguments],
        launch.grid,
        launch.block,
        launch.shared_bytes,
        overlaps=launch.overlaps,
        cluster=launch.cluster,
    )
