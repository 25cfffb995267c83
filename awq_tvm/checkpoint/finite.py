"""Find NaN and Inf without converting the array to a wider type."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

# The bits that are all ones in NaN and Inf only. (float8_e4m3fn has no Inf and is left to isfinite.)
_EXPONENT_BITS = {np.dtype(np.float16): 0x7C00, np.dtype(ml_dtypes.bfloat16): 0x7F80}
_CHUNK = 1 << 22


def first_nonfinite(values: NDArray[Any]) -> tuple[int, ...] | None:
    """Return the index of the first NaN or Inf in row-major order, or None.

    Args:
        values: any shape and dtype; integers and booleans are always finite.
    """
    if values.dtype.kind in "biu":
        return None
    flat = np.ravel(values)
    mask = _EXPONENT_BITS.get(values.dtype)
    # Chunks keep the temporaries in cache: a 2 GB embedding must not cost another 2 GB.
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        bad = ~np.isfinite(part) if mask is None else (part.view(np.uint16) & mask) == mask
        if bad.any():
            return tuple(int(i) for i in np.unravel_index(start + int(bad.argmax()), values.shape))
    return None
