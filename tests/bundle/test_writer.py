from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from awq_tvm.bundle.reader import open_bundle
from awq_tvm.bundle.writer import write_bundle
from awq_tvm.errors import ResourceError, UsageError

from .conftest import make_bundle, make_draft, make_weights

ROOT = Path(__file__).parents[2]


def test_writes_what_it_was_given(tmp_path: Path) -> None:
    bundle = open_bundle(make_bundle(tmp_path / "deep" / "tiny"))
    assert bundle.library.read_bytes() == b"\x7fELF not really" * 99
    assert set(bundle.side_files()) == {"tokenizer.json", "tokenizer_config.json", "README.md"}
    with safe_open(bundle.weights, "numpy") as file:
        for name, array in make_weights().items():
            stored = file.get_tensor(name)
            assert stored.dtype == array.dtype
            np.testing.assert_array_equal(stored, array)
    assert sorted(path.name for path in bundle.path.parent.iterdir()) == ["tiny"]


def test_library_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "lib").write_bytes(b"library bytes")
    write_bundle(tmp_path / "out", make_draft(), tmp_path / "lib", make_weights().items(), {}, "")
    assert open_bundle(tmp_path / "out").library.read_bytes() == b"library bytes"
    with pytest.raises(FileNotFoundError):
        write_bundle(tmp_path / "other", make_draft(), tmp_path / "none", make_weights().items(), {}, "")
    assert not (tmp_path / "other").exists()


def test_too_little_disk_is_seen_before_the_weights_are_read(tmp_path: Path) -> None:
    def weights() -> Iterator[tuple[str, np.ndarray]]:
        raise AssertionError("nothing may be read before the checks are done")
        yield

    with (tmp_path / "lib").open("wb") as file:
        try:
            file.truncate(2 * shutil.disk_usage(tmp_path).total)  # a file of holes
        except OSError:
            pytest.skip("this file system holds no file larger than itself")
    with pytest.raises(ResourceError, match=r"\d+ bytes are needed, \d+ are free"):
        write_bundle(tmp_path / "out", make_draft(), tmp_path / "lib", weights(), {}, "")
    assert [path.name for path in tmp_path.iterdir()] == ["lib"]


def test_output_exists(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ResourceError, match="exists already"):
        make_bundle(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


_WRITE_UNDER_A_LIMIT = """
import resource, sys
from pathlib import Path
from awq_tvm.errors import ResourceError
from tests.bundle.conftest import make_bundle
make_bundle(Path(sys.argv[1] + ".good"))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    make_bundle(Path(sys.argv[1]))
except ResourceError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def test_disk_fills_up_while_writing(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", _WRITE_UNDER_A_LIMIT, str(tmp_path / "out")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 7, result.stderr
    assert "no room left for the output" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["out.good"]


def test_second_writer_is_told_who_holds_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    seen: list[str] = []

    def weights() -> Iterator[tuple[str, np.ndarray]]:
        with pytest.raises(ResourceError) as caught:
            make_bundle(out)
        seen.append(str(caught.value))
        yield from make_weights().items()

    write_bundle(out, make_draft(), b"lib", weights(), {}, "")
    assert f"process {os.getpid()} holds" in seen[0]
    assert open_bundle(out).library.read_bytes() == b"lib"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


_DIE_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from awq_tvm.bundle.writer import write_bundle
from tests.bundle.conftest import make_draft, make_weights
def weights():
    yield next(iter(make_weights().items()))
    os.kill(os.getpid(), signal.SIGKILL)
write_bundle(Path(sys.argv[1]), make_draft(), b"lib", weights(), {}, "")
"""


def test_killed_writer_leaves_no_output_and_the_next_one_succeeds(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = subprocess.run([sys.executable, "-c", _DIE_WHILE_WRITING, str(out)], cwd=ROOT, check=False)
    assert result.returncode == -9
    assert not out.exists()
    assert (tmp_path / "out.partial").is_dir()
    make_bundle(out)
    open_bundle(out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_failing_weights_leave_nothing(tmp_path: Path) -> None:
    def weights() -> Iterator[tuple[str, np.ndarray]]:
        yield next(iter(make_weights().items()))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_bundle(tmp_path / "out", make_draft(), b"lib", weights(), {}, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["model.so", "weights.safetensors", "manifest.json", "README.md"])
def test_side_file_with_a_reserved_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="one name"):
        write_bundle(tmp_path / "out", make_draft(), b"lib", make_weights().items(), {name: b""}, "")
    assert list(tmp_path.iterdir()) == []


def test_library_named_as_the_card(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one name"):
        make_bundle(tmp_path / "out", library="README.md")
