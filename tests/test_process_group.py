from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest

from awq_tvm.process_group import run_group


def test_what_a_child_prints_and_how_it_ends() -> None:
    program = "import sys; print(sys.stdin.read(), end=''); print('no', file=sys.stderr); sys.exit(3)"
    done = run_group([sys.executable, "-c", program], text="read")
    assert (done.returncode, done.stdout, done.stderr) == (3, "read", "no\n")
    assert run_group([sys.executable, "-c", "import sys; print(sys.stdin.read())"]).stdout == "\n"
    done = run_group([sys.executable, "-c", "import os; print(os.environ)"], env={"ONLY": "this"})
    assert "'ONLY': 'this'" in done.stdout


def test_an_interrupt_ends_what_a_child_has_started_too(tmp_path: Path) -> None:
    """The child starts another process and interrupts this one, which waits for it."""
    note = tmp_path / "pid"
    program = (
        "import os, pathlib, signal, subprocess, time\n"
        "other = subprocess.Popen(['sleep', '100'])\n"
        f"pathlib.Path({str(note)!r}).write_text(str(other.pid))\n"
        "os.kill(os.getppid(), signal.SIGINT)\n"
        "time.sleep(100)\n"
    )
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_group([sys.executable, "-c", program])
    finally:
        signal.signal(signal.SIGINT, before)
    other = Path("/proc") / note.read_text() / "stat"
    deadline = time.monotonic() + 20
    # Gone, or dead and not yet waited for.
    while other.exists() and ") Z " not in other.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not other.exists() or ") Z " in other.read_text()
