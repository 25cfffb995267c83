"""The kernels and bundles for NVIDIA GPUs, measured: `build` makes a pack here, the pack's run.py measures there.

A machine with a GPU needs Python, NumPy and the driver; PyTorch for the peers, TVM's runtime for whole models.
"""
