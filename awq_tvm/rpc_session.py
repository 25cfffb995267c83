"""What all that speaks TVM's RPC has in common."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

# Whoever reaches TVM's RPC can run anything there, and nothing is encrypted: it is spoken with these alone.
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def load_library(session: Any, path: Path) -> Any:
    """Bring a library to the other side and load it there; no file of it stays.

    Args:
        session: a ``tvm.rpc.RPCSession``.
        path: of the library, here.
    """
    # A server may be one process for all sessions: what it has loaded must not be written over.
    name = f"{secrets.token_hex(8)}.so"
    session.upload(str(path), name)
    module = session.load_module(name)
    session.remove(name)
    return module


def last_line(error: Exception) -> str:
    """What an error of the other side says, without the traces before it, at most 300 characters."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1][:300]
