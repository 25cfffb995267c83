"""`eval MODEL_OR_BUNDLE --text FILE`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from awq_tvm.cli.options import Json, Threads, is_bundle
from awq_tvm.cli.output import print_json
from awq_tvm.cli.progress_bar import ProgressDisplay


def command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL_OR_BUNDLE", show_default=False, help="What to score.")
    ],
    text: Annotated[Path, typer.Option(metavar="FILE", show_default=False, help="UTF-8 text to score on.")],
    context: Annotated[int, typer.Option(help="Tokens in a window.")] = 512,
    tokens: Annotated[
        int | None, typer.Option(help="Score only the text's first tokens.", show_default=False)
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(metavar="MODEL", show_default=False, help="Also measure the distance from this model."),
    ] = None,
    threads: Threads = None,
    json_output: Json = False,
) -> None:
    """Perplexity on a text: of a bundle with the compiled module, of any other model with PyTorch."""
    with ProgressDisplay() as display:
        if is_bundle(model):
            from awq_tvm.runtime.engine import Engine
            from awq_tvm.runtime.evaluate import evaluate_bundle

            with Engine.load(model, threads=threads) as engine:
                provider = None
                if reference is not None:
                    from awq_tvm.quantize.reference import reference_logits

                    provider = reference_logits(reference)
                result = evaluate_bundle(
                    engine, text, context=context, tokens=tokens, reference=provider, progress=display.update
                )
        else:
            from awq_tvm.quantize.evaluate import evaluate_torch

            result = evaluate_torch(
                model, text, context=context, tokens=tokens, reference=reference, progress=display.update
            )
    if json_output:
        print_json(result)
        return
    print(f"perplexity      {result['perplexity']:.4f}  ({result['tokens']} tokens, windows of {context})")
    if reference is not None:
        print(f"KL divergence   {result['kl_divergence']:.5f} nats a token, from {reference}")
        print(f"top-1 agreement {result['top1_agreement']:.4f}")
