"""Devices to push to: this machine behind a real ssh server, and behind a program with adb's command line."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
needs_sshd = pytest.mark.skipif(
    not (SSHD and shutil.which("ssh") and shutil.which("ssh-keygen")),
    reason="needs OpenSSH: apt-get install openssh-server openssh-client",
)


@dataclass(frozen=True)
class SshHost:
    """A running server.

    Attributes:
        url: of it, without a folder.
        config: what ssh must read to reach it.
        tools: a folder that is first on its path: programs put there stand in for the device's own.
        home: the home folder of whoever logs in.
        log: what the server says.
        process: of the server.
    """

    url: str
    config: Path
    tools: Path
    home: Path
    log: Path
    process: subprocess.Popen[bytes]

    def devices(self, folder: Path, path: str, **more: str) -> Path:
        """A file of devices that calls it "box"."""
        lines = {"url": f"{self.url}{path}", "ssh_config": str(self.config), **more}
        file = folder / "devices.toml"
        file.write_text("[box]\n" + "".join(f'{key} = "{value}"\n' for key, value in lines.items()))
        return file


@contextmanager
def ssh_host(folder: Path) -> Iterator[SshHost]:
    """An ssh server of its own: a free port, its own keys, nothing of this machine's configuration."""
    assert SSHD is not None
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    tools, home, log = folder / "tools", folder / "home", folder / "sshd.log"
    tools.mkdir()
    home.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host_key\nPidFile none\nUsePAM no\nStrictModes no\n"
        f"AuthorizedKeysFile {folder}/user_key.pub\nPasswordAuthentication no\n"
        f'SetEnv PATH="{tools}:{os.environ["PATH"]}" HOME="{home}"\nMaxStartups 50\n'
    )
    public = (folder / "host_key.pub").read_text()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {public}")
    config = folder / "ssh_config"
    config.write_text(
        f"Host *\n  IdentityFile {folder}/user_key\n  IdentitiesOnly yes\n  BatchMode yes\n"
        f"  UserKnownHostsFile {folder}/known_hosts\n  GlobalKnownHostsFile /dev/null\n"
    )
    if os.geteuid() == 0:
        # Where the server keeps the part of itself that talks to strangers.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=errors, stdin=subprocess.DEVNULL
        )
    try:
        _wait_for(port, process, log)
        yield SshHost(f"ssh://{getpass.getuser()}@127.0.0.1:{port}", config, tools, home, log, process)
    finally:
        process.terminate()
        process.wait(timeout=20)


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail(f"sshd does not answer: {log.read_text()}")


def put_tool(folder: Path, name: str, script: str) -> None:
    """A program of sh in a folder of tools."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


_ADB = '''#!{python}
"""adb's command line for one device, which is a folder of this machine: devices, push, shell with -n and -T."""
import os, pathlib, shutil, subprocess, sys

ROOT, SERIAL = pathlib.Path({root!r}), {serial!r}
words = sys.argv[1:]
(ROOT / "log").open("a").write(" ".join(words)[:200].replace("\\n", " ") + "\\n")
if words[:1] == ["devices"]:
    print(f"List of devices attached\\n{{SERIAL}}\\tdevice\\n")
    sys.exit(0)
if words[:1] == ["-s"]:
    if words[1] != SERIAL:
        sys.exit(f"adb: device '{{words[1]}}' not found")
    words = words[2:]
verb, *words = words


def there(path):
    """Where a path of the device lies here."""
    assert path.startswith("/"), path
    return f"{{ROOT}}{{path}}"


if verb == "push":
    local, remote = words
    if not os.path.isdir(os.path.dirname(there(remote))):
        sys.exit(f"adb: error: failed to copy '{{local}}' to '{{remote}}': remote couldn't create file")
    shutil.copy(local, there(remote))
    print(f"{{local}}: 1 file pushed")
elif verb == "shell":
    while words and words[0] in ("-n", "-T"):
        words.pop(0)
    script = " ".join(words).replace("/data/local/tmp", there("/data/local/tmp"))
    env = {{**os.environ, "PATH": f"{{ROOT}}/tools:{{os.environ['PATH']}}"}}
    sys.exit(subprocess.run(["sh", "-c", script], stdin=subprocess.DEVNULL, env=env).returncode)
else:
    sys.exit(f"adb: unknown command {{verb}}")
'''


def make_adb(folder: Path, serial: str) -> tuple[Path, Path]:
    """A program `adb` with one device.

    Returns:
        The folder that holds it, for the path, and the root of the device's files.
    """
    programs, root = folder / "platform-tools", folder / "android"
    programs.mkdir()
    (root / "data" / "local" / "tmp").mkdir(parents=True)
    (root / "tools").mkdir()
    program = programs / "adb"
    program.write_text(_ADB.format(python=sys.executable, root=str(root), serial=serial))
    program.chmod(0o755)
    return programs, root
