"""Signatures with real keys, by the real library: what was signed passes, everything else is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("model_signing", reason="needs model-signing: pip install 'awq-tvm[sign]'")

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from awq_tvm import api
from awq_tvm.bundle.signature import check_signature, sign_bundle, signature_of
from awq_tvm.bundle.verify import verify_bundle
from awq_tvm.cli.main import run
from awq_tvm.errors import BundleError, ResourceError, UnsupportedError, UsageError
from awq_tvm.push import push
from awq_tvm.runtime.engine import Engine
from tests.bundle.conftest import make_bundle
from tests.support import native_runner as native

Keys = tuple[Path, Path]


def make_keys(
    folder: Path, name: str, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, password: bytes = b""
) -> Keys:
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    locked = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    private.write_bytes(key.private_bytes(pem, pkcs8, locked))
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(pem, spki))
    return private, public


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return make_keys(tmp_path, "mine", ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture
def other_keys(tmp_path: Path) -> Keys:
    return make_keys(tmp_path, "other", ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture
def signed(bundle: Path, keys: Keys) -> Path:
    """A signed bundle; whatever a test does to it next, it passes before."""
    made = sign_bundle(bundle, keys[0])
    assert made == signature_of(bundle) == bundle.with_name("tiny.bundle.sig")
    check_signature(bundle, keys[1])
    return bundle


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()])
def test_other_curves(curve: ec.EllipticCurve, bundle: Path, tmp_path: Path) -> None:
    private, public = make_keys(tmp_path, "key", ec.generate_private_key(curve))
    check_signature(bundle, public, sign_bundle(bundle, private, tmp_path / "elsewhere.sig"))


def flip(bundle: Path) -> None:
    content = bytearray((bundle / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (bundle / "weights.safetensors").write_bytes(content)


def replace_and_reseal(bundle: Path) -> None:
    """What hashes in the bundle do not find: another bundle of the same name that verifies."""
    shutil.rmtree(bundle)
    make_bundle(bundle, tokenizer=b'{"other": 1}')
    verify_bundle(bundle)


def edit_payload(bundle: Path) -> None:
    path = signature_of(bundle)
    document = json.loads(path.read_bytes())
    payload = document["dsseEnvelope"]["payload"]
    document["dsseEnvelope"]["payload"] = payload[:40] + ("A" if payload[40] != "A" else "B") + payload[41:]
    path.write_text(json.dumps(document))


def rename_the_model(bundle: Path) -> None:
    model = json.loads((bundle / "manifest.json").read_bytes())["model"]
    native.reseal(bundle, model={**model, "eos_token_ids": (2,), "name": "other"})
    verify_bundle(bundle)


def link(bundle: Path) -> None:
    (bundle / "tokenizer.json").rename(bundle.parent / "t")
    (bundle / "tokenizer.json").symlink_to(bundle.parent / "t")


def exchange(bundle: Path) -> None:
    (bundle / "tokenizer.json").rename(bundle.parent / "t")
    (bundle / "tokenizer_config.json").rename(bundle / "tokenizer.json")
    (bundle.parent / "t").rename(bundle / "tokenizer_config.json")


TAMPERING: dict[str, Callable[[Path], object]] = {
    "a flipped bit": flip,
    "another bundle that verifies": replace_and_reseal,
    "a manifest sealed again": rename_the_model,
    "a missing file": lambda b: (b / "tokenizer_config.json").unlink(),
    "an extra file": lambda b: (b / "more").write_text("x"),
    "an extra file that git ignores": lambda b: (b / ".gitignore").write_text("x"),
    "a link": link,
    "two files exchanged": exchange,
    "no signature": lambda b: signature_of(b).unlink(),
    "an empty signature": lambda b: signature_of(b).write_bytes(b""),
    "a signature that is no JSON": lambda b: signature_of(b).write_bytes(b"\xff{"),
    "a signature of something else": lambda b: signature_of(b).write_text("{}"),
    "a signature of brackets": lambda b: signature_of(b).write_text("[" * 100_000),
    "a signature whose payload was edited": edit_payload,
    "a signature that is too large": lambda b: os.truncate(signature_of(b), (16 << 20) + 1),
}  # fmt: skip


@pytest.mark.parametrize("name", TAMPERING)
def test_tampering_is_refused(name: str, signed: Path, keys: Keys) -> None:
    TAMPERING[name](signed)
    with pytest.raises(BundleError, match=r"not what was signed|is not signed"):
        check_signature(signed, keys[1])


def test_another_key_is_refused(signed: Path, keys: Keys, other_keys: Keys) -> None:
    with pytest.raises(BundleError, match="not what was signed"):
        check_signature(signed, other_keys[1])
    # Without the hint, which a forger can leave out, it is the signature itself that does not fit.
    document = json.loads(signature_of(signed).read_bytes())
    document["verificationMaterial"]["publicKey"].pop("hint")
    signature_of(signed).write_text(json.dumps(document))
    check_signature(signed, keys[1])
    with pytest.raises(BundleError, match="not made with this key"):
        check_signature(signed, other_keys[1])


def test_what_is_no_key(bundle: Path, keys: Keys, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no key")
    (tmp_path / "large").write_bytes(bytes((1 << 16) + 1))
    secp = make_keys(tmp_path, "k1", ec.generate_private_key(ec.SECP256K1()))
    rsa_keys = make_keys(tmp_path, "rsa", rsa.generate_private_key(65537, 2048))
    locked = make_keys(tmp_path, "locked", ec.generate_private_key(ec.SECP256R1()), b"secret")
    sign_bundle(bundle, keys[0])
    for path in (
        tmp_path / "none",
        tmp_path,
        tmp_path / "text",
        tmp_path / "large",
        secp[0],
        rsa_keys[0],
        locked[0],
    ):
        with pytest.raises(UsageError, match="no key for signatures"):
            sign_bundle(bundle, path, tmp_path / "new.sig")
    for path in (tmp_path / "none", tmp_path / "text", secp[1], rsa_keys[1], keys[0]):
        with pytest.raises(UsageError, match="no key for signatures"):
            check_signature(bundle, path)
    assert not list(tmp_path.glob("new.sig*"))


def test_where_a_signature_cannot_go(signed: Path, keys: Keys, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="exists"):
        sign_bundle(signed, keys[0])
    with pytest.raises(UsageError, match="cannot lie in its bundle"):
        sign_bundle(signed, keys[0], signed / "model.sig")
    with pytest.raises(ResourceError, match="cannot be written"):
        sign_bundle(signed, keys[0], tmp_path / "nowhere" / "model.sig")
    flip(signed)
    with pytest.raises(BundleError, match="was changed"):
        sign_bundle(signed, keys[0], tmp_path / "new.sig")


def test_the_library_is_missing(bundle: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    for call in (lambda: sign_bundle(bundle, keys[0]), lambda: check_signature(bundle, keys[1])):
        with pytest.raises(UnsupportedError, match=r"awq-tvm\[sign\]"):
            call()


def test_the_librarys_own_program_reads_it(signed: Path, keys: Keys) -> None:
    options = ["--signature", signature_of(signed), "--public_key", keys[1]]
    command = [sys.executable, "-m", "model_signing", "verify", "key", signed, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout


def test_the_verbs(bundle: Path, keys: Keys, other_keys: Keys, capsys: pytest.CaptureFixture[str]) -> None:
    private, public = map(str, keys)
    assert run(["sign", str(bundle), "--private-key", private, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["signature"] == str(signature_of(bundle))
    assert run(["verify", str(bundle), "--public-key", public, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["signature_checked"] is True
    assert run(["verify", str(bundle), "--public-key", public]) == 0
    assert f"signed by the key of {public}" in capsys.readouterr().out
    assert run(["verify", str(bundle), "--signature", str(signature_of(bundle))]) == 2
    assert run(["verify", str(bundle), "--public-key", str(other_keys[1])]) == 6
    replace_and_reseal(bundle)
    assert run(["verify", str(bundle)]) == 0
    assert run(["verify", str(bundle), "--public-key", public]) == 6
    assert "Hash mismatch for 'tokenizer.json'" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["generate", "chat", "push", "serve"])
def test_what_is_not_signed_is_not_used(
    verb: str, signed: Path, keys: Keys, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[Path] = []

    def use(bundle: Path, *_: object, **__: object) -> None:
        used.append(bundle)
        raise UnsupportedError("It got this far.")

    if verb == "serve":
        server = pytest.importorskip("awq_tvm.serve.server", reason="needs awq-tvm[serve]")
        monkeypatch.setattr(server, "run_server", use)
    monkeypatch.setattr(push, "push_bundle", use)
    monkeypatch.setattr(Engine, "load", use)
    more = {"generate": ["--prompt", "x"], "push": ["ssh://here/folder"]}.get(verb, [])
    command = [verb, str(signed), *more, "--require-signature", str(keys[1])]
    assert run(command) == 4
    assert used == [signed]
    replace_and_reseal(signed)
    assert run(command) == 6
    assert "not what was signed" in capsys.readouterr().err
    signature_of(signed).unlink()
    assert run(command) == 6
    assert "is not signed" in capsys.readouterr().err
    assert used == [signed]


def test_what_is_not_signed_is_not_loaded(signed: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[Path] = []
    monkeypatch.setattr(Engine, "load", lambda bundle, **_: used.append(bundle))
    api.load(signed, require_signature=keys[1])
    signature_of(signed).unlink()
    with pytest.raises(BundleError, match="is not signed"):
        api.load(str(signed), require_signature=str(keys[1]))
    assert used == [signed]
