"""`--report`: what the page and the JSON say is what the run did, whatever the model is called, resumed or not."""

from __future__ import annotations

import json
import re
import shutil
import sys
from html import unescape
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from awq_tvm.checkpoint import open_checkpoint
from awq_tvm.errors import CheckpointError, ResourceError, UsageError
from awq_tvm.progress import ProgressEvent
from awq_tvm.quantize.evaluate import evaluate_torch
from awq_tvm.quantize.quantize import quantize_checkpoint
from awq_tvm.quantize.report import QuantizeReport
from awq_tvm.quantize.report_request import request_report
from tests.quantize.tiny_models import save_tiny_model, write_text

needs_matplotlib = pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs matplotlib")


def _run(folder: Path, model: str = "model", **arguments) -> QuantizeReport:
    """A small run; the text that is scored has 300 characters and is not the calibration text."""
    if not (folder / "text.txt").exists():
        write_text(folder / "text.txt")
        (folder / "score.txt").write_text((folder / "text.txt").read_text()[::-1][:300])
    settings = {
        "method": "awq",
        "calibration": str(folder / "text.txt"),
        "samples": 3,
        "sequence_length": 32,
        "report_folder": folder / "report",
        "report_text": folder / "score.txt",
        **arguments,
    }
    return quantize_checkpoint(str(folder / model), folder / "q", **settings)


def _json(folder: Path) -> dict:
    found: dict = json.loads((folder / "report" / "report.json").read_text())
    return found


class _Page(HTMLParser):
    """Tags, and the text of table cells row by row."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.rows: list[list[str]] = []
        self._in_cell = False
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag):
        self._in_cell = self._in_cell and tag != "td"

    def handle_data(self, data):
        if self._in_cell:
            self.rows[-1][-1] += data.strip()


@needs_matplotlib
def test_json_and_page_agree_with_the_run(tmp_path):
    save_tiny_model(tmp_path / "model", num_hidden_layers=3)
    report = _run(tmp_path)
    found = _json(tmp_path)
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["report.html", "report.json"]
    assert found["schema_version"] == 1
    assert found["model"] == "model"
    recipe = json.loads((tmp_path / "q" / "recipe.json").read_text())
    assert found["recipe"] == {**recipe, "calibration_tokens": 96}
    assert found["recipe"]["calibration_sha256"] == report.calibration_sha256
    assert (found["bytes_before"], found["bytes_after"]) == (report.bytes_before, report.bytes_after)
    assert found["bytes_after"] == (tmp_path / "q" / "model.safetensors").stat().st_size
    assert found["blocks"] == json.loads(json.dumps(report.as_dict()["blocks"]))
    assert len(found["blocks"]) == 3
    for block in found["blocks"]:
        assert block["loss_after"] <= block["loss_before"]
        assert 0 < block["peak_memory_bytes"] <= found["peak_memory_bytes"]
        assert sum(group["weights"] for group in block["groups"]) == _weights_of_a_block(tmp_path / "q")

    expected = evaluate_torch(
        str(tmp_path / "q"), tmp_path / "score.txt", context=32, reference=str(tmp_path / "model")
    )
    quality = found["quality"]
    assert quality["perplexity_after"] == pytest.approx(expected["perplexity"], rel=1e-4)
    assert quality["kl_divergence"] == pytest.approx(expected["kl_divergence"], rel=1e-4)
    assert quality["top1_agreement"] == pytest.approx(expected["top1_agreement"])
    assert (quality["tokens"], quality["text"]) == (expected["tokens"], "score.txt")
    assert not quality["is_calibration_text"]
    card = (tmp_path / "q" / "README.md").read_text()
    assert f"KL divergence from the original: {quality['kl_divergence']:.5f} nats a token" in card
    assert f"{quality['perplexity_after']:.4f} quantized" in card

    page = _Page((tmp_path / "report" / "report.html").read_text())
    assert [
        "perplexity",
        f"{quality['perplexity_before']:.4f}",
        f"{quality['perplexity_after']:.4f}",
    ] in page.rows
    for block in found["blocks"]:
        row = next(row for row in page.rows if len(row) == 6 and row[0] == str(block["index"]))
        assert row[1:3] == [f"{block['loss_before']:.3g}", f"{block['loss_after']:.3g}"]
        for group in block["groups"]:
            row = next(row for row in page.rows if row[:2] == [str(block["index"]), group["name"]])
            part = 100 * group["weights_outside"] / group["weights"]
            clipped = "yes" if group["clipped"] else "no"
            assert row[2:7] == [
                f"{group['loss_rtn']:.3g}",
                f"{group['loss']:.3g}",
                f"{group['exponent']:.2f}",
                clipped,
                f"{part:.2f} %",
            ]
    # Self-contained: no script, and nothing is loaded but the pictures inside.
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert len(page.sources) == 6
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.sources)


def _weights_of_a_block(folder: Path) -> int:
    written = open_checkpoint(str(folder))
    return sum(
        written.read_quantized(name).q.size
        for name in written.quantized
        if name.startswith("model.layers.0.")
    )


def test_scales_and_clipping_are_those_that_were_written(tmp_path):
    """A norm that absorbed scales is smaller by them; a group with nothing outside its range was not clipped."""
    original = save_tiny_model(tmp_path / "model")
    report = _run(tmp_path, report_folder=None, report_text=None)
    written = open_checkpoint(str(tmp_path / "q"))
    clipped = 0
    for block in report.blocks:
        norms = {"input_layernorm": "q_proj", "post_attention_layernorm": "gate_proj"}
        for norm, linear in norms.items():
            name = f"model.layers.{block.index}.{norm}.weight"
            scales = original.get_parameter(name).detach().numpy() / written.read(name).astype(np.float32)
            group = next(one for one in block.groups if one.name == _group_of(linear))
            assert (group.scale_min, group.scale_max) == pytest.approx((scales.min(), scales.max()), rel=1e-5)
            assert group.scale_min <= group.scale_median <= group.scale_max
        for group in block.groups:
            assert group.weights_outside == 0 or group.clipped
            clipped += group.weights_outside
            assert group.weights_outside < 0.2 * group.weights
    assert clipped > 0


def _group_of(linear: str) -> str:
    return {"q_proj": "attention input", "gate_proj": "mlp input"}[linear]


@needs_matplotlib
@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a&b\"'<b>"])
def test_a_name_cannot_become_markup(tmp_path, name):
    folder = tmp_path / name.replace("/", "_")
    save_tiny_model(tmp_path / "model")
    shutil.move(tmp_path / "model", folder)
    (tmp_path / "<img src=x>.txt").write_text("x" * 100)
    _run(tmp_path, model=folder.name, method="rtn", report_text=tmp_path / "<img src=x>.txt")
    source = (tmp_path / "report" / "report.html").read_text()
    page = _Page(source)
    assert not {"script", "b>"} & set(page.tags)
    assert "<img src=x>" not in source
    assert f"<h1>{folder.name}</h1>" in unescape(source)
    assert _json(tmp_path)["model"] == folder.name


@needs_matplotlib
def test_a_resumed_run_reports_all_blocks(tmp_path):
    """Stopped after a block, once more while it is scored: the figures are those of a run in one go."""
    save_tiny_model(tmp_path / "model", num_hidden_layers=3)
    _run(tmp_path)
    whole, card = _json(tmp_path), (tmp_path / "q" / "README.md").read_bytes()
    shutil.rmtree(tmp_path / "q")
    shutil.rmtree(tmp_path / "report")
    for stage, done in (("block", 1), ("score", 2)):

        def stop(event: ProgressEvent, stage=stage, done=done) -> None:
            if (event.stage, event.done) == (stage, done):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            _run(tmp_path, resume=stage == "score", progress=stop)
        assert not (tmp_path / "q").exists()
        assert not (tmp_path / "report").exists()
    _run(tmp_path, resume=True)
    resumed = _json(tmp_path)
    assert [block["index"] for block in resumed["blocks"]] == [0, 1, 2]
    for document in (whole, resumed):
        for part in (document, *document["blocks"]):
            part.pop("seconds")
            part.pop("peak_memory_bytes")
    assert resumed == whole
    assert (tmp_path / "q" / "README.md").read_bytes() == card


@needs_matplotlib
def test_a_report_that_exists_is_refused_before_any_work(tmp_path):
    save_tiny_model(tmp_path / "model")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "mine").write_text("keep")
    with pytest.raises(ResourceError, match="exists already"):
        _run(tmp_path)
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["mine"]
    assert not list(tmp_path.glob("q*"))


@needs_matplotlib
@pytest.mark.parametrize("place", ["q", "."])
def test_a_report_in_place_of_the_checkpoint(tmp_path, place):
    save_tiny_model(tmp_path / "model")
    with pytest.raises(UsageError, match="folder of its own"):
        _run(tmp_path, report_folder=tmp_path / place)


def test_a_text_without_a_report(tmp_path):
    save_tiny_model(tmp_path / "model")
    with pytest.raises(UsageError, match="no --report"):
        _run(tmp_path, report_folder=None)


def test_without_matplotlib(tmp_path, monkeypatch):
    save_tiny_model(tmp_path / "model")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("awq_tvm.quantize.report_page.find_spec", lambda name: None)
    with pytest.raises(ResourceError, match=re.escape("pip install 'awq-tvm[quantize]'")):
        _run(tmp_path)
    assert not list(tmp_path.glob("q*"))


@needs_matplotlib
@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, UsageError, "cannot be read"),
        (b"\xff\xfe", UsageError, "not UTF-8"),
        (b"x", UsageError, "too short to score"),
        (b"xyz", CheckpointError, "token that the model does not have"),
    ],
)
def test_a_text_that_cannot_be_scored(tmp_path, content, error, message):
    save_tiny_model(tmp_path / "model", vocab_size=100)
    if content is not None:
        (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(error, match=message):
        _run(tmp_path, report_text=tmp_path / "bad.txt", method="rtn")
    assert not list(tmp_path.glob("q*"))


@needs_matplotlib
def test_the_calibration_text_is_no_proof_of_quality(tmp_path):
    """Asked for by name or by a copy of it, the page says so; as the default it is not scored at all."""
    save_tiny_model(tmp_path / "model")
    shutil.copy(write_text(tmp_path / "text.txt"), tmp_path / "copy.txt")
    report = _run(tmp_path, report_text=tmp_path / "copy.txt")
    assert report.quality is not None
    assert report.quality.is_calibration_text
    assert "flatter" in report.warnings[-1]
    assert "This is the calibration text" in (tmp_path / "report" / "report.html").read_text()
    assert "the calibration text itself" in (tmp_path / "q" / "README.md").read_text()
    asked = {"out": tmp_path / "other", "context": 32}
    checkpoint = open_checkpoint(str(tmp_path / "model"))
    topics = request_report(tmp_path / "r", None, checkpoint=checkpoint, calibration="topics", **asked)
    assert topics is not None
    assert topics.text is None
    measured = topics.measure(report, tmp_path / "q", checkpoint, lambda event: None)
    assert "nothing was scored" in measured.warnings[-1]
    usual = request_report(tmp_path / "r", None, checkpoint=checkpoint, calibration="self", **asked)
    assert usual is not None
    assert usual.text is not None
    assert usual.text.source == "the help topics that come with Python"
    assert usual.text.ids.size == 8192


@needs_matplotlib
@pytest.mark.parametrize("arguments", [{"method": "rtn"}, {"bits": "auto:3.5"}, {"clip": "none"}], ids=str)
def test_other_recipes(tmp_path, arguments):
    """Without calibration there are no errors to draw; with several widths the page lists them."""
    from awq_tvm.quantize.options import AwqOptions

    save_tiny_model(tmp_path / "model")
    if "clip" in arguments:
        arguments = {"options": AwqOptions(clip="none")}
    _run(tmp_path, quantize_embedding=8, **arguments)
    source = (tmp_path / "report" / "report.html").read_text()
    found = _json(tmp_path)
    assert "model.embed_tokens" in source
    if found["recipe"]["method"] == "rtn":
        assert [block["groups"] for block in found["blocks"]] == [[], []]
        assert len(_Page(source).sources) == 1
    if "budget" in found["recipe"]:
        assert "3.5 on average" in source
        assert [
            "model.layers.0.mlp.down_proj",
            str(found["recipe"]["widths"]["model.layers.0.mlp.down_proj"]),
        ] in _Page(source).rows
    if "options" in arguments:
        groups = [group for block in found["blocks"] for group in block["groups"]]
        assert not any(group["clipped"] or group["weights_outside"] for group in groups)
