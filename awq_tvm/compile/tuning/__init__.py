"""Tuned records, the search for them, and what measures candidates."""
