"""Both streams are what running the model's blocks one after the other gives, also after a kill."""

from __future__ import annotations

import pytest
import torch

from awq_tvm.checkpoint import open_checkpoint
from awq_tvm.quantize.block_stream import BlockStream
from awq_tvm.quantize.group_quantize import Rounding
from awq_tvm.quantize.hidden_states import FULL, QUANTIZED
from awq_tvm.quantize.journal import Journal
from awq_tvm.quantize.options import AwqOptions
from awq_tvm.quantize.rounding_plan import RoundingPlan
from awq_tvm.quantize.torch_model import build_model
from tests.quantize.tiny_models import VOCABULARY, save_tiny_model

TOKENS = torch.randint(0, VOCABULARY, (3, 16), generator=torch.Generator().manual_seed(0)).numpy()


class StopError(Exception):
    pass


def _run(tmp_path, name, *, stop_after=None, resume=False):
    def progress(event):
        if event.done == stop_after:
            raise StopError

    with torch.no_grad(), Journal(tmp_path / name, {}, resume=resume) as journal:
        stream = BlockStream(
            open_checkpoint(str(tmp_path / "model")),
            journal,
            RoundingPlan(Rounding(4, 64)),
            TOKENS,
            streams=(FULL, QUANTIZED),
        )
        stream.run(AwqOptions(scale_steps=4), progress)


def test_streams_are_the_outputs_of_the_blocks(tmp_path):
    save_tiny_model(tmp_path / "model", num_hidden_layers=3)
    _run(tmp_path, "j")
    model = build_model(open_checkpoint(str(tmp_path / "model")))
    with Journal(tmp_path / "j", {}, resume=True) as journal, torch.no_grad():
        hidden = journal.read_hidden()
        assert set(hidden) == {FULL, QUANTIZED}
        ids = torch.from_numpy(TOKENS)
        # The last state of a model without its final norm is what leaves the last block.
        model.model.norm = torch.nn.Identity()
        torch.testing.assert_close(hidden[FULL][:], model.model(ids).last_hidden_state)
        for index in range(3):
            arrays = journal.read_block(index)
            block = model.model.layers[index]
            for name, parameter in block.named_parameters():
                if f"dense.{name}" in arrays:
                    parameter.copy_(torch.from_numpy(arrays[f"dense.{name}"]))
                    continue
                q, scales, zeros = (
                    torch.from_numpy(arrays[f"quantized.{name.removesuffix('.weight')}.{part}"]).float()
                    for part in ("q", "scales", "zeros")
                )
                parts = q.view(*scales.shape, -1) - zeros.unsqueeze(-1)
                parameter.copy_((parts * scales.unsqueeze(-1)).view_as(parameter))
        torch.testing.assert_close(hidden[QUANTIZED][:], model.model(ids).last_hidden_state)
        assert not torch.equal(hidden[FULL][:], hidden[QUANTIZED][:])


def test_streams_go_on_where_they_stopped(tmp_path):
    save_tiny_model(tmp_path / "model", num_hidden_layers=3)
    _run(tmp_path, "whole")
    with pytest.raises(StopError):
        _run(tmp_path, "stopped", stop_after=1)
    _run(tmp_path, "stopped", resume=True)
    with (
        Journal(tmp_path / "whole", {}, resume=True) as whole,
        Journal(tmp_path / "stopped", {}, resume=True) as stopped,
    ):
        for name, stream in whole.read_hidden().items():
            assert stopped.read_hidden()[name].sha256 == stream.sha256
    names = [sorted(file.name for file in (tmp_path / one).iterdir()) for one in ("whole", "stopped")]
    assert names[0] == names[1]
