"""`eval MODEL_OR_BUNDLE --text FILE`, or `--tasks NAMES`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from awq_tvm.cli.options import Json, Threads, is_bundle
from awq_tvm.cli.output import print_json, table
from awq_tvm.cli.progress_bar import ProgressDisplay
from awq_tvm.errors import UsageError

TASKS = "Tasks of the lm-evaluation-harness"


def command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL_OR_BUNDLE", show_default=False, help="What to score.")
    ],
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", show_default=False, help="UTF-8 text to score on.")
    ] = None,
    context: Annotated[int, typer.Option(help="Tokens in a window.")] = 512,
    tokens: Annotated[
        int | None, typer.Option(help="Score only the text's first tokens.", show_default=False)
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(metavar="MODEL", show_default=False, help="Also measure the distance from this model."),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            show_default=False,
            help="Run these, as hellaswag,arc_easy:25 with 25 solved examples.",
            rich_help_panel=TASKS,
        ),
    ] = None,
    include_path: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", show_default=False, help="Task files of your own.", rich_help_panel=TASKS
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(help="Only the first examples of a task.", show_default=False, rich_help_panel=TASKS),
    ] = None,
    threads: Threads = None,
    json_output: Json = False,
) -> None:
    """Perplexity on a text, or scores on tasks: of a bundle with the compiled module, else with PyTorch."""
    if tasks is not None:
        _refuse({"--text": text, "--tokens": tokens, "--reference": reference}, "it does not go with --tasks")
        result = _score_tasks(model, tasks, include_path, limit, threads)
        if json_output:
            print_json(result)
        else:
            print(_task_table(result["tasks"]))
        return
    _refuse({"--include-path": include_path, "--limit": limit}, "it goes with --tasks")
    if text is None:
        raise UsageError(
            "There is nothing to score on",
            where="--text",
            why="neither a text nor tasks are named",
            fix="--text FILE, or --tasks NAMES",
        )
    result = _score_text(model, text, context, tokens, reference, threads)
    if json_output:
        print_json(result)
        return
    print(f"perplexity      {result['perplexity']:.4f}  ({result['tokens']} tokens, windows of {context})")
    if reference is not None:
        print(f"KL divergence   {result['kl_divergence']:.5f} nats a token, from {reference}")
        print(f"top-1 agreement {result['top1_agreement']:.4f}")


def _score_text(
    model: str, text: Path, context: int, tokens: int | None, reference: str | None, threads: int | None
) -> dict[str, Any]:
    with ProgressDisplay() as display:
        if is_bundle(model):
            from awq_tvm.runtime.engine import Engine
            from awq_tvm.runtime.evaluate import evaluate_bundle

            with Engine.load(model, threads=threads) as engine:
                provider = None
                if reference is not None:
                    from awq_tvm.quantize.reference import reference_logits

                    provider = reference_logits(reference)
                return evaluate_bundle(
                    engine, text, context=context, tokens=tokens, reference=provider, progress=display.update
                )
        from awq_tvm.quantize.evaluate import evaluate_torch

        return evaluate_torch(
            model, text, context=context, tokens=tokens, reference=reference, progress=display.update
        )


def _score_tasks(
    model: str, tasks: str, include_path: Path | None, limit: int | None, threads: int | None
) -> dict[str, Any]:
    from awq_tvm.tasks.request import parse_tasks

    request = parse_tasks(tasks, include_path=include_path, limit=limit)
    # Here, because the harness may be missing.
    from awq_tvm.tasks.run import run_tasks

    with ProgressDisplay() as display:
        if is_bundle(model):
            from awq_tvm.runtime.engine import Engine
            from awq_tvm.runtime.task_model import task_model_of_bundle

            with Engine.load(model, threads=threads) as engine:
                return run_tasks(task_model_of_bundle(engine, Path(model)), request, display.update)
        from awq_tvm.quantize.task_model import task_model_of_checkpoint

        return run_tasks(task_model_of_checkpoint(model), request, display.update)


def _refuse(options: Mapping[str, Any], why: str) -> None:
    for option, value in options.items():
        if value is not None:
            raise UsageError(
                "The options do not fit together", where=option, why=why, fix=f"leave {option} out"
            )


def _task_table(tasks: Mapping[str, Any]) -> str:
    rows = []
    for name, task in tasks.items():
        for metric, figure in task["metrics"].items():
            value, stderr = figure["value"], figure["stderr"]
            rows.append(
                (
                    name,
                    "" if task["fewshot"] is None else task["fewshot"],
                    "" if task["examples"] is None else task["examples"],
                    metric,
                    "" if value is None else f"{value:.4f}",
                    "" if stderr is None else f"{stderr:.4f}",
                )
            )
    header = ("task", "few-shot", "examples", "metric", "value", "stderr")
    return table(rows, header=header, right=(1, 2, 4, 5))
