"""Schedules for x86-64: AVX-512 with and without VNNI, AVX2."""
