"""`--sign` and `--label` through the whole path: what is made, when it is refused, what is kept."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from PIL import Image

from sora_cli import app
from sora_cli.cli.main import main
from sora_cli.errors import OutputError
from sora_cli.jobs.job import Target
from sora_cli.jobs.provenance import all_made
from sora_cli.media import provenance_check, provenance_keys, reader
from sora_cli.media import recipe as recipes
from sora_cli.media.provenance_label import TEXT, burn, draw
from sora_cli.pipeline.request import Request
from sora_cli.runs.folders import runs_dir
from tests.certificates import pair
from tests.clips import made, moving, x264
from tests.tiny_runs import PROMPT, SMALL, frames_of, generate, names_in, script, style

QUIET = ("--progress", "none")
# What two runs of one call may differ in.
MEASURED = {"timings", "peak_memory", "run", "item"}
REQUEST = Request(
    prompt=PROMPT, width=64, height=64, num_frames=5, num_inference_steps=2, seed=1, expand=False
)
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    provenance_keys.init(name="Ada")
    return folder


def settled(path: Path) -> dict[str, Any]:
    return {key: value for key, value in recipes.read(path).items() if key not in MEASURED}


def verdict(path: Path) -> tuple[str, str]:
    found = provenance_check.check(path)
    return found.signature, found.trust


def test_a_signed_file_is_the_unsigned_one_with_a_signature(here: Path) -> None:
    assert generate("-o", "plain.mp4", *QUIET) == generate("-o", "a.mp4", "--sign", *QUIET) == 0
    assert np.array_equal(frames_of(here / "plain.mp4"), frames_of(here / "a.mp4"))
    assert settled(here / "a.mp4") == {**settled(here / "plain.mp4"), "signed": True}
    assert verdict(here / "a.mp4") == ("valid", "own")
    assert verdict(here / "plain.mp4") == ("none", "none")
    assert names_in(here) == ["a.mp4", "plain.mp4"]


def test_standard_output_and_pictures(here: Path) -> None:
    with script("generate", PROMPT, *SMALL, "--sign", "--seed", "1", "-o", "-", cwd=here) as made:
        content, said = made.communicate()
    assert made.returncode == 0, said
    (here / "stream.mp4").write_bytes(content)
    assert verdict(here / "stream.mp4") == ("valid", "own")
    assert b"signed: Ada" in said
    picture = ["image", PROMPT, "--size", "64x64", "--steps", "2", "--no-expand", "-o", "a.jpg"]
    assert main([*picture, "--sign", "--label", *QUIET]) == 0
    assert verdict(here / "a.jpg") == ("valid", "own")
    assert recipes.read(here / "a.jpg")["label"] == TEXT


@pytest.mark.parametrize(
    ("output", "said"),
    [("a.mkv", ".mkv files"), ("a.webm", ".webm files"), ("frames/", "folders of pictures")],
)
def test_what_cannot_be_signed_is_said_before_the_work(
    here: Path, capsys: Capture, output: str, said: str
) -> None:
    assert generate("--sign", "-o", output, *QUIET) == 2
    error = capsys.readouterr().err
    assert f"{said} hold no signature" in error and ".mp4" in error and "denoise" not in error
    assert names_in(here) == []


def test_without_a_certificate_or_the_extra(
    here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "c2pa", None)  # as if it were not installed
        assert generate("--sign", "-o", "a.mp4", *QUIET) == 2
        assert "pip install 'sora-cli[provenance]'" in capsys.readouterr().err
        assert generate("-o", "b.mp4", *QUIET) == 0  # nobody else needs it
        capsys.readouterr()
        assert main(["verify", "b.mp4"]) == 2
        assert main(["provenance", "init", "--force"]) == 2
        assert "pip install" in capsys.readouterr().err
    for path in provenance_keys.folder().iterdir():
        path.unlink()
    assert generate("--sign", "-o", "a.mp4", *QUIET) == 2
    assert "sora provenance init" in capsys.readouterr().err
    assert names_in(here) == ["b.mp4"]


def test_the_environment_and_the_configuration(
    here: Path, own_folders: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = own_folders / "config" / "sora" / "config.toml"
    config.write_text("sign = true\nlabel = true\n")
    asked = ["generate", PROMPT, *SMALL, "--dry-run", *QUIET]
    assert main([*asked, "-o", "a.webm"]) == 2  # it would have been signed
    assert main([*asked, "-o", "a.webm", "--no-sign"]) == 0
    monkeypatch.setenv("SORA_SIGN", "0")
    assert main([*asked, "-o", "a.webm"]) == 0
    monkeypatch.setenv("SORA_SIGN_CERTIFICATE", str(here / "none.pem"))
    monkeypatch.setenv("SORA_SIGN_KEY", str(here / "none.pem"))
    capsys.readouterr()
    assert main([*asked, "-o", "a.mp4", "--sign"]) == 2
    assert "none.pem: No such file" in capsys.readouterr().err
    config.write_text('sign = "yes"\n')
    assert main([*asked, "-o", "a.mp4"]) == 2
    assert "must be true or false" in capsys.readouterr().err


def test_a_clip_that_is_continued(here: Path, capsys: Capture) -> None:
    """A clip from elsewhere is real; one that sora made, and signed, brings its manifest along."""
    made(here / "real.mp4", moving(9, 64, 64), *x264())
    assert generate("-o", "made.mp4", "--sign", *QUIET) == 0
    how = ["--by", "0.4s", "--steps", "2", "--no-expand", "--sign", "--seed", "1", *QUIET]
    for name, source, signature in (
        ("real", "compositeWithTrainedAlgorithmicMedia", "none"),
        ("made", "trainedAlgorithmicMedia", "valid"),
    ):
        assert main(["extend", f"{name}.mp4", "on", *how, "-o", f"{name}-on.mp4"]) == 0
        found = provenance_check.check(here / f"{name}-on.mp4")
        assert found.signature == "valid" and found.sources == (source,)
        assert found.ingredients == ((f"{name}.mp4", "parentOf", signature),)
    capsys.readouterr()
    assert main(["verify", "made-on.mp4", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["signature"]["ingredients"]
    assert told == [{"name": "made.mp4", "relation": "parentOf", "signature": "valid"}]


def test_what_was_given_to_the_model_is_named(here: Path) -> None:
    """A mask, a LoRA, latents beside a clip; each of a storyboard's files once."""
    assert generate("-o", "made.mp4", "--keep-latents", *QUIET) == 0
    Image.new("RGB", (64, 64), (255, 255, 255)).save(here / "mask.png")
    style(here / "style.safetensors")
    how = ["--steps", "1", "--no-expand", "--seed", "1", "--sign", *QUIET]
    lora = ["--lora", "style.safetensors", "0.5"]
    words = ["edit", "made.mp4", "a ball", "--mask", "mask.png", *lora, *how, "-o", "a.mp4"]
    assert main(words) == 0
    assert provenance_check.check(here / "a.mp4").ingredients == (
        ("made.mp4", "parentOf", "none"),
        ("mask.png", "inputTo", "none"),
        ("style.safetensors", "inputTo", "none"),
    )
    assert main(["extend", "made.mp4", "on", "--by", "0.4s", *how, "-o", "b.mp4"]) == 0
    assert provenance_check.check(here / "b.mp4").ingredients == (
        ("made.mp4", "parentOf", "none"),
        ("made.mp4.latents.safetensors", "inputTo", "none"),
    )
    shots = '[[shot]]\nclip = "made.mp4"\n[[shot]]\nimage = "mask.png"\nduration = "0.4s"\n'
    (here / "board.toml").write_text(f'{shots}[[shot]]\nclip = "made.mp4"\n')
    assert main(["storyboard", "board.toml", *lora, *how, "-o", "c.mp4"]) == 0
    assert provenance_check.check(here / "c.mp4").ingredients == (
        ("board.toml", "inputTo", "none"),
        ("made.mp4", "componentOf", "none"),
        ("mask.png", "inputTo", "none"),
        ("style.safetensors", "inputTo", "none"),
    )


def test_all_made_believes_recipes_and_no_silence() -> None:
    made = {"verb": "generate"}
    real: dict[str, Any] = {"recipe": None, "sha256": "0"}
    of = lambda verb, *parents: {"verb": verb, "parents": list(parents)}  # noqa: E731
    child = {"recipe": made, "sha256": "1"}
    assert all_made({}) and all_made({"verb": "loop"}) and all_made(of("animate", real))
    assert all_made(of("extend", child)) and not all_made(of("extend", real))
    assert not all_made(of("connect", child, real)) and not all_made({"verb": "edit"})
    assert not all_made(of("extend", {"recipe": of("edit", real), "sha256": "2"}))
    assert all_made(of("storyboard", real, child)) and not all_made(of("storyboard", real, real))


def test_a_batch_signs_and_labels(here: Path, capsys: Capture) -> None:
    shared = {"size": "64x64", "num-frames": 5, "steps": 1, "expand": False, "seed": 1}
    items = [
        {"prompt": PROMPT, "output": "a.mp4", **shared},
        {"prompt": PROMPT, "output": "b.mp4", "sign": False, "label": False, **shared},
    ]
    Path("items.jsonl").write_text("\n".join(json.dumps(item) for item in items))
    assert main(["batch", "items.jsonl", "--sign", "--label", *QUIET]) == 0
    assert verdict(here / "a.mp4") == ("valid", "own")
    assert verdict(here / "b.mp4") == ("none", "none")
    labels = [recipes.read(here / name).get("label") for name in ("a.mp4", "b.mp4")]
    assert labels == [TEXT, None]


def test_a_run_that_stopped_is_signed_when_it_is_finished(here: Path, capsys: Capture) -> None:
    class Stop(Exception):
        pass

    def stop(event: Any) -> None:
        if event.phase == "decode":
            raise Stop

    target = Target(output=Path("a.mp4"), sign=True, label=True)
    with pytest.raises(Stop):
        list(app.generate(REQUEST, target=target, observer=stop))
    assert names_in(here) == []
    assert main(["resume", *QUIET]) == 0
    assert verdict(here / "a.mp4") == ("valid", "own")
    assert recipes.read(here / "a.mp4")["label"] == TEXT


def test_nothing_is_left_where_signing_fails(here: Path) -> None:
    """A certificate that expires during the work: no file, no half-signed one, and no work lost."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate, private = pair(here.parent / "short", key, days=3 / 86400)

    def dawdle(event: Any) -> None:
        if event.phase == "write":
            time.sleep(max(0, began + 4 - time.monotonic()))

    began = time.monotonic()
    target = Target(output=Path("a.mp4"), sign=True, sign_certificate=certificate, sign_key=private)
    with pytest.raises(OutputError, match="could not sign a.mp4") as error:
        list(app.generate(REQUEST, target=target, observer=dawdle))
    assert "sora resume" in (error.value.hint or "") and names_in(here) == []
    assert main(["resume", *QUIET]) == 2  # said before the work, this time
    pair(here.parent / "short", key)
    assert main(["resume", *QUIET]) == 0
    assert verdict(here / "a.mp4") == ("valid", "unknown")


def test_a_picture_that_is_gone_meanwhile_and_the_key_that_stays_where_it_is(here: Path) -> None:
    key = provenance_keys.folder() / "key.pem"
    secret = key.read_text().splitlines()[1]
    picture = ["image", PROMPT, "--size", "64x64", "--steps", "1", "--no-expand", *QUIET]
    assert main([*picture, "-o", "part.png"]) == 0
    notes: list[str] = []

    def observer(event: Any) -> None:
        if event.phase == "decode":
            (here / "part.png").unlink(missing_ok=True)
        notes.append(event.message or "")

    target = Target(output=Path("a.mp4"), sign=True, keep_run=True)
    list(app.animate(here / "part.png", REQUEST, target=target, observer=observer))
    assert any("part.png is not named in the signature" in note for note in notes)
    assert provenance_check.check(here / "a.mp4").ingredients == ()
    for path in [*runs_dir().rglob("*"), here / "a.mp4"]:
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path
    assert secret not in " ".join(notes)


def test_the_mark_is_in_every_frame_and_twice_is_once(here: Path) -> None:
    made(here / "real.mkv", moving(9, 64, 64), "-c:v", "ffv1", "-pix_fmt", "bgr0")
    how = ["--by", "0.4s", "--steps", "1", "--no-expand", "--seed", "1", "-o"]
    assert main(["extend", "real.mkv", "on", *how, "a.mkv", *QUIET]) == 0
    assert main(["extend", "real.mkv", "on", *how, "b.mkv", "--label", *QUIET]) == 0
    bare, marked = (frames_of(here / name) for name in ("a.mkv", "b.mkv"))
    mark = draw(64, 64)
    differs = (bare != marked).any(axis=(0, 3))
    rows, columns = np.nonzero(differs)
    assert np.ptp(rows) < len(mark) and np.ptp(columns) < mark.shape[1]
    assert rows.max() > 56 and columns.max() > 56  # the lower right corner
    given = np.concatenate(list(reader.open_clip(here / "real.mkv").frames()))
    assert np.array_equal(bare[:9], given)  # untouched, unless they are labelled
    assert np.array_equal(marked[:9], next(burn([given])))
    assert np.array_equal(next(burn([marked])), marked)


@pytest.mark.parametrize("size", [(4, 4), (7, 5), (33, 17), (64, 64), (160, 96), (1280, 720)])
def test_the_mark_scales_with_the_frame(size: tuple[int, int]) -> None:
    width, height = size
    frames = np.full((2, height, width, 3), 90, np.uint8)
    marked = next(burn([frames]))
    assert marked.shape == frames.shape and (frames == 90).all()
    tall, wide = draw(width, height).shape[:2]
    assert tall <= height and wide <= width
    if min(size) >= 64:
        assert 0.04 < tall / height < 0.25 and (marked[0] > 200).all(axis=2).any()


def test_verify_from_the_shell(here: Path) -> None:
    assert generate("-o", "a.mp4", "--sign", *QUIET) == 0
    content = bytearray((here / "a.mp4").read_bytes())
    content[-20] ^= 1
    (here / "b.mp4").write_bytes(content)
    command = [str(Path(sys.executable).with_name("sora")), "verify"]
    whole = subprocess.run([*command, "a.mp4"], capture_output=True, text=True, check=False)
    assert whole.returncode == 0 and whole.stderr == ""
    lines = whole.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["recipe", "signature", "trust"]
    broken = subprocess.run([*command, "b.mp4"], capture_output=True, text=True, check=False)
    assert broken.returncode == 1 and "signature: broken" in broken.stdout
    assert "verified" not in (whole.stdout + broken.stdout + broken.stderr).lower()
    assert main(["verify", "a.mp4", "--require-signature"]) == 0
    assert generate("-o", "c.mp4", *QUIET) == 0
    assert main(["verify", "c.mp4"]) == 0
    assert main(["verify", "c.mp4", "--require-signature"]) == 1


def test_a_replay_is_marked_as_the_file_was(here: Path, capsys: Capture) -> None:
    assert generate("-o", "a.mp4", "--sign", "--label", *QUIET) == 0
    capsys.readouterr()
    assert main(["replay", "a.mp4", "--json", *QUIET]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["differs"] == {} and said["frames"]["identical"]
    assert verdict(here / "a-replay.mp4") == ("valid", "own")
    assert main(["replay", "a.mp4", "-o", "b.mp4", "--no-sign", "--no-label", *QUIET]) == 0
    assert verdict(here / "b.mp4") == ("none", "none")
    # Whoever has no certificate gets the same frames, and is told.
    for path in provenance_keys.folder().iterdir():
        path.unlink()
    capsys.readouterr()
    assert main(["replay", "a.mp4", "-o", "c.mp4", *QUIET]) == 0
    error = capsys.readouterr().err
    assert "this one is not: there is no certificate" in error and "bit for bit" in error
    assert verdict(here / "c.mp4") == ("none", "none")
