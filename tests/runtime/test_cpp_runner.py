"""The runner without Python: the tokens of the Python runtime, and the refusals of the Python runtime."""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from awq_tvm.bundle.manifest import FileInfo
from awq_tvm.bundle.reader import open_bundle
from awq_tvm.bundle.verify import read_manifest
from awq_tvm.errors import AwqTvmError
from awq_tvm.runtime.engine import Engine
from awq_tvm.runtime.sampler import SamplingOptions
from tests.support import native_runner as native
from tests.support import tiny_decoder as tiny
from tests.support.demo_bundle import make_demo_bundle

pytestmark = native.needs_cmake
LENGTHS = (1, 7, 60, tiny.CONTEXT - 10)
NEW_TOKENS = 24
DEMO_PROMPTS = (
    "The capital of France is",
    "Once upon a time",
    "def fibonacci(n):",
    "Water boils at",
    "The three primary colours are",
)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return native.installed_runner(tmp_path_factory)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.quantized_llama(tmp_path_factory).bundle


@pytest.fixture
def spoiled(bundle: Path, tmp_path: Path, runner: Path) -> Path:
    copy = native.copy_bundle(bundle, tmp_path / "spoiled")
    # Whatever a test does to it next, it runs before.
    assert native.run(runner, "--ids", "--max-tokens", 1, copy, "1").returncode == 0
    return copy


@pytest.fixture(scope="module")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_bundle(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def speaking(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with a tokenizer of letters and a few pairs of them, as many tokens as it has."""
    copy = native.copy_bundle(bundle, tmp_path_factory.mktemp("speaking") / "bundle")
    pairs = ["th", "he", "in", "er", "an", "re", "on", "at", "en", "nd", "ti", "es", "or", "te", "of"]
    words = ["<unk>", "<s>", *map(chr, range(32, 127)), *pairs, "the", "<0xE2>", "<0x82>", "<0xAC>"]
    model = tokenizers.models.BPE(
        {word: index for index, word in enumerate(words)},
        [*((pair[0], pair[1]) for pair in pairs), ("th", "e")],
        unk_token="<unk>",
        byte_fallback=True,
    )
    made = tokenizers.Tokenizer(model)
    made.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    )
    made.add_special_tokens(["<s>"])
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    content = made.to_str().encode()
    (copy / "tokenizer.json").write_bytes(content)
    info = FileInfo(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    native.reseal(copy, files=native.list_file(copy, "tokenizer.json", info))
    return copy


def ids_of(tokens: list[int]) -> str:
    return " ".join(map(str, tokens))


@pytest.mark.parametrize("length", LENGTHS)
def test_tokens_are_those_of_python(runner: Path, bundle: Path, length: int) -> None:
    prompt = tiny.tokens(length, seed=length)
    with Engine.load(bundle) as engine:
        # The longest prompt leaves room for fewer tokens than are asked for.
        expected = engine.generate_tokens(prompt, SamplingOptions(max_tokens=NEW_TOKENS)).token_ids
    found = native.answer(runner, "--ids", "--max-tokens", NEW_TOKENS, bundle, ids_of(prompt))
    assert len(expected) == min(NEW_TOKENS, tiny.CONTEXT - length + 1)
    assert found["token_ids"] == list(expected)
    plain = native.run(runner, "--ids", "--max-tokens", NEW_TOKENS, bundle, ids_of(prompt).replace(" ", ","))
    assert plain.stdout == f"{ids_of(list(expected))}\n"


def test_an_end_token_ends_the_answer(runner: Path, spoiled: Path) -> None:
    prompt = tiny.tokens(9, seed=3)
    whole = native.answer(runner, "--ids", "--max-tokens", 8, spoiled, ids_of(prompt))["token_ids"]
    model = read_manifest(spoiled).model.model_dump()
    native.reseal(spoiled, model={**model, "eos_token_ids": (whole[4],)})
    found = native.answer(runner, "--ids", "--max-tokens", 8, spoiled, ids_of(prompt))["token_ids"]
    assert found == whole[: whole.index(whole[4])]


def test_the_installed_folder_needs_nothing_else(runner: Path, bundle: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(runner, tmp_path / "elsewhere", symlinks=True)
    listing = subprocess.run(
        ["ldd", str(moved / "bin" / "awq_tvm_run")], capture_output=True, text=True, check=True
    ).stdout
    assert "not found" not in listing
    ours = [line.split("=>")[1].split()[0] for line in listing.splitlines() if "tvm" in line and "=>" in line]
    assert sorted(Path(path).name for path in ours) == ["libawq_tvm.so", "libtvm_ffi.so", "libtvm_runtime.so"]
    assert all(Path(path).is_relative_to(moved) for path in ours)
    assert native.run(moved, "--ids", "--max-tokens", 2, bundle, "1 2").returncode == 0


@pytest.mark.parametrize("prompt", ["the end", "a price in € of <s> the other", "x" * 100])
def test_text_is_that_of_python(runner: Path, speaking: Path, prompt: str) -> None:
    with Engine.load(speaking) as engine:
        expected = engine.generate(prompt, SamplingOptions(max_tokens=40))
    found = native.answer(runner, "--max-tokens", 40, speaking, prompt)
    assert (found["token_ids"], found["text"]) == (list(expected.token_ids), expected.text)
    assert native.run(runner, "--max-tokens", 40, speaking, prompt).stdout == f"{expected.text}\n"


def test_the_header_is_enough_for_c(runner: Path, speaking: Path, tmp_path: Path) -> None:
    source, program = Path(native.__file__).with_name("embed.c"), tmp_path / "embed"
    paths = [f"-I{runner / 'include'}", f"-L{runner / 'lib'}", f"-Wl,-rpath,{runner / 'lib'}"]
    strict = ["-std=c99", "-pedantic-errors", "-Wall", "-Wextra", "-Werror"]
    native.run_tool(["gcc", *strict, *paths, "-o", program, source, "-lawq_tvm"])
    with Engine.load(speaking) as engine:
        expected = engine.generate("the other", SamplingOptions(max_tokens=12)).text
    done = subprocess.run([program, speaking, "the other"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")
    done = subprocess.run([program, speaking, ""], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "The prompt is empty" in done.stderr


def test_a_tokenizer_that_is_not_known_leaves_token_ids(runner: Path, bundle: Path) -> None:
    done = native.run(runner, bundle, "w1 w2")
    assert done.returncode == 4
    assert "WordLevel" in done.stderr
    assert "--ids" in done.stderr
    assert native.run(runner, "--ids", "--max-tokens", 1, bundle, "1").returncode == 0


def test_a_prompt_that_is_no_text_is_refused(runner: Path, speaking: Path) -> None:
    command = [runner / "bin" / "awq_tvm_run", speaking, b"the \xff"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 2
    assert b"not valid Unicode" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ids", "1 2 x"], "no list of token ids"),
        (["--ids", ""], "The prompt is empty"),
        (["--ids", f"{tiny.VOCAB}"], "outside the vocabulary"),
        (["--ids", "-1"], "usage"),
        (["--ids", " ".join(["1"] * (tiny.CONTEXT + 1))], "longer than the context"),
        (["--ids", "--max-tokens", f"{tiny.CONTEXT + 1}", "1"], "cannot be generated"),
        (["--ids", "--max-tokens", "0", "1"], "usage"),
        (["--ids", "--threads", "2000", "1"], "threads cannot be meant"),
        (["--ids", "--nonsense", "1"], "usage"),
        (["--ids"], "usage"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    runner: Path, bundle: Path, arguments: list[str], message: str
) -> None:
    done = native.run(runner, bundle, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def flip(name: str) -> Callable[[Path], None]:
    def change(bundle: Path) -> None:
        content = bytearray((bundle / name).read_bytes())
        content[len(content) // 2] ^= 1
        (bundle / name).write_bytes(content)

    return change


def shorten(bundle: Path) -> None:
    library = bundle / read_manifest(bundle).library
    library.write_bytes(library.read_bytes()[:-100])


def link(bundle: Path) -> None:
    (bundle / "weights.safetensors").rename(bundle.parent / "weights")
    (bundle / "weights.safetensors").symlink_to(bundle.parent / "weights")


def change_target(**fields: object) -> Callable[[Path], None]:
    def change(bundle: Path) -> None:
        native.reseal(bundle, target={**read_manifest(bundle).target.model_dump(), **fields})

    return change


def change_versions(**fields: object) -> Callable[[Path], None]:
    def change(bundle: Path) -> None:
        native.reseal(bundle, versions={**read_manifest(bundle).versions.model_dump(), **fields})

    return change


def forget_a_tensor(bundle: Path) -> None:
    native.reseal(bundle, parameters=(*read_manifest(bundle).parameters, "never"))


def truncate_the_weights(bundle: Path) -> None:
    path = bundle / "weights.safetensors"
    content = path.read_bytes()[:-64]
    path.write_bytes(content)
    info = FileInfo(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    native.reseal(bundle, files=native.list_file(bundle, path.name, info))


def nest_deeply(bundle: Path) -> None:
    (bundle / "manifest.json").write_text("[" * 200_000)


REFUSALS: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "a flipped bit in the library": (flip("model.so"), 6, "was changed"),
    "a flipped bit in the weights": (flip("weights.safetensors"), 6, "was changed"),
    "a flipped bit in the tokenizer": (flip("tokenizer.json"), 6, "was changed"),
    "a manifest that was edited": (
        lambda b: (b / "manifest.json").write_text(
            (b / "manifest.json").read_text().replace("llama", "lama")
        ),
        6,
        "manifest was changed",
    ),
    "a manifest that is no JSON": (lambda b: (b / "manifest.json").write_text("{"), 6, "not JSON"),
    "a manifest of brackets": (nest_deeply, 6, "nested too deeply"),
    "a manifest of another version": (
        lambda b: (b / "manifest.json").write_text('{"schema_version": 2}'),
        6,
        "schema version",
    ),
    "a truncated library": (shorten, 6, "another size"),
    "an extra file": (lambda b: (b / "more").write_text("x"), 6, "extra: more"),
    "a missing file": (lambda b: (b / "config.json").unlink(), 6, "missing: config.json"),
    "a link": (link, 6, "not a regular file"),
    "no manifest": (lambda b: (b / "manifest.json").unlink(), 6, "no regular file manifest.json"),
    "another TVM": (change_versions(tvm="0.26.0"), 6, "another apache-tvm"),
    "another TVM-FFI": (change_versions(tvm_ffi="0.1.13"), 6, "another apache-tvm-ffi"),
    "another instruction set": (change_target(triple="riscv64-unknown-linux-gnu"), 5, "riscv64"),
    "another system": (change_target(triple=f"{platform.machine()}-apple-darwin"), 5, "darwin"),
    "a CPU feature from the future": (change_target(required_features=("time-travel",)), 5, "time-travel"),
    "kernels as source": (lambda b: native.reseal(b, source_only=True), 5, "as source only"),
    "a GPU": (change_target(kind="cuda"), 4, "bundles for CPUs"),
    "a library of another target": (change_target(fingerprint="other"), 6, "not the one the manifest"),
    "a weight that is not there": (forget_a_tensor, 6, "never"),
    "weights that end early": (truncate_the_weights, 6, "weights.safetensors"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_bundle_is_refused_before_it_is_loaded(runner: Path, spoiled: Path, name: str) -> None:
    spoil, status, message = REFUSALS[name]
    spoil(spoiled)
    done = native.run(runner, "--ids", spoiled, "1")
    assert (done.returncode, done.stdout) == (status, "")
    assert message in done.stderr
    assert "fix:" in done.stderr
    if status == 6 and name not in ("a weight that is not there", "weights that end early"):
        with pytest.raises(AwqTvmError) as error:
            Engine.load(spoiled)
        assert error.value.exit_code == status


def test_hashes_of_files_of_all_lengths(runner: Path, spoiled: Path) -> None:
    """Lengths around one and two blocks of SHA-256, where padding takes another form."""
    rng = np.random.default_rng(0)
    for length in (0, 1, 55, 56, 57, 63, 64, 65, 119, 120, 128, 1 << 20):
        content = rng.bytes(length)
        (spoiled / f"file{length}").write_bytes(content)
        info = FileInfo(sha256=hashlib.sha256(content).hexdigest(), size=length)
        native.reseal(spoiled, files=native.list_file(spoiled, f"file{length}", info))
    open_bundle(spoiled)
    assert native.run(runner, "--ids", "--max-tokens", 1, spoiled, "1").returncode == 0


def test_both_ways_to_hash_agree_with_pythons(tmp_path: Path) -> None:
    sources = native.SOURCES / "src"
    program = tmp_path / "sha256_check"
    check = Path(native.__file__).with_name("sha256_check.cc")
    files = [check, sources / "sha256.cc", sources / "sha256_native.cc"]
    includes = [f"-I{sources}", f"-I{native.SOURCES / 'include'}"]
    native.run_tool(["g++", "-std=c++17", "-O1", *includes, "-o", program, *files])
    for length in (0, 64, 640, 12_345):
        content = np.random.default_rng(length).bytes(length)
        done = subprocess.run([program], input=content, capture_output=True, check=True).stdout.decode()
        found = dict(line.split() for line in done.splitlines())
        assert found["digest"] == hashlib.sha256(content).hexdigest()
        assert found.get("native", found["portable"]) == found["portable"]


@pytest.mark.slow
def test_tokens_of_a_real_model_are_those_of_python(runner: Path, demo_bundle: Path) -> None:
    with Engine.load(demo_bundle) as engine:
        for prompt in DEMO_PROMPTS:
            tokens = engine.encode(prompt)
            expected = engine.generate_tokens(tokens, SamplingOptions(max_tokens=64))
            found = native.answer(runner, "--ids", "--max-tokens", 64, demo_bundle, ids_of(tokens))
            assert found["token_ids"] == list(expected.token_ids)
            found = native.answer(runner, "--max-tokens", 64, demo_bundle, prompt)
            assert (found["token_ids"], found["text"]) == (list(expected.token_ids), expected.text)
