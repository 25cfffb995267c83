"""From arguments to an exit code: finds the verb, runs it, and turns every error into four lines."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from awq_tvm.cli.verbs import VERBS, Verb, help_text
from awq_tvm.errors import AwqTvmError, ResourceError, UnsupportedError, UsageError

INTERRUPTED = 130
TERMINATED = 143
BROKEN_PIPE = 141
# Set to anything, a bug in this program shows where it happened.
TRACEBACK_VARIABLE = "AWQ_TVM_TRACEBACK"


class TerminatedError(BaseException):
    """SIGTERM came: unwind as for ^C, so that half-written outputs are removed."""


def run(arguments: Sequence[str]) -> int:
    """Run one command line.

    Args:
        arguments: without the program's name.

    Returns:
        the exit code.
    """
    as_json = "--json" in arguments
    before = _end_cleanly_on_sigterm()
    try:
        return _dispatch(list(arguments))
    except AwqTvmError as error:
        return _report(error, as_json)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except TerminatedError:
        print("terminated", file=sys.stderr)
        return TERMINATED
    except BrokenPipeError:
        # The reader is gone; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        return _report(_known(error), as_json)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(help_text(), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else UsageError.exit_code
    if arguments[0] == "--version":
        from awq_tvm import __version__

        print(f"awq_tvm {__version__}")
        return 0
    verb = next((verb for verb in VERBS if verb.name == arguments[0]), None)
    if verb is None:
        raise _unknown(arguments[0])
    return _run_verb(verb, arguments[1:])


def _run_verb(verb: Verb, arguments: list[str]) -> int:
    import importlib

    import typer

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    name = verb.name
    if arguments and arguments[0] in verb.groups:
        group, *arguments = arguments
        name = f"{name} {group}"
        app.add_typer(importlib.import_module(f"{verb.module}_{group}").app)
    else:
        command: Callable[..., Any] = importlib.import_module(verb.module).command
        app.command(help=command.__doc__)(command)
    try:
        code = app(args=arguments, prog_name=f"python -m awq_tvm {name}", standalone_mode=False)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except SystemExit:
        # How typer answers a closed pipe, even where it is told not to end the process.
        raise BrokenPipeError from None
    except Exception as error:
        # What the option parser raises; its class has moved between versions of typer.
        message = getattr(error, "format_message", None)
        if not callable(message):
            raise
        raise UsageError(
            str(message()),
            where=f"python -m awq_tvm {name}",
            why="the arguments do not fit",
            fix=f"`python -m awq_tvm {name} --help` lists them",
        ) from None
    return code if isinstance(code, int) else 0


def _unknown(name: str) -> UsageError:
    from difflib import get_close_matches

    known = [verb.name for verb in VERBS]
    close = get_close_matches(name, known, 1)
    return UsageError(
        f"There is no verb {name[:80]!r}.",
        where="the first argument",
        why=f"the verbs are {', '.join(known)}",
        fix=f"`python -m awq_tvm {close[0]}`" if close else "`python -m awq_tvm --help`",
    )


def _known(error: Exception) -> AwqTvmError:
    """Say as one of our errors what Python or a library raised."""
    if isinstance(error, MemoryError):
        return ResourceError(
            "There is too little memory.", why=str(error) or "an allocation failed", fix="use a smaller model"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(
            "The disk is full.", where=str(error.filename or ""), why=str(error), fix="free some space"
        )
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in (
        "torch",
        "transformers",
    ):
        return UnsupportedError(
            "This needs PyTorch and transformers.",
            where=str(error.name),
            why="they are not installed; running a bundle does not need them, quantizing does",
            fix="`pip install 'awq-tvm[quantize]'`",
        )
    return AwqTvmError(
        "The program met something it does not know: this is a bug.",
        why=f"{type(error).__name__}: {str(error)[:500]}",
        fix=f"set {TRACEBACK_VARIABLE}=1 to see where, and report it",
    )


def _report(error: AwqTvmError, as_json: bool) -> int:
    from awq_tvm.cli.output import report_error

    report_error(error, as_json=as_json)
    return error.exit_code


def _end_cleanly_on_sigterm() -> Any:
    """Take over SIGTERM; return what handled it before, None where that cannot be put back."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TerminatedError

    if threading.current_thread() is not threading.main_thread():
        return None  # only the main thread may
    return signal.signal(signal.SIGTERM, stop)
