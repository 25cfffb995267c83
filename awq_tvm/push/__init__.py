"""Bundles on devices: copied over ssh, adb or TVM's RPC by what changed, checked and tried out there."""

from __future__ import annotations
