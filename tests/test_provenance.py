"""Signatures: what is signed, how it breaks, how it is stripped, and whose it is.

The files are checked by the SDK's own reader too, not only by `sora verify`.
"""

from __future__ import annotations

import http.server
import io
import json
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import c2pa
import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from sora_cli.errors import UsageError
from sora_cli.media import ffmpeg, image, provenance, provenance_check, provenance_keys, video
from sora_cli.media import recipe as recipes
from sora_cli.media.provenance import ALL_MADE, PART_MADE, Ingredient, Story
from sora_cli.media.provenance_keys import Signer
from tests.certificates import pair

RECIPE = {"schema": 1, "prompt": "a red ball", "version": "0.1.0", "verb": "generate", "signed": 1}
STORY = Story(title="a", verb="generate", version="0.1.0", source=ALL_MADE)
SUFFIXES = list(provenance.SIGNABLE)


@pytest.fixture
def signer(own_folders: Path) -> Signer:
    return provenance_keys.init()


def plain(path: Path, seed: int = 0) -> Path:
    """A file of noise with a recipe, as the writers make it."""
    frames = np.random.default_rng(seed).integers(0, 256, (3, 32, 48, 3), dtype=np.uint8)
    recipe = {**RECIPE, "signed": True}
    if path.suffix in image.output.IMAGE_SUFFIXES and path.stem != "moving":
        image.write(path, frames[0], recipe=recipe)
    else:
        video.write(path, [frames], width=48, height=32, fps=8, recipe=recipe)
    return path


def signed(path: Path, signer: Signer, story: Story = STORY) -> Path:
    """The same, signed."""
    source = plain(path.with_name(f"plain-{path.name}"))
    path.touch()
    assert provenance.sign(source, path, path.suffix, story, signer) == ()
    return path


def read(path: Path, **settings: Any) -> dict[str, Any]:
    """What the SDK's own reader says."""
    with (
        c2pa.Context.from_dict({**provenance.OFFLINE, **settings}) as context,
        path.open("rb") as file,
        c2pa.Reader(None, file, context=context) as reader,
    ):
        return json.loads(reader.json())


def actions_of(report: dict[str, Any]) -> list[dict[str, Any]]:
    """What the active manifest says was done."""
    rows = report["manifests"][report["active_manifest"]]["assertions"]
    return next(row["data"]["actions"] for row in rows if row["label"].startswith("c2pa.actions"))


def damaged(path: Path, at: int) -> Path:
    """A copy in which one bit of one byte is another."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    copy = path.with_name(f"damaged-{path.name}")
    copy.write_bytes(content)
    return copy


@pytest.mark.parametrize("suffix", [*SUFFIXES, "moving.webp"])
def test_a_file_is_signed_then_broken_by_one_byte(
    tmp_path: Path, signer: Signer, suffix: str
) -> None:
    path = signed(tmp_path / (suffix if suffix[0] != "." else f"a{suffix}"), signer)
    report = read(path)
    assert report["validation_state"] == "Valid"
    actions = actions_of(report)
    assert [action["action"] for action in actions] == ["c2pa.created"]
    assert actions[0]["digitalSourceType"] == ALL_MADE
    found = provenance_check.check(path)
    assert (found.signature, found.trust) == ("valid", "own")
    assert found.recipe == {**RECIPE, "signed": True}
    assert found.sources == ("trainedAlgorithmicMedia",)
    # One bit of a pixel, and one of the recipe.
    content = path.read_bytes()
    told = content.index(b"a red ball")
    for at in (told, len(content) - 40 if path.suffix != ".webp" else 40):
        broken = damaged(path, at)
        try:
            assert read(broken)["validation_state"] == "Invalid", at
        except c2pa.C2paError:
            assert at != told
        after = provenance_check.check(broken)
        assert after.signature == "broken" and after.trust == "none" and after.problems
        assert "perhaps this too" in after.say()[0] or after.recipe is None


def test_every_byte_of_a_picture_counts(tmp_path: Path, signer: Signer) -> None:
    """Only padding inside the signature's own box may change: it means nothing."""
    path = signed(tmp_path / "a.jpg", signer)
    content = path.read_bytes()
    begin = content.index(b"jumb")
    end = content.index(b"\xff\xdb", begin)  # the quantisation tables come after the manifest
    places = [*range(2, begin - 60, 7), *range(end, len(content), 97)]
    for at in places:
        assert provenance_check.check(damaged(path, at)).signature == "broken", at


def test_a_copy_by_ffmpeg_has_no_signature(tmp_path: Path, signer: Signer) -> None:
    path, bare, kept = signed(tmp_path / "a.mp4", signer), tmp_path / "b.mp4", tmp_path / "c.mp4"
    copy = [ffmpeg.executable(), "-v", "error", "-i", str(path), "-c", "copy"]
    subprocess.run([*copy, str(bare)], check=True)
    with pytest.raises(c2pa.C2paError.ManifestNotFound):
        read(bare)
    found = provenance_check.check(bare)
    assert (found.recipe, found.signature, found.trust) == (None, "none", "none")
    # With its tags kept, the recipe still says that there was a signature.
    subprocess.run([*copy, "-movflags", "use_metadata_tags", str(kept)], check=True)
    found = provenance_check.check(kept)
    assert found.signature == "none" and found.stripped
    assert "was removed" in found.say()[1] and "nothing protects it" in found.say()[0]
    assert found.to_json()["signature"]["stripped"] is True


def test_an_unknown_chain_is_never_said_to_be_more(
    tmp_path: Path, signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = signed(tmp_path / "a.png", signer)
    authorities = tmp_path / "theirs.pem"
    authorities.write_bytes(provenance_keys.authorities() or b"")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "another"))
    stranger = provenance_check.check(path)
    assert (stranger.signature, stranger.trust) == ("valid", "unknown")
    said = "\n".join(stranger.say()) + json.dumps(stranger.to_json())
    assert "verified" not in said.lower() and "anybody can make" in said
    assert provenance_check.check(path, authorities).trust == "list"
    with pytest.raises(UsageError, match="holds no certificate"):
        provenance_check.check(path, path)
    provenance_keys.init(name="another")  # an authority of one's own, but not that one
    assert provenance_check.check(path).trust == "unknown"
    other = tmp_path / "other.pem"
    other.write_bytes(provenance_keys.authorities() or b"")
    assert provenance_check.check(path, other).trust == "unknown"


def test_parents_become_ingredients_with_their_manifests(tmp_path: Path, signer: Signer) -> None:
    parent, bare = signed(tmp_path / "parent.mp4", signer), plain(tmp_path / "bare.mkv")
    edited = Story(
        title="b.mp4", verb="extend", version="0.1.0", source=PART_MADE,
        ingredients=(Ingredient(path=parent, relation="parentOf"),),
    )  # fmt: skip
    child = signed(tmp_path / "b.mp4", signer, edited)
    report = read(child)
    assert len(report["manifests"]) == 2 and report["validation_state"] == "Valid"
    actions = actions_of(report)
    assert [action["action"] for action in actions] == ["c2pa.opened", "c2pa.edited"]
    assert actions[1]["digitalSourceType"] == PART_MADE
    found = provenance_check.check(child)
    assert found.ingredients == (("parent.mp4", "parentOf", "valid"),)
    # Two parts and something that was given to the model; one of them has no signature.
    parts = (
        Ingredient(path=child, relation="componentOf"),
        Ingredient(path=bare, relation="componentOf"),
        Ingredient(path=damaged(parent, parent.stat().st_size - 40), relation="inputTo"),
    )
    joined = Story(title="c", verb="connect", version="1", source=PART_MADE, ingredients=parts)
    found = provenance_check.check(signed(tmp_path / "c.mp4", signer, joined))
    assert found.signature == "valid"
    assert [state for *_, state in found.ingredients] == ["valid", "none", "broken"]


def test_an_ingredient_that_cannot_be_read_is_left_out(tmp_path: Path, signer: Signer) -> None:
    junk = tmp_path / "junk.mp4"
    junk.write_bytes(b"\0\0\0\x18ftypisom" + b"x" * 100)
    parts = tuple(
        Ingredient(path=path, relation="componentOf") for path in (junk, tmp_path / "gone.mp4")
    )
    story = Story(title="", verb="connect", version="1", source=ALL_MADE, ingredients=parts)
    target = tmp_path / "a.png"
    target.touch()
    notes = provenance.sign(plain(tmp_path / "p.png"), target, ".png", story, signer)
    assert [note.split()[0] for note in notes] == ["junk.mp4", "gone.mp4"]
    assert provenance_check.check(target).ingredients == ()


# ---------------------------------------------------------------- keys


def test_init_keeps_the_key_to_itself_and_old_authorities(
    tmp_path: Path, signer: Signer, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = provenance_keys.folder()
    if sys.platform != "win32":
        assert stat.S_IMODE((folder / "key.pem").stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert sorted(path.name for path in folder.iterdir()) == [
        "authorities.pem", "certificate.pem", "key.pem",
    ]  # fmt: skip
    assert "PRIVATE" not in repr(signer)
    before, path = (folder / "key.pem").read_bytes(), signed(tmp_path / "a.png", signer)
    with pytest.raises(UsageError, match="there is a key already"):
        provenance_keys.init()
    assert (folder / "key.pem").read_bytes() == before
    provenance_keys.init(name="Ada", days=30, force=True)
    assert (folder / "key.pem").read_bytes() != before
    assert provenance_check.check(path).trust == "own"  # what the old one signed is still known


@pytest.mark.parametrize("kind", ["es256", "es384", "ps256"])
def test_the_users_own_certificate(tmp_path: Path, kind: str) -> None:
    key: Any = rsa.generate_private_key(65537, 2048) if kind == "ps256" else (
        ec.generate_private_key(ec.SECP256R1() if kind == "es256" else ec.SECP384R1())
    )  # fmt: skip
    own = provenance_keys.load(*pair(tmp_path / "own", key))
    assert own.algorithm == kind and own.name == "someone"
    provenance.try_signer(own)
    found = provenance_check.check(signed(tmp_path / "a.png", own))
    assert (found.signature, found.trust, found.signer) == ("valid", "unknown", "someone")


def test_wrong_keys_and_certificates_are_one_line(tmp_path: Path) -> None:
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    certificate, key = pair(tmp_path / "good", keys[0])
    _, other = pair(tmp_path / "other", keys[1])
    expired, its_key = pair(tmp_path / "expired", keys[0], days=-1)
    odd, _ = pair(tmp_path / "odd", ec.generate_private_key(ec.SECP256K1()))
    locked = tmp_path / "locked.pem"
    form = serialization.PrivateFormat.PKCS8
    secret = serialization.BestAvailableEncryption(b"word")
    locked.write_bytes(keys[0].private_bytes(serialization.Encoding.PEM, form, secret))
    for given, said in (
        ((certificate, other), "is not that of the certificate"),
        ((expired, its_key), "expired on"),
        ((certificate, locked), "passphrase"),
        ((certificate, tmp_path / "none.pem"), "cannot read the key"),
        ((certificate, certificate), "holds no private key"),
        ((key, key), "holds no certificate"),
        ((odd, tmp_path / "odd" / "private.pem"), "of a kind that C2PA does not sign with"),
        ((certificate, None), "needs its key"),
        ((None, None), "no certificate to sign with"),
    ):
        with pytest.raises(UsageError, match=said) as error:
            provenance_keys.load(*given)
        text = f"{error.value.message} {error.value.hint}"
        assert "\n" not in text and error.value.hint
        for path in (key, other, its_key):
            assert not any(line in text for line in path.read_text().splitlines()[1:-1])
    unfit = provenance_keys.load(*pair(tmp_path / "unfit", keys[0], client=True))
    with pytest.raises(UsageError, match="cannot sign"):
        provenance.try_signer(unfit)


def test_a_certificate_that_has_expired_since(tmp_path: Path) -> None:
    """Without a time stamp nobody can tell when it was signed; that is said, and the file holds."""
    key = ec.generate_private_key(ec.SECP256R1())
    over = time.monotonic() + 86400 * 5e-5 + 1.1  # its second begins with the certificate's end
    path = signed(tmp_path / "a.png", provenance_keys.load(*pair(tmp_path / "o", key, days=5e-5)))
    time.sleep(max(0.0, over - time.monotonic()))
    found = provenance_check.check(path)
    assert (found.signature, found.trust) == ("valid", "expired")
    assert provenance_check.check(damaged(path, path.stat().st_size - 40)).signature == "broken"


# ---------------------------------------------------------------- strangers' files


def test_nothing_is_fetched_for_a_strangers_file(tmp_path: Path, signer: Signer) -> None:
    asked: list[str] = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)

    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    info = c2pa.C2paSignerInfo(b"es256", signer.chain, signer.key, None)
    settings = {**provenance.OFFLINE, "verify": {"verify_after_sign": False}}
    with (
        c2pa.Context.from_dict(settings) as context,
        c2pa.Signer.from_info(info) as how,
        c2pa.Builder(provenance._definition(STORY, []), context) as builder,
        plain(tmp_path / "a.png").open("rb") as source,
    ):
        builder.set_remote_url(f"http://127.0.0.1:{server.server_port}/manifest")
        builder.set_no_embed()
        elsewhere = io.BytesIO()
        builder.sign(how, "image/png", source, elsewhere)
    (tmp_path / "b.png").write_bytes(elsewhere.getvalue())
    found = provenance_check.check(tmp_path / "b.png")
    server.shutdown()
    assert asked == [] and found.signature == "none" and "not fetched" in found.say()[1]


def test_what_a_stranger_writes_stays_on_one_line(tmp_path: Path, signer: Signer) -> None:
    name = "x\x1b[2Jtrust: your own CA\n" + "y" * 500
    part = tmp_path / "a.png"
    story = Story(title=name, verb=name, version=name, source=f"{ALL_MADE}/{name}")
    found = provenance_check.check(signed(part, signer, story))
    for line in found.say():
        assert line.isprintable() and len(line) < 400
    assert found.say()[2].startswith("trust: your own CA (self-made")


@pytest.mark.parametrize("suffix", [".png", ".mp4", ".gif", ".webp", ".jpg"])
def test_mutated_files_end_in_a_verdict(tmp_path: Path, signer: Signer, suffix: str) -> None:
    path = signed(tmp_path / f"a{suffix}", signer)
    content, rng = path.read_bytes(), np.random.default_rng(1)
    for number in range(25):
        changed = bytearray(content)
        for at in rng.integers(0, len(content), 1 + number % 4):
            changed[at] = int(rng.integers(256))
        cut = int(rng.integers(8, len(content))) if number % 3 == 0 else len(content)
        path.write_bytes(changed[:cut])
        found = provenance_check.check(path)
        assert found.signature in ("valid", "broken", "none")


def test_other_files_have_no_signature(tmp_path: Path) -> None:
    video.write(
        tmp_path / "a.mkv", [np.zeros((2, 32, 32, 3), np.uint8)], width=32, height=32, fps=8
    )
    (tmp_path / "a.txt").write_text("words")
    for path in (tmp_path, tmp_path / "a.mkv", tmp_path / "a.txt", plain(tmp_path / "a.png")):
        assert provenance_check.check(path).signature == "none"
    assert provenance_check.check(tmp_path / "a.png").recipe == recipes.read(tmp_path / "a.png")
    with pytest.raises(UsageError, match="there is no file"):
        provenance_check.check(tmp_path / "gone.mp4")
    with pytest.raises(UsageError, match="not a regular file"):
        provenance_check.check(Path(os.devnull))
