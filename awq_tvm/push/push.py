"""`push`: a bundle onto a device, by what changed, checked and tried out there before it takes its place."""

from __future__ import annotations

import re
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from awq_tvm.bundle.machine import Machine
from awq_tvm.bundle.manifest import MANIFEST_NAME, Manifest
from awq_tvm.bundle.reader import Bundle
from awq_tvm.bundle.verify import check_finished, check_target, verify_bundle
from awq_tvm.errors import BundleError, TargetError, UsageError
from awq_tvm.progress import ProgressCallback, ignore_progress
from awq_tvm.prompt.tokenizer import load_tokenizer
from awq_tvm.push.address import Address
from awq_tvm.push.device import Device
from awq_tvm.push.smoke_test import SmokeTest, run_here, run_there
from awq_tvm.push.tree import LocalFile, RemoteTree, Sent, Tree, local_file

DEFAULT_PROMPT = "The capital of France is"
_RUNNER = "bin/awq_tvm_run"
_NAME = r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}"
_ELF_MACHINES = {62: "x86_64", 183: "aarch64"}


@dataclass(frozen=True, slots=True)
class PushReport:
    """What came of a push.

    Attributes:
        device: its URL.
        folder: of the bundle there.
        target: what the bundle is compiled for.
        files: of the bundle, the manifest included.
        bytes: of these.
        files_sent: how many of them were sent, in whole or in part.
        bytes_sent: bytes of the bundle that were sent.
        runner_bytes_sent: bytes of the runner that were sent.
        seconds: of everything.
        test: what the device generated; None where it was not asked to, or has nothing to do it with.
    """

    device: str
    folder: str
    target: str
    files: int
    bytes: int
    files_sent: int
    bytes_sent: int
    runner_bytes_sent: int
    seconds: float
    test: SmokeTest | None


def push_bundle(
    bundle: Path,
    address: Address,
    *,
    prompt: str = DEFAULT_PROMPT,
    max_tokens: int = 16,
    smoke_test: bool = True,
    progress: ProgressCallback = ignore_progress,
) -> PushReport:
    """Bring a bundle onto a device.

    Args:
        bundle: the directory; it is verified first.
        address: the device, and the runner for it.
        prompt: what the device continues.
        max_tokens: most tokens that it generates.
        smoke_test: whether it does.
        progress: told of what is sent.

    Raises:
        UsageError: a prompt, a folder or a runner that cannot be meant.
        BundleError: the bundle is damaged, arrived damaged, or generates other tokens there than here.
        TargetError: the device cannot run it, or no device could yet.
        ResourceError: the device cannot be reached, has no room, or a folder there is not ours.
        UnsupportedError: a program that this takes is missing.
    """
    start = time.perf_counter()
    manifest = verify_bundle(bundle, target=False)
    check_finished(bundle, manifest)
    folder = address.folder or _usual_folder(bundle, address)
    ids = load_tokenizer(Bundle(bundle, manifest).side_files()).encode(prompt) if smoke_test else []
    if smoke_test and not (ids and max_tokens > 0):
        raise UsageError(
            "There is nothing to generate.",
            where="--prompt, --max-tokens",
            why=f"the prompt has {len(ids)} tokens and {max_tokens} are asked for, both must be 1 or more",
            fix="--prompt 'Once upon a time' --max-tokens 16",
        )
    runner = None if address.runner is None else _runner_tree(address.runner)
    with connect(address) as device:
        machine = device.machine()
        _check_device(bundle, manifest, device, machine)
        if address.runner is not None:
            _check_runner(address.runner, machine)
        runner_folder = str(PurePosixPath(folder).parent / "awq-tvm-runner")
        runner_sent = Sent(0, 0)
        if runner is not None and smoke_test:
            runner_there = RemoteTree(device, runner_folder, runner)
            runner_sent = runner_there.fill(progress)
            runner_there.put_in_place()
        there = RemoteTree(device, folder, _bundle_tree(bundle, manifest))
        sent = there.fill(progress)
        test = None
        if smoke_test:
            program = f"{runner_folder}/{_RUNNER}"
            test = run_there(device, there.filled, program, address.python, ids, max_tokens)
            test = None if test is None else _compared(test, bundle, ids, max_tokens, device)
        there.put_in_place()
    return PushReport(
        address.url,
        folder,
        manifest.target.name,
        len(there.tree.files),
        sum(file.size for file in there.tree.files.values()),
        sent.files,
        sent.bytes,
        runner_sent.bytes,
        time.perf_counter() - start,
        test,
    )


def connect(address: Address) -> AbstractContextManager[Device]:
    """The device at an address, for a `with` block.

    Raises:
        UnsupportedError: a program that this takes is missing.
        ResourceError: the device cannot be reached.
    """
    if address.scheme == "ssh":
        from awq_tvm.push.ssh import open_ssh

        return open_ssh(address)
    if address.scheme == "rpc":
        from awq_tvm.push.rpc import RpcDevice

        return nullcontext(RpcDevice(address))
    from awq_tvm.push.adb import AdbDevice

    return nullcontext(AdbDevice(address))


def _usual_folder(bundle: Path, address: Address) -> str:
    name = bundle.resolve().name
    if not re.fullmatch(_NAME, name):
        raise UsageError(
            "The device's folder must be named.",
            where=address.url,
            why=f"it would be called as the bundle is, {name[:80]!r}, which has unusual characters",
            fix=f"{address.url.rstrip('/')}/folder",
        )
    # The one place of Android where a shell may write and run programs.
    return f"/data/local/tmp/awq_tvm/{name}" if address.scheme == "adb" else f"~/awq_tvm/{name}"


def _bundle_tree(bundle: Path, manifest: Manifest) -> Tree:
    files = {name: LocalFile(bundle / name, info.size, info.sha256) for name, info in manifest.files.items()}
    files[MANIFEST_NAME] = replace(local_file(bundle / MANIFEST_NAME), program=False)
    return Tree(files, MANIFEST_NAME, re.compile(_NAME))


def _runner_tree(runner: Path) -> Tree:
    """An installed runner: what CMake put into bin and lib.

    Raises:
        UsageError: there is none.
    """
    if not (runner / _RUNNER).is_file():
        raise UsageError(
            "There is no runner here.",
            where=str(runner),
            why=f"it holds no {_RUNNER}",
            fix="name the folder of `cmake --install build/runner --prefix FOLDER`",
        )
    paths = [path for name in ("bin", "lib") for path in sorted((runner / name).iterdir()) if path.is_file()]
    files = {path.relative_to(runner).as_posix(): local_file(path) for path in paths}
    return Tree(files, _RUNNER, re.compile(rf"(?:bin|lib)/{_NAME}"))


def _check_device(bundle: Path, manifest: Manifest, device: Device, machine: Machine) -> None:
    try:
        check_target(bundle, manifest, device=machine)
    except TargetError as error:
        raise TargetError(
            "The bundle was built for another machine than the device.",
            where=f"{device.name}, target {manifest.target.name}",
            why=error.why,
            fix="`python -m awq_tvm compile MODEL --target NAME`; `python -m awq_tvm targets` lists the names",
        ) from None


def _check_runner(runner: Path, machine: Machine) -> None:
    """The runner is for the device's instruction set, where its program says which it has.

    Raises:
        TargetError: it is for another.
    """
    with (runner / _RUNNER).open("rb") as file:
        head = file.read(20)
    built_for = _ELF_MACHINES.get(int.from_bytes(head[18:20], "little"))
    if head.startswith(b"\x7fELF") and built_for not in (None, machine.architecture):
        raise TargetError(
            "The runner was built for another machine than the device.",
            where=str(runner / _RUNNER),
            why=f"it is for {built_for}, the device is {machine.architecture}",
            fix="build it for the device: docs/user-guide.md, Without Python",
        )


def _compared(test: SmokeTest, bundle: Path, ids: list[int], max_tokens: int, device: Device) -> SmokeTest:
    """The test with whether this machine generates the same.

    Raises:
        BundleError: it does not.
    """
    here = run_here(bundle, ids, max_tokens)
    if here is not None and here != test.token_ids:
        raise BundleError(
            "The device generates other tokens than this machine.",
            where=device.name,
            why=f"{list(test.token_ids)[:16]} there, {list(here)[:16]} here",
            fix="what the device had before is still in place; compile the bundle again for its target",
        )
    return replace(test, same_as_here=None if here is None else True)
