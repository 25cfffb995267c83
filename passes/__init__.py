"""Passes over the Relax module. Import as ``awq_tvm.passes``."""
