"""The importance of directions: the gradients of the whole model, although one block of it is there at a time."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from awq_tvm.checkpoint import open_checkpoint
from awq_tvm.errors import CheckpointError, UsageError
from awq_tvm.quantize import importance
from awq_tvm.quantize.hidden_states import HiddenStates
from awq_tvm.quantize.importance import measure_importance
from awq_tvm.quantize.journal import Journal
from awq_tvm.quantize.learned_rounding import relative_error
from awq_tvm.quantize.options import METHODS, AwqOptions
from awq_tvm.quantize.quantize import quantize_checkpoint
from awq_tvm.quantize.torch_model import build_model
from tests.quantize.tiny_models import VOCABULARY, save_tiny_model, write_text

EVEN = 0.1


def _ids(samples=3, length=20) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (samples, length), generator=torch.Generator().manual_seed(4))


def _measure(folder, ids, mask) -> dict[int, torch.Tensor]:
    with Journal(folder / "journal", {}, resume=False) as journal:
        return _matrices(open_checkpoint(str(folder / "model")), ids, mask, journal)


def _matrices(checkpoint, ids, mask, journal) -> dict[int, torch.Tensor]:
    with torch.no_grad():
        return dict(measure_importance(checkpoint, ids, mask, journal, seed=9, progress=lambda _event: None))


def _of_whole_model(model, ids, mask) -> list[torch.Tensor]:
    """The same in one backward pass through all of transformers' own model, in float32."""
    generator = torch.Generator().manual_seed(9)
    leaving: list[torch.Tensor] = []
    for block in model.model.layers:
        block.register_forward_hook(lambda _module, _args, output: leaving.append(output))
    found = None
    for sample, counts in zip(ids, mask, strict=True):
        leaving.clear()
        embedded = model.get_input_embeddings()(sample.unsqueeze(0)).detach().requires_grad_()
        logits = model(inputs_embeds=embedded, use_cache=False).logits[0][counts].log_softmax(dim=-1)
        drawn = torch.multinomial(logits.detach().exp(), 1, generator=generator)
        gradients = torch.autograd.grad(logits.gather(1, drawn).sum(), leaving)
        relative = [
            (gradient * hidden.detach().norm(dim=-1, keepdim=True))[0, counts]
            for gradient, hidden in zip(gradients, leaving, strict=True)
        ]
        squares = [one.T @ one for one in relative]
        found = squares if found is None else [a + b for a, b in zip(found, squares, strict=True)]
    assert found is not None
    return [one / one.diagonal().mean() for one in found]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_it_is_the_fisher_information_of_the_whole_model(tmp_path, monkeypatch, family, bfloat16):
    if not bfloat16:
        monkeypatch.setattr(importance, "fast_gradients", nullcontext)
    save_tiny_model(tmp_path / "model", family, num_hidden_layers=3)
    model = build_model(open_checkpoint(str(tmp_path / "model")))
    ids, mask = _ids(), torch.ones(3, 20, dtype=torch.bool)
    mask[1, :7] = False
    found = _measure(tmp_path, ids, mask)
    assert sorted(found) == [0, 1, 2]
    for index, wanted in enumerate(_of_whole_model(model, ids, mask)):
        matrix = found[index]
        fisher = (matrix - EVEN * torch.eye(64)) / (1 - EVEN)
        assert float((fisher - wanted).norm() / wanted.norm()) < (0.2 if bfloat16 else 1e-3)
        assert float(torch.linalg.eigvalsh(matrix).min()) > 0.9 * EVEN
        assert float(matrix.diagonal().mean()) == pytest.approx(1.0, rel=1e-4)


def test_tokens_may_be_taken_some_at_a_time(tmp_path, monkeypatch):
    """The same gradients: the last part is shorter, and of one part nothing counts."""
    save_tiny_model(tmp_path / "model")
    ids, mask = _ids(samples=1), torch.ones(1, 20, dtype=torch.bool)
    mask[0, 8:16] = False
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "model").symlink_to(tmp_path / "model")
    whole = _measure(tmp_path / "whole", ids, mask)
    monkeypatch.setattr(importance, "_TOKENS_AT_ONCE", 8)
    for index, matrix in _measure(tmp_path, ids, mask).items():
        assert float((matrix - whole[index]).norm() / whole[index].norm()) < 1e-2


def test_an_error_is_weighed_by_its_direction():
    generator = torch.Generator().manual_seed(0)
    target, change = (torch.randn(1, 5, 8, generator=generator) for _ in range(2))
    root = torch.randn(8, 8, generator=generator)
    fisher = root @ root.T
    wanted = sum(float(d @ fisher @ d) / float(h @ h) for d, h in zip(change[0], target[0], strict=True))
    found = float(relative_error(target + change, target, fisher))
    assert found == pytest.approx(wanted / 5, rel=1e-4)
    plain = float(relative_error(target + change, target))
    assert float(relative_error(target + change, target, torch.eye(8))) == pytest.approx(plain, rel=1e-5)


def test_gradients_that_are_all_zero_are_refused(tmp_path):
    """A head of zeros gives every token the same chance, whatever the hidden states say."""
    save_tiny_model(tmp_path / "model")
    checkpoint = open_checkpoint(str(tmp_path / "model"))
    load = checkpoint.load_dense

    def without_head(name: str) -> np.ndarray:
        return np.zeros_like(load(name)) if name == "lm_head.weight" else load(name)

    spoiled = replace(checkpoint, load_dense=without_head)
    ids = _ids()
    with (
        Journal(tmp_path / "journal", {}, resume=False) as journal,
        pytest.raises(CheckpointError, match="all zero"),
    ):
        _matrices(spoiled, ids, torch.ones_like(ids, dtype=torch.bool), journal)


def test_it_changes_what_is_learned_and_is_measured_once(tmp_path):
    save_tiny_model(tmp_path / "model")
    text = write_text(tmp_path / "text.txt")
    seen: list[str] = []

    def run(name: str, **changes) -> np.ndarray:
        quantize_checkpoint(
            str(tmp_path / "model"),
            tmp_path / name,
            method="awq+",
            calibration=str(text),
            samples=3,
            sequence_length=32,
            options=replace(METHODS["awq+"], scale_steps=2, learn_steps=8, guard=False, **changes),
            progress=lambda event: seen.append(event.stage),
        )
        return open_checkpoint(str(tmp_path / name)).read_quantized("model.layers.1.mlp.up_proj").q

    plain = run("plain", learn_metric="plain")
    assert "importance" not in seen
    weighed = run("weighed")
    assert seen.count("importance") == 4
    assert not np.array_equal(plain, weighed)


def test_hidden_states_of_the_measurement_do_not_stay(tmp_path):
    """What flows between blocks while importance is measured is gone once a block is finished."""
    ids, mask = _ids(), torch.ones(3, 20, dtype=torch.bool)
    save_tiny_model(tmp_path / "model")
    with Journal(tmp_path / "j", {}, resume=False) as journal:
        matrices = _matrices(open_checkpoint(str(tmp_path / "model")), ids, mask, journal)
        journal.record_importance((index, matrix.numpy()) for index, matrix in matrices.items())
        writer = journal.begin_stream("full", 1, (1, 2, 64))
        writer.append(torch.zeros(1, 2, 64))
        stream: HiddenStates = writer.finish()
        journal.record({}, {}, {"full": stream})
        assert [file.name for file in (tmp_path / "j").glob("hidden-*")] == ["hidden-00001.full"]
        assert journal.read_importance(1) is not None


@pytest.mark.parametrize("values", [{"learn_metric": "other"}, {"importance_tokens": 0}])
def test_options_that_cannot_be_meant_are_refused(values):
    with pytest.raises(UsageError, match="learned rounding"):
        AwqOptions(**values)
