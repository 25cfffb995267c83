"""What names a device, and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from awq_tvm.errors import UsageError
from awq_tvm.push.address import default_devices, find_device, parse_url


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("ssh://pi@10.0.0.7:2222/models/a", ("ssh", "10.0.0.7", 2222, "pi", "/models/a")),
        ("ssh://Box", ("ssh", "Box", None, "", "")),
        ("ssh://box/~/models/a/", ("ssh", "box", None, "", "~/models/a")),
        ("ssh://[fe80::1]:22/a%20b", ("ssh", "fe80::1", 22, "", "/a b")),
        ("ssh://me@corp.example@jump/x", ("ssh", "jump", None, "me@corp.example", "/x")),
        ("adb://emulator-5554", ("adb", "emulator-5554", None, "", "")),
        ("adb://10.0.0.7:5555/data/local/tmp/a", ("adb", "10.0.0.7:5555", None, "", "/data/local/tmp/a")),
        ("adb://", ("adb", "", None, "", "")),
        ("rpc://127.0.0.1:9090/tmp/a", ("rpc", "127.0.0.1", 9090, "", "/tmp/a")),
        ("rpc://board@localhost:9090", ("rpc", "localhost", 9090, "board", "")),
    ],
)
def test_urls(url: str, expected: tuple[object, ...]) -> None:
    found = parse_url(url)
    assert (found.scheme, found.host, found.port, found.user, found.folder) == expected


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://box/a", "the scheme is 'http'"),
        ("ssh:///a", "names no host"),
        ("ssh://-oProxyCommand=x/a", "names no host"),
        ("ssh://-l@box/a", "names no host"),
        ("ssh://box;reboot/a", "names no host"),
        ("ssh://box:0/a", "port 0 is not"),
        ("ssh://box:70000/a", "port 70000 is not"),
        ("ssh://box/a/../b", "no plain path"),
        ("ssh://box//a", "no plain path"),
        ("ssh://box/a%0Ab", "no plain path"),
        ("ssh://box/a\nb", "cannot be seen"),
        ("ssh://box/~", "no folder for a bundle"),
        ("adb://x/~/a", "no folder for a bundle"),
        ("adb://-s/a", "no serial number"),
        ("rpc://127.0.0.1", "names no port"),
        ("rpc://10.0.0.7:9090", "across a network"),
    ],
)
def test_what_cannot_be_meant(url: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        parse_url(url)


def test_a_tunnel_is_the_way_to_an_rpc_server_elsewhere() -> None:
    with pytest.raises(UsageError, match=r"ssh -L 9090:127\.0\.0\.1:9090 board"):
        parse_url("rpc://board:9090/a")


def test_names_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "awq_tvm" / "devices.toml"
    file.parent.mkdir()
    file.write_text(
        '[pi]\nurl = "ssh://pi@box/m"\nrunner = "../arm"\nssh_config = "/etc/ssh"\npython = "py"\n'
    )
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert default_devices() == file
    found = find_device("pi")
    assert (found.host, found.folder, found.python) == ("box", "/m", "py")
    assert (found.runner, found.ssh_config) == (file.parent / "../arm", Path("/etc/ssh"))
    assert find_device("adb://x").host == "x"
    monkeypatch.setenv("XDG_CONFIG_HOME", "")
    assert default_devices() == Path.home() / ".config/awq_tvm/devices.toml"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'[pi]\nurl = "ssh://box"\n', "the devices there are: pi"),
        (b"[pi", "cannot be read"),
        (b"\xff", "cannot be read"),
        (b'[phone]\nurl = "ssh://box"\nports = 3\n', "phone, ports"),
        (b"[phone]\nurl = 3\n", "phone, url"),
        (b"phone = 3\n", "phone"),
        (b"#" * (1 << 20) + b"#", "more than 1048576 bytes"),
    ],
)
def test_a_file_that_does_not_help(content: bytes, why: str, tmp_path: Path) -> None:
    file = tmp_path / "devices.toml"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=why):
        find_device("phone", file)


def test_no_file_at_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no devices are"):
        find_device("phone", tmp_path / "devices.toml")
