"""Which tasks to run, as they are asked for; nothing here needs the harness."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from awq_tvm.errors import ResourceError, UnsupportedError, UsageError

# Attention over more than this at once takes more memory than the tasks are worth.
_LONGEST_CONTEXT = 4096
_USUAL_CONTEXT = 2048


@dataclass(frozen=True, slots=True)
class TaskName:
    """One task.

    Attributes:
        name: of a task, a group or a tag of the harness.
        fewshot: solved examples in front of each question; None for what the task says, else none.
    """

    name: str
    fewshot: int | None = None


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """What to run.

    Attributes:
        tasks: in this order.
        include_path: a folder with more task files; None for the harness's own only.
        limit: examples of each task, from its first; None for all.
    """

    tasks: tuple[TaskName, ...]
    include_path: Path | None = None
    limit: int | None = None


@dataclass(frozen=True)
class ScoredModel:
    """A model as tasks need it.

    Attributes:
        logits: token ids [n] -> float32 [n, V].
        encode: text, and whether to add what the tokenizer puts around a text -> token ids.
        vocabulary: V.
        context_length: most tokens that `logits` takes.
        prefix_token: what stands before a text that has nothing before it.
    """

    logits: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]]
    encode: Callable[[str, bool], list[int]]
    vocabulary: int
    context_length: int
    prefix_token: int


def parse_tasks(text: str, *, include_path: Path | None = None, limit: int | None = None) -> TaskRequest:
    """Read "hellaswag,arc_easy:25": names, each with a number of solved examples if wanted.

    Raises:
        UsageError: no name, a name twice, a number that is none, a limit below 1, or no such folder.
        ResourceError: the harness is not installed.
    """
    tasks = []
    for part in (part.strip() for part in text.split(",")):
        name, colon, count = part.partition(":")
        if not name or (colon and not (count.isascii() and count.isdigit())):
            raise UsageError(
                "The list of tasks cannot be read",
                where="--tasks",
                why=f"found {part[:80]!r}; needed a name, or a name and a number of solved examples",
                fix="--tasks hellaswag,arc_easy:25",
            )
        tasks.append(TaskName(name, int(count) if colon else None))
    names = [task.name for task in tasks]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UsageError(
            "A task is named twice", where="--tasks", why=", ".join(sorted(twice)), fix="name each task once"
        )
    if limit is not None and limit < 1:
        raise UsageError(
            "So few examples are none", where="--limit", why=f"found {limit}, at least 1 is needed"
        )
    if include_path is not None and not include_path.is_dir():
        raise UsageError(
            "There is no such folder of tasks",
            where="--include-path",
            why=f"{include_path} is not a directory",
            fix="name the folder that holds the YAML files",
        )
    if find_spec("lm_eval") is None:
        raise ResourceError(
            "Tasks need a package that is not installed",
            where="--tasks",
            why="there is no package named lm_eval",
            fix="pip install 'awq-tvm[tasks]'",
        )
    return TaskRequest(tuple(tasks), include_path, limit)


def prefix_token_of(config: Mapping[str, Any]) -> int:
    """The token that begins a text, else the one that ends it, as the harness has it for transformers.

    Args:
        config: config.json.

    Raises:
        UnsupportedError: there is neither.
    """
    for name in ("bos_token_id", "eos_token_id"):
        found = config.get(name)
        if isinstance(found, list) and found:
            found = found[0]
        if isinstance(found, int):
            return found
    raise UnsupportedError(
        "Tasks need a token to begin from",
        where="config.json",
        why="it has neither bos_token_id nor eos_token_id",
        fix="add the one that the model was trained with",
    )


def context_length_of(config: Mapping[str, Any]) -> int:
    """Tokens that the model was made for, at most 4,096; 2,048 where the config does not say."""
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
    found = next((config[name] for name in names if isinstance(config.get(name), int)), _USUAL_CONTEXT)
    return min(int(found), _LONGEST_CONTEXT)
