"""Run a bundle: tokens in, tokens out, with neither PyTorch nor the compiler."""

from __future__ import annotations
