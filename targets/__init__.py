"""What hardware is. Import as ``awq_tvm.targets``."""
