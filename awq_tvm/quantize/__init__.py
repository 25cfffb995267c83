"""Quantize a checkpoint in PyTorch, and score one: the only package that imports torch."""
