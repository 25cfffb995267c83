"""The verbs as data: the top-level help is printed from here without importing any of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb: `name` on the command line, `module` with its `command` function, one line of help.

    Each of `groups` is a first argument behind which verbs of its own come; `app` of the module `<module>_<group>`.
    """

    name: str
    module: str
    summary: str
    groups: tuple[str, ...] = ()


VERBS = tuple(
    Verb(name, f"awq_tvm.cli.{module}", summary, ("db",) if name == "tune" else ())
    for name, module, summary in (
        ("quantize", "quantize", "quantize a model's weights to a few bits, activation-aware"),
        ("compile", "compile_verb", "compile a model into a bundle for one target"),
        ("finish", "finish", "compile with nvcc what `compile --source-only` left as source"),
        ("tune", "tune", "find the fastest tiles of kernels on this hardware; `tune db`: keep them"),
        ("export", "export", "write a checkpoint in the format that another program loads"),
        ("generate", "generate", "generate one answer with a bundle"),
        ("chat", "chat", "talk with a bundle"),
        ("serve", "serve", "serve a bundle over HTTP, as OpenAI's API"),
        ("push", "push", "bring a bundle onto a device: ssh, adb or TVM's RPC"),
        ("eval", "eval_verb", "perplexity of a model or bundle on a text, and its distance from a reference"),
        ("bench", "bench", "speed and memory of a bundle on this machine"),
        ("inspect", "inspect_verb", "show what a checkpoint or a bundle holds"),
        ("verify", "verify", "check every file of a bundle, and that this machine can run it"),
        ("sign", "sign", "sign a bundle with a key"),
        ("targets", "targets", "list the hardware that can be compiled for"),
        ("doctor", "doctor", "check this machine's tools and versions"),
    )
)


def help_text() -> str:
    """The top-level help."""
    lines = [f"  {verb.name:<10} {verb.summary}" for verb in VERBS]
    return "\n".join(
        [
            "Usage: python -m awq_tvm VERB [ARGUMENTS]",
            "",
            "Activation-aware 4-bit quantization, compiled by TVM for every device.",
            "",
            "Verbs:",
            *lines,
            "",
            "  VERB --help   options of a verb      --version   the version of this program",
            "  --json        with any verb: one JSON object on standard output",
            "",
            "MODEL is a folder, a .gguf file, hf:org/name@revision, or demo.",
            "Exit codes: 2 usage, 3 checkpoint, 4 unsupported, 5 target, 6 bundle, 7 resource,",
            "130 interrupted.",
        ]
    )
