"""A bundle tried out on the device: a few greedy tokens, their speed, and whether they are those of this machine."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from awq_tvm.bundle.verify import check_target, read_manifest
from awq_tvm.errors import AwqTvmError, BundleError, ResourceError, TargetError, UnsupportedError
from awq_tvm.push.device import Device, Finished, quote

_ERRORS: dict[int, type[AwqTvmError]] = {
    4: UnsupportedError,
    5: TargetError,
    6: BundleError,
    7: ResourceError,
}
# The first line says what ran; what that prints follows. A shell stays above it to tell of signals.
_SCRIPT = """
runner=$1 python=$2 code=$3; shift 3
[ -x "$runner" ] || runner=$(command -v awq_tvm_run) || runner=
if [ -n "$runner" ]; then
  echo awq_tvm_run; "$runner" --json --ids --max-tokens "$1" "$2" "$3"; exit $?
fi
if "$python" -c 'import awq_tvm' 2>/dev/null; then echo python; "$python" -c "$code" "$@"; exit $?; fi
echo none
"""
_CODE = """
import json, sys
from awq_tvm.errors import AwqTvmError
from awq_tvm.runtime.engine import Engine
from awq_tvm.runtime.sampler import SamplingOptions
count, bundle, ids = sys.argv[1:]
try:
    with Engine.load(bundle) as engine:
        answer = engine.generate_tokens([*map(int, ids.split())], SamplingOptions(max_tokens=int(count)))
except AwqTvmError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
t = answer.timings
seconds = {"prefill_seconds": t.prefill_seconds, "decode_seconds": t.decode_seconds}
print(json.dumps({"token_ids": answer.token_ids, **seconds}))
"""


@dataclass(frozen=True, slots=True)
class SmokeTest:
    """What the device generated.

    Attributes:
        ran: which program did.
        token_ids: the greedy tokens after the prompt.
        same_as_here: whether this machine generates the same; None where it cannot run the bundle.
        prefill_tokens_per_second: of the prompt.
        decode_tokens_per_second: of the tokens after the first; None where there was only one.
    """

    ran: Literal["awq_tvm_run", "python"]
    token_ids: tuple[int, ...]
    same_as_here: bool | None
    prefill_tokens_per_second: float
    decode_tokens_per_second: float | None


def run_there(
    device: Device, folder: str, runner: str, python: str, prompt: Sequence[int], max_tokens: int
) -> SmokeTest | None:
    """Generate on the device by the runner without Python, else by awq_tvm of its Python.

    Args:
        device: where the bundle is.
        folder: of the bundle there.
        runner: path of the program awq_tvm_run there; it may be missing.
        python: of the device.
        prompt: token ids.
        max_tokens: most tokens to generate.

    Returns:
        What came of it, not compared with anything; None where the device has neither.

    Raises:
        AwqTvmError: of the kind that the device's program ended with.
    """
    ids = shlex.quote(" ".join(map(str, prompt)))
    words = (quote(runner), quote(python), shlex.quote(_CODE), str(max_tokens), quote(folder), ids)
    done = device.run(f"set -- {' '.join(words)}\n{_SCRIPT}")
    ran, _, printed = done.output.partition("\n")
    if ran == "none":
        return None
    if done.code or ran not in ("awq_tvm_run", "python"):
        raise _failed(device, done)
    answer: dict[str, Any] = json.loads(printed)
    tokens = tuple(answer["token_ids"])
    # A token that only ended the answer is not among them, but took its time.
    later = len(tokens) - (len(tokens) == max_tokens)
    return SmokeTest(
        "python" if ran == "python" else "awq_tvm_run",
        tokens,
        None,
        len(prompt) / max(answer["prefill_seconds"], 1e-9),
        later / max(answer["decode_seconds"], 1e-9) if later > 0 else None,
    )


def run_here(bundle: Path, prompt: Sequence[int], max_tokens: int) -> tuple[int, ...] | None:
    """The greedy tokens of this machine; None where it cannot run the bundle."""
    try:
        check_target(bundle, read_manifest(bundle))
    except TargetError:
        return None
    from awq_tvm.runtime.engine import Engine
    from awq_tvm.runtime.sampler import SamplingOptions

    with Engine.load(bundle) as engine:
        return engine.generate_tokens(prompt, SamplingOptions(max_tokens=max_tokens)).token_ids


def _failed(device: Device, done: Finished) -> AwqTvmError:
    message = done.errors.strip()[-1000:]
    kind = _ERRORS.get(done.code, BundleError)
    return kind(
        "The bundle does not run on the device.",
        where=device.name,
        why=message or f"the program there ended with code {done.code}",
        fix="what the device had before is still in place; see the reason, and push again",
    )
