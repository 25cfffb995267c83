"""Attention on CUDA and Metal, from one builder: what the two spell differently is in ``lanes``."""
