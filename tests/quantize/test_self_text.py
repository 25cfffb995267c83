"""Text that the model writes itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

# In a process of its own: a peak is of the whole process.
_WRITE = """
from awq_tvm.checkpoint import open_checkpoint
from awq_tvm.memory import peak_memory
from awq_tvm.quantize.self_text import sample_from_model

tokens = sample_from_model(open_checkpoint("demo"), samples=32, sequence_length=512, seed=0)
print(*tokens.shape, peak_memory())
"""


@pytest.mark.slow
def test_writing_for_smollm2_stays_below_two_gib() -> None:
    """Two batches: what attention leaves behind must not add up, token by token and batch by batch."""
    done = subprocess.run([sys.executable, "-c", _WRITE], capture_output=True, text=True, check=True)
    samples, length, peak = map(int, done.stdout.split())
    assert (samples, length) == (32, 512)
    assert peak < 2 << 30
