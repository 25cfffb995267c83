"""The functions of `awq_tvm`, as a program of a user calls them."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import awq_tvm
from awq_tvm import api
from awq_tvm.cli import compile_verb, generate
from awq_tvm.cli import quantize as quantize_verb
from awq_tvm.errors import ResourceError, UsageError
from awq_tvm.prompt.chat_template import Message
from awq_tvm.runtime.sampler import SamplingOptions
from tests.cli.conftest import ROOT
from tests.cli.conftest import real as real

GUIDE = ROOT / "docs" / "user-guide.md"


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_nothing_heavy_is_imported_before_it_is_used(tmp_path: Path) -> None:
    heavy = "{'torch', 'transformers', 'tvm', 'tvm_ffi', 'numpy'} & set(sys.modules)"
    done = python(
        f"import awq_tvm, awq_tvm.api; print(awq_tvm.quantize, awq_tvm.compile, awq_tvm.load); print({heavy})",
        tmp_path,
    )
    assert done.stdout.splitlines()[-1:] == ["set()"], done.stderr


@pytest.mark.parametrize("first", ["awq_tvm.quantize.options", "awq_tvm.compile.tuning", "awq_tvm.api"])
def test_they_are_functions_whatever_was_imported_before(first: str, tmp_path: Path) -> None:
    done = python(
        f"import {first}, awq_tvm\nfrom awq_tvm import quantize, compile, load\n"
        "assert quantize is awq_tvm.quantize and compile is awq_tvm.compile and load is awq_tvm.load\n"
        "for call in (quantize, compile):\n"
        "    try: call('model', 'out', nonsense=1)\n"
        "    except TypeError as error: print(error)\n",
        tmp_path,
    )
    message = "{}() got an unexpected keyword argument 'nonsense'"
    assert done.stdout.splitlines() == [message.format("quantize"), message.format("compile")], done.stderr


def test_editors_see_what_they_take() -> None:
    for name in ("quantize", "compile"):
        assert inspect.signature(getattr(awq_tvm, name)) == inspect.signature(getattr(api, name))
    with pytest.raises(AttributeError, match="has no attribute 'dequantize'"):
        awq_tvm.dequantize  # noqa: B018


@pytest.mark.parametrize(
    ("function", "verb", "only_typed"),
    [
        (api.quantize, quantize_verb.command, {"json_output"}),
        (api.compile, compile_verb.command, {"json_output", "explain"}),
        (api.Model.generate, generate.command, {"json_output", "bundle", "threads", "require_signature"}),
        (api.Model.stream, generate.command, {"json_output", "bundle", "threads", "require_signature"}),
    ],
)
def test_the_words_and_defaults_are_those_of_the_command_line(
    function: object, verb: object, only_typed: set[str]
) -> None:
    def words(of: object) -> dict[str, object]:
        found = inspect.signature(of).parameters  # type: ignore[arg-type]
        return {name: parameter.default for name, parameter in found.items()}

    ours, theirs = words(function), words(verb)
    assert theirs.keys() - ours.keys() == only_typed
    assert ours.keys() - theirs.keys() <= {"self", "progress"}
    same = {str(default) for default in ("", None, ())} | {"[]"}
    for name in ours.keys() & theirs.keys():
        assert str(ours[name]) == str(theirs[name]) or {str(ours[name]), str(theirs[name])} <= same, name


def test_a_folder_that_exists_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="exists"):
        awq_tvm.compile("nowhere", tmp_path)


def test_the_example_of_the_guide_runs(
    real: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = GUIDE.read_text(encoding="utf-8").partition("## From Python")[2]
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found is not None
    # A model of two layers takes rounding to nearest as well, and at once.
    code = found[1].replace('method="awq"', 'method="rtn", group_size=32')
    assert code != found[1]
    (tmp_path / "model").symlink_to(real["model"])
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert re.search(r" (stop|length) [0-9.]+\n", capsys.readouterr().out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "model", "quantized"]


def test_answers(real: dict[str, Path]) -> None:
    with awq_tvm.load(real["bundle"], threads=1) as model:
        answer = model.generate("Once upon", max_tokens=12, temperature=0.9, seed=3, stop="zzz")
        options = SamplingOptions(max_tokens=12, temperature=0.9, seed=3, stop=("zzz",))
        assert answer.token_ids == model.engine.generate("Once upon", options).token_ids
        with model.stream("Once upon", max_tokens=12, temperature=0.9, seed=3) as stream:
            assert "".join(stream) == answer.text
        assert stream.generation is not None
        assert stream.generation.token_ids == answer.token_ids
        turns = [{"role": "user", "content": "Hello"}]
        chat = model.generate(turns, max_tokens=4)
        assert chat.token_ids == model.generate([Message("user", "Hello")], max_tokens=4).token_ids
        assert chat.token_ids == model.generate("Hello", chat=True, max_tokens=4).token_ids
        with pytest.raises(UsageError, match="no conversation"):
            model.generate([{"role": "user", "text": "Hello"}])
        with pytest.raises(UsageError, match="temperature"):
            model.generate("Hello", temperature=-1)


def test_compiling_quantizes_first_what_is_not_quantized(
    real: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, Path]] = []

    def quantize(model: str, out: Path, **_: object) -> None:
        calls.append((model, out))
        out.symlink_to(real["quantized"])

    monkeypatch.setattr(api, "quantize", quantize)
    seen: list[str] = []
    report = awq_tvm.compile(real["model"], tmp_path / "b", progress=lambda event: seen.append(event.message))
    assert calls == [(str(real["model"]), tmp_path / "b.quantized")]
    assert report.notes[0] == f"quantized first, into {tmp_path / 'b.quantized'}"
    assert "quantizing it first" in seen[0]


@pytest.mark.slow
def test_type_checkers_see_the_functions(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import awq_tvm\nfrom awq_tvm.quantize.options import AwqOptions\n"
        "reveal_type(awq_tvm.load('x').generate('a').token_ids)\nAwqOptions()\n"
        "awq_tvm.quantize('a', 'b', bits='auto:3.5')\nawq_tvm.compile('a', 'b', nonsense=1)\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(program)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert 'Revealed type is "tuple[int, ...]"' in done.stdout.replace("builtins.", ""), done.stdout
    assert 'program.py:6: error: Unexpected keyword argument "nonsense"' in done.stdout
    assert done.stdout.count("error:") == 1


def test_every_type_is_one() -> None:
    for function in (api.quantize, api.compile, api.load, api.Model.generate, api.Model.stream):
        names = {name for name in re.findall(r"\w+", str(inspect.signature(function)))}
        assert "Any" not in names, function
    assert inspect.signature(api.quantized_first).parameters["model"].annotation == "str"
