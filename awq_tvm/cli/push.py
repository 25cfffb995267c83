"""`push BUNDLE DEVICE`."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from awq_tvm.cli.options import BundlePath, Json, RequireSignature, check_signed
from awq_tvm.cli.output import in_bytes, print_json, say
from awq_tvm.cli.progress_bar import ProgressDisplay


def command(
    bundle: BundlePath,
    device: Annotated[
        str,
        typer.Argument(
            metavar="DEVICE",
            show_default=False,
            help="ssh://user@host/folder, adb://serial, rpc://127.0.0.1:9090, or a name in the file of devices.",
        ),
    ],
    runner: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="An installed runner for the device, sent along."),
    ] = None,
    devices: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Named devices; ~/.config/awq_tvm/devices.toml if not given."),
    ] = None,
    prompt: Annotated[
        str, typer.Option(metavar="TEXT", help="What the device continues.")
    ] = "The capital of France is",
    max_tokens: Annotated[int, typer.Option(help="Most tokens that it generates.")] = 16,
    smoke_test: Annotated[
        bool, typer.Option("--smoke-test/--no-smoke-test", help="Generate there once.")
    ] = True,
    require_signature: RequireSignature = None,
    json_output: Json = False,
) -> None:
    """Bring a bundle onto a device: send what changed, check it there, and generate there once."""
    from awq_tvm.push.address import find_device
    from awq_tvm.push.push import push_bundle

    address = find_device(device, devices)
    if runner is not None:
        address = replace(address, runner=runner)
    check_signed(bundle, require_signature)
    with ProgressDisplay() as display:
        report = push_bundle(
            bundle,
            address,
            prompt=prompt,
            max_tokens=max_tokens,
            smoke_test=smoke_test,
            progress=display.update,
        )
    if json_output:
        print_json(asdict(report))
        return
    sent = f"{report.files_sent} of {report.files} files sent, {in_bytes(report.bytes_sent)}"
    if report.runner_bytes_sent:
        sent += f", and {in_bytes(report.runner_bytes_sent)} of the runner"
    print(f"{report.device}: {report.folder}, {report.target}; {sent}; all of it checked there")
    test = report.test
    if test is None:
        if smoke_test:
            say(
                "not tried out: the device has neither awq_tvm_run (--runner DIR sends it) nor awq_tvm in Python"
            )
        return
    rate = "" if test.decode_tokens_per_second is None else f"{test.decode_tokens_per_second:.1f} tokens/s, "
    compared = "as this machine does" if test.same_as_here else "not compared: this machine cannot run it"
    print(
        f"{test.ran} generated {len(test.token_ids)} tokens there ({compared}): {rate}"
        f"prompt {test.prefill_tokens_per_second:.0f} tokens/s"
    )
