"""Schedules for AArch64: plain NEON."""
