"""Schedules for Apple GPUs."""
