"""How much memory it takes to quantize a large model: a few of its blocks, with random weights.

    python -m benchmarks.memory_quantize                    3 blocks as wide as Llama 2 70B, awq
    python -m benchmarks.memory_quantize --blocks 2 --hidden 1024 --intermediate 2816 --heads 8 --kv-heads 2
    python -m benchmarks.memory_quantize --blocks 1 --samples 2 -- --scale-steps 2 --clip none      the peak, sooner

The blocks are written shard by shard in bfloat16 to a folder below --folder, never whole in memory, and quantized in
a process of its own by the command a user types. Prints one JSON line: the peak of the resident set, the peaks of its
two parts (its own memory, and pages of mapped files that the system may take back), and the seconds of every block.
Ends with 1 if the peak is above --bar GiB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from awq_tvm.memory import memory_of

ROOT = Path(__file__).resolve().parent.parent
_ROWS = 1024
_STATUS = ("VmRSS", "RssAnon", "RssFile")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=8192)
    parser.add_argument("--intermediate", type=int, default=28672)
    parser.add_argument("--heads", type=int, default=64)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--method", default="awq", help="what `quantize --method` takes")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--bar", type=float, default=6.0, help="GiB that the peak may have")
    parser.add_argument("--timeout", type=float, default=7200, help="seconds that quantizing may take")
    parser.add_argument("--folder", type=Path, help="where there is room: 6 GB for the default")
    parser.add_argument("more", nargs="*", help="after --: more arguments of `quantize`")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        write_model(Path(folder) / "model", options)
        write_text(Path(folder) / "text.txt", options)
        found = quantize(Path(folder), options)
    if found is None:
        print("quantizing failed or took too long", file=sys.stderr)
        return 1
    sizes = ("blocks", "hidden", "intermediate", "method", "samples", "sequence_length", "threads")
    print(json.dumps({**{name: getattr(options, name) for name in sizes}, **found}))
    return int(found["peak_gib"] > options.bar)


def write_model(folder: Path, options: argparse.Namespace) -> None:
    """Write a random Llama, a shard for each block and one for what is outside them."""
    folder.mkdir()
    head_width = options.hidden // options.heads
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": options.hidden,
        "intermediate_size": options.intermediate,
        "num_hidden_layers": options.blocks,
        "num_attention_heads": options.heads,
        "num_key_value_heads": options.kv_heads,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "vocab_size": options.vocabulary,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    words = {f"w{index}": index for index in range(options.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    wide, narrow = options.hidden, options.kv_heads * head_width
    block = {
        "input_layernorm": (wide,),
        "self_attn.q_proj": (wide, wide),
        "self_attn.k_proj": (narrow, wide),
        "self_attn.v_proj": (narrow, wide),
        "self_attn.o_proj": (wide, wide),
        "post_attention_layernorm": (wide,),
        "mlp.gate_proj": (options.intermediate, wide),
        "mlp.up_proj": (options.intermediate, wide),
        "mlp.down_proj": (wide, options.intermediate),
    }
    outside: dict[str, tuple[int, ...]] = {
        "model.embed_tokens": (options.vocabulary, wide),
        "model.norm": (wide,),
        "lm_head": (options.vocabulary, wide),
    }
    shards: list[dict[str, tuple[int, ...]]] = [outside]
    for index in range(options.blocks):
        shards.append({f"model.layers.{index}.{name}": shape for name, shape in block.items()})
    weight_map = {}
    generator = np.random.default_rng(0)
    for number, shapes in enumerate(shards):
        file = f"model-{number:05d}.safetensors"
        write_shard(folder / file, {f"{name}.weight": shape for name, shape in shapes.items()}, generator)
        weight_map.update({f"{name}.weight": file for name in shapes})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def write_shard(path: Path, shapes: dict[str, tuple[int, ...]], generator: np.random.Generator) -> None:
    """Write random tensors as bfloat16, a few rows in memory at a time."""
    header, position = {}, 0
    for name, shape in shapes.items():
        end = position + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [position, end]}
        position = end
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for name, shape in shapes.items():
            for values in _random_rows(name, shape, generator):
                file.write(values.astype(ml_dtypes.bfloat16).tobytes())


def _random_rows(
    name: str, shape: tuple[int, ...], generator: np.random.Generator
) -> Iterator[np.ndarray[Any, np.dtype[np.float32]]]:
    if len(shape) == 1:
        # A norm, a few of its channels loud, as in trained models.
        loud = 1.0 + 9.0 * (generator.random(shape, dtype=np.float32) > 0.99)
        yield (1.0 + 0.1 * generator.standard_normal(shape, dtype=np.float32)) * loud
        return
    # What keeps the size of activations about the same from block to block.
    deviation = 1.0 if "embed" in name else shape[1] ** -0.5
    for start in range(0, shape[0], _ROWS):
        rows = min(_ROWS, shape[0] - start)
        yield generator.standard_normal((rows, shape[1]), dtype=np.float32) * np.float32(deviation)


def write_text(path: Path, options: argparse.Namespace) -> None:
    """Write random words, one token each, enough for all samples."""
    generator = np.random.default_rng(1)
    tokens = generator.integers(3, options.vocabulary, options.samples * options.sequence_length + 64)
    path.write_text(" ".join(f"w{token}" for token in tokens), encoding="utf-8")


def quantize(folder: Path, options: argparse.Namespace) -> dict[str, Any] | None:
    """Quantize in a process of its own and watch its memory; None if it failed or was stopped."""
    command = [sys.executable, "-m", "awq_tvm", "quantize", str(folder / "model"), "-o", str(folder / "out")]
    command += ["--method", options.method, "--calibration", str(folder / "text.txt"), "--json"]
    command += ["--samples", str(options.samples), "--sequence-length", str(options.sequence_length)]
    command += options.more
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "PYTHONPATH": str(ROOT)}
    started, highest = time.monotonic(), dict.fromkeys(_STATUS, 0)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        while process.poll() is None and time.monotonic() - started < options.timeout:
            now = memory_of(process.pid)
            highest = {name: max(kilobytes, now.get(name, 0)) for name, kilobytes in highest.items()}
            time.sleep(0.02)
    finally:
        late = process.poll() is None
        process.kill()
        output, _ = process.communicate()
    if late or process.returncode:
        return None
    report = json.loads(output)
    return {
        "peak_gib": round(report["peak_memory_bytes"] / 2**30, 3),
        "peak_anonymous_gib": round(highest["RssAnon"] / 2**20, 3),
        "peak_mapped_files_gib": round(highest["RssFile"] / 2**20, 3),
        "seconds_per_block": [round(block["seconds"], 1) for block in report["blocks"]],
        "seconds": round(time.monotonic() - started, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
