"""Whether a kernel computes what it should: against float64, the same code on a GPU and in the emulator."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from awq_tvm.compile.toolchain.launch import Launch
from awq_tvm.schedules.layout import LAYOUTS
from awq_tvm.schedules.spec import MatmulSpec

from .pack import Case

Array = np.ndarray[Any, Any]

ROWS_OF_A_TILE = 16
"""One output of each so many is checked, every tile of every kernel among them."""


class Device(Protocol):
    """What runs kernels. Buffers and images are its own affair."""

    def image(self, case: Case) -> Any:
        """The case's kernels, ready to be launched."""

    def upload(self, values: Array) -> Any:
        """A buffer with these values."""

    def download(self, buffer: Any, like: Array) -> Array:
        """What a buffer holds, in the shape and dtype of ``like``."""

    def inside(self, buffer: Any, first: int, count: int, itemsize: int) -> Any:
        """A part of a buffer, in elements."""

    def launch(self, image: Any, launch: Launch, buffers: dict[str, Any]) -> None:
        """Start a kernel; what was started before is done first."""


def random_weight(spec: MatmulSpec, layout: str, seed: int) -> dict[str, Array]:
    """Codes, scales and zero points as the kernel reads them; every code is as likely as another."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, Array] = {}
    for array in LAYOUTS[layout].arrays(spec):
        if array.dtype == "float16":
            arrays[array.suffix] = rng.uniform(0.01, 0.03, array.shape).astype(np.float16)
        elif array.suffix == "zeros":
            arrays[array.suffix] = rng.integers(0, 2**spec.bits, array.shape, dtype=np.uint8)
        else:
            size = int(np.prod(array.shape))
            arrays[array.suffix] = np.frombuffer(rng.bytes(size), np.uint8).reshape(array.shape).copy()
    return arrays


def rows_of_weight(
    spec: MatmulSpec, layout: str, weight: dict[str, Array], rows: Array, rounded: bool = False
) -> Array:
    """Some rows of W in float64, decoded from the packed arrays by the layout's own index arithmetic.

    Args:
        spec: the linear.
        layout: of the arrays.
        weight: the arrays.
        rows: which.
        rounded: each (q - z) * scale to the nearest of float16, as kernels have it that put W itself on tensor cores.
    """
    arrays = tuple(weight[array.suffix] for array in LAYOUTS[layout].arrays(spec))
    k = np.arange(spec.in_features)[None, :]
    code, scale, zero = LAYOUTS[layout].elements(spec, arrays, rows[:, None], k)
    decoded: Array = (code.astype(np.float64) - zero) * scale
    # The product of two float16 is exact in float64, so that this is the one rounding that the device makes.
    return decoded.astype(np.float16).astype(np.float64) if rounded else decoded


def checked_rows(spec: MatmulSpec, seed: int) -> Array:
    """One output of each tile, any of them, and the last one."""
    first = np.arange(0, spec.out_features, ROWS_OF_A_TILE)
    offsets = np.random.default_rng(seed).integers(0, ROWS_OF_A_TILE, first.size)
    rows: Array = np.minimum(first + offsets, spec.out_features - 1)
    return rows


def error_of(device: Device, case: Case, m: int, seed: int = 0) -> float:
    """Run what the case launches for M = m; the largest error, as a part of what is allowed.

    Allowed is one rounding of the result to float16, and the rounding of float32 sums of K products; of weights that
    are rounded first where the kernel rounds them, so that it is held to no less. Anything that is written beside
    y, or not written at all, counts as infinitely wrong.
    """
    spec = MatmulSpec(**case.spec)
    weight = random_weight(spec, case.layout, seed)
    x = np.random.default_rng(seed + m).standard_normal((m, spec.in_features)).astype(np.float16)
    guarded = np.full((m + 2, spec.out_features), np.nan, np.float16)
    buffers = {name: device.upload(array) for name, array in {**weight, "x": x, "guarded": guarded}.items()}
    buffers |= {
        name: device.upload(np.full(size // 4, np.nan, np.float32)) for name, size in case.workspaces.items()
    }
    buffers["y"] = device.inside(buffers["guarded"], spec.out_features, m * spec.out_features, 2)
    image = device.image(case)
    for launch in case.launches[m]:
        device.launch(image, launch, buffers)
    found = device.download(buffers["guarded"], guarded)
    y = found[1:-1].astype(np.float64)
    if not np.isnan(found[[0, -1]]).all() or not np.isfinite(y).all():
        return float("inf")
    rows = checked_rows(spec, seed)
    used = rows_of_weight(spec, case.layout, weight, rows, m in case.rounds_weights_at)
    x64 = x.astype(np.float64)
    expected = x64 @ used.T
    magnitude = np.abs(x64) @ np.abs(used).T + np.abs(expected)
    allowed = 2.0**-11 * np.abs(expected) + 4 * spec.in_features**0.5 * 2.0**-24 * magnitude + 1e-6
    return float((np.abs(y[:, rows] - expected) / allowed).max())
