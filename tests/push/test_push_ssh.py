"""Pushing over a real ssh server on loopback."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from awq_tvm.bundle.reader import open_bundle
from awq_tvm.cli.main import run
from awq_tvm.errors import BundleError, ResourceError, TargetError, UnsupportedError, UsageError
from awq_tvm.push.address import Address, find_device
from awq_tvm.push.push import push_bundle
from tests.bundle.conftest import make_bundle, make_draft
from tests.cli.conftest import ROOT, awq_tvm
from tests.support import native_runner as native
from tests.support import tiny_decoder as tiny
from tests.support.demo_bundle import make_demo_bundle
from tests.support.devices import SshHost, needs_sshd, put_tool, ssh_host

pytestmark = needs_sshd
# Large enough to be cut in two; the tokenizer of a bundle that only lies there is never read.
TOKENIZER = b'{"words": "%s"}' % (b"once upon a time " * 20_000)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshHost]:
    with ssh_host(tmp_path_factory.mktemp("ssh")) as host:
        yield host


@pytest.fixture
def host(server: SshHost) -> SshHost:
    """The server without what another test left."""
    for folder in (server.tools, server.home):
        shutil.rmtree(folder)
        folder.mkdir()
    return server


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "tiny.bundle", tokenizer=TOKENIZER)


@pytest.fixture
def device(host: SshHost, tmp_path: Path) -> Address:
    """A folder on the host, with a blank and a quote in its name."""
    return find_device("box", host.devices(tmp_path, f"{tmp_path}/there/a%20bundle's"))


def size_of(bundle: Path) -> int:
    return sum(path.stat().st_size for path in bundle.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def beside(address: Address) -> list[str]:
    """What there is where the bundle goes."""
    return sorted(path.name for path in Path(address.folder).parent.iterdir())


def test_a_second_push_sends_nothing(bundle: Path, device: Address) -> None:
    first = push_bundle(bundle, device, smoke_test=False)
    assert (first.files_sent, first.bytes_sent) == (first.files, size_of(bundle))
    assert contents(Path(device.folder)) == contents(bundle)
    assert beside(device) == ["a bundle's"]
    before = {path: path.stat().st_ino for path in Path(device.folder).iterdir()}
    second = push_bundle(bundle, device, smoke_test=False)
    assert (second.files_sent, second.bytes_sent, second.bytes) == (0, 0, size_of(bundle))
    assert {path: path.stat().st_ino for path in Path(device.folder).iterdir()} == before


def test_only_what_changed_is_sent(bundle: Path, device: Address, tmp_path: Path) -> None:
    push_bundle(bundle, device, smoke_test=False)
    other = make_bundle(tmp_path / "other", tokenizer=TOKENIZER + b"\n")
    report = push_bundle(other, device, smoke_test=False)
    changed = [other / name for name in ("tokenizer.json", "manifest.json")]
    assert (report.files_sent, report.bytes_sent) == (2, sum(path.stat().st_size for path in changed))
    assert contents(Path(device.folder)) == contents(other)
    assert beside(device) == ["a bundle's"]
    open_bundle(Path(device.folder))


def test_a_push_that_was_killed_goes_on(bundle: Path, device: Address, host: SshHost, tmp_path: Path) -> None:
    arrived = 100_000
    flag = tmp_path / "flag"
    # The largest file comes last here; what is before it goes through.
    put_tool(
        host.tools,
        "cat",
        f"head -c {arrived}; [ $(stat -L -c %s /proc/$$/fd/1) -lt {arrived} ] || {{ touch {flag}; sleep 4; }}",
    )
    devices = tmp_path / "devices.toml"
    command = [sys.executable, "-m", "awq_tvm", "push", str(bundle), "box", "--devices", str(devices)]
    process = subprocess.Popen([*command, "--no-smoke-test"], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not flag.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    assert flag.exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    (host.tools / "cat").unlink()
    assert beside(device) == ["a bundle's.partial"]
    partial = contents(Path(f"{device.folder}.partial"))
    assert len(partial[".arriving-tokenizer.json"]) == arrived
    report = push_bundle(bundle, device, smoke_test=False)
    assert report.bytes_sent == size_of(bundle) - sum(
        len(content) for name, content in partial.items() if not name.startswith(".being")
    )
    assert contents(Path(device.folder)) == contents(bundle)
    assert beside(device) == ["a bundle's"]


def test_what_arrived_and_has_changed_since_is_sent_whole(bundle: Path, device: Address) -> None:
    partial = Path(f"{device.folder}.partial")
    partial.mkdir(parents=True)
    (partial / ".being-pushed-by-awq_tvm").touch()
    (partial / ".arriving-tokenizer.json").write_bytes(TOKENIZER[:5000] + b"x" + TOKENIZER[5001:9000])
    (partial / "model.so").write_bytes(b"another")
    (partial / "gone.json").write_bytes(b"{}")
    report = push_bundle(bundle, device, smoke_test=False)
    assert report.bytes_sent == size_of(bundle)
    assert contents(Path(device.folder)) == contents(bundle)


def test_a_push_that_was_killed_between_two_renames_goes_on(bundle: Path, device: Address) -> None:
    push_bundle(bundle, device, smoke_test=False)
    Path(device.folder).rename(f"{device.folder}.old")
    report = push_bundle(bundle, device, smoke_test=False)
    assert report.bytes_sent == 0
    assert contents(Path(device.folder)) == contents(bundle)
    assert beside(device) == ["a bundle's"]


def test_the_usual_folder_is_in_the_home_folder(bundle: Path, host: SshHost, tmp_path: Path) -> None:
    address = find_device("box", host.devices(tmp_path, ""))
    report = push_bundle(bundle, address, smoke_test=False)
    assert report.folder == "~/awq_tvm/tiny.bundle"
    assert contents(host.home / "awq_tvm" / "tiny.bundle") == contents(bundle)
    with pytest.raises(UsageError, match="must be named"):
        push_bundle(bundle.rename(tmp_path / "a bundle"), address, smoke_test=False)


def test_the_device_generates_what_this_machine_does(
    host: SshHost, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bundle = tiny.quantized_llama(tmp_path_factory).bundle
    runner = native.installed_runner(tmp_path_factory)
    devices = host.devices(tmp_path, f"{tmp_path}/there/llama", runner=str(runner))
    command = ("push", bundle, "box", "--devices", devices, "--prompt", "w5 w7 w11", "--max-tokens", 12)
    done = awq_tvm(*command, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["test"]["ran"], report["test"]["same_as_here"]) == ("awq_tvm_run", True)
    expected = native.answer(runner, "--ids", "--max-tokens", 12, bundle, "5 7 11")["token_ids"]
    assert report["test"]["token_ids"] == expected
    assert report["test"]["decode_tokens_per_second"] > 0
    assert (tmp_path / "there" / "awq-tvm-runner" / "bin" / "awq_tvm_run").is_file()
    again = awq_tvm(*command)
    assert again.returncode == 0, again.stderr
    assert "; 0 of " in again.stdout
    assert "of the runner" not in again.stdout
    assert "awq_tvm_run generated 12 tokens there (as this machine does): " in again.stdout


@pytest.mark.slow
def test_a_real_model(host: SshHost, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    bundle = make_demo_bundle(tmp_path)
    runner = native.installed_runner(tmp_path_factory)
    address = find_device("box", host.devices(tmp_path, f"{tmp_path}/there/demo", runner=str(runner)))
    report = push_bundle(bundle, address, max_tokens=32)
    assert report.test is not None
    assert (report.bytes_sent, report.test.same_as_here) == (size_of(bundle), True)
    assert push_bundle(bundle, address).bytes_sent == 0


def test_python_of_the_device_serves_where_there_is_no_runner(
    host: SshHost, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bundle = tiny.quantized_llama(tmp_path_factory).bundle
    plain = find_device("box", host.devices(tmp_path, f"{tmp_path}/there/llama"))
    assert push_bundle(bundle, plain, prompt="w5 w7").test is None
    put_tool(host.tools, "its-python", f'PYTHONPATH={ROOT} exec {sys.executable} "$@"')
    report = push_bundle(bundle, replace(plain, python="its-python"), prompt="w5 w7", max_tokens=5)
    assert report.test is not None
    assert (report.test.ran, report.test.same_as_here, len(report.test.token_ids)) == ("python", True, 5)


@pytest.mark.parametrize(
    ("script", "error", "why"),
    [
        ("echo 'another apache-tvm' >&2; exit 6", BundleError, "another apache-tvm"),
        ("echo 'too little memory' >&2; exit 7", ResourceError, "too little memory"),
        ("kill -ILL $$", BundleError, "llegal instruction|code 132"),
        (
            'echo \'{"token_ids": [1], "prefill_seconds": 1, "decode_seconds": 1}\'',
            BundleError,
            "other tokens",
        ),
    ],
)
def test_a_bundle_that_fails_there_replaces_nothing(
    script: str,
    error: type[Exception],
    why: str,
    host: SshHost,
    device: Address,
    bundle: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    push_bundle(bundle, device, smoke_test=False)
    put_tool(host.tools, "awq_tvm_run", script)
    with pytest.raises(error, match=why):
        push_bundle(tiny.quantized_llama(tmp_path_factory).bundle, device, prompt="w5 w7", max_tokens=3)
    assert contents(Path(device.folder)) == contents(bundle)
    (host.tools / "awq_tvm_run").unlink()
    report = push_bundle(tiny.quantized_llama(tmp_path_factory).bundle, device, prompt="w5")
    assert (report.bytes_sent, report.test) == (0, None)


def test_no_server(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config").touch()
    (tmp_path / "d.toml").write_text('[box]\nurl = "ssh://127.0.0.1:1/x"\nssh_config = "config"\n')
    assert run(["push", str(bundle), "box", "--devices", str(tmp_path / "d.toml"), "--no-smoke-test"]) == 7
    said = capsys.readouterr().err
    assert "cannot be reached" in said
    assert "Connection refused" in said


def test_a_connection_that_ends_on_the_way(bundle: Path, device: Address, host: SshHost) -> None:
    # The parent of the device's shell is the server's end of this connection.
    put_tool(host.tools, "cat", "head -c 1000; kill -9 $(cut -d -f4 /proc/$PPID/stat)")
    with pytest.raises(ResourceError, match=r"cannot be reached|refused"):
        push_bundle(bundle, device, smoke_test=False)
    (host.tools / "cat").unlink()
    assert push_bundle(bundle, device, smoke_test=False).bytes_sent < size_of(bundle)


@pytest.mark.parametrize(
    ("tool", "script", "what"),
    [
        (
            "df",
            "echo Filesystem 1024-blocks Used Available Capacity Mounted; echo /dev/x 9 8 100 99% /",
            "too little room",
        ),
        ("cat", "echo 'cat: write error: No space left on device' >&2; exit 1", "disk of the device is full"),
        ("cat", "exec tr a b", "arrived damaged"),
        ("mkdir", "echo 'mkdir: Permission denied' >&2; exit 1", "refused"),
    ],
)
def test_trouble_there_replaces_nothing(
    tool: str, script: str, what: str, bundle: Path, device: Address, host: SshHost, tmp_path: Path
) -> None:
    push_bundle(bundle, device, smoke_test=False)
    put_tool(host.tools, tool, script)
    other = make_bundle(tmp_path / "other", tokenizer=TOKENIZER[::-1])
    with pytest.raises((ResourceError, BundleError), match=what):
        push_bundle(other, device, smoke_test=False)
    assert contents(Path(device.folder)) == contents(bundle)
    (host.tools / tool).unlink()
    push_bundle(other, device, smoke_test=False)
    assert contents(Path(device.folder)) == contents(other)


def test_another_machine(bundle: Path, device: Address, host: SshHost, tmp_path: Path) -> None:
    put_tool(host.tools, "uname", "case $1 in -m) echo riscv64;; *) echo Linux;; esac")
    with pytest.raises(TargetError, match="found riscv64"):
        push_bundle(bundle, device, smoke_test=False)
    (host.tools / "uname").unlink()
    target = make_draft().target.model_copy(update={"required_features": ("feature-of-tomorrow",)})
    with pytest.raises(TargetError, match="a CPU without feature-of-tomorrow"):
        push_bundle(make_bundle(tmp_path / "new", target=target), device, smoke_test=False)
    assert not Path(device.folder).parent.exists()


@pytest.mark.parametrize("suffix", ["", ".partial", ".old"])
@pytest.mark.parametrize("kind", ["folder", "file", "link", "more"])
def test_what_is_in_the_way_stays(
    kind: str, suffix: str, bundle: Path, device: Address, tmp_path: Path
) -> None:
    place = Path(device.folder + suffix)
    place.parent.mkdir()
    if kind == "file":
        place.write_text("mine")
    elif kind == "link":
        shutil.copytree(bundle, tmp_path / "elsewhere")
        place.symlink_to(tmp_path / "elsewhere")
    else:
        if kind == "more":
            shutil.copytree(bundle, place)
        (place / "notes").mkdir(parents=True)
        (place / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(ResourceError, match="in the way"):
        push_bundle(bundle, device, smoke_test=False)
    assert place.is_symlink() or (place if kind == "file" else place / "notes/mine.txt").read_text() == "mine"
    assert beside(device) == [place.name]


def test_what_cannot_be_meant(bundle: Path, device: Address, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no bin/awq_tvm_run"):
        push_bundle(bundle, replace(device, runner=tmp_path), smoke_test=False)
    tokenized = make_bundle(tmp_path / "tokenized", tokenizer=tiny.tokenizer_json())
    for prompt, count in (("", 4), ("w1", 0)):
        with pytest.raises(UsageError, match="nothing to generate"):
            push_bundle(tokenized, device, prompt=prompt, max_tokens=count)
    foreign = tmp_path / "foreign"
    (foreign / "bin").mkdir(parents=True)
    (foreign / "lib").mkdir()
    (foreign / "bin" / "awq_tvm_run").write_bytes(b"\x7fELF" + bytes(14) + (62).to_bytes(2, "little"))
    if open_bundle(bundle).manifest.target.triple.startswith("x86_64"):
        (foreign / "bin" / "awq_tvm_run").write_bytes(b"\x7fELF" + bytes(14) + (183).to_bytes(2, "little"))
    with pytest.raises(TargetError, match="The runner was built for another"):
        push_bundle(bundle, replace(device, runner=foreign), smoke_test=False)


def test_no_ssh(bundle: Path, device: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UnsupportedError, match="ssh is not installed"):
        push_bundle(bundle, device, smoke_test=False)
