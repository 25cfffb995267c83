"""TensorIR kernels that CUDA and Metal share: threads, vectors and warp shuffles only, no matrix units."""
