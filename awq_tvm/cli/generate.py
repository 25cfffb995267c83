"""`generate BUNDLE --prompt TEXT`."""

from __future__ import annotations

from typing import Annotated

import typer

from awq_tvm.cli.options import BundlePath, Json, RequireSignature, Threads, check_signed
from awq_tvm.cli.output import print_json, say


def command(
    bundle: BundlePath,
    prompt: Annotated[str, typer.Option(metavar="TEXT", show_default=False, help="What to continue.")],
    max_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of the answer; 256 by default.", show_default=False)
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 always takes the most likely token.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Draw among the k most likely; 0 for all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw among the most likely with this probability.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Drop tokens below this part of the best one.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: repeat less.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Of the draws.", show_default=False)] = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", show_default=False, help="End before this text.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put the prompt through the model's chat template.")
    ] = False,
    require_signature: RequireSignature = None,
    threads: Threads = None,
    json_output: Json = False,
) -> None:
    """Generate one answer; its text is printed as it comes."""
    from awq_tvm.runtime.engine import Engine
    from awq_tvm.runtime.sampler import SamplingOptions

    options = SamplingOptions(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
    )
    check_signed(bundle, require_signature)
    with Engine.load(bundle, threads=threads) as engine:
        if json_output:
            answer = engine.generate(prompt, options, chat=chat)
            print_json(
                {
                    "token_ids": answer.token_ids,
                    "text": answer.text,
                    "finish_reason": answer.finish_reason,
                    "timings": answer.timings.as_dict(),
                }
            )
            return
        with engine.stream(prompt, options, chat=chat) as stream:
            for piece in stream:
                print(piece, end="", flush=True)
        print(flush=True)
        if stream.generation is not None:
            say(describe(stream.generation.timings.as_dict(), stream.generation.finish_reason))


def describe(timings: dict[str, float | None], finish_reason: str) -> str:
    """One line about how long an answer took."""
    rate = timings["decode_tokens_per_second"]
    return (
        f"[first token after {timings['prefill_seconds']:.2f} s, {timings['prompt_tokens']} read "
        f"({timings['prefill_tokens_per_second']:.0f}/s), {timings['generated_tokens']} written in "
        f"{timings['decode_seconds']:.2f} s"
        + ("" if rate is None else f" ({rate:.1f}/s)")
        + f", {finish_reason}]"
    )
