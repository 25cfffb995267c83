"""Attention kernels over a paged KV cache for CPUs, with the parameters that TVM's cache runtime passes."""
