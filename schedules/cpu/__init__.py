"""Schedules that x86 and ARM share: written on vectors of 16 lanes, which LLVM splits as needed."""
