"""A compiled bundle, executed here and in a process that has neither PyTorch nor the compiler."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from awq_tvm.bundle.reader import open_bundle
from awq_tvm.bundle.weights import map_weights, write_weights
from awq_tvm.errors import BundleError, ResourceError, UsageError
from awq_tvm.models.export import Limits
from awq_tvm.runtime.executor import Executor
from tests.support import tiny_decoder as tiny


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tiny.Compiled:
    return tiny.quantized_llama(tmp_path_factory)


@pytest.fixture
def executor(compiled: tiny.Compiled) -> Executor:
    return compiled.executor()


def _greedy(executor: Executor, prompt: list[int], count: int) -> list[int]:
    sequence, new, answer = executor.new_sequence(), prompt, []
    for _ in range(count):
        answer.append(int(executor.forward([sequence], [new])[0].argmax()))
        new = answer[-1:]
    executor.remove_sequence(sequence)
    return answer


def _generate(model: object, prompt: list[int], count: int) -> list[int]:
    with torch.no_grad():
        whole = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=count, pad_token_id=0)  # type: ignore[attr-defined]
    return [int(token) for token in whole[0, len(prompt) :]]


@pytest.mark.parametrize("seed", range(3))
def test_greedy_tokens_are_those_of_transformers(
    compiled: tiny.Compiled, executor: Executor, seed: int
) -> None:
    prompt = tiny.tokens(9 + seed, seed=seed)
    assert _greedy(executor, prompt, 40) == _generate(compiled.model, prompt, 40)


CHILD = """
import importlib.abc, json, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in ("torch", "transformers"):
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Blocked())
bundle, prompt, count = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
from awq_tvm.bundle.reader import open_bundle
from awq_tvm.runtime.executor import Executor

opened = open_bundle(bundle)
executor = Executor(opened.library, opened.weights, opened.manifest, threads=1)
sequence, new, answer = executor.new_sequence(), prompt, []
for _ in range(count):
    answer.append(int(executor.forward([sequence], [new])[0].argmax()))
    new = answer[-1:]
loaded = {name.split(".")[0] for name in sys.modules} & {"torch", "transformers", "tvm"}
print(json.dumps({"answer": answer, "loaded": sorted(loaded)}))
"""


def _lines_of_a_child(
    script: str, compiled: tiny.Compiled, repository: Path, *arguments: object
) -> list[dict[str, object]]:
    """What a script prints, one JSON object a line; its first argument is the bundle."""
    done = subprocess.run(
        [sys.executable, "-c", script, str(compiled.bundle), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_runs_without_pytorch_and_without_the_package_tvm(compiled: tiny.Compiled, repository: Path) -> None:
    prompt = tiny.tokens(12, seed=5)
    [said] = _lines_of_a_child(CHILD, compiled, repository, json.dumps(prompt), 16)
    assert said == {"answer": _generate(compiled.model, prompt, 16), "loaded": []}


GENERATE = """
import json, sys
from awq_tvm.cli.main import run

code = run(["generate", sys.argv[1], "--prompt", sys.argv[2], "--max-tokens", "3", "--json"])
names = {"tvm", "torch", "transformers", "numpy.random", "jinja2", "awq_tvm.compile", "awq_tvm.quantize"}
print(json.dumps({"code": code, "loaded": sorted(names & set(sys.modules))}))
"""


def test_generate_imports_only_what_it_runs(compiled: tiny.Compiled, repository: Path) -> None:
    """Memory of a small model's process is mostly that of what Python imports."""
    answer, said = _lines_of_a_child(GENERATE, compiled, repository, "w5 w7")
    assert len(answer["token_ids"]) <= 3  # type: ignore[arg-type]
    assert said == {"code": 0, "loaded": []}


MAPPED = """
import json, sys
from awq_tvm.runtime.engine import Engine

engine = Engine.load(sys.argv[1], threads=1)
engine.generate("w5 w7")
with open("/proc/self/smaps") as lines:
    found, mapping = [], None
    for line in lines:
        fields = line.split()
        if "-" in fields[0] and not fields[0].endswith(":"):
            mapping = {"file": fields[-1]}
            found.append(mapping)
        elif len(fields) == 3:
            mapping[fields[0].rstrip(":")] = int(fields[1])
weights = [one for one in found if one["file"].endswith("weights.safetensors")]
totals = {name: sum(one[name] for one in weights) for name in ("Rss", "Anonymous", "Private_Dirty")}
print(json.dumps({"bytes": engine.executor.weight_bytes, **totals}))
"""


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="pages are counted in /proc")
def test_weights_stay_the_pages_of_their_file(compiled: tiny.Compiled, repository: Path) -> None:
    """They are read where they lie: most of the file is resident, and no page of it became a copy."""
    [said] = _lines_of_a_child(MAPPED, compiled, repository)
    assert int(said["Rss"]) * 1024 > 0.8 * int(said["bytes"])  # type: ignore[call-overload]
    assert (said["Anonymous"], said["Private_Dirty"]) == (0, 0)


COMPILER_LATER = """
import json, sys
from awq_tvm.bundle.reader import open_bundle
from awq_tvm.runtime.executor import Executor

opened = open_bundle(sys.argv[1])
executor = Executor(opened.library, opened.weights, opened.manifest, threads=1)
def answer():
    return executor.forward([executor.new_sequence()], [[1, 2, 3]])[0].tolist()
before = answer()
import numpy, tvm
from tvm import te
x = te.placeholder((4,), "float32", "x")
double = tvm.compile(te.create_prim_func([x, te.compute((4,), lambda i: x[i] * 2)]), "llvm")
out = tvm.runtime.tensor(numpy.zeros(4, "float32"))
double(tvm.runtime.tensor(numpy.arange(4, dtype="float32")), out)
with open("/proc/self/maps") as maps:
    copies = {line.split()[-1] for line in maps if "libtvm_runtime." in line}
print(json.dumps({"equal": answer() == before, "compiled": out.numpy().tolist(), "copies": len(copies)}))
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="libraries are counted in /proc")
def test_tvm_can_be_imported_and_compile_later(compiled: tiny.Compiled, repository: Path) -> None:
    [said] = _lines_of_a_child(COMPILER_LATER, compiled, repository)
    assert said == {"equal": True, "compiled": [0, 2, 4, 6], "copies": 1}


def test_last_logits_are_the_last_of_all(executor: Executor) -> None:
    first, second = tiny.tokens(11, seed=1), tiny.tokens(4, seed=2)
    a, b, c, d = (executor.new_sequence() for _ in range(4))
    every = executor.forward([a, b], [first, second], logits="all")
    last = executor.forward([c, d], [first, second], logits="last")
    assert every.shape == (15, tiny.VOCAB)
    np.testing.assert_allclose(last, every[[10, 14]], rtol=1e-4, atol=1e-5)


def test_a_single_token_is_what_it_is_among_others(executor: Executor) -> None:
    """One token of one sequence has a function of its own; two sequences take the one for any number."""
    first, second = tiny.tokens(11, seed=1), tiny.tokens(4, seed=2)
    a, b, c, d = (executor.new_sequence() for _ in range(4))
    executor.forward([a, b], [first, second])
    executor.forward([c, d], [first, second])
    alone = [executor.forward([one], [[token]])[0] for one, token in ((a, 5), (b, 6), (a, 7), (b, 8))]
    together = [executor.forward([c, d], [[5], [6]]), executor.forward([c, d], [[7], [8]])]
    # What was returned before a call is not what it computes in.
    np.testing.assert_allclose(np.stack(alone), np.concatenate(together), rtol=1e-4, atol=1e-5)


def test_a_single_token_is_computed_in_memory_allocated_once(compiled: tiny.Compiled) -> None:
    """None of its instructions allocates, reshapes or takes a tuple apart: they call kernels and the cache."""
    import tvm

    text = tvm.runtime.load_module(str(open_bundle(compiled.bundle).library))["as_text"]()
    step = text.partition("@decode:\n")[2].partition("\n\n")[0]
    called = [line.split()[1] for line in step.splitlines() if line.split()[:1] == ["call"]]
    attention = "vm.builtin.attention_kv_cache_attention_with_fused_qkv"
    assert {name for name in called if name.startswith("vm.builtin")} == {attention}
    assert called.count(attention) == tiny.LAYERS
    assert len([name for name in called if name.startswith("dequantize_matmul")]) == 4 * tiny.LAYERS


GROWTH = """
import ctypes, json, sys
from awq_tvm.bundle.reader import open_bundle
from awq_tvm.runtime.executor import Executor

class Allocated(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Allocated

def in_use():
    found = libc.mallinfo2()
    return found.uordblks + found.hblkhd

opened = open_bundle(sys.argv[1])
executor = Executor(opened.library, opened.weights, opened.manifest, threads=1)
sequence = executor.new_sequence()
executor.forward([sequence], [[1, 2, 3]])
for token in range(20):
    executor.forward([sequence], [[token]])
before = in_use()
for token in range(100):
    executor.forward([sequence], [[token]])
print(json.dumps({"grown": in_use() - before}))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc counts what is allocated")
def test_generating_holds_no_more_memory_the_longer_it_goes_on(
    compiled: tiny.Compiled, repository: Path
) -> None:
    """What a sequence needs, its pages and its workspace, is there before it starts: 100 tokens add nothing."""
    [said] = _lines_of_a_child(GROWTH, compiled, repository)
    assert abs(int(said["grown"])) < 4096  # type: ignore[call-overload]


def test_more_rows_than_one_call_holds(compiled: tiny.Compiled, executor: Executor) -> None:
    """One sequence in several calls, and two that are together too long."""
    ids = tiny.tokens(Limits.max_logit_rows + 30, seed=3)
    expected = tiny.torch_logits(compiled.model, ids)
    found = executor.forward([executor.new_sequence()], [ids], logits="all")
    assert tiny.relative_error(found, expected) < tiny.TOLERANCE
    pair = [executor.new_sequence(), executor.new_sequence()]
    found = executor.forward(pair, [ids[:100], ids[:40]], logits="all")
    assert tiny.relative_error(found, np.concatenate([expected[:100], expected[:40]])) < tiny.TOLERANCE


def test_no_tokens_are_refused(executor: Executor) -> None:
    sequence = executor.new_sequence()
    executor.forward([sequence], [[1]])
    with pytest.raises(UsageError, match="no tokens to read"):
        executor.forward([sequence], [[]])


@pytest.mark.parametrize("token", [-1, tiny.VOCAB, 2**31 - 1, 10**12])
def test_a_token_outside_the_vocabulary_is_refused(executor: Executor, token: int) -> None:
    sequence = executor.new_sequence()
    executor.forward([sequence], [[0, tiny.VOCAB - 1]])
    with pytest.raises(UsageError, match="outside the vocabulary") as caught:
        executor.forward([sequence], [[3, token]])
    assert str(token) in str(caught.value)
    assert str(tiny.VOCAB) in str(caught.value)


def test_a_sequence_fills_the_context_and_no_more(compiled: tiny.Compiled, executor: Executor) -> None:
    ids = tiny.tokens(tiny.CONTEXT, seed=4)
    sequence = executor.new_sequence()
    row = executor.forward([sequence], [ids])[0]
    assert tiny.relative_error(row, tiny.torch_logits(compiled.model, ids)[-1]) < tiny.TOLERANCE
    with pytest.raises(UsageError, match=f"would be {tiny.CONTEXT + 1} tokens long"):
        executor.forward([sequence], [[1]])
    other = executor.new_sequence()
    with pytest.raises(UsageError, match=f"context of {tiny.CONTEXT}"):
        executor.forward([other], [[*ids, 1]])
    # A refusal leaves the other sequences of the call untouched.
    with pytest.raises(UsageError):
        executor.forward([other, sequence], [[1], [1]])
    row = executor.forward([other], [ids])[0]
    assert tiny.relative_error(row, tiny.torch_logits(compiled.model, ids)[-1]) < tiny.TOLERANCE


def test_too_many_sequences_are_refused_until_one_ends(executor: Executor) -> None:
    sequences = [executor.new_sequence() for _ in range(executor.max_sequences)]
    with pytest.raises(ResourceError, match=f"all {executor.max_sequences} sequences"):
        executor.new_sequence()
    executor.remove_sequence(sequences[3])
    executor.forward([executor.new_sequence()], [[1, 2, 3]])


def test_all_sequences_can_be_of_full_length(executor: Executor) -> None:
    ids = tiny.tokens(tiny.CONTEXT, seed=6)
    rows = [executor.forward([executor.new_sequence()], [ids])[0] for _ in range(executor.max_sequences)]
    for row in rows[1:]:
        np.testing.assert_array_equal(row, rows[0])


def test_removing_a_sequence_frees_its_pages(executor: Executor) -> None:
    """200 sequences of 64 tokens need eight times the pages there are."""
    ids = tiny.tokens(64, seed=7)
    assert 200 * len(ids) > executor.max_sequences * executor.context_length
    first = None
    for _ in range(200):
        sequence = executor.new_sequence()
        row = executor.forward([sequence], [ids])[0]
        executor.remove_sequence(sequence)
        first = row if first is None else first
        np.testing.assert_array_equal(row, first)


def test_weights_that_are_not_the_manifests_are_refused(compiled: tiny.Compiled, tmp_path: Path) -> None:
    opened = open_bundle(compiled.bundle)
    *names, name = opened.manifest.parameters
    path = tmp_path / "weights.safetensors"
    write_weights(path, names, zip(names, map_weights(opened.weights, names), strict=True))
    with pytest.raises(BundleError, match="cannot be mapped") as caught:
        Executor(opened.library, path, opened.manifest)
    assert name in str(caught.value)


def test_a_library_of_another_target_is_refused(compiled: tiny.Compiled) -> None:
    opened = open_bundle(compiled.bundle)
    target = opened.manifest.target.model_copy(update={"fingerprint": "x86-000000000000"})
    other = opened.manifest.model_copy(update={"target": target})
    with pytest.raises(BundleError, match="not the one the manifest describes"):
        Executor(opened.library, opened.weights, other)


def test_weight_bytes_are_those_in_the_file(compiled: tiny.Compiled, executor: Executor) -> None:
    from safetensors.numpy import load_file

    weights = load_file(open_bundle(compiled.bundle).weights)
    assert executor.weight_bytes == sum(array.nbytes for array in weights.values())
