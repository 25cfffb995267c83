"""The errors a user can meet, each with the exit code the command line ends with."""

from __future__ import annotations


class AwqTvmError(Exception):
    """Base of every error raised on purpose: what happened, where, why, and how to fix it.

    Args:
        what: one sentence, no trailing period needed.
        where: the file, tensor, option or layer it happened in.
        why: the reason, with the found and the needed value.
        fix: what the user can do, as a command line where there is one.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        why: str | None = None,
        fix: str | None = None,
    ) -> None:
        self.what, self.where, self.why, self.fix = what, where, why, fix
        labelled = (("where", where), ("why", why), ("fix", fix))
        lines = [what, *(f"  {label}: {text}" for label, text in labelled if text)]
        super().__init__("\n".join(lines))


class UsageError(AwqTvmError):
    """An option or argument that cannot be meant."""

    exit_code = 2


class CheckpointError(AwqTvmError):
    """A checkpoint that is damaged, lies about itself, or is incomplete."""

    exit_code = 3


class UnsupportedError(AwqTvmError):
    """A well-formed input that this version does not handle."""

    exit_code = 4


class TargetError(AwqTvmError):
    """A target that is unknown, not this machine, or lacks its compiler."""

    exit_code = 5


class BundleError(AwqTvmError):
    """A bundle that is damaged, foreign, or from another version."""

    exit_code = 6


class ResourceError(AwqTvmError):
    """Too little memory, disk or time, or an output somebody else holds."""

    exit_code = 7
