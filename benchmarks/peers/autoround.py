"""AutoRound: rounding and clipping learned block by block with signed gradients (arXiv:2309.05516)."""

from __future__ import annotations

import argparse

from auto_round import AutoRound
from transformers import PreTrainedTokenizerFast

from peers.interface import read_job


def main() -> None:
    """Quantize by AutoRound, in float32 and without torch.compile."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--autoround-steps", type=int, default=200)
    parser.add_argument("--autoround-batch", type=int, default=8)
    job = read_job(parser)
    samples, length = job.token_ids.shape
    tuner = AutoRound(
        job.load_model(),
        # Asked for, though it has nothing to do: the samples are tokens already, and none of them is padding.
        tokenizer=PreTrainedTokenizerFast(tokenizer_file=str(job.model / "tokenizer.json")),
        bits=job.bits,
        group_size=job.group_size,
        sym=False,
        iters=job.options.autoround_steps,
        batch_size=job.options.autoround_batch,
        dataset=list(job.token_ids.split(1)),
        nsamples=samples,
        seqlen=length,
        seed=job.seed,
        device_map="cpu",
        amp=False,
        enable_torch_compile=False,
        low_cpu_mem_usage=False,
    )
    model, _ = tuner.quantize()
    # They are dequantized already, by scales in float16.
    job.write({f"{name}.weight": model.get_submodule(name).weight for name in job.linears})


if __name__ == "__main__":
    main()
