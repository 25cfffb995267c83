"""Renders one chat template in a process of its own; run as a file by `chat_template.py`, never imported.

A template is a program by a stranger. The sandbox keeps it from the interpreter, this process from everything
else: its memory is bounded here and its time by the parent, which ends it. Lines of JSON go in and out.
"""

from __future__ import annotations

import json
import sys
from typing import Any

MEMORY_BYTES = 1 << 30
MAX_OUTPUT_CHARACTERS = 8 << 20


class RefusedError(Exception):
    """The template called raise_exception: it does not take this conversation."""


def _refuse(message: object) -> None:
    raise RefusedError(str(message))


def _limit_memory() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    except (ImportError, ValueError, OSError):
        pass  # a system without this limit still has the sandbox and the time limit


def _compile(source: str) -> Any:
    from datetime import datetime

    import jinja2
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what training learns; here its body is all there is to it."""

        tags = {"generation"}  # noqa: RUF012 - the attribute jinja2 reads

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(["name:endgeneration"], drop_needle=True)

    def tojson(value: Any, indent: int | None = None, separators: Any = None, sort_keys: bool = False) -> str:
        return json.dumps(
            value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"line {error.lineno}: {error.message}") from None


def _answer(template: Any, request: dict[str, Any]) -> dict[str, str]:
    try:
        text = template.render(**request)
        if len(text) > MAX_OUTPUT_CHARACTERS:
            return {"broken": f"it wrote {len(text)} characters, at most {MAX_OUTPUT_CHARACTERS} are taken"}
        return {"text": text}
    except RefusedError as error:
        return {"refused": str(error)[:1000]}
    except MemoryError:
        return {"broken": f"it needs more than {MEMORY_BYTES} bytes of memory"}
    except Exception as error:  # whatever a stranger's program raises is an answer here
        return {"broken": f"{type(error).__name__}: {str(error)[:500]}"}


def main() -> None:
    """Read the template, then answer a request a line until the parent closes the pipe."""
    start = json.loads(sys.stdin.readline())
    sys.path[:] = start["path"]
    _limit_memory()
    try:
        template = _compile(start["template"])
        broken = None
    except Exception as error:  # jinja2 raises many kinds for a broken template
        broken = f"{type(error).__name__}: {str(error)[:500]}"
    for line in sys.stdin:
        answer = {"broken": broken} if broken is not None else _answer(template, json.loads(line))
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
