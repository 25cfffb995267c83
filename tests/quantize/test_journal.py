"""A journal gives back what it was given, or says that it cannot."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from awq_tvm.errors import CheckpointError, ResourceError, UsageError
from awq_tvm.quantize.hidden_states import FULL
from awq_tvm.quantize.journal import Journal

SETTINGS = {"bits": 4, "seed": 0}


def _record(journal: Journal, number: int) -> None:
    stream = journal.begin_stream(FULL, number, (2, 1, 2))
    stream.append(torch.full((2, 1, 2), -float(number)))
    journal.record({"w": np.full(3, number)}, {"loss": number / 2}, {FULL: stream.finish()})


@pytest.fixture
def written(tmp_path):
    folder = tmp_path / "out.journal"
    with Journal(folder, SETTINGS, resume=False) as journal:
        _record(journal, 1)
        _record(journal, 2)
    return folder


def test_gives_back_what_it_was_given(written):
    with Journal(written, SETTINGS, resume=True) as journal:
        assert journal.finished == 2
        np.testing.assert_array_equal(journal.read_block(0)["w"], np.full(3, 1))
        np.testing.assert_array_equal(journal.read_block(1)["w"], np.full(3, 2))
        assert torch.equal(journal.read_hidden()[FULL][:], torch.full((2, 1, 2), -2.0))
        assert journal.note(1) == {"loss": 1.0}
        _record(journal, 3)
        assert journal.finished == 3
    assert sorted(path.name for path in written.glob("hidden*")) == ["hidden-00003.full"]


def test_keeps_the_text(tmp_path):
    with Journal(tmp_path / "j", SETTINGS, resume=False) as journal:
        assert journal.read_text() is None
        journal.record_text({"token_ids": np.arange(6)}, {"source": "a text", "warnings": ["short"]})
    with Journal(tmp_path / "j", SETTINGS, resume=True) as journal:
        arrays, note = journal.read_text()
        np.testing.assert_array_equal(arrays["token_ids"], np.arange(6))
        assert note == {"source": "a text", "warnings": ["short"]}
        assert journal.finished == 0
    (tmp_path / "j" / "text.safetensors").write_bytes(b"")
    with (
        Journal(tmp_path / "j", SETTINGS, resume=True) as journal,
        pytest.raises(CheckpointError, match="SHA-256"),
    ):
        journal.read_text()


@pytest.mark.parametrize(("error", "kept"), [(KeyboardInterrupt, True), (CheckpointError, False)])
def test_text_alone_stays_only_where_it_is_of_use(tmp_path, error, kept):
    """A run that was stopped goes on with it; one that met a mistake will be started with something changed."""

    def run():
        with Journal(tmp_path / "j", SETTINGS, resume=False) as journal:
            journal.record_text({"token_ids": np.arange(6)}, {})
            raise error("no")

    with pytest.raises(error):
        run()
    assert (tmp_path / "j").exists() == kept


def test_files_it_does_not_name_do_not_count(written):
    """What a process killed between two writes leaves behind."""
    (written / "block-00002.safetensors").write_bytes(b"half")
    (written / "journal.json.partial").write_bytes(b"{")
    with Journal(written, SETTINGS, resume=True) as journal:
        assert journal.finished == 2
        _record(journal, 3)
        np.testing.assert_array_equal(journal.read_block(2)["w"], np.full(3, 3))


def test_killed_before_the_first_block(tmp_path):
    (tmp_path / "j").mkdir()
    (tmp_path / "j" / "lock").write_text("123\n")
    with Journal(tmp_path / "j", SETTINGS, resume=False) as journal:
        assert journal.finished == 0
        assert journal.read_hidden() == {}


def test_nothing_is_left_of_a_run_that_finished_no_block(tmp_path):
    with pytest.raises(RuntimeError, match="no"), Journal(tmp_path / "j", SETTINGS, resume=False):
        raise RuntimeError("no")
    assert not (tmp_path / "j").exists()


def test_unfinished_run_is_not_thrown_away(written):
    with pytest.raises(UsageError, match="--resume"):
        Journal(written, SETTINGS, resume=False)
    assert (written / "block-00001.safetensors").exists()


def test_other_settings_are_all_named(written):
    with pytest.raises(UsageError, match="bits: then 4, now 3; extra: then None, now 1"):
        Journal(written, {"bits": 3, "seed": 0, "extra": 1}, resume=True)


@pytest.mark.parametrize("name", ["block-00000.safetensors", "block-00001.safetensors", "journal.json"])
def test_any_damage_is_found(written, name):
    content = bytearray((written / name).read_bytes())
    content[len(content) // 2] ^= 1 if name != "journal.json" else 0x80
    (written / name).write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        Journal(written, SETTINGS, resume=True)


def test_damaged_hidden_states(written):
    (written / "hidden-00002.full").write_bytes(b"")
    with Journal(written, SETTINGS, resume=True) as journal, pytest.raises(CheckpointError, match="SHA-256"):
        journal.read_hidden()


def test_missing_block(written):
    (written / "block-00000.safetensors").unlink()
    with pytest.raises(CheckpointError, match="damaged"):
        Journal(written, SETTINGS, resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 1}, "schema version is 1"),
        ({"settings": None}, "no settings"),
        ({"hidden": {"full": {"file": "../elsewhere", "sha256": ""}}}, "not a file of the journal"),
        ({"blocks": [{"file": 3, "sha256": ""}]}, "not a file of the journal"),
        ({"blocks": 7}, "damaged"),
        ({"text": {"file": "a/b", "sha256": ""}}, "not a file of the journal"),
        ({"text": 1}, "damaged"),
        ({"widths": {"a": "4"}}, "no numbers by name"),
        ({"widths": 3}, "no numbers by name"),
    ],
)
def test_index_that_lies(written, change, message):
    index = written / "journal.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), **change}))
    with pytest.raises(CheckpointError, match=message):
        Journal(written, SETTINGS, resume=True)


def test_one_run_at_a_time(written):
    with (
        Journal(written, SETTINGS, resume=True),
        pytest.raises(ResourceError, match=r"process \d+ holds it"),
    ):
        Journal(written, SETTINGS, resume=True)
    Journal(written, SETTINGS, resume=True).__exit__(None, None, None)


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot be written"):
        Journal(tmp_path / "file" / "j", SETTINGS, resume=False)


def test_disk_that_fails_later(written, monkeypatch):
    with Journal(written, SETTINGS, resume=True) as journal:

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(ResourceError, match="No space left"):
            _record(journal, 3)
    monkeypatch.undo()
    with Journal(written, SETTINGS, resume=True) as journal:
        assert journal.finished == 2


def test_removed_after_success(written):
    with Journal(written, SETTINGS, resume=True) as journal:
        journal.remove()
    assert not written.exists()
