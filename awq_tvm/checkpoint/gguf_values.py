"""Numbers as GGUF metadata holds them."""

from __future__ import annotations

import numpy as np


def shortest(value: float) -> float:
    """Return the shortest decimal that is the same float32: 9.999999747e-06 was written as 1e-05."""
    return float(str(np.float32(value)))
