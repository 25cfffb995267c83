"""The bundle: a directory that holds a compiled model, checked in full before any of it is loaded."""

from __future__ import annotations
