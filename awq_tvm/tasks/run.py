"""Run tasks of the lm-evaluation-harness. Importing this needs the harness."""

from __future__ import annotations

import random
from collections.abc import Mapping
from difflib import get_close_matches
from importlib.metadata import version
from typing import Any

import numpy as np
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from awq_tvm.errors import AwqTvmError, ResourceError, UnsupportedError, UsageError
from awq_tvm.progress import ProgressCallback, ignore_progress
from awq_tvm.tasks.language_model import LanguageModel
from awq_tvm.tasks.request import ScoredModel, TaskName, TaskRequest

# As the harness's own command line has them; they choose solved examples and resample for standard errors.
_PYTHON_SEED, _SEED = 0, 1234
_BOOTSTRAPS = 1000
_WRITES = "generate_until"


def run_tasks(
    model: ScoredModel, request: TaskRequest, progress: ProgressCallback = ignore_progress
) -> dict[str, Any]:
    """Load all tasks, then run one after the other.

    Args:
        model: what is scored.
        request: what to run.
        progress: told after every answer that is scored.

    Returns:
        {"lm_eval": version, "tasks": {name: {"fewshot", "examples", "version", "metrics": {metric: {"value",
        "stderr"}}}}}, groups after their tasks. A metric is "acc", or "exact_match,strict" where the task filters
        answers. Figures that the task does not have are None.

    Raises:
        UsageError: a task that is not known.
        UnsupportedError: a task that lets the model write, or with answers longer than the context.
        ResourceError: a task's data cannot be had, or the task itself fails.
        CheckpointError: logits that are not finite, or a tokenizer that does not belong to the model.
    """
    manager = TaskManager(include_path=None if request.include_path is None else str(request.include_path))
    for task in request.tasks:
        _require_known(task.name, manager)
    loaded = [(task, _load(task, manager)) for task in request.tasks]
    language_model = LanguageModel(model, progress)
    found: dict[str, Any] = {}
    for task, tasks in loaded:
        random.seed(_PYTHON_SEED)
        np.random.seed(_SEED)
        try:
            results = evaluate(
                lm=language_model,
                task_dict=tasks,
                limit=request.limit,
                bootstrap_iters=_BOOTSTRAPS,
                log_samples=False,
            )
        except AwqTvmError:
            raise
        except Exception as error:  # whatever the functions of a task raise
            raise _failed(task, "could not be run", error) from error
        found |= _figures(results)
    return {"lm_eval": version("lm_eval"), "tasks": found}


def _require_known(name: str, manager: TaskManager) -> None:
    known = manager.all_tasks
    if name not in known:
        close = get_close_matches(name, known, 3)
        raise UsageError(
            f"There is no task {name[:80]!r}",
            where="--tasks",
            why=f"the harness knows {len(known)} tasks"
            + (f", {', '.join(close)} among them" if close else ""),
            fix="--include-path DIR for task files of your own",
        )


def _load(task: TaskName, manager: TaskManager) -> dict[str, Any]:
    """The task objects; this is where the harness reads their data."""
    try:
        loaded: dict[str, Any] = manager.load([task.name])
    except Exception as error:  # network, format and code errors in classes of many packages
        raise _failed(task, "or its data cannot be read", error) from error
    for name, one in loaded["tasks"].items():
        if one.get_config("output_type") == _WRITES:
            raise UnsupportedError(
                "Tasks that let the model write are not supported",
                where=name,
                why=f"its output_type is {_WRITES}; answers are scored here, not written",
                fix="choose a task of multiple choice, or one that scores likelihoods",
            )
        if task.fewshot is not None:
            one.set_config(key="num_fewshot", value=task.fewshot)
        elif one.get_config("num_fewshot") is None:
            one.set_config(key="num_fewshot", value=0)
        one.set_fewshot_seed(seed=_SEED)
    return loaded


def _failed(task: TaskName, what: str, error: Exception) -> ResourceError:
    return ResourceError(
        f"The task {task.name} {what}",
        where=task.name,
        why=f"{type(error).__name__}: {str(error)[:500]}",
        fix="check the task file, and the connection if its data comes from the hub",
    )


def _figures(results: Mapping[str, Any]) -> dict[str, Any]:
    """Our form of the harness's results."""
    found = {}
    for name, values in (results["results"] | results.get("groups", {})).items():
        metrics = {}
        for key, value in values.items():
            metric, comma, filtered = key.partition(",")
            if comma and not metric.endswith("_stderr"):
                stderr = values.get(f"{metric}_stderr,{filtered}")
                metrics[metric if filtered == "none" else key] = {
                    "value": _number(value),
                    "stderr": _number(stderr),
                }
        found[name] = {
            "fewshot": results.get("n-shot", {}).get(name),
            "examples": results.get("n-samples", {}).get(name, {}).get("effective"),
            "version": results.get("versions", {}).get(name),
            "metrics": metrics,
        }
    return found


def _number(value: Any) -> float | None:
    """A figure as JSON has it; the harness spells a missing one "N/A"."""
    return float(value) if isinstance(value, int | float | np.number) else None
