"""Texts and conversations to tokens, with text that cannot become control tokens."""

from __future__ import annotations
