"""`sora replay`: the same file again from its recipe, and the truth about what differs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sora_cli.cli.main import main
from sora_cli.errors import SoraError, UsageError
from sora_cli.media import recipe as recipes
from sora_cli.pipeline.request import Request
from sora_cli.runs import replay
from sora_cli.runs.calls import Call, fingerprint
from tests.tiny_runs import PROMPT, SMALL, generate, style

Capture = pytest.CaptureFixture[str]
QUIET = ("--progress", "none")


def replayed(capsys: Capture, *words: str | Path) -> dict[str, Any]:
    """What `sora replay --json` says."""
    capsys.readouterr()
    assert main(["replay", *map(str, words), "--json", "-q"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    "name",
    ["a.mkv", *(pytest.param(n, marks=pytest.mark.slow) for n in ("a.mp4", "a.gif", "a.webp",
                                                                  "a.webm", "frames/"))],
)  # fmt: skip
def test_a_video_is_made_again_bit_for_bit(here: Path, capsys: Capture, name: str) -> None:
    options = ["--guidance-scale", "3", "--shift", "2", "--sampler", "unipc", "--crf", "30"]
    assert generate(*options, "-o", name, *QUIET, seed=9) == 0
    said = replayed(capsys, name)
    assert said["differs"] == {}
    assert said["frames"] == {"identical": True, "psnr": None, "reason": None}
    path = Path(said["path"])
    assert path.name == {"frames/": "frames-replay"}.get(name, f"a-replay{path.suffix}")
    first, second = recipes.read(here / name), recipes.read(path)
    measured = {"timings", "peak_memory", "run", "device_reason"}
    assert {k: v for k, v in first.items() if k not in measured} == {
        k: v for k, v in second.items() if k not in measured
    }


def test_a_picture_and_its_expansion(here: Path, capsys: Capture) -> None:
    words = ["image", "a red ball", "--size", "64x64", "--steps", "2", "--seed", "3", "--expand"]
    assert main([*words, "-o", "a.png"]) == 0
    said = replayed(capsys, "a.png")
    assert said["frames"]["identical"] and said["differs"] == {}
    assert said["expanded_prompt"] not in (None, "a red ball")


def test_overrides_are_said_with_what_they_change(here: Path, capsys: Capture) -> None:
    assert generate("-o", "a.mkv") == 0
    said = replayed(capsys, "a.mkv", "--seed", "2", "--steps", "3", "-o", "b.mkv")
    assert said["differs"] == {"seed": {"then": 1, "now": 2}, "steps": {"then": 2, "now": 3}}
    assert not said["frames"]["identical"] and 0 < said["frames"]["psnr"] < 60
    assert main(["replay", "a.mkv", "--seed", "2", *QUIET]) == 0
    captured = capsys.readouterr()
    assert captured.out == "a-replay.mkv\n"
    assert captured.err.splitlines()[0] == "note: seed: 1, now 2"
    assert captured.err.splitlines()[1].startswith("note: the frames differ: PSNR ")
    assert main(["replay", "a.mkv", "-o", "b.mkv"]) == 2
    assert "b.mkv already exists" in capsys.readouterr().err


def test_what_a_clip_was_made_from_is_found_by_its_hash(
    here: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Beside the file or where the user says; never at a path that the recipe names."""
    Image.new("RGB", (64, 64), (200, 30, 30)).save(here / "red.png")
    words = ["animate", "red.png", "it moves", *SMALL, "--seed", "1", "--fit", "pad"]
    assert main([*words, "-o", "a.mkv"]) == 0
    arguments = recipes.read(here / "a.mkv")["arguments"]
    assert arguments["fit"] == "pad" and arguments["image"]["name"] == "red.png"
    assert str(here) not in json.dumps(recipes.read(here / "a.mkv"))
    assert replayed(capsys, "a.mkv")["frames"]["identical"]
    (here / "red.png").rename(tmp_path / "moved.png")
    assert main(["replay", "a.mkv"]) == 2
    told, hint = capsys.readouterr().err.splitlines()
    assert told == (
        "error: the image that a.mkv was made from (red.png) is not there, or has changed"
    )
    assert hint == "hint: say where it is: sora replay a.mkv --input PATH"
    said = replayed(capsys, "a.mkv", "--input", tmp_path / "moved.png")
    assert said["frames"]["identical"]
    # Another picture under the same name is not taken.
    Image.new("RGB", (64, 64), (30, 30, 200)).save(here / "red.png")
    assert main(["replay", "a.mkv"]) == 2


def test_latents_beside_a_clip_that_are_gone_are_said(here: Path, capsys: Capture) -> None:
    """An extension from a sidecar is another one than from the clip's frames."""
    assert generate("-o", "a.mp4", "--keep-latents", "--crf", "32", *QUIET) == 0
    words = ["extend", "a.mp4", "on", "--by", "1s", "--steps", "1", "--no-expand", "--seed", "1"]
    assert main([*words, "-o", "b.mkv", *QUIET]) == 0
    beside = here / "a.mp4.latents.safetensors"
    assert recipes.read(here / "b.mkv")["arguments"]["latents"]["name"] == beside.name
    said = replayed(capsys, "b.mkv")
    assert said["differs"] == {} and said["frames"]["identical"]
    beside.rename(here.parent / "kept")
    assert main(["replay", "b.mkv", *QUIET]) == 0
    said = capsys.readouterr().err
    assert f"note: latents: {beside.name} (" in said and "), now none\n" in said
    assert "note: the latents beside the clip are gone: its frames were encoded again\n" in said
    said = replayed(capsys, "b.mkv", "-o", "c.mkv")
    assert set(said["differs"]) == {"latents"} and not said["frames"]["identical"]
    # Known by what they hold, wherever they are; and one made without any stays so.
    assert replayed(capsys, "b.mkv", "--input", here.parent / "kept")["differs"] == {}
    assert main([*words, "-o", "d.mkv", *QUIET]) == 0
    (here.parent / "kept").rename(beside)
    said = replayed(capsys, "d.mkv")
    assert said["differs"] == {} and said["frames"]["identical"]


def test_another_lora_of_the_same_name_is_said(here: Path, capsys: Capture) -> None:
    style(here / "style.safetensors")
    assert generate("--lora", here / "style.safetensors", "0.5", "-o", "a.mkv", *QUIET) == 0
    recipe = recipes.read(here / "a.mkv")
    assert recipe["loras"] == ["style.safetensors=0.5"] and str(here) not in json.dumps(recipe)
    assert main(["replay", "a.mkv"]) == 2
    assert "was made with LoRAs: style.safetensors=0.5" in capsys.readouterr().err
    lora = ["--lora", "style.safetensors=0.5"]
    said = replayed(capsys, "a.mkv", *lora)
    assert said["differs"] == {} and said["frames"]["identical"]
    style(here / "style.safetensors", seed=2)
    said = replayed(capsys, "a.mkv", *lora)
    assert set(said["differs"]) == {"lora 1"} and not said["frames"]["identical"]


def test_references_are_found_by_their_hashes(here: Path) -> None:
    """Pictures of how things look belong to the request; their order is that of the recipe."""
    known = {}
    for number, name in ((1, "b.png"), (2, "a.png")):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(here / name)
        known[f"reference {number}"] = {"name": name, "sha256": fingerprint(here / name)}
    recipe = {**GOOD, "inputs": known}
    call = replay.call_of(recipe, here / "x.mkv")
    assert call.request.references == (str(here / "b.png"), str(here / "a.png"))
    (here / "a.png").unlink()
    with pytest.raises(UsageError, match="the reference 2 that x.mkv was made from"):
        replay.call_of(recipe, here / "x.mkv")


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["extend", "loop", "connect", "edit"])
def test_clips_are_made_again(here: Path, capsys: Capture, verb: str) -> None:
    assert generate("-o", "a.mkv", "--num-frames", "9", *QUIET) == 0
    clips = ["a.mkv", "a.mkv"] if verb == "connect" else ["a.mkv"]
    words = [verb, *clips, "a ball", "--steps", "2", "--no-expand"]
    words += {"edit": ["--strength", "0.7"], "extend": ["--by", "1s"]}.get(verb, ["--over", "1s"])
    assert main([*words, "-o", "b.mkv"]) == 0
    said = replayed(capsys, "b.mkv")
    assert said["frames"]["identical"] and said["differs"] == {}


@pytest.mark.slow
def test_a_recipe_of_another_machine_is_said(here: Path, capsys: Capture) -> None:
    assert generate("-o", "frames/") == 0
    path = here / "frames" / "recipe.json"
    recipe = json.loads(path.read_text())
    recipe |= {"device": "cuda:0", "dtype": "float16", "version": "0.0.1", "weights": "sha256:0"}
    path.write_text(json.dumps(recipe))
    said = replayed(capsys, "frames")
    assert set(said["differs"]) == {"device", "dtype", "version", "weights"}
    assert said["differs"]["device"] == {"then": "cuda:0", "now": "cpu"}
    assert said["frames"]["identical"], "all the same, here"


def test_a_file_without_a_recipe(here: Path, capsys: Capture) -> None:
    Image.new("RGB", (64, 64)).save(here / "a.png")
    assert main(["replay", "a.png"]) == 2
    assert "a.png carries no recipe" in capsys.readouterr().err


def test_frames_are_compared_one_by_one(here: Path) -> None:
    def folder(name: str, value: int, count: int = 3, side: int = 8) -> Path:
        (here / name).mkdir()
        for number in range(1, count + 1):
            picture = np.full((side, side, 3), value, np.uint8)
            Image.fromarray(picture).save(here / name / f"{number:06d}.png")
        return here / name

    one = folder("one", 100)
    assert replay.compare_frames(one, folder("same", 100)) == (True, None)
    identical, psnr = replay.compare_frames(one, folder("other", 101))
    assert not identical and psnr == pytest.approx(48.13, abs=0.01)
    for other in (folder("short", 100, count=2), folder("small", 100, side=4)):
        with pytest.raises(UsageError):
            replay.compare_frames(one, other)


# ---------------------------------------------------------------- recipes of strangers

GOOD = {
    "schema": 1, "seed": 1, "model": "tiny", "size": [64, 64], "num_frames": 5, "fps": 8.0,
    "prompt": PROMPT, "expanded_prompt": None, "negative_prompt": "", "steps": 2,
    "guidance_scale": 4.0, "shift": 3.0, "sampler": "euler", "sigma_grid": "diffusers",
    "device": "cpu", "dtype": "float32", "verb": "generate",
}  # fmt: skip
TABLES = ("arguments", "inputs", "loras", "parents", "crf")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["path", "sha256", "name", "request", "list"]), inner)
    ),
    max_leaves=6,
)


@given(changes=st.dictionaries(st.sampled_from([*GOOD, *TABLES]), JSON))
@settings(max_examples=150, deadline=None)
def test_no_recipe_gives_anything_but_a_call_or_an_error(changes: dict[str, Any]) -> None:
    """And never a path: not as the model, not as an input, not as a LoRA."""
    try:
        call = replay.call_of({**GOOD, **changes}, Path("a.mkv"))
    except SoraError as error:
        assert error.hint
        return
    request = call.request
    assert request.model == "tiny" and request.loras == ()
    assert request.vae is request.text_encoder is None
    assert not any(isinstance(value, Path) for value in call.arguments.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "/etc/passwd"}, "is no name that is known here"),
        ({"model": "../tiny"}, "is no name that is known here"),
        ({"loras": ["/etc/passwd"]}, "was made with LoRAs"),
        ({"arguments": {"image": {"path": "/etc/passwd"}}}, "cannot be used"),
        ({"arguments": {"image": {"name": "../../x", "sha256": "0"}}}, r"\(x\) is not there"),
        ({"arguments": {"image": {"name": "C:\\x\\y.png", "sha256": "0"}}}, r"\(y.png\) is not"),
        ({"verb": "extend", "parents": [{}]}, "does not say how extend was called"),
    ],
)
def test_no_path_is_taken_from_a_recipe(here: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replay.call_of({**GOOD, **changes}, here / "a.mkv")


@pytest.mark.parametrize(
    ("verb", "changes"),
    [
        ("animate", {"image": 3}), ("animate", {"image": "a.png"}), ("animate", {"fit": "round"}),
        ("extend", {"by": "1s"}), ("extend", {"by": math.nan}), ("extend", {"direction": "up"}),
        ("extend", {"to": 10**400}), ("extend", {"by": True}), ("edit", {"between": (1.0,)}),
        ("edit", {"between": (0, math.inf)}), ("edit", {"mask": 0}), ("upscale", {"scale": None}),
    ],
)  # fmt: skip
def test_an_argument_of_another_kind_is_refused(verb: str, changes: dict[str, Any]) -> None:
    """Before the verb sees it: JSON holds what no verb expects."""
    paths = {"image": Path("a.png")} if verb == "animate" else {"clip": Path("a.mkv")}
    call = Call(verb=verb, arguments={"request": Request(prompt="a"), **paths, **changes})
    with pytest.raises(ValueError, match=f"{next(iter(changes))} of {verb} is something else"):
        call.start()


@pytest.mark.parametrize("verb", ["info", "os.system", "__init__", "expand"])
def test_only_verbs_are_called(here: Path, capsys: Capture, verb: str) -> None:
    (here / "recipe.json").write_text(json.dumps({**GOOD, "verb": verb}))
    assert main(["replay", "recipe.json"]) == 2
    assert "error: the recipe in recipe.json cannot be used" in capsys.readouterr().err
