"""Where a device is: a URL, or a name in a file of devices.

ssh://user@host:port/folder     adb://serial/folder     rpc://key@127.0.0.1:9090/folder
"""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, cast
from urllib.parse import unquote

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from awq_tvm.errors import UsageError
from awq_tvm.rpc_session import LOOPBACK

Scheme = Literal["ssh", "adb", "rpc"]
_SCHEMES = ("ssh", "adb", "rpc")
_MAX_DEVICES_BYTES = 1 << 20
# No leading dash: ssh and adb would take it for an option.
_HOST = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.%a-z]+\])\Z")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@-]*\Z")
_SERIAL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:-]*\Z")
# Whoever reaches TVM's RPC server can run anything there, and nothing is encrypted.


@dataclass(frozen=True, slots=True)
class Address:
    """Where a device is and what it has.

    Attributes:
        url: as it was given, for messages.
        scheme: how to reach it.
        host: of ssh and rpc a name or an address, of adb a serial number; "" for the only device of adb.
        port: None for the usual one.
        user: of ssh; for rpc the key of the server.
        folder: where the bundle goes, absolute or from "~/" on; "" for the usual place.
        runner: folder of an installed runner for the device.
        python: of the device, which may have awq_tvm.
        ssh_config: file in place of ssh's own configuration.
    """

    url: str
    scheme: Scheme
    host: str
    port: int | None = None
    user: str = ""
    folder: str = ""
    runner: Path | None = None
    python: str = "python3"
    ssh_config: Path | None = None


class _Device(BaseModel):
    """One table of the file."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    url: Annotated[str, Field(max_length=4096)]
    runner: str | None = None
    python: Annotated[str, Field(min_length=1, max_length=4096)] = "python3"
    ssh_config: str | None = None


def find_device(device: str, devices: Path | None = None) -> Address:
    """Read what the user named.

    Args:
        device: a URL, or the name of a table in the file of devices.
        devices: that file; None for `default_devices`.

    Raises:
        UsageError: it is neither, or says something that cannot be meant.
    """
    if "://" in device:
        return parse_url(device)
    file = default_devices() if devices is None else devices
    tables = _read_devices(file)
    if device not in tables:
        known = ", ".join(sorted(tables)) or "none"
        raise UsageError(
            f"There is no device {device[:80]!r}.",
            where=str(file),
            why=f"it is no URL, and the devices there are: {known}"
            if tables
            else "it is no URL, and no devices are",
            fix="ssh://user@host/folder, adb://serial or rpc://127.0.0.1:9090, or add it to the file",
        )
    try:
        found = _Device.model_validate(tables[device])
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise _bad_devices(
            file, f"device {device}, {'.'.join(map(str, first['loc']))}: {first['msg']}"
        ) from None
    address = parse_url(found.url)
    return Address(
        address.url,
        address.scheme,
        address.host,
        address.port,
        address.user,
        address.folder,
        runner=_beside(file, found.runner),
        python=found.python,
        ssh_config=_beside(file, found.ssh_config),
    )


def default_devices() -> Path:
    """The user's file of devices: $XDG_CONFIG_HOME/awq_tvm/devices.toml, ~/.config where that is not set."""
    base = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".config") / "awq_tvm" / "devices.toml"


def parse_url(url: str) -> Address:
    """Read a URL of a device.

    Raises:
        UsageError: another scheme, no host, or a folder that cannot be meant.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in _SCHEMES:
        raise _bad_url(url, f"the scheme is {scheme[:20]!r}, known are {', '.join(_SCHEMES)}")
    if len(url) > 4096 or not url.isprintable():
        raise _bad_url(url, "it is too long, or has characters that cannot be seen")
    place, slash, path = rest.partition("/")
    folder = _folder(url, unquote(slash + path), scheme)
    if scheme == "adb":
        if place and not _SERIAL.match(place):
            raise _bad_url(url, f"{place[:80]!r} is no serial number: `adb devices` lists them")
        return Address(url, "adb", place, folder=folder)
    user, at, where = place.rpartition("@")
    host, colon, digits = where.rpartition(":") if re.search(r":\d+\Z", where) else (where, "", "")
    if not _HOST.match(host) or (at and not _USER.match(user)):
        raise _bad_url(url, f"{place[:80]!r} names no host")
    port = int(digits) if colon else None
    if port is not None and not 1 <= port <= 65535:
        raise _bad_url(url, f"port {digits[:20]} is not from 1 to 65535")
    host = host.strip("[]")
    if scheme == "rpc":
        if port is None:
            raise _bad_url(url, "it names no port; TVM's RPC server says which it listens at")
        if host not in LOOPBACK:
            raise UsageError(
                "TVM's RPC is only spoken with this machine itself.",
                where=url,
                why=f"whoever reaches an RPC server can run anything there, and {host} is across a network",
                fix=f"make a tunnel, `ssh -L {port}:127.0.0.1:{port} {host}`, and name rpc://127.0.0.1:{port}",
            )
    return Address(url, cast("Scheme", scheme), host, port, user, folder)


def _folder(url: str, path: str, scheme: str) -> str:
    """The folder of a URL's path: "/x" as it is, "/~/x" from the home folder on, "" for none."""
    path = path.rstrip("/")
    if not path:
        return ""
    parts = path.split("/")[1:]
    if not path.isprintable() or ".." in parts or "." in parts or "" in parts:
        raise _bad_url(url, f"{path[:80]!r} is no plain path")
    if parts[0] != "~":
        return path
    if scheme == "adb" or len(parts) == 1:
        raise _bad_url(url, f"{path[:80]!r} is no folder for a bundle")
    return "/".join(parts)


def _read_devices(file: Path) -> dict[str, object]:
    try:
        with file.open("rb") as opened:
            raw = opened.read(_MAX_DEVICES_BYTES + 1)
        if len(raw) > _MAX_DEVICES_BYTES:
            raise _bad_devices(file, f"it has more than {_MAX_DEVICES_BYTES} bytes")
        return tomllib.loads(raw.decode())
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise _bad_devices(file, str(error)[:200]) from None


def _beside(file: Path, path: str | None) -> Path | None:
    """A path of the file, which is taken from the file's own folder on."""
    return None if path is None else file.parent / Path(path).expanduser()


def _bad_url(url: str, why: str) -> UsageError:
    return UsageError(
        "This names no device.",
        where=url[:200],
        why=why,
        fix="ssh://user@host/folder, adb://serial or rpc://127.0.0.1:9090/folder",
    )


def _bad_devices(file: Path, why: str) -> UsageError:
    return UsageError(
        "The file of devices cannot be read.",
        where=str(file),
        why=why,
        fix='a device is written as [name] and below it url = "ssh://user@host/folder"',
    )
