"""Does a compiled bundle say what PyTorch says? Greedy tokens and perplexity, side by side.

    python -m benchmarks.agreement CHECKPOINT BUNDLE --text FILE

CHECKPOINT is the quantized folder that BUNDLE was compiled from; PyTorch runs it with its weights dequantized.
Prints, for each prompt, how many of the greedy tokens are equal, and both perplexities with their difference.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from awq_tvm.bundle.verify import read_manifest
from awq_tvm.checkpoint import open_checkpoint
from awq_tvm.quantize.evaluate import evaluate_torch
from awq_tvm.quantize.torch_model import build_model
from awq_tvm.runtime.engine import Engine
from awq_tvm.runtime.evaluate import evaluate_bundle
from awq_tvm.runtime.sampler import SamplingOptions

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n",
    "Once upon a time, in a small village by the sea,",
    "Water boils at one hundred degrees because",
    "Dear Ms. Alvarez,\n\nThank you for",
)


def greedy_torch(model: torch.nn.Module, prompt: list[int], count: int, ends: frozenset[int]) -> list[int]:
    """Greedy continuation in PyTorch, without the end token, up to ``count`` tokens."""
    tokens: list[int] = []
    with torch.no_grad():
        past, new = None, torch.tensor([prompt])
        while len(tokens) < count:
            output = model(new, past_key_values=past, use_cache=True)
            past, token = output.past_key_values, int(output.logits[0, -1].argmax())
            if token in ends:
                break
            tokens.append(token)
            new = torch.tensor([[token]])
    return tokens


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--text", type=Path, required=True, help="text for the perplexities")
    parser.add_argument("--tokens", type=int, default=8192, help="of the text")
    parser.add_argument("--context", type=int, default=1024, help="tokens of a window")
    parser.add_argument("--generate", type=int, default=64, help="tokens of each continuation")
    arguments = parser.parse_args()

    model = build_model(open_checkpoint(arguments.checkpoint))
    ends = frozenset(read_manifest(arguments.bundle).model.eos_token_ids)
    with Engine.load(arguments.bundle) as engine:
        options = SamplingOptions(temperature=0.0, max_tokens=arguments.generate)
        for prompt in PROMPTS:
            ids = engine.encode(prompt)
            ours = list(engine.generate_tokens(ids, options).token_ids)
            theirs = greedy_torch(model, ids, arguments.generate, ends)
            same = int(np.cumprod([a == b for a, b in zip(ours, theirs, strict=False)]).sum()) if ours else 0
            verdict = "equal" if ours == theirs else f"DIFFERENT from token {same}"
            print(f"{verdict}: {len(ours)} and {len(theirs)} tokens after {prompt!r}", flush=True)
        bundle = evaluate_bundle(engine, arguments.text, context=arguments.context, tokens=arguments.tokens)
    torch_side = evaluate_torch(
        arguments.checkpoint, arguments.text, context=arguments.context, tokens=arguments.tokens
    )
    a, b = (float(side["perplexity"] or 0) for side in (bundle, torch_side))
    difference = f"{100 * (a / b - 1):+.4f}%"
    print(f"perplexity of {bundle['tokens']} tokens: bundle {a:.5f}, PyTorch {b:.5f}, {difference}")


if __name__ == "__main__":
    main()
