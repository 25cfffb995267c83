"""Quantize a checkpoint in PyTorch, and score one: see docs/quality.md. The only package that imports torch."""
